// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/taehv_decoder.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/vae/decode_run.h"
#include "lacuna/models/vae/tiling.h"
#include "lacuna/models/vae/vae_config.h"

namespace lacuna {
namespace {

// Upstream's bound on latents, which its training never left: 3 tanh(z / 3).
void bound_latents(const TensorView& z) {
  float* values = z.as<float>();
  parallel_ranges(z.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) values[i] = 3.0f * std::tanh(values[i] / 3.0f);
  });
}

// The convolution `after` [c_out, c, 3, 3] of what rows [first, first + c) of `matrix` [rows, c]
// make of a pixel.
Tensor composed(const Tensor& after, const Tensor& matrix, int64_t first) {
  const int64_t c_out = after.view().shape[0], c = after.view().shape[1];
  Tensor out(DType::f32, {c_out, c, 3, 3});
  parallel_tasks(c_out, [&](int64_t o, int) {
    std::vector<double> sums(static_cast<size_t>(c * 9));
    for (int64_t m = 0; m < c; ++m) {
      const float* taps = after.as<float>() + (o * c + m) * 9;
      const float* row = matrix.as<float>() + (first + m) * c;
      for (int64_t i = 0; i < c; ++i)
        for (int64_t tap = 0; tap < 9; ++tap)
          sums[static_cast<size_t>(i * 9 + tap)] += double{row[i]} * taps[tap];
    }
    std::copy(sums.begin(), sums.end(), out.as<float>() + o * c * 9);
  });
  return out;
}

// A 3x3 convolution over single frames, then ReLU.
Conv load_relu_conv(WeightReader& reader, const std::string& name, int64_t c_out, int64_t c_in) {
  Conv conv;
  conv.weight =
      reader.stored(name + ".weight", {c_out, c_in, 3, 3}).reshape({c_out, c_in, 1, 3, 3});
  conv.bias = reader.f32(name + ".bias", {c_out});
  conv.params = {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1, .relu = true};
  return conv;
}

}  // namespace

Feature TaehvDecoder::MemBlock::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t t = x.frames(), h = x.height(), w = x.width(), c = x.channels();
  const TensorView window = conv1.window(stream, t, h, w), fresh = conv1.fresh(window);
  stream.copy(x.view, fresh);
  const Feature hidden = stream.feature({x.buffer}, t, h, w, c);
  conv1.forward(ctx, stream, window, nullptr, hidden.view);
  conv2.forward(ctx, hidden.view, nullptr, x.view);
  conv3.forward(ctx, x.view, &fresh, hidden.view);
  return hidden;
}

void TaehvDecoder::Grow::forward(Context& ctx, Stream& stream, const TensorView& x, int64_t frame,
                                 const TensorView& out) const {
  const int64_t t = x.shape[0], h = x.shape[1], w = x.shape[2];
  const TensorView made = stream.scratch("phase", {t, h, w, channels()});
  for (int i = 0; i < 4; ++i) {
    ConvParams params = phase_padding(i / 2, i % 2);
    params.relu = relu;
    const Tensor& taps = phases[static_cast<size_t>(4 * frame + i)];
    ctx.backend.conv3d(x, ctx.weight(taps), nullptr, params, nullptr, made);
    stream.copy(made, out.narrow(1, i / 2, h, 2).narrow(2, i % 2, w, 2));
  }
}

TaehvDecoder::MemBlock TaehvDecoder::load_block(WeightReader& reader, const std::string& name,
                                                int64_t c) {
  MemBlock block;
  // Channels [x, the frame before x] -> taps in time, the earlier one first.
  const Tensor stacked = reader.passing_f32(name + ".conv.0.weight", {c, 2 * c, 3, 3});
  block.taps = Tensor(DType::f32, {c, c, 2, 3, 3});
  for (int64_t o = 0; o < c; ++o) {
    for (int64_t i = 0; i < c; ++i) {
      float* to = block.taps.as<float>() + (o * c + i) * 18;
      std::copy_n(stacked.as<float>() + (o * 2 * c + c + i) * 9, 9, to);
      std::copy_n(stacked.as<float>() + (o * 2 * c + i) * 9, 9, to + 9);
    }
  }
  block.conv1.history = 1;
  block.conv1.conv.weight = block.taps;
  block.conv1.conv.bias = reader.f32(name + ".conv.0.bias", {c});
  block.conv2 = load_relu_conv(reader, name + ".conv.2", c, c);
  block.conv3 = load_relu_conv(reader, name + ".conv.4", c, c);
  block.conv1.conv.params = block.conv2.params;
  return block;
}

