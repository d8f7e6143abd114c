// SPDX-License-Identifier: Apache-2.0
// lacuna compare: sparse attention against dense, with the noise floor beside it.
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/remake.h"
#include "cli/request_options.h"
#include "cli/say.h"
#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/profile.h"
#include "lacuna/models/video/video_writer.h"
#include "lacuna/report/comparison.h"
#include "lacuna/report/comparison_report.h"
#include "lacuna/report/machine_info.h"
#include "lacuna/report/page.h"
#include "lacuna/report/side_by_side.h"
#include "lacuna/report/text.h"

namespace lacuna::cli {
namespace {

using Json = nlohmann::ordered_json;

struct CompareOptions {
  MachineOptions machine;
  ModelOptions model;
  DecodeSettings decode;
  RequestOptions request;
  std::string prompt, prompt_file, output, report;
  std::vector<std::string> attention, candidate;
  int seeds = 1;
  bool no_floor = false, no_prompt_cache = false, json = false;
};

// Pages stay below 10 MB; the rest of one is small.
constexpr size_t kPictureBytes = 9'000'000;

// A policy in the words of lacuna generate, the method's first.
CompareCandidate parse_candidate(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words{std::istream_iterator<std::string>(in), {}};
  if (words.empty()) throw UsageError("--candidate: empty, expected METHOD or PRESET and options");
  if (!words.front().starts_with('-')) words.insert(words.begin(), "--attention");
  CLI::App app;
  app.set_help_flag();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  AttentionOptions options;
  options.add_to(app);
  try {
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));
  } catch (const CLI::ParseError& error) {
    throw UsageError(fmt::format("--candidate \"{}\": {}", text, error.what()));
  }
  CompareCandidate candidate{text, {}};
  options.fill(candidate.request);
  return candidate;
}

