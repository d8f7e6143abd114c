// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/compensate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/methods/selection.h"
#include "tests/engine/fixtures.h"
#include "tests/support/backends.h"

namespace lacuna::test {
namespace {

constexpr int32_t kBlock = 16;

// Every token of a block becomes its first one, per head: means lose nothing then.
void flatten(const Tensor& x, int32_t block = kBlock) {
  const int64_t heads = x.view().shape[0], n = x.view().shape[1], d = x.view().shape[2];
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < n; ++t)
      std::copy_n(x.as<float>() + (h * n + t / block * block) * d, d,
                  x.as<float>() + (h * n + t) * d);
}

// The diagonal, text and a third of the rest.
Selection thinned(const SelectArgs& args) {
  Selection s = FakeMethod::diagonal(args);
  for (size_t i = 0; i < args.head_ids.size(); ++i)
    for (int32_t qb = 0; qb < s.q_layout.num_blocks; ++qb)
      for (int32_t kb = 0; kb < s.k_layout.num_blocks; ++kb)
        if ((qb + 2 * kb + args.head_ids[i]) % 3 == 0) s.mask.set(static_cast<int64_t>(i), qb, kb);
  keep_text(s, args.grid.tokens());
  return s;
}

class Compensate : public BackendTest {
 protected:
  TraceEntry run(Compensation kind, const Input& in, SkipRule skip = {}) {
    Plan plan;
    plan.method = &method_;
    plan.compensate = kind;
    plan.skip = std::move(skip);
    Engine engine(*backend_, policy_of(std::move(plan)));
    return attend(engine, site_at(0), in);
  }
  double error(const Input& in) { return compare(in.out, dense_output(in)).max_abs; }

