// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/image_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/convert.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/safetensors.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;

constexpr const char* kConfig =
    R"({"model_type":"clip_vision_model","hidden_act":"gelu","image_size":28,"patch_size":14,
"hidden_size":32,"num_attention_heads":2,"intermediate_size":48,"num_hidden_layers":3})";
constexpr const char* kProcessor =
    R"({"size":{"shortest_edge":32},"crop_size":{"height":28,"width":28},"resample":3})";

// With the names of clip_vision_h.safetensors, whose projection nothing reads.
class ImageEncoderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto hash = hash_weights("w:", DType::f32);
    std::vector<Tensor> tensors;
    std::vector<std::pair<std::string, TensorView>> named;
    const auto put = [&](const std::string& name, std::vector<int64_t> shape) {
      tensors.push_back(copy_of(hash->load(name, shape)));
      named.emplace_back(name, tensors.back());
    };
    const auto both = [&](const std::string& name, std::vector<int64_t> shape) {
      put(name + ".weight", shape);
      put(name + ".bias", {shape[0]});
    };
    const std::string e = "vision_model.embeddings.";
    put(e + "class_embedding", {32});
    put(e + "patch_embedding.weight", {32, 3, 14, 14});
    put(e + "position_embedding.weight", {5, 32});
    both("vision_model.pre_layrnorm", {32});
    for (const char* layer : {"0.", "1.", "2."}) {
      const std::string p = std::string("vision_model.encoder.layers.") + layer;
      for (const char* m : {"q_proj", "k_proj", "v_proj", "out_proj"})
        both(p + "self_attn." + m, {32, 32});
      both(p + "mlp.fc1", {48, 32});
      both(p + "mlp.fc2", {32, 48});
      for (const char* m : {"layer_norm1", "layer_norm2"}) both(p + m, {32});
    }
    put("visual_projection.weight", {16, 32});
    write_safetensors(file_, named);
  }
  ImageEncoderFiles files() const { return {{file_}, kConfig, kProcessor, "preprocessor"}; }

  const test::TempFolder temp_;
  const std::filesystem::path file_ = temp_.path() / "clip_vision_h.safetensors";
};

Picture filled(int width, int height, uint8_t step) {
  Picture picture{width, height, {}};
  for (int i = 0; i < 3 * width * height; ++i)
    picture.rgb.push_back(static_cast<uint8_t>(i * step));
  return picture;
}

TEST_F(ImageEncoderTest, PicturesFollowEachOther) {
  const auto backend = make_backend("cpu");
  Context ctx{*backend};
  const ImageEncoder encoder(files());
  const std::vector<Picture> pictures = {filled(61, 47, 3), filled(30, 90, 7)};
  const Tensor both = encoder.embed(ctx, pictures);
  ASSERT_EQ(both.view().shape[0], 10);
  ASSERT_EQ(both.view().shape[1], 32);
  for (int64_t i : {0, 1}) {
    const Tensor one = encoder.embed(ctx, std::span(pictures).subspan(static_cast<size_t>(i), 1));
    EXPECT_EQ(compare(both.view().slice(5 * i, 5 * i + 5), one).max_abs, 0.0);
  }
  EXPECT_GT(compare(both.view().slice(0, 5), both.view().slice(5, 10)).max_abs, 0.01);
}

// Its own heads, activation and edge: 32 wide is no released size, so one head and quick_gelu.
TEST_F(ImageEncoderTest, AFileAloneTellsTheSizes) {
  const ImageEncoder encoder({{file_}, "", "", ""});
  EXPECT_EQ(encoder.config().image_size, 28);
  EXPECT_EQ(encoder.config().num_layers, 3);
  const auto backend = make_backend("cpu");
  Context ctx{*backend};
  const std::vector<Picture> one = {filled(28, 28, 5)};
  EXPECT_EQ(encoder.embed(ctx, one).numel(), 5 * 32);
}

TEST_F(ImageEncoderTest, AConfigOfFewerLayersIsRefused) {
  ImageEncoderFiles fewer = files();
  fewer.config_json.replace(fewer.config_json.rfind('3'), 1, "2");
  EXPECT_THAT(test::error_of([&] { ImageEncoder{fewer}; }),
              testing::AllOf(HasSubstr("num_hidden_layers 2"), HasSubstr("encoder.layers.2.mlp")));
}

TEST_F(ImageEncoderTest, ConfigsOfTwoSizesAreRefused) {
  ImageEncoderFiles wrong = files();
  wrong.processor_json = R"({"size":224,"crop_size":224})";
  EXPECT_THAT(test::error_of([&] { ImageEncoder{wrong}; }),
              testing::AllOf(HasSubstr("preprocessor: crop_size 224"), HasSubstr("the 28 pixels")));
}

}  // namespace
}  // namespace lacuna
