// SPDX-License-Identifier: Apache-2.0
// Pooling, top-p and top-k selection, token permutation and the merge of partial attentions.
#include "lacuna/backend/cpu/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>
#include <vector>

#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

// Mean of `tokens` rows of `lanes8` vectors (at most 8). Partial sums over 64 rows keep the error
// of long blocks at a few ulp.
template <typename T>
void mean_columns(const T* x, int64_t token_stride, int64_t tokens, int64_t channels, float* out) {
  constexpr int64_t kPart = 64;
  __m256 total[8];
  const int64_t vectors = ceil_div(channels, 8);
  for (auto& t : total) t = _mm256_setzero_ps();
  for (int64_t first = 0; first < tokens; first += kPart) {
    const int64_t last = std::min(tokens, first + kPart);
    __m256 part[8];
    for (auto& p : part) p = _mm256_setzero_ps();
    for (int64_t t = first; t < last; ++t) {
      const T* row = x + t * token_stride;
      if (channels == 64) {
        for (int64_t v = 0; v < 8; ++v) part[v] = _mm256_add_ps(part[v], load8(row + v * 8));
      } else {
        for (int64_t v = 0; v < vectors; ++v)
          part[v] = _mm256_add_ps(part[v], load_lanes(row + v * 8, channels - v * 8));
      }
    }
    for (int64_t v = 0; v < 8; ++v) total[v] = _mm256_add_ps(total[v], part[v]);
  }
  const __m256 factor = _mm256_set1_ps(1.0f / static_cast<float>(std::max<int64_t>(tokens, 1)));
  for (int64_t v = 0; v < vectors; ++v)
    store_lanes(out + v * 8, _mm256_mul_ps(total[v], factor), channels - v * 8);
}

// A score and its block as one integer: higher scores are greater; among equals, lower blocks are.
uint64_t rank_key(float score, int64_t block) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 and +0 are equal
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | (0xffffffffu - static_cast<uint32_t>(block));
}

int32_t key_block(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

float key_score(uint64_t key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

void keep(std::span<uint64_t> row, int32_t block) {
  row[block / 64] |= uint64_t{1} << (block % 64);
}

// Keys of one row of scores.
template <void (*kCheck)(float score, int64_t head, int64_t q_block)>
void read_keys(const TensorView& scores, int64_t head, int64_t qb, std::vector<uint64_t>& keys) {
  const auto* row =
      static_cast<const float*>(scores.data) + head * scores.stride[0] + qb * scores.stride[1];
  keys.resize(static_cast<size_t>(scores.shape[2]));
  for (int64_t kb = 0; kb < scores.shape[2]; ++kb) {
    const float score = row[kb * scores.stride[2]];
    kCheck(score, head, qb);
    keys[static_cast<size_t>(kb)] = rank_key(score, kb);
  }
}

// Keeps the shortest prefix of the ranking whose mass reaches p. Ranks only as far as it must: the
// next part is cut off with nth_element, then sorted.
void keep_top_p(std::vector<uint64_t>& keys, double p, std::span<uint64_t> row) {
  double total = 0.0, before = 0.0;
  // With p = 1 rounding decides about the last blocks: take the sum in the order of the ranking.
  if (p >= 1.0) std::sort(keys.begin(), keys.end(), std::greater<>());
  for (uint64_t key : keys) total += double{key_score(key)};
  size_t ranked = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (i > 0 && !(before < p * total)) return;
    if (i == ranked) {
      const size_t part = std::min(keys.size() - i, std::max<size_t>(32, i));
      const auto begin = keys.begin() + static_cast<std::ptrdiff_t>(i);
      const auto end = begin + static_cast<std::ptrdiff_t>(part);
      if (end != keys.end()) std::nth_element(begin, end - 1, keys.end(), std::greater<>());
      std::sort(begin, end, std::greater<>());
      ranked = i + part;
    }
    keep(row, key_block(keys[i]));
    before += double{key_score(keys[i])};
  }
}

void permute(const char* who, const TensorView& x, const int32_t* order, int64_t order_head_stride,
             const TensorView& out, bool scatter) {
  check_permute(who, Reach::host, x, order, out, scatter);
  if (out.numel() == 0) return;
  constexpr int64_t kGrain = 256;
  const int64_t size = storage_bytes(x.dtype, 1), seq_len = x.shape[1], rows = out.shape[1];
  const int64_t parts = ceil_div(rows, kGrain);
  const auto row_bytes = static_cast<size_t>(x.shape[2] * size);
  parallel_tasks(x.shape[0] * parts, [&](int64_t task, int) {
    const int64_t h = task / parts, begin = task % parts * kGrain;
    const char* from = static_cast<const char*>(x.data) + h * x.stride[0] * size;
    char* to = static_cast<char*>(out.data) + h * out.stride[0] * size;
    for (int64_t p = begin; p < std::min(rows, begin + kGrain); ++p) {
      const int64_t token = order[h * order_head_stride + p];
      check_token(who, token, h, p, seq_len);
      std::memcpy(to + (scatter ? token : p) * out.stride[1] * size,
                  from + (scatter ? p : token) * x.stride[1] * size, row_bytes);
    }
  });
}

template <typename T>
void merge_row(T* a, const T* b, float weight_a, float weight_b, int64_t d) {
  const __m256 wa = _mm256_set1_ps(weight_a), wb = _mm256_set1_ps(weight_b);
  for_lanes(
      d, [&](int64_t c, int64_t lanes) __attribute__((always_inline)) {
        const __m256 y = _mm256_mul_ps(load_lanes(b + c, lanes), wb);
        store_lanes(a + c, _mm256_fmadd_ps(load_lanes(a + c, lanes), wa, y), lanes);
      });
}

}  // namespace

