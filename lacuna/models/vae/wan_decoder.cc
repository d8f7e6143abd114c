// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/wan_decoder.h"

#include <algorithm>
#include <span>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/names.h"
#include "lacuna/models/vae/tiling.h"

namespace lacuna {

struct WanDecoder::Run {
  const TensorView& latents;
  const DecodeOptions& options;
  const FrameSink& sink;
  std::span<const float> mean, std_dev;
  int64_t total = 0, done = 0;
  int64_t assembly_bytes = 0;  // held outside streams

  int64_t frames() const { return latents.shape[1]; }
  Region whole() const { return {0, 0, latents.shape[2], latents.shape[3]}; }

  // Calls body(begin, end) for each pass over time of one stream, and keeps the books.
  template <typename Body>
  void passes(Stream& stream, bool counted, const Body& body) {
    for (int64_t begin = 0; begin < frames(); begin += options.frames_per_pass) {
      const int64_t end = std::min(frames(), begin + options.frames_per_pass);
      stream.begin_pass(/*last=*/end == frames());
      body(begin, end);
      stream.finish_pass();
      if (options.stats != nullptr) {
        options.stats->buffer_bytes =
            std::max(options.stats->buffer_bytes, assembly_bytes + stream.bytes());
      }
      if (!counted) continue;
      done += end - begin;
      if (options.progress) options.progress(done, total);
    }
  }

  // Memory that lives beside the streams.
  Tensor assembly(DType dtype, std::initializer_list<int64_t> shape,
                  Memory& memory = host_memory()) {
    Tensor tensor(dtype, shape, memory);
    assembly_bytes += storage_bytes(dtype, tensor.numel());
    return tensor;
  }
};

WanDecoder::WanDecoder(VaeConfig config, WeightSource& source)
    : config_(std::move(config)), dims_() {
  check_vae_config(config_, "vae decoder");
  dims_ = config_.decoder_dims();
  WeightReader reader(source, vae_name_map(source, config_));
  const int64_t z = config_.z_dim, levels = config_.num_levels();
  post_quant_ = load_conv(reader, "post_quant_conv", z, z, 1, 1);
  conv_in_ = load_causal_conv(reader, "decoder.conv_in", dims_[0], z, 3, 3);
  mid_ = load_mid_block(reader, "decoder.mid_block", dims_[0]);
  blocks_.resize(static_cast<size_t>(levels));
  int64_t c = dims_[0];
  for (int64_t b = 0; b < levels; ++b) {
    const std::string name = "decoder.up_blocks." + std::to_string(b);
    UpBlock& block = blocks_[static_cast<size_t>(b)];
    const int64_t c_in = c, c_out = dims_[static_cast<size_t>(b) + 1];
    for (int64_t r = 0; r <= config_.num_res_blocks; ++r) {
      block.resnets.push_back(
          load_res_block(reader, name + ".resnets." + std::to_string(r), c, c_out));
      c = c_out;
    }
    if (b + 1 == levels) break;
    const int64_t up_out = config_.is_residual ? c_out : c_out / 2;
    block.up =
        load_upsample(reader, name + (config_.is_residual ? ".upsampler" : ".upsamplers.0"), c_out,
                      up_out, config_.temporal_upsample(b), config_.is_residual ? c_in : 0);
    c = up_out;
  }
  norm_out_ = load_gamma(reader, "decoder.norm_out", c);
  conv_out_ = load_causal_conv(reader, "decoder.conv_out", config_.pixel_channels(), c, 3, 3);
  reader.finish("vae decoder");
  weights_ = reader.kept();
  for (const UpBlock& block : blocks_)
    if (block.up) weights_.insert(weights_.end(), block.up->phases.begin(), block.up->phases.end());
}

WanDecoder::Trunk WanDecoder::trunk(Context& ctx, Stream& stream, const Run& run, int64_t begin,
                                    int64_t end, const Region& region) const {
  const int64_t t = end - begin, h = region.height, w = region.width;
  const TensorView z = stream.scratch("latents", {t, h, w, config_.z_dim});
  const TensorView made = stream.mirror("latents on the host", z);
  unpack_latents(run.latents, begin, region, run.mean, run.std_dev, made);
  stream.copy(made, z);
  const TensorView window = conv_in_.window(stream, t, h, w);
  post_quant_.forward(ctx, z, nullptr, conv_in_.fresh(window));
  Feature x = stream.feature({}, t, h, w, dims_[0]);
  conv_in_.forward(ctx, stream, window, nullptr, x.view);
  x = mid_.forward(ctx, stream, x);
  Trunk out;
  if (config_.is_residual) out.block_input = x;
  for (const ResBlock& block : blocks_[0].resnets) {
    x = block.forward(ctx, stream, x, out.block_input.buffer);
  }
  out.x = x;
  return out;
}

TensorView WanDecoder::head(Context& ctx, Stream& stream, const Trunk& trunk,
                            const std::vector<Region>& crops) const {
  Feature x = trunk.x, input = trunk.block_input;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    if (b > 0) {
      // The last block has no shortcut, so its input need not be kept.
      const bool keep = config_.is_residual && blocks_[b].up.has_value();
      input = keep ? x : Feature{};
      for (const ResBlock& block : blocks_[b].resnets) {
        x = block.forward(ctx, stream, x, input.buffer);
      }
    }
    if (blocks_[b].up) {
      x = blocks_[b].up->forward(ctx, stream, x, config_.is_residual ? &input : nullptr,
                                 crops.empty() ? nullptr : &crops[b]);
    }
  }
  const int64_t t = x.frames(), h = x.height(), w = x.width();
  const TensorView window = conv_out_.window(stream, t, h, w);
  norm_silu(ctx, x.view, norm_out_, conv_out_.fresh(window));
  const TensorView raw = stream.scratch("raw", {t, h, w, config_.pixel_channels()});
  conv_out_.forward(ctx, stream, window, nullptr, raw);
  return raw;
}

