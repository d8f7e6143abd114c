// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/scheduler/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

// The analytic "model" of the goldens: v_j = 0.5 x_j - 0.25 cos(0.003 t + 0.1 j).
std::vector<float> velocity(std::span<const float> x, float t) {
  std::vector<float> v(x.size());
  for (size_t j = 0; j < x.size(); ++j)
    v[j] = static_cast<float>(0.5 * x[j] - 0.25 * std::cos(0.003 * t + 0.1 * j));
  return v;
}

std::vector<float> start() {
  std::vector<float> x(16);
  fill_hash("x:sched", 0.0, std::sqrt(3.0), x);
  return x;
}

std::vector<float> run(Sampler& sampler, std::vector<float> x, int begin, int end) {
  for (int i = begin; i < end; ++i) sampler.step(i, velocity(x, sampler.timestep(i)), x);
  return x;
}

struct Golden {
  SamplerConfig config;
  std::vector<float> timesteps;
  double first[4];
  double sum;
};

class SamplerGolden : public testing::TestWithParam<Golden> {};

TEST_P(SamplerGolden, MatchesUpstream) {
  const Golden& g = GetParam();
  auto sampler = make_sampler(g.config);
  ASSERT_EQ(sampler->num_steps(), static_cast<int>(g.timesteps.size()));
  for (size_t i = 0; i < g.timesteps.size(); ++i)
    EXPECT_NEAR(sampler->timestep(i), g.timesteps[i], 1e-3 * (1 + 1e-3 * g.timesteps[i]));
  const auto x = run(*sampler, start(), 0, sampler->num_steps());
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(x[i], g.first[i], 2e-5 * (1 + std::abs(g.first[i]))) << i;
  EXPECT_NEAR(std::accumulate(x.begin(), x.end(), 0.0), g.sum, 2e-4);
}

SamplerConfig config(SamplerKind kind, int steps, double shift,
                     SigmaConvention convention = SigmaConvention::diffusers) {
  return {.kind = kind, .convention = convention, .num_steps = steps, .shift = shift};
}

INSTANTIATE_TEST_SUITE_P(
    Goldens, SamplerGolden,
    testing::Values(Golden{config(SamplerKind::unipc, 6, 3),
                           {999, 937, 857, 750, 600, 376},
                           {0.08684207, 1.009422, -1.000644, -0.7989953},
                           -1.990138},
                    Golden{config(SamplerKind::unipc, 4, 5),
                           {999, 937, 833, 625},
                           {-0.01032483, 0.8705839, -1.051197, -0.8576157},
                           -3.034957},
                    Golden{config(SamplerKind::unipc, 1, 5),
                           {999},
                           {-0.1733517, 0.6151805, -1.060868, -0.8742498},
                           -3.160825},
                    Golden{config(SamplerKind::unipc, 2, 8),
                           {999, 889},
                           {-0.1352573, 0.6853325, -1.080573, -0.892299},
                           -3.472497},
                    Golden{config(SamplerKind::unipc, 6, 5, SigmaConvention::wan),
                           {999, 961, 908, 833, 713, 499},
                           {0.04596348, 0.9504099, -1.023738, -0.8262159},
                           -2.508761},
                    Golden{config(SamplerKind::euler, 4, 5, SigmaConvention::flow_matching),
                           {1000, 909.7072, 717.3174, 24.41407},
                           {-0.04683794, 0.8193136, -1.062045, -0.8691158},
                           -3.1362},
                    Golden{config(SamplerKind::euler, 6, 3, SigmaConvention::flow_matching),
                           {1000, 923.3425, 818.9233, 668.3267, 432.2251, 8.928572},
                           {0.05038787, 0.9566271, -1.015154, -0.81583},
                           -2.264114}));