void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b, const float* lse_b) {
  check_merge(Reach::host, out_a, lse_a, out_b, lse_b);
  const int64_t q_len = out_a.shape[1], d = out_a.shape[2];
  if (out_a.shape[0] * q_len == 0) return;
  with_type(out_a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(out_a.shape[0] * q_len, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const double a = lse_a[row], b = lse_b[row];
        if (b == -std::numeric_limits<double>::infinity()) continue;  // nothing to add
        const double m = std::max(a, b);
        const double lse = m + std::log(std::exp(a - m) + std::exp(b - m));
        const int64_t h = row / q_len, i = row % q_len;
        merge_row(static_cast<T*>(out_a.data) + h * out_a.stride[0] + i * out_a.stride[1],
                  static_cast<const T*>(out_b.data) + h * out_b.stride[0] + i * out_b.stride[1],
                  static_cast<float>(std::exp(a - lse)), static_cast<float>(std::exp(b - lse)), d);
        lse_a[row] = static_cast<float>(lse);
      }
    });
  });
}

void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                const TensorView& out) {
  check_block_mean(Reach::host, x, head_ids, layout, out);
  check_channels("block_mean", out);
  const int64_t d = x.shape[2], num_blocks = layout.num_blocks;
  with_type(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_tasks(out.shape[0] * num_blocks, [&](int64_t task, int) {
      const int64_t i = task / num_blocks;
      const auto b = static_cast<int32_t>(task % num_blocks);
      const T* from = static_cast<const T*>(x.data) + head_ids[i] * x.stride[0] +
                      layout.begin(i, b) * x.stride[1];
      float* to = static_cast<float*>(out.data) + i * out.stride[0] + b * out.stride[1];
      for (int64_t c = 0; c < d; c += 64)
        mean_columns(from + c, x.stride[1], layout.size(i, b), std::min<int64_t>(64, d - c),
                     to + c);
    });
  });
}

void select_top_p(const TensorView& scores, std::span<const float> top_p, BlockMask& mask) {
  check_top_p(Reach::host, scores, top_p, mask);
  if (mask.num_k_blocks() == 0) return;
  std::vector<std::vector<uint64_t>> keys(static_cast<size_t>(num_threads()));
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int worker) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    read_keys<check_top_p_score>(scores, h, qb, keys[worker]);
    keep_top_p(keys[worker], top_p[h], mask.row(h, qb));
  });
}

void select_top_k(const TensorView& scores, std::span<const int32_t> top_k, BlockMask& mask) {
  check_top_k(Reach::host, scores, top_k, mask);
  if (mask.num_k_blocks() == 0) return;
  std::vector<std::vector<uint64_t>> keys(static_cast<size_t>(num_threads()));
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int worker) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    std::vector<uint64_t>& row = keys[worker];
    read_keys<check_top_k_score>(scores, h, qb, row);
    const int64_t count = std::clamp<int64_t>(top_k[h], 1, mask.num_k_blocks());
    const auto last = row.begin() + (count - 1);
    std::nth_element(row.begin(), last, row.end(), std::greater<>());
    for (int64_t i = 0; i < count; ++i) keep(mask.row(h, qb), key_block(row[i]));
  });
}

void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                   const TensorView& out) {
  permute("gather_tokens", x, order, order_head_stride, out, false);
}

void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                    const TensorView& out) {
  permute("scatter_tokens", x, order, order_head_stride, out, true);
}

}  // namespace lacuna::cpu
