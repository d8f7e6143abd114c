// SPDX-License-Identifier: Apache-2.0
// XAttention block scores, arXiv 2503.16428 Alg. 1 with the scale of the published code:
//   L[g][u] = sum_i q[gS + S-1-i] . k[uS + i],  A = softmax_u(L sm_scale / S),
//   out[r][c] = mean over groups g of block r of the sum over groups u of block c of A[g][u].
#include <algorithm>
#include <bit>
#include <vector>

#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/round.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

// Key length after the padding of the published code: a whole number of query chunks.
int64_t padded_len(int64_t len) {
  const int64_t pow2 = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(len)));
  const int64_t chunk =
      std::max<int64_t>(std::min(std::max<int64_t>(2048, pow2), (int64_t{1} << 28) / pow2), 2048);
  return ceil_div(len, chunk) * chunk;
}

// Zero-filled groups of `stride` tokens, [num_groups, stride, d]; queries backwards.
struct Groups {
  int64_t seq_len, stride, num_groups;
  std::vector<float> data;

  int64_t size(int64_t g) const { return std::clamp<int64_t>(seq_len - g * stride, 0, stride); }
};

Groups read_groups(const TensorView& x, int64_t head, int64_t stride, bool reversed, bool compat) {
  const int64_t len = x.shape[1], d = x.shape[2];
  Groups groups{len, stride, ceil_div(len, stride), {}};
  groups.data.assign(static_cast<size_t>(groups.num_groups * stride * d), 0.0f);
  for (int64_t t = 0; t < len; ++t) {
    const int64_t g = t / stride, i = t % stride;
    // compat reverses the padded group, so a short one starts with zeros.
    const int64_t last = compat ? stride - 1 : groups.size(g) - 1;
    const int64_t slot = reversed ? last - i : i;
    reader(x).row(head * x.stride[0] + t * x.stride[1],
                  std::span(groups.data).subspan((g * stride + slot) * d, d));
  }
  return groups;
}

// Softmax of z, to which `num_zero` entries 0 are added (padding keys); their share is cut off.
void softmax(std::vector<double>& z, int64_t num_zero) {
  double m = num_zero > 0 ? 0.0 : z[0];
  for (double x : z) m = std::max(m, x);
  double sum = num_zero > 0 ? static_cast<double>(num_zero) * std::exp(-m) : 0.0;
  for (double& x : z) sum += (x = std::exp(x - m));
  for (double& x : z) x /= sum;
}

}  // namespace

void antidiagonal_scores(const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out) {
  check_antidiagonal(Reach::host, q, k, head_ids, q_layout, k_layout, stride, out);
  const int64_t d = q.shape[2];
  const int64_t num_zero =
      compat ? ceil_div(padded_len(k.shape[1]), stride) - ceil_div(k.shape[1], stride) : 0;
  // Padding keys inside the last real block count for that block.
  const int64_t zero_in_last =
      std::min(num_zero, int64_t{k_layout.num_blocks} * (k_layout.block / stride) -
                             ceil_div(k.shape[1], stride));
  for (size_t i = 0; i < head_ids.size(); ++i) {
    const Groups qg = read_groups(q, head_ids[i], stride, true, compat);
    const Groups kg = read_groups(k, head_ids[i], stride, false, compat);
    parallel_tasks(q_layout.num_blocks, [&](int64_t qb, int) {
      const int64_t per_block = q_layout.block / stride;
      const int64_t first = qb * per_block, last = std::min(first + per_block, qg.num_groups);
      std::vector<double> mass(static_cast<size_t>(k_layout.num_blocks));
      std::vector<double> z;
      for (int64_t g = first; g < last; ++g) {
        z.assign(static_cast<size_t>(kg.num_groups), 0.0);
        for (int64_t u = 0; u < kg.num_groups; ++u) {
          const int64_t pairs = compat ? stride : std::min(qg.size(g), kg.size(u));
          z[u] = double{sm_scale} / static_cast<double>(pairs) *
                 dot(qg.data.data() + g * stride * d, kg.data.data() + u * stride * d, stride * d);
        }
        softmax(z, num_zero);
        double real = 0.0;
        for (int64_t u = 0; u < kg.num_groups; ++u) {
          mass[u * stride / k_layout.block] += z[u];
          real += z[u];
        }
        if (num_zero > 0)
          mass.back() += (1.0 - real) * static_cast<double>(zero_in_last) / num_zero;
      }
      for (int32_t kb = 0; kb < k_layout.num_blocks; ++kb)
        out.as<float>()[static_cast<int64_t>(i) * out.stride[0] + qb * out.stride[1] +
                        kb * out.stride[2]] =
            static_cast<float>(mass[kb] / static_cast<double>(last - first));
    });
  }
}

}  // namespace lacuna::ref
