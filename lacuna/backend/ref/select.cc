// SPDX-License-Identifier: Apache-2.0
// Pooling, block selection and token permutation.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

void check_scores(const char* who, const TensorView& scores, size_t num_params,
                  const BlockMask& mask) {
  check_rank(who, scores, 3);
  LACUNA_CHECK(scores.dtype == DType::f32, "{}: scores {}, expected f32", who, scores.describe());
  LACUNA_CHECK(scores.shape[0] == mask.num_heads() && scores.shape[1] == mask.num_q_blocks() &&
                   scores.shape[2] == mask.num_k_blocks(),
               "{}: scores {}, expected [{}, {}, {}] as the mask", who, scores.describe(),
               mask.num_heads(), mask.num_q_blocks(), mask.num_k_blocks());
  LACUNA_CHECK(static_cast<int64_t>(num_params) == mask.num_heads(),
               "{}: {} parameters, expected one for each of {} heads", who, num_params,
               mask.num_heads());
}

std::vector<float> score_row(const TensorView& scores, int64_t head, int64_t qb) {
  std::vector<float> row(static_cast<size_t>(scores.shape[2]));
  const float* at = scores.as<float>() + head * scores.stride[0] + qb * scores.stride[1];
  for (size_t kb = 0; kb < row.size(); ++kb)
    row[kb] = at[static_cast<int64_t>(kb) * scores.stride[2]];
  return row;
}

// Key blocks from the highest score to the lowest; equal scores in ascending order.
std::vector<int32_t> ranking(const std::vector<float>& row) {
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return row[a] > row[b]; });
  return order;
}

void check_order(const char* who, const TensorView& x, const int32_t* order, const TensorView& out,
                 bool scatter) {
  check_rank(who, x, 3);
  check_rank(who, out, 3);
  LACUNA_CHECK(x.shape[0] == out.shape[0] && x.shape[2] == out.shape[2] &&
                   (!scatter || x.shape[1] == out.shape[1]),
               "{}: {} to {}, expected equal heads and channels, and for a scatter equal tokens",
               who, x.describe(), out.describe());
  check_channels(who, x);
  check_channels(who, out);
  LACUNA_CHECK(x.dtype == out.dtype && !is_quantized(x.dtype), "{}: {} to {}, expected one dtype",
               who, x.describe(), out.describe());
  LACUNA_CHECK(order != nullptr || out.numel() == 0, "{}: order null", who);
}

void check_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                     const TensorView& centroids, const TensorView& labels) {
  const char* who = "nearest_centroids";
  check_real(who, x);
  check_rank(who, x, 3);
  check_channels(who, x);
  const auto heads = static_cast<int64_t>(head_ids.size());
  LACUNA_CHECK(centroids.rank == 3 && centroids.dtype == x.dtype && centroids.contiguous() &&
                   centroids.shape[0] == heads && centroids.shape[1] > 0 &&
                   centroids.shape[2] == x.shape[2],
               "{}: centroids {}, expected [{}, 1 or more, {}] {}, contiguous", who,
               centroids.describe(), heads, x.shape[2], dtype_name(x.dtype));
  LACUNA_CHECK(labels.rank == 2 && labels.dtype == DType::i32 && labels.contiguous() &&
                   labels.shape[0] == heads && labels.shape[1] == x.shape[1],
               "{}: labels {}, expected [{}, {}] i32, contiguous", who, labels.describe(), heads,
               x.shape[1]);
  for (int32_t h : head_ids)
    LACUNA_CHECK(h >= 0 && h < x.shape[0], "{}: head {} of {}", who, h, x.describe());
}

// x[order[p]] -> out[p], or x[p] -> out[order[p]] when `scatter`.
void permute(const char* who, const TensorView& x, const int32_t* order, int64_t order_head_stride,
             const TensorView& out, bool scatter) {
  check_order(who, x, order, out, scatter);
  const int64_t size = storage_bytes(x.dtype, 1), seq_len = x.shape[1];
  parallel_tasks(x.shape[0], [&](int64_t h, int) {
    for (int64_t p = 0; p < out.shape[1]; ++p) {
      const int64_t token = order[h * order_head_stride + p];
      LACUNA_CHECK(token >= 0 && token < seq_len,
                   "{}: order {} at head {} position {}, expected 0 to {}", who, token, h, p,
                   seq_len - 1);
      const int64_t from = scatter ? p : token, to = scatter ? token : p;
      std::memcpy(static_cast<char*>(out.data) + (h * out.stride[0] + to * out.stride[1]) * size,
                  static_cast<const char*>(x.data) + (h * x.stride[0] + from * x.stride[1]) * size,
                  static_cast<size_t>(x.shape[2] * size));
    }
  });
}

}  // namespace

