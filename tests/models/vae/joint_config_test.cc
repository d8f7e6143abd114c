// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "lacuna/models/vae/hunyuan_config.h"
#include "lacuna/models/vae/mochi_config.h"
#include "tests/support/error_of.h"

namespace lacuna {
namespace {

using test::error_of;

TEST(MochiVaeConfig, DefaultsAreMochi1) {
  const MochiVaeConfig c = parse_mochi_vae_config("{\"act_fn\": \"silu\"}", "config.json");
  EXPECT_EQ(c.block_out_channels, (std::vector<int64_t>{128, 256, 512, 768}));
  EXPECT_EQ(c.layers_per_block, (std::vector<int64_t>{3, 3, 4, 6, 3}));
  EXPECT_EQ(c.spatial_factor(), 8);
  EXPECT_EQ(c.temporal_factor(), 6);
  ASSERT_EQ(c.latents_mean.size(), 12u);
  EXPECT_FLOAT_EQ(c.latents_mean[4], 0.012767231f);
  EXPECT_FLOAT_EQ(c.latents_std[7], 1.3720942f);
}

TEST(MochiVaeConfig, ScalingFactorDividesTheDeviation) {
  const MochiVaeConfig c = parse_mochi_vae_config(
      R"({"latent_channels": 1, "latents_mean": [0.5], "latents_std": [3.0],
          "scaling_factor": 2.0})",
      "config.json");
  EXPECT_FLOAT_EQ(c.latents_std[0], 1.5f);
  EXPECT_FLOAT_EQ(c.latents_mean[0], 0.5f);
}

TEST(HunyuanVaeConfig, DefaultsAreHunyuanVideo) {
  const HunyuanVaeConfig c = parse_hunyuan_vae_config("{}", "config.json");
  EXPECT_EQ(c.block_out_channels, (std::vector<int64_t>{128, 256, 512, 512}));
  EXPECT_EQ(c.latent_channels, 16);
  EXPECT_EQ(c.norm_num_groups, 32);
  EXPECT_FLOAT_EQ(c.scaling_factor, 0.476986f);
  EXPECT_TRUE(c.mid_block_add_attention);
}

using Cases = std::initializer_list<std::pair<const char*, const char*>>;

TEST(MochiVaeConfig, HostileValuesAreNamed) {
  for (const auto& [json, part] : Cases{
           {"[]", "JSON object"},
           {"{", "JSON object"},
           {R"({"latent_channels": 0})", "latent_channels"},
           {R"({"latent_channels": 18446744073709551615})", "latent_channels"},
           {R"({"out_channels": 4})", "out_channels"},
           {R"({"act_fn": "relu"})", "act_fn is relu"},
           {R"({"act_fn": 3})", "act_fn"},
           {R"({"decoder_block_out_channels": [128]})", "length of decoder_block_out_channels"},
           {R"({"decoder_block_out_channels": [128, 256, 512, 8192]})", "8192"},
           {R"({"decoder_block_out_channels": [128, 256, 512, 700]})", "multiples of 32"},
           {R"({"decoder_block_out_channels": {"a": 1}})", "decoder_block_out_channels"},
           {R"({"layers_per_block": [3, 3, 4, 6]})", "layers_per_block has 4 entries"},
           {R"({"layers_per_block": [3, 3, 4, 6, 1000000]})", "layers_per_block"},
           {R"({"layers_per_block": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]})", "at most 16"},
           {R"({"temporal_expansions": [1, 2]})", "temporal_expansions has 2"},
           {R"({"temporal_expansions": [1, 2, 0]})", "temporal_expansions"},
           {R"({"spatial_expansions": [2, 2, 5]})", "spatial_expansions"},
           {R"({"spatial_expansions": [2, 2, 2.5]})", "spatial_expansions"},
           {R"({"latents_mean": [0.0]})", "latents_"},
           {R"({"latents_mean": null, "latents_std": null})", "latents_mean is null"},
           {R"({"latents_mean": [0.0], "latents_std": [1.0]})", "latent_channels = 12"},
           {R"({"latent_channels": 1, "latents_mean": [0], "latents_std": [-1]})", "statistics"},
           {R"({"scaling_factor": 0})", "scaling_factor"},
           {R"({"scaling_factor": 1e300})", "scaling_factor"},
           {R"({"scaling_factor": "1"})", "scaling_factor"},
       }) {
    const std::string said = error_of([&] { parse_mochi_vae_config(json, "config.json"); });
    EXPECT_NE(said.find(part), std::string::npos) << json << " -> " << said;
  }
}

TEST(HunyuanVaeConfig, HostileValuesAreNamed) {
  for (const auto& [json, part] : Cases{
           {"3", "JSON object"},
           {R"({"latent_channels": -1})", "latent_channels"},
           {R"({"block_out_channels": [128, 256, 512]})", "length of block_out_channels"},
           {R"({"block_out_channels": [128, 256, 512, 520]})", "norm_num_groups"},
           {R"({"block_out_channels": [128, 256, 512, 1e9]})", "block_out_channels"},
           {R"({"norm_num_groups": 0})", "norm_num_groups"},
           {R"({"layers_per_block": [2, 2]})", "layers_per_block"},
           {R"({"layers_per_block": 100})", "layers_per_block"},
           {R"({"spatial_compression_ratio": 16})", "spatial_compression_ratio"},
           {R"({"temporal_compression_ratio": 8})", "temporal_compression_ratio"},
           {R"({"up_block_types": ["A", "B", "C", "D"]})", "up_block_types is A"},
           {R"({"up_block_types": ["HunyuanVideoUpBlock3D"]})", "length of up_block_types"},
           {R"({"up_block_types": [1, 2, 3, 4]})", "up_block_types"},
           {R"({"mid_block_add_attention": 1})", "mid_block_add_attention"},
           {R"({"scaling_factor": 1e-300})", "scaling_factor"},
           {R"({"scaling_factor": -1})", "scaling_factor"},
           {R"({"act_fn": "gelu"})", "act_fn is gelu"},
       }) {
    const std::string said = error_of([&] { parse_hunyuan_vae_config(json, "config.json"); });
    EXPECT_NE(said.find(part), std::string::npos) << json << " -> " << said;
  }
}

}  // namespace
}  // namespace lacuna
