// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "lacuna/core/bf16.h"
#include "lacuna/methods/selection.h"
#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

class Svg2 : public testing::Test {
 protected:
  Params params(std::initializer_list<std::pair<const char*, double>> values) {
    return params_of(method_, values);
  }
  // Selects with a state that outlives the call.
  Selection run(const Input& in, const Params& params, State& state, std::vector<int32_t> heads) {
    Workspace workspace;
    const float sm_scale = 1.0f / std::sqrt(static_cast<float>(in.shape.head_dim));
    return method_.select({*backend_, workspace, Site{}, in.shape.grid, in.shape.text_tokens, in.q,
                           in.k, in.v, heads, sm_scale, params},
                          &state);
  }

  const Method& method_ = find_method("svg2");
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

// Tokens that query cluster `qb` keeps, as sorted raster positions.
std::set<int32_t> kept_keys(const Selection& s, int64_t head, int32_t qb) {
  std::set<int32_t> tokens;
  for (int32_t kb = 0; kb < s.mask.num_k_blocks(); ++kb)
    if (s.mask.get(head, qb, kb))
      for (int64_t p = s.k_layout.begin(head, kb); p < s.k_layout.end(head, kb); ++p)
        tokens.insert(s.k_order.head(head)[p]);
  return tokens;
}

void expect_equal(const Selection& a, const Selection& b) {
  EXPECT_EQ(a.mask, b.mask);
  EXPECT_EQ(a.q_order.order, b.q_order.order);
  EXPECT_EQ(a.k_order.order, b.k_order.order);
  EXPECT_EQ(a.q_layout.offsets, b.q_layout.offsets);
  EXPECT_EQ(a.k_layout.offsets, b.k_layout.offsets);
}

// All queries alike; keys of four kinds, spread over the sequence, with logits ln 1, 9, 2, 4.
// Sixteen of them weigh 16, four 36, six 12 and six 24: 88 in all.
constexpr double kWeights[] = {1, 9, 2, 4};
int kind_of(int64_t token) {
  constexpr char kKinds[] = "02020300102030012030010203201303";
  return kKinds[token] - '0';
}

Input weighted_keys() {
  Input in = make_input({{1, 4, 8}, 0, 1});
  const int64_t d = in.shape.head_dim;
  std::memset(in.q.as<float>(), 0, static_cast<size_t>(in.q.numel()) * sizeof(float));
  std::memset(in.k.as<float>(), 0, static_cast<size_t>(in.k.numel()) * sizeof(float));
  for (int64_t t = 0; t < 32; ++t) {
    in.q.as<float>()[t * d] = std::sqrt(static_cast<float>(d));
    in.k.as<float>()[t * d] = static_cast<float>(std::log(kWeights[kind_of(t)]));
  }
  return in;
}

std::set<int32_t> tokens_of(std::initializer_list<int> kinds) {
  std::set<int32_t> tokens;
  for (int32_t t = 0; t < 32; ++t)
    if (std::count(kinds.begin(), kinds.end(), kind_of(t)) > 0) tokens.insert(t);
  return tokens;
}

TEST_F(Svg2, TopPWeighsClustersByTheirSize) {
  std::map<int, int64_t> sizes;
  for (int t = 0; t < 32; ++t) ++sizes[kind_of(t)];
  ASSERT_EQ(sizes, (std::map<int, int64_t>{{0, 16}, {1, 4}, {2, 6}, {3, 6}}));
  const Input in = weighted_keys();
  const auto kept = [&](double top_p, double floor) {
    const Params p =
        params({{"q_clusters", 2}, {"k_clusters", 20}, {"top_p", top_p}, {"min_kc_ratio", floor}});
    return kept_keys(select(method_, p, in, *backend_), 0, 0);
  };
  EXPECT_EQ(kept(0.40, 0), tokens_of({1}));        // 36 / 88 = 0.409
  EXPECT_EQ(kept(0.42, 0), tokens_of({1, 3}));     // 60 / 88 = 0.682
  EXPECT_EQ(kept(0.70, 0), tokens_of({1, 3, 0}));  // 76 / 88 = 0.864
  EXPECT_EQ(kept(0.87, 0), tokens_of({1, 3, 0, 2}));
  EXPECT_EQ(kept(0.40, 0.099), tokens_of({1}));  // int(1.98) of 20 clusters
  EXPECT_EQ(kept(0.40, 0.101), tokens_of({1, 3}));
  EXPECT_EQ(kept(0.40, 0.15), tokens_of({1, 3, 0}));
  EXPECT_EQ(kept(0.40, 1.0), tokens_of({1, 3, 0, 2}));  // empty clusters come last
}

TEST_F(Svg2, TopPAndFloorMayDifferPerHead) {
  const Input in = make_input({{2, 8, 8}, 0, 3});
  Params p = params({{"q_clusters", 2}, {"k_clusters", 20}, {"min_kc_ratio", 0}});
  p.set_per_head("top_p", {1.0, 0.001, 0.001});
  p.set_per_head("min_kc_ratio", {0, 0, 0.25});
  const Selection s = select(method_, p, in, *backend_);
  EXPECT_EQ(s.mask.count(0), 40);
  EXPECT_EQ(s.mask.count(1), 2);
  EXPECT_EQ(s.mask.count(2), 10);
}

// Four directions, shuffled over the tokens, queries and keys alike but not in the same order: no
// block mixes two of them, and each query cluster keeps the keys of its own direction.
TEST_F(Svg2, RecoversPlantedClusters) {
  Input in = make_input({{4, 8, 16}, 0, 2}, "planted", 0.2);
  const int64_t n = in.shape.seq_len(), d = in.shape.head_dim;
  const auto group = [](const char* side, int64_t head, int64_t token) {
    return static_cast<int64_t>(2.0 + 2.0 * hash_uniform(side, head * 1000 + token));
  };
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t c = 0; c < d; ++c) {
        const int64_t at = (h * n + t) * d + c;
        const double noise = 0.2 * hash_uniform("planted", at);
        const auto value = [&](const char* side) {
          return static_cast<float>(noise + (c / 8 == group(side, h, t) ? 3.0 : 0.0));
        };
        in.q.as<float>()[at] = value("q");
        in.k.as<float>()[at] = value("k");
      }
  const Selection s =
      select(method_, params({{"q_clusters", 12}, {"k_clusters", 16}, {"min_kc_ratio", 0}}), in,
             *backend_);
  for (int64_t h = 0; h < 2; ++h)
    for (int32_t qb = 0; qb < 12; ++qb) {
      std::set<int64_t> rows, keys;
      for (int64_t p = s.q_layout.begin(h, qb); p < s.q_layout.end(h, qb); ++p)
        rows.insert(group("q", h, s.q_order.head(h)[p]));
      for (int32_t token : kept_keys(s, h, qb)) keys.insert(group("k", h, token));
      EXPECT_TRUE(rows.empty() || keys == rows) << "head " << h << " query cluster " << qb;
      EXPECT_LE(rows.size(), 1u);
    }
  EXPECT_LT(s.mask.density(s.q_layout, s.k_layout), 0.3);
}

