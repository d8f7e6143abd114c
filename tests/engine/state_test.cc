// SPDX-License-Identifier: Apache-2.0
// Saving what an engine carries from step to step, and going on from it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>

#include "lacuna/core/threads.h"
#include "tests/engine/fixtures.h"

namespace lacuna::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct Carrying {
  const char *name, *attention, *skip;
};
std::ostream& operator<<(std::ostream& out, const Carrying& c) {
  return out << c.attention << " " << c.skip;
}

// One of each way to carry something from step to step, and every method with a state.
constexpr Carrying kCarrying[] = {
    {"Drift", "xattention:block=16,stride=4,top_p=0.6,refresh=drift,delta=3", "none"},
    {"Never", "xattention:block=16,stride=4,top_p=0.6,refresh=never", "none"},
    {"TokenOrder", "svg:block=16,density=0.4,refresh=at_steps,at=2+5", "none"},
    {"AdaSpa", "adaspa:block=16,density=0.4", "none"},
    {"AdaSpaAtSteps", "adaspa:block=16,density=0.4,refresh=at_steps,at=2+5", "none"},
    {"Svg2", "svg2:q_clusters=4,k_clusters=9,top_p=0.7", "none"},
    {"Svg2Drift", "svg2:q_clusters=4,k_clusters=9,top_p=0.7,refresh=drift,delta=3", "none"},
    {"CarriedSkips", "xattention:block=16,stride=4,refresh=carry,retest=3",
     "running_max:lambda=0.9"},
};

constexpr Shape kShape{{3, 4, 6}, 5, 2, 16};
constexpr TextTokens kText{kShape.text_tokens, kShape.text_tokens};
constexpr int kSteps = 4, kFirstStep = 2;

// Two branches; the first head's q and k move from step to step.
class StateTest : public testing::TestWithParam<Carrying> {
 protected:
  std::unique_ptr<Engine> engine() const {
    Plan plan = parse_plan(GetParam().attention);
    plan.skip = parse_skip(GetParam().skip);
    return std::make_unique<Engine>(*backend_, policy_of(std::move(plan)));
  }
  // Output of one site.
  static std::vector<float> call(Engine& engine, int step, Branch branch) {
    const std::string seed = branch == Branch::cond ? "cond" : "uncond";
    const Input moved = make_input(kShape, seed + std::to_string(step));
    Input in = make_input(kShape, seed);
    const int64_t half = in.q.numel() / 2;
    std::memcpy(in.q.as<float>(), moved.q.as<float>(), half * sizeof(float));
    std::memcpy(in.k.as<float>(), moved.k.as<float>(), half * sizeof(float));
    attend(engine, site_at(kFirstStep + step, 1, branch), in);
    return {in.out.as<float>(), in.out.as<float>() + in.out.numel()};
  }
  // Outputs of all sites.
  static std::vector<std::vector<float>> step(Engine& engine, int step) {
    std::vector<std::vector<float>> outputs;
    for (const Branch branch : {Branch::cond, Branch::uncond})
      outputs.push_back(call(engine, step, branch));
    return outputs;
  }
  void SetUp() override { set_num_threads(1); }  // small calls: threads would only wait
  void TearDown() override { set_num_threads(threads_); }
  static void restore(Engine& engine, const StateTensors& from) {
    engine.restore(from, kShape.grid, kText, kShape.num_heads);
  }

