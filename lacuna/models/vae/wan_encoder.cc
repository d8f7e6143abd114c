// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/wan_encoder.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/memory_tally.h"
#include "lacuna/models/vae/names.h"

namespace lacuna {

WanEncoder::WanEncoder(VaeConfig config, WeightSource& source) : config_(std::move(config)) {
  check_vae_config(config_, "vae encoder");
  const std::vector<int64_t> dims = config_.encoder_dims();
  const int64_t z2 = 2 * config_.z_dim, levels = config_.num_levels();
  WeightReader reader(source, vae_name_map(source, config_));
  conv_in_ = load_causal_conv(reader, "encoder.conv_in", dims[0], config_.pixel_channels(), 3, 3);
  blocks_.resize(static_cast<size_t>(levels));
  // 2.1 numbers residual blocks and downsamplers in one list; 2.2 nests them per block.
  int64_t flat = 0;
  const auto next_flat = [&] { return "encoder.down_blocks." + std::to_string(flat++); };
  int64_t c = dims[0];
  for (int64_t b = 0; b < levels; ++b) {
    DownBlock& block = blocks_[static_cast<size_t>(b)];
    const std::string nested = "encoder.down_blocks." + std::to_string(b);
    for (int64_t r = 0; r < config_.num_res_blocks; ++r) {
      const std::string name =
          config_.is_residual ? nested + ".resnets." + std::to_string(r) : next_flat();
      block.resnets.push_back(load_res_block(reader, name, c, dims[b + 1]));
      c = dims[b + 1];
    }
    if (b + 1 == levels) break;
    const bool temporal = config_.temporal_downsample[static_cast<size_t>(b)] != 0;
    block.down = load_downsample(
        reader, config_.is_residual ? nested + ".downsampler" : next_flat(), c, temporal);
    block.factor_t = temporal ? 2 : 1;
    block.factor_s = 2;
  }
  mid_ = load_mid_block(reader, "encoder.mid_block", c);
  norm_out_ = load_gamma(reader, "encoder.norm_out", c);
  conv_out_ = load_causal_conv(reader, "encoder.conv_out", z2, c, 3, 3);
  quant_ = load_conv(reader, "quant_conv", z2, z2, 1, 1);
  reader.finish("vae encoder");
}

// Averages have no op: a video is encoded once, so its maps may take a way over the host.
void WanEncoder::add_on_host(Stream& stream, const TensorView& input, const DownBlock& block,
                             const TensorView& x) {
  const TensorView from = stream.mirror("shortcut on the host", input);
  const TensorView to = stream.mirror("map on the host", x);
  stream.copy(input, from);
  stream.copy(x, to);
  add_average_shortcut(from, block.factor_t, block.factor_s, to);
  stream.copy(to, x);
}

TensorView WanEncoder::pass(Context& ctx, Stream& stream, const TensorView& frames) const {
  const int64_t p = config_.patch_size, t = frames.shape[1];
  const int64_t h = frames.shape[2] / p, w = frames.shape[3] / p;
  TensorView window = conv_in_.window(stream, t, h, w);
  const TensorView pixels = stream.mirror("pixels on the host", conv_in_.fresh(window));
  patchify(frames, 0, p, pixels);
  stream.copy(pixels, conv_in_.fresh(window));
  Feature x = stream.feature({}, t, h, w, conv_in_.conv.out_channels());
  conv_in_.forward(ctx, stream, window, nullptr, x.view);
  for (const DownBlock& block : blocks_) {
    const Feature input = config_.is_residual ? x : Feature{};
    for (const ResBlock& res : block.resnets) x = res.forward(ctx, stream, x, input.buffer);
    if (block.down) x = block.down->forward(ctx, stream, x, input.buffer);
    if (config_.is_residual) {
      add_on_host(stream, input.view, block, x.view);
    }
  }
  x = mid_.forward(ctx, stream, x);
  window = conv_out_.window(stream, x.frames(), x.height(), x.width());
  norm_silu(ctx, x.view, norm_out_, conv_out_.fresh(window));
  const int64_t z2 = 2 * config_.z_dim;
  const TensorView moments = stream.scratch("moments", {x.frames(), x.height(), x.width(), z2});
  conv_out_.forward(ctx, stream, window, nullptr, moments);
  const TensorView out = stream.scratch("quant", {x.frames(), x.height(), x.width(), z2});
  quant_.forward(ctx, moments, nullptr, out);
  return out;
}

Tensor WanEncoder::encode_frames(Context& ctx, const VideoSize& size, const FrameSource& source,
                                 const EncodeOptions& options) const {
  const int64_t factor = config_.spatial_factor(), h = size.height, w = size.width;
  LACUNA_CHECK(h > 0 && w > 0 && h % factor == 0 && w % factor == 0,
               "vae encode: video of {} x {}, expected height and width multiples of {}", h, w,
               factor);
  const int64_t passes = config_.latent_frames(size.frames);
  Tensor latents(DType::f32, {config_.z_dim, passes, h / factor, w / factor});
  std::span<const float> mean, std_dev;
  if (options.normalize) {
    LACUNA_CHECK(!config_.latents_mean.empty(), "vae encode: model without latent statistics, {}",
                 "expected latents_mean and latents_std in its config");
    mean = config_.latents_mean;
    std_dev = config_.latents_std;
  }
  Stream stream(ctx.backend, ctx.compute);
  const Tensor pixels(DType::f32, {3 * most_frames(size) * h * w});
  for (int64_t i = 0, begin = 0; i < passes; ++i) {
    ctx.check_cancel();
    const int64_t t = i == 0 ? 1 : config_.temporal_factor();
    const TensorView frames = pixels.view().reuse(DType::f32, {3, t, h, w});
    source(begin, frames);
    stream.begin_pass(/*last=*/i + 1 == passes);
    const TensorView moments = pass(ctx, stream, frames);
    const TensorView read = stream.mirror("moments on the host", moments);
    stream.copy(moments, read);
    pack_latents(read, mean, std_dev, i, latents);
    stream.finish_pass();
    begin += t;
    if (options.progress) options.progress(begin, size.frames);
  }
  return latents;
}

int64_t WanEncoder::memory_bytes(const VideoSize& size, DType compute) const {
  const int64_t frames = most_frames(size);
  MemoryTally tally(/*one_pass=*/size.frames == 1);
  TallyMap map{frames, size.height / config_.patch_size * (size.width / config_.patch_size)};
  count_conv(tally, map, config_.pixel_channels());
  int64_t c = conv_in_.conv.out_channels();
  int x = tally.feature({}, map.size(c));
  for (const DownBlock& block : blocks_) {
    const int pinned = config_.is_residual ? x : -1;
    for (const ResBlock& res : block.resnets) {
      x = count_res(tally, map, res, x, pinned);
      c = res.conv1.conv.out_channels();
    }
    if (!block.down) continue;
    map.cells /= 4;
    if (block.down->time) {
      const int64_t history = block.down->time->history;
      tally.scratch("window", (history + map.frames) * map.cells * c);
      tally.history(history * map.cells * c);
      map.frames = std::max(map.frames / 2, int64_t{1});
    }
    x = tally.feature({x, pinned}, map.size(c));
  }
  count_mid(tally, map, mid_, x);
  count_conv(tally, map, c);
  tally.scratch("moments", map.size(2 * config_.z_dim));
  tally.scratch("quant", map.size(2 * config_.z_dim));
  return tally.elements() * storage_bytes(compute, 1) +
         storage_bytes(DType::f32, 3 * frames * size.height * size.width);
}

}  // namespace lacuna
