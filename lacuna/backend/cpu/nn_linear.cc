// SPDX-License-Identifier: Apache-2.0
// The linear layer: tiles of the output, one single-threaded oneDNN product each.
#include <algorithm>

#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/nn_checks.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

// From this many rows on, bringing the weights into oneDNN's blocked layout costs less than it
// saves: 4-5 % of the product against 1-1.5 ms for 1536 x 1536 (Zen 4, both types).
constexpr int64_t kPackRows = 512;
// Packed or widened weights held at one time.
constexpr int64_t kPanelBytes = int64_t{64} << 20;

struct Tiles {
  int64_t m = 0, n = 0;
};

// 256 x 512 unless the product is too small for that to keep some dozens of threads busy.
Tiles choose_tiles(int64_t m, int64_t n) {
  constexpr int64_t kMinTasks = 24;
  Tiles t{256, 512};
  while (t.n > 64 && ceil_div(m, t.m) * ceil_div(n, t.n) < kMinTasks) t.n /= 2;
  // Spread evenly: the last tile is not a sliver. 32 rows and 64 columns are oneDNN's own blocks.
  t.m = std::min(m, round_up(ceil_div(m, ceil_div(m, t.m)), 32));
  t.n = std::min(n, round_up(ceil_div(n, ceil_div(n, t.n)), 64));
  return t;
}

struct Gemm {
  OneDnn& dnn;
  const TensorView& x;
  const TensorView& w;
  const float* bias;
  const float* gate;
  const TensorView& out;
  Epilogue epilogue;
  int64_t m, n, k;
  Tiles tile;
  bool widen;                                  // bf16 operands as f32
  bool stage;                                  // products go through an f32 tile
  DType compute;                               // operand type of the product
  bool own_weights;                            // packed or widened copies of some weights are used
  std::shared_ptr<const GemmPlan> main, edge;  // full width and the last columns

  const GemmPlan& plan(int64_t columns) const { return columns == tile.n ? *main : *edge; }
  bool copies_weights(int64_t columns) const { return widen || plan(columns).packs(); }
};

std::shared_ptr<const GemmPlan> make_plan(const Gemm& g, int64_t columns) {
  GemmSpec spec;
  spec.m = g.tile.m;
  spec.n = columns;
  spec.k = g.k;
  spec.src_stride = g.widen ? g.k : std::max(g.x.stride[0], g.k);
  spec.weights_stride = g.widen ? g.k : std::max(g.w.stride[0], g.k);
  spec.dst_stride = g.stage ? g.tile.n : std::max(g.out.stride[0], g.n);
  spec.src = g.compute;
  spec.dst = g.stage ? DType::f32 : g.out.dtype;
  spec.pack = g.m >= kPackRows;
  spec.bias = g.bias != nullptr;
  spec.gate = g.gate != nullptr;
  spec.epilogue = g.epilogue;
  return g.dnn.gemm(spec, g.m % g.tile.m);
}

// Memory of one worker; sizes in bytes, multiples of 64.
struct WorkerScratch {
  int64_t product = 0, x = 0, out = 0, weights = 0;
  int64_t total() const { return product + x + out + weights; }
};

WorkerScratch worker_scratch(const Gemm& g) {
  WorkerScratch s;
  s.product = g.main->scratch_bytes();
  if (g.edge) s.product = std::max(s.product, g.edge->scratch_bytes());
  s.product = round_up(s.product, 64);
  if (g.widen) s.x = round_up(g.tile.m * g.k * 4, 64);
  if (g.stage) s.out = round_up(g.tile.m * g.tile.n * 4, 64);
  if (g.widen && g.main->packs()) s.weights = round_up(g.tile.n * g.k * 4, 64);
  return s;
}

void widen_rows(const TensorView& x, int64_t first, int64_t rows, float* to) {
  const int64_t k = x.shape[1];
  for (int64_t i = 0; i < rows; ++i)
    convert_row(static_cast<const BFloat16*>(x.data) + (first + i) * x.stride[0], to + i * k, k);
}

// Weights of columns [first, first + columns) -> `to`, widened and packed as the plan wants them.
void prepare_weights(const Gemm& g, int64_t first, int64_t columns, float* temporary, char* to) {
  const GemmPlan& plan = g.plan(columns);
  const void* plain = at(g.w, first * g.w.stride[0]);
  if (g.widen) {
    float* wide = plan.packs() ? temporary : reinterpret_cast<float*>(to);
    widen_rows(g.w, first, columns, wide);
    plain = wide;
  }
  if (plan.packs()) plan.pack(plain, to);
}

void copy_tile(const Gemm& g, int64_t row, int64_t rows, int64_t column, int64_t columns,
               float* stage, bool to_out) {
  with_type(g.out.dtype, [&](auto* type) {
    auto* base = static_cast<decltype(type)>(g.out.data) + row * g.out.stride[0] + column;
    for (int64_t i = 0; i < rows; ++i) {
      if (to_out) {
        convert_row(stage + i * g.tile.n, base + i * g.out.stride[0], columns);
      } else {
        convert_row(base + i * g.out.stride[0], stage + i * g.tile.n, columns);
      }
    }
  });
}

