// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "lacuna/core/bf16.h"
#include "tests/engine/fixtures.h"

namespace lacuna::test {
namespace {

const Shape kShapes[] = {
    {{3, 5, 7}, 0, 3}, {{3, 5, 7}, 13, 3}, {{1, 1, 1}, 0, 1}, {{4, 8, 8}, 0, 2}};

TEST(Engine, NoRuleRunsDenseAndSaysSo) {
  SpyBackend backend;
  Engine engine(backend, Policy());
  const TraceEntry entry = attend(engine, site_at(0), make_input(kShapes[0]));
  EXPECT_EQ(entry.method, "dense");
  EXPECT_EQ(entry.reason, "no rule");
  EXPECT_EQ(entry.qk_density, 1.0);
  EXPECT_EQ(entry.pv_density, 1.0);
  EXPECT_EQ(entry.mask_hash, 0u);
  EXPECT_EQ(entry.heads_refreshed, 0);
  EXPECT_EQ(backend.last.mask, nullptr);
}

TEST(Engine, TimeOfAWatcherIsNoSelection) {
  SpyBackend backend;
  Engine engine(backend, Policy());
  engine.watch_inputs(
      [](const auto&...) { std::this_thread::sleep_for(std::chrono::milliseconds(200)); });
  EXPECT_LT(attend(engine, site_at(0), make_input(kShapes[0])).select_ms, 200.0);
}

TEST(Engine, TimedItWaitsForTheBackendAndElseNot) {
  SpyBackend backend;
  backend.queue_ms = 200;
  Engine engine(backend, Policy());
  const Input in = make_input(kShapes[0]);
  EXPECT_LT(attend(engine, site_at(0), in).attend_ms, 200.0);
  engine.set_timed(true);  // waits first for the call above, which is no selection's time
  const TraceEntry entry = attend(engine, site_at(1), in);
  EXPECT_GE(entry.attend_ms, 200.0);
  EXPECT_LT(entry.select_ms, 200.0);
}

TEST(Engine, FullMaskEqualsDense) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message() << shape);
    FakeMethod method;
    Engine engine(*backend, policy_of(method));
    const Input in = make_input(shape);
    const TraceEntry entry = attend(engine, site_at(0), in);
    EXPECT_LT(compare(in.out, dense_output(in)).max_abs, 1e-5);
    EXPECT_EQ(entry.reason, "");
    EXPECT_EQ(entry.qk_density, 1.0);
    EXPECT_NE(entry.mask_hash, 0u);
  }
}

// One head moves: it clusters again, the other keeps its whole partition, orders and offsets, and
// the two live in one selection.
TEST(Engine, DriftOnOneHeadReusesThePartitionOfTheOther) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const std::string plan = "svg2:top_p=0.5,q_clusters=4,k_clusters=9,iterations=3";
  Engine reusing(*backend,
                 policy_of(parse_plan(plan + ",refresh=drift,delta=0.05,gate_low=0,gate_high=1")));
  Engine always(*backend, policy_of(parse_plan(plan + ",refresh=every_step")));
  const Input first = make_input({{4, 8, 8}, 5}), other = make_input({{4, 8, 8}, 5}, "other");
  Input second = make_input({{4, 8, 8}, 5});
  const int64_t size = second.q.numel() / 2;
  std::copy_n(other.q.as<float>() + size, size, second.q.as<float>() + size);
  std::copy_n(other.k.as<float>() + size, size, second.k.as<float>() + size);

  EXPECT_EQ(attend(reusing, site_at(0), first).heads_refreshed, 2);
  const std::vector<float> before(first.out.as<float>(), first.out.as<float>() + size);
  EXPECT_EQ(attend(reusing, site_at(1), second).heads_refreshed, 1);
  const std::vector<float> after(second.out.as<float>(), second.out.as<float>() + 2 * size);
  EXPECT_EQ(std::vector(after.begin(), after.begin() + size), before);

  attend(always, site_at(0), first);
  EXPECT_EQ(attend(always, site_at(1), second).heads_refreshed, 2);
  EXPECT_EQ(std::vector(second.out.as<float>() + size, second.out.as<float>() + 2 * size),
            std::vector(after.begin() + size, after.end()));
}

