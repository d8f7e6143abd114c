// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/mask_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "lacuna/core/error.h"
#include "lacuna/engine/engine.h"
#include "lacuna/methods/selection.h"
#include "tests/engine/fixtures.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int kSteps = 4;

// Inputs of every step, made once: they drift a little, so that masks change.
const Input& input_at(const Shape& shape, int step) {
  static std::map<int64_t, std::vector<Input>> known;  // by number of tokens
  std::vector<Input>& inputs = known[shape.seq_len()];
  if (inputs.empty()) {
    const Input other = make_input(shape, "other");
    for (int i = 0; i < kSteps; ++i) {
      inputs.push_back(make_input(shape));
      for (int64_t j = 0; j < other.q.numel(); ++j)
        inputs.back().q.as<float>()[j] += 0.2f * static_cast<float>(i) * other.q.as<float>()[j];
    }
  }
  return inputs[static_cast<size_t>(step)];
}

class MaskLogTest : public testing::Test {
 protected:
  ProfileTarget target(const Shape& shape) const {
    return {"toy",
            "abc",
            1,
            static_cast<int>(shape.num_heads),
            32,
            shape.grid,
            shape.text_tokens,
            {1.0, 0.75, 0.5, 0.25}};
  }
  Site site(int step) const { return {step, kSteps, 1.0f - 0.25f * step, 0, 1, Branch::cond, 0}; }
  // Outputs of every step, one after the other.
  std::vector<float> run(Engine& engine, const Shape& shape) const {
    std::vector<float> all;
    for (int step = 0; step < kSteps; ++step) {
      const Input& in = input_at(shape, step);
      engine.attend(site(step), shape.grid, shape.text_tokens, in.q, in.k, in.v, in.out);
      all.insert(all.end(), in.out.as<float>(), in.out.as<float>() + in.out.numel());
    }
    return all;
  }
  std::vector<float> record(Backend& backend, const Plan& plan, const Shape& shape) {
    Engine engine(backend, policy_of(plan));
    MaskRecorder recorder(target(shape), 1 << 24);
    engine.watch_selections([&](const auto&... seen) { recorder.add(seen...); });
    std::vector<float> out = run(engine, shape);
    recorder.save(path_);
    entries_ = engine.trace().entries();
    return out;
  }
  std::vector<float> replay(Backend& backend, const Shape& shape, Policy policy = {}) {
    Engine engine(backend, std::move(policy));
    const MaskLog log(path_);
    engine.follow_selections([&](const Site& s) { return log.at(s); });
    std::vector<float> out = run(engine, shape);
    replayed_ = engine.trace().entries();
    return out;
  }
  std::string bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const Shape shape_{{2, 8, 8}, 5, 2};
  const TempFolder temp_;
  const fs::path path_ = temp_.path() / "masks.safetensors";
  std::vector<TraceEntry> entries_, replayed_;
};

Plan plan_of(const std::string& words, const std::string& skip = "none") {
  Plan plan = parse_plan(words);
  plan.skip = parse_skip(skip);
  return plan;
}

// Every kind of layout, order, reuse and compensation, looks and dense calls.
constexpr const char* kPlans[] = {
    "dense",
    "window:tile_frames=2,tile_height=3,tile_width=4,window_frames=1,window_height=1",
    "radial:block=16",
    "xattention:block=16,stride=4,top_p=0.5",
    "xattention:block=16,stride=4,top_p=0.5,refresh=drift,delta=0.1,compensate=pooled_row",
    "xattention:block=16,stride=4,top_p=0.5,refresh=at_steps,at=2,compensate=pooled_block",
    "svg:density=0.4,block=16",
    "svg2:top_p=0.5,q_clusters=4,k_clusters=9,iterations=3,refresh=drift,delta=0.05",
    "adaspa:block=16",
};

TEST_F(MaskLogTest, ReplayGivesTheSameBytesAndHashes) {
  const auto backend = make_backend("cpu");
  for (const char* words : kPlans) {
    SCOPED_TRACE(words);
    const std::vector<float> out = record(*backend, plan_of(words), shape_);
    EXPECT_EQ(replay(*backend, shape_), out);
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_EQ(replayed_[step].mask_hash, entries_[step].mask_hash);
      EXPECT_EQ(replayed_[step].qk_density, entries_[step].qk_density);
      EXPECT_EQ(replayed_[step].reason, entries_[step].reason);
      EXPECT_EQ(replayed_[step].method, "replay");
      EXPECT_EQ(replayed_[step].heads_refreshed, 0);
    }
  }
}

