// SPDX-License-Identifier: Apache-2.0
// Nearest centroids. |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), so the nearest centroid has the
// greatest x.c - |c|^2 / 2: the score pass of attention with tokens as queries, centroids as keys
// and a bias per key. Every instruction set's kernel serves as it is, no distance leaves L1, and an
// assignment costs num_centroids / (2 seq_len) of dense attention on any machine.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/cpu/select.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

constexpr int64_t kTilesPerTask = 4;

struct Assignment {
  const KernelOps& ops;
  const TensorView& x;
  std::span<const int32_t> head_ids;
  const TensorView& centroids;
  int32_t* labels;  // [head_ids.size(), tokens]
  AttendDType dtype;
  int64_t d, tokens, count;
  int64_t pieces;       // of at most kVoteKeys centroids, per head
  int64_t piece_bytes;  // of packed centroids
  char* packed = nullptr;
  float* bias = nullptr;  // [heads, pieces * kVoteKeys]: -|c|^2 / 2

  int32_t piece_size(int64_t piece) const {
    return static_cast<int32_t>(std::min<int64_t>(kVoteKeys, count - piece * kVoteKeys));
  }
};

// Piece `index` of all heads' centroids.
void pack_piece(const Assignment& a, int64_t index) {
  const int64_t i = index / a.pieces, piece = index % a.pieces;
  const int64_t offset = (i * a.count + piece * kVoteKeys) * a.d;
  const int32_t size = a.piece_size(piece);
  a.ops.pack_k({at(a.centroids, offset), a.d, a.dtype}, size, static_cast<int32_t>(a.d),
               a.packed + index * a.piece_bytes);
  with_type(a.centroids.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* c = static_cast<const T*>(a.centroids.data) + offset;
    for (int32_t j = 0; j < size; ++j, c += a.d) {
      double square = 0.0;
      for (int64_t n = 0; n < a.d; ++n)
        square += double{static_cast<float>(c[n])} * double{static_cast<float>(c[n])};
      a.bias[index * kVoteKeys + j] = static_cast<float>(-0.5 * square);
    }
  });
}

// One granule of rows: where a piece's maximum beats the best so far, the first centroid that has
// it becomes the label. s [keys][kGranule].
void update_labels(const float* s, int32_t keys, int32_t first, const float* mhat, float* best,
                   int32_t* label) {
  const __m256 top0 = _mm256_load_ps(mhat), top1 = _mm256_load_ps(mhat + 8);
  const __m256 best0 = _mm256_load_ps(best), best1 = _mm256_load_ps(best + 8);
  const __m256 nearer0 = _mm256_cmp_ps(top0, best0, _CMP_GT_OQ);
  const __m256 nearer1 = _mm256_cmp_ps(top1, best1, _CMP_GT_OQ);
  if (_mm256_movemask_ps(_mm256_or_ps(nearer0, nearer1)) == 0) return;
  __m256i index = _mm256_set1_epi32(first + keys - 1);
  const __m256i one = _mm256_set1_epi32(1);
  __m256 at0 = _mm256_setzero_ps(), at1 = at0;
  for (int32_t key = keys - 1; key >= 0; --key, index = _mm256_sub_epi32(index, one)) {
    const __m256 here0 = _mm256_cmp_ps(_mm256_load_ps(s + key * kGranule), top0, _CMP_EQ_OQ);
    const __m256 here1 = _mm256_cmp_ps(_mm256_load_ps(s + key * kGranule + 8), top1, _CMP_EQ_OQ);
    at0 = _mm256_blendv_ps(at0, _mm256_castsi256_ps(index), here0);
    at1 = _mm256_blendv_ps(at1, _mm256_castsi256_ps(index), here1);
  }
  _mm256_store_ps(best, _mm256_blendv_ps(best0, top0, nearer0));
  _mm256_store_ps(best + 8, _mm256_blendv_ps(best1, top1, nearer1));
  auto* bits = reinterpret_cast<float*>(label);
  _mm256_store_ps(bits, _mm256_blendv_ps(_mm256_load_ps(bits), at0, nearer0));
  _mm256_store_ps(bits + 8, _mm256_blendv_ps(_mm256_load_ps(bits + 8), at1, nearer1));
}