void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                const TensorView& out) {
  check_real("block_mean", x);
  check_rank("block_mean", x, 3);
  check_rank("block_mean", out, 3);
  check_channels("block_mean", x);
  const int64_t d = x.shape[2], num_blocks = layout.num_blocks;
  LACUNA_CHECK(layout.seq_len == x.shape[1], "block_mean: layout of {} tokens for {}",
               layout.seq_len, x.describe());
  LACUNA_CHECK(out.dtype == DType::f32 && out.shape[0] == static_cast<int64_t>(head_ids.size()) &&
                   out.shape[1] == num_blocks && out.shape[2] == d,
               "block_mean: out {}, expected [{}, {}, {}] f32", out.describe(), head_ids.size(),
               num_blocks, d);
  for (int32_t h : head_ids)
    LACUNA_CHECK(h >= 0 && h < x.shape[0], "block_mean: head {} of {}", h, x.describe());
  parallel_tasks(out.shape[0] * num_blocks, [&](int64_t task, int) {
    const int64_t i = task / num_blocks;
    const auto b = static_cast<int32_t>(task % num_blocks);
    std::vector<double> sum(static_cast<size_t>(d));
    for (int64_t t = layout.begin(i, b); t < layout.end(i, b); ++t)
      for (int64_t c = 0; c < d; ++c)
        sum[c] += reader(x)[head_ids[i] * x.stride[0] + t * x.stride[1] + c];
    const double n = static_cast<double>(std::max<int64_t>(layout.size(i, b), 1));
    for (int64_t c = 0; c < d; ++c)
      out.as<float>()[i * out.stride[0] + b * out.stride[1] + c * out.stride[2]] =
          static_cast<float>(sum[c] / n);
  });
}

void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, const TensorView& labels) {
  check_centroids(x, head_ids, centroids, labels);
  const int64_t d = x.shape[2], tokens = x.shape[1], count = centroids.shape[1];
  parallel_tasks(labels.shape[0], [&](int64_t i, int) {
    std::vector<float> c(static_cast<size_t>(count * d)), token(static_cast<size_t>(d));
    reader(centroids).row(i * centroids.stride[0], c);
    std::vector<double> norm(static_cast<size_t>(count));
    for (int64_t j = 0; j < count; ++j) norm[j] = dot(&c[j * d], &c[j * d], d);
    for (int64_t t = 0; t < tokens; ++t) {
      reader(x).row(head_ids[i] * x.stride[0] + t * x.stride[1], token);
      int32_t best = 0;
      double least = std::numeric_limits<double>::infinity();
      for (int64_t j = 0; j < count; ++j) {
        const double distance = norm[j] - 2.0 * dot(token.data(), &c[j * d], d);
        if (distance < least) {
          least = distance;
          best = static_cast<int32_t>(j);
        }
      }
      labels.as<int32_t>()[i * tokens + t] = best;
    }
  });
}

void select_top_p(const TensorView& scores, std::span<const float> top_p, BlockMask& mask) {
  check_scores("select_top_p", scores, top_p.size(), mask);
  for (float p : top_p)
    LACUNA_CHECK(p >= 0.0f && p <= 1.0f, "select_top_p: top_p {}, expected 0 to 1", p);
  if (mask.num_k_blocks() == 0) return;
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    const std::vector<float> row = score_row(scores, h, qb);
    for (float x : row)
      LACUNA_CHECK(x >= 0.0f && std::isfinite(x),
                   "select_top_p: score {} at head {} query block {}, expected finite, 0 or more",
                   x, h, qb);
    const std::vector<int32_t> order = ranking(row);
    double total = 0.0, before = 0.0;
    for (int32_t kb : order) total += row[kb];
    for (size_t i = 0; i < order.size(); ++i) {
      if (i > 0 && !(before < double{top_p[h]} * total)) break;
      mask.set(h, qb, order[i]);
      before += row[order[i]];
    }
  });
}

void select_top_k(const TensorView& scores, std::span<const int32_t> top_k, BlockMask& mask) {
  check_scores("select_top_k", scores, top_k.size(), mask);
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    const std::vector<float> row = score_row(scores, h, qb);
    for (float x : row)
      LACUNA_CHECK(!std::isnan(x), "select_top_k: score NaN at head {} query block {}", h, qb);
    const std::vector<int32_t> order = ranking(row);
    const int64_t count = std::min<int64_t>(std::max(top_k[h], 1), mask.num_k_blocks());
    for (int64_t i = 0; i < count; ++i) mask.set(h, qb, order[i]);
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

}  // namespace lacuna::ref
