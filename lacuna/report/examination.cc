// SPDX-License-Identifier: Apache-2.0
// What every head needs: the first half of the doctor.
#include <algorithm>
#include <cmath>

#include "lacuna/calibrate/probe.h"
#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/report/doctor.h"

namespace lacuna {

namespace {

struct Distance {
  double difference = 0.0, size = 0.0;  // sum |a - b|, sum |b|
};

// Per head of [heads, rows, channels], any float dtype, contiguous.
std::vector<Distance> head_distances(const TensorView& result, const TensorView& reference) {
  const Tensor a = converted(result, DType::f32), b = converted(reference, DType::f32);
  const int64_t heads = a.view().shape[0], per_head = a.numel() / heads;
  std::vector<Distance> found(static_cast<size_t>(heads));
  parallel_tasks(heads, [&](int64_t h, int) {
    Distance sum;
    for (int64_t i = h * per_head; i < (h + 1) * per_head; ++i) {
      sum.difference += std::abs(double{a.as<float>()[i]} - b.as<float>()[i]);
      sum.size += std::abs(double{b.as<float>()[i]});
    }
    found[static_cast<size_t>(h)] = sum;
  });
  return found;
}

double at_fullness(const ReplayCase::Knob& knob, double fullness) {
  return knob.sparse + fullness * (knob.full - knob.sparse);
}

}  // namespace

Examination::Examination(Backend& backend, ReplayCase wanted, double loss,
                         std::function<void()> between)
    : backend_(backend), found_{std::move(wanted), loss}, between_(std::move(between)) {
  const Plan& plan = found_.wanted.plan;
  LACUNA_CHECK(plan.method != nullptr && found_.wanted.knob && plan.skip.kind == SkipKind::none,
               "doctor: {}, expected a method with a parameter that moves its density, such as "
               "xattention, svg2 or adaspa",
               found_.wanted.name);
  LACUNA_CHECK(plan.method->static_mask() || plan.refresh.kind == RefreshKind::every_step,
               "doctor: refresh={}, expected every_step: one call cannot tell of later ones",
               refresh_info(plan.refresh.kind).name);
  LACUNA_CHECK(loss > 0.0 && loss < 1.0, "doctor: target {}, expected more than 0 and below 1",
               loss);
  Params params = plan.params;
  params.set_per_head(found_.wanted.knob->parameter,
                      {found_.wanted.knob->full, found_.wanted.knob->full});
  plan.method->check(params);  // a method that takes one value only says so
}

std::vector<Examination::Tried> Examination::attempt(const RecordedCall& call, const Tensor& dense,
                                                     const std::vector<double>& fullness) {
  std::vector<double> densities(fullness.size(), 1.0), values;
  for (const double f : fullness) values.push_back(at_fullness(*found_.wanted.knob, f));
  Plan plan = found_.wanted.plan;
  plan.params.set_per_head(found_.wanted.knob->parameter, values);
  const HeadDensities spy(*plan.method, densities);
  plan.method = &spy;
  const CallOutcome outcome = replay_call(backend_, call, plan, 0, between_);
  const std::vector<Distance> distances = head_distances(outcome.out, dense);
  std::vector<Tried> tried;
  for (size_t h = 0; h < densities.size(); ++h)
    tried.push_back({densities[h],
                     distances[h].size > 0.0 ? distances[h].difference / distances[h].size : 0.0});
  return tried;
}

void Examination::look(const RecordedCall& call) {
  const auto heads = static_cast<size_t>(call.q.shape[0]);
  const Tensor dense = replay_call(backend_, call, Plan(), 0, between_).out;
  std::vector<HeadNeed> needs(heads);
  const std::vector<Distance> sizes = head_distances(dense, dense);
  for (size_t h = 0; h < heads; ++h) needs[h].weight = sizes[h].size;

  std::vector<double> low(heads, 0.0), high(heads, 1.0);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<double> middle(heads);
    for (size_t h = 0; h < heads; ++h) middle[h] = (low[h] + high[h]) / 2;
    const std::vector<Tried> tried = attempt(call, dense, middle);
    for (size_t h = 0; h < heads; ++h) {
      const bool good = tried[h].loss <= found_.loss;
      (good ? high : low)[h] = middle[h];
      if (good) {
        needs[h].fullness = middle[h];
        needs[h].density = tried[h].density;
        needs[h].loss = tried[h].loss;
        needs[h].reached = true;
      }
    }
  }

  const Site& site = call.site;
  const auto same =
      std::find_if(found_.findings.begin(), found_.findings.end(), [&](const Finding& f) {
        return f.expert == site.expert && f.step == site.step && f.layer == site.layer;
      });
  if (same == found_.findings.end()) {
    found_.findings.push_back({site.expert, site.step, site.layer, std::move(needs)});
    return;
  }
  LACUNA_CHECK(same->heads.size() == heads, "doctor: {} heads at layer {}, expected {} as before",
               heads, site.layer, same->heads.size());
  for (size_t h = 0; h < heads; ++h)
    if (needs[h].fullness > same->heads[h].fullness) same->heads[h] = needs[h];
}

}  // namespace lacuna
