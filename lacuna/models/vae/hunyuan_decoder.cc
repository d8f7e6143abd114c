// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/hunyuan_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/decode_run.h"
#include "lacuna/models/vae/vae_config.h"

namespace lacuna {
namespace {

// diffusers' tile_sample_min_num_frames 16 and tile_sample_stride_num_frames 12, in latent frames.
constexpr int64_t kPieceLatents = 4, kPieceStride = 3;
constexpr int64_t kStrideFrames = kPieceStride * HunyuanVaeConfig::kTemporalFactor;
constexpr int64_t kBlendFrames = (kPieceLatents - kPieceStride) * HunyuanVaeConfig::kTemporalFactor;

int64_t hunyuan_frames(int64_t latent_frames) {
  return 1 + HunyuanVaeConfig::kTemporalFactor * (latent_frames - 1);
}

}  // namespace

std::vector<Span> hunyuan_pieces(int64_t latent_frames) {
  if (latent_frames <= kPieceLatents) return {{0, latent_frames}};
  std::vector<Span> pieces;
  for (int64_t begin = 0; begin < latent_frames; begin += kPieceStride) {
    const int64_t end = std::min(begin + kPieceLatents + 1, latent_frames);
    // The first frame of a piece but the first is dropped: upstream decodes one alone for nothing.
    if (begin > 0 && end - begin == 1) break;
    pieces.push_back({begin, end});
  }
  return pieces;
}

HunyuanDecoder::HunyuanDecoder(HunyuanVaeConfig config, WeightSource& source)
    : config_(std::move(config)),
      std_dev_(static_cast<size_t>(config_.latent_channels), 1.0f / config_.scaling_factor) {
  WeightReader reader(source);
  const GroupNormKind norm{config_.norm_num_groups, 1e-6f, /*per_frame=*/false};
  const int64_t z = config_.latent_channels, levels = HunyuanVaeConfig::kLevels;
  int64_t c = config_.block_out_channels.back();
  post_quant_ = load_conv(reader, "post_quant_conv", z, z, 1, 1);
  conv_in_ = load_replicate_conv(reader, "decoder.conv_in", c, z);
  const std::string mid = "decoder.mid_block";
  mid_before_ = load_group_res_block(reader, mid + ".resnets.0", c, c, norm, "");
  if (config_.mid_block_add_attention) {
    mid_attention_ = load_frame_causal_attention(reader, mid + ".attentions.0", c, norm);
  }
  mid_after_ = load_group_res_block(reader, mid + ".resnets.1", c, c, norm, "");
  for (int64_t b = 0; b < levels; ++b) {
    const std::string name = "decoder.up_blocks." + std::to_string(b);
    const int64_t c_out = config_.block_out_channels[static_cast<size_t>(levels - 1 - b)];
    UpBlock block;
    for (int64_t r = 0; r <= config_.layers_per_block; ++r) {
      block.resnets.push_back(
          load_group_res_block(reader, name + ".resnets." + std::to_string(r), c, c_out, norm, ""));
      c = c_out;
    }
    if (b + 1 < levels) {
      block.up = load_replicate_upsample(reader, name + ".upsamplers.0.conv", c,
                                         HunyuanVaeConfig::temporal_upsample(b));
    }
    up_blocks_.push_back(std::move(block));
  }
  norm_out_ = load_group_norm(reader, "decoder.conv_norm_out", c, norm);
  conv_out_ = load_replicate_conv(reader, "decoder.conv_out", 3, c);
  reader.finish("hunyuan vae decoder");
  weights_ = reader.kept();
  for (const UpBlock& block : up_blocks_)
    if (block.up) weights_.insert(weights_.end(), block.up->phases.begin(), block.up->phases.end());
}

int64_t HunyuanDecoder::frames_out(int64_t latent_frames) const {
  return latent_frames <= 0 ? 0 : hunyuan_frames(latent_frames);
}

int64_t HunyuanDecoder::latent_frames(int64_t frames) const {
  return latent_frames_of(frames, HunyuanVaeConfig::kTemporalFactor);
}

TensorView HunyuanDecoder::layers(Context& ctx, Stream& stream, const DecodeRun& run, Span piece,
                                  const Region& region) const {
  const int64_t t = piece.end - piece.begin, h = region.height, w = region.width;
  const TensorView z = stream.scratch("latents", {t, h, w, config_.latent_channels});
  const TensorView made = stream.mirror("latents on the host", z);
  unpack_latents(run.latents, piece.begin, region, run.mean, run.std_dev, made);
  stream.copy(made, z);
  const TensorView quantised = stream.scratch("quantised", {t, h, w, config_.latent_channels});
  post_quant_.forward(ctx, z, nullptr, quantised);
  Feature x = stream.feature({}, t, h, w, conv_in_.out_channels());
  conv_in_.forward(ctx, stream, quantised, {}, x.view);
  x = mid_before_.forward(ctx, stream, x);
  if (mid_attention_) x = mid_attention_->forward(ctx, stream, x);
  x = mid_after_.forward(ctx, stream, x);
  for (const UpBlock& block : up_blocks_) {
    for (const GroupResBlock& resnet : block.resnets) x = resnet.forward(ctx, stream, x);
    if (block.up) x = block.up->forward(ctx, stream, x);
  }
  norm_out_.forward(ctx, x.view, /*silu=*/true, x.view);
  const TensorView raw = stream.scratch("raw", {x.frames(), x.height(), x.width(), 3});
  conv_out_.forward(ctx, stream, x.view, {}, raw);
  return raw;
}

void HunyuanDecoder::decode_piece(Context& ctx, DecodeRun& run, Span piece, const Region& region,
                                  const TensorView& clip) const {
  Stream stream(ctx.backend, ctx.compute);
  stream.begin_pass(/*last=*/true);
  const TensorView raw = layers(ctx, stream, run, piece, region);
  paste_region(ctx.backend, raw, {0, 0, raw.shape[1], raw.shape[2]}, 0, 0, 0, clip);
  stream.finish_pass();
  run.finish_pass(stream, piece.end - piece.begin);
}

void HunyuanDecoder::decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
                            const FrameSink& sink) const {
  DecodeRun run(latents, config_.latent_channels, {}, std_dev_, options, sink);
  const int64_t factor = spatial_factor(), h = latents.shape[2], w = latents.shape[3];
  const bool whole = one_piece(options.tiling, factor, h, w, "AutoencoderKLHunyuanVideo");
  const BlendPlan plan = whole ? BlendPlan{} : plan_blend(factor, 1, options.tiling);
  const std::vector<Span> pieces = hunyuan_pieces(run.frames());
  for (const Span piece : pieces) run.total += piece.end - piece.begin;
  if (!whole) run.total *= plan.rows(h) * plan.columns(w);
  const Tensor all =
      run.assembly(DType::f32, {hunyuan_frames(pieces[0].end), h * factor, w * factor, 3});
  const Tensor tail = pieces.size() == 1
                          ? Tensor()
                          : run.assembly(DType::f32, {kBlendFrames, h * factor, w * factor, 3});
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Span piece = pieces[i];
    TensorView clip = all.view().slice(0, hunyuan_frames(piece.end - piece.begin));
    if (whole) {
      decode_piece(ctx, run, piece, run.whole(), clip);
    } else {
      blend_tiles(
          ctx.backend, run, plan, factor,
          [&](const Region& part, const TensorView& tile) {
            decode_piece(ctx, run, piece, part, tile);
          },
          clip);
    }
    if (i > 0) {
      clip = clip.slice(1, clip.shape[0]);
      blend_frames(tail, clip, kBlendFrames);
    }
    const bool last = i + 1 == pieces.size();
    // The first piece has a frame more.
    const int64_t kept = std::min(clip.shape[0], kStrideFrames + (i == 0 ? 1 : 0));
    run.emit(clip.slice(0, kept), 1);
    if (!last) {
      ctx.backend.copy(clip.slice(clip.shape[0] - kBlendFrames, clip.shape[0]), tail);
    }
  }
}