TaehvDecoder::Grow TaehvDecoder::load_grow(WeightReader& reader, int64_t layer, int64_t c_out,
                                           int64_t c, int64_t frames) {
  Grow grow;
  grow.frames = frames;
  const Tensor matrix = reader.passing_f32("decoder." + std::to_string(layer) + ".conv.weight",
                                           {frames * c, c, 1, 1});
  const Tensor after =
      reader.passing_f32("decoder." + std::to_string(layer + 1) + ".weight", {c_out, c, 3, 3});
  for (int64_t frame = 0; frame < frames; ++frame) {
    const Tensor both = composed(after, matrix, frame * c);
    for (int i = 0; i < 4; ++i) grow.phases.push_back(phase_weight(both, i / 2, i % 2));
  }
  return grow;
}

// Upstream's values are 0 to 1 and its patches have rows outside columns; unpatchify() takes -1 to
// 1 and columns outside rows.
Conv TaehvDecoder::load_out(WeightReader& reader, int64_t c, int64_t patch, Tensor& weight) {
  const int64_t values = 3 * patch * patch;
  const Tensor stored = reader.passing_f32("decoder.22.weight", {values, c, 3, 3});
  const Tensor offsets = reader.passing_f32("decoder.22.bias", {values});
  weight = Tensor(DType::f32, {values, c, 1, 3, 3});
  Conv conv;
  conv.bias = Tensor(DType::f32, {values});
  for (int64_t to = 0; to < values; ++to) {
    const int64_t column = to / patch % patch, row = to % patch;
    const int64_t from = to - to % (patch * patch) + row * patch + column;
    conv.bias.as<float>()[to] = 2.0f * offsets.as<float>()[from] - 1.0f;
    for (int64_t i = 0; i < c * 9; ++i)
      weight.as<float>()[to * c * 9 + i] = 2.0f * stored.as<float>()[from * c * 9 + i];
  }
  conv.weight = weight;
  conv.params = {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1};
  return conv;
}

TaehvDecoder::TaehvDecoder(const TaehvConfig& config, WeightSource& source) : config_(config) {
  WeightReader reader(source);
  conv_in_ = load_relu_conv(reader, "decoder.1", config_.channels[0], config_.latent_channels);
  for (size_t i = 0; i < 3; ++i) {
    const int64_t c = config_.channels[i];
    int64_t layer = 3 + 6 * static_cast<int64_t>(i);
    for (MemBlock& block : levels_[i].blocks)
      block = load_block(reader, "decoder." + std::to_string(layer++), c);
    // What lies between doubles the map, without weights.
    levels_[i].grow =
        load_grow(reader, layer + 1, config_.channels[i + 1], c, config_.time_factors[i]);
  }
  levels_[2].grow.relu = true;
  conv_out_ = load_out(reader, config_.channels[3], config_.patch_size, out_weight_);
  reader.finish("taehv decoder");
  weights_ = reader.kept();
  for (const Level& level : levels_) {
    for (const MemBlock& block : level.blocks) weights_.push_back(block.taps);
    for (const Tensor& phase : level.grow.phases) weights_.push_back(phase);
  }
  weights_.push_back(out_weight_);
}

int64_t TaehvDecoder::frames_out(int64_t latent_frames) const {
  return latent_frames <= 0 ? 0 : 1 + config_.temporal_factor() * (latent_frames - 1);
}

int64_t TaehvDecoder::latent_frames(int64_t frames) const {
  return latent_frames_of(frames, config_.temporal_factor());
}

void TaehvDecoder::layers(Context& ctx, Stream& stream, DecodeRun& run, int64_t begin, int64_t end,
                          const Region& region, const FrameBody& body) const {
  const int64_t t = end - begin, h = region.height, w = region.width;
  const TensorView z = stream.scratch("latents", {t, h, w, config_.latent_channels});
  Tensor bounded(DType::f32, {t, h, w, config_.latent_channels});
  unpack_latents(run.latents, begin, region, {}, {}, bounded);
  bound_latents(bounded);
  stream.copy(bounded, z);
  Feature x = stream.feature({}, t, h, w, conv_in_.out_channels());
  conv_in_.forward(ctx, z, nullptr, x.view);
  for (const Level& level : levels_) {
    for (const MemBlock& block : level.blocks) x = block.forward(ctx, stream, x);
    if (&level == &levels_.back()) break;
    const int64_t frames = level.grow.frames;
    const Feature out = stream.feature({x.buffer}, x.frames() * frames, 2 * x.height(),
                                       2 * x.width(), level.grow.channels());
    for (int64_t i = 0; i < frames; ++i)
      level.grow.forward(ctx, stream, x.view, i, out.view.narrow(0, i, x.frames(), frames));
    x = out;
  }
  // The last maps are the largest by far, so there is one of them at a time.
  const Grow& last = levels_.back().grow;
  const TensorView map = stream.scratch("map", {1, 2 * x.height(), 2 * x.width(), last.channels()});
  const TensorView raw =
      stream.scratch("raw", {1, map.shape[1], map.shape[2], conv_out_.out_channels()});
  const int64_t dropped = stream.first() ? config_.temporal_factor() - 1 : 0;
  for (int64_t i = dropped; i < x.frames() * last.frames; ++i) {
    const int64_t from = i / last.frames;
    last.forward(ctx, stream, x.view.slice(from, from + 1), i % last.frames, map);
    conv_out_.forward(ctx, map, nullptr, raw);
    body(raw);
  }
}

