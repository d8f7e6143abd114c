// SPDX-License-Identifier: Apache-2.0
// XAttention block scores, arXiv 2503.16428 Alg. 1 with the scale of the published code (see
// Backend::antidiagonal_scores). A group is `stride` tokens laid end to end, queries backwards;
// then all antidiagonal sums are one product of [q groups, stride * d] and [k groups, stride * d].
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lacuna/backend/compat_padding.h"
#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/cpu/select.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

// Query groups per product, by shape alone. Measured, the cause not looked into: at 32k tokens and
// stride 16, 128 rows ran at 37 GFLOP/s and 512 at 70 (AVX2, f32).
constexpr int64_t kMinRows = 512, kMaxRows = 1024;
constexpr int64_t kLogitBytes = int64_t{16} << 20;  // at most, of one product
constexpr int64_t kTasks = 16;                      // at once, where there are heads enough
constexpr int64_t kKeyBytes = int64_t{64} << 20;    // of keys packed for them

// One operand seen as groups of tokens.
struct Groups {
  const TensorView& x;
  int64_t stride, count;

  int64_t size(int64_t g) const { return std::min(stride, x.shape[1] - g * stride); }
  int64_t tail() const { return size(count - 1); }
};

struct Scorer {
  OneDnn& dnn;
  Groups q, k;
  std::span<const int32_t> head_ids;
  int64_t d, stride, q_per_block, k_per_block, q_blocks, k_blocks;
  float sm_scale;
  bool compat;
  float num_zero = 0, zero_in_last = 0;  // padding groups with logit 0 (compat)
  const TensorView& out;
  bool widen = false;
  DType compute = DType::f32;
  int64_t chunk_blocks = 1;
  std::shared_ptr<const GemmPlan> plan;

  int64_t group_bytes() const { return stride * d * element_bytes(compute); }
  int64_t chunk_rows() const { return std::min(q.count, chunk_blocks * q_per_block); }
};

// Groups [first, first + rows) of a head -> `to`, dense; absent tokens of a short group are zero.
void read_groups(const Scorer& s, const Groups& groups, int64_t head, int64_t first, int64_t rows,
                 bool backwards, char* to) {
  const int64_t token_bytes = s.d * element_bytes(s.compute);
  for (int64_t g = first; g < first + rows; ++g, to += s.group_bytes()) {
    const int64_t size = groups.size(g);
    if (size < s.stride) std::memset(to, 0, static_cast<size_t>(s.group_bytes()));
    // compat turns the padded group round, so a short one starts with its zeros.
    const int64_t last = (s.compat ? s.stride : size) - 1;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t from = head * groups.x.stride[0] + (g * s.stride + i) * groups.x.stride[1];
      char* slot = to + (backwards ? last - i : i) * token_bytes;
      if (s.widen) {
        convert_row(static_cast<const BFloat16*>(groups.x.data) + from,
                    reinterpret_cast<float*>(slot), s.d);
      } else {
        std::memcpy(slot, at(groups.x, from), static_cast<size_t>(token_bytes));
      }
    }
  }
}

