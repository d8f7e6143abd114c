// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/family.h"

namespace lacuna {
namespace {

constexpr const char* kApache = "Apache-2.0 (weights by Wan-AI; check the card of fine-tunes)";
constexpr const char* kMochiLicense = "Apache-2.0 (weights by Genmo; check the card of fine-tunes)";
constexpr const char* kHunyuanLicense =
    "Tencent Hunyuan Community License: no rights in the EU, the UK and South Korea, terms above "
    "100 "
    "million monthly users";
constexpr const char* kUnknownLicense = "unknown: see the checkpoint's card";

// Columns: width, height, frames, fps, steps, shift, guidance, low-noise guidance, boundary.
// Source: the authors' model cards and configs; the 1.3B shift is the middle
// of 8..12.
const Family kWan21Small{
    "Wan2.1 T2V 1.3B", "wan2.1", {832, 480, 81, 16, 50, 8.0, 6.0, 6.0, 0.0, kApache}};
const Family kWan21Large{
    "Wan2.1 T2V 14B", "wan2.1", {1280, 720, 81, 16, 50, 5.0, 5.0, 5.0, 0.0, kApache}};
const Family kWan22Experts{
    "Wan2.2 T2V A14B", "wan2.1", {1280, 720, 81, 16, 40, 12.0, 4.0, 3.0, 0.875, kApache}};
const Family kWan22Small{"Wan2.2 TI2V 5B",
                         "wan2.2",
                         {1280, 704, 121, 24, 50, 5.0, 5.0, 5.0, 0.0, kApache},
                         /*released=*/true,
                         /*takes_image=*/true};
// The checkpoints of 480p and 720p are of one size; the authors' shift depends on the video's.
const Family kWan21Image{"Wan2.1 I2V 14B",
                         "wan2.1",
                         {1280, 720, 81, 16, 40, 5.0, 5.0, 5.0, 0.0, kApache, "",
                          /*embedded_guidance=*/{}, /*small_shift=*/3.0}};
const Family kWan21TwoImages{
    "Wan2.1 FLF2V 14B", "wan2.1", {1280, 720, 81, 16, 50, 16.0, 5.5, 5.5, 0.0, kApache}};
const Family kWan22ImageExperts{
    "Wan2.2 I2V A14B", "wan2.1", {1280, 720, 81, 16, 40, 5.0, 3.5, 3.5, 0.9, kApache}};
const Family kWanCustom{
    "Wan (custom)", "tiny", {832, 480, 21, 16, 20, 5.0, 5.0, 5.0, 0.875, kUnknownLicense}, false};

constexpr const char* kMochiVae = R"({"_class_name": "AutoencoderKLMochi"})";
const Family kMochi{
    "Mochi 1", kMochiVae, {848, 480, 163, 30, 64, 1.0, 4.5, 4.5, 0.0, kMochiLicense}};
const Family kMochiCustom{"Mochi (custom)",
                          R"({"_class_name": "AutoencoderKLMochi", "decoder_block_out_channels":
                              [32, 32, 64, 64], "layers_per_block": [1, 1, 1, 1, 1]})",
                          {256, 256, 19, 30, 20, 1.0, 4.5, 4.5, 0.0, kUnknownLicense},
                          false};

const Family kHunyuan{
    "HunyuanVideo",
    R"({"_class_name": "AutoencoderKLHunyuanVideo"})",
    {1280, 720, 129, 24, 50, 7.0, 1.0, 1.0, 0.0, kHunyuanLicense, "", /*embedded_guidance=*/6.0}};
const Family kHunyuanCustom{
    "HunyuanVideo (custom)",
    R"({"_class_name": "AutoencoderKLHunyuanVideo", "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1})",
    {256, 256, 21, 24, 20, 7.0, 1.0, 1.0, 0.0, kUnknownLicense, "", /*embedded_guidance=*/6.0},
    false};

}  // namespace

const Family& identify_family(const Architecture& architecture, int num_experts) {
  const TransformerSizes sizes = architecture.sizes();
  const auto is = [&](int64_t layers, int64_t width, int64_t channels) {
    return sizes.num_layers == layers && sizes.dim() == width && sizes.latent_channels == channels;
  };
  if (architecture.family() == "mochi") return is(48, 3072, 12) ? kMochi : kMochiCustom;
  if (architecture.family() == "hunyuan") return is(60, 3072, 16) ? kHunyuan : kHunyuanCustom;
  if (is(30, 1536, 16)) return kWan21Small;
  if (is(40, 5120, 16) && sizes.condition_channels > 0) {
    if (sizes.image_dim == 0) return kWan22ImageExperts;
    return sizes.image_rows > 0 ? kWan21TwoImages : kWan21Image;
  }
  if (sizes.condition_channels > 0) return kWanCustom;
  if (is(40, 5120, 16)) return num_experts == 2 ? kWan22Experts : kWan21Large;
  if (is(30, 3072, 48)) return kWan22Small;
  return kWanCustom;
}

}  // namespace lacuna
