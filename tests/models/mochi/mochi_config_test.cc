// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/mochi_config.h"

#include <gmock/gmock.h>

#include "tests/models/mochi/support.h"

namespace lacuna {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::tensors_of;

TEST(MochiConfig, PresetsHaveUpstreamsSizes) {
  // Counted by upstream's module.
  EXPECT_EQ(mochi_preset("mochi-1").num_parameters(), 10027677744);
  EXPECT_EQ(mochi_preset("mochi-tiny").num_parameters(), 5898288);
  EXPECT_EQ(golden_mochi_config().num_parameters(), 88032);
  for (const std::string_view name : mochi_preset_names()) EXPECT_NO_THROW(mochi_preset(name));
  EXPECT_THAT(error_of([] { mochi_preset("mochi-9"); }),
              AllOf(HasSubstr("mochi-9"), HasSubstr("mochi-tiny")));
}

TEST(MochiConfig, CountsEqualWhatTheModelAsksFor) {
  for (const auto& [config, tensors] :
       {std::pair{golden_mochi_config(), 81}, std::pair{mochi_preset("mochi-tiny"), 103}}) {
    int64_t parameters = 0;
    const auto asked = tensors_of(config);
    for (const auto& [name, shape] : asked) {
      int64_t size = 1;
      for (const int64_t extent : shape) size *= extent;
      parameters += size;
    }
    EXPECT_EQ(parameters, config.num_parameters());
    EXPECT_EQ(asked.size(), static_cast<size_t>(tensors));
    EXPECT_FALSE(asked.contains(
        fmt::format("transformer_blocks.{}.attn1.to_add_out.weight", config.num_layers - 1)));
  }
}

TEST(MochiConfig, CostsAreThoseOfTheReleasedNetwork) {
  const MochiArchitecture mochi(mochi_preset("mochi-1"));
  // 163 frames of 480 x 848, and 31: TFLOP.
  const int64_t tokens = mochi.grid(28, 60, 106).tokens();
  EXPECT_EQ(tokens, 44520);
  EXPECT_NEAR(mochi.flops(tokens, 256).self_attention * 1e-12, 1183, 0.6);
  EXPECT_NEAR(mochi.flops(tokens, 0).gemm * 1e-12, 484, 0.6);
  EXPECT_NEAR(mochi.flops(9540, 256).self_attention * 1e-12, 57, 0.6);
  EXPECT_EQ(mochi.flops(tokens, 256).cross_attention, 0.0);
  EXPECT_LT(mochi.activation_bytes(tokens, DType::bf16), int64_t{1900} << 20);
  EXPECT_EQ(mochi.prompt_bytes(DType::bf16), 4 * (256 * 1536 + 3072));
  // One modulation in f32; with another dtype stored, both matrices of the feed-forward.
  EXPECT_EQ(mochi.passing_weights(DType::bf16, 2.0, false).stored,
            2 * 2 * 2 * 8192 * 3072 + 4 * 4 * 3072 * 3072);
  EXPECT_EQ(mochi.passing_weights(DType::bf16, 2.0, false).converted, 0);
  EXPECT_EQ(mochi.passing_weights(DType::bf16, 1.0, false).converted, 2 * 3 * 8192 * 3072);
}

TEST(MochiConfig, PipelinesLearnTheSizes) {
  const TransformerSizes sizes = MochiArchitecture(mochi_preset("mochi-1")).sizes();
  EXPECT_EQ(sizes.num_layers, 48);
  EXPECT_EQ(sizes.dim(), 3072);
  EXPECT_EQ(sizes.latent_channels, 12);
  EXPECT_EQ(sizes.text_dim, 4096);
  EXPECT_EQ(sizes.text_len, 256);
  EXPECT_TRUE(sizes.joint_text);
  EXPECT_FALSE(sizes.embedded_guidance);
  EXPECT_EQ(sizes.pooled_dim, 0);
  EXPECT_EQ(sizes.stream_rows(1000), 1256);
}

constexpr const char* kReleased = R"({"_class_name":"MochiTransformer3DModel",
  "_diffusers_version":"0.32.0.dev0","activation_fn":"swiglu","attention_head_dim":128,
  "in_channels":12,"max_sequence_length":256,"num_attention_heads":24,"num_layers":48,
  "out_channels":null,"patch_size":2,"pooled_projection_dim":1536,"qk_norm":"rms_norm",
  "text_embed_dim":4096,"time_embed_dim":256})";

TEST(MochiConfig, ReadsTheReleasedConfig) {
  EXPECT_EQ(mochi_config_from_json(kReleased, "config.json"), mochi_preset("mochi-1"));
}

// kReleased with the value of one key replaced, or the key added.
std::string with(const std::string& key, const std::string& value) {
  std::string text = kReleased;
  const std::string quoted = "\"" + key + "\":";
  const size_t at = text.find(quoted);
  if (at == std::string::npos) return "{" + quoted + value + "," + text.substr(1);
  const size_t begin = at + quoted.size();
  return text.replace(begin, text.find_first_of(",}", begin) - begin, value);
}

TEST(MochiConfig, HostileConfigsAreRefusedByFieldName) {
  struct Case {
    const char *key, *value;
  };
  for (const Case& bad : {Case{"num_layers", "0"},
                          Case{"num_layers", "1000000000000"},
                          Case{"num_layers", "null"},
                          Case{"num_layers", "\"48\""},
                          Case{"num_attention_heads", "18446744073709551615"},
                          Case{"num_attention_heads", "null"},
                          Case{"attention_head_dim", "7"},
                          Case{"attention_head_dim", "4294967297"},
                          Case{"pooled_projection_dim", "0"},
                          Case{"pooled_projection_dim", "3073"},
                          Case{"pooled_projection_dim", "null"},
                          Case{"in_channels", "-12"},
                          Case{"text_embed_dim", "4097"},
                          Case{"text_embed_dim", "1e3"},
                          Case{"time_embed_dim", "255"},
                          Case{"max_sequence_length", "9223372036854775807"},
                          Case{"patch_size", "0"},
                          Case{"patch_size", "[1,2,2]"},
                          Case{"qk_norm", "\"layer_norm\""},
                          Case{"activation_fn", "\"gelu\""},
                          Case{"quantization_config", "{}"},
                          Case{"_class_name", "\"WanTransformer3DModel\""}}) {
    const std::string json = with(bad.key, bad.value);
    EXPECT_THAT(error_of([&] { mochi_config_from_json(json, "dir/config.json"); }),
                AllOf(HasSubstr("dir/config.json"), HasSubstr(bad.key)))
        << json;
  }
  EXPECT_THAT(error_of([] { mochi_config_from_json(with("out_channels", "24"), "c"); }),
              HasSubstr("12 channels in and 24 out"));
  for (const char* text : {"", "[]", "null", "{", "\xff\xfe", "{}"}) {
    EXPECT_THAT(error_of([&] { mochi_config_from_json(text, "config.json"); }),
                HasSubstr("config.json"));
  }
}

TEST(MochiConfig, GridNamesTheAxisThatDoesNotFit) {
  const MochiConfig config = mochi_preset("mochi-tiny");
  EXPECT_EQ(config.grid(5, 8, 12).tokens(), 5 * 4 * 6);
  EXPECT_THAT(error_of([&] { config.grid(1, 7, 8); }), HasSubstr("height 7"));
  EXPECT_THAT(error_of([&] { config.grid(0, 8, 8); }), HasSubstr("frames 0"));
  EXPECT_THAT(error_of([&] { config.grid(1, 8, 2050); }), HasSubstr("1025 positions"));
}

}  // namespace
}  // namespace lacuna
