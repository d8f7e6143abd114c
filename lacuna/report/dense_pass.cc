// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/dense_pass.h"

#include <algorithm>
#include <chrono>

#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/error.h"

namespace lacuna {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::vector<int> distinct(std::vector<int> values) {
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

}  // namespace

std::vector<int> spread_steps(int count) {
  return distinct({count / 10, count / 2, count * 9 / 10});
}

std::vector<int> spread_layers(int count) {
  return distinct({0, count / 2, count - 1});
}

DenseTiming dense_pass(Subject& subject, int prompt, std::span<const int> steps,
                       const Engine::InputsHook& look,
                       const std::function<void(int64_t, int64_t)>& progress) {
  const ProfileTarget& target = subject.target();
  LACUNA_CHECK(!steps.empty() && steps.front() >= 0 && steps.back() < target.num_steps(),
               "dense pass: {} steps to look at, expected some below {}", steps.size(),
               target.num_steps());
  const int last = steps.back();
  const int64_t per_step = int64_t{target.num_layers} * subject.branches();
  const int64_t total = per_step * last + (last == 0 ? per_step : target.num_layers);
  int64_t done = 0;
  double looking_ms = 0.0;  // of this step
  Engine engine(subject.backend(), Policy());
  engine.set_timed(true);
  engine.watch_inputs([&](const Site& site, const auto&... inputs) {
    const auto start = Clock::now();
    if (progress) progress(done, total);
    ++done;
    const bool wanted = std::find(steps.begin(), steps.end(), site.step) != steps.end();
    if (wanted && site.branch == Branch::cond) look(site, inputs...);
    looking_ms += milliseconds_since(start);
  });
  const Tensor velocity(DType::f32, subject.latent_shape());
  const Tensor residual(DType::f32, subject.stream_shape(), subject.backend());
  std::vector<double> step_ms, attention_ms;
  subject.begin(prompt);
  for (int step = 0; step <= last; ++step) {
    looking_ms = 0.0;
    const auto start = Clock::now();
    subject.run(engine, {0, target.num_layers}, residual, velocity);
    if (step == last && last > 0) break;  // half a step says nothing of a whole one
    subject.finish_step(engine, velocity);
    step_ms.push_back(milliseconds_since(start) - looking_ms);
    attention_ms.push_back(engine.trace().attend_ms());
    engine.trace().clear();
  }
  if (progress) progress(total, total);
  return {median(std::move(step_ms)), median(std::move(attention_ms))};
}

PolicyTiming policy_pass(Subject& subject, int prompt, Policy policy,
                         const std::function<void(int64_t, int64_t)>& progress) {
  const ProfileTarget& target = subject.target();
  const int64_t total = int64_t{target.num_layers} * subject.branches() * target.num_steps();
  int64_t done = 0;
  Engine engine(subject.backend(), std::move(policy));
  engine.set_timed(true);
  engine.watch_inputs([&](const auto&...) {
    if (progress) progress(done, total);
    ++done;
  });
  const Tensor velocity(DType::f32, subject.latent_shape());
  const Tensor residual(DType::f32, subject.stream_shape(), subject.backend());
  subject.begin(prompt);
  const auto start = Clock::now();
  for (int step = 0; step < target.num_steps(); ++step) {
    subject.run(engine, {0, target.num_layers}, residual, velocity);
    subject.finish_step(engine, velocity);
  }
  const Trace& trace = engine.trace();
  return {milliseconds_since(start), trace.attend_ms() + trace.select_ms(), trace.qk_density()};
}

}  // namespace lacuna
