// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/blocks.h"

#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/core/round.h"

namespace lacuna {
namespace {

// The last of a convolution's taps in time, [c_out, c_in, 1, kh, kw].
TensorView last_tap(Context& ctx, const TensorView& stored) {
  const TensorView weight = ctx.weight(stored);
  const int64_t taps = weight.shape[2];
  const TensorView tap =
      ctx.workspace.get("last tap", weight.dtype,
                        {weight.shape[0], weight.shape[1], 1, weight.shape[3], weight.shape[4]});
  ctx.backend.copy(weight.narrow(2, taps - 1, 1), tap);
  return tap;
}

}  // namespace

void attend_one_head(Context& ctx, const TensorView& q, const TensorView& k, const TensorView& v,
                     const TensorView& out) {
  const int64_t c = q.shape[1];
  AttendParams p;
  p.q = q.data;
  p.k = k.data;
  p.v = v.data;
  p.out = out.data;
  p.dtype = q.dtype == DType::bf16 ? AttendDType::bf16 : AttendDType::f32;
  p.q_token_stride = q.stride[0];
  p.k_token_stride = k.stride[0];
  p.v_token_stride = v.stride[0];
  p.out_token_stride = out.stride[0];
  p.q_head_stride = q.stride[0] * q.shape[0];
  p.k_head_stride = k.stride[0] * k.shape[0];
  p.v_head_stride = v.stride[0] * v.shape[0];
  p.out_head_stride = out.stride[0] * out.shape[0];
  p.num_heads = 1;
  p.q_len = q.shape[0];
  p.k_len = k.shape[0];
  p.head_dim = static_cast<int32_t>(c);
  p.sm_scale = 1.0f / std::sqrt(static_cast<float>(c));
  p.num_q_blocks = static_cast<int32_t>(ceil_div(p.q_len, p.block_q));
  p.num_k_blocks = static_cast<int32_t>(ceil_div(p.k_len, p.block_k));
  ctx.backend.attend(p);
}

void norm_silu(Context& ctx, const TensorView& x, const Tensor& gamma, const TensorView& out) {
  ctx.backend.channel_norm(x, gamma.as<float>(), /*silu=*/true, out);
}

void Conv::forward(Context& ctx, const TensorView& x, const TensorView* residual,
                   const TensorView& out) const {
  ctx.backend.conv3d(x, ctx.weight(weight), bias.as<float>(), params, residual, out);
}

TensorView CausalConv::window(Stream& stream, int64_t t, int64_t h, int64_t w) const {
  const int64_t c = conv.in_channels();
  const TensorView window = stream.scratch("window", {history + t, h, w, c});
  const TensorView before = window.slice(0, history);
  if (stream.first()) {
    stream.fill(before, 0.0f);
  } else {
    stream.copy(stream.history(this, history, h, w, c), before);
  }
  return window;
}

void CausalConv::remember(Stream& stream, const TensorView& window) const {
  if (stream.last()) return;
  const TensorView& kept =
      stream.history(this, history, window.shape[1], window.shape[2], window.shape[3]);
  stream.copy(window.slice(window.shape[0] - history, window.shape[0]), kept);
}

void CausalConv::forward(Context& ctx, Stream& stream, const TensorView& window,
                         const TensorView* residual, const TensorView& out) const {
  if (stream.first() && window.shape[0] == history + 1) {
    // Frame 0 alone: the taps on earlier frames read zeros, which is two thirds of the work.
    ctx.backend.conv3d(fresh(window), last_tap(ctx, conv.weight), conv.bias.as<float>(),
                       conv.params, residual, out);
  } else {
    conv.forward(ctx, window, residual, out);
  }
  remember(stream, window);
}

Feature ResBlock::forward(Context& ctx, Stream& stream, const Feature& x, int pinned) const {
  const int64_t t = x.frames(), h = x.height(), w = x.width();
  const int64_t c = conv1.conv.out_channels();
  TensorView window = conv1.window(stream, t, h, w);
  norm_silu(ctx, x.view, gamma1, conv1.fresh(window));
  const Feature hidden = stream.feature({x.buffer, pinned}, t, h, w, c);
  conv1.forward(ctx, stream, window, nullptr, hidden.view);

  window = conv2.window(stream, t, h, w);
  norm_silu(ctx, hidden.view, gamma2, conv2.fresh(window));
  // `hidden` is dead from here: it takes the result, or the shortcut if that has its own weights.
  if (!shortcut) {
    conv2.forward(ctx, stream, window, &x.view, hidden.view);
    return hidden;
  }
  shortcut->forward(ctx, x.view, nullptr, hidden.view);
  const Feature out = stream.feature({hidden.buffer, pinned}, t, h, w, c);
  conv2.forward(ctx, stream, window, &hidden.view, out.view);
  return out;
}

Feature MidAttention::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const int64_t c = x.channels(), n = x.height() * x.width();
  const TensorView normed = stream.scratch("window", {x.frames(), n, c});
  ctx.backend.channel_norm(x.view.reshape({x.frames(), n, c}), gamma.as<float>(), /*silu=*/false,
                           normed);
  const TensorView qkv_rows = stream.scratch("qkv", {n, 3 * c});
  const Feature mixed = stream.feature({x.buffer}, x.frames(), x.height(), x.width(), c);
  for (int64_t f = 0; f < x.frames(); ++f) {
    qkv.forward(ctx, normed.slice(f, f + 1).reshape({n, c}), qkv_rows);
    attend_one_head(ctx, qkv_rows.narrow(1, 0, c), qkv_rows.narrow(1, c, c),
                    qkv_rows.narrow(1, 2 * c, c), mixed.view.slice(f, f + 1).reshape({n, c}));
  }
  const Feature out =
      stream.feature({x.buffer, mixed.buffer}, x.frames(), x.height(), x.width(), c);
  proj.forward(ctx, mixed.view, &x.view, out.view);
  return out;
}