void WanDecoder::decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
                        const FrameSink& sink) const {
  LACUNA_CHECK(latents.rank == 4 && latents.dtype == DType::f32 && latents.contiguous() &&
                   latents.shape[0] == config_.z_dim && latents.numel() > 0,
               "vae decode: latents {}, expected contiguous [{}, T, h, w] f32", latents.describe(),
               config_.z_dim);
  LACUNA_CHECK(options.frames_per_pass >= 1, "vae decode: {} frames per pass, expected 1 or more",
               options.frames_per_pass);
  Run run{latents, options, sink, {}, {}};
  if (options.denormalize) {
    LACUNA_CHECK(!config_.latents_mean.empty(), "vae decode: model without latent statistics, {}",
                 "expected latents_mean and latents_std in its config");
    run.mean = config_.latents_mean;
    run.std_dev = config_.latents_std;
  }
  if (options.stats != nullptr) *options.stats = {};
  const int64_t factor = spatial_factor();
  const Tiling& tiling = options.tiling;
  // As upstream: a frame that fits one tile is not tiled.
  const bool fits = latents.shape[2] <= tiling.tile_height / factor &&
                    latents.shape[3] <= tiling.tile_width / factor;
  if (tiling.mode == TileMode::off || fits) return decode_whole(ctx, run);
  if (tiling.mode == TileMode::exact) return decode_exact(ctx, run);
  return decode_blend(ctx, run);
}

void WanDecoder::decode_whole(Context& ctx, Run& run) const {
  run.total = run.frames();
  Stream stream(ctx.backend, ctx.compute);
  Workspace frames;
  run.passes(stream, true, [&](int64_t begin, int64_t end) {
    const Trunk low = trunk(ctx, stream, run, begin, end, run.whole());
    const TensorView drawn = head(ctx, stream, low, {});
    const TensorView raw = stream.mirror("raw on the host", drawn);
    stream.copy(drawn, raw);
    const int64_t p = config_.patch_size;
    const TensorView out =
        frames.get("frames", DType::f32, {raw.shape[0], raw.shape[1] * p, raw.shape[2] * p, 3});
    run.assembly_bytes = frames.bytes();
    unpatchify(raw, p, out);
    run.sink(out);
  });
}

void WanDecoder::emit(const Run& run, const TensorView& raw) const {
  constexpr int64_t kFrames = 4;
  const int64_t p = config_.patch_size;
  Workspace buffer;
  for (int64_t begin = 0; begin < raw.shape[0]; begin += kFrames) {
    const TensorView part = raw.slice(begin, std::min(raw.shape[0], begin + kFrames));
    const TensorView out =
        buffer.get("frames", DType::f32, {part.shape[0], part.shape[1] * p, part.shape[2] * p, 3});
    unpatchify(part, p, out);
    run.sink(out);
  }
}

