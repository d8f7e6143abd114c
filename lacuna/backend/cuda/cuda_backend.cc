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
      "cuda: {} is not implemented on this backend, expected attention or compact; use "
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

  void merge_lse(const TensorView&, float*, const TensorView&, const float*) override {
    absent("merge_lse");
  }
  void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                  const TensorView& out) override {
    cuda::block_mean(*device_, x, head_ids, layout, out);
  }
  void antidiagonal_scores(const TensorView&, const TensorView&, std::span<const int32_t>,
                           const BlockLayout&, const BlockLayout&, float, int32_t, bool,
                           const TensorView&) override {
    absent("antidiagonal_scores");
  }
  void block_mass(const TensorView&, const TensorView&, const float*, std::span<const int32_t>,
                  const BlockLayout&, const BlockLayout&, float, const TensorView&) override {
    absent("block_mass");
  }
  void nearest_centroids(const TensorView&, std::span<const int32_t>, const TensorView&,
                         const TensorView&) override {
    absent("nearest_centroids");
  }
  void select_top_p(const TensorView&, std::span<const float>, BlockMask&) override {
    absent("select_top_p");
  }
  void select_top_k(const TensorView&, std::span<const int32_t>, BlockMask&) override {
    absent("select_top_k");
  }
  void gather_tokens(const TensorView&, const int32_t*, int64_t, const TensorView&) override {
    absent("gather_tokens");
  }
  void scatter_tokens(const TensorView&, const int32_t*, int64_t, const TensorView&) override {
    absent("scatter_tokens");
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