TEST_F(MaskLogTest, AnotherBackendComputesTheSameBlocks) {
  const auto cpu = make_backend("cpu"), ref = make_backend("ref");
  for (const char* words : kPlans) {
    const std::vector<float> out = record(*cpu, plan_of(words), shape_);
    const std::vector<float> other = replay(*ref, shape_);
    double worst = 0.0;
    for (size_t i = 0; i < out.size(); ++i)
      worst = std::max(worst, std::abs(double{out[i]} - other[i]));
    EXPECT_LT(worst, 1e-5) << words;
    for (int step = 0; step < kSteps; ++step)
      EXPECT_EQ(replayed_[step].mask_hash, entries_[step].mask_hash) << words;
  }
}

TEST_F(MaskLogTest, ReplayCallsNoMethod) {
  const auto backend = make_backend("cpu");
  FakeMethod method;
  method.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::diagonal(args);
    s.mask.keep_k_blocks(8, 9), s.mask.keep_q_blocks(8, 9);  // text
    return s;
  };
  Plan plan;
  plan.method = &method;
  const std::vector<float> out = record(*backend, plan, shape_);
  EXPECT_EQ(method.calls.size(), 4u);
  EXPECT_EQ(replay(*backend, shape_, policy_of(plan)), out);
  EXPECT_EQ(method.calls.size(), 4u) << "a policy beside the log is not asked";
}

// The rule drops blocks on its own; the log holds what was left.
TEST_F(MaskLogTest, SkippedBlocksAreTakenOut) {
  const auto cpu = make_backend("cpu"), ref = make_backend("ref");
  for (const auto& [words, skip] :
       {std::pair{"xattention:block=16,stride=4,top_p=0.9", "running_max:lambda=0.3"},
        {"dense:refresh=carry,retest=2", "recall:r=0.6,kappa=0.1"},
        {"xattention:block=32,stride=4,refresh=carry,retest=3,compensate=pooled_row",
         "running_lse:lambda=-1"}}) {
    SCOPED_TRACE(words);
    Plan plan = plan_of(words, skip);
    FakeMethod small;  // `dense` has blocks of 128, which are more than a vote
    if (words[0] == 'd') {
      plan.method = &small;
      plan.params = Params();
      small.choose = [](const SelectArgs& args) {
        Selection s;
        s.q_layout = s.k_layout = BlockLayout::uniform(args.seq_len(), 64);
        return s;
      };
    }
    const std::vector<float> out = record(*cpu, plan, shape_);
    for (Backend* backend : {cpu.get(), ref.get()}) {
      const std::vector<float> again = replay(*backend, shape_);
      double worst = 0.0;
      for (size_t i = 0; i < out.size(); ++i)
        worst = std::max(worst, std::abs(double{out[i]} - again[i]));
      EXPECT_LT(worst, 1e-5);
    }
    bool dropped = false;
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_NEAR(replayed_[step].qk_density, entries_[step].pv_density, 1e-12);
      dropped = dropped || entries_[step].pv_density < entries_[step].qk_density;
    }
    EXPECT_TRUE(dropped) << "the case tries nothing";
  }
}

TEST_F(MaskLogTest, BlocksLargerThanAVoteAreRefusedBeforeTheKernelRuns) {
  SpyBackend spy;
  const auto cpu = make_backend("cpu");
  const Shape shape{{2, 8, 8}, 0, 2};
  const auto error = [&](Backend& backend, const char* words) {
    return error_of([&] { record(backend, plan_of(words, "recall:r=0.9"), shape); });
  };
  const auto says = HasSubstr("under a skip rule, which drops parts of 64 x 128");
  EXPECT_THAT(error(spy, "dense"), says);
  EXPECT_THAT(error(spy, "xattention:block=128"), says);
  EXPECT_EQ(spy.attends, 0);
  EXPECT_THAT(error(*cpu, "svg2:q_clusters=1,k_clusters=2"), says);
}

TEST_F(MaskLogTest, EqualPartsAreStoredOnce) {
  const auto backend = make_backend("ref");
  const Shape shape{{2, 8, 8}, 0, 2};
  record(*backend, plan_of("radial:block=16"), shape);
  EXPECT_EQ(MaskLog(path_).num_selections(), 1u);
  EXPECT_EQ(MaskLog(path_).calls().size(), 4u);
  const std::string once = bytes();
  record(*backend, plan_of("radial:block=16,refresh=every_step"), shape);
  EXPECT_EQ(bytes(), once) << "selecting the same mask again costs nothing";

  // Both heads share one mask and, being alike, one order; a second mask adds one part.
  FakeMethod method;
  method.choose = [](const SelectArgs& args) {
    Selection s = FakeMethod::empty(args);
    s.q_order = s.k_order = tile_order(args.grid, 2, 4, 4);
    s.mask.keep_k_blocks(0, args.site.step < 2 ? 1 : 2);
    return s;
  };
  Plan plan;
  plan.method = &method;
  record(*backend, plan, shape);
  const MaskLog log(path_);
  EXPECT_EQ(log.num_selections(), 2u);
  EXPECT_EQ(SafetensorsFile(path_).tensors().size(), 3u);
  EXPECT_EQ(log.at(site(3)).selection.mask.count(1), 2 * 8);
  EXPECT_EQ(log.at(site(3)).selection.q_order.num_heads, 1);
}

