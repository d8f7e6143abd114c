// SPDX-License-Identifier: Apache-2.0
// A method that counts and a backend that watches, for engine tests.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lacuna/core/metrics.h"
#include "lacuna/engine/engine.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {

// Selects what `choose` says (every block by default) and records every call.
class FakeMethod : public Method {
 public:
  struct Call {
    Site site;
    std::vector<int32_t> heads;
    State* state;
  };
  struct Seen {
    Observation observation;
    std::vector<int32_t> heads;
  };
  struct Nothing : State {
    void transfer(const StateIo&, int64_t, int64_t) override {}
  };

  std::string_view name() const override { return "fake"; }
  std::string_view summary() const override { return "for tests"; }
  std::span<const ParamSpec> specs() const override { return {}; }
  std::unique_ptr<State> make_state() const override { return std::make_unique<Nothing>(); }
  Selection select(const SelectArgs& args, State* state) const override {
    calls.push_back({args.site, {args.head_ids.begin(), args.head_ids.end()}, state});
    return choose ? choose(args) : full(args);
  }
  void observe(const Observation& seen, State* /*state*/) const override {
    observed.push_back({seen, {seen.head_ids.begin(), seen.head_ids.end()}});
    if (on_observe) on_observe(seen);
  }

  static Selection empty(const SelectArgs& args, int32_t block = 16) {
    Selection s;
    s.q_layout = s.k_layout = BlockLayout::uniform(args.seq_len(), block);
    s.mask = BlockMask(static_cast<int64_t>(args.head_ids.size()), s.q_layout.num_blocks,
                       s.k_layout.num_blocks);
    return s;
  }
  static Selection full(const SelectArgs& args) {
    Selection s = empty(args);
    s.mask.fill();
    return s;
  }
  // The diagonal, and for head h also key block h.
  static Selection diagonal(const SelectArgs& args) {
    Selection s = empty(args);
    for (size_t i = 0; i < args.head_ids.size(); ++i)
      for (int32_t b = 0; b < s.q_layout.num_blocks; ++b) {
        s.mask.set(static_cast<int64_t>(i), b, b);
        s.mask.set(static_cast<int64_t>(i), b, args.head_ids[i]);
      }
    return s;
  }

  std::function<Selection(const SelectArgs&)> choose;
  std::function<void(const Observation&)> on_observe;
  mutable std::vector<Call> calls;
  mutable std::vector<Seen> observed;
};

// The reference backend, watched: what attend() got, how often means were taken, what is refused.
class SpyBackend : public Backend {
 public:
  std::string_view name() const override { return "spy"; }
  std::string description() const override { return "spy on ref"; }
  std::string unsupported(const AttendParams& p) const override {
    if (p.skip == refused && refused != SkipKind::none) return "attend: spy refuses this skip rule";
    return ref_->unsupported(p);
  }
  void finish() override {
    std::this_thread::sleep_for(std::chrono::milliseconds(std::exchange(queued_ms_, 0)));
  }
  void attend(const AttendParams& p) override {
    ++attends;
    queued_ms_ = queue_ms;
    last = p;
    listed = compact_blocks(p.mask, p.num_heads, p.num_q_blocks, p.num_k_blocks, p.order);
    pv_pairs = 0;
    ref_->attend(p);
    for (int32_t h = 0; h < p.num_heads && p.pv_pairs != nullptr; ++h) pv_pairs += p.pv_pairs[h];
  }
  void merge_lse(const TensorView& a, float* lse_a, const TensorView& b,
                 const float* lse_b) override {
    ref_->merge_lse(a, lse_a, b, lse_b);
  }
  void block_mean(const TensorView& x, std::span<const int32_t> heads, const BlockLayout& layout,
                  const TensorView& out) override {
    ++block_means;
    ref_->block_mean(x, heads, layout, out);
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k, std::span<const int32_t> heads,
                           const BlockLayout& q_layout, const BlockLayout& k_layout, float sm_scale,
                           int32_t stride, bool compat, const TensorView& out) override {
    ++predictions;
    ref_->antidiagonal_scores(q, k, heads, q_layout, k_layout, sm_scale, stride, compat, out);
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> heads, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    ++predictions;
    ref_->block_mass(q, k, lse, heads, q_layout, k_layout, sm_scale, out);
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                         const TensorView& centroids, const TensorView& labels) override {
    ref_->nearest_centroids(x, head_ids, centroids, labels);
  }
  void select_top_p(const TensorView& scores, std::span<const float> p, BlockMask& m) override {
    ref_->select_top_p(scores, p, m);
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> k, BlockMask& m) override {
    ref_->select_top_k(scores, k, m);
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                     const TensorView& out) override {
    ++gathers;
    ref_->gather_tokens(x, order, stride, out);
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                      const TensorView& out) override {
    ref_->scatter_tokens(x, order, stride, out);
  }
  void linear(const TensorView&, const TensorView&, const float*, Epilogue, const float*,
              const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void layer_norm(const TensorView&, const float*, const float*, const float*, const float*, float,
                  const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void rms_norm(const TensorView&, const float*, float, NormSpan, const RopeTables*, int32_t,
                const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void gated_product(Epilogue, const TensorView&, const TensorView&, const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void conv3d(const TensorView&, const TensorView&, const float*, const ConvParams&,
              const TensorView*, const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void channel_norm(const TensorView&, const float*, bool, const TensorView&) override {
    fail("spy: the engine called a network op");
  }
  void group_norm(const TensorView&, int32_t, const float*, const float*, float, bool,
                  const TensorView&) override {
    fail("spy: the engine called a network op");
  }

  SkipKind refused = SkipKind::none;
  AttendParams last;
  BlockIndex listed;  // what attend() visited last
  int64_t pv_pairs = 0;
  int attends = 0, block_means = 0, predictions = 0, gathers = 0;
  int queue_ms = 0;  // what finish() waits for after an attend(), as on a device

 private:
  int queued_ms_ = 0;
  std::unique_ptr<Backend> ref_ = make_backend("ref");
};

inline Policy policy_of(Plan plan) {
  Policy policy;
  Rule rule;
  rule.plan = std::move(plan);
  policy.add(std::move(rule));
  return policy;
}

inline Policy policy_of(const Method& method, Refresh refresh = {}, SkipRule skip = {}) {
  Plan plan;
  plan.method = &method;
  plan.params = Params(method.specs());
  plan.refresh = std::move(refresh);
  plan.skip = std::move(skip);
  return policy_of(std::move(plan));
}

inline Site site_at(int step, int layer = 0, Branch branch = Branch::cond, int expert = 0) {
  Site site;
  site.step = step;
  site.num_steps = 50;
  site.layer = layer;
  site.num_layers = 4;
  site.branch = branch;
  site.expert = expert;
  return site;
}

inline TraceEntry attend(Engine& engine, const Site& site, const Input& in) {
  engine.attend(site, in.shape.grid, in.shape.text_tokens, in.q, in.k, in.v, in.out);
  return engine.trace().entries().back();
}

// Dense attention of the same input by the reference backend.
inline Tensor dense_output(const Input& in) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  Engine engine(*backend, Policy());
  Tensor out(DType::f32, {in.shape.num_heads, in.shape.seq_len(), in.shape.head_dim});
  engine.attend(site_at(0), in.shape.grid, in.shape.text_tokens, in.q, in.k, in.v, out);
  return out;
}

}  // namespace lacuna::test
