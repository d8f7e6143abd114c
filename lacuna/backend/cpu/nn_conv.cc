// SPDX-License-Identifier: Apache-2.0
// Channels-last 3-D convolution: bands of output rows, one single-threaded oneDNN convolution each.
// A band's input rows are gathered into a slab, which supplies the vertical padding, the dense
// strides that oneDNN asks for and the widening of bf16 on processors without it.
#include <algorithm>
#include <cstring>

#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/network_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

// Slab of one worker. Larger saves copies of frames shared by consecutive outputs.
constexpr int64_t kSlabBytes = int64_t{16} << 20;

struct Conv {
  OneDnn& dnn;
  const TensorView& x;
  const TensorView& w;
  const float* bias;
  const ConvParams& conv;
  const TensorView* residual;
  const TensorView& out;
  bool widen;                      // bf16 operands as f32
  bool stage;                      // results go through an f32 band
  int64_t band_rows, band_frames;  // output rows and frames of a task
  std::shared_ptr<const ConvPlan> plan;

  int64_t kt() const { return w.shape[2]; }
  int64_t kh() const { return w.shape[3]; }
  int64_t in_rows(int64_t out_rows) const { return (out_rows - 1) * conv.stride_h + kh(); }
  int64_t in_frames(int64_t out_frames) const { return (out_frames - 1) * conv.stride_t + kt(); }
  int64_t in_row() const { return x.shape[2] * x.shape[3]; }       // elements
  int64_t out_row() const { return out.shape[2] * out.shape[3]; }  // elements
  int64_t compute_bytes() const { return widen ? 4 : element_bytes(x.dtype); }
  int64_t slab_bytes(int64_t rows, int64_t frames) const {
    return round_up(in_rows(rows) * in_frames(frames) * in_row() * compute_bytes(), 64);
  }
};

// Copies n contiguous elements from element `from` of x to element `to` of y.
void copy_elements(const TensorView& x, int64_t from, const TensorView& y, int64_t to, int64_t n) {
  if (at(x, from) == at(y, to)) return;
  if (x.dtype == y.dtype) {
    std::memcpy(at(y, to), at(x, from), static_cast<size_t>(n * element_bytes(x.dtype)));
    return;
  }
  with_type(x.dtype, [&](auto* x_type) {
    with_type(y.dtype, [&](auto* y_type) {
      convert_row(static_cast<decltype(x_type)>(x.data) + from,
                  static_cast<decltype(y_type)>(y.data) + to, n);
    });
  });
}

// 1x1x1: every pixel is a row of a matrix product.
void pointwise(const Conv& c) {
  const int64_t c_in = c.w.shape[1], c_out = c.w.shape[0], pixels = c.out.numel() / c_out;
  const TensorView rows = c.x.reshape({pixels, c_in});
  const TensorView out = c.out.reshape({pixels, c_out});
  if (c.residual != nullptr)
    parallel_ranges(pixels, 1024, [&](int64_t begin, int64_t end) {
      copy_elements(*c.residual, begin * c_out, out, begin * c_out, (end - begin) * c_out);
    });
  gemm(c.dnn, rows, c.w.reshape({c_out, c_in}), c.bias,
       c.residual != nullptr ? Epilogue::residual : Epilogue::none, nullptr, out);
}

// Bands of about 512 pixels, more rows only where lines are short: a band's halo is copied again.
// Few tasks: thinner bands.
void choose_bands(Conv& c) {
  constexpr int64_t kMinTasks = 24;
  const int64_t frames = c.out.shape[0], height = c.out.shape[1], width = c.out.shape[2];
  c.band_rows = std::clamp<int64_t>(ceil_div(512, width), 4, 32);
  while (c.band_rows > 2 && ceil_div(height, c.band_rows) < kMinTasks) c.band_rows /= 2;
  // A height that is no multiple costs surplus rows in the last band.
  for (int64_t rows = c.band_rows; rows > c.band_rows / 2; --rows)
    if (height % rows == 0) {
      c.band_rows = rows;
      break;
    }
  c.band_rows = std::min(c.band_rows, height);
  c.band_frames = frames;
  while (c.band_frames > 1 && c.slab_bytes(c.band_rows, c.band_frames) > kSlabBytes)
    c.band_frames = ceil_div(c.band_frames, 2);
}

void make_plan(Conv& c) {
  ConvSpec s;
  s.c_in = c.w.shape[1];
  s.c_out = c.w.shape[0];
  s.kt = s.t = c.kt();
  s.kh = c.kh();
  s.kw = c.w.shape[4];
  s.h = c.in_rows(c.band_rows);
  s.w = c.x.shape[2];
  s.out_h = c.band_rows;
  s.out_w = c.out.shape[2];
  s.stride_h = c.conv.stride_h;
  s.stride_w = c.conv.stride_w;
  s.pad_left = c.conv.pad_left;
  s.dtype = c.widen ? DType::f32 : c.x.dtype;
  s.dst = c.stage ? DType::f32 : c.out.dtype;
  s.bias = c.bias != nullptr;
  s.accumulate = c.residual != nullptr;
  s.relu = c.conv.relu;
  c.plan = c.dnn.conv(s);
}

// [c_out, c_in, taps] -> [c_out, taps, c_in]
void taps_first(const TensorView& w, uint16_t* to) {
  const int64_t c_in = w.shape[1], taps = w.shape[2] * w.shape[3] * w.shape[4];
  const auto* from = static_cast<const char*>(w.data);
  parallel_tasks(w.shape[0], [&](int64_t o, int) {
    const char* row = from + o * c_in * taps * 2;
    uint16_t* out = to + o * c_in * taps;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < c_in; ++i)
        std::memcpy(out + tap * c_in + i, row + (i * taps + tap) * 2, 2);
  });
}

