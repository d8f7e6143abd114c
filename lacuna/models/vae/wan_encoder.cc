// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/wan_encoder.h"

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

TensorView WanEncoder::pass(Context& ctx, Stream& stream, const TensorView& video, int64_t begin,
                            int64_t t) const {
  const int64_t p = config_.patch_size, h = video.shape[2] / p, w = video.shape[3] / p;
  TensorView window = conv_in_.window(stream, t, h, w);
  const TensorView pixels = stream.mirror("pixels on the host", conv_in_.fresh(window));
  patchify(video, begin, p, pixels);
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

Tensor WanEncoder::encode(Context& ctx, const TensorView& video, bool normalize) const {
  const int64_t factor = config_.spatial_factor();
  LACUNA_CHECK(
      video.rank == 4 && video.dtype == DType::f32 && video.contiguous() && video.shape[0] == 3 &&
          video.numel() > 0 && video.shape[2] % factor == 0 && video.shape[3] % factor == 0,
      "vae encode: video {}, expected contiguous [3, F, H, W] f32, H and W multiples of {}",
      video.describe(), factor);
  const int64_t frames = config_.latent_frames(video.shape[1]);
  Tensor latents(DType::f32,
                 {config_.z_dim, frames, video.shape[2] / factor, video.shape[3] / factor});
  std::span<const float> mean, std_dev;
  if (normalize) {
    LACUNA_CHECK(!config_.latents_mean.empty(), "vae encode: model without latent statistics, {}",
                 "expected latents_mean and latents_std in its config");
    mean = config_.latents_mean;
    std_dev = config_.latents_std;
  }
  Stream stream(ctx.backend, ctx.compute);
  int64_t begin = 0;
  for (int64_t i = 0; i < frames; ++i) {
    const int64_t t = i == 0 ? 1 : config_.temporal_factor();
    stream.begin_pass(/*last=*/i + 1 == frames);
    const TensorView moments = pass(ctx, stream, video, begin, t);
    const TensorView read = stream.mirror("moments on the host", moments);
    stream.copy(moments, read);
    pack_latents(read, mean, std_dev, i, latents);
    stream.finish_pass();
    begin += t;
  }
  return latents;
}

int64_t WanEncoder::frame_bytes(int64_t height, int64_t width, DType compute) const {
  MemoryTally tally(/*one_pass=*/true);
  TallyMap map{1, height / config_.patch_size * (width / config_.patch_size)};
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
    if (block.down->time) tally.scratch("window", (block.down->time->history + 1) * map.cells * c);
    x = tally.feature({x, pinned}, map.size(c));
  }
  count_mid(tally, map, mid_, x);
  count_conv(tally, map, c);
  tally.scratch("moments", map.size(2 * config_.z_dim));
  tally.scratch("quant", map.size(2 * config_.z_dim));
  return tally.elements() * storage_bytes(compute, 1);
}

}  // namespace lacuna
