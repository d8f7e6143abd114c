// SPDX-License-Identifier: Apache-2.0
// Several processes, here threads, make the bytes that one makes.
#include "lacuna/models/pipeline/work_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "lacuna/models/pipeline/generation.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"
#include "tests/support/thread_team.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;

constexpr const char* kCarries = "xattention:block=16,stride=4,top_p=0.6,refresh=drift,delta=0.02";

Request request_of(const std::string& attention, double guidance) {
  Request r;
  r.model = "test";
  r.prompt = "a red ball";
  r.width = 80, r.height = 48, r.frames = 13;  // 4 x 3 x 5 tokens
  r.sampler.num_steps = 3;
  r.guidance = r.guidance_low = guidance;
  r.dtype = "f32";
  r.attention = attention;
  r.seed = 5;
  return r;
}

class WorkShareTest : public testing::Test {
 protected:
  GenerationFiles files() const {
    GenerationFiles f;
    f.latents = temp_.path() / "latents.safetensors";
    f.keep_latents = true;
    return f;
  }
  // On a rank; null = alone.
  GenerationResult make(const Request& r, Team* team, GenerationHooks hooks = {},
                        std::optional<SamplingState> resume = std::nullopt,
                        const char* preset = "tiny") {
    const auto backend = make_backend("cpu");
    const auto model = Model::synthetic(preset, DType::f32);
    Context ctx{*backend, DType::f32};
    const WorkShare share(team, r.guided());
    ctx.team = share.forward_team();
    hooks.share = &share;
    return generate(*model, ctx, r, files(), {}, 0, hooks, std::move(resume));
  }
  std::vector<float> latents() const {
    const Tensor made = std::move(load_state(files().latents).state.latents);
    return {made.as<float>(), made.as<float>() + made.numel()};
  }
  const test::TempFolder temp_;
};

TEST_F(WorkShareTest, TheBytesOfOneProcess) {
  for (const char* attention : {"dense", kCarries, "adaspa:block=16,density=0.5",
                                "svg2:top_p=0.6,q_clusters=4,k_clusters=6"}) {
    for (const double guidance : {1.0, 4.0}) {
      const Request r = request_of(attention, guidance);
      const GenerationResult alone = make(r, nullptr);
      const std::vector<float> expected = latents();
      for (const int ranks : guidance == 1.0 ? std::vector{3} : std::vector{2, 4}) {
        GenerationResult all;
        in_team(ranks, [&](Team& team) {
          GenerationResult own = make(r, &team);
          if (team.is_root()) all = std::move(own);
        });
        EXPECT_EQ(latents(), expected) << attention << ", " << ranks << " ranks";
        ASSERT_EQ(all.trace.entries().size(), alone.trace.entries().size());
        for (size_t i = 0; i < all.trace.entries().size(); ++i) {
          const TraceEntry &a = alone.trace.entries()[i], &b = all.trace.entries()[i];
          EXPECT_EQ(b.site.layer, a.site.layer);
          EXPECT_EQ(b.site.branch, a.site.branch);
          EXPECT_EQ(b.num_heads, a.num_heads);
          EXPECT_EQ(b.heads_refreshed, a.heads_refreshed);
          EXPECT_NEAR(b.qk_density, a.qk_density, 1e-12);
          EXPECT_EQ(b.reason, a.reason);
        }
      }
    }
  }
}

TEST_F(WorkShareTest, BranchesOfAnyFamily) {
  Request r = request_of("xattention:block=16,stride=4,top_p=0.6", 4.0);
  r.width = r.height = 64, r.frames = 7;
  make(r, nullptr, {}, {}, "mochi-tiny");
  const std::vector<float> expected = latents();
  in_team(2, [&](Team& team) { make(r, &team, {}, {}, "mochi-tiny"); });
  EXPECT_EQ(latents(), expected);
}