bool TaehvDecoder::whole_frames(const Tiling& tiling, int64_t latent_height,
                                int64_t latent_width) const {
  if (tiling.mode == TileMode::off ||
      fits_one_tile(spatial_factor(), tiling, latent_height, latent_width)) {
    return true;
  }
  LACUNA_CHECK(
      tiling.mode == TileMode::blend,
      "vae tiling: exact for TAEHV, expected off or blend: it sees 18 latent cells to each "
      "side, so most of a tile would be computed more than once");
  return false;
}

void TaehvDecoder::decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
                          const FrameSink& sink) const {
  DecodeOptions as_given = options;
  as_given.denormalize = false;
  DecodeRun run(latents, config_.latent_channels, {}, {}, as_given, sink);
  if (whole_frames(options.tiling, latents.shape[2], latents.shape[3]))
    return decode_whole(ctx, run);
  decode_blend(ctx, run);
}

void TaehvDecoder::decode_whole(Context& ctx, DecodeRun& run) const {
  run.total = run.frames();
  Stream stream(ctx.backend, ctx.compute);
  const Region whole = run.whole();
  const Tensor frame = run.assembly(
      DType::f32, {1, whole.height * spatial_factor(), whole.width * spatial_factor(), 3});
  run.passes(stream, true, [&](int64_t begin, int64_t end) {
    layers(ctx, stream, run, begin, end, whole, [&](const TensorView& drawn) {
      const TensorView raw = stream.mirror("raw on the host", drawn);
      stream.copy(drawn, raw);
      unpatchify(raw, config_.patch_size, frame);
      run.sink(frame);
    });
  });
}

void TaehvDecoder::decode_blend(Context& ctx, DecodeRun& run) const {
  const int64_t patch = config_.patch_size, scale = spatial_factor() / patch;
  const BlendPlan plan = plan_blend(spatial_factor(), patch, run.options.tiling);
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3], frames = run.frames();
  run.total = frames * plan.rows(h) * plan.columns(w);
  const Tensor raw = run.assembly(
      DType::f32, {frames_out(frames), h * scale, w * scale, conv_out_.out_channels()});
  const auto decode_tile = [&](const Region& part, const TensorView& tile) {
    const Region map{0, 0, part.height * scale, part.width * scale};
    Stream stream(ctx.backend, ctx.compute);
    int64_t at = 0;
    run.passes(stream, true, [&](int64_t begin, int64_t end) {
      layers(ctx, stream, run, begin, end, part, [&](const TensorView& drawn) {
        paste_region(ctx.backend, drawn, map, at++, 0, 0, tile);
      });
    });
  };
  blend_tiles(ctx.backend, run, plan, scale, decode_tile, raw);
  run.emit(raw, patch);
}

int64_t TaehvDecoder::memory_bytes(int64_t latent_frames, int64_t latent_height,
                                   int64_t latent_width, DType compute,
                                   const Tiling& tiling) const {
  check_latent_sizes(latent_frames, latent_height, latent_width);
  const int64_t factor = spatial_factor(), pixels = factor * factor * 3 * 4;  // bytes of a cell
  const auto layers_bytes = [&](int64_t height, int64_t width) {
    MemoryTally tally(latent_frames == 1);
    TallyMap map{1, height * width};
    tally.scratch("latents", map.size(config_.latent_channels));
    int x = tally.feature({}, map.size(config_.channels[0]));
    for (size_t i = 0; i < 3; ++i) {
      const int64_t c = config_.channels[i], next = config_.channels[i + 1];
      for (int block = 0; block < 3; ++block) {
        tally.scratch("window", (1 + map.frames) * map.cells * c);
        tally.history(map.cells * c);
        x = tally.feature({x}, map.size(c));
      }
      if (i == 2) {
        tally.scratch("phase", map.cells * next);
        tally.scratch("map", 4 * map.cells * next);
        tally.scratch("raw", 4 * map.cells * conv_out_.out_channels());
        break;
      }
      tally.scratch("phase", map.size(next));
      map.frames *= config_.time_factors[i];
      map.cells *= 4;
      x = tally.feature({x}, map.size(next));
    }
    return storage_bytes(compute, tally.elements());
  };
  if (whole_frames(tiling, latent_height, latent_width))
    return layers_bytes(latent_height, latent_width) + latent_height * latent_width * pixels;
  const BlendPlan plan = plan_blend(factor, config_.patch_size, tiling);
  const int64_t cells = latent_height * latent_width + plan.held_cells(latent_height, latent_width);
  return layers_bytes(std::min(plan.tile_height, latent_height),
                      std::min(plan.tile_width, latent_width)) +
         frames_out(latent_frames) * cells * pixels;
}

}  // namespace lacuna
