// SPDX-License-Identifier: Apache-2.0
// Dense generations of all prompts with a measurement inside their steps, resumable after a kill.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "lacuna/calibrate/subject.h"

namespace lacuna {

// What one calibration method measures. Its tensors are everything it has found so far.
class Measurement {
 public:
  virtual ~Measurement() = default;
  // Everything that decides the result besides the subject, as text, for comparison.
  virtual std::string settings() const = 0;
  virtual bool wants(int prompt, int step) const = 0;
  // Layers that measure() runs at a wanted step.
  virtual int64_t cost(int prompt, int step) const = 0;
  // Runs the conditional forward of the subject's current step, leaves the dense velocity in
  // `velocity` [latent_shape] and adds to tensors(). Calls `ran` with the number of layers run
  // since the last call; tensors() may be saved then. A stop in the middle leads to a second call
  // for the same step with the tensors of the last `ran`, and the result must be as if there had
  // been none.
  virtual void measure(Subject& subject, int prompt, int step, const TensorView& velocity,
                       const std::function<void(int64_t)>& ran) = 0;
  // Of fixed names, dtypes and shapes, contiguous; a resumed run fills them from the file.
  virtual NamedTensors tensors() = 0;
};

struct WalkHooks {
  std::function<void(int64_t done, int64_t total)> progress;  // layers run, to run
  double save_every_seconds = 10.0;  // and never more than a twentieth of the time
};

// Walks the prompts as far as they are wanted. When `progress_file` exists it goes on from there;
// throws Error when that file was made with other settings. Saves the state while it runs and when
// anything is thrown out of the subject or the measurement, which it lets through. The caller
// removes the file.
void walk(Subject& subject, Measurement& measurement, const std::filesystem::path& progress_file,
          const WalkHooks& hooks);

// 0 to count - 1, picked by hashing `key`; keys that are alike pick independently.
int pick(int count, const std::string& key);
// Step of interval `i` of `count` equal intervals of [begin, end), picked by hashing `key`:
// intervals start at floor(i * steps / count).
int sample_step(int begin, int end, int i, int count, const std::string& key);
// Steps [first, past the last] of an expert; empty when it runs none.
IndexRange expert_steps(const Subject& subject, int expert);

}  // namespace lacuna