// Clusters of any size, empty ones too, and a text block: permuted there and back it is dense.
TEST(Engine, KeepingEveryClusterEqualsDense) {
  for (const char* name : {"ref", "cpu"}) {
    const std::unique_ptr<Backend> backend = make_backend(name);
    Engine engine(*backend, policy_of(parse_plan("svg2:top_p=1,q_clusters=9,k_clusters=30")));
    const Input in = make_input({{3, 7, 9}, 11, 3});
    const TraceEntry entry = attend(engine, site_at(0), in);
    EXPECT_EQ(entry.qk_density, 1.0);
    EXPECT_LT(compare(in.out, dense_output(in)).max_abs, 1e-5) << name;
  }
}

TEST(Engine, TopPOneEqualsDense) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  int tried = 0;
  for (const Method* method : all_methods())
    for (const ParamSpec& spec : method->specs()) {
      if (spec.name != "top_p") continue;
      ++tried;
      Plan plan = parse_plan(std::string(method->name()) + ":top_p=1");
      for (const ParamSpec& other : method->specs())
        if (other.name == "block") plan.params.set("block", 32);
      Engine engine(*backend, policy_of(plan));
      const Input in = make_input(kShapes[3]);
      attend(engine, site_at(0), in);
      EXPECT_LT(compare(in.out, dense_output(in)).max_abs, 1e-5) << method->name();
    }
  EXPECT_GT(tried, 0);
}

TEST(Engine, EveryMethodRunsOnEveryShape) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  for (const Method* method : all_methods()) {
    if (method->takes_masks()) continue;  // FixedMasksRun, CopiedRowsAreExactWhenRowsRepeat
    for (const Shape& shape : kShapes) {
      Engine engine(*backend, policy_of(*method));
      const Input in = make_input(shape);
      const TraceEntry entry = attend(engine, site_at(0), in);
      EXPECT_EQ(entry.method, method->name());
      EXPECT_NEAR(entry.pv_density, entry.qk_density, 1e-12) << method->name() << " " << shape;
    }
  }
}

TEST(Engine, FixedMasksRun) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Input in = make_input(kShapes[0]);
  auto masks = std::make_shared<Selection>();
  masks->q_layout = masks->k_layout = BlockLayout::uniform(105, 32);
  masks->mask = BlockMask(3, 4, 4);
  masks->mask.keep_k_blocks(1, 2);
  Plan plan = parse_plan("fixed");
  plan.fixed = masks;
  Engine engine(*backend, policy_of(plan));
  const TraceEntry entry = attend(engine, site_at(0), in);
  EXPECT_EQ(entry.mask_hash, masks->mask.hash());
  EXPECT_DOUBLE_EQ(entry.qk_density, 32.0 / 105.0);
}

TEST(Engine, DensityIsThatOfTheMaskAndOfTheKernel) {
  SpyBackend backend;
  FakeMethod method;
  method.choose = FakeMethod::diagonal;
  Engine engine(backend, policy_of(method));
  const Input in = make_input(kShapes[1]);  // 118 tokens, 105 of video, blocks of 16
  method.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::diagonal(args);
    s.mask.keep_k_blocks(6, 8);
    s.mask.keep_q_blocks(6, 8);
    return s;
  };
  const TraceEntry entry = attend(engine, site_at(0), in);
  // Rows of blocks 0..5 (96 tokens): own, block h, and 22 tokens of blocks 6, 7; rows of 6, 7: all.
  double want = 0.0;
  for (int h = 0; h < 3; ++h) want += 16 * (16 + 22) + 5 * 16 * (16 + 16 + 22) + 22 * 118;
  want /= 3.0 * 118 * 118;
  EXPECT_DOUBLE_EQ(entry.qk_density, want);
  EXPECT_DOUBLE_EQ(entry.pv_density, want) << "no skip rule: all listed pairs are computed";
  EXPECT_DOUBLE_EQ(entry.pv_density, backend.pv_pairs / (3.0 * 118 * 118));
}

