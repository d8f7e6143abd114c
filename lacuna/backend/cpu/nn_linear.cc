// SPDX-License-Identifier: Apache-2.0
// The linear layer: tiles of the output, one single-threaded oneDNN product each.
#include <algorithm>
#include <cstring>

#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/network_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

// From this many rows on, bringing the weights into oneDNN's blocked layout costs less than it
// saves: 4-5 % of the product against 1-1.5 ms for 1536 x 1536 (Zen 4, both types).
constexpr int64_t kPackRows = 512;
// Packed weights held at one time.
constexpr int64_t kPanelBytes = int64_t{128} << 20;
// Tiles are made smaller until there are this many tasks, to keep a larger machine busy.
constexpr int64_t kMinTasks = 24;

struct Gemm {
  OneDnn& dnn;
  const TensorView& x;
  const TensorView& w;
  const float* bias;
  const float* gate;
  const TensorView& out;
  Epilogue epilogue;
  int64_t m, n, k;
  int64_t tile_m, tile_n;
  bool pack;
  bool widen;                                  // bf16 operands as f32
  bool gather_x;                               // rows of x are copied: widened or strided
  bool gather_w;                               // same for the weights
  bool stage;                                  // products go to an f32 tile first
  DType compute;                               // operand type of the product
  std::shared_ptr<const GemmPlan> main, edge;  // tile_n columns; the last columns

  const GemmPlan& plan(int64_t columns) const { return columns == tile_n ? *main : *edge; }
  int64_t columns_at(int64_t column) const { return std::min(tile_n, n - column); }
  int64_t row_bytes() const { return k * element_bytes(compute); }
};

// Tiles do not depend on the thread count. 32 rows and 64 columns are oneDNN's own blocks; the work
// is spread evenly, so that the last tile is not a sliver.
void choose_tiles(Gemm& g) {
  const auto even = [](int64_t size, int64_t tile, int64_t unit) {
    return std::min(size, round_up(ceil_div(size, ceil_div(size, tile)), unit));
  };
  g.tile_m = 256;
  if (g.pack) {
    // All columns at once: rows of the output stay whole, and a tile needs no staging.
    while (g.tile_m > 64 && ceil_div(g.m, g.tile_m) < kMinTasks) g.tile_m /= 2;
    g.tile_n = even(g.n, std::max<int64_t>(64, kPanelBytes / g.row_bytes()), 64);
  } else {
    int64_t width = 512;
    while (width > 64 && ceil_div(g.m, g.tile_m) * ceil_div(g.n, width) < kMinTasks) width /= 2;
    g.tile_n = even(g.n, width, 64);
  }
  g.tile_m = even(g.m, g.tile_m, 32);
}

std::shared_ptr<const GemmPlan> make_plan(const Gemm& g, int64_t columns) {
  GemmSpec spec;
  spec.m = g.tile_m;
  spec.n = columns;
  spec.k = g.k;
  spec.src = g.compute;
  spec.dst = g.stage ? DType::f32 : g.out.dtype;
  spec.pack = g.pack;
  spec.bias = g.bias != nullptr;
  if (!g.stage || g.epilogue != Epilogue::residual) spec.epilogue = g.epilogue;
  spec.gate = g.gate != nullptr && spec.epilogue == Epilogue::residual;
  return g.dnn.gemm(spec, g.m % g.tile_m);
}

void make_plans(Gemm& g) {
  // oneDNN has no product of f32 operands into bf16, and wants rows end to end.
  const bool whole_rows = g.m == 1 || (g.tile_n == g.n && g.out.stride[0] == g.n);
  g.stage = !whole_rows || (g.compute == DType::f32 && g.out.dtype == DType::bf16);
  // On AVX2 it has the gate in its reference loops only.
  if (g.gate != nullptr && !g.dnn.fast_gate()) g.stage = true;
  g.main = make_plan(g, g.tile_n);
  if (g.n % g.tile_n != 0) g.edge = make_plan(g, g.n % g.tile_n);
}

// Memory of one worker; bytes, multiples of 64.
struct WorkerScratch {
  int64_t product = 0, x = 0, weights = 0, stage = 0;
  int64_t total() const { return product + x + weights + stage; }
};

WorkerScratch worker_scratch(const Gemm& g) {
  WorkerScratch s;
  s.product = std::max(g.main->scratch_bytes(), g.edge ? g.edge->scratch_bytes() : 0);
  s.product = round_up(s.product, 64);
  if (g.gather_x) s.x = round_up(g.tile_m * g.row_bytes(), 64);
  if (g.gather_w && !g.pack) s.weights = round_up(g.tile_n * g.row_bytes(), 64);
  if (g.stage) s.stage = round_up(g.tile_m * g.tile_n * 4, 64);
  return s;
}

// Rows [first, first + rows) of x or w -> `to`, end to end, in the type of the product.
void gather_rows(const Gemm& g, const TensorView& x, int64_t first, int64_t rows, char* to) {
  for (int64_t i = first; i < first + rows; ++i, to += g.row_bytes()) {
    const char* from = at(x, i * x.stride[0]);
    if (g.widen) {
      convert_row(reinterpret_cast<const BFloat16*>(from), reinterpret_cast<float*>(to), g.k);
    } else {
      std::memcpy(to, from, static_cast<size_t>(g.row_bytes()));
    }
  }
}