TEST_F(Svg2, PermutationsRoundTripExactly) {
  const Input in = make_input({{3, 7, 9}, 11, 3});
  const Selection s =
      select(method_, params({{"q_clusters", 6}, {"k_clusters", 9}}), in, *backend_);
  EXPECT_EQ(s.q_layout.num_blocks, 7);  // text is a block of its own
  EXPECT_EQ(s.k_layout.num_blocks, 10);
  for (int64_t h = 0; h < 3; ++h) EXPECT_EQ(s.q_layout.size(h, 6), 11);
  EXPECT_NE(s.q_order.order, s.k_order.order);
  for (const TokenOrder* order : {&s.q_order, &s.k_order}) {
    const Tensor there(DType::f32, {3, 200, 32}), back(DType::f32, {3, 200, 32});
    backend_->gather_tokens(in.q, order->order.data(), 200, there);
    backend_->scatter_tokens(there, order->order.data(), 200, back);
    EXPECT_EQ(std::memcmp(back.as<float>(), in.q.as<float>(), 3 * 200 * 32 * sizeof(float)), 0);
    EXPECT_NE(std::memcmp(there.as<float>(), in.q.as<float>(), 3 * 200 * 32 * sizeof(float)), 0);
  }
}

// bf16 tokens have bf16 centroids; the first draws are the same tokens.
TEST_F(Svg2, SelectsForBf16) {
  const Input in = make_input({{4, 8, 8}, 5, 2});
  Input half = make_input({{4, 8, 8}, 5, 2});
  for (auto [from, to] : {std::pair(&in.q, &half.q), std::pair(&in.k, &half.k)}) {
    *to = Tensor(DType::bf16, {2, in.shape.seq_len(), in.shape.head_dim});
    for (int64_t i = 0; i < from->numel(); ++i)
      to->as<BFloat16>()[i] = BFloat16(from->as<float>()[i]);
  }
  const Params p = params({{"q_clusters", 6}, {"k_clusters", 14}});
  const Selection a = select(method_, p, in, *backend_), b = select(method_, p, half, *backend_);
  EXPECT_EQ(error_of([&] { check_selection(b, "svg2", 2, in.shape.grid.tokens(), 5); }), "");
  EXPECT_NEAR(b.mask.density(b.q_layout, b.k_layout), a.mask.density(a.q_layout, a.k_layout), 0.1);
}

