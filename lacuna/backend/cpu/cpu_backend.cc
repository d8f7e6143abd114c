// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/cpu_backend.h"

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/attend_levels.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/select.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// oneDNN's own exception becomes ours.
template <typename F>
void translate(const char* who, F&& f) {
  try {
    f();
  } catch (const dnnl::error& e) {
    fail("{}: oneDNN status {}, {}", who, static_cast<int>(e.status), e.what());
  }
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(cpu::Isa isa, cpu::AttendLevels levels) : levels_(std::move(levels)), dnn_(isa) {}

  std::string_view name() const override { return "cpu"; }
  std::string description() const override {
    return fmt::format("cpu {}, {} threads", levels_.text(), num_threads());
  }
  std::string rounding() const override { return fmt::format("cpu {}", levels_.text()); }
  std::string unsupported(const AttendParams& params) const override {
    return cpu::attend_unsupported(params);
  }

  void attend(const AttendParams& params) override {
    cpu::attend(params, levels_.of(params.dtype, params.head_dim));
  }
  void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                 const float* lse_b) override {
    cpu::merge_lse(out_a, lse_a, out_b, lse_b);
  }

  void block_mean(const TensorView& x, std::span<const int32_t> head_ids, const BlockLayout& layout,
                  const TensorView& out) override {
    cpu::block_mean(x, head_ids, layout, out);
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k,
                           std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                           const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                           const TensorView& out) override {
    translate("antidiagonal_scores", [&] {
      cpu::antidiagonal_scores(dnn_, q, k, head_ids, q_layout, k_layout, sm_scale, stride, compat,
                               out);
    });
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    cpu::block_mass(q, k, lse, head_ids, q_layout, k_layout, sm_scale, level_of(q), out);
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                         const TensorView& centroids, const TensorView& labels) override {
    cpu::nearest_centroids(dnn_, x, head_ids, centroids, level_of(x), labels);
  }
  void select_top_p(const TensorView& scores, std::span<const float> top_p,
                    BlockMask& mask) override {
    cpu::select_top_p(scores, top_p, mask);
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                    BlockMask& mask) override {
    cpu::select_top_k(scores, top_k, mask);
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                     const TensorView& out) override {
    cpu::gather_tokens(x, order, order_head_stride, out);
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                      const TensorView& out) override {
    cpu::scatter_tokens(x, order, order_head_stride, out);
  }

  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    translate("linear", [&] { cpu::linear(dnn_, x, w, bias, epilogue, gate, out); });
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    cpu::layer_norm(x, weight, bias, scale, shift, eps, out);
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                const RopeTables* rope, int32_t num_heads, const TensorView& out) override {
    cpu::rms_norm(x, weight, eps, span, rope, num_heads, out);
  }
  void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                     const TensorView& out) override {
    cpu::gated_product(activation, gate, up, out);
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    translate("conv3d", [&] { cpu::conv3d(dnn_, x, w, bias, conv, residual, out); });
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    cpu::channel_norm(x, gamma, silu, out);
  }
  void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                  float eps, bool silu, const TensorView& out) override {
    cpu::group_norm(x, num_groups, weight, bias, eps, silu, out);
  }

 private:
  // Of the attention kernels on such rows.
  cpu::Isa level_of(const TensorView& rows) const {
    return levels_.of(rows.dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16,
                      static_cast<int32_t>(rows.shape[2]));
  }

  cpu::AttendLevels levels_;
  cpu::OneDnn dnn_;
};

std::unique_ptr<Backend> make(cpu::Isa isa, const cpu::AttendLevels& levels) {
  std::unique_ptr<Backend> backend;
  translate("cpu", [&] { backend = std::make_unique<CpuBackend>(isa, levels); });
  return backend;
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend() {
  return make(cpu::active_isa(), cpu::active_attend_levels());
}

std::unique_ptr<Backend> make_cpu_backend(cpu::Isa isa, cpu::Isa machine) {
  LACUNA_CHECK(isa <= machine, "cpu: level {}, this machine has at most {}", cpu::isa_name(isa),
               cpu::isa_name(machine));
  return make(isa, {.widest = isa});
}

}  // namespace lacuna
