// SPDX-License-Identifier: Apache-2.0
// lacuna.Session: an engine per sample of a batch, with the policy of a command line or a profile.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/engine/engine.h"
#include "lacuna/engine/explain.h"
#include "lacuna/engine/presets.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/profile_format.h"
#include "lacuna/engine/trace_file.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace lacuna::python {

namespace {

struct Settings {
  PolicyWords words;
  int64_t min_tokens = 0;
  std::string profile;
  int num_steps = 0, num_layers = 0;
  std::vector<double> sigmas;  // empty: not known
  VideoGrid grid;
  int64_t text_tokens = 0;
  bool strict = false;
};

void check_settings(const Settings& s) {
  LACUNA_CHECK(
      s.num_steps > 0 && s.num_steps <= kMaxIndex && s.num_layers > 0 && s.num_layers <= kMaxIndex,
      "session: {} steps and {} layers, expected 1 to {}", s.num_steps, s.num_layers, kMaxIndex);
  LACUNA_CHECK(s.sigmas.empty() || static_cast<int>(s.sigmas.size()) == s.num_steps,
               "session: {} sigmas, expected one for each of {} steps", s.sigmas.size(),
               s.num_steps);
}

Policy policy_of(const Settings& s) {
  const PolicyWords words = expand_words(s.words, s.num_steps, s.num_layers, s.sigmas);
  return make_policy(parse_plan(words.attention), parse_skip(words.skip), words.dense_steps,
                     words.dense_layers, s.min_tokens, s.num_steps);
}

// Throws Error for what a Session would refuse whatever its steps and its grid.
void check_words(const Settings& s) {
  if (s.profile.empty()) {
    policy_of(s);
  } else {
    load_profile(s.profile);
  }
}

class Session {
 public:
  explicit Session(Settings settings) : settings_(std::move(settings)) {
    check_settings(settings_);
    if (settings_.profile.empty()) {
      policy_ = policy_of(settings_);
      return;
    }
    const Profile profile = load_profile(settings_.profile);
    made_for_ = profile.target;
    // What the caller cannot know, a model's name and fingerprint, stays what the profile says;
    // heads and channels are seen in attend().
    ProfileTarget run = profile.target;
    run.num_layers = settings_.num_layers;
    run.grid = settings_.grid;
    run.text_tokens = settings_.text_tokens;
    if (settings_.sigmas.empty()) settings_.sigmas = made_for_->sigmas;
    run.sigmas = settings_.sigmas;
    run.sigmas.resize(static_cast<size_t>(settings_.num_steps));
    check_profile(profile, run);
    policy_ = profile.policy();
  }

  // A batch is the samples from 0 on, or with `sample` that one.
  void attend(const InArray& q_array, const InArray& k_array, const InArray& v_array,
              const OutArray& out_array, int step, int layer, const std::string& branch, int expert,
              std::optional<int64_t> text_tokens, std::optional<int> sample,
              const std::string& layout) {
    const Batch q = batch_of("q", q_array, layout), k = batch_of("k", k_array, layout),
                v = batch_of("v", v_array, layout), out = batch_of("out", out_array, layout);
    check_batches(q, k, v, out);
    const Site site = site_of(step, layer, branch, expert);
    const int64_t text = text_tokens.value_or(settings_.text_tokens);
    check_text_tokens(text);
    const Computing computing;
    const std::lock_guard lock(mutex_);  // after the GIL is gone, which the holder may need
    check_heads(q);
    if (sample) {
      check_sample(*sample, q);
    } else {
      check_batch(q);
    }
    const int first = sample.value_or(0);
    for (int64_t b = 0; b < q.size(); ++b)
      engine_of(first + static_cast<int>(b))
          .attend(site, settings_.grid, text, q.at(b), k.at(b), v.at(b), out.at(b));
  }

  void reset() {
    const nb::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    forget();
  }

  // Of all samples, a call after the other.
  std::vector<std::pair<int, TraceEntry>> entries() const {
    const nb::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    std::vector<std::pair<int, TraceEntry>> all;
    size_t left = 0;
    for (const auto& [sample, engine] : engines_)
      left = std::max(left, engine->trace().entries().size());
    for (size_t i = 0; i < left; ++i)
      for (const auto& [sample, engine] : engines_)
        if (i < engine->trace().entries().size())
          all.emplace_back(sample, engine->trace().entries()[i]);
    return all;
  }

  std::vector<std::string> rules() const {
    std::vector<std::string> words;
    for (const Rule& rule : policy_.rules()) words.push_back(describe(rule));
    return words;
  }

 private:
  Site site_of(int step, int layer, const std::string& branch, int expert) const {
    LACUNA_CHECK(
        step >= 0 && step < settings_.num_steps && layer >= 0 && layer < settings_.num_layers,
        "session: step {} and layer {}, expected below {} and {}", step, layer, settings_.num_steps,
        settings_.num_layers);
    LACUNA_CHECK(branch == "cond" || branch == "uncond",
                 "session: branch '{}', expected cond or uncond", branch);
    LACUNA_CHECK(expert == 0 || expert == 1, "session: expert {}, expected 0 or 1", expert);
    Site site;
    site.step = step;
    site.num_steps = settings_.num_steps;
    if (!settings_.sigmas.empty())
      site.sigma = static_cast<float>(settings_.sigmas[static_cast<size_t>(step)]);
    site.layer = layer;
    site.num_layers = settings_.num_layers;
    site.branch = branch == "cond" ? Branch::cond : Branch::uncond;
    site.expert = expert;
    return site;
  }