  FakeMethod method_;
};

TEST_P(Compensate, ConstantKeysInsideBlocksMakeEveryMaskExact) {
  for (const Shape& shape : {Shape{{3, 5, 7}, 0, 3}, Shape{{3, 5, 7}, 13, 3}}) {
    Input in = make_input(shape);
    flatten(in.k);
    method_.choose = thinned;
    run(Compensation::none, in);
    EXPECT_GT(error(in), 0.05) << "something was dropped";
    run(Compensation::pooled_row, in);
    EXPECT_LT(error(in), 1e-5) << shape;
    run(Compensation::pooled_block, in);
    EXPECT_GT(error(in), 1e-4) << "rows of a block differ";
    flatten(in.q);
    run(Compensation::pooled_block, in);
    EXPECT_LT(error(in), 1e-5) << shape;
  }
}

TEST_P(Compensate, ConstantValuesAreExact) {
  Input in = make_input({{3, 5, 7}, 0, 2});
  flatten(in.v, 1000);
  method_.choose = thinned;
  for (const Compensation kind : {Compensation::pooled_row, Compensation::pooled_block}) {
    run(kind, in);
    EXPECT_LT(error(in), 1e-5);
  }
}

TEST_P(Compensate, NothingDroppedNothingChangesBitwise) {
  const Input in = make_input({{3, 5, 7}, 13, 3});
  const std::vector<Compensation> kinds = {Compensation::none, Compensation::pooled_row,
                                           Compensation::pooled_block};
  std::vector<std::vector<float>> outs;
  for (const Compensation kind : kinds) {
    EXPECT_EQ(run(kind, in).pooled_density, 0.0);
    outs.emplace_back(in.out.as<float>(), in.out.as<float>() + in.out.numel());
  }
  EXPECT_EQ(std::memcmp(outs[1].data(), outs[0].data(), outs[0].size() * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(outs[2].data(), outs[0].data(), outs[0].size() * sizeof(float)), 0);
}

// Blocks in another order, and clusters of unequal size with an empty one.
TEST_P(Compensate, FollowsTokenOrdersAndExplicitBlocks) {
  const Shape shape{{3, 4, 5}, 0, 2};
  Input in = make_input(shape);
  const int64_t n = shape.seq_len(), d = shape.head_dim;
  Selection s;
  s.k_order = TokenOrder{n, 1, {}};
  for (int64_t i = 0; i < n; ++i) s.k_order.order.push_back(static_cast<int32_t>(i * 7 % n));
  s.q_order = s.k_order;
  const std::vector<int32_t> offsets = {0, 0, 7, 31, 60, 0, 20, 21, 59, 60};
  s.q_layout = BlockLayout::explicit_offsets(n, 2, {0, 10, 35, 60, 0, 1, 2, 60});
  s.k_layout = BlockLayout::explicit_offsets(n, 2, offsets);
  s.mask = BlockMask(2, 3, 4);
  for (int64_t h = 0; h < 2; ++h)
    for (int32_t qb = 0; qb < 3; ++qb) s.mask.set(h, qb, (qb + 1) % 3 + 1);
  for (int64_t h = 0; h < 2; ++h)
    for (int32_t b = 0; b < 4; ++b)
      for (int64_t p = s.k_layout.begin(h, b); p < s.k_layout.end(h, b); ++p)
        std::copy_n(in.k.as<float>() + (h * n + s.k_order.order[s.k_layout.begin(h, b)]) * d, d,
                    in.k.as<float>() + (h * n + s.k_order.order[p]) * d);
  method_.choose = [&](const SelectArgs&) { return s; };
  const TraceEntry entry = run(Compensation::pooled_row, in);
  EXPECT_LT(error(in), 1e-5);
  // Every row keeps one block; of the others one is empty in head 0.
  EXPECT_DOUBLE_EQ(entry.pooled_density, (60.0 * 2 + 60.0 * 3) / (2.0 * 60 * 60));
}

// 105 tokens in 7 blocks, the last of 9; each row keeps its own block only.
TEST_P(Compensate, CountsItsProductsApartFromDensity) {
  const Input in = make_input({{3, 5, 7}, 0, 2});
  method_.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::empty(args, kBlock);
    for (int64_t h = 0; h < 2; ++h)
      for (int32_t b = 0; b < 7; ++b) s.mask.set(h, b, b);
    return s;
  };
  const TraceEntry plain = run(Compensation::none, in);
  const TraceEntry row = run(Compensation::pooled_row, in);
  const TraceEntry block = run(Compensation::pooled_block, in);
  EXPECT_DOUBLE_EQ(plain.pooled_density, 0.0);
  EXPECT_DOUBLE_EQ(row.pooled_density, 105.0 * 6 / (105.0 * 105.0));
  EXPECT_DOUBLE_EQ(block.pooled_density, 7.0 * 6 / (105.0 * 105.0));
  for (const TraceEntry& entry : {row, block}) {
    EXPECT_EQ(entry.qk_density, plain.qk_density);
    EXPECT_EQ(entry.pv_density, plain.pv_density);
    EXPECT_EQ(entry.mask_hash, plain.mask_hash);
  }
}

// What a predictor drops is light, and its mean says most of what it had to say.
TEST_P(Compensate, HelpsWhereThePredictorDropped) {
  const Input in = make_input({{4, 8, 8}, 0, 2});
  const auto error_with = [&](const char* compensate) {
    const std::string spec = "xattention:top_p=0.5,block=16,stride=4,compensate=";
    Engine engine(*backend_, policy_of(parse_plan(spec + compensate)));
    EXPECT_LT(attend(engine, site_at(0), in).qk_density, 0.7);
    return compare(in.out, dense_output(in)).rel_l1;
  };
  const double none = error_with("none"), row = error_with("pooled_row"),
               block = error_with("pooled_block");
  EXPECT_LT(block, 0.8 * none);
  EXPECT_LT(row, block) << "rows know better than their mean";
}

// Logits are equal within blocks, so all rows agree what to skip and means lose nothing.
TEST_P(Compensate, BringsBackWhatTheSkipRuleDropped) {
  if (backend_->name() == "cuda") GTEST_SKIP() << "cuda has skip rules for bf16 and f16 only";
  const Input in = weighted_blocks({{1, 9, 2, 4, 8, 3, 1, 5}, {2, 1, 1, 7, 1, 3, 9, 1}}, kBlock);
  const SkipRule skip = parse_skip("running_max:lambda=0.99");
  for (const bool masked : {false, true}) {
    method_.choose = [&](const SelectArgs& args) {
      Selection s = thinned(args);
      if (!masked) s.mask = {};
      return s;
    };
    const TraceEntry plain = run(Compensation::none, in, skip);
    EXPECT_LT(plain.pv_density, plain.qk_density);
    EXPECT_GT(error(in), 0.01);
    const TraceEntry row = run(Compensation::pooled_row, in, skip);
    EXPECT_LT(error(in), 1e-5) << "masked " << masked;
    EXPECT_EQ(row.pv_density, plain.pv_density);
    EXPECT_NEAR(row.pv_density + row.pooled_density * kBlock, 1.0, 1e-9) << "nothing is lost";
  }
}

TEST_P(Compensate, Bfloat16) {
  Input in = make_input({{3, 5, 7}, 0, 2});
  flatten(in.k);
  const std::vector<const Tensor*> sources = {&in.q, &in.k, &in.v, &in.out};
  std::vector<Tensor> rounded;
  for (const Tensor* x : sources) rounded.push_back(converted(*x, DType::bf16));
  method_.choose = thinned;
  Plan plan;
  plan.method = &method_;
  plan.compensate = Compensation::pooled_row;
  Engine engine(*backend_, policy_of(plan));
  engine.attend(site_at(0), in.shape.grid, 0, rounded[0], rounded[1], rounded[2], rounded[3]);
  const Tensor want = converted(rounded[3], DType::f32);
  EXPECT_LT(compare(want, dense_output(in)).max_abs, 0.03);
}

// What observe() reads is of what was kept, as without compensation.
TEST_P(Compensate, ObservationsStayThoseOfTheMask) {
  const Input in = make_input({{3, 5, 7}, 0, 2});
  std::vector<std::vector<float>> seen_lse;
  method_.choose = [](const SelectArgs& args) {
    Selection s = thinned(args);
    s.wants_lse = true;
    return s;
  };
  method_.on_observe = [&](const Observation& seen) {
    seen_lse.emplace_back(seen.lse, seen.lse + 2 * 105);
  };
  run(Compensation::none, in);
  run(Compensation::pooled_row, in);
  ASSERT_EQ(seen_lse.size(), 2u);
  EXPECT_EQ(seen_lse[0], seen_lse[1]);
}

INSTANTIATE_TEST_SUITE_P(Backends, Compensate, testing::ValuesIn(backends_and_reference()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