TEST_F(WorkShareTest, GoesOnFromWhatAllOfThemCarried) {
  const Request r = request_of(kCarries, 4.0);
  make(r, nullptr);
  const std::vector<float> expected = latents();
  GenerationHooks hooks;
  hooks.step = [](const StepReport& report) {
    if (report.step == 1) throw Cancelled();
  };
  const auto stop = [&](int ranks) {
    EXPECT_THROW(in_team(ranks, [&](Team& team) { make(r, &team, hooks); }), Error);
    LoadedState loaded = load_state(files().latents);
    EXPECT_EQ(loaded.state.next_step, 2);
    return loaded;
  };
  stop(4);
  in_team(4, [&](Team& team) {
    LoadedState loaded = load_state(files().latents);
    std::string all_have_read;
    broadcast(team, all_have_read, 0);
    make(loaded.request, &team, {}, std::move(loaded.state));
  });
  EXPECT_EQ(latents(), expected);

  stop(2);
  const auto go_on = [&](Team* team) {
    LoadedState loaded = load_state(files().latents);
    make(loaded.request, team, {}, std::move(loaded.state));
  };
  EXPECT_THAT(test::error_of([&] { go_on(nullptr); }),
              HasSubstr("those of 2 processes, expected 1"));
  EXPECT_THAT(test::error_of([&] { in_team(3, [&](Team& team) { go_on(&team); }); }),
              HasSubstr("those of 2 processes, expected 3"));
}

TEST_F(WorkShareTest, EveryProcessTakesWhatTheRootEncoded) {
  in_team(2, [](Team& team) {
    Tensor rows, none;
    if (team.is_root()) {
      rows = Tensor(DType::f32, {1, 2});
      rows.as<float>()[0] = 3.0f;
      rows.as<float>()[1] = 4.0f;
    }
    WorkShare(&team, true).broadcast({&rows, &none});
    ASSERT_EQ(rows.view().describe(), "[1, 2] f32");
    EXPECT_EQ(rows.as<float>()[1], 4.0f);
    EXPECT_TRUE(none.empty());
  });
}

TEST_F(WorkShareTest, TogetherTheyHoldTheStateOfOne) {
  Request r = request_of("svg2:q_clusters=4,k_clusters=6,refresh=never", 4.0);
  r.width = r.height = 512, r.frames = 81;  // enough to be seen in MiB
  std::string line;
  GenerationHooks silent;
  silent.plan_only = true;
  GenerationHooks planning = silent;
  planning.note = [&](const std::string& note) { line = note; };
  const auto state = [&] {
    const size_t at = line.find("attention state");
    return at == std::string::npos ? line : line.substr(at, line.find_first_of(",;", at) - at);
  };
  make(r, nullptr, planning);
  const std::string alone = state();
  in_team(4, [&](Team& team) { make(r, &team, team.is_root() ? planning : silent); });
  EXPECT_THAT(alone, HasSubstr("attention state"));
  EXPECT_EQ(state(), alone);
}

TEST_F(WorkShareTest, WhatOneProcessCannotSeeIsRefused) {
  const Request r = request_of("dense", 1.0);
  GenerationHooks watching;
  watching.inputs = [](const auto&...) {};
  EXPECT_THAT(test::error_of([&] { in_team(2, [&](Team& team) { make(r, &team, watching); }); }),
              HasSubstr("recording, saving or replaying"));
  Request mochi = r;
  mochi.width = mochi.height = 64, mochi.frames = 7;
  EXPECT_THAT(test::error_of([&] {
                in_team(2, [&](Team& team) { make(mochi, &team, {}, {}, "mochi-tiny"); });
              }),
              HasSubstr("which only Wan's networks share"));
  GenerationHooks planning;
  planning.plan_only = true;
  EXPECT_THAT(test::error_of([&] { in_team(5, [&](Team& team) { make(r, &team, planning); }); }),
              HasSubstr("5 processes for 4 heads"));
  const Request both = request_of("adaspa:block=16,density=0.5,refresh=drift", 1.0);
  EXPECT_THAT(test::error_of([&] { in_team(2, [&](Team& team) { make(both, &team); }); }),
              HasSubstr("adaspa weighs heads against each other"));
}

}  // namespace
}  // namespace lacuna