TEST(Engine, SkipRuleListsCoarseToFineAndReportsWhatItDropped) {
  SpyBackend backend;
  const Input in = make_input({{1, 16, 64}, 0, 1}, "skip", 0.1);
  Engine plain(backend, policy_of(find_method("dense")));
  EXPECT_EQ(attend(plain, site_at(0), in).reason, "method");
  EXPECT_EQ(backend.last.mask, nullptr);

  Plan plan = parse_plan("dense");
  plan.skip = parse_skip("running_max:lambda=0.9");
  Engine engine(backend, policy_of(plan));
  const TraceEntry entry = attend(engine, site_at(0), in);
  EXPECT_EQ(backend.last.mask, nullptr);
  const std::vector<int32_t>& cols = backend.listed.cols;
  EXPECT_EQ(std::vector<int32_t>(cols.begin() + 8, cols.begin() + 16),
            (std::vector<int32_t>{1, 0, 4, 2, 6, 5, 3, 7}));
  EXPECT_EQ(entry.qk_density, 1.0);
  EXPECT_LT(entry.pv_density, 1.0);
  EXPECT_DOUBLE_EQ(entry.pv_density, backend.pv_pairs / (1024.0 * 1024.0));

  plan.skip = parse_skip("recall:r=1");
  Engine exact(backend, policy_of(plan));
  attend(exact, site_at(0), in);
  EXPECT_LT(compare(in.out, dense_output(in)).max_abs, 1e-5)
      << "recall 1 drops nothing that counts";

  FakeMethod method;
  method.choose = FakeMethod::diagonal;
  Engine masked(backend, policy_of(method));
  attend(masked, site_at(0), in);
  EXPECT_TRUE(std::is_sorted(cols.begin(), cols.begin() + 2));
}

TEST(Engine, SkipParametersPerHead) {
  SpyBackend backend;
  Plan plan = parse_plan("dense");
  plan.skip = {SkipKind::recall, {0.5f, 0.9f, 1.0f}, {0.25f}};
  Engine engine(backend, policy_of(plan));
  attend(engine, site_at(0), make_input(kShapes[0]));
  EXPECT_EQ(backend.last.skip_param[1], 0.9f);
  EXPECT_EQ(backend.last.skip_kappa[2], 0.25f);
  plan.skip.param = {0.5f, 0.9f};
  Engine wrong(backend, policy_of(plan));
  EXPECT_THAT(error_of([&] { attend(wrong, site_at(0), make_input(kShapes[0])); }),
              testing::HasSubstr("2 parameter values, expected 1 or 3"));
}

// lambda = a / L reaches the kernel: L is the length of the call, and lambda is at most 1.
TEST(Engine, SkipParameterPerKeyFollowsTheLength) {
  SpyBackend backend;
  Plan plan = parse_plan("dense");
  plan.skip = parse_skip("running_max:a=64");
  Engine engine(backend, policy_of(plan));
  attend(engine, site_at(0), make_input({{2, 8, 16}}));
  EXPECT_EQ(backend.last.skip, SkipKind::running_max);
  EXPECT_EQ(backend.last.skip_param[1], 0.25f);
  attend(engine, site_at(0), make_input({{2, 8, 8}}));
  EXPECT_EQ(backend.last.skip_param[1], 0.5f);
  attend(engine, site_at(0), make_input({{1, 2, 16}}));
  EXPECT_EQ(backend.last.skip_param[0], 1.0f);
}

// Raster mask over single tokens that says the same as `s`, which may be ordered.
Selection token_mask(const Selection& s, int64_t num_heads) {
  Selection raster;
  const int64_t n = s.q_layout.seq_len;
  raster.q_layout = raster.k_layout = BlockLayout::uniform(n, 1);
  raster.mask = BlockMask(num_heads, static_cast<int32_t>(n), static_cast<int32_t>(n));
  const auto token = [](const TokenOrder& order, int64_t h, int64_t p) {
    return static_cast<int32_t>(order.empty() ? p : order.head(h)[p]);
  };
  for (int64_t h = 0; h < num_heads; ++h)
    for (int32_t qb = 0; qb < s.q_layout.num_blocks; ++qb)
      for (int32_t kb = 0; kb < s.k_layout.num_blocks; ++kb)
        if (s.mask.get(h, qb, kb))
          for (int64_t i = s.q_layout.begin(h, qb); i < s.q_layout.end(h, qb); ++i)
            for (int64_t j = s.k_layout.begin(h, kb); j < s.k_layout.end(h, kb); ++j)
              raster.mask.set(h, token(s.q_order, h, i), token(s.k_order, h, j));
  return raster;
}

