// SPDX-License-Identifier: Apache-2.0
// Error-guided Budgeted Calibration.
//
// For every (layer, head), candidate and sampled step: one conditional forward in which only that
// head is sparse; its error is the band-weighted spectrum of the velocity's change (spectrum.h),
// its density that of its mask. Means over the sampled steps go to the knapsack (knapsack.h).
//
// A probe starts from the stream that enters its layer in the dense forward: the layers before it
// are the same. So a step costs two dense forwards (one for the velocity, one that walks along
// with the probes) and, per probe, the layers from its own on.
//
// Not published and chosen here: the velocity is that of the conditional branch; a head's prompt
// and steps are picked by hashing; density counts (query, key) pairs, so a short last block counts
// by its size; with two experts each has its own table, and heads weigh as many steps as their
// expert runs. The published candidates are 0.85, 0.9 and 0.95; ours add the dense end of the
// range.
#include "lacuna/calibrate/haste.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/calibrate/knapsack.h"
#include "lacuna/calibrate/probe.h"
#include "lacuna/calibrate/spectrum.h"
#include "lacuna/core/error.h"

namespace lacuna {

namespace {

// One head of one layer of one network.
struct Unit {
  int expert, layer, head, prompt;
  std::vector<int> steps;  // sampled
};

std::vector<double> all_candidates(const HasteSettings& settings, const Plan& host) {
  std::vector<double> values = settings.candidates;
  values.push_back(host.params.get(settings.parameter));
  Params probe = host.params;
  for (double value : values) {
    probe.set(settings.parameter, value);
    host.method->check(probe);
  }
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

class Budget final : public Measurement {
 public:
  Budget(const Subject& subject, const HasteSettings& settings);

  std::string settings() const override;
  bool wants(int prompt, int step) const override { return !units_at(prompt, step).empty(); }
  int64_t cost(int prompt, int step) const override;
  void measure(Subject& subject, int prompt, int step, const TensorView& velocity,
               const std::function<void(int64_t)>& ran) override;
  NamedTensors tensors() override { return {{"error", error_}, {"density", density_}}; }

  Calibration result(const Subject& subject) const;

 private:
  // Indices of units that sample this step of this prompt, by layer.
  const std::vector<int>& units_at(int prompt, int step) const {
    return schedule_[static_cast<size_t>(prompt) * num_steps_ + step];
  }
  int num_candidates() const { return static_cast<int>(values_.size()); }
  double* cell(const Tensor& table, int unit, int sample, int candidate) const {
    return table.as<double>() + (int64_t{unit} * settings_.intervals + sample) * num_candidates() +
           candidate;
  }
  void probe(Subject& subject, int unit, int sample, const TensorView& stream,
             const TensorView& dense, const std::function<void(int64_t)>& ran);
  std::vector<std::vector<Candidate>> measured() const;

  HasteSettings settings_;
  Plan host_;
  std::vector<double> values_;  // candidates, ascending
  std::vector<Unit> units_;
  std::vector<double> weights_;  // per unit
  size_t num_steps_;
  int num_layers_;
  std::vector<std::vector<int>> schedule_;  // [prompts * steps]
  Tensor error_, density_;                  // [units, intervals, candidates] f64; NaN = not yet
  Tensor scratch_, sparse_;                 // of a probe
};

Budget::Budget(const Subject& subject, const HasteSettings& settings)
    : settings_(settings),
      host_(parse_plan(settings.host)),
      num_steps_(static_cast<size_t>(subject.target().num_steps())),
      num_layers_(subject.target().num_layers) {
  // A probe is one call of a new engine: a method that looks first would run dense in all of them.
  LACUNA_CHECK(host_.method != nullptr && !host_.method->takes_masks() && !host_.method->looks(),
               "haste: host {}, expected a method that selects in its first call", settings.host);
  check_plan(host_);  // as the profile will be, when it is written
  check_steps(host_, subject.target().num_steps());
  const auto num_heads = static_cast<size_t>(subject.target().num_heads);
  Params spread = host_.params;
  // A host that takes one value only says so here.
  spread.set_per_head(
      settings.parameter,
      std::vector<double>(std::max<size_t>(num_heads, 2), host_.params.get(settings.parameter)));
  host_.method->check(spread);
  values_ = all_candidates(settings, host_);
  LACUNA_CHECK(settings.intervals >= 1, "haste: {} intervals, expected 1 or more",
               settings.intervals);

  schedule_.resize(static_cast<size_t>(subject.num_prompts()) * num_steps_);
  for (int expert = 0; expert < subject.num_experts(); ++expert) {
    const IndexRange steps = expert_steps(subject, expert);
    const int samples = std::min(settings.intervals, steps.end - steps.begin);
    for (int layer = 0; layer < num_layers_ && samples > 0; ++layer)
      for (int head = 0; head < static_cast<int>(num_heads); ++head) {
        const std::string key = fmt::format("{}/{}/{}/{}", settings.seed, expert, layer, head);
        Unit unit{expert, layer, head, pick(subject.num_prompts(), "prompt/" + key)};
        for (int i = 0; i < samples; ++i) {
          unit.steps.push_back(
              sample_step(steps.begin, steps.end, i, samples, fmt::format("step/{}/{}", key, i)));
          schedule_[unit.prompt * num_steps_ + unit.steps.back()].push_back(
              static_cast<int>(units_.size()));
        }
        units_.push_back(std::move(unit));
        weights_.push_back(steps.end - steps.begin);
      }
  }
  const std::initializer_list<int64_t> shape = {static_cast<int64_t>(units_.size()),
                                                settings.intervals, num_candidates()};
  error_ = Tensor(DType::f64, shape);
  density_ = Tensor(DType::f64, shape);
  std::fill_n(error_.as<double>(), error_.numel(), std::numeric_limits<double>::quiet_NaN());
  std::fill_n(density_.as<double>(), density_.numel(), 0.0);
}

std::string Budget::settings() const {
  Json json;
  json["method"] = "haste";
  json["host"] = settings_.host;
  json["formula"] = host_.method->formula();
  json["parameter"] = settings_.parameter;
  json["candidates"] = values_;
  json["intervals"] = settings_.intervals;
  json["seed"] = settings_.seed;
  return json.dump();
}

int64_t Budget::cost(int prompt, int step) const {
  int64_t layers = 2 * int64_t{num_layers_};
  for (int unit : units_at(prompt, step))
    layers += int64_t{num_layers_ - units_[unit].layer} * num_candidates();
  return layers;
}

void Budget::measure(Subject& subject, int prompt, int step, const TensorView& velocity,
                     const std::function<void(int64_t)>& ran) {
  Engine dense(subject.backend(), Policy());
  const Tensor stream(DType::f32, subject.stream_shape(), subject.backend());
  if (scratch_.empty()) {
    scratch_ = Tensor(DType::f32, subject.stream_shape(), subject.backend());
    sparse_ = Tensor(DType::f32, subject.latent_shape());
  }
  subject.run(dense, {0, num_layers_}, stream, velocity);
  ran(num_layers_);
  int at = 0;  // layers that stream has been through
  for (int index : units_at(prompt, step)) {
    const Unit& unit = units_[index];
    if (unit.layer > at) {
      subject.run(dense, {at, unit.layer}, stream, sparse_);
      ran(unit.layer - at);
      at = unit.layer;
    }
    const auto found = std::find(unit.steps.begin(), unit.steps.end(), step);
    probe(subject, index, static_cast<int>(found - unit.steps.begin()), stream, velocity, ran);
  }
}

void Budget::probe(Subject& subject, int unit, int sample, const TensorView& stream,
                   const TensorView& dense, const std::function<void(int64_t)>& ran) {
  const Unit& u = units_[unit];
  for (int k = 0; k < num_candidates(); ++k) {
    double* error = cell(error_, unit, sample, k);
    if (std::isnan(*error)) {
      double density = 1.0;
      const OneHead method(*host_.method, u.head, &density);
      Params params = host_.params;
      params.set(settings_.parameter, values_[k]);
      Engine engine(subject.backend(), probe_policy(method, params, u.layer, host_.compensate));
      if (u.layer > 0) subject.backend().copy(stream, scratch_);
      subject.run(engine, {u.layer, num_layers_}, scratch_, sparse_);
      *cell(density_, unit, sample, k) = density;
      *error = weighted_error(band_errors(sparse_, dense));
    }
    ran(num_layers_ - u.layer);
  }
}

std::vector<std::vector<Candidate>> Budget::measured() const {
  std::vector<std::vector<Candidate>> groups;
  for (size_t unit = 0; unit < units_.size(); ++unit) {
    const auto samples = static_cast<int>(units_[unit].steps.size());
    std::vector<Candidate> group(values_.size());
    for (int k = 0; k < num_candidates(); ++k)
      for (int i = 0; i < samples; ++i) {
        group[k].error += *cell(error_, static_cast<int>(unit), i, k) / samples;
        group[k].density += *cell(density_, static_cast<int>(unit), i, k) / samples;
      }
    groups.push_back(std::move(group));
  }
  return groups;
}

Calibration Budget::result(const Subject& subject) const {
  const auto groups = measured();
  const double own = host_.params.get(settings_.parameter);
  const std::vector<int> shared(
      units_.size(),
      static_cast<int>(std::find(values_.begin(), values_.end(), own) - values_.begin()));
  const double shared_density = mean_density(groups, weights_, shared);
  const double budget = settings_.budget.value_or(shared_density);
  const std::vector<int> picked = solve_knapsack(groups, weights_, budget);
  const auto total_error = [&](const std::vector<int>& choice) {
    double sum = 0.0;
    for (size_t i = 0; i < groups.size(); ++i) sum += weights_[i] * groups[i][choice[i]].error;
    return sum;
  };

  Calibration made;
  made.profile.target = subject.target();
  made.profile.rules = dense_rules(subject.target().num_steps(), settings_.dense_steps);
  const auto num_heads = static_cast<size_t>(subject.target().num_heads);
  for (size_t first = 0; first < units_.size(); first += num_heads) {
    ProfileRule item = layer_rule(subject, units_[first].expert, units_[first].layer);
    std::vector<double> values;
    double density = 0.0;
    for (size_t i = first; i < first + num_heads; ++i) {
      values.push_back(values_[picked[i]]);
      density += groups[i][picked[i]].density / static_cast<double>(num_heads);
    }
    item.rule.plan = host_;
    item.rule.plan.params.set_per_head(settings_.parameter, std::move(values));
    item.density = density;
    made.profile.rules.push_back(std::move(item));
  }

  Json& json = made.measurements = describe_target(subject, "haste");
  json["settings"] = Json::parse(settings());
  json["band_weights"] = kBandWeights;
  json["band_cutoff"] = kBandCutoff;
  json["budget"] = budget;
  json["density"] = mean_density(groups, weights_, picked);
  json["error"] = total_error(picked);
  json["shared"] = {
      {settings_.parameter, own}, {"density", shared_density}, {"error", total_error(shared)}};
  json["heads"] = Json::array();
  for (size_t i = 0; i < units_.size(); ++i) {
    Json head = {{"expert", units_[i].expert}, {"layer", units_[i].layer},
                 {"head", units_[i].head},     {"prompt", units_[i].prompt},
                 {"steps", units_[i].steps},   {"chosen", values_[picked[i]]}};
    for (const Candidate& candidate : groups[i]) {
      head["error"].push_back(candidate.error);
      head["density"].push_back(candidate.density);
    }
    json["heads"].push_back(std::move(head));
  }
  return made;
}

}  // namespace

Calibration calibrate_haste(Subject& subject, const HasteSettings& settings,
                            const std::filesystem::path& progress_file, const WalkHooks& hooks) {
  Budget budget(subject, settings);
  dense_rules(subject.target().num_steps(),
              settings.dense_steps);  // bad steps are better known now
  walk(subject, budget, progress_file, hooks);
  return budget.result(subject);
}

}  // namespace lacuna
