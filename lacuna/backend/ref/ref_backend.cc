// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/ref/ref_backend.h"

#include <fmt/core.h>

#include "lacuna/backend/ref/ops.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

class RefBackend final : public Backend {
 public:
  std::string_view name() const override { return "ref"; }
  std::string description() const override {
    return fmt::format("ref double sums, {} threads", num_threads());
  }
  std::string unsupported(const AttendParams& params) const override {
    return ref::attend_unsupported(params);
  }

  void attend(const AttendParams& params) override { ref::attend(params); }
  void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                 const float* lse_b) override {
    ref::merge_lse(out_a, lse_a, out_b, lse_b);
  }

  void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                  const TensorView& out) override {
    ref::block_mean(x, head_ids, layout, out);
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k,
                           std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                           const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                           const TensorView& out) override {
    ref::antidiagonal_scores(q, k, head_ids, q_layout, k_layout, sm_scale, stride, compat, out);
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    ref::block_mass(q, k, lse, head_ids, q_layout, k_layout, sm_scale, out);
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                         const TensorView& centroids, const TensorView& labels) override {
    ref::nearest_centroids(x, head_ids, centroids, labels);
  }
  void select_top_p(const TensorView& scores, std::span<const float> top_p,
                    BlockMask& mask) override {
    ref::select_top_p(scores, top_p, mask);
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                    BlockMask& mask) override {
    ref::select_top_k(scores, top_k, mask);
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                     const TensorView& out) override {
    ref::gather_tokens(x, order, order_head_stride, out);
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                      const TensorView& out) override {
    ref::scatter_tokens(x, order, order_head_stride, out);
  }

  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    ref::linear(x, w, bias, epilogue, gate, out);
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    ref::layer_norm(x, weight, bias, scale, shift, eps, out);
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                const RopeTables* rope, int32_t num_heads, const TensorView& out) override {
    ref::rms_norm(x, weight, eps, span, rope, num_heads, out);
  }
  void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                     const TensorView& out) override {
    ref::gated_product(activation, gate, up, out);
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    ref::conv3d(x, w, bias, conv, residual, out);
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    ref::channel_norm(x, gamma, silu, out);
  }
  void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                  float eps, bool silu, const TensorView& out) override {
    ref::group_norm(x, num_groups, weight, bias, eps, silu, out);
  }
};

}  // namespace

std::unique_ptr<Backend> make_ref_backend() {
  return std::make_unique<RefBackend>();
}

}  // namespace lacuna
