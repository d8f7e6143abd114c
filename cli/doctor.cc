// SPDX-License-Identifier: Apache-2.0
// lacuna doctor: what can be sparse, whether that pays on this machine, and the profile for it.
#include "lacuna/report/doctor.h"

#include <fmt/format.h>

#include <cmath>
#include <deque>
#include <set>

#include "cli/command.h"
#include "cli/look_options.h"
#include "cli/output_files.h"
#include "cli/say.h"
#include "cli/work.h"
#include "lacuna/calibrate/calibration.h"
#include "lacuna/core/available_memory.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/presets.h"
#include "lacuna/engine/recording.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/report/dense_pass.h"
#include "lacuna/report/machine_info.h"
#include "lacuna/report/sections.h"

namespace lacuna::cli {
namespace {

struct DoctorOptions {
  LookOptions look;
  std::string method = "xattention", output, dense_steps = "10%";
  double target = 0.05, seconds = 5.0;
  bool check = false;
};

std::vector<NamedFile> files_of_doctor(const DoctorOptions& o) {
  return {{"--output", o.output}, {"--report", o.look.report}};
}

// What was found, and what it holds for.
struct Case {
  std::optional<MeasuredCost> cost;
  std::optional<DenseTiming> timing;
  std::optional<ProfileTarget> target;  // known when a model is
  Schedule schedule;
  std::string dense_steps;
  int64_t tokens = 0;
  Json settings;
};

void measure_costs(const DoctorOptions& o, Backend& backend, const Examination& examination,
                   const RecordedCall& call, Case& found) {
  CostSettings settings;
  settings.seconds = o.seconds;
  found.cost = measure_cost(backend, call, examination.result().wanted, settings, check_interrupt);
  found.tokens = call.q.shape[1];
}

// The steps and layers of a generation. Throws Error on dense steps that it does not have.
void set_schedule(const DoctorOptions& o, int num_steps, std::vector<int> layers, int num_layers,
                  Case& found) {
  found.schedule.num_steps = num_steps;
  found.schedule.layers = std::move(layers);
  found.schedule.num_layers = num_layers;
  found.schedule.dense.assign(static_cast<size_t>(num_steps), false);
  // Shares of steps become counts.
  found.dense_steps =
      expand_words({"dense", "", o.dense_steps, ""}, num_steps, num_layers).dense_steps;
  for (const ProfileRule& item : dense_rules(num_steps, found.dense_steps))
    for (int step = item.rule.match.step_begin; step < item.rule.match.step_end; ++step)
      found.schedule.dense[static_cast<size_t>(step)] = true;
}

// The middle of the sites: its call is the one whose time is measured.
Site middle_site(const std::vector<int>& steps, const std::vector<int>& layers) {
  Site site;
  site.step = steps[steps.size() / 2];
  site.layer = layers[layers.size() / 2];
  return site;
}

std::vector<int> all_layers(int count) {
  std::vector<int> layers;
  for (int layer = 0; layer < count; ++layer) layers.push_back(layer);
  return layers;
}

Case examine_model(const DoctorOptions& o, Backend& backend, LookedModel& model,
                   Examination& examination, Work& work) {
  PipelineSubject& subject = model.subject();
  Case found;
  found.target = subject.target();
  const ProfileTarget& target = *found.target;
  const RecordFilter filter = parse_record_sites(o.look.sites);
  check_record_sites(filter, target.num_steps(), target.num_layers);
  std::vector<int> steps = filter.steps, layers = filter.layers;
  if (steps.empty()) steps = spread_steps(target.num_steps());
  if (layers.empty()) layers = all_layers(target.num_layers);
  set_schedule(o, target.num_steps(), all_layers(target.num_layers), target.num_layers, found);
  for (int step = 0; step < target.num_steps(); ++step)
    found.schedule.experts.push_back(subject.expert(step));
  found.settings = model.settings();
  found.settings["looked_at"] =
      fmt::format("steps {}; layers {}", fmt::join(steps, ","), fmt::join(layers, ","));

  // A call that is looked at costs about as much as so many others, for the bar.
  constexpr int64_t kLook = Examination::kRounds;
  const int prompts = subject.num_prompts();
  const auto looks = static_cast<int64_t>(steps.size() * layers.size());
  const Site middle = middle_site(steps, layers);
  for (int prompt = 0; prompt < prompts; ++prompt) {
    int64_t looked = 0;
    const auto look = [&](const Site& site, const auto&... inputs) {
      if (!filter.matches(site)) return;
      Recorder one(backend, {}, available_memory() / 2);  // contiguous copies
      one.add(site, inputs...);
      const RecordedCall& call = one.calls().front();
      if (!found.cost && site.step == middle.step && site.layer == middle.layer)
        measure_costs(o, backend, examination, call, found);
      examination.look(call);
      ++looked;
    };
    const DenseTiming timing =
        dense_pass(subject, prompt, steps, look, [&](int64_t done, int64_t total) {
          const int64_t whole = total + looks * kLook;
          work.update("examining", prompt * whole + done + looked * kLook, prompts * whole);
        });
    if (!found.timing) found.timing = timing;
  }
  return found;
}

// The recording must be of this model, size and schedule for a profile to mean anything.
void check_recording(const RecordedCall& call, const ProfileTarget& target,
                     const std::vector<int>& experts) {
  const auto expect = [](const char* what, auto given, auto wanted) {
    LACUNA_CHECK(given == wanted, "doctor: recording has {} {}, the model and its request {}", what,
                 given, wanted);
  };
  const Site& site = call.site;
  const auto grid = [](const VideoGrid& g) {
    return fmt::format("{}x{}x{}", g.frames, g.height, g.width);
  };
  expect("layers:", site.num_layers, target.num_layers);
  expect("heads:", call.q.shape[0], int64_t{target.num_heads});
  expect("head_dim", call.q.shape[2], int64_t{target.head_dim});
  expect("grid", grid(call.grid), grid(target.grid));
  expect("steps:", site.num_steps, target.num_steps());
  const double sigma = target.sigmas[static_cast<size_t>(site.step)];
  LACUNA_CHECK(std::abs(site.sigma - sigma) < 1e-4,
               "doctor: recording has sigma {} at step {}, the model and its request {}",
               site.sigma, site.step, sigma);
  const int expert = experts[static_cast<size_t>(site.step)];
  LACUNA_CHECK(site.expert == expert,
               "doctor: recording has expert {} at step {}, the model and its request {}",
               site.expert, site.step, expert);
}

Case examine_recordings(const DoctorOptions& o, Backend& backend, Examination& examination,
                        Work& work) {
  Case found;
  if (o.look.names_model()) {
    const auto model = o.look.model.open(files_of_doctor(o));
    const Request request = o.look.request.make(*model);
    found.target = profile_target(*model, request);
    const auto sampler = make_sampler(request.sampler);
    for (int step = 0; step < sampler->num_steps(); ++step)
      found.schedule.experts.push_back(expert_at(model->num_experts(), request, *sampler, step));
  }
  std::deque<Recording> files;
  std::vector<RecordedCall> calls;
  const RecordFilter filter = parse_record_sites(o.look.sites);
  for (const std::string& path : o.look.recordings)
    for (const RecordedCall& call : files.emplace_back(path).calls())
      if (filter.matches(call.site)) calls.push_back(call);
  LACUNA_CHECK(!calls.empty(), "recordings: no conditional call matches --sites {}", o.look.sites);
  const RecordedCall& first = calls.front();
  std::set<int> layers;
  for (const RecordedCall& call : calls) {
    LACUNA_CHECK(call.q.shape == first.q.shape && call.site.num_steps == first.site.num_steps,
                 "doctor: calls of q {} at {} steps and {} at {}, expected one shape and schedule",
                 first.q.describe(), first.site.num_steps, call.q.describe(), call.site.num_steps);
    if (found.target) check_recording(call, *found.target, found.schedule.experts);
    layers.insert(call.site.layer);
  }
  set_schedule(o, first.site.num_steps,
               found.target ? all_layers(first.site.num_layers)
                            : std::vector<int>(layers.begin(), layers.end()),
               first.site.num_layers, found);
  measure_costs(o, backend, examination, calls[calls.size() / 2], found);
  for (size_t i = 0; i < calls.size(); ++i) {
    work.update("examining", static_cast<int64_t>(i), static_cast<int64_t>(calls.size()));
    examination.look(calls[i]);
  }
  found.settings = {{"recordings", fmt::format("{}", fmt::join(o.look.recordings, ", "))},
                    {"calls", calls.size()}};
  return found;
}

// The profile at work: what was expected beside what came.
Json check_section(const Diagnosis& diagnosis, const DenseTiming& dense, const PolicyTiming& sparse,
                   int num_steps) {
  const auto row = [](const char* what, double expected, double measured) {
    return Json{{"what", what}, {"expected", expected}, {"measured", measured}};
  };
  Json rows = Json::array({row("speed-up of attention", diagnosis.attention_speedup,
                               dense.attention_ms * num_steps / sparse.attention_ms),
                           row("speed-up of a step", diagnosis.step_speedup.value_or(1.0),
                               dense.step_ms * num_steps / sparse.total_ms),
                           row("density", diagnosis.density, sparse.density)});
  return table_section(
      "Check: one generation with the profile",
      "Against the median step of the dense generation; no frame was decoded.",
      {{"what", ""}, {"expected", "expected", "", "", 3}, {"measured", "measured", "", "", 3}},
      std::move(rows));
}

void save(const DoctorOptions& o, const Profile& profile, bool pays) {
  save_profile(profile, o.output);
  if (!o.look.quiet)
    say_note(fmt::format(
        "{}: {}", o.output,
        pays ? "run it with lacuna generate --profile" : "dense, sparse attention would not pay"));
}

void diagnose_and_report(const DoctorOptions& o, Backend& backend, const Examined& examined,
                         Case& found, LookedModel* model, Work& work) {
  std::optional<double> share;
  if (found.timing) share = found.timing->share();
  const Diagnosis diagnosis = diagnose(examined, *found.cost, found.tokens, found.schedule, share);
  Json sections = doctor_sections(diagnosis, examined, *found.cost);
  if (found.target) {
    const Profile profile =
        doctor_profile(diagnosis, examined, *found.target,
                       dense_rules(found.schedule.num_steps, found.dense_steps));
    if (!o.output.empty()) save(o, profile, diagnosis.pays);
    if (o.check && !diagnosis.pays && !o.look.quiet)
      say_note("check: nothing to run, dense attention is the choice");
    if (o.check && diagnosis.pays) {
      PolicyTiming timing;
      try {
        timing =
            policy_pass(model->subject(), 0, profile.policy(),
                        [&](int64_t done, int64_t total) { work.update("checking", done, total); });
      } catch (const Cancelled&) {
        if (o.output.empty()) throw;
        work.end();
        throw Interrupted{fmt::format("stopped during the check; {} is written", o.output)};
      }
      work.end();
      sections.push_back(check_section(diagnosis, *found.timing, timing, found.schedule.num_steps));
    }
  }
  found.settings["method"] = o.method;
  found.settings["target"] = fmt::format("rel_l1 {:.4g} in every head", o.target);
  found.settings["dense_steps"] = found.dense_steps;
  found.settings["tokens"] = found.tokens;
  o.look.finish(make_report("Can sparse attention pay here?", verdict(diagnosis, *found.cost),
                            machine_info(backend), found.settings, std::move(sections)));
}

void check_options(const DoctorOptions& o) {
  o.look.check_outputs(files_of_doctor(o));
  if (o.look.recordings.empty()) return;
  if (!o.look.prompts.empty() || !o.look.prompt_file.empty())
    throw UsageError("recordings: take no prompt beside them");
  o.look.refuse_request();
  if (o.check) throw UsageError("--check: needs a model that runs, not a recording");
  if (!o.output.empty() && !o.look.names_model())
    throw UsageError("--output: a profile needs the model of the recording, --model ...");
}

void run_doctor(const DoctorOptions& o) {
  check_options(o);
  const auto backend = o.look.machine.open();
  Work work(o.look.quiet);
  try {
    Examination examination(*backend, replay_case(o.method, "none"), o.target, check_interrupt);
    std::unique_ptr<LookedModel> model;
    if (o.look.recordings.empty())
      model = std::make_unique<LookedModel>(o.look, *backend, files_of_doctor(o));
    Case found = model ? examine_model(o, *backend, *model, examination, work)
                       : examine_recordings(o, *backend, examination, work);
    work.end();
    diagnose_and_report(o, *backend, examination.result(), found, model.get(), work);
  } catch (const Cancelled&) {
    work.end();
    throw Interrupted{"stopped; nothing was written"};
  }
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto* command = app.add_subcommand(
      "doctor",
      "Tell what can be sparse, whether that pays on this machine, and write the profile");
  command->group("Commands");
  auto o = std::make_shared<DoctorOptions>();
  o->look.add_to(*command);
  auto* group = command->add_option_group("Diagnosis");
  group
      ->add_option("--method", o->method,
                   "METHOD[:name=value,...] with a parameter that moves its density")
      ->capture_default_str();
  group
      ->add_option("--target", o->target,
                   "rel_l1 of a head's output, against dense, that is small enough")
      ->check(real_number(1e-6, 0.999))
      ->capture_default_str();
  group
      ->add_option("--dense-steps", o->dense_steps,
                   "Dense in the profile: a count or share from the start (10, 20%), or 0-4,49")
      ->capture_default_str();
  group->add_option("--seconds", o->seconds, "About so long attention's time is measured")
      ->check(real_number(0.01, 3600.0))
      ->capture_default_str();
  group->add_option("-o,--output", o->output, "Write NAME.profile.json for generate --profile")
      ->check(names_a_file());
  group->add_flag("--check", o->check, "Run the profile once: expected beside measured speed-up");
  command->callback([o] { run_doctor(*o); });
}

}  // namespace lacuna::cli
