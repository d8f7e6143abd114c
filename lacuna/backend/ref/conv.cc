// SPDX-License-Identifier: Apache-2.0
// Channels-last 3-D convolution.
#include <vector>

#include "lacuna/backend/network_check.h"
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

}  // namespace

void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
            const TensorView* residual, const TensorView& out) {
  check_conv3d(Reach::host, x, w, conv, residual, out);
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
      for (int64_t o = 0; o < to.c; ++o) {
        const double y = sum[o] + (residual != nullptr ? reader(*residual)[at + o] : 0.0f);
        writer(out).set(at + o, conv.relu && y < 0.0 ? 0.0 : y);
      }
    }
  });
}

}  // namespace lacuna::ref
