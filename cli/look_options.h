// SPDX-License-Identifier: Apache-2.0
// What tournament and doctor share: where q, k and v come from, and where the report goes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/pipeline_subject.h"
#include "cli/request_options.h"
#include "lacuna/engine/json_object.h"

namespace lacuna::cli {

struct LookOptions {
  MachineOptions machine;
  ModelOptions model;
  RequestOptions request;
  std::vector<std::string> recordings, prompts;
  std::string prompt_file, sites, report;
  bool no_prompt_cache = false, json = false, quiet = false;
  std::vector<const CLI::Option*> of_the_request;  // what decides a generation beside its prompt

  void add_to(CLI::App& command);
  bool names_model() const { return !model.is_default() || model.has_lora(); }
  // What was given, else one default. Throws UsageError on an empty prompt.
  std::vector<std::string> all_prompts() const;
  // Throws UsageError on one of those options: recordings were made with what they were made with.
  // Beside a model they say what a profile is for, but for --dtype.
  void refuse_request() const;
  // Throws UsageError when a file that will be written is read too, Error when it cannot be written
  // there; better known before the work.
  void check_outputs(const std::vector<NamedFile>& outputs) const;
  // Writes the page, and prints the object, or as text when not --json.
  void finish(const Json& report) const;
};

// A model that is ready to be run, and what a report says of it.
class LookedModel {
 public:
  // Says on stderr what runs, unless quiet. `outputs` as in ModelOptions::open.
  LookedModel(const LookOptions& o, Backend& backend, const std::vector<NamedFile>& outputs);
  PipelineSubject& subject() { return *subject_; }
  const Request& request() const { return request_; }
  Json settings() const;

 private:
  std::vector<std::string> prompts_;
  std::unique_ptr<Model> model_;
  Request request_;
  Context ctx_;
  std::unique_ptr<PipelineSubject> subject_;
};

}  // namespace lacuna::cli