// k-means goes on where it stopped: 1 step, then 2, is 3 steps from the start.
TEST_F(Svg2, LaterSelectionsStartFromCachedCentroids) {
  const Input in = make_input({{4, 8, 8}, 0, 2}, "cache", 2.0);
  const auto start = [&](double first, double later) {
    return params({{"q_clusters", 9},
                   {"k_clusters", 20},
                   {"first_iterations", first},
                   {"iterations", later}});
  };
  const std::unique_ptr<State> state = method_.make_state();
  const Selection one = run(in, start(1, 2), *state, {0, 1});
  const Selection three = run(in, start(1, 2), *state, {0, 1});
  expect_equal(one, select(method_, start(1, 7), in, *backend_));
  expect_equal(three, select(method_, start(3, 7), in, *backend_));
  for (double steps : {1.0, 2.0, 4.0})
    EXPECT_NE(three.k_order.order, select(method_, start(steps, 7), in, *backend_).k_order.order);
}

// A head selected alone moves its own centroids only, from where they were.
TEST_F(Svg2, ASubsetInALaterStepEqualsTheSameHeadsOfAll) {
  const Shape shape{{4, 8, 8}, 5, 3};
  const Input first = make_input(shape), second = make_input(shape, "second");
  const Params p = params({{"q_clusters", 5}, {"k_clusters", 9}, {"iterations", 1}});
  const std::unique_ptr<State> some = method_.make_state(), all = method_.make_state();
  run(first, p, *some, {0, 1, 2});
  run(first, p, *all, {0, 1, 2});
  const std::vector<int32_t> heads{0, 2};
  const Selection picked = run(second, p, *some, heads);
  const Selection whole = run(second, p, *all, {0, 1, 2});
  expect_equal(picked, pick_heads(whole, heads));
  EXPECT_NE(picked.k_order.order, select(method_, p, second, *backend_, heads).k_order.order)
      << "from the start: the cache made no difference";
}

TEST_F(Svg2, ClusterCountsScaleUnlessGiven) {
  const auto blocks = [&](int64_t tokens, const Params& p) {
    const Selection s = select(method_, p, make_input({{1, 1, tokens}, 0, 1, 4}), *backend_);
    return std::pair(s.q_layout.num_blocks, s.k_layout.num_blocks);
  };
  EXPECT_EQ(blocks(756, params({})), std::pair(3, 10));
  EXPECT_EQ(blocks(2520, params({})), std::pair(10, 33));
  EXPECT_EQ(blocks(20, params({})), std::pair(1, 1));
  EXPECT_EQ(blocks(756, params({{"q_clusters", 7}})), std::pair(7, 10));
  EXPECT_EQ(blocks(20, params({{"k_clusters", 40}})), std::pair(1, 40)) << "more than tokens";
}

TEST_F(Svg2, RejectsClusterCountsPerHead) {
  Params p = params({});
  p.set_per_head("k_clusters", {10, 20});
  EXPECT_THAT(error_of([&] { method_.check(p); }),
              testing::HasSubstr("svg2: k_clusters per head, expected one value for all heads"));
}

}  // namespace
}  // namespace lacuna::test