// Tokens [first, first + kVoteRows) of head_ids[i]. own: room for a packed tile, then its scores.
void label_tile(const Assignment& a, int64_t i, int64_t first, float* own) {
  const auto rows = static_cast<int32_t>(std::min<int64_t>(kVoteRows, a.tokens - first));
  const auto d = static_cast<int32_t>(a.d);
  float* scores = own + kVoteRows * a.d;
  TileRows state{};
  alignas(64) float best[kVoteRows];
  alignas(64) int32_t label[kVoteRows] = {};
  std::fill_n(best, kVoteRows, -std::numeric_limits<float>::infinity());
  const int64_t from = a.head_ids[i] * a.x.stride[0] + first * a.x.stride[1];
  a.ops.pack_q({at(a.x, from), a.x.stride[1], a.dtype}, rows, d, 1.0f, own);
  for (int64_t piece = 0; piece < a.pieces; ++piece) {
    const int64_t index = i * a.pieces + piece;
    const int32_t keys = a.piece_size(piece);
    a.ops.scores(a.packed + index * a.piece_bytes, own, keys, rows, d, 1.0f,
                 a.bias + index * kVoteKeys, scores, &state, nullptr, 0);
    for (int32_t row = 0; row < rows; row += kGranule)
      update_labels(scores + row * kVoteKeys, keys, static_cast<int32_t>(piece * kVoteKeys),
                    state.mhat + row, best + row, label + row);
  }
  std::copy_n(label, rows, a.labels + i * a.tokens + first);
}

}  // namespace

void nearest_centroids(OneDnn& dnn, const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, Isa isa, const TensorView& labels) {
  check_nearest(Reach::host, x, head_ids, centroids, labels);
  LACUNA_CHECK(x.shape[2] <= 1024, "nearest_centroids: {}, expected head_dim 1 to 1024",
               x.describe());
  const auto heads = static_cast<int64_t>(head_ids.size());
  if (heads == 0 || x.shape[1] == 0) return;
  const AttendDType dtype = x.dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  Assignment a{.ops = attend_kernel(dtype, static_cast<int32_t>(x.shape[2]), isa),
               .x = x,
               .head_ids = head_ids,
               .centroids = centroids,
               .labels = labels.as<int32_t>(),
               .dtype = dtype,
               .d = x.shape[2],
               .tokens = x.shape[1],
               .count = centroids.shape[1]};
  a.pieces = ceil_div(a.count, kVoteKeys);
  a.piece_bytes = int64_t{kVoteKeys} * a.d * a.ops.element_bytes;
  a.packed = dnn.scratch("nearest.packed", heads * a.pieces * a.piece_bytes);
  a.bias = reinterpret_cast<float*>(
      dnn.scratch("nearest.bias", heads * a.pieces * kVoteKeys * int64_t{sizeof(float)}));
  parallel_tasks(heads * a.pieces, [&](int64_t index, int) { pack_piece(a, index); });
  const int64_t own_floats = kVoteRows * (a.d + kVoteKeys);
  auto* own = reinterpret_cast<float*>(
      dnn.scratch("nearest.worker", own_floats * int64_t{sizeof(float)} * num_threads()));
  const int64_t parts = ceil_div(a.tokens, kTilesPerTask * kVoteRows);
  parallel_tasks(heads * parts, [&](int64_t task, int worker) {
    const int64_t begin = task % parts * kTilesPerTask * kVoteRows;
    const int64_t end = std::min(a.tokens, begin + kTilesPerTask * kVoteRows);
    if (a.ops.begin != nullptr) a.ops.begin();
    for (int64_t first = begin; first < end; first += kVoteRows)
      label_tile(a, task / parts, first, own + worker * own_floats);
    if (a.ops.end != nullptr) a.ops.end();
  });
}

}  // namespace lacuna::cpu
