// SPDX-License-Identifier: Apache-2.0
// lacuna calibrate: measures a model, writes the profile that generate --profile runs.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/pipeline_subject.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/request_options.h"
#include "cli/say.h"
#include "lacuna/calibrate/calibatt.h"
#include "lacuna/calibrate/haste.h"
#include "lacuna/calibrate/recall.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/presets.h"

namespace lacuna::cli {
namespace {

namespace fs = std::filesystem;

// An option that only some methods read, named as in --method.
struct MethodOption {
  const CLI::Option* option;
  std::vector<std::string> methods;
};

struct CalibrateOptions {
  MachineOptions machine;
  ModelOptions model;
  RequestOptions request;
  std::string method, prompts, output, dense_steps;
  std::optional<std::string> host;
  int intervals = 4;
  HasteSettings haste;
  RecallSettings recall;
  CalibAttSettings calibatt;
  std::vector<double> energy;
  std::vector<MethodOption> of_methods;
  bool no_prompt_cache = false, quiet = false;
};

void add_method_options(CLI::App& command, CalibrateOptions& o) {
  auto* group = command.add_option_group("Calibration");
  group
      ->add_option(
          "--method", o.method,
          "haste: a parameter per head; recall: kappa per head; calibatt: masks voted over "
          "the prompts")
      ->required()
      ->check(CLI::IsMember({"haste", "recall", "calibatt"}));
  group->add_option("--prompts,--prompt-file", o.prompts, "Text file, one prompt per line")
      ->check(names_a_file())
      ->required();
  group->add_option("--host", o.host,
                    "Method of the profile, e.g. xattention:stride=16,refresh=drift; default "
                    "xattention (haste), dense (recall)");
  group->add_option("--dense-steps", o.dense_steps,
                    "Dense in the profile: a count or share (10%) from the start, or 0-4,49");
  group->add_option("--intervals", o.intervals, "Steps sampled, one from each equal interval")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  group->add_option("--parameter", o.haste.parameter, "haste: what may differ per head")
      ->capture_default_str();
  group->add_option("--candidates", o.haste.candidates, "haste: its values, beside the host's own")
      ->delimiter(',')
      ->check(real_number())
      ->capture_default_str()
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  group
      ->add_option("--budget", o.haste.budget,
                   "haste: mean density; default: that of the host's own value for all heads")
      ->check(real_number(0.0, 1.0));
  group->add_option("--recall", o.recall.recall, "recall: softmax mass each row keeps")
      ->check(real_number())
      ->capture_default_str();
  group
      ->add_option("--quantile", o.recall.quantile,
                   "recall: of the measured ratios, taken as kappa; 1 = the largest seen")
      ->check(real_number())
      ->capture_default_str();
  group
      ->add_option("--rows", o.recall.rows,
                   "recall: query rows looked at per head and step; 0 = all")
      ->capture_default_str();
  for (const char* name : {"--host", "--intervals"})
    o.of_methods.push_back({group->get_option(name), {"haste", "recall"}});
  for (const char* name : {"--parameter", "--candidates", "--budget"})
    o.of_methods.push_back({group->get_option(name), {"haste"}});
  for (const char* name : {"--recall", "--quantile", "--rows"})
    o.of_methods.push_back({group->get_option(name), {"recall"}});
}

void add_calibatt_options(CLI::App& command, CalibrateOptions& o) {
  auto* group = command.add_option_group("CalibAtt");
  CalibAttSettings& s = o.calibatt;
  group
      ->add_option("--energy", o.energy,
                   "A,C,k: a mask covers A + (C - A) e^(-k step / steps) of the mass; default "
                   "0.796 + 1.41e-6 tokens,0.99,16")
      ->delimiter(',')
      ->check(real_number())
      ->expected(3)
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  group->add_option("--vote-share", s.share, "Share of the prompts that keep a block")
      ->check(real_number())
      ->capture_default_str();
  group->add_option("--block", s.block, "Tokens per block")->capture_default_str();
  group->add_option("--gap", s.gap, "Dropped blocks between kept ones of a row that are kept too")
      ->capture_default_str();
  group->add_option("--share-iou", s.share_iou, "Steps whose masks are this alike share one")
      ->check(real_number())
      ->capture_default_str();
  group->add_option("--similarity", s.similarity, "Rows this alike make a head repetitive")
      ->check(real_number())
      ->capture_default_str();
  group->add_option("--anchors", s.anchors, "Rows of a frame it computes; 0: no such heads")
      ->capture_default_str();
  group
      ->add_option("--similarity-prompts", s.similarity_prompts,
                   "So many prompts are looked at for it")
      ->capture_default_str();
  for (const CLI::Option* option : group->get_options())
    o.of_methods.push_back({option, {"calibatt"}});
}

// Throws UsageError on an option that the method would not read.
void check_method_options(const CalibrateOptions& o) {
  for (const auto& [option, methods] : o.of_methods)
    if (option->count() > 0 && std::find(methods.begin(), methods.end(), o.method) == methods.end())
      throw UsageError(fmt::format("{}: beside --method {}, expected {}", option->get_name(),
                                   o.method, fmt::join(methods, " or ")));
}

Calibration calibrate(const CalibrateOptions& o, Subject& subject, const fs::path& progress,
                      const WalkHooks& hooks) {
  if (o.method == "calibatt") {
    CalibAttSettings settings = o.calibatt;
    if (!o.energy.empty()) settings.energy = {o.energy[0], o.energy[1], o.energy[2]};
    settings.dense_steps = o.dense_steps;
    return calibrate_calibatt(subject, settings, progress, hooks);
  }
  const auto with_shared = [&](auto settings) {
    if (o.host) settings.host = *o.host;
    settings.intervals = o.intervals;
    settings.seed = o.request.seed;
    settings.dense_steps = o.dense_steps;
    return settings;
  };
  if (o.method == "haste") return calibrate_haste(subject, with_shared(o.haste), progress, hooks);
  return calibrate_recall(subject, with_shared(o.recall), progress, hooks);
}

// Better known now than at the second prompt, which an hour of the first may precede.
void check_text_lengths(Model& model, const std::vector<std::string>& prompts) {
  for (const std::string& prompt : prompts)
    LACUNA_CHECK(model.text_tokens(prompt) == model.text_tokens(prompts.front()),
                 "calibatt: prompts of {} and {} text tokens, expected as many in all; masks are "
                 "of one length (haste takes any)",
                 model.text_tokens(prompts.front()), model.text_tokens(prompt));
}

void run_calibrate(CalibrateOptions o) {
  check_method_options(o);
  const CalibrationFiles files{o.output};
  const std::vector<NamedFile> outputs = {{"--output", files.profile},
                                          {"its masks", profile_masks(files.profile)},
                                          {"its measurements", files.measurements()},
                                          {"its progress", files.progress()}};
  check_files_differ(outputs, {{"--prompts", o.prompts},
                               {"--image", o.request.pictures.first},
                               {"--last-image", o.request.pictures.last}});
  const std::vector<std::string> prompts = read_prompts(o.prompts);
  const fs::path folder = fs::absolute(files.profile).parent_path();
  LACUNA_CHECK(fs::is_directory(folder), "output: no folder {}", folder.string());
  const auto backend = o.machine.open();
  const auto model = o.model.open(outputs);
  if (o.method == "calibatt") check_text_lengths(*model, prompts);
  Request request = o.request.make(*model);
  request.dtype = o.model.dtype;
  const int num_layers = static_cast<int>(model->architecture().sizes().num_layers);
  o.dense_steps =
      expand_words({"dense", "", o.dense_steps, ""}, request.sampler.num_steps, num_layers)
          .dense_steps;
  Context ctx{*backend};
  ctx.cancel = &interrupt_flag();

  const bool resumed = fs::exists(files.progress());
  if (!o.quiet) {
    say_note(fmt::format("{} on {}; {}x{}, {} frames, {} steps, {} prompts{}", model->title(),
                         backend->description(), request.width, request.height, request.frames,
                         request.sampler.num_steps, prompts.size(),
                         resumed ? "; going on from " + files.progress().string() : ""));
    if (model->is_synthetic()) say_note("made-up weights: the profile means nothing");
    if (!model->assumption().empty()) say_note(model->assumption());
  }
  std::optional<ProgressBar> bar;
  WalkHooks hooks;
  if (!o.quiet) {
    hooks.progress = [&](int64_t done, int64_t total) {
      if (!bar) bar.emplace("layers", static_cast<int>(total));
      bar->update(static_cast<int>(done));
    };
  }
  try {
    PipelineSubject subject(*model, ctx, request, prompts,
                            o.no_prompt_cache ? fs::path() : prompt_cache_folder());
    const Calibration result = calibrate(o, subject, files.progress(), hooks);
    bar.reset();
    save_calibration(result, files);
    if (!o.quiet)
      say("{} and {}\n", one_line(files.profile.string()), one_line(files.measurements().string()));
  } catch (const Cancelled&) {
    bar.reset();
    if (!fs::exists(files.progress())) throw Interrupted{"stopped before anything was measured"};
    throw Interrupted{"stopped; the same command goes on from " + files.progress().string()};
  }
}

}  // namespace

void add_calibrate(CLI::App& app) {
  auto* command = app.add_subcommand(
      "calibrate", "Measure a model and write the profile that generate --profile runs");
  command->group("Commands");
  auto options = std::make_shared<CalibrateOptions>();
  add_method_options(*command, *options);
  add_calibatt_options(*command, *options);
  options->model.add_to(*command);
  options->request.add_content_to(*command->add_option_group("Content"));
  options->request.add_sampling_to(*command);
  auto* output = command->add_option_group("Output");
  output
      ->add_option("-o,--output", options->output,
                   "NAME.profile.json; NAME.measurements.json is written beside it")
      ->check(names_a_file())
      ->required();
  output->add_flag("--no-prompt-cache", options->no_prompt_cache,
                   "Do not keep prompt embeddings in the cache folder");
  output->add_flag("-q,--quiet", options->quiet, "Print nothing but errors");
  options->machine.add_to(*command);
  command->callback([options] { run_calibrate(*options); });
}

}  // namespace lacuna::cli
