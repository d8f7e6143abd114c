// SPDX-License-Identifier: Apache-2.0
#include "cli/look_options.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/prompts.h"
#include "cli/say.h"
#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/report/page.h"
#include "lacuna/report/text.h"

namespace lacuna::cli {

void LookOptions::add_to(CLI::App& command) {
  command
      .add_option("recording", recordings,
                  "Files of lacuna generate --record, instead of running a model")
      ->check(names_a_file());
  auto* content = command.add_option_group("Content");
  content
      ->add_option("-p,--prompt", prompts,
                   "What the video shows; default: a sentence that the small model knows")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  content
      ->add_option("--prompts,--prompt-file", prompt_file,
                   "Text file, one prompt per line, instead of -p")
      ->check(names_a_file());
  const auto prompts_only = content->get_options().size();
  request.add_content_to(*content);
  model.add_to(command);
  // One file each time, or it would take the recordings for more.
  command.get_option("--model")->allow_extra_args(false);
  request.add_sampling_to(command);
  const auto of_content = content->get_options();
  of_the_request.assign(of_content.begin() + static_cast<std::ptrdiff_t>(prompts_only),
                        of_content.end());
  for (const CLI::Option* option : command.get_option_group("Sampling")->get_options())
    of_the_request.push_back(option);
  of_the_request.push_back(command.get_option("--dtype"));
  auto* output = command.add_option_group("Output");
  output->add_option(
      "--sites", sites,
      "steps=LIST;layers=LIST: the attention calls to look at; default: all of recordings, "
      "else of a model an early, a middle and a late step");
  output->add_option("--report", report, "Write the result as one HTML page")
      ->check(names_a_file());
  output->add_flag("--json", json, "Print the report's data as one JSON object");
  output->add_flag("--no-prompt-cache", no_prompt_cache,
                   "Do not keep prompt embeddings in the cache folder");
  output->add_flag("-q,--quiet", quiet, "Print no progress");
  machine.add_to(command);
}

std::vector<std::string> LookOptions::all_prompts() const {
  if (!prompt_file.empty()) {
    if (!prompts.empty()) throw UsageError("--prompts: takes no --prompt beside it");
    return read_prompts(prompt_file);
  }
  if (prompts.empty()) return {kDefaultPrompt};
  for (const std::string& prompt : prompts)
    if (prompt.empty()) throw UsageError("no prompt: -p \"...\"");
  return prompts;
}

void LookOptions::refuse_request() const {
  for (const CLI::Option* option : of_the_request)
    if (option->count() > 0 && (!names_model() || option->get_name() == "--dtype"))
      throw UsageError(fmt::format("recordings: take no {} beside them, it would change nothing",
                                   option->get_name()));
}

void LookOptions::check_outputs(const std::vector<NamedFile>& outputs) const {
  std::vector<NamedFile> inputs = {{"--prompts", prompt_file},
                                   {"--image", request.pictures.first},
                                   {"--last-image", request.pictures.last}};
  for (const std::string& recording : recordings) inputs.push_back({"recording", recording});
  check_files_differ(outputs, inputs);
  for (const NamedFile& output : outputs)
    if (!output.path.empty()) AtomicFile writable(output.path);
}

void LookOptions::finish(const Json& made) const {
  // First what took long: a disk may be full by now.
  if (json) {
    std::puts(made.dump(1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    say("{}", report_text(made, ReportFigures::omit));
  }
  std::fflush(stdout);
  if (!report.empty()) write_report(report, made);
}

LookedModel::LookedModel(const LookOptions& o, Backend& backend,
                         const std::vector<NamedFile>& outputs)
    : prompts_(o.all_prompts()), model_(o.model.open(outputs)), ctx_{backend} {
  request_ = o.request.make(*model_);
  request_.dtype = o.model.dtype;
  ctx_.cancel = &interrupt_flag();
  if (!o.quiet) {
    say_note(fmt::format("{} on {}; {}x{}, {} frames, {} steps, {} prompt{}", model_->title(),
                         backend.description(), request_.width, request_.height, request_.frames,
                         request_.sampler.num_steps, prompts_.size(),
                         prompts_.size() == 1 ? "" : "s"));
    if (model_->is_synthetic()) say_note("made-up weights: times are real, losses mean nothing");
    if (!model_->assumption().empty()) say_note(model_->assumption());
  }
  subject_ = std::make_unique<PipelineSubject>(
      *model_, ctx_, request_, prompts_,
      o.no_prompt_cache ? std::filesystem::path() : prompt_cache_folder());
}

Json LookedModel::settings() const {
  Json settings = {
      {"model", model_->title()},
      {"prompt", prompts_.front()},
      {"prompts", prompts_.size()},
      {"size", fmt::format("{}x{}, {} frames", request_.width, request_.height, request_.frames)},
      {"steps", request_.sampler.num_steps},
      {"guidance", request_.guidance},
      {"seed", std::to_string(request_.seed)},  // a page rounds large numbers
      {"dtype", request_.dtype}};
  return settings;
}

}  // namespace lacuna::cli
