// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/hunyuan_config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/hunyuan/dit.h"
#include "lacuna/models/hunyuan/hash_case.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"

namespace lacuna {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// As diffusers writes it for the released network.
Json released() {
  return Json::parse(
      R"({"_class_name": "HunyuanVideoTransformer3DModel", "_diffusers_version": "0.32.0.dev0",
    "attention_head_dim": 128, "guidance_embeds": true, "in_channels": 16, "mlp_ratio": 4.0,
    "num_attention_heads": 24, "num_layers": 20, "num_refiner_layers": 2, "num_single_layers": 40,
    "out_channels": 16, "patch_size": 2, "patch_size_t": 1, "pooled_projection_dim": 768,
    "qk_norm": "rms_norm", "rope_axes_dim": [16, 56, 56], "rope_theta": 256.0, "text_embed_dim": 4096})");
}

std::string refusal(const Json& json) {
  return error_of([&] { hunyuan_config_from_json(json.dump(), "config.json"); });
}

std::string with(const char* key, const Json& value) {
  Json json = released();
  json[key] = value;
  return refusal(json);
}

TEST(HunyuanConfig, ReadsTheReleasedNetwork) {
  EXPECT_EQ(hunyuan_config_from_json(released().dump(), "config.json"),
            hunyuan_preset("hunyuanvideo"));
  Json plain = released();
  plain["guidance_embeds"] = false;
  EXPECT_FALSE(hunyuan_config_from_json(plain.dump(), "config.json").guidance_embeds);
}

TEST(HunyuanConfig, CountsParametersExactly) {
  EXPECT_NEAR(static_cast<double>(hunyuan_preset("hunyuanvideo").num_parameters()) * 1e-9, 12.821,
              1e-3);
  HunyuanConfig odd = golden_hunyuan_config();
  odd.mlp_ratio = 2.5;
  odd.num_refiner_layers = 2;
  odd.guidance_embeds = false;
  for (const HunyuanConfig& config : {golden_hunyuan_config(), odd}) {
    testing::Recorder recorder;
    WeightReader reader(recorder);
    const HunyuanTransformer network(config, reader);
    int64_t count = 0;
    for (const auto& [name, shape] : recorder.asked) {
      int64_t values = 1;
      for (const int64_t size : shape) values *= size;
      count += values;
    }
    EXPECT_EQ(config.num_parameters(), count);
  }
}

TEST(HunyuanConfig, CostsAreThePublishedOnes) {
  // Tera-operations of one forward: frames, height, width of the latent -> attention, linears.
  const HunyuanConfig config = hunyuan_preset("hunyuanvideo");
  struct Row {
    int64_t frames, height, width, tokens;
    double attention, gemm;
  };
  for (const Row& row : {Row{33, 90, 160, 118800, 10450, 1614}, Row{33, 68, 120, 67320, 3367, 915},
                         Row{16, 68, 120, 32640, 798, 444}, Row{9, 40, 64, 5760, 27, 78}}) {
    EXPECT_EQ(config.grid(row.frames, row.height, row.width).tokens(), row.tokens);
    // Attention is counted with 256 words, linears of the video alone.
    EXPECT_NEAR(config.flops(row.tokens, 256).self_attention * 1e-12, row.attention,
                0.5 + 0.001 * row.attention);
    EXPECT_NEAR(config.flops(row.tokens, 0).gemm * 1e-12, row.gemm, 0.5);
    EXPECT_EQ(config.flops(row.tokens, 256).cross_attention, 0.0);
  }
  // 129 frames of 720 x 1280 beside 26 GB of weights.
  EXPECT_LT(config.activation_bytes(118800, DType::bf16), int64_t{5} << 30);
  const PassingWeights passing = config.passing_weights(DType::bf16, 0.56, false);
  EXPECT_EQ(passing.converted, int64_t{2} * 3072 * 3072 * (6 + 4 + 5));
  EXPECT_EQ(config.passing_weights(DType::bf16, 2.0, false).converted, 0);
}

TEST(HunyuanConfig, RefusesOtherNetworksByName) {
  EXPECT_EQ(refusal(released()), "");
  for (const char* kind : {"latent_concat", "token_replace"})
    EXPECT_THAT(with("image_condition_type", kind),
                AllOf(HasSubstr("image_condition_type"), HasSubstr(kind)));
  EXPECT_EQ(with("image_condition_type", nullptr), "");
  EXPECT_THAT(with("_class_name", "HunyuanVideo15Transformer3DModel"), HasSubstr("_class_name"));
  EXPECT_THAT(with("_class_name", "HunyuanVideoFramepackTransformer3DModel"),
              HasSubstr("_class_name"));
  EXPECT_THAT(with("qk_norm", "layer_norm"), HasSubstr("qk_norm"));
  EXPECT_THAT(with("text_embed_2_dim", 1472), HasSubstr("text_embed_2_dim"));
  EXPECT_THAT(with("has_image_proj", true), HasSubstr("has_image_proj"));
  EXPECT_THAT(with("in_channels", 33), HasSubstr("33 channels in and 16 out"));
  EXPECT_THAT(with("quantization_config", Json::object()), HasSubstr("quantization_config"));
}

TEST(HunyuanConfig, RefusesWhatIsOutOfRange) {
  EXPECT_THAT(with("rope_axes_dim", {16, 56, 57}), HasSubstr("rope_axes_dim"));
  EXPECT_THAT(with("rope_axes_dim", {16, 56, 54}), HasSubstr("126 channels"));
  EXPECT_THAT(with("rope_axes_dim", {64, 64}), HasSubstr("3 integers"));
  EXPECT_THAT(with("patch_size", {1, 2, 2}), HasSubstr("patch_size"));
  EXPECT_THAT(with("num_layers", 1e9), HasSubstr("num_layers"));
  EXPECT_THAT(with("num_layers", 1000000000), HasSubstr("num_layers"));
  EXPECT_THAT(with("mlp_ratio", -1), HasSubstr("mlp_ratio"));
  EXPECT_THAT(with("guidance_embeds", 1), HasSubstr("guidance_embeds"));
  Json lacking = released();
  lacking.erase("num_single_layers");
  EXPECT_THAT(refusal(lacking), HasSubstr("num_single_layers"));
  EXPECT_THAT(error_of([] { hunyuan_config_from_json("[]", "config.json"); }),
              HasSubstr("HunyuanVideo"));
  EXPECT_THAT(error_of([] { hunyuan_preset("hunyuan"); }), HasSubstr("hunyuanvideo-tiny"));
  const HunyuanConfig config = hunyuan_preset("hunyuanvideo-tiny");
  EXPECT_THAT(error_of([&] { config.grid(3, 7, 8); }), HasSubstr("height 7"));
  EXPECT_THAT(error_of([&] { config.grid(1025, 8, 8); }), HasSubstr("1025 positions"));
}

TEST(HunyuanConfig, SizesSayWhatPipelinesNeed) {
  const TransformerSizes sizes = HunyuanArchitecture(hunyuan_preset("hunyuanvideo")).sizes();
  EXPECT_EQ(sizes.num_layers, 60);
  EXPECT_EQ(sizes.dim(), 3072);
  EXPECT_TRUE(sizes.joint_text);
  EXPECT_TRUE(sizes.embedded_guidance);
  EXPECT_EQ(sizes.stream_rows(5760), 5760 + 256);
  EXPECT_EQ(sizes.pooled_dim, 768);
}

}  // namespace
}  // namespace lacuna
