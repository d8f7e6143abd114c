// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "lacuna/models/vae/names.h"
#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"
#include "tests/models/vae/support.h"

namespace lacuna {
namespace {

using testing::error_of;

int64_t parameters(const std::map<std::string, std::vector<int64_t>>& tensors) {
  int64_t total = 0;
  for (const auto& [name, shape] : tensors) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    total += n;
  }
  return total;
}

// 126.9 M in all, 73.3 M of them the decoder's.
TEST(VaeConfig, Wan21HasThePublishedSize) {
  testing::Recorder recorder;
  const WanDecoder decoder(vae_preset("wan2.1"), recorder);
  EXPECT_NEAR(static_cast<double>(parameters(recorder.asked)), 73.3e6, 0.05e6);
  const WanEncoder encoder(vae_preset("wan2.1"), recorder);
  EXPECT_NEAR(static_cast<double>(parameters(recorder.asked)), 126.9e6, 0.05e6);
  EXPECT_EQ(recorder.asked.at("decoder.up_blocks.1.resnets.0.conv_shortcut.weight"),
            (std::vector<int64_t>{384, 192, 1, 1, 1}));
  EXPECT_EQ(recorder.asked.at("encoder.down_blocks.8.time_conv.weight"),
            (std::vector<int64_t>{384, 384, 3, 1, 1}));
  EXPECT_EQ(recorder.asked.at("decoder.mid_block.attentions.0.norm.gamma"),
            (std::vector<int64_t>{384, 1, 1}));
}

TEST(VaeConfig, ReadsDiffusersJson) {
  const VaeConfig c = parse_vae_config(
      R"({"_class_name": "AutoencoderKLWan", "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48,
          "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [false, true, true],
          "is_residual": true, "in_channels": 12, "out_channels": 12, "patch_size": 2,
          "scale_factor_spatial": 16, "scale_factor_temporal": 4, "attn_scales": []})",
      "config.json");
  const VaeConfig preset = vae_preset("wan2.2");
  EXPECT_EQ(c.decoder_dims(), preset.decoder_dims());
  EXPECT_EQ(c.latents_mean, preset.latents_mean);
  EXPECT_EQ(c.latents_mean.size(), 48u);
  EXPECT_EQ(c.spatial_factor(), 16);
  EXPECT_FLOAT_EQ(c.latents_std.back(), 0.7744f);
}

TEST(VaeConfig, DefaultsAreWan21) {
  const VaeConfig c = parse_vae_config("{\"patch_size\": null}", "config.json");
  EXPECT_EQ(c.decoder_dims(), (std::vector<int64_t>{384, 384, 384, 192, 96}));
  EXPECT_EQ(c.spatial_factor(), 8);
  EXPECT_FLOAT_EQ(c.latents_mean[0], -0.7571f);
  EXPECT_TRUE(c.temporal_upsample(0));
  EXPECT_FALSE(c.temporal_upsample(2));
}

TEST(VaeConfig, HostileValuesAreNamed) {
  const auto message = [](const std::string& json) {
    return error_of([&] { parse_vae_config(json, "config.json"); });
  };
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "JSON object"},
      {"{", "JSON object"},
      {R"({"base_dim": -1})", "base_dim"},
      {R"({"base_dim": 1e30})", "base_dim"},
      {R"({"base_dim": "96"})", "base_dim"},
      {R"({"z_dim": 9223372036854775807})", "z_dim"},
      {R"({"num_res_blocks": 1000000})", "num_res_blocks"},
      {R"({"patch_size": 0})", "patch_size"},
      {R"({"dim_mult": []})", "dim_mult"},
      {R"({"dim_mult": [1, 2, 4, 4, 4, 4, 4, 4]})", "dim_mult"},
      {R"({"dim_mult": [1, 0, 4, 4]})", "dim_mult"},
      {R"({"dim_mult": {"a": 1}})", "dim_mult"},
      {R"({"temperal_downsample": [true]})", "temperal_downsample"},
      {R"({"temperal_downsample": [0, 1, 1]})", "temperal_downsample"},
      {R"({"attn_scales": [0.5]})", "attn_scales"},
      {R"({"latents_mean": [0.0]})", "latents_"},
      {R"({"latents_mean": [0.0], "latents_std": [1.0]})", "latents_mean"},
      {R"({"z_dim": 1, "latents_mean": [0.0], "latents_std": [0.0]})", "statistics"},
      {R"({"z_dim": 1, "latents_mean": [1e300], "latents_std": [1.0]})", "statistics"},
      {R"({"in_channels": 4})", "in_channels"},
      {R"({"scale_factor_spatial": 16})", "scale_factor_spatial"},
      {R"({"is_residual": 1})", "is_residual"},
      {R"({"base_dim": 3, "dim_mult": [1, 2, 4, 4]})", "even"},
      {R"({"is_residual": true, "dim_mult": [1, 2, 4, 63]})", "block"},
  };
  for (const auto& [json, part] : cases) {
    EXPECT_NE(message(json).find(part), std::string::npos) << json << " -> " << message(json);
  }
  EXPECT_NE(error_of([] { vae_preset("wan3"); }).find("wan2.1"), std::string::npos);
}