void run_tile(const Gemm& g, int64_t row, int64_t column, const char* weights,
              const WorkerScratch& sizes, char* memory) {
  const int64_t rows = std::min(g.tile.m, g.m - row);
  const int64_t columns = std::min(g.tile.n, g.n - column);
  char* product = memory;
  auto* wide_x = reinterpret_cast<float*>(product + sizes.product);
  auto* stage = reinterpret_cast<float*>(product + sizes.product + sizes.x);
  const void* src = at(g.x, row * g.x.stride[0]);
  if (g.widen) {
    widen_rows(g.x, row, rows, wide_x);
    src = wide_x;
  }
  void* dst = at(g.out, row * g.out.stride[0] + column);
  if (g.stage) {
    if (g.epilogue == Epilogue::residual) copy_tile(g, row, rows, column, columns, stage, false);
    dst = stage;
  }
  g.plan(columns).run(rows, src, weights, g.bias != nullptr ? g.bias + column : nullptr,
                      g.gate != nullptr ? g.gate + column : nullptr, dst, product);
  if (g.stage) copy_tile(g, row, rows, column, columns, stage, true);
}

void run(const Gemm& g) {
  const WorkerScratch sizes = worker_scratch(g);
  char* memory = g.dnn.scratch("gemm.worker", sizes.total() * num_threads());
  const int64_t row_tiles = ceil_div(g.m, g.tile.m), column_tiles = ceil_div(g.n, g.tile.n);
  const int64_t tile_bytes =
      round_up(std::max(g.main->weights_bytes(), g.edge ? g.edge->weights_bytes() : 0), 64);
  const int64_t group =
      g.own_weights ? std::max<int64_t>(1, kPanelBytes / tile_bytes) : column_tiles;
  char* panel = g.own_weights
                    ? g.dnn.scratch("gemm.weights", tile_bytes * std::min(group, column_tiles))
                    : nullptr;
  for (int64_t first = 0; first < column_tiles; first += group) {
    const int64_t count = std::min(group, column_tiles - first);
    if (g.own_weights)
      parallel_tasks(count, [&](int64_t i, int worker) {
        const int64_t column = (first + i) * g.tile.n;
        char* own = memory + worker * sizes.total();
        prepare_weights(g, column, std::min(g.tile.n, g.n - column),
                        reinterpret_cast<float*>(own + sizes.total() - sizes.weights),
                        panel + i * tile_bytes);
      });
    // Neighbouring tasks share the weights: they stay in the cache.
    parallel_tasks(count * row_tiles, [&](int64_t task, int worker) {
      const int64_t i = task / row_tiles, column = (first + i) * g.tile.n;
      const bool copied = g.copies_weights(std::min(g.tile.n, g.n - column));
      const char* weights = copied ? panel + i * tile_bytes : at(g.w, column * g.w.stride[0]);
      run_tile(g, task % row_tiles * g.tile.m, column, weights, sizes,
               memory + worker * sizes.total());
    });
  }
}

void check_linear(const TensorView& x, const TensorView& w, const TensorView& out) {
  for (const TensorView* t : {&x, &w, &out}) check_rows("linear", *t);
  LACUNA_CHECK(w.dtype == x.dtype && w.shape[1] == x.shape[1] && out.shape[0] == x.shape[0] &&
                   out.shape[1] == w.shape[0],
               "linear: x {}, w {}, out {}, expected [m, k], [n, k] of one dtype and [m, n]",
               x.describe(), w.describe(), out.describe());
  LACUNA_CHECK(x.shape[1] > 0, "linear: x {}, expected 1 or more channels", x.describe());
  for (const TensorView* t : {&x, &w, &out})
    LACUNA_CHECK(t->shape[0] <= 1 || t->stride[0] >= t->shape[1],
                 "linear: rows of {} are {} elements apart, expected no overlap", t->describe(),
                 t->stride[0]);
}

}  // namespace

void gemm(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
          Epilogue epilogue, const float* gate, const TensorView& out) {
  check_linear(x, w, out);
  if (out.numel() == 0) return;
  Gemm g{.dnn = dnn, .x = x, .w = w, .bias = bias, .gate = gate, .out = out, .epilogue = epilogue};
  if (epilogue != Epilogue::residual) g.gate = nullptr;
  g.m = x.shape[0];
  g.n = w.shape[0];
  g.k = x.shape[1];
  g.tile = choose_tiles(g.m, g.n);
  g.widen = x.dtype == DType::bf16 && !dnn.native_bf16();
  g.compute = g.widen ? DType::f32 : x.dtype;
  // oneDNN has no product of f32 operands into bf16.
  g.stage = g.compute == DType::f32 && out.dtype == DType::bf16;
  g.main = make_plan(g, g.tile.n);
  if (g.n % g.tile.n != 0) g.edge = make_plan(g, g.n % g.tile.n);
  g.own_weights = g.widen || g.main->packs() || (g.edge && g.edge->packs());
  run(g);
}

void linear(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
            Epilogue epilogue, const float* gate, const TensorView& out) {
  LACUNA_CHECK(epilogue != Epilogue::residual || out.dtype == DType::f32,
               "linear: residual into {}, expected f32", out.describe());
  gemm(dnn, x, w, bias, epilogue, gate, out);
}

}  // namespace lacuna::cpu
