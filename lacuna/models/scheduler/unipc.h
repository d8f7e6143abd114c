// SPDX-License-Identifier: Apache-2.0
// UniPC, order 2, B(h) = expm1(h) variant "bh2", x0 prediction on flow sigmas (arXiv 2302.04867;
// the published scheduler's arithmetic).
#pragma once

#include <vector>

#include "lacuna/models/scheduler/sampler.h"

namespace lacuna {

class UniPC : public Sampler {
 public:
  // sigmas [n], shifted, descending; 0 is appended.
  explicit UniPC(std::vector<double> sigmas);
  void step(int step, std::span<const float> velocity, std::span<float> x) override;
  std::vector<NamedState> state() const override;
  void set_state(int next_step, std::span<const NamedState> state) override;

 private:
  double alpha(int i) const;
  double lambda(int i) const;  // ln(alpha / sigma)
  void correct(int step, std::span<const float> x0, std::span<float> x) const;
  void predict(int step, int order, std::span<float> x) const;

  int predictor_order_ = 0;            // order used by the step before
  std::vector<float> sample_;          // corrected sample of the step before
  std::vector<float> x0_, x0_before_;  // x0 predictions of the last two steps
};

}  // namespace lacuna
