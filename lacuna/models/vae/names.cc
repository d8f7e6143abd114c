// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/names.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>

namespace lacuna {
namespace {

// Consumes a literal or a "<number>." from the front of a name.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : rest_(text) {}

  bool take(std::string_view literal) {
    if (!rest_.starts_with(literal)) return false;
    rest_.remove_prefix(literal.size());
    return true;
  }

  std::optional<int64_t> index() {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    const auto used = static_cast<size_t>(end - rest_.data());
    if (error != std::errc() || value < 0 || used >= rest_.size() || rest_[used] != '.') {
      return std::nullopt;
    }
    rest_.remove_prefix(used + 1);
    return value;
  }

  std::string rest() const { return std::string(rest_); }

 private:
  std::string_view rest_;
};

// Inside a residual block; names of resamplers pass unchanged.
std::string res_block_name(Cursor cursor) {
  if (cursor.take("norm1.")) return "residual.0." + cursor.rest();
  if (cursor.take("conv1.")) return "residual.2." + cursor.rest();
  if (cursor.take("norm2.")) return "residual.3." + cursor.rest();
  if (cursor.take("conv2.")) return "residual.6." + cursor.rest();
  if (cursor.take("conv_shortcut.")) return "shortcut." + cursor.rest();
  return cursor.rest();
}

std::optional<std::string> up_block_name(const VaeConfig& config, Cursor cursor) {
  const std::optional<int64_t> block = cursor.index();
  if (!block) return std::nullopt;
  const int64_t per_block = config.num_res_blocks + 2;
  const auto path = [&](int64_t inner) {
    return config.is_residual ? fmt::format("upsamples.{}.upsamples.{}.", *block, inner)
                              : fmt::format("upsamples.{}.", per_block * *block + inner);
  };
  if (cursor.take("resnets.")) {
    const std::optional<int64_t> r = cursor.index();
    if (!r) return std::nullopt;
    return path(*r) + res_block_name(cursor);
  }
  if (cursor.take("upsamplers.0.") || cursor.take("upsampler.")) {
    return path(config.num_res_blocks + 1) + cursor.rest();
  }
  return std::nullopt;
}

std::optional<std::string> down_block_name(const VaeConfig& config, Cursor cursor) {
  const std::optional<int64_t> block = cursor.index();
  if (!block) return std::nullopt;
  if (!config.is_residual) return fmt::format("downsamples.{}.", *block) + res_block_name(cursor);
  if (cursor.take("resnets.")) {
    const std::optional<int64_t> r = cursor.index();
    if (!r) return std::nullopt;
    return fmt::format("downsamples.{}.downsamples.{}.", *block, *r) + res_block_name(cursor);
  }
  if (cursor.take("downsampler.")) {
    return fmt::format("downsamples.{}.downsamples.{}.", *block, config.num_res_blocks) +
           cursor.rest();
  }
  return std::nullopt;
}

std::optional<std::string> half_name(const VaeConfig& config, Cursor cursor) {
  if (cursor.take("conv_in.")) return "conv1." + cursor.rest();
  if (cursor.take("norm_out.")) return "head.0." + cursor.rest();
  if (cursor.take("conv_out.")) return "head.2." + cursor.rest();
  if (cursor.take("mid_block.resnets.")) {
    const std::optional<int64_t> r = cursor.index();
    if (!r) return std::nullopt;
    return fmt::format("middle.{}.", 2 * *r) + res_block_name(cursor);
  }
  if (cursor.take("mid_block.attentions.0.")) return "middle.1." + cursor.rest();
  if (cursor.take("up_blocks.")) return up_block_name(config, cursor);
  if (cursor.take("down_blocks.")) return down_block_name(config, cursor);
  return std::nullopt;
}

}  // namespace

std::string original_vae_name(const VaeConfig& config, std::string_view diffusers_name) {
  Cursor cursor(diffusers_name);
  if (cursor.take("post_quant_conv.")) return "conv2." + cursor.rest();
  if (cursor.take("quant_conv.")) return "conv1." + cursor.rest();
  for (const std::string_view half : {"decoder.", "encoder."}) {
    if (!cursor.take(half)) continue;
    const std::optional<std::string> name = half_name(config, cursor);
    if (name) return std::string(half) + *name;
  }
  return std::string(diffusers_name);
}

std::function<std::string(std::string_view)> vae_name_map(const WeightSource& source,
                                                          const VaeConfig& config) {
  const bool diffusers =
      source.has("decoder.conv_in.weight") || source.has("encoder.conv_in.weight");
  const bool original = source.has("decoder.conv1.weight") || source.has("encoder.conv1.weight");
  if (diffusers || !original) return {};
  return [config](std::string_view name) { return original_vae_name(config, name); };
}

}  // namespace lacuna