// Softmax over one row of dot products, summed per key block and added to mass. `size` = tokens of
// the query group.
void add_row(const Scorer& s, float* z, int64_t size, float* block, float* mass) {
  const int64_t n = s.k.count;
  const float last_pairs = static_cast<float>(s.compat ? s.stride : std::min(size, s.k.tail()));
  const float last = z[n - 1] * (s.sm_scale / last_pairs);
  const float scale = s.sm_scale / static_cast<float>(s.compat ? s.stride : size);
  const __m256 factor = _mm256_set1_ps(scale);
  float top = s.num_zero > 0 ? std::max(last, 0.0f) : last;
  __m256 high = _mm256_set1_ps(top);
  for_lanes(
      n - 1, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
        const __m256 v = _mm256_mul_ps(load_lanes(z + u, lanes), factor);
        // Absent lanes repeat the first, which is never beyond the maximum.
        high = _mm256_max_ps(
            high, lanes < 8 ? _mm256_blendv_ps(
                                  _mm256_set1_ps(z[u] * scale), v,
                                  keep_lanes(_mm256_castsi256_ps(_mm256_set1_epi32(-1)), lanes))
                            : v);
        store_lanes(z + u, v, lanes);
      });
  z[n - 1] = last;
  top = max8(high);
  const __m256 minus = _mm256_set1_ps(top);
  float total = s.num_zero > 0 ? s.num_zero * std::exp(-top) : 0.0f;
  for (int64_t b = 0; b < s.k_blocks; ++b) {
    const int64_t first = b * s.k_per_block, width = std::min(s.k_per_block, n - first);
    __m256 sum = _mm256_setzero_ps();
    for_lanes(
        width, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
          const __m256 e = exp8(_mm256_sub_ps(load_lanes(z + first + u, lanes), minus));
          sum = _mm256_add_ps(sum, keep_lanes(e, lanes));
        });
    block[b] = sum8(sum);
    total += block[b];
  }
  // Padding groups inside the last real block count for that block.
  if (s.zero_in_last > 0) block[s.k_blocks - 1] += s.zero_in_last * std::exp(-top);
  const __m256 inv = _mm256_set1_ps(1.0f / total);
  for_lanes(
      s.k_blocks, [&](int64_t b, int64_t lanes) __attribute__((always_inline)) {
        const __m256 m = load_lanes(mass + b, lanes);
        store_lanes(mass + b, _mm256_fmadd_ps(load_lanes(block + b, lanes), inv, m), lanes);
      });
}

struct ChunkScratch {
  int64_t product, rows, logits, masses;
  int64_t total() const { return product + rows + logits + masses; }
};

ChunkScratch chunk_scratch(const Scorer& s) {
  return {round_up(s.plan->scratch_bytes(), 64), round_up(s.chunk_rows() * s.group_bytes(), 64),
          round_up(s.chunk_rows() * s.k.count * 4, 64), round_up(2 * s.k_blocks * 4, 64)};
}

// Key groups of a head as the weights of the product; on all threads. `place` tells the heads of
// one batch apart.
const char* pack_keys(const Scorer& s, int64_t head, int64_t place, int64_t batch) {
  const TensorView& x = s.k.x;
  const char* plain = at(x, head * x.stride[0]);
  const bool packs = s.plan->packs();
  if (s.widen || x.stride[1] != s.d || x.shape[1] % s.stride != 0) {
    const int64_t bytes = round_up(s.k.count * s.group_bytes(), 64);
    char* groups = s.dnn.scratch("antidiagonal.groups", bytes * (packs ? 1 : batch)) +
                   (packs ? 0 : place * bytes);
    parallel_ranges(s.k.count, 16, [&](int64_t begin, int64_t end) {
      read_groups(s, s.k, head, begin, end - begin, false, groups + begin * s.group_bytes());
    });
    plain = groups;
  }
  if (!packs) return plain;
  const int64_t bytes = round_up(s.plan->weights_bytes(), 64);
  char* packed = s.dnn.scratch("antidiagonal.packed", bytes * batch) + place * bytes;
  s.plan->pack(plain, packed);
  return packed;
}

