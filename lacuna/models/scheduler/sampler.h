// SPDX-License-Identifier: Apache-2.0
// Flow-matching samplers: x_sigma = (1 - sigma) x0 + sigma noise, the model predicts
// velocity v = noise - x0, its time input is the timestep (about 1000 sigma).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"

namespace lacuna {

enum class SamplerKind : uint8_t {
  unipc,     // UniPC order 2, bh2, x0 prediction: Wan's default (arXiv 2302.04867)
  euler,     // first order on the same shifted sigmas as unipc
  ode_list,  // few steps on a fixed list of timesteps, Euler (lightx2v distilled models)
  renoise,   // few steps, x0 prediction then fresh noise (Self-Forcing, FastWan: DMD models)
};

// How base sigmas are spaced before the shift.
enum class SigmaConvention : uint8_t {
  diffusers,      // linspace(1, 0.001, n + 1) without its last element
  wan,            // linspace(0.999f, 0, n + 1) without its last element; original Wan code
  flow_matching,  // linspace(1000, 1000 S(0.001), n) / 1000, then shifted again (stand-alone Euler)
  unit,           // linspace(1, 0, n + 1) without its last element: HunyuanVideo
  // Mochi: the first n / 2 steps are even ones to 1 - 0.025, the others a parabola from there to 0
  // that leaves with the same slope.
  linear_quadratic,
};

struct SamplerConfig {
  SamplerKind kind = SamplerKind::unipc;
  SigmaConvention convention = SigmaConvention::diffusers;
  int num_steps = 50;
  double shift = 5.0;
  // ode_list and renoise: timesteps in [0, 1000], descending; empty = 1000, 750, 500, 250.
  std::vector<double> timesteps;
  bool warp_timesteps =
      true;           // apply the shift to `timesteps`; false when the list is already shifted
  uint64_t seed = 0;  // renoise: noise of step i is a function of (seed, i)
};

// `diffusers`, `wan`, `flow_matching`, `unit`, `linear_quadratic`.
std::string_view convention_name(SigmaConvention convention);
// Throws Error listing them.
SigmaConvention parse_convention(std::string_view name);

std::string_view sampler_name(SamplerKind kind);
// `unipc`, `euler`, `ode`, `renoise`; throws Error listing them.
SamplerKind parse_sampler(std::string_view name);

class Sampler {
 public:
  virtual ~Sampler() = default;
  int num_steps() const { return static_cast<int>(timesteps_.size()); }
  float timestep(int step) const { return timesteps_[step]; }  // model input
  float sigma(int step) const { return sigmas_[step]; }        // sigma(num_steps()) is the last
  std::span<const float> timesteps() const { return timesteps_; }

  // Advances x [n] in place from sigma(step) to sigma(step + 1) with the (guided) velocity [n].
  // Steps run in order, except that a sampler restored with set_state() may start anywhere.
  virtual void step(int step, std::span<const float> velocity, std::span<float> x) = 0;

  // What must be saved beside x so that a run resumed at `step` goes on bit for bit.
  struct NamedState {
    std::string name;
    std::span<const float> values;
  };
  virtual std::vector<NamedState> state() const { return {}; }
  // Throws Error when a name is unknown or sizes differ. `next_step` = first step still to run.
  virtual void set_state(int next_step, std::span<const NamedState> state);

 protected:
  std::vector<float> timesteps_;  // [n]
  std::vector<float> sigmas_;     // [n + 1]
};

// Throws Error on num_steps outside 1..1000, shift outside (0, 100], or a timestep list that is not
// descending, in (0, 1000] and of at most 1000.
std::unique_ptr<Sampler> make_sampler(const SamplerConfig& config);

// s sigma / (1 + (s - 1) sigma)
double shift_sigma(double sigma, double shift);

}  // namespace lacuna