void WanDecoder::decode_exact(Context& ctx, Run& run) const {
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3], frames = run.frames();
  const std::vector<ExactTile> tiles = plan_exact_tiles(config_, h, w, run.options.tiling);
  run.total = frames * static_cast<int64_t>(tiles.size());
  const bool residual = config_.is_residual;
  const Tensor low = run.assembly(ctx.compute, {frames, h, w, dims_[1]}, ctx.backend);
  const Tensor low_input =
      residual ? run.assembly(ctx.compute, {frames, h, w, dims_[0]}, ctx.backend) : Tensor();
  {
    Stream stream(ctx.backend, ctx.compute);
    run.passes(stream, false, [&](int64_t begin, int64_t end) {
      const Trunk out = trunk(ctx, stream, run, begin, end, run.whole());
      stream.copy(out.x.view, low.view().slice(begin, end));
      if (residual) stream.copy(out.block_input.view, low_input.view().slice(begin, end));
    });
  }
  const int64_t scale = int64_t{1} << (config_.num_levels() - 1);
  const Tensor raw = run.assembly(
      DType::f32, {frames_out(frames), h * scale, w * scale, config_.pixel_channels()});
  for (const ExactTile& tile : tiles) {
    Stream stream(ctx.backend, ctx.compute);
    int64_t at = 0;
    run.passes(stream, true, [&](int64_t begin, int64_t end) {
      const int64_t t = end - begin, th = tile.trunk.height, tw = tile.trunk.width;
      Trunk part;
      part.x = stream.feature({}, t, th, tw, dims_[1]);
      stream.copy(region_of(low.view().slice(begin, end), tile.trunk), part.x.view);
      if (residual) {
        part.block_input = stream.feature({part.x.buffer}, t, th, tw, dims_[0]);
        stream.copy(region_of(low_input.view().slice(begin, end), tile.trunk),
                    part.block_input.view);
      }
      const TensorView out = head(ctx, stream, part, tile.crops);
      paste_region(ctx.backend, out, tile.inner, at, tile.top, tile.left, raw);
      at += out.shape[0];
    });
  }
  emit(run, raw);
}

void WanDecoder::decode_blend(Context& ctx, Run& run) const {
  const BlendPlan plan = plan_blend(config_, run.options.tiling);
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3], frames = run.frames();
  const int64_t scale = int64_t{1} << (config_.num_levels() - 1), c = config_.pixel_channels();
  const int64_t clip = frames_out(frames);
  const int64_t rows = (h + plan.stride_height - 1) / plan.stride_height;
  const int64_t columns = (w + plan.stride_width - 1) / plan.stride_width;
  run.total = frames * rows * columns;
  const Tensor raw = run.assembly(DType::f32, {clip, h * scale, w * scale, c});
  std::vector<Tensor> above(static_cast<size_t>(columns)), row(static_cast<size_t>(columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      Region part{i * plan.stride_height, j * plan.stride_width, 0, 0};
      part.height = std::min(plan.tile_height, h - part.top);
      part.width = std::min(plan.tile_width, w - part.left);
      const auto column = static_cast<size_t>(j);
      Tensor& tile = row[column];
      tile = run.assembly(DType::f32, {clip, part.height * scale, part.width * scale, c});
      const Region map{0, 0, part.height * scale, part.width * scale};
      Stream stream(ctx.backend, ctx.compute);
      int64_t at = 0;
      run.passes(stream, true, [&](int64_t begin, int64_t end) {
        const TensorView out = head(ctx, stream, trunk(ctx, stream, run, begin, end, part), {});
        paste_region(ctx.backend, out, map, at, 0, 0, tile);
        at += out.shape[0];
      });
      if (i > 0) blend_rows(above[column], tile, plan.blend_height);
      if (j > 0) blend_columns(row[column - 1], tile, plan.blend_width);
      const int64_t top = part.top * scale, left = part.left * scale;
      const Region kept{0, 0, std::min({plan.out_stride_height, map.height, h * scale - top}),
                        std::min({plan.out_stride_width, map.width, w * scale - left})};
      paste_region(ctx.backend, tile, kept, 0, top, left, raw);
    }
    for (Tensor& old : above) {
      if (!old.empty()) run.assembly_bytes -= storage_bytes(DType::f32, old.numel());
      old = Tensor();
    }
    std::swap(above, row);
  }
  emit(run, raw);
}

}  // namespace lacuna
