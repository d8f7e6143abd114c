// SPDX-License-Identifier: Apache-2.0
// Channels-last 3-D convolution.
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

struct Shape {
  int64_t t, h, w, c;
};

Shape shape4(const TensorView& x) {
  return {x.shape[0], x.shape[1], x.shape[2], x.shape[3]};
}

// [c_out, c_in, kt, kh, kw] to [c_out, kt, kh, kw, c_in], so that channels are contiguous.
std::vector<float> channels_last(const TensorView& w) {
  const int64_t c_in = w.shape[1], taps = w.shape[2] * w.shape[3] * w.shape[4];
  std::vector<float> out(static_cast<size_t>(w.numel()));
  for (int64_t o = 0; o < w.shape[0]; ++o)
    for (int64_t c = 0; c < c_in; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        out[(o * taps + tap) * c_in + c] = reader(w)[(o * c_in + c) * taps + tap];
  return out;
}

int64_t out_size(int64_t in, int64_t pad, int64_t kernel, int64_t stride) {
  return in + pad < kernel ? 0 : (in + pad - kernel) / stride + 1;
}

void check_conv(const TensorView& x, const TensorView& w, const ConvParams& conv,
                const TensorView* residual, const TensorView& out) {
  for (const TensorView* t : {&x, &w, &out}) {
    check_real("conv3d", *t);
    LACUNA_CHECK(t->dtype == x.dtype && t->contiguous(),
                 "conv3d: {}, expected contiguous and x's dtype {}", t->describe(),
                 dtype_name(x.dtype));
  }
  check_rank("conv3d", x, 4);
  check_rank("conv3d", w, 5);
  check_rank("conv3d", out, 4);
  LACUNA_CHECK(conv.stride_t > 0 && conv.stride_h > 0 && conv.stride_w > 0,
               "conv3d: strides {} {} {}, expected 1 or more", conv.stride_t, conv.stride_h,
               conv.stride_w);
  LACUNA_CHECK(
      conv.pad_top >= 0 && conv.pad_bottom >= 0 && conv.pad_left >= 0 && conv.pad_right >= 0,
      "conv3d: negative padding");
  const int64_t t = out_size(x.shape[0], 0, w.shape[2], conv.stride_t);
  const int64_t h =
      out_size(x.shape[1], int64_t{conv.pad_top} + conv.pad_bottom, w.shape[3], conv.stride_h);
  const int64_t width =
      out_size(x.shape[2], int64_t{conv.pad_left} + conv.pad_right, w.shape[4], conv.stride_w);
  LACUNA_CHECK(w.shape[1] == x.shape[3], "conv3d: x {} and w {}, expected equal input channels",
               x.describe(), w.describe());
  LACUNA_CHECK(
      out.shape[0] == t && out.shape[1] == h && out.shape[2] == width && out.shape[3] == w.shape[0],
      "conv3d: out {}, expected [{}, {}, {}, {}]", out.describe(), t, h, width, w.shape[0]);
  if (residual == nullptr) return;
  check_same_shape("conv3d", *residual, out);
  check_real("conv3d", *residual);
  LACUNA_CHECK(residual->contiguous(), "conv3d: residual strided, expected contiguous");
}

}  // namespace

void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
            const TensorView* residual, const TensorView& out) {
  check_conv(x, w, conv, residual, out);
  const Shape in = shape4(x), to = shape4(out);
  const int64_t kt = w.shape[2], kh = w.shape[3], kw = w.shape[4];
  const std::vector<float> weights = channels_last(w);
  std::vector<float> input(static_cast<size_t>(x.numel()));
  reader(x).row(0, input);
  parallel_tasks(to.t * to.h, [&](int64_t task, int) {
    const int64_t t = task / to.h, y = task % to.h;
    std::vector<double> sum(static_cast<size_t>(to.c));
    for (int64_t z = 0; z < to.w; ++z) {
      for (int64_t o = 0; o < to.c; ++o) sum[o] = bias != nullptr ? double{bias[o]} : 0.0;
      for (int64_t a = 0; a < kt; ++a)
        for (int64_t b = 0; b < kh; ++b)
          for (int64_t c = 0; c < kw; ++c) {
            const int64_t it = t * conv.stride_t + a;
            const int64_t iy = y * conv.stride_h + b - conv.pad_top;
            const int64_t iz = z * conv.stride_w + c - conv.pad_left;
            if (iy < 0 || iy >= in.h || iz < 0 || iz >= in.w) continue;
            const float* pixel = input.data() + ((it * in.h + iy) * in.w + iz) * in.c;
            const float* tap = weights.data() + ((a * kh + b) * kw + c) * in.c;
            for (int64_t o = 0; o < to.c; ++o)
              sum[o] += dot(pixel, tap + o * kt * kh * kw * in.c, in.c);
          }
      const int64_t at = ((t * to.h + y) * to.w + z) * to.c;
      for (int64_t o = 0; o < to.c; ++o)
        writer(out).set(at + o, sum[o] + (residual != nullptr ? reader(*residual)[at + o] : 0.0f));
    }
  });
}

}  // namespace lacuna::ref
