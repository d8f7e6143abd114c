// SPDX-License-Identifier: Apache-2.0
// Block mass under a given normaliser: exp(sm_scale q.k - lse), summed over the keys of a block,
// averaged over the rows of a query block (AdaSpa, arXiv 2502.21079, the LSE-cached search).
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {

void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, const TensorView& out) {
  check_block_mass(Reach::host, q, k, lse, head_ids, q_layout, k_layout, out);
  const int64_t d = q.shape[2], num_q_blocks = q_layout.num_blocks;
  parallel_tasks(out.shape[0] * num_q_blocks, [&](int64_t task, int) {
    const int64_t i = task / num_q_blocks, head = head_ids[i];
    const auto qb = static_cast<int32_t>(task % num_q_blocks);
    std::vector<float> q_row(static_cast<size_t>(d)), k_row(static_cast<size_t>(d));
    for (int32_t kb = 0; kb < k_layout.num_blocks; ++kb) {
      double mass = 0.0;
      for (int64_t r = q_layout.begin(i, qb); r < q_layout.end(i, qb); ++r) {
        reader(q).row(head * q.stride[0] + r * q.stride[1], q_row);
        for (int64_t j = k_layout.begin(i, kb); j < k_layout.end(i, kb); ++j) {
          reader(k).row(head * k.stride[0] + j * k.stride[1], k_row);
          mass += std::exp(double{sm_scale} * dot(q_row.data(), k_row.data(), d) -
                           double{lse[head * q.shape[1] + r]});
        }
      }
      const int64_t rows = q_layout.size(i, qb);
      out.as<float>()[i * out.stride[0] + qb * out.stride[1] + kb * out.stride[2]] =
          rows == 0 ? 0.0f : static_cast<float>(mass / static_cast<double>(rows));
    }
  });
}

}  // namespace lacuna::ref
