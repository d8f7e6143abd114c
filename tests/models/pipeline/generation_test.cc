// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>

#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/threads.h"
#include "tests/support/error_of.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

class GenerationTest : public testing::Test {
 protected:
  void SetUp() override {
    threads_ = num_threads();
    backend_ = make_backend("cpu");
  }
  void TearDown() override {
    set_num_threads(threads_);
    fs::remove_all(folder_);
  }

  Request request() const {
    Request r;
    r.model = "test";
    r.prompt = "a red ball";
    r.width = 96, r.height = 64, r.frames = 9;  // 3 x 4 x 6 tokens
    r.sampler.num_steps = 4;
    r.seed = 3;
    return r;
  }
  GenerationFiles files(const std::string& name) const {
    GenerationFiles f;
    f.video = folder_ / (name + ".y4m");
    f.latents = folder_ / (name + ".safetensors");
    f.keep_latents = true;
    return f;
  }
  GenerationResult make(const Request& r, const std::string& name,
                        const GenerationHooks& hooks = {},
                        std::optional<SamplingState> resume = std::nullopt) {
    const auto model = Model::synthetic("tiny", DType::bf16);
    Context ctx{*backend_, DType::bf16};
    ctx.cancel = &cancel_;
    return generate(*model, ctx, r, files(name), {}, 0, hooks, std::move(resume));
  }
  // Runs until `hooks` stop it, then goes on from its file, to "part".
  void stop_and_resume(const Request& r, const GenerationHooks& hooks, int next_step) {
    EXPECT_THROW(make(r, "part", hooks), Cancelled);
    EXPECT_FALSE(fs::exists(folder_ / "part.y4m"));
    cancel_ = false;
    LoadedState loaded = load_state(folder_ / "part.safetensors");
    EXPECT_EQ(loaded.state.next_step, next_step);
    make(loaded.request, "part", {}, std::move(loaded.state));
  }
  std::string bytes(const std::string& name) const {
    std::ifstream in(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  Tensor latents(const std::string& name) const {
    return std::move(load_state(folder_ / (name + ".safetensors")).state.latents);
  }

  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path();
  int threads_ = 1;
  std::unique_ptr<Backend> backend_;
  std::atomic<bool> cancel_{false};
};

TEST_F(GenerationTest, SameSeedSameBytes) {
  make(request(), "a");
  make(request(), "b");
  set_num_threads(threads_ == 1 ? 2 : 1);
  make(request(), "c");
  Request other = request();
  other.seed = 4;
  make(other, "d");
  const std::string a = bytes("a.safetensors");
  EXPECT_GT(a.size(), 1000u);
  EXPECT_EQ(a, bytes("b.safetensors"));
  EXPECT_EQ(a, bytes("c.safetensors"));
  EXPECT_EQ(bytes("a.y4m"), bytes("c.y4m"));
  EXPECT_NE(bytes("a.y4m"), bytes("d.y4m"));
}

// Everything from prompt to frames with activations where the host cannot touch them.
TEST_F(GenerationTest, ABackendWithItsOwnMemoryGivesTheSameBytes) {
  Request r = request();
  r.attention = "xattention:block=16,stride=4,top_p=0.6,compensate=pooled_row";
  r.sampler.num_steps = 2;
  make(r, "plain");
  auto own = std::make_unique<test::GuardedBackend>(std::move(backend_));
  test::GuardedBackend& guarded = *own;
  backend_ = std::move(own);
  make(r, "guarded");
  EXPECT_EQ(bytes("guarded.safetensors"), bytes("plain.safetensors"));
  EXPECT_EQ(bytes("guarded.y4m"), bytes("plain.y4m"));
  EXPECT_EQ(guarded.allocations() + guarded.promises(), 0u);
  EXPECT_FALSE(guarded.broken_promise);
}

TEST_F(GenerationTest, ResumesBitForBitAfterCancel) {
  make(request(), "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 1; };
  stop_and_resume(request(), hooks, 2);
  EXPECT_EQ(bytes("part.safetensors"), bytes("whole.safetensors"));
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
}

TEST_F(GenerationTest, StoppedBeforeItsFirstStepItLeavesAnOlderFile) {
  make(request(), "a");
  const std::string older = bytes("a.safetensors");
  Request other = request();
  other.seed = 9;
  GenerationHooks hooks;
  hooks.inputs = [&](const auto&...) { cancel_ = true; };
  EXPECT_THROW(make(other, "a", hooks), Cancelled);
  EXPECT_EQ(bytes("a.safetensors"), older);
  cancel_ = false;
  EXPECT_THROW(make(other, "b", hooks), Cancelled);
  EXPECT_EQ(load_state(folder_ / "b.safetensors").state.next_step, 0);
}

// Another text encoder or tokenizer reads the same words differently.
TEST_F(GenerationTest, SaysWhenItGoesOnUnderOtherPrompts) {
  GenerationHooks stop;
  stop.step = [&](const StepReport& report) { cancel_ = report.step == 1; };
  EXPECT_THROW(make(request(), "part", stop), Cancelled);
  cancel_ = false;
  const auto notes = [&](const std::string& file, auto change) {
    LoadedState loaded = load_state(folder_ / file);
    change(loaded.state);
    std::string lines;
    GenerationHooks hooks;
    hooks.note = [&](const std::string& line) { lines += line + "\n"; };
    make(loaded.request, "again", hooks, std::move(loaded.state));
    return lines;
  };
  const std::string says = "prompts read differently";
  EXPECT_NE(load_state(folder_ / "part.safetensors").state.prompts, 0u);
  EXPECT_EQ(notes("part.safetensors", [](SamplingState&) {}).find(says), std::string::npos);
  EXPECT_NE(notes("part.safetensors", [](SamplingState& s) { ++s.prompts; }).find(says),
            std::string::npos);
  // Files of older versions do not know.
  EXPECT_EQ(notes("part.safetensors", [](SamplingState& s) { s.prompts = 0; }).find(says),
            std::string::npos);
  // What is only decoded has no prompts any more.
  EXPECT_EQ(notes("again.safetensors", [](SamplingState& s) { ++s.prompts; }).find(says),
            std::string::npos);
  Request other = request();
  other.prompt = "a blue ball";
  make(other, "other");
  EXPECT_NE(load_state(folder_ / "other.safetensors").state.prompts,
            load_state(folder_ / "part.safetensors").state.prompts);
}

TEST_F(GenerationTest, StoppedWhileDecodingItKeepsTheLatents) {
  make(request(), "whole");
  GenerationHooks hooks;
  hooks.decode = [&](int64_t, int64_t) { cancel_ = true; };
  stop_and_resume(request(), hooks, 4);
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
}

TEST_F(GenerationTest, WhatIsDoneIsSavedWhileItSamples) {
  GenerationFiles to = files("a");
  to.save_every = 0.0;
  int steps = 0;
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) {
    ++steps;
    EXPECT_EQ(load_state(to.latents).state.next_step, report.step + 1);
  };
  const auto model = Model::synthetic("tiny", DType::bf16);
  Context ctx{*backend_, DType::bf16};
  generate(*model, ctx, request(), to, {}, 0, hooks);
  EXPECT_EQ(steps, 4);
}

TEST_F(GenerationTest, WhatIsDoneIsSavedWhenSamplingFails) {
  GenerationHooks hooks;
  std::vector<int> saved;
  hooks.saved = [&](int steps) { saved.push_back(steps); };
  hooks.step = [](const StepReport& report) {
    if (report.step == 1) throw std::runtime_error("the terminal is gone");
  };
  EXPECT_THROW(make(request(), "part", hooks), std::runtime_error);
  EXPECT_EQ(load_state(folder_ / "part.safetensors").state.next_step, 2);
  EXPECT_EQ(saved, std::vector<int>{2});
  hooks.inputs = [](const auto&...) { throw std::runtime_error("in the first step"); };
  const std::string older = bytes("part.safetensors");
  EXPECT_THROW(make(request(), "part", hooks), std::runtime_error);
  EXPECT_EQ(bytes("part.safetensors"), older);
}

// Stopped within a step: what its first layers selected must not show.
TEST_F(GenerationTest, ResumesWhatIsCarriedBitForBit) {
  const std::pair<const char*, const char*> plans[] = {
      {"xattention:block=16,stride=4,top_p=0.6,refresh=drift,delta=0.01", "none"},
      {"svg2:q_clusters=4,k_clusters=9,top_p=0.7", "none"},
      {"dense:refresh=carry", "recall"}};
  for (const auto& [attention, skip] : plans) {
    SCOPED_TRACE(attention);
    Request r = request();
    r.attention = attention;
    r.skip = skip;
    make(r, "whole");
    GenerationHooks hooks;
    hooks.inputs = [&](const Site& site, const VideoGrid&, int64_t, const TensorView&,
                       const TensorView&, const TensorView&) {
      if (site.step == 2 && site.layer == 1) cancel_ = true;
    };
    stop_and_resume(r, hooks, 2);
    EXPECT_EQ(bytes("part.safetensors"), bytes("whole.safetensors"));
    EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
    fs::remove(folder_ / "part.y4m");
  }
}

// Its noise is of the request's seed, on a first run as on a resumed one.
TEST_F(GenerationTest, ResumesFreshNoiseBitForBit) {
  Request r = request();
  r.sampler.kind = SamplerKind::renoise;
  make(r, "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 1; };
  stop_and_resume(r, hooks, 2);
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
}

// Nothing is carried past the last step: what is left is the decoder.
TEST_F(GenerationTest, AFinishedRunIsOnlyDecoded) {
  Request r = request();
  r.attention = "adaspa:block=16";
  make(r, "whole");
  LoadedState loaded = load_state(folder_ / "whole.safetensors");
  EXPECT_EQ(loaded.state.next_step, r.sampler.num_steps);
  make(loaded.request, "again", {}, std::move(loaded.state));
  EXPECT_EQ(bytes("again.y4m"), bytes("whole.y4m"));
}

TEST_F(GenerationTest, RefusesToResumeWithoutTheMasks) {
  Request r = request();
  r.attention = "adaspa";
  GenerationHooks hooks;
  hooks.step = [&](const StepReport&) { cancel_ = true; };
  EXPECT_THROW(make(r, "part", hooks), Cancelled);
  cancel_ = false;
  LoadedState loaded = load_state(folder_ / "part.safetensors");
  loaded.state.attention.clear();
  EXPECT_THROW(make(loaded.request, "part", {}, std::move(loaded.state)), Error);
}

// A calibration may write the profile anew while the run is stopped.
TEST_F(GenerationTest, ResumesOnlyUnderTheProfileItBeganWith) {
  Request r = request();
  const fs::path path = folder_ / "p.json";
  const auto write_profile = [&](const char* method) {
    const auto model = Model::synthetic("tiny", DType::bf16);
    Profile profile;
    profile.target = profile_target(*model, r);
    profile.rules.emplace_back().rule.plan = parse_plan(method);
    save_profile(profile, path);
  };
  constexpr char kFirst[] = "xattention:block=16,stride=4,top_p=0.6,refresh=drift,delta=0.01";
  write_profile(kFirst);
  EXPECT_EQ(policy_content(r), "");
  r.profile = path.string();
  r.policy_content = policy_content(r);
  EXPECT_EQ(r.policy_content.size(), 16u);
  make(r, "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 1; };
  EXPECT_THROW(make(r, "part", hooks), Cancelled);
  cancel_ = false;
  const auto resume = [&] {
    LoadedState loaded = load_state(folder_ / "part.safetensors");
    make(loaded.request, "part", {}, std::move(loaded.state));
  };
  write_profile("xattention:block=16,stride=4,top_p=0.3,refresh=drift,delta=0.01");
  EXPECT_THAT(test::error_of(resume),
              testing::AllOf(testing::HasSubstr("p.json: has content"),
                             testing::HasSubstr("began with " + r.policy_content)));
  write_profile(kFirst);
  resume();
  EXPECT_EQ(bytes("part.safetensors"), bytes("whole.safetensors"));
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
}

TEST_F(GenerationTest, FullMaskEqualsDense) {
  Request r = request();
  r.dtype = "f32";
  make(r, "dense");
  r.attention = "xattention:top_p=1";
  const GenerationResult result = make(r, "full");
  EXPECT_EQ(result.trace.qk_density(), 1.0);
  const ErrorStats stats = compare(latents("full"), latents("dense"));
  EXPECT_LE(stats.rel_l2, 1e-5);
}

TEST_F(GenerationTest, SparseReportsTheDensityItComputed) {
  Request r = request();
  r.width = 256, r.height = 256;
  r.sampler.num_steps = 2;
  r.attention = "xattention:top_p=0.5";
  r.dense_steps = "1";
  const GenerationResult result = make(r, "sparse");
  EXPECT_EQ(result.tokens, 3 * 16 * 16);
  EXPECT_EQ(result.trace.qk_density(0), 1.0);
  const double sparse = result.trace.qk_density(1);
  EXPECT_LT(sparse, 0.8);
  EXPECT_GT(sparse, 0.1);
  EXPECT_NEAR(result.trace.pv_density(1), sparse,
              1e-9);  // no skip rule: what is listed is computed
}

// A list of timesteps has 4 steps, whatever the request's number says.
TEST_F(GenerationTest, SharesOfStepsAreOfTheStepsThatRun) {
  Request r = request();
  r.width = 256, r.height = 256;
  r.sampler.kind = SamplerKind::ode_list;
  r.sampler.num_steps = 50;
  r.attention = "xattention:top_p=0.5";
  r.dense_steps = "50%";
  const GenerationResult result = make(r, "few");
  EXPECT_EQ(result.trace.qk_density(1), 1.0);
  EXPECT_LT(result.trace.qk_density(2), 0.8);
}

TEST_F(GenerationTest, LatentsCanBeDecodedLater) {
  make(request(), "a");
  const auto model = Model::synthetic("tiny", DType::bf16);
  Context ctx{*backend_, DType::bf16};
  const LoadedState loaded = load_state(folder_ / "a.safetensors");
  decode_to_file(*model, ctx, loaded.request, loaded.state.latents, folder_ / "later.y4m", {}, {});
  EXPECT_EQ(bytes("later.y4m"), bytes("a.y4m"));
}

TEST_F(GenerationTest, RefusesBeforeAnyWork) {
  const auto refuses = [&](auto change, const std::string& says = "") {
    Request r = request();
    change(r);
    int steps = 0;
    GenerationHooks hooks;
    hooks.step = [&](const StepReport&) { ++steps; };
    const std::string said = test::error_of([&] { make(r, "x", hooks); });
    EXPECT_NE(said, "");
    EXPECT_THAT(said, testing::HasSubstr(says));
    EXPECT_EQ(steps, 0);
    EXPECT_TRUE(fs::is_empty(folder_));
  };
  refuses([](Request& r) { r.width = 100; });
  refuses([](Request& r) { r.height = 0; });
  refuses([](Request& r) { r.width = 1 << 30; });
  refuses([](Request& r) { r.frames = 8; });
  refuses([](Request& r) { r.frames = -1; });
  refuses([](Request& r) { r.attention = "nothing"; });
  refuses([](Request& r) { r.attention = "xattention:top_p=7"; });
  refuses([](Request& r) { r.skip = "running_max:lambda=-1"; });
  refuses([](Request& r) { r.dense_steps = "9"; });
  refuses([](Request& r) { r.dtype = "int3"; });
  refuses([](Request& r) { r.sampler.num_steps = 0; });
  // Said before anybody looks whether there is such a file.
  const std::function<void(Request&)> words[] = {
      [](Request& r) { r.attention = "window"; }, [](Request& r) { r.skip = "recall:r=0.9"; },
      [](Request& r) { r.dense_steps = "1"; }, [](Request& r) { r.dense_layers = "0"; },
      [](Request& r) { r.min_tokens = 9; }};
  for (const auto& word : words) {
    refuses([&](Request& r) { r.profile = "none.json", word(r); }, "leave out");
    refuses([&](Request& r) { r.replay_masks = "none.safetensors", word(r); }, "leave out");
  }
  refuses([](Request& r) { r.replay_masks = "none.safetensors", r.profile = "none.json"; },
          "leave out");
}

TEST_F(GenerationTest, LatentsThatAreNoNumbersEndTheRun) {
  Request r = request();
  r.dtype = "f32";
  r.guidance = r.guidance_low = 1e39;  // infinite as f32
  EXPECT_THAT(test::error_of([&] { make(r, "x"); }),
              testing::HasSubstr("not a finite number after step 0"));
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(GenerationTest, RefusesMoreMemoryThanAllowed) {
  const auto model = Model::synthetic("tiny", DType::bf16);
  Context ctx{*backend_, DType::bf16};
  try {
    generate(*model, ctx, request(), files("m"), {}, 1 << 20, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("may be used"), std::string::npos) << error.what();
  }
}

TEST_F(GenerationTest, AdvisesByWhatTakesTheMemory) {
  constexpr int64_t kMiB = 1 << 20;
  const auto refusal = [&](const MemoryPlan& plan) {
    return test::error_of([&] { check_memory(plan, *backend_, 100 * kMiB, {}); });
  };
  EXPECT_THAT(refusal({.weights = 90 * kMiB, .activations = 20 * kMiB}),
              testing::EndsWith("try a checkpoint of fewer bits (GGUF), a smaller size or fewer "
                                "frames"));
  EXPECT_THAT(refusal({.weights = 5 * kMiB, .attention = 110 * kMiB}),
              testing::EndsWith("try a smaller size or fewer frames"));
  MemoryPlan decoder{.weights = 5 * kMiB, .decoder = 110 * kMiB, .tiles = "exact"};
  EXPECT_THAT(refusal(decoder),
              testing::EndsWith("try --vae-tile exact, a smaller size or fewer frames"));
  decoder.tiles = {}, decoder.f32 = true;
  EXPECT_THAT(refusal(decoder), testing::EndsWith("try --dtype bf16, a smaller size or fewer "
                                                  "frames"));
}

TEST_F(GenerationTest, NotesTheMemoryThatIsHeld) {
  constexpr int64_t kMiB = 1 << 20;
  std::string line;
  const auto noted = [&](const MemoryPlan& plan) {
    check_memory(plan, *backend_, 0, [&](const std::string& note) { line = note; });
    return line;
  };
  EXPECT_THAT(noted({.decoder = 36 * kMiB}),
              testing::StartsWith("memory: decoder 36.0 MiB; peak 36.0 MiB of "));
  EXPECT_THAT(
      noted({.weights = 256 * kMiB, .activations = 52 * kMiB}),
      testing::StartsWith("memory: weights 0.25 GiB, activations 52.0 MiB; peak 0.30 GiB of "));
}

// Before step 0: a method that moves tokens holds q, k, v and out twice.
TEST_F(GenerationTest, PlansForTokensInAnotherOrder) {
  const auto model = Model::synthetic("tiny", DType::bf16);
  Request r = request();
  GenerationFiles only_latents = files("m");
  only_latents.video.clear();
  const MemoryPlan dense = plan_memory(*model, r, {}, false);
  GenerationHooks hooks;
  hooks.plan_only = true;
  constexpr int64_t kState = 64 << 10;  // what attention holds is less
  const auto begin = [&](const char* attention, int64_t room) {
    r.attention = attention;
    Context ctx{*backend_, DType::bf16};
    generate(*model, ctx, r, only_latents, {}, dense.weights + dense.activations + room, hooks);
  };
  for (const char* attention : {"dense", "xattention", "sparge"})
    EXPECT_NO_THROW(begin(attention, kState)) << attention;
  for (const char* attention : {"window", "svg", "svg2", "sparge:hilbert=1"})
    EXPECT_THROW(begin(attention, kState), Error) << attention;
  EXPECT_EQ(plan_memory(*model, r, {}, true).activations - dense.activations,
            4 * 3 * 4 * 6 * 256 * 2);
  // Means instead of dropped blocks make a second output.
  constexpr int64_t kOutput = 3 * 4 * 6 * 256 * 2;
  EXPECT_NO_THROW(begin("xattention:block=16,stride=4", kOutput - 1000));
  EXPECT_THROW(begin("xattention:block=16,stride=4,compensate=pooled_row", kOutput - 1000), Error);
}

// Before step 0: masks, orders and states of 4 layers and 2 guidance branches, of 4 heads of 64
// channels over 72 tokens, and the copy that a stopped run goes on from.
TEST_F(GenerationTest, PlansForWhatAttentionHolds) {
  const auto model = Model::synthetic("tiny", DType::bf16);
  Request r = request();
  r.guidance = r.guidance_low = 5.0;
  const auto site = [&](const char* attention, const char* skip = "none") {
    r.attention = attention;
    r.skip = skip;
    return attention_bytes(*model, r, request_policy(*model, r)) / 8.0;
  };
  constexpr int64_t kMask = 4 * 5 * 8;  // 5 blocks: a word for each row
  EXPECT_EQ(site("dense"), 0);
  EXPECT_EQ(site("xattention:block=16,stride=4"), kMask / 8.0) << "of one call at a time";
  EXPECT_EQ(site("xattention:block=16,stride=4,refresh=never"), 2 * kMask);
  EXPECT_EQ(site("xattention:block=16,stride=4,refresh=drift,pool=16"),
            2 * (kMask + 2 * 4 * 5 * 64 * 4));
  EXPECT_EQ(site("dense:refresh=carry", "running_max:lambda=0.9"), 2 * 4 * 8);
  EXPECT_EQ(site("svg2:q_clusters=3,k_clusters=5"),
            2 * 4 * (3 + 5) * 64 * 2 + (4 * 3 * 8 + 2 * 4 * 72 * 4 + 4 * (4 + 6) * 4) / 8.0);
  const double adaspa = site("adaspa:block=16");
  EXPECT_EQ(adaspa, 2 * (kMask + 4 * (72 * 4 + 2 * 8)));
  r.dense_layers = "0";
  EXPECT_EQ(site("adaspa:block=16"), adaspa * 3 / 4);
  r.dense_layers = "";
  r.guidance = r.guidance_low = 1.0;
  EXPECT_EQ(site("adaspa:block=16"), adaspa / 2);

  const MemoryPlan plan = plan_memory(*model, r, {}, false);
  const int64_t most = plan.weights + plan.activations + static_cast<int64_t>(4 * adaspa);
  GenerationFiles only_latents = files("h");
  only_latents.video.clear();
  GenerationHooks hooks;
  hooks.plan_only = true;
  std::string line;
  hooks.note = [&](const std::string& note) { line = note; };
  const auto begin = [&](int64_t max_memory) {
    Context ctx{*backend_, DType::bf16};
    generate(*model, ctx, r, only_latents, {}, max_memory, hooks);
  };
  EXPECT_NO_THROW(begin(most));
  EXPECT_THAT(line, testing::HasSubstr(", attention state 0.0 MiB; peak "));
  EXPECT_THROW(begin(most - 1), Error);
}

TEST_F(GenerationTest, RefusesHostileLatentsFiles) {
  make(request(), "a");
  const std::string good = bytes("a.safetensors");
  const fs::path bad = folder_ / "bad.safetensors";
  const auto write = [&](const std::string& text) {
    std::ofstream(bad, std::ios::binary) << text;
    const std::string error = test::error_of([&] { load_state(bad); });
    EXPECT_THAT(error, testing::HasSubstr(bad.string()));
    return error;
  };
  write("");
  write(good.substr(0, good.size() / 2));
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"latents-1", "latents-9"},
                                 {"\"next_step\":\"4\"", "\"next_step\":\"5\""},
                                 {"\"next_step\":\"4\"", "\"next_step\":\"x\""}}) {
    std::string text = good;
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write(text.replace(at, from.size(), to));
  }
  std::string text = good;
  const std::string prompts = "\"prompts\":\"";
  const size_t at = text.find(prompts);
  ASSERT_NE(at, std::string::npos);
  text[at + prompts.size()] = 'g';
  write(text);
  // Keys and values of the request, as long as before.
  for (const auto& [from, to, says] :
       {std::array{"unipc", "unipq", "sampler: unipq, expected unipc"},
        {"diffusers", "diffusern", "sigma_convention: diffusern, expected diffusers"},
        {"\\\"width\\\":96", "\\\"widht\\\":96", "'width' not found"},
        {"\\\"width\\\":96", "\\\"width\\\":[]", "must be number"},
        {"\\\"width\\\":96", "\\\"width\\\":9]", "not JSON"},
        {"\\\"frames\\\":9", "\\\"height\\\":9", "key \"height\" twice"}}) {
    text = good;
    const size_t place = text.find(from);
    ASSERT_NE(place, std::string::npos) << from;
    EXPECT_THAT(
        write(text.replace(place, std::string_view(from).size(), to)),
        testing::AllOf(testing::HasSubstr("bad.safetensors request: "), testing::HasSubstr(says)));
  }
}

TEST(Request, RoundTripsThroughJson) {
  Request r;
  r.prompt = "line\nbreak \"quotes\" \xF0\x9F\x90\x88";
  r.seed = UINT64_MAX;
  r.sampler.timesteps = {1000, 757, 522};
  r.sampler.kind = SamplerKind::renoise;
  r.guidance = 0.1;
  const Request back = Request::from_json(r.to_json());
  EXPECT_EQ(back.to_json(), r.to_json());
  EXPECT_EQ(back.prompt, r.prompt);
  EXPECT_EQ(back.seed, r.seed);
  EXPECT_EQ(back.sampler.seed, r.seed);
  EXPECT_EQ(r.to_json().find("policy_content"), std::string::npos) << "only where there is one";
  r.policy_content = "0123456789abcdef";
  EXPECT_EQ(Request::from_json(r.to_json()).policy_content, r.policy_content);
  EXPECT_EQ(r.to_json().find("image_content"), std::string::npos) << "only where there is one";
  r.image = "first.png", r.image_content = "0123456789abcdef";
  EXPECT_EQ(Request::from_json(r.to_json()).image, r.image);
  r.tae = "taew2_1.safetensors";
  EXPECT_EQ(Request::from_json(r.to_json()).tae, r.tae);
  EXPECT_EQ(Request::from_json(r.to_json()).image_content, r.image_content);
  EXPECT_THROW(Request::from_json("{}"), Error);
  EXPECT_THROW(Request::from_json("[1]"), Error);
  std::string extra = r.to_json();
  extra.insert(extra.size() - 1, ",\"more\":1");
  EXPECT_EQ(test::error_of([&] { Request::from_json(extra, "a.mp4 request"); }),
            "a.mp4 request: unknown key more");
}

}  // namespace
}  // namespace lacuna
