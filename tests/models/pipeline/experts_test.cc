// SPDX-License-Identifier: Apache-2.0
// Two networks take turns: which runs when, under which guidance.
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "lacuna/models/pipeline/generation.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;

// Boundaries that leave all steps to one of the two.
constexpr double kAllHigh = 0.0, kAllLow = 2.0;

std::vector<float> made(const fs::path& checkpoint, double boundary, double guidance,
                        double guidance_low) {
  const auto backend = make_backend("cpu");
  const auto model = Model::open(std::array{checkpoint});
  const TempFolder folder;
  GenerationFiles files;
  files.latents = folder.path() / "latents.safetensors";
  Request r;
  r.model = "test";
  r.prompt = "A big red circle";
  r.width = 32, r.height = 16, r.frames = 3;
  r.sampler.num_steps = 2;
  r.sampler.shift = 3.0;
  r.guidance = guidance, r.guidance_low = guidance_low;
  r.boundary = boundary;
  r.seed = 5;
  r.dtype = "f32";
  Context ctx{*backend};
  generate(*model, ctx, r, files, {}, 0, {});
  const LoadedState done = load_state(files.latents);
  const Tensor& latents = done.state.latents;
  return {latents.as<float>(), latents.as<float>() + latents.numel()};
}

TEST(Experts, TheBoundaryItselfIsHighNoise) {
  Request r;
  r.sampler.kind = SamplerKind::ode_list;
  r.sampler.timesteps = {1000, 750, 500};
  r.sampler.warp_timesteps = false;
  r.boundary = 0.75;
  const auto sampler = make_sampler(r.sampler);
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(expert_at(2, r, *sampler, step), step == 2 ? 1 : 0) << step;
    EXPECT_EQ(expert_at(1, r, *sampler, step), 0) << step;
  }
}

TEST(Experts, EachHasItsOwnGuidance) {
  const TinyCheckpoint checkpoint({.experts = 2, .layers = 1});
  const fs::path& f = checkpoint.folder();
  const auto low = made(f, kAllLow, 7, 3), high = made(f, kAllHigh, 7, 3);
  EXPECT_EQ(low, made(f, kAllLow, 1, 3));  // guided although the other is not
  EXPECT_NE(low, made(f, kAllLow, 7, 5));
  EXPECT_EQ(high, made(f, kAllHigh, 7, 1));
  EXPECT_NE(high, made(f, kAllHigh, 5, 3));
}

// As it runs from a folder where the two have changed places.
TEST(Experts, BelowTheBoundaryTheSecondNetworkRuns) {
  const TinyCheckpoint checkpoint({.experts = 2, .layers = 1});
  const fs::path& f = checkpoint.folder();
  const TempFolder turned;
  for (const auto& entry : fs::directory_iterator(f)) {
    const std::string name = entry.path().filename().string();
    const std::string to = name == "transformer"     ? "transformer_2"
                           : name == "transformer_2" ? "transformer"
                                                     : name;
    fs::create_symlink(entry.path(), turned.path() / to);
  }
  const auto second = made(f, kAllLow, 3, 3);
  EXPECT_EQ(second, made(turned.path(), kAllHigh, 3, 3));
  EXPECT_NE(second, made(f, kAllHigh, 3, 3));
}

}  // namespace
}  // namespace lacuna::test
