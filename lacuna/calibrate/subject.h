// SPDX-License-Identifier: Apache-2.0
// What calibration needs of a model. Calibration knows attention and forwards in layers, not
// models: the command line binds this interface to a pipeline.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/engine/engine.h"
#include "lacuna/engine/profile.h"

namespace lacuna {

using NamedTensors = std::vector<std::pair<std::string, TensorView>>;

// Half open, of layers or steps.
struct IndexRange {
  int begin = 0, end = 0;
};

// One generation per prompt, step by step. Equal prompts and steps give equal bytes.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual Backend& backend() = 0;
  virtual const ProfileTarget& target() const = 0;
  // Everything that decides the generations (prompts, sizes, sampler, seed), for comparison.
  virtual std::string describe() const = 0;
  virtual int num_prompts() const = 0;
  virtual int num_experts() const = 0;
  // Which network runs a step; the steps of each are contiguous, expert 0 first.
  virtual int expert(int step) const = 0;
  // Forwards per step: 2 with classifier-free guidance, else 1.
  virtual int branches() const = 0;
  virtual std::array<int64_t, 4> latent_shape() const = 0;  // channels, frames, height, width
  virtual std::array<int64_t, 2> stream_shape() const = 0;  // rows and width between layers

  // Starts the generation of a prompt.
  virtual void begin(int prompt) = 0;
  // What restore() needs to go on from the current step.
  virtual NamedTensors state() const = 0;
  // Throws Error when the tensors are not those of state() at this step.
  virtual void restore(int prompt, int step, const NamedTensors& state) = 0;

  // Conditional forward of the current step, some layers of it: from 0 it starts at the latent, to
  // num_layers it ends in the velocity. residual of stream_shape() f32 in place, not read when
  // layers begin at 0; velocity of latent_shape() f32, written when they end at num_layers.
  virtual void run(Engine& engine, IndexRange layers, const TensorView& residual,
                   const TensorView& velocity) = 0;
  // Ends the step with its conditional velocity (which is changed): guidance and sampler.
  virtual void finish_step(Engine& engine, const TensorView& velocity) = 0;
};

}  // namespace lacuna
