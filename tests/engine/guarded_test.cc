// SPDX-License-Identifier: Apache-2.0
// Engine::attend with its tensors in memory that the host cannot touch: every method, refresh rule,
// skip rule and compensation gives the bytes it gives in host memory.
#include <gtest/gtest.h>

#include "lacuna/core/convert.h"
#include "lacuna/core/threads.h"
#include "lacuna/engine/recording.h"
#include "tests/engine/fixtures.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

const Shape kShape{{4, 6, 8}, 5, 3, 64};

std::shared_ptr<const Selection> checkers() {
  auto all = std::make_shared<Selection>();
  all->q_layout = all->k_layout = BlockLayout::uniform(kShape.seq_len(), 16);
  const int32_t blocks = all->q_layout.num_blocks;
  all->mask = BlockMask(kShape.num_heads, blocks, blocks);
  for (int64_t h = 0; h < kShape.num_heads; ++h)
    for (int32_t qb = 0; qb < blocks; ++qb)
      for (int32_t kb = 0; kb < blocks; ++kb)
        if ((qb + kb + h) % 2 == 0 || qb == kb) all->mask.set(h, qb, kb);
  return all;
}

// Small blocks where the method has that parameter, so that masks drop some.
Plan plan_of(const Method& method) {
  Plan plan;
  plan.method = &method;
  plan.params = Params(method.specs());
  for (const ParamSpec& spec : method.specs()) {
    if (spec.name.starts_with("block")) plan.params.set(spec.name, 16);
    if (spec.name.ends_with("_clusters")) plan.params.set(spec.name, 9);
    if (spec.name.starts_with("tile_")) plan.params.set(spec.name, 2);
    if (spec.name.starts_with("window_")) plan.params.set(spec.name, 1);
    if (spec.name == "stride") plan.params.set(spec.name, 4);
    if (spec.name == "similarity") plan.params.set(spec.name, 0.3);
    if (spec.name == "samples") plan.params.set(spec.name, 20);
    if (spec.name == "hilbert") plan.params.set(spec.name, 1);
    if (spec.name == "anchors") plan.params.set_per_head(spec.name, {0, 2, 3});
  }
  if (method.takes_masks()) plan.fixed = checkers();
  return plan;
}

// What three steps gave.
struct Outcome {
  std::vector<Tensor> out;
  std::vector<std::vector<float>> lse;
  std::vector<TraceEntry> trace;
  std::vector<uint64_t> computed;  // masks
  std::vector<RecordedCall> calls;
  std::vector<Tensor> recorded;
};

Outcome run(Backend& backend, const Plan& plan, DType dtype) {
  Engine engine(backend, policy_of(plan));
  Outcome outcome;
  Recorder recorder(backend, {}, 1 << 24);
  engine.watch_inputs([&](const auto&... inputs) { recorder.add(inputs...); });
  if (plan.skip.kind == SkipKind::none)
    engine.watch_selections([&](const Site&, const VideoGrid&, int64_t, const SiteSelection& s) {
      outcome.computed.push_back(s.selection.mask.empty() ? 0 : s.selection.mask.hash());
    });
  for (int step = 0; step < 3; ++step) {
    const Input in = make_input(kShape, "step " + std::to_string(step / 2));
    const auto placed = [&](const Tensor& x) {
      return on_backend(backend, dtype == DType::f32 ? x.view() : converted(x, dtype).view());
    };
    const Tensor q = placed(in.q), k = placed(in.k), v = placed(in.v), out = placed(in.out);
    std::vector<float> lse(static_cast<size_t>(kShape.num_heads * kShape.seq_len()));
    engine.write_lse(lse);
    engine.attend(site_at(step), kShape.grid, kShape.text_tokens, q, k, v, out);
    outcome.out.push_back(on_host(backend, out));
    outcome.lse.push_back(std::move(lse));
  }
  outcome.trace = engine.trace().entries();
  for (const RecordedCall& call : recorder.calls())
    outcome.recorded.push_back(on_host(backend, call.q));
  return outcome;
}

void expect_same(const Outcome& a, const Outcome& b) {
  ASSERT_EQ(a.out.size(), b.out.size());
  for (size_t i = 0; i < a.out.size(); ++i) {
    EXPECT_TRUE(same_bytes(a.out[i], b.out[i])) << "step " << i;
    EXPECT_EQ(a.lse[i], b.lse[i]) << "step " << i;
    EXPECT_TRUE(same_bytes(a.recorded[i], b.recorded[i])) << "step " << i;
    EXPECT_EQ(a.trace[i].mask_hash, b.trace[i].mask_hash);
    EXPECT_EQ(a.trace[i].qk_density, b.trace[i].qk_density);
    EXPECT_EQ(a.trace[i].pv_density, b.trace[i].pv_density);
    EXPECT_EQ(a.trace[i].pooled_density, b.trace[i].pooled_density);
    EXPECT_EQ(a.trace[i].heads_refreshed, b.trace[i].heads_refreshed);
  }
  EXPECT_EQ(a.computed, b.computed);
}

