// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/group_blocks.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/core/round.h"

namespace lacuna {
namespace {

// Frames that pass through a window at a time: enough that the two before them, gathered again by
// the convolution's kernel, do not count.
constexpr int64_t kPieceFrames = 4;
constexpr int64_t kHistory = 2;  // of a 3x3x3 convolution

int64_t most_frames(int64_t t) {
  return ceil_div(t, ceil_div(t, kPieceFrames));
}

// Fills the border of window [t, h + 2, w + 2, c] with the cells next to it.
void pad_borders(Stream& stream, const TensorView& window) {
  const int64_t rows = window.shape[1], columns = window.shape[2];
  const TensorView inner = window.narrow(2, 1, columns - 2);
  stream.copy(inner.narrow(1, 1, 1), inner.narrow(1, 0, 1));
  stream.copy(inner.narrow(1, rows - 2, 1), inner.narrow(1, rows - 1, 1));
  stream.copy(window.narrow(2, 1, 1), window.narrow(2, 0, 1));
  stream.copy(window.narrow(2, columns - 2, 1), window.narrow(2, columns - 1, 1));
}

// Calls body(window, begin, end) for pieces [begin, end) of x's frames, with window
// [history + end - begin, h + 2, w + 2, c]: them behind the frames before, all padded. What comes
// before frame 0 is frame 0.
template <typename Body>
void for_padded_pieces(Stream& stream, const void* layer, const TensorView& x, int64_t history,
                       const Body& body) {
  const int64_t t = x.shape[0], h = x.shape[1], w = x.shape[2], c = x.shape[3];
  const int64_t pieces = ceil_div(t, kPieceFrames);
  const TensorView all = stream.scratch("window", {history + most_frames(t), h + 2, w + 2, c});
  const TensorView before = all.slice(0, history);
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = t * i / pieces, end = t * (i + 1) / pieces;
    const TensorView window = all.slice(0, history + end - begin);
    const TensorView fresh = window.slice(history, window.shape[0]);
    stream.copy(x.slice(begin, end), region_of(fresh, {1, 1, h, w}));
    pad_borders(stream, fresh);
    if (begin == 0 && stream.first()) {
      TensorView repeated = fresh.slice(0, 1);
      repeated.shape[0] = history;
      repeated.stride[0] = 0;
      stream.copy(repeated, before);
    } else if (begin == 0) {
      stream.copy(stream.history(layer, history, h + 2, w + 2, c), before);
    }
    body(window, begin, end);
    const TensorView last = window.slice(window.shape[0] - history, window.shape[0]);
    if (end < t) {
      // Pieces but the only one have as many frames as a history has, so these do not overlap.
      stream.copy(last, before);
    } else if (!stream.last()) {
      stream.copy(last, stream.history(layer, history, h + 2, w + 2, c));
    }
  }
}

void count_window(MemoryTally& tally, const MapSize& map, int64_t history, int64_t c) {
  const int64_t padded = (map.height + 2) * (map.width + 2) * c;
  tally.scratch("window", (history + most_frames(map.frames)) * padded);
  tally.history(history * padded);
}

}  // namespace

void GroupNorm::forward(Context& ctx, const TensorView& x, bool silu, const TensorView& out) const {
  const int64_t samples = kind.per_frame ? x.shape[0] : 1, c = x.shape[3];
  const int64_t rows = x.shape[0] * x.shape[1] * x.shape[2] / samples;
  ctx.backend.group_norm(x.reshape({samples, rows, c}), kind.groups, weight.as<float>(),
                         bias.as<float>(), kind.eps, silu, out.reshape({samples, rows, c}));
}

void ReplicateConv::forward(Context& ctx, Stream& stream, const TensorView& x,
                            const Residual& residual, const TensorView& out) const {
  const TensorView taps = ctx.weight(weight);
  const Conv* through = residual.through;
  const TensorView point =
      through == nullptr ? TensorView{} : ctx.weight(through->weight, "shortcut weight");
  for_padded_pieces(
      stream, this, x, kHistory, [&](const TensorView& window, int64_t begin, int64_t end) {
        const TensorView to = out.slice(begin, end);
        TensorView added;
        if (residual.x != nullptr) added = residual.x->slice(begin, end);
        if (through != nullptr) {
          const TensorView made =
              stream.scratch("shortcut", {end - begin, to.shape[1], to.shape[2], to.shape[3]});
          ctx.backend.conv3d(added, point, through->bias.as<float>(), through->params, nullptr,
                             made);
          added = made;
        }
        ctx.backend.conv3d(window, taps, bias.as<float>(), {},
                           residual.x == nullptr ? nullptr : &added, to);
      });
}

void ReplicateConv::count(MemoryTally& tally, const MapSize& map, const Conv* through) const {
  count_window(tally, map, kHistory, in_channels());
  if (through == nullptr) return;
  tally.scratch("shortcut", most_frames(map.frames) * map.height * map.width * out_channels());
}

Feature GroupResBlock::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t t = x.frames(), h = x.height(), w = x.width(), c = conv1.out_channels();
  const Feature normed = stream.feature({x.buffer}, t, h, w, x.channels());
  norm1.forward(ctx, x.view, /*silu=*/true, normed.view);
  Feature hidden{normed.view, normed.buffer};
  if (c > x.channels()) {
    hidden = stream.feature({x.buffer, normed.buffer}, t, h, w, c);
  } else if (c < x.channels()) {
    hidden.view = normed.view.reuse(stream.dtype(), {t, h, w, c});
  }
  conv1.forward(ctx, stream, normed.view, {}, hidden.view);
  norm2.forward(ctx, hidden.view, /*silu=*/true, hidden.view);
  conv2.forward(ctx, stream, hidden.view, {&x.view, shortcut ? &*shortcut : nullptr}, hidden.view);
  return hidden;
}

