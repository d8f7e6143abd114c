// SPDX-License-Identifier: Apache-2.0
// A backend that forwards every call and keeps time and work by class of operation.
#pragma once

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"

namespace lacuna::bench {

inline double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Peak resident set.
inline double resident_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

struct Cost {
  double ms = 0.0, flops = 0.0;
  int calls = 0;
};

class TimingBackend : public Backend {
 public:
  explicit TimingBackend(Backend& inner) : inner_(inner) {}
  std::map<std::string, Cost> costs;

  std::string_view name() const override { return inner_.name(); }
  std::string description() const override { return inner_.description(); }
  std::string unsupported(const AttendParams& params) const override {
    return inner_.unsupported(params);
  }
  void attend(const AttendParams& p) override {
    const double flops = 4.0 * p.q_len * p.k_len * p.head_dim * p.num_heads;
    const char* kind = p.q_len == p.k_len ? "self" : "cross";
    timed(fmt::format("attend {}", kind), p.mask == nullptr ? flops : 0.0,
          [&] { inner_.attend(p); });
  }
  void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                 const float* lse_b) override {
    timed("merge_lse", 0.0, [&] { inner_.merge_lse(out_a, lse_a, out_b, lse_b); });
  }
  void block_mean(const TensorView& x, std::span<const int32_t> heads, const BlockLayout& layout,
                  const TensorView& out) override {
    timed("selection", 0.0, [&] { inner_.block_mean(x, heads, layout, out); });
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k, std::span<const int32_t> heads,
                           const BlockLayout& q_layout, const BlockLayout& k_layout, float sm_scale,
                           int32_t stride, bool compat, const TensorView& out) override {
    timed("selection", 0.0, [&] {
      inner_.antidiagonal_scores(q, k, heads, q_layout, k_layout, sm_scale, stride, compat, out);
    });
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> heads, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    timed("selection", 0.0,
          [&] { inner_.block_mass(q, k, lse, heads, q_layout, k_layout, sm_scale, out); });
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                         const TensorView& centroids, const TensorView& labels) override {
    timed("selection", 0.0, [&] { inner_.nearest_centroids(x, head_ids, centroids, labels); });
  }
  void select_top_p(const TensorView& scores, std::span<const float> top_p,
                    BlockMask& mask) override {
    timed("selection", 0.0, [&] { inner_.select_top_p(scores, top_p, mask); });
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                    BlockMask& mask) override {
    timed("selection", 0.0, [&] { inner_.select_top_k(scores, top_k, mask); });
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                     const TensorView& out) override {
    timed("reorder", 0.0, [&] { inner_.gather_tokens(x, order, stride, out); });
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                      const TensorView& out) override {
    timed("reorder", 0.0, [&] { inner_.scatter_tokens(x, order, stride, out); });
  }
  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    const double flops = 2.0 * x.shape[0] * w.shape[0] * w.shape[1];
    const char* const kEpilogues[] = {"", " gelu", " silu", " residual"};
    timed(fmt::format("linear [{},{}] {}{}", w.shape[0], w.numel() / w.shape[0],
                      dtype_name(x.dtype), kEpilogues[static_cast<int>(epilogue)]),
          flops, [&] { inner_.linear(x, w, bias, epilogue, gate, out); });
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    timed("layer_norm", 0.0, [&] { inner_.layer_norm(x, weight, bias, scale, shift, eps, out); });
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                const RopeTables* rope, int32_t num_heads, const TensorView& out) override {
    timed(rope != nullptr ? "rms_norm + rope" : "rms_norm", 0.0,
          [&] { inner_.rms_norm(x, weight, eps, span, rope, num_heads, out); });
  }
  void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                     const TensorView& out) override {
    timed("gated_product", 0.0, [&] { inner_.gated_product(activation, gate, up, out); });
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    const double flops = 2.0 * out.numel() * (w.numel() / w.shape[0]);
    timed(fmt::format("conv [{},{},{},{},{}] on {}x{}", w.shape[0], w.shape[1], w.shape[2],
                      w.shape[3], w.shape[4], x.shape[1], x.shape[2]),
          flops, [&] { inner_.conv3d(x, w, bias, conv, residual, out); });
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    timed("channel_norm", 0.0, [&] { inner_.channel_norm(x, gamma, silu, out); });
  }
  void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                  float eps, bool silu, const TensorView& out) override {
    timed("group_norm", 0.0,
          [&] { inner_.group_norm(x, num_groups, weight, bias, eps, silu, out); });
  }

  double total_flops() const {
    double sum = 0.0;
    for (const auto& [kind, cost] : costs) sum += cost.flops;
    return sum;
  }

 private:
  template <typename Body>
  void timed(const std::string& kind, double flops, const Body& body) {
    const double begin = now_ms();
    body();
    Cost& cost = costs[kind];
    cost.ms += now_ms() - begin;
    cost.flops += flops;
    ++cost.calls;
  }
  Backend& inner_;
};

// One line per class of operation, most expensive first; times and calls per run.
inline void print_costs(const TimingBackend& backend, double total_ms, int runs) {
  std::vector<std::pair<std::string, Cost>> rows(backend.costs.begin(), backend.costs.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  double known_ms = 0.0;
  fmt::print("{:<34}{:>7}{:>11}{:>8}{:>10}\n", "operation", "calls", "ms", "share", "GFLOP/s");
  for (const auto& [kind, cost] : rows) {
    known_ms += cost.ms;
    fmt::print("{:<34}{:>7}{:>11.1f}{:>7.1f}%{:>10.1f}\n", kind, cost.calls / runs, cost.ms / runs,
               100.0 * cost.ms / total_ms, cost.flops / (cost.ms * 1e6));
  }
  const double rest = total_ms - known_ms;
  fmt::print("{:<34}{:>7}{:>11.1f}{:>7.1f}%\n", "outside the backend", "", rest / runs,
             100.0 * rest / total_ms);
}

}  // namespace lacuna::bench
