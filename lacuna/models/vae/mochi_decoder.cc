// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/mochi_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"
#include "lacuna/models/vae/decode_run.h"
#include "lacuna/models/vae/vae_config.h"

namespace lacuna {
namespace {

constexpr GroupNormKind kMochiNorm{32, 1e-5f, /*per_frame=*/true};

std::vector<GroupResBlock> load_mochi_blocks(WeightReader& reader, const std::string& name,
                                             int64_t count, int64_t c) {
  std::vector<GroupResBlock> blocks;
  for (int64_t i = 0; i < count; ++i) {
    blocks.push_back(load_group_res_block(reader, name + ".resnets." + std::to_string(i), c, c,
                                          kMochiNorm, ".norm_layer"));
  }
  return blocks;
}

}  // namespace

MochiDecoder::MochiDecoder(MochiVaeConfig config, WeightSource& source)
    : config_(std::move(config)) {
  WeightReader reader(source);
  const int64_t levels = config_.levels();
  const auto channels = [&](int64_t i) { return config_.block_out_channels[size_t(i)]; };
  const auto layers_of = [&](int64_t i) { return config_.layers_per_block[size_t(i)]; };
  int64_t c = channels(levels - 1);
  conv_in_ = load_conv(reader, "decoder.conv_in", c, config_.latent_channels, 1, 1);
  block_in_ = load_mochi_blocks(reader, "decoder.block_in", layers_of(levels), c);
  // Lists of the config begin at the pixels, up blocks at the latents.
  for (int64_t i = levels - 2; i >= 0; --i) {
    const std::string name = "decoder.up_blocks." + std::to_string(levels - 2 - i);
    UpBlock block;
    block.resnets = load_mochi_blocks(reader, name, layers_of(i + 1), c);
    block.up = load_depth_to_space(reader, name + ".proj", channels(i), c,
                                   config_.temporal_expansions[size_t(i)],
                                   config_.spatial_expansions[size_t(i)]);
    up_blocks_.push_back(std::move(block));
    c = channels(i);
  }
  block_out_ = load_mochi_blocks(reader, "decoder.block_out", layers_of(0), c);
  proj_out_ = read_linear(reader, "decoder.proj_out", 3, c);
  reader.finish("mochi vae decoder");
  weights_ = reader.kept();
  for (const UpBlock& block : up_blocks_) {
    weights_.insert(weights_.end(), block.up.weights.begin(), block.up.weights.end());
  }
}

int64_t MochiDecoder::frames_out(int64_t latent_frames) const {
  return latent_frames <= 0 ? 0 : 1 + config_.temporal_factor() * (latent_frames - 1);
}

int64_t MochiDecoder::latent_frames(int64_t frames) const {
  return latent_frames_of(frames, config_.temporal_factor());
}

TensorView MochiDecoder::layers(Context& ctx, Stream& stream, const DecodeRun& run, int64_t begin,
                                int64_t end, const Region& region) const {
  const int64_t t = end - begin, h = region.height, w = region.width;
  const TensorView z = stream.scratch("latents", {t, h, w, config_.latent_channels});
  const TensorView made = stream.mirror("latents on the host", z);
  unpack_latents(run.latents, begin, region, run.mean, run.std_dev, made);
  stream.copy(made, z);
  Feature x = stream.feature({}, t, h, w, conv_in_.out_channels());
  conv_in_.forward(ctx, z, nullptr, x.view);
  for (const GroupResBlock& block : block_in_) x = block.forward(ctx, stream, x);
  for (const UpBlock& block : up_blocks_) {
    for (const GroupResBlock& resnet : block.resnets) x = resnet.forward(ctx, stream, x);
    x = block.up.forward(ctx, stream, x);
  }
  for (const GroupResBlock& block : block_out_) x = block.forward(ctx, stream, x);
  const int64_t c = x.channels(), rows = x.view.numel() / c;
  const TensorView flat = x.view.reshape({rows, c});
  // SiLU of what no layer made last: a gate on ones, one row of them.
  TensorView ones = stream.scratch("ones", {1, c});
  stream.fill(ones, 1.0f);
  ones.shape[0] = rows;
  ones.stride[0] = 0;
  ctx.backend.gated_product(Epilogue::silu, flat, ones, flat);
  const TensorView raw = stream.scratch("raw", {x.frames(), x.height(), x.width(), 3});
  proj_out_.forward(ctx, flat, raw.reshape({rows, 3}));
  return raw.slice(stream.first() ? config_.temporal_factor() - 1 : 0, raw.shape[0]);
}

void MochiDecoder::decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
                          const FrameSink& sink) const {
  DecodeRun run(latents, config_.latent_channels, config_.latents_mean, config_.latents_std,
                options, sink);
  if (one_piece(options.tiling, spatial_factor(), latents.shape[2], latents.shape[3],
                "AutoencoderKLMochi")) {
    return decode_whole(ctx, run);
  }
  decode_blend(ctx, run);
}