int GroupResBlock::count(MemoryTally& tally, const MapSize& map, int x) const {
  const int64_t c_in = conv1.in_channels(), c = conv1.out_channels();
  int hidden = tally.feature({x}, map.elements(c_in));
  if (c > c_in) hidden = tally.feature({x, hidden}, map.elements(c));
  conv1.count(tally, map);
  conv2.count(tally, map, shortcut ? &*shortcut : nullptr);
  return hidden;
}

Feature FrameCausalAttention::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t t = x.frames(), c = x.channels(), n = x.height() * x.width();
  const Feature normed = stream.feature({x.buffer}, t, x.height(), x.width(), c);
  norm.forward(ctx, x.view, /*silu=*/false, normed.view);
  const TensorView rows = normed.view.reshape({t * n, c});
  const TensorView keys = stream.scratch("keys", {t * n, c});
  const TensorView values = stream.scratch("values", {t * n, c});
  const TensorView queries = stream.scratch("queries", {n, c});
  k.forward(ctx, rows, keys);
  v.forward(ctx, rows, values);
  for (int64_t f = 0; f < t; ++f) {
    const TensorView frame = rows.slice(f * n, (f + 1) * n);
    q.forward(ctx, frame, queries);
    // The frame's rows are not read again.
    attend_one_head(ctx, queries, keys.slice(0, (f + 1) * n), values.slice(0, (f + 1) * n), frame);
  }
  const Feature out = stream.feature({x.buffer, normed.buffer}, t, x.height(), x.width(), c);
  proj.forward(ctx, normed.view, &x.view, out.view);
  return out;
}

int FrameCausalAttention::count(MemoryTally& tally, const MapSize& map, int x) const {
  const int64_t c = proj.out_channels();
  const int normed = tally.feature({x}, map.elements(c));
  tally.scratch("keys", map.elements(c));
  tally.scratch("values", map.elements(c));
  tally.scratch("queries", map.height * map.width * c);
  return tally.feature({x, normed}, map.elements(c));
}

Feature ReplicateUpsample::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t t = x.frames(), h = x.height(), w = x.width(), c = bias.numel();
  const int64_t step = temporal ? 2 : 1, history = temporal ? 1 : kHistory;
  const Feature out = stream.feature({x.buffer}, temporal ? 2 * t - 1 : t, 2 * h, 2 * w, c);
  for_padded_pieces(
      stream, this, x.view, history, [&](const TensorView& window, int64_t begin, int64_t end) {
        for (int64_t phase = 0; phase < static_cast<int64_t>(phases.size()); ++phase) {
          const int64_t dt = phase / 4, dy = phase / 2 % 2, dx = phase % 2;
          // Frame k becomes 2k - 1 and 2k, frame 0 only the latter.
          const int64_t skipped = temporal && dt == 0 && begin == 0 ? 1 : 0;
          const int64_t frames = end - begin - skipped;
          if (frames == 0) continue;
          const TensorView made = stream.scratch("phase", {frames, h + 1, w + 1, c});
          ctx.backend.conv3d(window.slice(skipped, window.shape[0]),
                             ctx.weight(phases[static_cast<size_t>(phase)]), bias.as<float>(), {},
                             nullptr, made);
          const int64_t first = temporal ? 2 * (begin + skipped) - 1 + dt : begin;
          stream.copy(
              region_of(made, {dy, dx, h, w}),
              out.view.narrow(0, first, frames, step).narrow(1, dy, h, 2).narrow(2, dx, w, 2));
        }
      });
  return out;
}

int ReplicateUpsample::count(MemoryTally& tally, MapSize& map, int x) const {
  const int64_t c = bias.numel();
  count_window(tally, map, temporal ? 1 : kHistory, phases[0].view().shape[1]);
  tally.scratch("phase", most_frames(map.frames) * (map.height + 1) * (map.width + 1) * c);
  if (temporal) map.frames = 2 * map.frames - 1;
  map.height *= 2;
  map.width *= 2;
  return tally.feature({x}, map.elements(c));
}

Feature DepthToSpace::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t t = x.frames(), h = x.height(), w = x.width(), c = biases[0].numel();
  const TensorView rows = x.view.reshape({t * h * w, x.channels()});
  const Feature out = stream.feature({x.buffer}, t * frames, h * side, w * side, c);
  const TensorView phase = stream.scratch("phase", {t, h, w, c});
  for (int64_t i = 0; i < frames * side * side; ++i) {
    const auto at = static_cast<size_t>(i);
    ctx.backend.linear(rows, ctx.weight(weights[at]), biases[at].as<float>(), Epilogue::none,
                       nullptr, phase.reshape({t * h * w, c}));
    stream.copy(phase, out.view.narrow(0, i / (side * side), t, frames)
                           .narrow(1, i / side % side, h, side)
                           .narrow(2, i % side, w, side));
  }
  return out;
}

int DepthToSpace::count(MemoryTally& tally, MapSize& map, int x) const {
  const int64_t c = biases[0].numel();
  tally.scratch("phase", map.elements(c));
  map.frames *= frames;
  map.height *= side;
  map.width *= side;
  return tally.feature({x}, map.elements(c));
}

}  // namespace lacuna