void expect_order_does_not_matter(const Selection& ordered, const Input& in, double density) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  FakeMethod method;
  method.choose = [&](const SelectArgs&) { return ordered; };
  Engine engine(*backend, policy_of(method));
  const TraceEntry entry = attend(engine, site_at(0), in);
  Tensor got(DType::f32, {in.shape.num_heads, in.shape.seq_len(), in.shape.head_dim});
  std::memcpy(got.as<float>(), in.out.as<float>(),
              static_cast<size_t>(got.numel()) * sizeof(float));
  method.choose = [&](const SelectArgs&) { return token_mask(ordered, in.shape.num_heads); };
  Engine raster(*backend, policy_of(method));
  const TraceEntry raster_entry = attend(raster, site_at(0), in);
  EXPECT_LT(compare(got, in.out).max_abs, 1e-6);
  EXPECT_NEAR(entry.qk_density, raster_entry.qk_density, 1e-12);
  EXPECT_LT(entry.qk_density, density);
}

TEST(Engine, TileOrderEqualsTheSameMaskInRaster) {
  for (const Shape& shape :
       {Shape{{3, 5, 7}, 0, 2}, Shape{{3, 5, 7}, 6, 2}, Shape{{4, 4, 8}, 4, 1}}) {
    Params params = parse_plan(
                        "window:tile_frames=2,tile_height=2,tile_width=4,window_frames=1,"
                        "window_height=1,window_width=1")
                        .params;
    const Input in = make_input(shape);
    const std::unique_ptr<Backend> backend = make_backend("ref");
    expect_order_does_not_matter(select(find_method("window"), params, in, *backend), in, 0.5);
  }
}

// A permutation of its own for every head, another for keys, and clusters of unequal size.
TEST(Engine, PerHeadOrdersAndClustersEqualTheSameMaskInRaster) {
  const Shape shape{{3, 4, 5}, 4, 2};
  const int64_t n = shape.seq_len();
  const auto shuffled = [&](const char* name) {
    TokenOrder order{n, 2, {}};
    for (int64_t h = 0; h < 2; ++h) {
      std::vector<int32_t> row = all_heads(n);
      for (int64_t i = 59; i > 0; --i) {
        const double u = 0.5 * (hash_uniform(name, static_cast<uint64_t>(h * n + i)) + 1.0);
        std::swap(row[i], row[static_cast<int64_t>(u * static_cast<double>(i + 1))]);
      }
      order.order.insert(order.order.end(), row.begin(), row.end());
    }
    return order;
  };
  Selection s;
  s.q_order = shuffled("q");
  s.k_order = shuffled("k");
  s.q_layout = BlockLayout::explicit_offsets(n, 2, {0, 10, 35, 60, 64, 0, 1, 2, 60, 64});
  s.k_layout = BlockLayout::explicit_offsets(n, 2, {0, 0, 7, 31, 60, 64, 0, 20, 21, 59, 60, 64});
  s.mask = BlockMask(2, 4, 5);
  for (int64_t h = 0; h < 2; ++h)
    for (int32_t qb = 0; qb < 4; ++qb)
      for (int32_t kb = 0; kb < 5; ++kb)
        if (qb == 3 || kb == 4 || (qb + 2 * kb + h) % 3 == 1) s.mask.set(h, qb, kb);
  expect_order_does_not_matter(s, make_input(shape), 0.9);
}

TEST(Engine, ObserveGetsWhatTheSelectionAsksFor) {
  SpyBackend backend;
  FakeMethod method;
  Plan plan;
  plan.method = &method;
  plan.skip = parse_skip("running_max:lambda=0.5");
  plan.refresh.kind = RefreshKind::at_steps;
  plan.refresh.steps = {2};
  Engine engine(backend, policy_of(plan));
  const Input in = make_input(kShapes[0]);
  method.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::diagonal(args);
    s.wants_block_mass = s.wants_lse = s.wants_skip_bits = true;
    return s;
  };
  int rows = 0;
  method.on_observe = [&](const Observation& seen) {
    ASSERT_NE(seen.block_mass, nullptr);
    ASSERT_NE(seen.lse, nullptr);
    ASSERT_NE(seen.skip_bits, nullptr);
    for (int row = 0; row < 3 * 7; ++row, ++rows) {
      double sum = 0.0;
      for (int kb = 0; kb < 7; ++kb) sum += seen.block_mass[row * 7 + kb];
      EXPECT_NEAR(sum, 1.0, 1e-5);
      EXPECT_EQ(seen.skip_bits[row] >> 7, 0u);
    }
    for (int i = 0; i < 3 * 105; ++i) EXPECT_TRUE(std::isfinite(seen.lse[i]));
  };
  attend(engine, site_at(0), in);
  attend(engine, site_at(1), in);
  attend(engine, site_at(2), in);
  ASSERT_EQ(method.observed.size(), 2u) << "reuse observes nothing";
  EXPECT_EQ(method.observed[0].heads, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(method.observed[1].observation.site.step, 2);
  EXPECT_EQ(rows, 2 * 21);

  method.choose = FakeMethod::full;
  attend(engine, site_at(2), in);
  EXPECT_EQ(method.observed.size(), 2u) << "not asked for";
  EXPECT_EQ(backend.last.block_mass, nullptr);
}