  void check_heads(const Batch& q) const {
    LACUNA_CHECK(!made_for_ || (made_for_->num_heads == q.all.shape[1] &&
                                made_for_->head_dim == q.all.shape[3]),
                 "session: {} heads of {} channels, expected {} of {} as in {}", q.all.shape[1],
                 q.all.shape[3], made_for_ ? made_for_->num_heads : 0,
                 made_for_ ? made_for_->head_dim : 0, settings_.profile);
  }

  void check_sample(int sample, const Batch& q) const {
    LACUNA_CHECK(sample >= 0 && sample < kMaxIndex,
                 "session: sample {}, expected 0 or more, below {}", sample, kMaxIndex);
    LACUNA_CHECK(q.size() == 1, "session: a batch of {} as sample {}, expected one sample",
                 q.size(), sample);
  }

  // Masks and states belong to a sample, so the batch keeps its size until reset().
  void check_batch(const Batch& q) {
    const auto ran = [](const auto& known) { return !known.second->trace().entries().empty(); };
    if (std::none_of(engines_.begin(), engines_.end(), ran))
      forget();  // the calls so far were refused: their batch means nothing
    LACUNA_CHECK(!batch_ || *batch_ == q.size(),
                 "session: a batch of {} after one of {}, expected the same: call reset() first",
                 q.size(), batch_.value_or(0));
    batch_ = q.size();
  }

  Engine& engine_of(int sample) {
    std::unique_ptr<Engine>& engine = engines_[sample];
    if (engine == nullptr) {
      engine = std::make_unique<Engine>(backend(), policy_);
      engine->set_strict(settings_.strict);
    }
    return *engine;
  }

  void forget() {
    engines_.clear();
    batch_.reset();
  }

  Settings settings_;
  Policy policy_;
  std::optional<ProfileTarget> made_for_;
  mutable std::mutex mutex_;
  std::map<int, std::unique_ptr<Engine>> engines_;  // by sample
  std::optional<int64_t> batch_;                    // of the calls that gave all samples at once
};

// A JSON array of what trace files have, a call after the other, each with its sample.
std::string trace_json(const Session& session) {
  Json calls = Json::array();
  for (const auto& [sample, entry] : session.entries()) {
    calls.push_back(call_json(entry));
    calls.back()["sample"] = sample;
  }
  return dump_json(calls);
}

// As `lacuna generate --explain` groups them.
nb::list summary_rows(const Session& session) {
  std::vector<TraceEntry> entries;
  for (auto& [sample, entry] : session.entries()) entries.push_back(std::move(entry));
  nb::list rows;
  for (const ExplainRow& row : explain(entries, session.rules())) {
    nb::dict line;
    line["steps"] = nb::str(range_text(row.step_begin, row.step_end).c_str());
    line["layers"] = nb::str(range_text(row.layer_begin, row.layer_end).c_str());
    line["branch"] = nb::str(row.branch.c_str());
    line["what"] = nb::str(row.what.c_str());
    line["why"] = nb::str(row.why.c_str());
    line["calls"] = row.calls;
    line["heads_refreshed"] = row.refreshed;
    line["heads_reused"] = row.reused;
    line["qk_density"] = row.qk_density;
    line["pv_density"] = row.pv_density;
    rows.append(line);
  }
  return rows;
}

}  // namespace

void bind_session(nb::module_& m) {
  nb::class_<Session>(m, "Session")
      .def(
          "__init__",
          [](Session* self, const std::string& attention, const std::string& skip,
             const std::string& dense_steps, const std::string& dense_layers, int64_t min_tokens,
             const std::string& profile, int num_steps, const std::vector<double>& sigmas,
             int num_layers, const std::array<int64_t, 3>& grid, int64_t text_tokens, bool strict) {
            new (self) Session({{attention, skip, dense_steps, dense_layers},
                                min_tokens,
                                profile,
                                num_steps,
                                num_layers,
                                sigmas,
                                grid_of(grid, text_tokens),
                                text_tokens,
                                strict});
          },
          nb::kw_only(), nb::arg("attention"), nb::arg("skip"), nb::arg("dense_steps"),
          nb::arg("dense_layers"), nb::arg("min_tokens"), nb::arg("profile"), nb::arg("num_steps"),
          nb::arg("sigmas"), nb::arg("num_layers"), nb::arg("grid"), nb::arg("text_tokens"),
          nb::arg("strict"))
      .def("attend", &Session::attend, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
           nb::arg("step"), nb::arg("layer"), nb::arg("branch"), nb::arg("expert"),
           nb::arg("text_tokens").none(), nb::arg("sample").none(), nb::arg("layout"))
      .def("reset", &Session::reset)
      .def("rules", &Session::rules)
      .def("trace_json", &trace_json)
      .def("summary", &summary_rows);
  m.def(
      "check_words",
      [](const std::string& attention, const std::string& skip, const std::string& dense_steps,
         const std::string& dense_layers, int64_t min_tokens, const std::string& profile,
         int num_layers) {
        Settings settings{{attention, skip, dense_steps, dense_layers}, min_tokens, profile};
        settings.num_steps = kMaxIndex;  // enough for every list of steps
        settings.num_layers = num_layers;
        check_words(settings);
      },
      nb::kw_only(), nb::arg("attention"), nb::arg("skip"), nb::arg("dense_steps"),
      nb::arg("dense_layers"), nb::arg("min_tokens"), nb::arg("profile"), nb::arg("num_layers"));
}

}  // namespace lacuna::python
