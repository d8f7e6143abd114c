// SPDX-License-Identifier: Apache-2.0
// Whether a network op's call makes sense, whatever runs it; the contract of each is Backend's in
// backend.h. Throw Error. A backend adds what its own kernels ask beyond that.
#pragma once

#include "lacuna/backend/backend.h"
#include "lacuna/backend/tensor_check.h"

namespace lacuna {

inline void check_linear(Reach reach, const TensorView& x, const TensorView& w, Epilogue epilogue,
                         const TensorView& out) {
  for (const TensorView* t : {&x, &w, &out}) check_rows("linear", reach, *t);
  LACUNA_CHECK(w.dtype == x.dtype && w.shape[1] == x.shape[1] && out.shape[0] == x.shape[0] &&
                   out.shape[1] == w.shape[0],
               "linear: x {}, w {}, out {}, expected [m, k], [n, k] of one dtype and [m, n]",
               x.describe(), w.describe(), out.describe());
  LACUNA_CHECK(x.shape[1] > 0, "linear: x {}, expected 1 or more channels", x.describe());
  LACUNA_CHECK(epilogue != Epilogue::residual || out.dtype == DType::f32,
               "linear: residual into {}, expected f32", out.describe());
}

inline void check_layer_norm(Reach reach, const TensorView& x, const TensorView& out) {
  for (const TensorView* t : {&x, &out}) check_rows("layer_norm", reach, *t);
  check_same_shape("layer_norm", x, out);
  LACUNA_CHECK(x.dtype == DType::f32, "layer_norm: x {}, expected f32", x.describe());
}

inline void check_rope(const RopeTables& rope, const TensorView& x, int32_t num_heads) {
  const int64_t pairs = int64_t{rope.pairs_frames} + rope.pairs_height + rope.pairs_width;
  const int64_t head_dim = x.shape[1] / num_heads;
  if (rope.summed) {
    LACUNA_CHECK(2 * int64_t{rope.pairs_frames} == head_dim &&
                     rope.pairs_height == rope.pairs_frames &&
                     rope.pairs_width == rope.pairs_frames,
                 "rms_norm: summed rotary pairs {} {} {}, expected half of head_dim {} each",
                 rope.pairs_frames, rope.pairs_height, rope.pairs_width, head_dim);
  } else {
    LACUNA_CHECK(rope.pairs_frames >= 0 && rope.pairs_height >= 0 && rope.pairs_width >= 0 &&
                     2 * pairs == head_dim,
                 "rms_norm: {} rotary pairs, expected half of head_dim {}", pairs, head_dim);
  }
  LACUNA_CHECK(rope.frames > 0 && rope.height > 0 && rope.width > 0 &&
                   rope.frames * rope.height * rope.width == x.shape[0],
               "rms_norm: {} tokens, expected the grid's {}x{}x{}", x.shape[0], rope.frames,
               rope.height, rope.width);
}

inline void check_rms_norm(Reach reach, const TensorView& x, const float* weight, NormSpan span,
                           const RopeTables* rope, int32_t num_heads, const TensorView& out) {
  for (const TensorView* t : {&x, &out}) check_rows("rms_norm", reach, *t);
  check_same_shape("rms_norm", x, out);
  if (rope != nullptr || span == NormSpan::head) {
    LACUNA_CHECK(num_heads > 0 && x.shape[1] % num_heads == 0,
                 "rms_norm: {} channels in {} heads, expected whole heads", x.shape[1], num_heads);
  }
  LACUNA_CHECK(weight != nullptr, "rms_norm: weight null, expected {} values",
               span == NormSpan::head ? x.shape[1] / num_heads : x.shape[1]);
  if (rope != nullptr) check_rope(*rope, x, num_heads);
}

inline void check_gated_product(Reach reach, Epilogue activation, const TensorView& gate,
                                const TensorView& up, const TensorView& out) {
  LACUNA_CHECK(activation == Epilogue::gelu_tanh || activation == Epilogue::silu,
               "gated_product: activation {}, expected gelu_tanh or silu",
               activation == Epilogue::none ? "none" : "residual");
  LACUNA_CHECK(gate.rank >= 1, "gated_product: {}, expected 1 dimension or more", gate.describe());
  for (const TensorView* t : {&gate, &up, &out}) {
    check_real("gated_product", reach, *t);
    check_same_shape("gated_product", gate, *t);
    check_one_dtype("gated_product", gate, *t);
  }
}

inline void check_channel_norm(Reach reach, const TensorView& x, const float* gamma,
                               const TensorView& out) {
  check_real("channel_norm", reach, x);
  check_real("channel_norm", reach, out);
  check_same_shape("channel_norm", x, out);
  LACUNA_CHECK(x.rank >= 1 && x.dtype == out.dtype && x.contiguous() && out.contiguous(),
               "channel_norm: {} to {}, expected contiguous and one dtype", x.describe(),
               out.describe());
  LACUNA_CHECK(gamma != nullptr, "channel_norm: gamma null, expected {} values",
               x.shape[x.rank - 1]);
}

inline void check_group_norm(Reach reach, const TensorView& x, int32_t num_groups,
                             const float* weight, const float* bias, const TensorView& out) {
  check_real("group_norm", reach, x);
  check_real("group_norm", reach, out);
  check_rank("group_norm", x, 3);
  check_same_shape("group_norm", x, out);
  LACUNA_CHECK(x.dtype == out.dtype && x.contiguous() && out.contiguous(),
               "group_norm: {} to {}, expected contiguous and one dtype", x.describe(),
               out.describe());
  LACUNA_CHECK(num_groups > 0 && x.shape[2] % num_groups == 0,
               "group_norm: {} channels in {} groups, expected whole groups", x.shape[2],
               num_groups);
  LACUNA_CHECK(weight != nullptr && bias != nullptr,
               "group_norm: weight {}, bias {}, expected {} values each",
               weight != nullptr ? "given" : "null", bias != nullptr ? "given" : "null",
               x.shape[2]);
}

inline void check_conv3d(Reach reach, const TensorView& x, const TensorView& w,
                         const ConvParams& conv, const TensorView* residual,
                         const TensorView& out) {
  for (const TensorView* t : {&x, &w, &out, residual != nullptr ? residual : &out}) {
    check_real("conv3d", reach, *t);
    check_rank("conv3d", *t, t == &w ? 5 : 4);
    LACUNA_CHECK(t->dtype == x.dtype && t->contiguous(), "conv3d: {}, expected contiguous {}",
                 t->describe(), dtype_name(x.dtype));
  }
  LACUNA_CHECK(conv.stride_t > 0 && conv.stride_h > 0 && conv.stride_w > 0,
               "conv3d: strides {} {} {}, expected 1 or more", conv.stride_t, conv.stride_h,
               conv.stride_w);
  LACUNA_CHECK(
      conv.pad_top >= 0 && conv.pad_bottom >= 0 && conv.pad_left >= 0 && conv.pad_right >= 0,
      "conv3d: padding {} {} {} {}, expected 0 or more", conv.pad_top, conv.pad_bottom,
      conv.pad_left, conv.pad_right);
  LACUNA_CHECK(w.numel() > 0 && w.shape[1] == x.shape[3],
               "conv3d: w {} for x {}, expected equal input channels, no dimension of 0",
               w.describe(), x.describe());
  const auto size = [&](int axis, int64_t pad, int64_t stride) {
    const int64_t rest = x.shape[axis] + pad - w.shape[axis + 2];
    return rest < 0 ? 0 : rest / stride + 1;
  };
  const int64_t t = size(0, 0, conv.stride_t);
  const int64_t height = size(1, int64_t{conv.pad_top} + conv.pad_bottom, conv.stride_h);
  const int64_t width = size(2, int64_t{conv.pad_left} + conv.pad_right, conv.stride_w);
  LACUNA_CHECK(out.shape[0] == t && out.shape[1] == height && out.shape[2] == width &&
                   out.shape[3] == w.shape[0],
               "conv3d: out {}, expected [{}, {}, {}, {}]", out.describe(), t, height, width,
               w.shape[0]);
  if (residual != nullptr) check_same_shape("conv3d", *residual, out);
}

}  // namespace lacuna