TEST(Engine, DroppedTextIsAnError) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  FakeMethod method;
  method.choose = FakeMethod::diagonal;
  Engine engine(*backend, policy_of(method));
  EXPECT_THAT(error_of([&] { attend(engine, site_at(0), make_input(kShapes[1])); }),
              testing::HasSubstr("fake: head 0 drops text block pair"));
}

TEST(Engine, UnsupportedRulesFailBeforeAnythingRuns) {
  SpyBackend backend;
  backend.refused = SkipKind::recall;
  FakeMethod method;
  Policy policy;
  Rule early, late;
  early.match.step_end = 10;
  early.plan.method = late.plan.method = &method;
  late.plan.skip = parse_skip("recall");
  policy.add(early);
  policy.add(late);
  Engine engine(backend, policy);
  EXPECT_EQ(error_of([&] { attend(engine, site_at(0), make_input(kShapes[0])); }),
            "attend: spy refuses this skip rule");
  EXPECT_EQ(backend.attends + backend.block_means + backend.gathers, 0);
  EXPECT_TRUE(method.calls.empty());
  EXPECT_TRUE(engine.trace().entries().empty());
}

TEST(Engine, StrictRefusesDenseCallsThatNoRuleAskedFor) {
  SpyBackend backend;
  const Input in = make_input(kShapes[0]);
  Engine uncovered(backend, Policy());
  uncovered.set_strict(true);
  EXPECT_EQ(error_of([&] { attend(uncovered, site_at(3, 2), in); }),
            "strict: step 3 layer 2 cond runs dense (dense: no rule), which no rule asked for");
  FakeMethod method;  // looks at data, and gives up
  method.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::empty(args);
    s.mask = {};
    return s;
  };
  Engine gave_up(backend, policy_of(method));
  gave_up.set_strict(true);
  EXPECT_EQ(error_of([&] { attend(gave_up, site_at(3), in); }),
            "strict: step 3 layer 0 cond runs dense (fake: method), which no rule asked for");
  EXPECT_EQ(backend.attends, 0);

  for (const char* asked :
       {"dense", "adaspa:block=16", "window:window_frames=99,window_height=99"}) {
    Engine engine(backend, policy_of(parse_plan(asked)));
    engine.set_strict(true);
    EXPECT_NO_THROW(attend(engine, site_at(0), in)) << asked;
  }
  Engine steps(backend, make_policy(parse_plan("xattention:block=16"), {}, "1", "", 0, 50));
  steps.set_strict(true);
  EXPECT_EQ(attend(steps, site_at(0), in).reason, "dense-steps");
  EXPECT_EQ(steps.trace().entries().back().rule, 0);
  EXPECT_EQ(attend(steps, site_at(1), in).rule, 1);
}

// What was asked of a call that threw is not written by a later one, whose caller may be gone.
TEST(Engine, WritesLseOnlyInTheNextCall) {
  SpyBackend backend;
  const Input in = make_input(kShapes[0]);
  Engine engine(backend, Policy());
  std::vector<float> lse(static_cast<size_t>(in.shape.num_heads * in.shape.seq_len()), 7.0f);
  engine.write_lse(lse);
  engine.set_strict(true);
  EXPECT_NE(error_of([&] { attend(engine, site_at(0), in); }), "");
  engine.set_strict(false);
  attend(engine, site_at(0), in);
  EXPECT_THAT(lse, testing::Each(7.0f));
}

TEST(Engine, RejectsTensorsThatDoNotFit) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  Engine engine(*backend, Policy());
  const Input in = make_input(kShapes[0]), other = make_input(kShapes[3]);
  const VideoGrid& grid = in.shape.grid;
  const auto run = [&](const TensorView& q, const TensorView& k, int64_t text) {
    return error_of([&] { engine.attend(site_at(0), grid, text, q, k, in.v, in.out); });
  };
  EXPECT_THAT(run(in.q, in.k, 1), testing::HasSubstr("expected [num_heads, 106, head_dim]"));
  EXPECT_THAT(run(in.q, other.k, 0), testing::HasSubstr("k [2, 256, 32] f32, expected the shape"));
  const Tensor wide(DType::f64, {3, 105, 32});
  EXPECT_THAT(run(wide, in.k, 0), testing::HasSubstr("f64, expected f32 or bf16"));
  TensorView strided = in.k;
  strided.stride[2] = 2;
  EXPECT_THAT(run(in.q, strided, 0), testing::HasSubstr("channel stride 2"));
}

