// SPDX-License-Identifier: Apache-2.0
// Block mass under a given normaliser: exp(sm_scale q.k - lse), summed over the keys of a block,
// averaged over the rows of a query block (AdaSpa, arXiv 2502.21079, the LSE-cached search).
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {

void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, const TensorView& out) {
  constexpr const char* kWho = "block_mass";
  for (const TensorView* x : {&q, &k}) {
    check_real(kWho, *x);
    check_rank(kWho, *x, 3);
    check_channels(kWho, *x);
  }
  check_rank(kWho, out, 3);
  LACUNA_CHECK(
      q.shape[2] == k.shape[2] && q_layout.seq_len == q.shape[1] && k_layout.seq_len == k.shape[1],
      "{}: q {} and k {}, expected one head_dim and {} and {} tokens", kWho, q.describe(),
      k.describe(), q_layout.seq_len, k_layout.seq_len);
  LACUNA_CHECK(out.dtype == DType::f32 && out.shape[0] == static_cast<int64_t>(head_ids.size()) &&
                   out.shape[1] == q_layout.num_blocks && out.shape[2] == k_layout.num_blocks,
               "{}: out {}, expected [{}, {}, {}] f32", kWho, out.describe(), head_ids.size(),
               q_layout.num_blocks, k_layout.num_blocks);
  LACUNA_CHECK(lse != nullptr || out.numel() == 0, "{}: lse null", kWho);
  for (int32_t h : head_ids)
    LACUNA_CHECK(h >= 0 && h < q.shape[0] && h < k.shape[0], "{}: head {} of q {} and k {}", kWho,
                 h, q.describe(), k.describe());
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
