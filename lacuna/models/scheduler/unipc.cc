// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/scheduler/unipc.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/core/error.h"

namespace lacuna {

UniPC::UniPC(std::vector<double> sigmas) {
  // alpha = 0 at sigma = 1 would make lambda infinite.
  if (std::abs(sigmas.front() - 1.0) < 1e-6) sigmas.front() -= 1e-6;
  for (double s : sigmas) {
    timesteps_.push_back(static_cast<float>(std::floor(1000.0 * s)));  // truncated, as published
    sigmas_.push_back(static_cast<float>(s));
  }
  sigmas_.push_back(0.0f);
}

// From the f32 sigma, because alpha of the first step is 1e-6 and its rounding shows in step 2.
double UniPC::alpha(int i) const {
  return static_cast<double>(1.0f - sigmas_[i]);
}

double UniPC::lambda(int i) const {
  return sigmas_[i] > 0.0f ? std::log(alpha(i)) - std::log(static_cast<double>(sigmas_[i]))
                           : std::numeric_limits<double>::infinity();
}

// Corrects x = x(step) with the model output at x itself.
void UniPC::correct(int step, std::span<const float> x0, std::span<float> x) const {
  const double h = lambda(step) - lambda(step - 1);
  const double e = std::expm1(-h);
  const double ratio = static_cast<double>(sigmas_[step]) / sigmas_[step - 1];
  const double a = alpha(step) * e;
  double rho0 = 0.0, rho1 = 0.5, r = 1.0;
  if (predictor_order_ == 2) {
    r = (lambda(step - 2) - lambda(step - 1)) / h;
    const double k1 = e / -h - 1.0, b1 = k1 / e;
    const double k2 = k1 / -h - 0.5, b2 = 2.0 * k2 / e;
    rho1 = (b2 - r * b1) / (1.0 - r);
    rho0 = b1 - rho1;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    double sum = rho1 * (static_cast<double>(x0[i]) - x0_[i]);
    if (predictor_order_ == 2) sum += rho0 * (static_cast<double>(x0_before_[i]) - x0_[i]) / r;
    x[i] = static_cast<float>(ratio * sample_[i] - a * x0_[i] - a * sum);
  }
}

void UniPC::predict(int step, int order, std::span<float> x) const {
  const bool last = sigmas_[step + 1] == 0.0f;
  const double h = lambda(step + 1) - lambda(step);
  const double e = last ? -1.0 : std::expm1(-h);
  const double ratio = static_cast<double>(sigmas_[step + 1]) / sigmas_[step];
  const double a = alpha(step + 1) * e;
  const double r = order == 2 ? (lambda(step - 1) - lambda(step)) / h : 1.0;
  for (size_t i = 0; i < x.size(); ++i) {
    double y = ratio * x[i] - a * x0_[i];
    if (order == 2) y -= a * 0.5 * (static_cast<double>(x0_before_[i]) - x0_[i]) / r;
    x[i] = static_cast<float>(y);
  }
}

void UniPC::step(int step, std::span<const float> velocity, std::span<float> x) {
  LACUNA_CHECK(velocity.size() == x.size(), "unipc: velocity of {} values, expected {}",
               velocity.size(), x.size());
  LACUNA_CHECK(step == 0 || sample_.size() == x.size(), "unipc: step {} without its state", step);
  std::vector<float> x0(x.size());
  // From the uncorrected sample.
  for (size_t i = 0; i < x.size(); ++i) x0[i] = x[i] - sigmas_[step] * velocity[i];
  if (step > 0) correct(step, x0, x);
  sample_.assign(x.begin(), x.end());
  x0_before_ = std::move(x0_);
  x0_ = std::move(x0);
  predictor_order_ = std::min({2, num_steps() - step, step + 1});
  predict(step, predictor_order_, x);
}

std::vector<Sampler::NamedState> UniPC::state() const {
  if (x0_.empty()) return {};
  std::vector<NamedState> out{{"sample", sample_}, {"x0", x0_}};
  if (!x0_before_.empty()) out.push_back({"x0_before", x0_before_});
  return out;
}

void UniPC::set_state(int next_step, std::span<const NamedState> state) {
  Sampler::set_state(next_step, {});
  sample_.clear(), x0_.clear(), x0_before_.clear();
  for (const NamedState& s : state) {
    std::vector<float>* target = s.name == "sample"      ? &sample_
                                 : s.name == "x0"        ? &x0_
                                 : s.name == "x0_before" ? &x0_before_
                                                         : nullptr;
    LACUNA_CHECK(target != nullptr, "unipc: unknown state {}", s.name);
    target->assign(s.values.begin(), s.values.end());
  }
  LACUNA_CHECK(next_step == 0 || (!x0_.empty() && sample_.size() == x0_.size()),
               "unipc: state for step {} lacks sample or x0", next_step);
  LACUNA_CHECK(next_step < 2 || x0_before_.size() == x0_.size(),
               "unipc: state for step {} lacks x0_before", next_step);
  predictor_order_ = next_step == 0 ? 0 : std::min({2, num_steps() - next_step + 1, next_step});
}

}  // namespace lacuna
