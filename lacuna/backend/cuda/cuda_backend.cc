// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/cuda_backend.h"

#include "lacuna/backend/cuda/attend.h"
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/select.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// An op that silently ran elsewhere would hide a slow path.
[[noreturn]] void absent(const char* op) {
  fail(
      "cuda: {} is not implemented on this backend, expected attention or selection; use "
      "--backend cpu",
      op);
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::unique_ptr<cuda::Device> device) : device_(std::move(device)) {}

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return "cuda " + device_->description(); }
  std::string unsupported(const AttendParams& params) const override {
    return cuda::attend_unsupported(params);
  }

  void attend(const AttendParams& params) override { cuda::attend(*device_, params); }
  BlockIndex compact(const BlockMask& mask, VisitOrder order) override {
    return compact_blocks(mask, order);
  }

  void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                 const float* lse_b) override {
    cuda::merge_lse(*device_, out_a, lse_a, out_b, lse_b);
  }
  void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                  const TensorView& out) override {
    cuda::block_mean(*device_, x, head_ids, layout, out);
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k,
                           std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                           const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                           const TensorView& out) override {
    cuda::antidiagonal_scores(*device_, q, k, head_ids, q_layout, k_layout, sm_scale, stride,
                              compat, out);
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    cuda::block_mass(*device_, q, k, lse, head_ids, q_layout, k_layout, sm_scale, out);
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                         const TensorView& centroids, const TensorView& labels) override {
    cuda::nearest_centroids(*device_, x, head_ids, centroids, labels);
  }
  void select_top_p(const TensorView& scores, std::span<const float> top_p,
                    BlockMask& mask) override {
    cuda::select_top_p(*device_, scores, top_p, mask);
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                    BlockMask& mask) override {
    cuda::select_top_k(*device_, scores, top_k, mask);
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                     const TensorView& out) override {
    cuda::gather_tokens(*device_, x, order, order_head_stride, out);
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                      const TensorView& out) override {
    cuda::scatter_tokens(*device_, x, order, order_head_stride, out);
  }
  void linear(const TensorView&, const TensorView&, const float*, Epilogue, const float*,
              const TensorView&) override {
    absent("linear");
  }
  void layer_norm(const TensorView&, const float*, const float*, const float*, const float*, float,
                  const TensorView&) override {
    absent("layer_norm");
  }
  void rms_norm(const TensorView&, const float*, float, const RopeTables*, int32_t,
                const TensorView&) override {
    absent("rms_norm");
  }
  void gelu_mul(const TensorView&, const TensorView&, const TensorView&) override {
    absent("gelu_mul");
  }
  void conv3d(const TensorView&, const TensorView&, const float*, const ConvParams&,
              const TensorView*, const TensorView&) override {
    absent("conv3d");
  }
  void channel_norm(const TensorView&, const float*, bool, const TensorView&) override {
    absent("channel_norm");
  }

 private:
  std::unique_ptr<cuda::Device> device_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend() {
  return make_cuda_backend(cuda::make_driver_device());
}

std::unique_ptr<Backend> make_cuda_backend(std::unique_ptr<cuda::Device> device) {
  return std::make_unique<CudaBackend>(std::move(device));
}

}  // namespace lacuna
