// SPDX-License-Identifier: Apache-2.0
// What every method promises, over all_methods(): a new method is covered without an edit here.
#include "tests/methods/contract.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "lacuna/core/threads.h"
#include "lacuna/methods/selection.h"

namespace lacuna::test {
namespace {

struct ThreadCount {
  const int before = num_threads();
  explicit ThreadCount(int n) { set_num_threads(n); }
  ~ThreadCount() { set_num_threads(before); }
};

bool has_param(const Method& method, std::string_view name) {
  const auto specs = method.specs();
  return std::any_of(specs.begin(), specs.end(),
                     [&](const ParamSpec& s) { return s.name == name; });
}

void expect_equal(const Selection& a, const Selection& b) {
  EXPECT_EQ(a.mask, b.mask);
  EXPECT_EQ(a.q_order.order, b.q_order.order);
  EXPECT_EQ(a.k_order.order, b.k_order.order);
  EXPECT_EQ(a.q_layout.offsets, b.q_layout.offsets);
  EXPECT_EQ(a.k_layout.offsets, b.k_layout.offsets);
}

class MethodContract : public testing::TestWithParam<const Method*> {
 protected:
  Selection run(const Input& in, const Params& params, std::vector<int32_t> heads = {}) {
    const Selection masks = checkers(in.shape);
    return select(method_, params, in, *ref_, std::move(heads), &masks);
  }

  const Method& method_ = *GetParam();
  std::unique_ptr<Backend> ref_ = make_backend("ref");
};

TEST_P(MethodContract, SelectionsKeepTheInvariants) {
  for (const Shape& shape : kShapes)
    for (const Params& params : {Params(method_.specs()), small_blocks(method_)}) {
      SCOPED_TRACE(testing::Message() << shape);
      const Selection s = run(make_input(shape), params);
      EXPECT_EQ(error_of([&] {
                  check_selection(s, method_.name(), shape.num_heads, shape.grid.tokens(),
                                  shape.text_tokens);
                }),
                "");
    }
}

TEST_P(MethodContract, SameInputSameBitsForAnyThreadCount) {
  const Input in = make_input(kShapes[1]);
  const Params params = small_blocks(method_);
  const Selection first = run(in, params);
  for (int threads : {1, 2}) {
    ThreadCount count(threads);
    expect_equal(run(in, params), first);
  }
}

TEST_P(MethodContract, ASubsetEqualsTheSameHeadsOfAll) {
  const Input in = make_input(kShapes[1]);
  const Params params = small_blocks(method_);
  const Selection all = run(in, params);
  for (const std::vector<int32_t>& heads : {std::vector{0}, std::vector{2}, std::vector{0, 2}})
    expect_equal(run(in, params, heads), pick_heads(all, heads));
}

TEST_P(MethodContract, SaysWhenItMovesTokens) {
  Params moved = small_blocks(method_);
  if (has_param(method_, "hilbert")) moved.set("hilbert", 1);
  if (has_param(method_, "anchors")) moved.set("anchors", 2);
  for (const Shape& shape : kShapes)
    for (const Params& params : {Params(method_.specs()), small_blocks(method_), moved}) {
      const Selection s = run(make_input(shape), params);
      const bool raster = s.q_order.empty() && s.k_order.empty() && s.row_source.empty();
      EXPECT_TRUE(raster || method_.moves_tokens(params)) << shape;
    }
}

// What is saved between steps, but for single numbers, is no more than planned, nor far less.
TEST_P(MethodContract, HoldsWhatItSays) {
  Params moved = small_blocks(method_);
  if (has_param(method_, "hilbert")) moved.set("hilbert", 1);
  if (has_param(method_, "anchors")) moved.set("anchors", 2);
  for (const Shape& shape : {kShapes[1], kShapes[2]})
    for (const Params& params : {Params(method_.specs()), small_blocks(method_), moved}) {
      const Selection masks = checkers(shape);
      Steps steps(method_, params, *ref_, &masks);
      Selection last;
      for (const char* seed : {"first", "second", "third"})
        last = steps.select(make_input(shape, seed));
      StateTensors saved;
      const StateIo io = StateIo::writer(saved);
      transfer(io.in("masks"), last, shape.num_heads, shape.grid.tokens(), shape.text_tokens);
      if (steps.state() != nullptr)
        steps.state()->transfer(io.in("method"), shape.num_heads, shape.seq_len());
      int64_t bytes = 0, state_bytes = 0;
      for (const auto& [name, tensor] : saved) {
        if (tensor.numel() <= 1) continue;
        const int64_t size = storage_bytes(tensor.view().dtype, tensor.numel());
        bytes += size;
        if (name.starts_with("method.")) state_bytes += size;
      }
      const SiteSizes sizes{shape.grid, shape.text_tokens, shape.num_heads, shape.head_dim};
      const int64_t held = method_.held_bytes({sizes, params, &masks});
      EXPECT_LE(bytes, held) << shape;
      EXPECT_GE(2 * bytes, held) << shape;
      const int64_t state_held = method_.state_bytes({sizes, params, &masks});
      EXPECT_LE(state_bytes, state_held) << shape;
      EXPECT_LE(state_held, steps.state() != nullptr ? held : 0) << shape;
    }
}

TEST_P(MethodContract, DropsSomething) {
  const Shape shape{{4, 16, 16}, 0, 1};
  const Selection s = run(make_input(shape), small_blocks(method_));
  if (s.mask.empty()) GTEST_SKIP() << method_.name() << " is dense";
  EXPECT_LT(s.mask.density(s.q_layout, s.k_layout), 1.0)
      << "no block of " << s.mask.num_k_blocks() << " was dropped";
}

TEST_P(MethodContract, DensityDoesNotFallAsTopPRises) {
  if (!has_param(method_, "top_p")) GTEST_SKIP() << method_.name() << " has no top_p";
  const Input in = make_input(kShapes[1]);
  Params params = small_blocks(method_);
  BlockMask previous;
  for (const double top_p : {0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0}) {
    params.set("top_p", top_p);
    const BlockMask mask = run(in, params).mask;
    if (!previous.empty()) {
      BlockMask both = previous;
      both |= mask;
      EXPECT_EQ(both, mask) << "top_p " << top_p << " dropped a block that less mass kept";
    }
    previous = mask;
  }
}

INSTANTIATE_TEST_SUITE_P(AllMethods, MethodContract,
                         testing::ValuesIn(all_methods().begin(), all_methods().end()),
                         [](const auto& info) { return std::string(info.param->name()); });

}  // namespace
}  // namespace lacuna::test
