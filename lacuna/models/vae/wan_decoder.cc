// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/wan_decoder.h"

#include <algorithm>
#include <utility>

#include "lacuna/models/vae/decode_run.h"
#include "lacuna/models/vae/names.h"
#include "lacuna/models/vae/tiling.h"

namespace lacuna {

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

WanDecoder::Trunk WanDecoder::trunk(Context& ctx, Stream& stream, const DecodeRun& run,
                                    int64_t begin, int64_t end, const Region& region) const {
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
  DecodeRun run(latents, config_.z_dim, config_.latents_mean, config_.latents_std, options, sink);
  const Tiling& tiling = options.tiling;
  if (tiling.mode == TileMode::off ||
      fits_one_tile(spatial_factor(), tiling, latents.shape[2], latents.shape[3])) {
    return decode_whole(ctx, run);
  }
  if (tiling.mode == TileMode::exact) return decode_exact(ctx, run);
  return decode_blend(ctx, run);
}

void WanDecoder::decode_whole(Context& ctx, DecodeRun& run) const {
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

void WanDecoder::decode_exact(Context& ctx, DecodeRun& run) const {
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
  run.emit(raw, config_.patch_size);
}

void WanDecoder::decode_blend(Context& ctx, DecodeRun& run) const {
  const BlendPlan plan = plan_blend(spatial_factor(), config_.patch_size, run.options.tiling);
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3], frames = run.frames();
  const int64_t scale = int64_t{1} << (config_.num_levels() - 1);
  run.total = frames * plan.rows(h) * plan.columns(w);
  const Tensor raw = run.assembly(
      DType::f32, {frames_out(frames), h * scale, w * scale, config_.pixel_channels()});
  const auto decode_tile = [&](const Region& part, const TensorView& tile) {
    const Region map{0, 0, part.height * scale, part.width * scale};
    Stream stream(ctx.backend, ctx.compute);
    int64_t at = 0;
    run.passes(stream, true, [&](int64_t begin, int64_t end) {
      const TensorView out = head(ctx, stream, trunk(ctx, stream, run, begin, end, part), {});
      paste_region(ctx.backend, out, map, at, 0, 0, tile);
      at += out.shape[0];
    });
  };
  blend_tiles(ctx.backend, run, plan, scale, decode_tile, raw);
  run.emit(raw, config_.patch_size);
}

}  // namespace lacuna