const char* prepare_weights(const Conv& c) {
  const int64_t count = c.w.numel();
  const void* plain = c.w.data;
  if (c.widen) {
    auto* wide = reinterpret_cast<float*>(c.dnn.scratch("conv.plain", count * 4));
    parallel_ranges(count, 65536, [&](int64_t begin, int64_t end) {
      convert_row(static_cast<const BFloat16*>(c.w.data) + begin, wide + begin, end - begin);
    });
    plain = wide;
  } else if (c.w.dtype == DType::bf16) {
    auto* moved = reinterpret_cast<uint16_t*>(c.dnn.scratch("conv.plain", count * 2));
    taps_first(c.w, moved);
    plain = moved;
  }
  char* packed = c.dnn.scratch("conv.weights", c.plan->weights_bytes());
  c.plan->pack(plain, packed);
  return packed;
}

// Input rows [first, first + rows) of frames [frame, frame + frames); zero outside the image.
void fill_slab(const Conv& c, int64_t frame, int64_t frames, int64_t first, int64_t rows,
               char* slab) {
  const int64_t height = c.x.shape[1], row = c.in_row(), bytes = row * c.compute_bytes();
  const TensorView to = make_view(slab, c.widen ? DType::f32 : c.x.dtype, {frames * rows, row});
  for (int64_t f = 0; f < frames; ++f)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = first + r, index = f * rows + r;
      if (y < 0 || y >= height) {
        std::memset(slab + index * bytes, 0, static_cast<size_t>(bytes));
      } else {
        copy_elements(c.x, ((frame + f) * height + y) * row, to, index * row, row);
      }
    }
}

struct WorkerScratch {
  char* conv;
  char* slab;
  char* stage;
};

// Output rows from `top` on of frames [frame, frame + frames). A last band that is not full is
// computed in full beside the output: oneDNN may not have a fast kernel for other heights that
// takes the same packed weights.
void run_band(const Conv& c, int64_t frame, int64_t frames, int64_t top, const char* weights,
              const WorkerScratch& memory) {
  const int64_t rows = std::min(c.band_rows, c.out.shape[1] - top);
  const int64_t first = top * c.conv.stride_h - c.conv.pad_top, in_rows = c.in_rows(c.band_rows);
  const bool inside = first >= 0 && first + in_rows <= c.x.shape[1];
  const bool direct = inside && c.kt() == 1 && !c.widen;
  if (!direct)
    fill_slab(c, frame * c.conv.stride_t, c.in_frames(frames), first, in_rows, memory.slab);
  const int64_t count = rows * c.out_row();
  const TensorView stage = make_view(memory.stage, c.stage ? DType::f32 : c.out.dtype, {count});
  const bool aside = c.stage || rows < c.band_rows;
  for (int64_t f = 0; f < frames; ++f) {
    const int64_t in_frame = f * c.conv.stride_t;
    const char* src =
        direct ? at(c.x, ((frame * c.conv.stride_t + in_frame) * c.x.shape[1] + first) * c.in_row())
               : memory.slab + in_frame * in_rows * c.in_row() * c.compute_bytes();
    const int64_t to = ((frame + f) * c.out.shape[1] + top) * c.out_row();
    if (c.residual != nullptr)
      copy_elements(*c.residual, to, aside ? stage : c.out, aside ? 0 : to, count);
    c.plan->run(src, weights, c.bias, aside ? memory.stage : at(c.out, to), memory.conv);
    if (aside) copy_elements(stage, 0, c.out, to, count);
  }
}

void run(const Conv& c) {
  const char* weights = prepare_weights(c);
  const int64_t frames = c.out.shape[0], height = c.out.shape[1];
  const int64_t conv_bytes = round_up(c.plan->scratch_bytes(), 64);
  const int64_t slab_bytes = c.slab_bytes(c.band_rows, c.band_frames);
  const bool aside = c.stage || height % c.band_rows != 0;
  const int64_t stage_bytes = aside ? round_up(c.band_rows * c.out_row() * 4, 64) : 0;
  const int64_t total = conv_bytes + slab_bytes + stage_bytes;
  char* memory = c.dnn.scratch("conv.worker", total * num_threads());
  const int64_t bands = ceil_div(height, c.band_rows);
  parallel_tasks(bands * ceil_div(frames, c.band_frames), [&](int64_t task, int worker) {
    const int64_t frame = task / bands * c.band_frames;
    char* own = memory + worker * total;
    run_band(c, frame, std::min(c.band_frames, frames - frame), task % bands * c.band_rows, weights,
             {own, own + conv_bytes, own + conv_bytes + slab_bytes});
  });
}

}  // namespace

void conv3d(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
            const ConvParams& conv, const TensorView* residual, const TensorView& out) {
  check_conv3d(Reach::host, x, w, conv, residual, out);
  if (out.numel() == 0) return;
  Conv c{.dnn = dnn, .x = x, .w = w, .bias = bias, .conv = conv, .residual = residual, .out = out};
  const bool unit = w.shape[2] == 1 && w.shape[3] == 1 && w.shape[4] == 1 && conv.stride_t == 1 &&
                    conv.stride_h == 1 && conv.stride_w == 1;
  const bool padded = (conv.pad_top | conv.pad_bottom | conv.pad_left | conv.pad_right) != 0;
  // A product has no such end.
  if (unit && !padded && !conv.relu) return pointwise(c);
  c.widen = c.stage = x.dtype == DType::bf16 && !dnn.native_bf16();
  choose_bands(c);
  make_plan(c);
  run(c);
}

}  // namespace lacuna::cpu