Feature MidBlock::forward(Context& ctx, Stream& stream, const Feature& x) const {
  const Feature a = before.forward(ctx, stream, x);
  const Feature b = attention.forward(ctx, stream, a);
  return after.forward(ctx, stream, b);
}

Feature Upsample::double_time(Context& ctx, Stream& stream, const Feature& x, int pinned) const {
  // Frame 0 of the video passes untouched and is not part of the convolution's history.
  const int64_t bypassed = stream.first() ? 1 : 0, t = x.frames() - bypassed;
  if (t == 0) return x;
  const int64_t h = x.height(), w = x.width(), c = x.channels();
  const TensorView window = time->window(stream, t, h, w);
  stream.copy(x.view.slice(bypassed, x.frames()), time->fresh(window));
  const Feature out = stream.feature({x.buffer, pinned}, bypassed + 2 * t, h, w, c);
  if (bypassed != 0) stream.copy(x.view.slice(0, 1), out.view.slice(0, 1));
  // Channels [0, c) of the result are frame 2k, the others frame 2k + 1: each half of the weight
  // writes its frames in place.
  const TensorView weight = ctx.weight(time->conv.weight);
  for (int64_t half = 0; half < 2; ++half) {
    const TensorView w_half = weight.slice(half * c, (half + 1) * c);
    const float* bias_half = time->conv.bias.as<float>() + half * c;
    for (int64_t k = 0; k < t; ++k) {
      const int64_t frame = bypassed + 2 * k + half;
      ctx.backend.conv3d(window.slice(k, k + time->history + 1), w_half, bias_half, {}, nullptr,
                         out.view.slice(frame, frame + 1));
    }
  }
  time->remember(stream, window);
  return out;
}

Feature Upsample::forward(Context& ctx, Stream& stream, const Feature& x,
                          const Feature* block_input, const Region* region) const {
  const int pinned = block_input == nullptr ? -1 : block_input->buffer;
  const Feature wide = time ? double_time(ctx, stream, x, pinned) : x;
  const int64_t t = wide.frames(), h = wide.height(), w = wide.width(), c = bias.numel();
  const Region kept = region == nullptr ? Region{0, 0, 2 * h, 2 * w} : *region;
  const Feature out = stream.feature({wide.buffer, pinned}, t, kept.height, kept.width, c);
  const TensorView phase = stream.scratch("phase", {t, h, w, c});
  DupShortcut dup;
  if (block_input != nullptr) {
    dup.x = block_input->view;
    dup.skip = stream.first() ? static_cast<int64_t>(dup_channels[0].offset.size()) - 1 : 0;
  }
  for (int i = 0; i < 4; ++i) {
    const int dy = i / 2, dx = i % 2;
    ctx.backend.conv3d(wide.view, ctx.weight(phases[i]), bias.as<float>(), phase_padding(dy, dx),
                       nullptr, phase);
    dup.channels = &dup_channels[i];
    interleave_phase(ctx.backend, phase, dy, dx, kept, block_input == nullptr ? nullptr : &dup,
                     out.view);
  }
  return out;
}

Feature Downsample::forward(Context& ctx, Stream& stream, const Feature& x, int pinned) const {
  const int64_t t = x.frames(), h = x.height() / 2, w = x.width() / 2, c = x.channels();
  if (!time) {
    const Feature out = stream.feature({x.buffer, pinned}, t, h, w, c);
    conv.forward(ctx, x.view, nullptr, out.view);
    return out;
  }
  const TensorView window = time->window(stream, t, h, w);
  conv.forward(ctx, x.view, nullptr, time->fresh(window));
  if (stream.first()) {
    // Nothing comes before frame 0: it is passed on, and is the first tap of the next window.
    LACUNA_CHECK(t == 1, "vae: first pass of {} frames through a temporal downsample, expected 1",
                 t);
    const Feature out = stream.feature({x.buffer, pinned}, 1, h, w, c);
    stream.copy(time->fresh(window), out.view);
    time->remember(stream, window);
    return out;
  }
  const Feature out = stream.feature({x.buffer, pinned}, t / 2, h, w, c);
  time->forward(ctx, stream, window, nullptr, out.view);
  return out;
}

}  // namespace lacuna
