// SPDX-License-Identifier: Apache-2.0
// lacuna tournament: all methods at equal density and at equal time.
#include "lacuna/report/tournament.h"

#include <fmt/format.h>

#include <deque>

#include "cli/command.h"
#include "cli/look_options.h"
#include "cli/work.h"
#include "lacuna/core/available_memory.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/recording.h"
#include "lacuna/report/dense_pass.h"
#include "lacuna/report/machine_info.h"
#include "lacuna/report/sections.h"

namespace lacuna::cli {
namespace {

struct TournamentOptions {
  LookOptions look;
  std::vector<std::string> attention, skip;
  TournamentSettings settings;
  int repeats = 2;
};

// The calls, and what keeps them alive.
struct Inputs {
  std::vector<RecordedCall> calls;
  std::deque<Recording> files;
  std::optional<Recorder> recorder;
  Json settings;
};

void check_shapes(const std::vector<RecordedCall>& calls) {
  const TensorView& first = calls.front().q;
  for (const RecordedCall& call : calls)
    LACUNA_CHECK(call.q.shape == first.shape && call.q.dtype == first.dtype,
                 "tournament: calls of q {} and {}, expected one shape and dtype", first.describe(),
                 call.q.describe());
}

void read_recordings(const LookOptions& o, Inputs& inputs) {
  if (o.names_model() || !o.prompts.empty() || !o.prompt_file.empty())
    throw UsageError("recordings: take no model and no prompt beside them");
  o.refuse_request();
  const RecordFilter filter = parse_record_sites(o.sites);
  std::string names;
  for (const std::string& path : o.recordings) {
    for (const RecordedCall& call : inputs.files.emplace_back(path).calls())
      if (filter.matches(call.site)) inputs.calls.push_back(call);
    names += (names.empty() ? "" : ", ") + path;
  }
  LACUNA_CHECK(!inputs.calls.empty(), "recordings: no call matches --sites {}", o.sites);
  inputs.settings = {{"recordings", names}};
}

void record_model(const LookOptions& o, Backend& backend, Work& work, Inputs& inputs) {
  LookedModel model(o, backend, {{"--report", o.report}});
  const ProfileTarget& target = model.subject().target();
  RecordFilter filter = parse_record_sites(o.sites);
  check_record_sites(filter, target.num_steps(), target.num_layers);
  if (filter.steps.empty()) filter.steps = spread_steps(target.num_steps());
  if (filter.layers.empty()) filter.layers = spread_layers(target.num_layers);
  const std::vector<int> steps = filter.steps;
  inputs.settings = model.settings();
  inputs.settings["looked_at"] = fmt::format("steps {}; layers {}", fmt::join(filter.steps, ","),
                                             fmt::join(filter.layers, ","));
  // A quarter of what is free: the generation, and later the copies in f32, need the rest.
  inputs.recorder.emplace(backend, std::move(filter), available_memory() / 4);
  const auto prompts = model.subject().num_prompts();
  for (int prompt = 0; prompt < prompts; ++prompt)
    dense_pass(
        model.subject(), prompt, steps, [&](const auto&... call) { inputs.recorder->add(call...); },
        [&](int64_t done, int64_t total) {
          work.update("recording", prompt * total + done, prompts * total);
        });
  inputs.calls = inputs.recorder->calls();
  LACUNA_CHECK(!inputs.calls.empty(), "tournament: no attention call matches --sites {}", o.sites);
}

void run_tournament(const TournamentOptions& o) {
  o.look.check_outputs({{"--report", o.look.report}});
  const std::vector<ReplayCase> cases = replay_cases(o.attention, o.skip);
  const auto backend = o.look.machine.open();
  Work work(o.look.quiet);
  try {
    Inputs inputs;
    if (o.look.recordings.empty()) {
      record_model(o.look, *backend, work, inputs);
    } else {
      read_recordings(o.look, inputs);
    }
    check_shapes(inputs.calls);
    const TensorView& q = inputs.calls.front().q;
    inputs.settings["calls"] = inputs.calls.size();
    inputs.settings["tokens"] = q.shape[1];
    inputs.settings["heads"] = fmt::format("{} x {}", q.shape[0], q.shape[2]);
    inputs.settings["recorded"] = std::string(dtype_name(q.dtype));
    work.end();  // measuring dense attention is short and silent
    Replay replay(*backend, inputs.calls, o.repeats, check_interrupt);
    const Tournament result = run_tournament(replay, cases, o.settings,
                                             [&](int done, int total, const std::string& next) {
                                               work.update("comparing", done, total, next);
                                             });
    work.end();
    const std::vector<std::string> sentences = tournament_sentences(result);
    std::string summary;
    for (const std::string& sentence : sentences)
      summary += (summary.empty() ? "" : " ") + sentence;
    o.look.finish(make_report("Sparse attention methods compared", summary, machine_info(*backend),
                              inputs.settings, tournament_sections(result)));
  } catch (const Cancelled&) {
    work.end();
    throw Interrupted{"stopped; nothing was written"};
  }
}

}  // namespace

void add_tournament(CLI::App& app) {
  auto* command = app.add_subcommand(
      "tournament", "Compare all methods at equal density and at equal time on real q, k and v");
  command->group("Commands");
  auto o = std::make_shared<TournamentOptions>();
  o->look.add_to(*command);
  auto* group = command->add_option_group("Comparison");
  group
      ->add_option("-a,--attention", o->attention,
                   "METHOD[:name=value,...], several allowed; default: every method and skip rule")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  group->add_option("--skip", o->skip, "A skip rule without a mask, several allowed")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  group->add_option("--densities", o->settings.densities, "Shares of computed pairs")
      ->delimiter(',')
      ->check(real_number(0.001, 1.0))
      ->capture_default_str()
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  group->add_option("--times", o->settings.times, "Shares of dense attention's time")
      ->delimiter(',')
      ->check(real_number(0.001, 1.0))
      ->capture_default_str()
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  group->add_option("--loss", o->settings.loss, "rel_l1 that counts as good enough")
      ->check(real_number(1e-6, 1.0))
      ->capture_default_str();
  group->add_option("--repeats", o->repeats, "Timed runs of every point; medians are shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->callback([o] { run_tournament(*o); });
}

}  // namespace lacuna::cli