  const int threads_ = num_threads();
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};
INSTANTIATE_TEST_SUITE_P(Plans, StateTest, testing::ValuesIn(kCarrying),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(StateTest, ARestoredEngineGoesOnBitForBit) {
  std::vector<std::vector<std::vector<float>>> outputs;
  std::vector<StateTensors> states(kSteps);  // before each step
  const auto whole = engine();
  EXPECT_TRUE(whole->policy().carries());
  for (int i = 0; i < kSteps; ++i) {
    whole->save(states[i]);
    outputs.push_back(step(*whole, i));
  }
  for (int stop = 0; stop < kSteps; ++stop) {
    const auto part = engine();
    restore(*part, states[stop]);
    for (int i = stop; i < kSteps; ++i) EXPECT_EQ(step(*part, i), outputs[i]) << stop << " " << i;
  }
}

// Prompts of joint families differ in length.
TEST(State, BranchesMayDifferInTextTokens) {
  const auto backend = make_backend("cpu");
  const auto plan = [] {
    return policy_of(parse_plan("xattention:block=16,stride=4,top_p=0.6,refresh=never"));
  };
  constexpr Shape kUncond{kShape.grid, 30, kShape.num_heads, kShape.head_dim};
  const auto run = [&](Engine& engine, int step) {
    std::vector<float> outputs;
    for (const Branch branch : {Branch::cond, Branch::uncond}) {
      Input in = make_input(branch == Branch::cond ? kShape : kUncond, std::to_string(step));
      attend(engine, site_at(step, 1, branch), in);
      outputs.insert(outputs.end(), in.out.as<float>(), in.out.as<float>() + in.out.numel());
    }
    return outputs;
  };
  Engine whole(*backend, plan()), rest(*backend, plan());
  run(whole, 0);
  StateTensors saved;
  whole.save(saved);
  rest.restore(saved, kShape.grid, {kShape.text_tokens, kUncond.text_tokens}, kShape.num_heads);
  EXPECT_EQ(run(rest, 1), run(whole, 1));
  EXPECT_THROW(rest.restore(saved, kShape.grid, kText, kShape.num_heads), Error);
}

// Bytes of what an engine saves, but for single numbers and what names sites and heads.
int64_t saved_bytes(const Engine& engine) {
  StateTensors saved;
  engine.save(saved);
  int64_t bytes = 0;
  for (const auto& [name, tensor] : saved)
    if (tensor.numel() > 1 && name != "sites" && !name.ends_with("refresh.heads"))
      bytes += storage_bytes(tensor.view().dtype, tensor.numel());
  return bytes;
}

constexpr SiteSizes kSizes{kShape.grid, kShape.text_tokens, kShape.num_heads, kShape.head_dim};

// The plan counts both sites twice: what the engine holds, and what it saves of it.
TEST_P(StateTest, HoldsWhatThePolicySays) {
  const auto whole = engine();
  std::vector<Site> sites;
  for (int i = 0; i < kSteps; ++i) {
    step(*whole, i);
    for (const Branch branch : {Branch::cond, Branch::uncond})
      sites.push_back(site_at(kFirstStep + i, 1, branch));
  }
  const int64_t held = whole->policy().held_bytes(sites, kSizes);
  EXPECT_LE(2 * saved_bytes(*whole), held);
  EXPECT_GE(4 * saved_bytes(*whole), held);
}

// What the next call makes anew is neither kept nor saved: of svg2 only its centroids.
TEST(State, SelectionsOfEveryStepAreNotCarried) {
  const auto backend = make_backend("cpu");
  const auto attended = [&](const char* plan) {
    auto engine = std::make_unique<Engine>(*backend, policy_of(parse_plan(plan)));
    attend(*engine, site_at(0), make_input(kShape));
    StateTensors saved;
    engine->save(saved);
    const Site sites[] = {site_at(0, 0), site_at(0, 1), site_at(0, 2)};
    return std::pair(std::move(saved), engine->policy().held_bytes(sites, kSizes));
  };
  const auto has_masks = [](const StateTensors& saved) {
    return std::any_of(saved.begin(), saved.end(), [](const auto& item) {
      return item.first.find(".masks.") != std::string::npos;
    });
  };
  const auto [every, held_every] = attended("svg2:q_clusters=4,k_clusters=9");
  const auto [drift, held_drift] = attended("svg2:q_clusters=4,k_clusters=9,refresh=never");
  EXPECT_FALSE(has_masks(every));
  EXPECT_TRUE(has_masks(drift));
  const int64_t centroids = kShape.num_heads * (4 + 9) * kShape.head_dim * 4;
  const int64_t selection = held_drift / 6 - centroids;
  EXPECT_EQ(held_every, 6 * centroids + selection) << "one selection at a time";
  const auto [plain, held_plain] = attended("xattention:block=16,stride=4");
  EXPECT_FALSE(has_masks(plain));
  EXPECT_EQ(held_plain, 2 * 5 * 8) << "two heads of five rows of blocks";
}

TEST(State, ASkipRuleThatIsCarriedMakesAMaskOfDense) {
  const auto backend = make_backend("cpu");
  Plan plan = parse_plan("dense:refresh=carry,retest=3");
  plan.skip = parse_skip("running_max:lambda=0.9");
  Engine engine(*backend, policy_of(std::move(plan)));
  const Input in = make_input(kShape);
  attend(engine, site_at(0), in);
  attend(engine, site_at(1), in);
  const Site sites[] = {site_at(0), site_at(1)};
  EXPECT_EQ(engine.policy().held_bytes(sites, kSizes), 2 * 2 * 8) << "two heads of one block";
  StateTensors saved;
  engine.save(saved);
  EXPECT_EQ(saved.at("0.masks.mask.words").numel(), 2);
}

// What is carried matters: without it, outputs differ.
TEST_P(StateTest, AFreshEngineDoesNot) {
  const auto whole = engine();
  bool differs = false;
  for (int i = 0; i < kSteps; ++i) {
    const auto expected = step(*whole, i);
    differs = differs || step(*engine(), i) != expected;
  }
  EXPECT_TRUE(differs);
}

// The tensors are a stranger's: each of them gone, of another type, of another length or full of
// nonsense is an Error or harmless.
TEST_P(StateTest, WhatIsNotAStateIsRefused) {
  const auto whole = engine();
  for (int i = 0; i < 2; ++i) step(*whole, i);
  StateTensors state;
  whole->save(state);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : state)
    if (name.starts_with("0.") || name == "sites") names.push_back(name);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const Tensor kept = std::move(state.at(name));
    const DType dtype = kept.view().dtype;
    state.erase(name);
    EXPECT_THAT([&] { restore(*engine(), state); }, ThrowsMessage<Error>(HasSubstr(name)));
    state[name] = Tensor::zeros(DType::u8, {4});
    EXPECT_THAT([&] { restore(*engine(), state); }, ThrowsMessage<Error>(HasSubstr(name)));
    for (const int64_t count : {kept.numel(), kept.numel() + 1})
      for (const int byte : {0x00, 0x7f, 0xff}) {
        state[name] = Tensor::zeros(dtype, {count});
        if (count > 0)
          std::memset(state[name].view().data, byte,
                      static_cast<size_t>(storage_bytes(dtype, count)));
        try {
          const auto other = engine();
          restore(*other, state);
          call(*other, 2, Branch::cond);  // site 0
        } catch (const Error&) {
        }
      }
    state[name] = Tensor(dtype, std::span(kept.view().shape.data(), kept.view().rank));
    std::memcpy(state[name].view().data, kept.view().data,
                static_cast<size_t>(storage_bytes(dtype, kept.numel())));
  }
  restore(*engine(), state);
}

TEST(State, AFailedRestoreForgetsWhatTheEngineKnew) {
  const auto backend = make_backend("ref");
  Engine engine(*backend, policy_of(parse_plan("xattention:block=16,stride=4,refresh=never")));
  const Input in = make_input(kShape);
  attend(engine, site_at(0), in);
  EXPECT_THROW(engine.restore({}, kShape.grid, kText, kShape.num_heads), Error);
  EXPECT_EQ(attend(engine, site_at(1), in).heads_refreshed, kShape.num_heads);
}

TEST(State, NothingIsCarriedWhereStepsStandAlone) {
  const auto backend = make_backend("ref");
  for (const char* attention : {"dense", "radial", "window", "xattention:block=16,stride=4"})
    EXPECT_FALSE(policy_of(parse_plan(attention)).carries()) << attention;
}

}  // namespace
}  // namespace lacuna::test
