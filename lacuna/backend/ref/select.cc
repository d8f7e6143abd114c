// SPDX-License-Identifier: Apache-2.0
// Pooling, block selection and token permutation.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

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

// x[order[p]] -> out[p], or x[p] -> out[order[p]] when `scatter`.
void permute(const char* who, const TensorView& x, const int32_t* order, int64_t order_head_stride,
             const TensorView& out, bool scatter) {
  check_permute(who, Reach::host, x, order, out, scatter);
  const int64_t size = storage_bytes(x.dtype, 1), seq_len = x.shape[1];
  parallel_tasks(x.shape[0], [&](int64_t h, int) {
    for (int64_t p = 0; p < out.shape[1]; ++p) {
      const int64_t token = order[h * order_head_stride + p];
      check_token(who, token, h, p, seq_len);
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
  check_block_mean(Reach::host, x, head_ids, layout, out);
  const int64_t d = x.shape[2], num_blocks = layout.num_blocks;
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
  check_nearest(Reach::host, x, head_ids, centroids, labels);
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
  check_top_p(Reach::host, scores, top_p, mask);
  if (mask.num_k_blocks() == 0) return;
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    const std::vector<float> row = score_row(scores, h, qb);
    for (float x : row) check_top_p_score(x, h, qb);
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
  check_top_k(Reach::host, scores, top_k, mask);
  parallel_tasks(mask.num_heads() * mask.num_q_blocks(), [&](int64_t task, int) {
    const int64_t h = task / mask.num_q_blocks();
    const auto qb = static_cast<int32_t>(task % mask.num_q_blocks());
    const std::vector<float> row = score_row(scores, h, qb);
    for (float x : row) check_top_k_score(x, h, qb);
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