// numpy.linspace rounds the product, then the sum; truncated timesteps show each other way of doing
// it. Numbers of numpy, with 0.999 in f32 where the original code has it so.
TEST(Sampler, SpacesSigmasAsNumpyDoes) {
  const auto timesteps = [](int steps, double shift, SigmaConvention convention) {
    const auto sampler = make_sampler(config(SamplerKind::unipc, steps, shift, convention));
    return std::vector<float>(sampler->timesteps().begin(), sampler->timesteps().end());
  };
  EXPECT_EQ(timesteps(3, 1, SigmaConvention::wan), (std::vector<float>{999, 666, 333}));
  EXPECT_EQ(timesteps(9, 1, SigmaConvention::diffusers),
            (std::vector<float>{999, 889, 778, 667, 556, 444, 333, 222, 111}));
  EXPECT_EQ(timesteps(51, 6, SigmaConvention::diffusers).back(), 112.0f);
  const auto wan = make_sampler(config(SamplerKind::unipc, 50, 5, SigmaConvention::wan));
  EXPECT_EQ(wan->sigma(15), 0.9208101034164429f);
  EXPECT_EQ(wan->sigma(19), 0.8905484676361084f);
  EXPECT_EQ(wan->sigma(45), 0.35688769817352295f);
  EXPECT_EQ(wan->sigma(47), 0.24174034595489502f);
}

// FlowMatchEulerDiscreteScheduler of diffusers 0.42.1 under the sigmas of its HunyuanVideo and
// Mochi pipelines; Mochi's time runs the other way there.
TEST(Sampler, SigmasOfJointPipelines) {
  const auto expect = [](const SamplerConfig& config, std::vector<float> sigmas) {
    const auto sampler = make_sampler(config);
    sigmas.push_back(0.0f);
    ASSERT_EQ(sampler->num_steps() + 1, static_cast<int>(sigmas.size()));
    for (size_t i = 0; i < sigmas.size(); ++i)
      EXPECT_NEAR(sampler->sigma(static_cast<int>(i)), sigmas[i], 1.5e-7) << i;
  };
  const auto euler = SamplerKind::euler;
  expect(
      config(euler, 5, 7.0, SigmaConvention::unit),
      {1.0f, 0.9655172228813171f, 0.9130434393882751f, 0.8235293626785278f, 0.6363636255264282f});
  expect(config(euler, 5, 1.0, SigmaConvention::linear_quadratic),
         {1.0f, 1 - 0.012499988079071045f, 1 - 0.02499997615814209f, 1 - 0.14166665077209473f,
          1 - 0.46666663885116577f});
  expect(
      config(euler, 8, 1.0, SigmaConvention::linear_quadratic),
      {1.0f, 1 - 0.00625002384185791f, 1 - 0.012499988079071045f, 1 - 0.018750011920928955f,
       1 - 0.02499997615814209f, 1 - 0.09062498807907104f, 1 - 0.2749999761581421f, 1 - 0.578125f});
  expect(config(euler, 1, 1.0, SigmaConvention::linear_quadratic), {1.0f});
}

TEST(Sampler, OdeListUsesTheShiftedSigmas) {
  auto sampler = make_sampler(config(SamplerKind::ode_list, 4, 5));
  const double expected[] = {1.0, 0.9375, 0.83333333, 0.625, 0.0};
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(sampler->sigma(i), expected[i], 1e-6);
}

TEST(Sampler, RenoiseEndsAtTheLastPrediction) {
  SamplerConfig c = config(SamplerKind::renoise, 3, 5);
  c.timesteps = {1000, 757, 522};
  c.warp_timesteps = false;
  auto sampler = make_sampler(c);
  std::vector<float> x = run(*sampler, start(), 0, 2);
  const auto v = velocity(x, sampler->timestep(2));
  std::vector<float> last = x;
  sampler->step(2, v, last);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_FLOAT_EQ(last[i], x[i] - 0.522f * v[i]);
}

