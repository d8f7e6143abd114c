// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/cuda_backend.h"

#include <algorithm>

#include "lacuna/backend/cuda/attend.h"
#include "lacuna/backend/cuda/copy.h"
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/network.h"
#include "lacuna/backend/cuda/resident.h"
#include "lacuna/backend/cuda/select.h"

namespace lacuna {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<cuda::Device> device, std::optional<size_t> memory_limit)
      : device_(std::move(device)), weights_(*device_) {
    const auto held = static_cast<size_t>(device_->use().held);
    most_ = memory_limit.value_or(held + device_->free_memory() / 10 * 9);
    device_->set_limit(most_);
  }

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return "cuda " + device_->description(); }
  std::string rounding() const override { return description(); }  // kernels, and whose products
  std::string unsupported(const AttendParams& params) const override {
    return cuda::attend_unsupported(params);
  }

  lacuna::Device device() const override { return lacuna::Device::cuda; }
  void* allocate(size_t bytes) override { return device_->allocate(std::max<size_t>(bytes, 1)); }
  void release(void* memory) override {
    if (memory != nullptr) device_->release(memory);
  }
  MemoryUse memory_use() const override { return device_->use(); }
  void limit_memory(int64_t bytes) override {
    device_->set_limit(std::min(static_cast<size_t>(bytes), most_));
  }
  void finish() override { device_->synchronize(); }
  void copy(const TensorView& from, const TensorView& to) override {
    // Weights of another type than is computed with are converted at every use: from what is kept,
    // which is as they are stored.
    if (to.device == lacuna::Device::cpu || !cuda::reads(from.dtype) || !weights_.is_constant(from))
      return cuda::copy(*device_, from, to);
    const cuda::Resident::Weight weight = weights_.get(from);
    TensorView kept = from;
    kept.data = const_cast<void*>(weight.data());
    kept.device = lacuna::Device::cuda;
    cuda::copy(*device_, kept, to);
  }
  void constant(const void* begin, size_t bytes) override { weights_.constant(begin, bytes); }
  void forget(const void* begin) override { weights_.forget(begin); }

  void attend(const AttendParams& params) override { cuda::attend(*device_, params); }

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
  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    cuda::linear(*device_, weights_, x, w, bias, epilogue, gate, out);
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    cuda::layer_norm(*device_, x, weight, bias, scale, shift, eps, out);
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                const RopeTables* rope, int32_t num_heads, const TensorView& out) override {
    cuda::rms_norm(*device_, x, weight, eps, span, rope, num_heads, out);
  }
  void add(const TensorView& a, const TensorView& b, const TensorView& out) override {
    cuda::add(*device_, a, b, out);
  }
  void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                     const TensorView& out) override {
    cuda::gated_product(*device_, activation, gate, up, out);
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    cuda::conv3d(*device_, weights_, x, w, bias, conv, residual, out,
                 cuda::scratch_bytes(*device_, cuda::kPatchBytes));
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    cuda::channel_norm(*device_, x, gamma, silu, out);
  }
  void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                  float eps, bool silu, const TensorView& out) override {
    cuda::group_norm(*device_, x, num_groups, weight, bias, eps, silu, out);
  }

 private:
  std::unique_ptr<cuda::Device> device_;
  cuda::Resident weights_;
  size_t most_;  // of device memory, whatever else is said
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend() {
  return make_cuda_backend(cuda::make_driver_device());
}

std::unique_ptr<Backend> make_cuda_backend(std::unique_ptr<cuda::Device> device,
                                           std::optional<size_t> memory_limit) {
  return std::make_unique<CudaBackend>(std::move(device), memory_limit);
}

}  // namespace lacuna
