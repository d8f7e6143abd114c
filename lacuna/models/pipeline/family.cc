// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/family.h"

namespace lacuna {
namespace {

constexpr const char* kApache = "Apache-2.0 (weights by Wan-AI; check the card of fine-tunes)";

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
const Family kCustom{
    "Wan (custom)",
    "tiny",
    {832, 480, 21, 16, 20, 5.0, 5.0, 5.0, 0.875, "unknown: see the checkpoint's card"},
    false};

}  // namespace

const Family& identify_family(const Architecture& architecture, int num_experts) {
  const TransformerSizes sizes = architecture.sizes();
  const auto is = [&](int64_t layers, int64_t width, int64_t channels) {
    return sizes.num_layers == layers && sizes.dim() == width && sizes.latent_channels == channels;
  };
  if (is(30, 1536, 16)) return kWan21Small;
  if (is(40, 5120, 16)) return num_experts == 2 ? kWan22Experts : kWan21Large;
  if (is(30, 3072, 48)) return kWan22Small;
  return kCustom;
}

}  // namespace lacuna