// [seq_len, num_heads, head_dim] memory seen as [num_heads, seq_len, head_dim], in bf16.
TEST(Engine, StridedBfloat16) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  const Shape shape{{3, 5, 7}, 2, 3};
  const Input in = make_input(shape);
  const int64_t h = shape.num_heads, n = shape.seq_len(), d = shape.head_dim;
  std::vector<std::vector<BFloat16>> memory(4,
                                            std::vector<BFloat16>(static_cast<size_t>(h * n * d)));
  std::vector<TensorView> views;
  const Tensor* sources[] = {&in.q, &in.k, &in.v, &in.out};
  for (int t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < h; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t c = 0; c < d; ++c)
          memory[t][(j * h + i) * d + c] = BFloat16(sources[t]->as<float>()[(i * n + j) * d + c]);
    views.push_back(make_view(memory[t].data(), DType::bf16, {h, n, d}));
    views.back().stride = {d, h * d, 1, 0, 0};
  }
  const Params params =
      parse_plan(
          "window:tile_frames=2,tile_height=2,tile_width=4,window_frames=9,window_height=9,"
          "window_width=9")
          .params;
  Plan plan = parse_plan("window");
  plan.params = params;
  Engine engine(*backend, policy_of(plan));
  engine.attend(site_at(0), shape.grid, 2, views[0], views[1], views[2], views[3]);
  EXPECT_EQ(engine.trace().entries().back().qk_density, 1.0);
  const Tensor want = dense_output(in);
  double worst = 0.0;
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < d; ++c)
        worst =
            std::max(worst, std::abs(double{static_cast<float>(memory[3][(j * h + i) * d + c])} -
                                     want.as<float>()[(i * n + j) * d + c]));
  EXPECT_LT(worst, 0.02);
  EXPECT_GT(worst, 0.0);
}

// CalibAtt's repetition path: exact where the rows of a frame have equal queries, and with as many
// anchors as rows.
TEST(Engine, CopiedRowsAreExactWhenRowsRepeat) {
  Shape shape{{2, 6, 5}, 0, 2};
  const Input in = make_input(shape);
  const auto repeated = [&](int64_t h) {  // every row of a frame like its first
    const int64_t d = shape.head_dim;
    for (int64_t t = 0; t < shape.seq_len(); ++t) {
      const int64_t first = t / 30 * 30 + t % 5;
      std::copy_n(in.q.as<float>() + (h * 60 + first) * d, d, in.q.as<float>() + (h * 60 + t) * d);
    }
  };
  repeated(1);
  auto masks = std::make_shared<Selection>();
  masks->q_layout = masks->k_layout = BlockLayout::uniform(60, 8);
  masks->mask = BlockMask(2, 8, 8);
  masks->mask.fill();
  for (const auto& [backend_name, anchors] :
       {std::pair{"ref", 2.0}, {"cpu", 2.0}, {"ref", 6.0}, {"cpu", 99.0}}) {
    const std::unique_ptr<Backend> backend = make_backend(backend_name);
    Plan plan = parse_plan("calibatt");
    plan.params.set_per_head("anchors", {anchors < 6 ? 0.0 : anchors, anchors});
    plan.fixed = masks;
    Engine engine(*backend, policy_of(plan));
    const TraceEntry entry = attend(engine, site_at(0), in);
    const Tensor want = dense_output(in);
    double worst = 0.0;
    for (int64_t i = 0; i < want.numel(); ++i)
      worst = std::max(worst, std::abs(double{in.out.as<float>()[i]} - want.as<float>()[i]));
    EXPECT_LT(worst, 1e-5) << backend_name << " " << anchors;
    if (anchors < 6) {
      // 20 of 60 rows, in whole blocks of 8: 24.
      EXPECT_NEAR(entry.qk_density, (1.0 + 24.0 / 60) / 2, 1e-9);
    }
  }
}

}  // namespace
}  // namespace lacuna::test