MemoryTally HunyuanDecoder::count(int64_t latent_frames, int64_t height, int64_t width) const {
  MemoryTally tally(/*one_pass=*/true);
  MapSize map{latent_frames, height, width};
  tally.scratch("latents", map.elements(config_.latent_channels));
  tally.scratch("quantised", map.elements(config_.latent_channels));
  int x = tally.feature({}, map.elements(conv_in_.out_channels()));
  conv_in_.count(tally, map);
  x = mid_before_.count(tally, map, x);
  if (mid_attention_) x = mid_attention_->count(tally, map, x);
  x = mid_after_.count(tally, map, x);
  for (const UpBlock& block : up_blocks_) {
    for (const GroupResBlock& resnet : block.resnets) x = resnet.count(tally, map, x);
    if (block.up) x = block.up->count(tally, map, x);
  }
  conv_out_.count(tally, map);
  tally.scratch("raw", map.elements(3));
  return tally;
}

int64_t HunyuanDecoder::memory_bytes(int64_t latent_frames, int64_t latent_height,
                                     int64_t latent_width, DType compute,
                                     const Tiling& tiling) const {
  check_latent_sizes(latent_frames, latent_height, latent_width);
  const int64_t factor = spatial_factor(), pixels = factor * factor * 3 * 4;  // bytes of a cell
  const std::vector<Span> pieces = hunyuan_pieces(std::min(latent_frames, 2 * kPieceLatents));
  const int64_t latents = pieces[0].end, frames = hunyuan_frames(latents);
  const int64_t cells = latent_height * latent_width;
  int64_t bytes = (frames + (pieces.size() > 1 ? kBlendFrames : 0)) * cells * pixels;
  int64_t height = latent_height, width = latent_width;
  if (!one_piece(tiling, factor, height, width, "AutoencoderKLHunyuanVideo")) {
    const BlendPlan plan = plan_blend(factor, 1, tiling);
    bytes += frames * plan.held_cells(height, width) * pixels;
    height = std::min(plan.tile_height, height);
    width = std::min(plan.tile_width, width);
  }
  return bytes + storage_bytes(compute, count(latents, height, width).elements());
}

}  // namespace lacuna