// Hundreds of tiny operations: one thread is faster than waking two.
class Guarded : public testing::TestWithParam<std::tuple<const Method*, const char*>> {
 protected:
  void SetUp() override { set_num_threads(1); }
  void TearDown() override { set_num_threads(threads_); }
  void expect_same_as_plain(const Plan& plan, DType dtype = DType::f32) {
    const auto plain = make_backend(std::get<1>(GetParam()));
    GuardedBackend guarded(make_backend(std::get<1>(GetParam())));
    const Outcome expected = run(*plain, plan, dtype);
    expect_same(run(guarded, plan, dtype), expected);
    EXPECT_EQ(guarded.allocations(), 0u);
  }
  Plan plan_ = plan_of(*std::get<0>(GetParam()));

 private:
  int threads_ = num_threads();
};

TEST_P(Guarded, SelectsAndAttends) {
  expect_same_as_plain(plan_);
  expect_same_as_plain(plan_, DType::bf16);
}

TEST_P(Guarded, Compensates) {
  for (const Compensation kind : {Compensation::pooled_row, Compensation::pooled_block})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      plan_.compensate = kind;
      expect_same_as_plain(plan_, dtype);
    }
}

TEST_P(Guarded, RefreshesOnDrift) {
  plan_.refresh.kind = RefreshKind::drift;
  plan_.refresh.pool = 16;
  expect_same_as_plain(plan_);
}

TEST_P(Guarded, SkipsAndCarriesWhatASkipRuleDrops) {
  for (const SkipRule& rule :
       {SkipRule{SkipKind::running_max, {0.9f}}, SkipRule{SkipKind::running_lse, {-1.0f}},
        SkipRule{SkipKind::recall, {0.7f}}}) {
    plan_.skip = rule;
    plan_.compensate = Compensation::pooled_row;
    expect_same_as_plain(plan_);
  }
  plan_.compensate = Compensation::none;
  plan_.refresh.kind = RefreshKind::carry;
  expect_same_as_plain(plan_);
}

// What a mask log holds, computed again without the method.
TEST_P(Guarded, FollowsSelections) {
  const auto plain = make_backend(std::get<1>(GetParam()));
  GuardedBackend guarded(make_backend(std::get<1>(GetParam())));
  const Input in = make_input(kShape);
  std::vector<SiteSelection> seen;
  Engine first(*plain, policy_of(plan_));
  first.watch_selections(
      [&](const Site&, const VideoGrid&, int64_t, const SiteSelection& s) { seen.push_back(s); });
  attend(first, site_at(0), in);
  Engine again(guarded, Policy());
  again.follow_selections([&](const Site&) { return seen.front(); });
  const Tensor q = on_backend(guarded, in.q), k = on_backend(guarded, in.k),
               v = on_backend(guarded, in.v), out = on_backend(guarded, in.out);
  again.attend(site_at(0), kShape.grid, kShape.text_tokens, q, k, v, out);
  EXPECT_TRUE(same_bytes(on_host(guarded, out), in.out));
}

TEST_P(Guarded, AResetGivesMemoryBackAndBeginsAnew) {
  GuardedBackend guarded(make_backend(std::get<1>(GetParam())));
  Engine engine(guarded, policy_of(plan_));
  const Input in = make_input(kShape);
  const Tensor q = on_backend(guarded, in.q), k = on_backend(guarded, in.k),
               v = on_backend(guarded, in.v), out = on_backend(guarded, in.out);
  const size_t inputs = guarded.allocations();
  const auto outputs = [&] {
    std::vector<Tensor> made;
    for (int step = 0; step < 2; ++step) {
      engine.attend(site_at(step), kShape.grid, kShape.text_tokens, q, k, v, out);
      made.push_back(on_host(guarded, out));
    }
    return made;
  };
  const std::vector<Tensor> first = outputs();
  engine.reset();
  EXPECT_EQ(guarded.allocations(), inputs);
  const std::vector<Tensor> again = outputs();
  for (size_t step = 0; step < 2; ++step) EXPECT_TRUE(same_bytes(again[step], first[step])) << step;
}

INSTANTIATE_TEST_SUITE_P(AllMethods, Guarded,
                         testing::Combine(testing::ValuesIn(all_methods().begin(),
                                                            all_methods().end()),
                                          testing::Values("ref", "cpu")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)->name()) + "_" +
                                  std::get<1>(info.param);
                         });

TEST(GuardedBackendDeathTest, RefusesHostCode) {
  GuardedBackend backend(make_backend("ref"));
  const Tensor zeros = Tensor::zeros(DType::f32, {4, 8});
  const Tensor there = on_backend(backend, zeros);
  EXPECT_THROW(there.as<float>(), Error);
  EXPECT_TRUE(same_bytes(on_host(backend, there), zeros));
  EXPECT_DEATH(static_cast<volatile float*>(there.view().data)[0] = 1.0f, "");
  // A pointer that has to be host memory, and a view that says it is.
  const auto* bias = static_cast<const float*>(there.view().data);
  EXPECT_THROW(
      backend.linear(zeros, zeros, bias, Epilogue::none, nullptr, Tensor(DType::f32, {4, 4})),
      Error);
  TensorView wrong = there;
  wrong.device = Device::cpu;
  EXPECT_THROW(backend.copy(wrong, zeros), Error);
}

}  // namespace
}  // namespace lacuna::test
