// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/safetensors.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string open_error(std::vector<fs::path> paths) {
  return error_of([&] { Model::open(paths); });
}

void replace_in(const fs::path& path, const std::string& from, const std::string& to) {
  std::ifstream in(path);
  std::string text(std::istreambuf_iterator<char>(in), {});
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  std::ofstream(path) << text.replace(at, from.size(), to);
}

TEST(Model, AConfigOfFewerLayersThanTheWeightsHaveIsRefused) {
  const TinyCheckpoint checkpoint({.layers = 2});
  EXPECT_EQ(open_error({checkpoint.folder()}), "");
  replace_in(checkpoint.folder() / "transformer/config.json", "\"num_layers\": 2",
             "\"num_layers\": 1");
  EXPECT_THAT(open_error({checkpoint.folder()}),
              AllOf(HasSubstr("config.json: `num_layers` is 1"), HasSubstr("blocks.1.")));
}

// Single files, which come without a config.json. One of another network is known before step 0.
TEST(Model, TwoExpertsHaveTheSameSizes) {
  const TinyCheckpoint checkpoint({.experts = 2}), wide({.ti2v = true}), deep({.layers = 3});
  const TempFolder temp;
  const auto file = [&](const TinyCheckpoint& from, const char* part, const char* name) {
    fs::copy_file(from.folder() / part / "diffusion_pytorch_model.safetensors", temp.path() / name);
    return temp.path() / name;
  };
  const fs::path high = file(checkpoint, "transformer", "high_noise.safetensors");
  const fs::path low = file(checkpoint, "transformer_2", "low_noise.safetensors");
  EXPECT_EQ(Model::open(std::vector{high, low})->num_experts(), 2);
  for (const TinyCheckpoint* other : {&wide, &deep}) {
    const fs::path wrong = file(*other, "transformer", "other_low.safetensors");
    EXPECT_THAT(open_error({high, wrong}),
                AllOf(HasSubstr("high_noise.safetensors and "), HasSubstr("other_low.safetensors"),
                      HasSubstr("different sizes")));
    fs::remove(wrong);
  }
}

TEST(Model, TwoExpertsHaveTheSameTensors) {
  const TinyCheckpoint checkpoint({.experts = 2});
  const fs::path low = checkpoint.folder() / "transformer_2/diffusion_pytorch_model.safetensors";
  {
    const SafetensorsFile whole(low);
    std::vector<std::pair<std::string, TensorView>> tensors;
    for (const auto& [name, view] : whole.tensors())
      if (name != "blocks.1.attn2.to_v.weight") tensors.emplace_back(name, view);
    ASSERT_EQ(tensors.size() + 1, whole.tensors().size());
    write_safetensors(low, tensors);
  }
  EXPECT_THAT(open_error({checkpoint.folder()}),
              AllOf(HasSubstr("transformer_2"), HasSubstr("lacks blocks.1.attn2.to_v.weight")));
}

// A second run in one process has room for what the first left in memory.
TEST(Model, MadeWeightsAreKnownWhileTheyAreHeld) {
  const auto model = Model::synthetic("mochi-tiny", DType::bf16);
  EXPECT_EQ(model->made_bytes(), 0);
  model->transformer(0);
  EXPECT_EQ(model->made_bytes(), model->transformer_bytes());
  model->release_transformer();
  EXPECT_EQ(model->made_bytes(), 0);
}

TEST(Model, TextToVideoLooksAtNoPictures) {
  const auto model = Model::synthetic("tiny", DType::bf16);
  EXPECT_FALSE(model->has_image_encoder());
  EXPECT_EQ(model->image_encoder_bytes(1), 0);
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const std::vector<Picture> one = {{1, 1, {1, 2, 3}}};
  EXPECT_THAT(error_of([&] { model->embed_pictures(ctx, one); }),
              HasSubstr("takes no rows of an image encoder"));
}

// As clip_vision_h.safetensors given alone.
TEST(Model, WithoutATransformerItSaysWhatTheFilesHold) {
  const TempFolder folder;
  const fs::path file = folder.path() / "clip.safetensors";
  const Tensor one = Tensor::zeros(DType::f32, {1});
  const std::vector<std::pair<std::string, TensorView>> tensors = {
      {"vision_model.embeddings.class_embedding", one}, {"vision_model.pre_layrnorm.weight", one}};
  write_safetensors(file, tensors);
  EXPECT_THAT(open_error({file}),
              HasSubstr("no diffusion transformer beside image encoder " + file.string()));
}

}  // namespace
}  // namespace lacuna::test