std::vector<CompareCandidate> candidates_of(const CompareOptions& o) {
  std::vector<CompareCandidate> list;
  for (const std::string& spec : o.attention) {
    CompareCandidate candidate{spec, {}};
    candidate.request.attention = spec;
    list.push_back(std::move(candidate));
  }
  for (const std::string& text : o.candidate) list.push_back(parse_candidate(text));
  if (list.empty()) throw UsageError("no candidate: --attention METHOD or --candidate \"...\"");
  for (size_t i = 0; i < list.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (list[i].name == list[j].name)
        throw UsageError(fmt::format("candidate '{}' is given twice", list[i].name));
  return list;
}

std::vector<NamedFile> files_compared(const CompareOptions& o, const CompareTask& task) {
  std::vector<NamedFile> files = {{"--prompts", o.prompt_file},
                                  {"--image", o.request.pictures.first},
                                  {"--last-image", o.request.pictures.last}};
  for (const CompareCandidate& candidate : task.candidates) {
    files.push_back({"--profile", candidate.request.profile});
    files.push_back({"the profile's masks", named_masks_file(candidate.request.profile)});
  }
  return files;
}

std::vector<std::string> prompts_of(const CompareOptions& o) {
  std::vector<std::string> prompts;
  if (!o.prompt.empty()) prompts.push_back(o.prompt);
  if (!o.prompt_file.empty()) {
    const std::vector<std::string> more = read_prompts(o.prompt_file);
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  if (prompts.empty()) throw UsageError("no prompt: -p \"...\" or --prompts");
  return prompts;
}

// Other kernels for the floor: the next lower instruction set. Null at the lowest, where only the
// oracle is left, which takes hours for minutes of the cpu backend.
std::unique_ptr<Backend> other_kernels(const Backend& backend) {
  if (backend.name() == "ref") return make_backend("cpu");
  const cpu::Isa isa = cpu::active_isa();
  if (backend.name() != "cpu" || isa == cpu::Isa::avx2) return nullptr;
  return make_cpu_backend(static_cast<cpu::Isa>(static_cast<uint8_t>(isa) - 1));
}

VideoInfo video_info(const CompareTask& task) {
  const Request& r = task.request;
  const SideBySideLayout layout(static_cast<int>(task.candidates.size()) + 1, r.width, r.height);
  return {.width = layout.width,
          .height = layout.height,
          .fps = r.fps,
          .comment = comment_of_command(command_line())};
}

// Better known now than after the runs.
void check_outputs(const CompareOptions& o, const CompareTask& task) {
  if (!o.output.empty()) open_video(o.output, video_info(task));
  if (!o.report.empty()) AtomicFile writable(o.report);
}

void write_video(const CompareOptions& o, const CompareTask& task, const Comparison& comparison,
                 const Context& ctx) {
  std::vector<LabelledClip> clips;
  for (const CompareSubject& subject : comparison.subjects)
    if (subject.role != CompareRole::floor) clips.push_back({clip_label(subject), &subject.clip});
  const auto writer = open_video(o.output, video_info(task));
  write_side_by_side(clips, *writer, [&] { ctx.check_cancel(); });
}

std::string without_pictures(Json report) {
  for (Json& section : report["sections"])
    if (section["kind"] == "player")
      for (Json& clip : section["clips"]) clip.erase("image");
  return report.dump(1);
}

void run_compare(const CompareOptions& o) {
  const std::vector<NamedFile> outputs = {{"--output", o.output, true}, {"--report", o.report}};
  CompareTask task;
  task.candidates = candidates_of(o);
  check_files_differ(outputs, files_compared(o, task));
  task.prompts = prompts_of(o);
  task.tiling = o.decode.tiling();
  const auto backend = o.machine.open();
  const auto model = o.model.open(outputs);
  task.request = o.request.make(*model);
  task.request.dtype = o.model.dtype;
  task.seeds = o.seeds;
  task.keep_clips = !o.output.empty() || !o.report.empty();
  if (!o.no_prompt_cache) task.prompt_cache = prompt_cache_folder();
  check_outputs(o, task);
  task.floor = !o.no_floor;
  const auto other = task.floor ? other_kernels(*backend) : nullptr;
  task.other_backend = other.get();

  Context ctx{*backend};
  ctx.cancel = &interrupt_flag();
  CompareHooks hooks;
  hooks.note = say_note;
  hooks.note(fmt::format("{} on {}", model->title(), backend->description()));
  if (model->is_synthetic()) hooks.note("made-up weights: the picture means nothing");
  if (!model->assumption().empty()) hooks.note(model->assumption());
  std::optional<ProgressBar> bar;
  bool reported = false;
  hooks.progress = [&](int64_t done, int64_t total, const std::string& what) {
    if (!bar) bar.emplace("comparing", static_cast<int>(total));
    bar->update(static_cast<int>(done), what);
  };
  try {
    const Comparison comparison = compare_attention(*model, ctx, task, hooks);
    bar.reset();
    const Json report = comparison_report(comparison, task, model->title(), machine_info(*backend),
                                          o.report.empty() ? 0 : kPictureBytes);
    // First what took long: a disk may be full by now.
    if (o.json) {
      std::puts(without_pictures(report).c_str());
    } else {
      say("{}", report_text(report, ReportFigures::omit));
    }
    std::fflush(stdout);
    reported = true;
    if (!o.report.empty()) write_report(o.report, report);
    if (!o.output.empty()) write_video(o, task, comparison, ctx);
  } catch (const Cancelled&) {
    bar.reset();
    throw Interrupted{reported ? "stopped; the report is done, the video is not"
                               : "stopped; nothing was written"};
  }
}

}  // namespace

void add_compare(CLI::App& app) {
  auto* command = app.add_subcommand(
      "compare", "Measure sparse attention against dense: quality, cost and the noise floor");
  command->group("Commands");
  auto o = std::make_shared<CompareOptions>();
  auto* content = command->add_option_group("Content");
  content->add_option("-p,--prompt", o->prompt, "What the videos show");
  content
      ->add_option("--prompts,--prompt-file", o->prompt_file,
                   "Text file with more prompts, one per line")
      ->check(names_a_file());
  o->request.add_content_to(*content);
  content->add_option("--seeds", o->seeds, "So many seeds for each prompt, from --seed upwards")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  o->model.add_to(*command);
  o->request.add_sampling_to(*command);
  auto* candidates = command->add_option_group("Candidates");
  candidates
      ->add_option("-a,--attention,--sparse", o->attention,
                   "METHOD or PRESET[:name=value,...], several allowed; see lacuna methods")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  candidates
      ->add_option("--candidate", o->candidate,
                   "The same with other options of lacuna generate, several allowed, e.g. "
                   "\"xattention:top_p=0.8 --skip running_lse:lambda=-6 --dense-steps 20%\"")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  candidates->add_flag("--no-floor", o->no_floor, "Leave out dense against itself");
  auto* output = command->add_option_group("Output");
  output
      ->add_option("-o,--output", o->output,
                   "All clips of the first prompt and seed side by side, as a video")
      ->check(names_a_file());
  output->add_option("--report", o->report, "Everything measured, as one HTML page")
      ->check(names_a_file());
  output->add_option("--fps", o->request.fps, "Frames per second; default of the model");
  output->add_flag("--json", o->json, "Print the report's data as one JSON object");
  output->add_flag("--no-prompt-cache", o->no_prompt_cache,
                   "Do not keep prompt embeddings in the cache folder");
  o->decode.add_to(*command);
  o->machine.add_to(*command);
  command->callback([o] { run_compare(*o); });
}

}  // namespace lacuna::cli