TEST(VaeConfig, UnknownStatisticsStopNormalisedLatentsOnly) {
  const VaeConfig c =
      parse_vae_config(R"({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1})", "config.json");
  EXPECT_TRUE(c.latents_mean.empty());
  const auto source = hash_weights("w:", DType::f32);
  const WanDecoder decoder(c, *source);
  const auto backend = testing::quick_backend();
  Context ctx{*backend, DType::f32};
  const Tensor z = testing::hash_tensor("z", {4, 1, 2, 2});
  EXPECT_NE(error_of([&] { decode_video(decoder, ctx, z); }).find("latents_mean"),
            std::string::npos);
  DecodeOptions raw;
  raw.denormalize = false;
  EXPECT_EQ(decode_video(decoder, ctx, z, raw).view().shape[3], 16);
}

TEST(VaeNames, Wan21MatchesTheOriginalRelease) {
  const VaeConfig c = vae_preset("wan2.1");
  const std::pair<const char*, const char*> pairs[] = {
      {"post_quant_conv.weight", "conv2.weight"},
      {"quant_conv.bias", "conv1.bias"},
      {"decoder.conv_in.weight", "decoder.conv1.weight"},
      {"decoder.mid_block.resnets.1.conv2.weight", "decoder.middle.2.residual.6.weight"},
      {"decoder.mid_block.attentions.0.to_qkv.bias", "decoder.middle.1.to_qkv.bias"},
      {"decoder.up_blocks.1.resnets.0.conv_shortcut.weight", "decoder.upsamples.4.shortcut.weight"},
      {"decoder.up_blocks.2.upsamplers.0.resample.1.weight",
       "decoder.upsamples.11.resample.1.weight"},
      {"decoder.up_blocks.3.resnets.2.norm2.gamma", "decoder.upsamples.14.residual.3.gamma"},
      {"decoder.norm_out.gamma", "decoder.head.0.gamma"},
      {"encoder.conv_out.bias", "encoder.head.2.bias"},
      {"encoder.down_blocks.5.time_conv.weight", "encoder.downsamples.5.time_conv.weight"},
      {"encoder.down_blocks.6.norm1.gamma", "encoder.downsamples.6.residual.0.gamma"},
  };
  for (const auto& [ours, original] : pairs) EXPECT_EQ(original_vae_name(c, ours), original);
  EXPECT_EQ(original_vae_name(c, "something.else"), "something.else");
  EXPECT_EQ(original_vae_name(c, "decoder.up_blocks.x.resnets.0.y"),
            "decoder.up_blocks.x.resnets.0.y");
}

TEST(VaeNames, Wan22NestsBlocks) {
  const VaeConfig c = vae_preset("wan2.2");
  const std::pair<const char*, const char*> pairs[] = {
      {"decoder.up_blocks.2.resnets.0.conv1.weight",
       "decoder.upsamples.2.upsamples.0.residual.2.weight"},
      {"decoder.up_blocks.0.upsampler.time_conv.bias",
       "decoder.upsamples.0.upsamples.3.time_conv.bias"},
      {"encoder.down_blocks.1.downsampler.resample.1.weight",
       "encoder.downsamples.1.downsamples.2.resample.1.weight"},
      {"encoder.down_blocks.3.resnets.1.norm1.gamma",
       "encoder.downsamples.3.downsamples.1.residual.0.gamma"},
  };
  for (const auto& [ours, original] : pairs) EXPECT_EQ(original_vae_name(c, ours), original);
}

// The same network read from files in both namings gives the same bits.
TEST(VaeNames, BothSchemesLoad) {
  for (const char* preset : {"tiny", "tiny-2.2"}) {
    const VaeConfig config = vae_preset(preset);
    testing::Recorder recorder;
    WanDecoder(config, recorder);
    WanEncoder(config, recorder);
    testing::MemorySource diffusers, original;
    for (const auto& [name, shape] : recorder.asked) {
      const TensorView view = recorder.load(name, shape);
      for (testing::MemorySource* file : {&diffusers, &original}) {
        Tensor copy(DType::f32, shape);
        std::copy_n(view.as<float>(), view.numel(), copy.as<float>());
        const std::string stored = file == &diffusers ? name : original_vae_name(config, name);
        ASSERT_TRUE(file->tensors.emplace(stored, std::move(copy)).second) << stored;
      }
    }
    const auto backend = testing::quick_backend();
    Context ctx{*backend, DType::f32};
    const Tensor z = testing::hash_tensor("z", {config.z_dim, 2, 2, 2});
    const Tensor a = decode_video(WanDecoder(config, diffusers), ctx, z);
    const Tensor b = decode_video(WanDecoder(config, original), ctx, z);
    EXPECT_EQ(testing::worst_error(a, b), 0.0);

    original.tensors.erase("decoder.head.2.bias");
    EXPECT_NE(error_of([&] { WanDecoder(config, original); }).find("decoder.head.2.bias"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace lacuna
