// SPDX-License-Identifier: Apache-2.0
// A tiny decoder beside a checkpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <memory>
#include <string>

#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/vae/taehv_decoder.h"
#include "tests/support/error_of.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path write_tiny_decoder(const fs::path& folder, int64_t latent_channels) {
  NotingWeights source("w:", DType::f32);
  const TaehvDecoder decoder({latent_channels, 1, {8, 8, 8, 8}, {1, 1, 2}}, source);
  source.save(folder, "{}");
  const fs::path file = folder.string() + ".safetensors";
  fs::rename(folder / "diffusion_pytorch_model.safetensors", file);
  return file;
}

TEST(TinyDecoder, DecodesWhereTheVaeEncodes) {
  const TinyCheckpoint checkpoint({.ti2v = true});
  const TempFolder folder;
  const fs::path file = write_tiny_decoder(folder.path() / "tae", 12);
  const auto plain = Model::open(std::array{checkpoint.folder()});
  EXPECT_EQ(plain->tiny_decoder(), fs::path());
  const auto model = Model::open(std::array{checkpoint.folder(), file});
  EXPECT_EQ(model->tiny_decoder(), file);
  EXPECT_EQ(model->fingerprint(), plain->fingerprint());
  EXPECT_NE(dynamic_cast<const TaehvDecoder*>(&model->decoder()), nullptr);
  EXPECT_EQ(model->encoder().memory_bytes({1, 32, 32}, DType::f32),
            plain->encoder().memory_bytes({1, 32, 32}, DType::f32));
  const auto shape = model->latent_shape(64, 48, 5);
  EXPECT_EQ(shape.frames, 3);
  EXPECT_EQ(shape.height, 6);
}

TEST(TinyDecoder, NeedsNoVaeUntilAPictureIsEncoded) {
  const TinyCheckpoint checkpoint({.ti2v = true});
  fs::remove_all(checkpoint.folder() / "vae");
  const TempFolder folder;
  const auto model =
      Model::open(std::array{checkpoint.folder(), write_tiny_decoder(folder.path() / "tae", 12)});
  EXPECT_EQ(model->decoder().latent_channels(), 12);
  EXPECT_THAT(error_of([&] { model->encoder(); }), HasSubstr("model: no VAE beside transformer"));
  const auto without = Model::open(std::array{checkpoint.folder()});
  EXPECT_THAT(error_of([&] { without->decoder(); }), HasSubstr("model: no VAE beside transformer"));
}

TEST(TinyDecoder, OfAnotherModelIsRefusedBeforeStepZero) {
  const TinyCheckpoint checkpoint({.ti2v = true});
  const TempFolder folder;
  const auto model =
      Model::open(std::array{checkpoint.folder(), write_tiny_decoder(folder.path() / "tae", 16)});
  Request request;
  request.width = 64, request.height = 64, request.frames = 5;
  EXPECT_THAT(error_of([&] { plan_memory(*model, request, {}, false); }),
              HasSubstr("the decoder has 16 latent channels, the transformer 12"));
}

TEST(TinyDecoder, IsInTheMemoryPlan) {
  const TinyCheckpoint checkpoint({.ti2v = true});
  const TempFolder folder;
  const auto model =
      Model::open(std::array{checkpoint.folder(), write_tiny_decoder(folder.path() / "tae", 12)});
  Request request;
  request.width = request.height = 128, request.frames = 5;
  const Tiling exact{.mode = TileMode::exact, .tile_height = 64, .tile_width = 64};
  EXPECT_EQ(plan_memory(*model, request, {}, false).decoder,
            model->decoder().memory_bytes(3, 16, 16, DType::bf16, {}));
  EXPECT_EQ(plan_memory(*model, request, {}, false).tiles, "blend");
  EXPECT_THAT(error_of([&] { plan_memory(*model, request, exact, false); }),
              HasSubstr("exact for TAEHV, expected off or blend"));
}

}  // namespace
}  // namespace lacuna::test