// Query blocks [first_block, ...) of a chunk of head_ids[index].
void score_chunk(const Scorer& s, int64_t index, int64_t first_block, const char* keys,
                 const ChunkScratch& sizes, char* own) {
  const int64_t first = first_block * s.q_per_block;
  const int64_t rows = std::min(s.chunk_rows(), s.q.count - first);
  char* groups = own + sizes.product;
  auto* logits = reinterpret_cast<float*>(groups + sizes.rows);
  auto* block = reinterpret_cast<float*>(groups + sizes.rows + sizes.logits);
  float* mass = block + s.k_blocks;
  read_groups(s, s.q, s.head_ids[index], first, rows, true, groups);
  s.plan->run(rows, groups, keys, nullptr, nullptr, logits, own);
  for (int64_t at_row = 0; at_row < rows; at_row += s.q_per_block) {
    const int64_t count = std::min(s.q_per_block, rows - at_row);
    std::fill(mass, mass + s.k_blocks, 0.0f);
    for (int64_t r = at_row; r < at_row + count; ++r)
      add_row(s, logits + r * s.k.count, s.q.size(first + r), block, mass);
    const int64_t qb = first_block + at_row / s.q_per_block;
    float* to = static_cast<float*>(s.out.data) + index * s.out.stride[0] + qb * s.out.stride[1];
    for (int64_t kb = 0; kb < s.k_blocks; ++kb)
      to[kb * s.out.stride[2]] = mass[kb] / static_cast<float>(count);
  }
}

void run(const Scorer& s) {
  const ChunkScratch sizes = chunk_scratch(s);
  const auto num_heads = static_cast<int64_t>(s.head_ids.size());
  const int64_t chunks = ceil_div(s.q_blocks, s.chunk_blocks);
  const int64_t fit = std::max<int64_t>(1, kKeyBytes / (s.k.count * s.group_bytes()));
  const int64_t batch = std::min({num_heads, ceil_div(kTasks, chunks), fit});
  const int64_t workers = std::min<int64_t>(num_threads(), batch * chunks);
  char* memory = s.dnn.scratch("antidiagonal.worker", sizes.total() * workers);
  std::vector<const char*> keys(static_cast<size_t>(batch));
  for (int64_t first = 0; first < num_heads; first += batch) {
    const int64_t count = std::min(batch, num_heads - first);
    for (int64_t i = 0; i < count; ++i)
      keys[static_cast<size_t>(i)] =
          pack_keys(s, s.head_ids[static_cast<size_t>(first + i)], i, batch);
    parallel_tasks(count * chunks, [&](int64_t task, int worker) {
      const int64_t i = task / chunks;
      score_chunk(s, first + i, task % chunks * s.chunk_blocks, keys[static_cast<size_t>(i)], sizes,
                  memory + worker * sizes.total());
    });
  }
}

}  // namespace

void antidiagonal_scores(OneDnn& dnn, const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out) {
  check_antidiagonal(Reach::host, q, k, head_ids, q_layout, k_layout, stride, out);
  if (head_ids.empty()) return;
  Scorer s{.dnn = dnn,
           .q = {q, stride, ceil_div(q.shape[1], stride)},
           .k = {k, stride, ceil_div(k.shape[1], stride)},
           .head_ids = head_ids,
           .d = q.shape[2],
           .stride = stride,
           .q_per_block = q_layout.block / stride,
           .k_per_block = k_layout.block / stride,
           .q_blocks = q_layout.num_blocks,
           .k_blocks = k_layout.num_blocks,
           .sm_scale = sm_scale,
           .compat = compat,
           .out = out};
  if (compat) {
    const CompatPadding padding = compat_padding(k.shape[1], stride, k_layout.block);
    s.num_zero = static_cast<float>(padding.groups);
    s.zero_in_last = static_cast<float>(padding.in_last_block);
  }
  s.widen = q.dtype == DType::bf16 && !dnn.native_bf16();
  s.compute = s.widen ? DType::f32 : q.dtype;
  const int64_t wanted = std::clamp<int64_t>(s.q.count / 4, kMinRows, kMaxRows);
  const int64_t rows = std::clamp<int64_t>(kLogitBytes / (s.k.count * 4), 1, wanted);
  s.chunk_blocks = std::max<int64_t>(1, rows / s.q_per_block);
  GemmSpec spec{.m = s.chunk_rows(), .n = s.k.count, .k = stride * s.d, .src = s.compute};
  spec.pack = true;
  s.plan = dnn.gemm(spec, s.q.count % spec.m);
  run(s);
}

}  // namespace lacuna::cpu