TEST(Sampler, RenoiseAddsFreshNoiseOfItsSeed) {
  SamplerConfig c = config(SamplerKind::renoise, 3, 5);
  c.timesteps = {1000, 750, 500};
  c.warp_timesteps = false;
  constexpr size_t kCount = 4096;
  const auto stepped = [&](uint64_t seed, int step, float from, float slope) {
    c.seed = seed;
    std::vector<float> x(kCount, from);
    make_sampler(c)->step(step, std::vector<float>(kCount, slope), x);
    return x;
  };
  const auto noise = [&](uint64_t seed, int step) {  // x0 = 0: nothing else is left
    std::vector<float> x = stepped(seed, step, 0.0f, 0.0f);
    for (float& value : x) value /= step == 0 ? 0.75f : 0.5f;
    return x;
  };
  const auto product = [&](const std::vector<float>& a, const std::vector<float>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0) / kCount;
  };
  const std::vector<float> first = noise(7, 0), second = noise(7, 1), other = noise(8, 0);
  std::vector<float> latents(kCount);  // as a run of this seed begins
  torch_randn(7, latents);
  for (const auto* n : {&first, &second, &other}) {
    EXPECT_NEAR(std::accumulate(n->begin(), n->end(), 0.0) / kCount, 0.0, 0.08);
    EXPECT_NEAR(product(*n, *n), 1.0, 0.1);
  }
  EXPECT_NEAR(product(first, second), 0.0, 0.08);
  EXPECT_NEAR(product(first, other), 0.0, 0.08);
  EXPECT_NEAR(product(first, latents), 0.0, 0.08);
  EXPECT_EQ(first, noise(7, 0));
  const std::vector<float> mixed = stepped(7, 0, 1.0f, 3.0f);  // x0 = 1 - 1 * 3
  for (size_t i = 0; i < kCount; ++i)
    EXPECT_NEAR(mixed[i], 0.25f * -2.0f + 0.75f * first[i], 1e-5) << i;
}

// A resumed run must not differ in a single bit, from any step, for every sampler.
TEST(Sampler, ResumesBitForBit) {
  for (SamplerKind kind :
       {SamplerKind::unipc, SamplerKind::euler, SamplerKind::ode_list, SamplerKind::renoise}) {
    const SamplerConfig c = config(kind, 6, 5);
    auto whole = make_sampler(c);
    const int n = whole->num_steps();
    const auto expected = run(*whole, start(), 0, n);
    for (int stop = 0; stop <= n; ++stop) {
      auto first = make_sampler(c), second = make_sampler(c);
      const auto x = run(*first, start(), 0, stop);
      second->set_state(stop, first->state());
      EXPECT_EQ(run(*second, x, stop, n), expected) << sampler_name(kind) << " at " << stop;
    }
  }
}

TEST(Sampler, RejectsBadSettings) {
  EXPECT_THROW(make_sampler(config(SamplerKind::unipc, 0, 5)), Error);
  EXPECT_THROW(make_sampler(config(SamplerKind::unipc, 1001, 5)), Error);
  EXPECT_THROW(make_sampler(config(SamplerKind::unipc, 5, 0)), Error);
  SamplerConfig c = config(SamplerKind::ode_list, 4, 5);
  c.timesteps = {500, 750};
  EXPECT_THROW(make_sampler(c), Error);
  c.timesteps = {1001};
  EXPECT_THROW(make_sampler(c), Error);
  // A list is the schedule, so it is limited like one.
  c.warp_timesteps = false;
  c.timesteps.clear();
  for (int i = 0; i < 1000; ++i) c.timesteps.push_back(1000.0 - 0.5 * i);
  EXPECT_EQ(make_sampler(c)->num_steps(), 1000);
  c.timesteps.push_back(400.0);
  EXPECT_THROW(make_sampler(c), Error);
  EXPECT_THROW(parse_sampler("dpm"), Error);
  auto unipc = make_sampler(config(SamplerKind::unipc, 4, 5));
  EXPECT_THROW(unipc->set_state(2, {}), Error);
}

}  // namespace
}  // namespace lacuna
