// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/scheduler/sampler.h"

#include <fmt/ranges.h>

#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/scheduler/unipc.h"

namespace lacuna {
namespace {

constexpr int kMaxSteps = 1000;

// numpy's roundings, because timesteps are truncated: the product is rounded before the sum, which
// -ffp-contract=fast would not do.
double linspace(double first, double last, int count, int i) {
  if (count == 1) return first;
  const volatile double offset = i * ((last - first) / (count - 1));
  return offset + first;
}

// Step i of n of Mochi's schedule. One step starts at noise; upstream divides by zero there.
double linear_quadratic(int n, int i) {
  constexpr double kLinearEnd = 0.025;
  if (n == 1) return 1.0;
  const double linear = n / 2, curved = n - n / 2;
  const double slope = kLinearEnd / linear;
  if (i < n / 2) return 1.0 - i * slope;
  const double a = (linear - kLinearEnd * n) / (linear * curved * curved);
  const double past = i - linear;
  return 1.0 - (kLinearEnd + slope * past + a * past * past);
}

std::vector<double> shifted_sigmas(const SamplerConfig& config) {
  const int n = config.num_steps;
  std::vector<double> sigmas(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {
    double base = 0.0;
    switch (config.convention) {
      case SigmaConvention::diffusers:
        base = linspace(1.0, 0.001, n + 1, i);
        break;
      case SigmaConvention::wan:
        base = linspace(double{0.999f}, 0.0, n + 1, i);  // upstream keeps it in f32
        break;
      case SigmaConvention::flow_matching:
        base = linspace(1.0, shift_sigma(0.001, config.shift), n, i);
        break;
      case SigmaConvention::unit:
        base = linspace(1.0, 0.0, n + 1, i);
        break;
      case SigmaConvention::linear_quadratic:
        base = linear_quadratic(n, i);
        break;
    }
    sigmas[i] = shift_sigma(base, config.shift);
  }
  return sigmas;
}

// x += (sigma_next - sigma) v.
class Euler : public Sampler {
 public:
  // Timesteps are floats here: 1000 sigma, not truncated.
  explicit Euler(const std::vector<double>& sigmas) {
    for (double s : sigmas) {
      sigmas_.push_back(static_cast<float>(s));
      timesteps_.push_back(static_cast<float>(1000.0 * s));
    }
    sigmas_.push_back(0.0f);
  }
  void step(int step, std::span<const float> velocity, std::span<float> x) override {
    const float delta = sigmas_[step + 1] - sigmas_[step];
    for (size_t i = 0; i < x.size(); ++i) x[i] += delta * velocity[i];
  }
};

// x0 = x - sigma v; x = (1 - sigma') x0 + sigma' fresh noise; the last step returns x0.
class Renoise : public Euler {
 public:
  Renoise(const std::vector<double>& sigmas, uint64_t seed) : Euler(sigmas), seed_(seed) {}
  void step(int step, std::span<const float> velocity, std::span<float> x) override {
    const float sigma = sigmas_[step], next = sigmas_[step + 1];
    if (next > 0.0f) {
      noise_.resize(x.size());
      // A seed per step keeps a resumed run equal to an uninterrupted one.
      torch_randn(seed_ + 0x9E3779B9ull * static_cast<uint64_t>(step + 1), noise_);
    }
    for (size_t i = 0; i < x.size(); ++i) {
      const float x0 = x[i] - sigma * velocity[i];
      x[i] = next > 0.0f ? (1.0f - next) * x0 + next * noise_[i] : x0;
    }
  }

 private:
  uint64_t seed_;
  std::vector<float> noise_;
};

std::vector<double> listed_sigmas(const SamplerConfig& config) {
  std::vector<double> list = config.timesteps;
  if (list.empty()) list = {1000, 750, 500, 250};
  LACUNA_CHECK(list.size() <= size_t{kMaxSteps}, "sampler: {} timesteps, expected at most {}",
               list.size(), kMaxSteps);
  std::vector<double> sigmas;
  for (double t : list) {
    LACUNA_CHECK(t > 0.0 && t <= 1000.0, "sampler: timestep {}, expected (0, 1000]", t);
    sigmas.push_back(config.warp_timesteps ? shift_sigma(t / 1000.0, config.shift) : t / 1000.0);
    LACUNA_CHECK(sigmas.size() < 2 || sigmas.back() < sigmas[sigmas.size() - 2],
                 "sampler: timestep {} after {}, expected a descending list", t,
                 list[sigmas.size() - 2]);
  }
  return sigmas;
}

}  // namespace

double shift_sigma(double sigma, double shift) {
  return shift * sigma / (1.0 + (shift - 1.0) * sigma);
}

namespace {
constexpr std::string_view kConventions[] = {"diffusers", "wan", "flow_matching", "unit",
                                             "linear_quadratic"};
}  // namespace

std::string_view convention_name(SigmaConvention convention) {
  return kConventions[static_cast<int>(convention)];
}

SigmaConvention parse_convention(std::string_view name) {
  for (size_t i = 0; i < std::size(kConventions); ++i)
    if (name == kConventions[i]) return static_cast<SigmaConvention>(i);
  fail("sigma_convention: {}, expected {}", name, fmt::join(kConventions, ", "));
}

std::string_view sampler_name(SamplerKind kind) {
  constexpr std::string_view kNames[] = {"unipc", "euler", "ode", "renoise"};
  return kNames[static_cast<int>(kind)];
}

SamplerKind parse_sampler(std::string_view name) {
  for (SamplerKind kind :
       {SamplerKind::unipc, SamplerKind::euler, SamplerKind::ode_list, SamplerKind::renoise}) {
    if (name == sampler_name(kind)) return kind;
  }
  fail("sampler: {}, expected unipc, euler, ode or renoise", name);
}

void Sampler::set_state(int next_step, std::span<const NamedState> state) {
  LACUNA_CHECK(next_step >= 0 && next_step <= num_steps(), "sampler: resume at step {} of {}",
               next_step, num_steps());
  LACUNA_CHECK(state.empty(), "sampler: unexpected state {}", state.front().name);
}

std::unique_ptr<Sampler> make_sampler(const SamplerConfig& config) {
  LACUNA_CHECK(config.num_steps >= 1 && config.num_steps <= kMaxSteps,
               "sampler: {} steps, expected 1 to {}", config.num_steps, kMaxSteps);
  LACUNA_CHECK(config.shift > 0.0 && config.shift <= 100.0, "sampler: shift {}, expected (0, 100]",
               config.shift);
  switch (config.kind) {
    case SamplerKind::unipc:
      return std::make_unique<UniPC>(shifted_sigmas(config));
    case SamplerKind::euler:
      return std::make_unique<Euler>(shifted_sigmas(config));
    case SamplerKind::ode_list:
      return std::make_unique<Euler>(listed_sigmas(config));
    case SamplerKind::renoise:
      return std::make_unique<Renoise>(listed_sigmas(config), config.seed);
  }
  fail("sampler: unknown kind");
}

}  // namespace lacuna