void MochiDecoder::decode_whole(Context& ctx, DecodeRun& run) const {
  run.total = run.frames();
  Stream stream(ctx.backend, ctx.compute);
  Workspace frames;
  run.passes(stream, true, [&](int64_t begin, int64_t end) {
    const TensorView drawn = layers(ctx, stream, run, begin, end, run.whole());
    const TensorView raw = stream.mirror("raw on the host", drawn);
    stream.copy(drawn, raw);
    const TensorView out =
        frames.get("frames", DType::f32, {raw.shape[0], raw.shape[1], raw.shape[2], 3});
    run.assembly_bytes = frames.bytes();
    unpatchify(raw, 1, out);
    run.sink(out);
  });
}

void MochiDecoder::decode_blend(Context& ctx, DecodeRun& run) const {
  const int64_t factor = spatial_factor();
  const BlendPlan plan = plan_blend(factor, 1, run.options.tiling);
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3], frames = run.frames();
  run.total = frames * plan.rows(h) * plan.columns(w);
  const Tensor raw = run.assembly(DType::f32, {frames_out(frames), h * factor, w * factor, 3});
  const auto decode_tile = [&](const Region& part, const TensorView& tile) {
    const Region map{0, 0, part.height * factor, part.width * factor};
    Stream stream(ctx.backend, ctx.compute);
    int64_t at = 0;
    run.passes(stream, true, [&](int64_t begin, int64_t end) {
      const TensorView out = layers(ctx, stream, run, begin, end, part);
      paste_region(ctx.backend, out, map, at, 0, 0, tile);
      at += out.shape[0];
    });
  };
  blend_tiles(ctx.backend, run, plan, factor, decode_tile, raw);
  run.emit(raw, 1);
}

int64_t MochiDecoder::memory_bytes(int64_t latent_frames, int64_t latent_height,
                                   int64_t latent_width, DType compute,
                                   const Tiling& tiling) const {
  check_latent_sizes(latent_frames, latent_height, latent_width);
  const int64_t factor = spatial_factor(), pixels = factor * factor * 3 * 4;  // bytes of a cell
  const auto layers_bytes = [&](int64_t height, int64_t width) {
    MemoryTally tally(latent_frames == 1);
    MapSize map{1, height, width};
    tally.scratch("latents", map.elements(config_.latent_channels));
    int x = tally.feature({}, map.elements(conv_in_.out_channels()));
    for (const GroupResBlock& block : block_in_) x = block.count(tally, map, x);
    for (const UpBlock& block : up_blocks_) {
      for (const GroupResBlock& resnet : block.resnets) x = resnet.count(tally, map, x);
      x = block.up.count(tally, map, x);
    }
    for (const GroupResBlock& block : block_out_) x = block.count(tally, map, x);
    tally.scratch("ones", config_.block_out_channels[0]);
    tally.scratch("raw", map.elements(3));
    return storage_bytes(compute, tally.elements());
  };
  if (one_piece(tiling, factor, latent_height, latent_width, "AutoencoderKLMochi")) {
    const int64_t frames = latent_frames == 1 ? 1 : config_.temporal_factor();
    return layers_bytes(latent_height, latent_width) +
           frames * latent_height * latent_width * pixels;
  }
  const BlendPlan plan = plan_blend(factor, 1, tiling);
  const int64_t cells = latent_height * latent_width + plan.held_cells(latent_height, latent_width);
  return layers_bytes(std::min(plan.tile_height, latent_height),
                      std::min(plan.tile_width, latent_width)) +
         frames_out(latent_frames) * cells * pixels;
}

}  // namespace lacuna