// out = stage, or out += gate * stage.
template <typename Out>
void finish_row(const float* stage, const Gemm& g, const float* gate, int64_t columns, Out* out) {
  if (g.epilogue != Epilogue::residual) return convert_row(stage, out, columns);
  for_lanes(
      columns, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        __m256 y = load_lanes(stage + j, lanes);
        if (gate != nullptr) y = _mm256_mul_ps(y, load_lanes(gate + j, lanes));
        store_lanes(out + j, _mm256_add_ps(load_lanes(out + j, lanes), y), lanes);
      });
}

void run_tile(const Gemm& g, int64_t row, int64_t column, const char* weights,
              const WorkerScratch& sizes, char* memory) {
  const int64_t rows = std::min(g.tile_m, g.m - row), columns = g.columns_at(column);
  char* x = memory + sizes.product;
  char* own_weights = x + sizes.x;
  auto* stage = reinterpret_cast<float*>(own_weights + sizes.weights);
  const char* src = at(g.x, row * g.x.stride[0]);
  if (g.gather_x) {
    gather_rows(g, g.x, row, rows, x);
    src = x;
  }
  if (weights == nullptr) {
    weights = at(g.w, column * g.w.stride[0]);
    if (g.gather_w) {
      gather_rows(g, g.w, column, columns, own_weights);
      weights = own_weights;
    }
  }
  const float* bias = g.bias != nullptr ? g.bias + column : nullptr;
  const float* gate = g.gate != nullptr ? g.gate + column : nullptr;
  char* dst = at(g.out, row * g.out.stride[0] + column);
  if (!g.stage) return g.plan(columns).run(rows, src, weights, bias, gate, dst, memory);
  g.plan(columns).run(rows, src, weights, bias, nullptr, stage, memory);
  with_type(g.out.dtype, [&](auto* type) {
    auto* to = reinterpret_cast<decltype(type)>(dst);
    for (int64_t i = 0; i < rows; ++i)
      finish_row(stage + i * columns, g, gate, columns, to + i * g.out.stride[0]);
  });
}

// Packed weights of the columns from `column` on; on all threads.
const char* pack_weights(const Gemm& g, int64_t column) {
  const int64_t columns = g.columns_at(column);
  const GemmPlan& plan = g.plan(columns);
  const char* plain = at(g.w, column * g.w.stride[0]);
  if (g.gather_w) {
    char* rows = g.dnn.scratch("gemm.plain", columns * g.row_bytes());
    parallel_ranges(columns, 16, [&](int64_t begin, int64_t end) {
      gather_rows(g, g.w, column + begin, end - begin, rows + begin * g.row_bytes());
    });
    plain = rows;
  }
  if (!plan.packs()) return plain;
  char* packed = g.dnn.scratch("gemm.packed", plan.weights_bytes());
  plan.pack(plain, packed);
  return packed;
}

void run(const Gemm& g) {
  const WorkerScratch sizes = worker_scratch(g);
  char* memory = g.dnn.scratch("gemm.worker", sizes.total() * num_threads());
  const int64_t row_tiles = ceil_div(g.m, g.tile_m), column_tiles = ceil_div(g.n, g.tile_n);
  if (!g.pack) {
    parallel_tasks(row_tiles * column_tiles, [&](int64_t task, int worker) {
      run_tile(g, task % row_tiles * g.tile_m, task / row_tiles * g.tile_n, nullptr, sizes,
               memory + worker * sizes.total());
    });
    return;
  }
  for (int64_t column = 0; column < g.n; column += g.tile_n) {
    const char* weights = pack_weights(g, column);
    parallel_tasks(row_tiles, [&](int64_t task, int worker) {
      run_tile(g, task * g.tile_m, column, weights, sizes, memory + worker * sizes.total());
    });
  }
}

}  // namespace

void gemm(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
          Epilogue epilogue, const float* gate, const TensorView& out) {
  if (out.numel() == 0) return;
  Gemm g{.dnn = dnn, .x = x, .w = w, .bias = bias, .gate = gate, .out = out, .epilogue = epilogue};
  if (epilogue != Epilogue::residual) g.gate = nullptr;
  g.m = x.shape[0];
  g.n = w.shape[0];
  g.k = x.shape[1];
  g.widen = x.dtype == DType::bf16 && !dnn.native_bf16();
  g.compute = g.widen ? DType::f32 : x.dtype;
  g.gather_x = g.widen || (g.m > 1 && x.stride[0] != g.k);
  g.gather_w = g.widen || (g.n > 1 && w.stride[0] != g.k);
  g.pack = g.m >= kPackRows;
  choose_tiles(g);
  make_plans(g);
  run(g);
}

void linear(OneDnn& dnn, const TensorView& x, const TensorView& w, const float* bias,
            Epilogue epilogue, const float* gate, const TensorView& out) {
  check_linear(Reach::host, x, w, epilogue, out);
  for (const TensorView* t : {&x, &w, &out})
    LACUNA_CHECK(t->shape[0] <= 1 || t->stride[0] >= t->shape[1],
                 "linear: rows of {} are {} elements apart, expected no overlap", t->describe(),
                 t->stride[0]);
  gemm(dnn, x, w, bias, epilogue, gate, out);
}

}  // namespace lacuna::cpu