TEST_F(MaskLogTest, RecorderRefusesWhatDoesNotFit) {
  const auto backend = make_backend("ref");
  MaskRecorder small(target(shape_), 100), empty(target(shape_), 100);
  Engine engine(*backend, policy_of(plan_of("svg:block=16")));
  engine.watch_selections([&](const auto&... seen) { small.add(seen...); });
  EXPECT_THAT(error_of([&] { run(engine, shape_); }), HasSubstr("more memory than there is"));
  EXPECT_THAT(error_of([&] { empty.save(path_); }), HasSubstr("no attention call"));
  EXPECT_FALSE(fs::exists(path_));
  MaskRecorder twice(target(shape_), 1 << 20);
  SiteSelection seen;
  seen.selection.q_layout = seen.selection.k_layout = BlockLayout::uniform(133, 64);
  twice.add(site(0), shape_.grid, 5, seen);
  EXPECT_THAT(error_of([&] { twice.add(site(0), shape_.grid, 5, seen); }), HasSubstr("ran twice"));
  EXPECT_THAT(error_of([&] { twice.add(site(1), {2, 8, 9}, 5, seen); }), HasSubstr("expected"));
}

TEST_F(MaskLogTest, CheckSaysWhatDiffers) {
  const auto backend = make_backend("ref");
  record(*backend, plan_of("radial:block=16"), shape_);
  const MaskLog log(path_);
  const std::vector<Site> sites{site(0), site(3)};
  EXPECT_NO_THROW(log.check(target(shape_), sites));
  const auto error = [&](auto change) {
    ProfileTarget run = target(shape_);
    change(run);
    return error_of([&] { log.check(run, sites); });
  };
  EXPECT_EQ(error([](auto& t) { t.fingerprint = "xyz"; }),
            "masks: made for weights abc, this run has xyz; LoRA is part of them");
  EXPECT_THAT(error([](auto& t) { t.grid.width = 9; }), HasSubstr("this run has 2x8x9"));
  EXPECT_THAT(error([](auto& t) { t.sigmas.pop_back(); }), HasSubstr("made for steps: 4"));
  const std::vector<Site> more{site(0), {1, kSteps, 0.5f, 0, 1, Branch::uncond, 0}};
  EXPECT_THAT(error_of([&] { log.check(target(shape_), more); }),
              HasSubstr("no call at step 1 layer 0 uncond"));
}

TEST_F(MaskLogTest, RefusesHostileFilesInOneLine) {
  const auto backend = make_backend("ref");
  record(*backend, plan_of("svg2:top_p=0.5,q_clusters=4,k_clusters=9,iterations=3"), shape_);
  const std::string good = bytes();
  const auto error_of_bytes = [&](const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return error_of([&] {
      const MaskLog log(path_);
      for (size_t i = 0; i < log.num_selections(); ++i)
        check_selection(log.selection(i), "hostile", 2, 133, 0);
    });
  };
  EXPECT_EQ(error_of_bytes(good), "");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, text.npos) << from;
    EXPECT_EQ(from.size(), to.size());  // or the header's length would lie
    const std::string error = error_of_bytes(text.replace(at, from.size(), to));
    EXPECT_EQ(error.find('\n'), error.npos);
    return error;
  };
  EXPECT_THAT(with(R"(version\":1)", R"(version\":2)"), HasSubstr("version 2, expected 1"));
  EXPECT_THAT(with("lacuna_masks", "lacuna_musks"), HasSubstr("not a mask log"));
  EXPECT_THAT(with(R"(\"step\":1)", R"(\"step\":0)"), HasSubstr("a second time"));
  EXPECT_THAT(with(R"(\"step\":1)", R"(\"step\":9)"), HasSubstr("calls[1].step"));
  EXPECT_THAT(with(R"(\"selection\":0)", R"(\"selection\":9)"), HasSubstr("calls[0].selection"));
  EXPECT_THAT(with(R"(\"num_heads\":2)", R"(\"num_heads\":3)"), HasSubstr("each of 3 heads"));
  EXPECT_THAT(with("\"order-", "\"oddly-"), HasSubstr("expected mask-"));
  EXPECT_THAT(with(R"(\"width\":8)", R"(\"width\":9)"), testing::Not(""));
  std::string flipped = good;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  EXPECT_THAT(error_of_bytes(flipped), HasSubstr("has hash"));
  for (size_t n = 0; n < good.size(); n += good.size() / 50)
    EXPECT_NE(error_of_bytes(good.substr(0, n)), "") << n;
}

}  // namespace
}  // namespace lacuna::test
