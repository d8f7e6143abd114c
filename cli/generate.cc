// SPDX-License-Identifier: Apache-2.0
// lacuna generate: text, or text and pictures, to video.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "cli/audit.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/peer_options.h"
#include "cli/processes.h"
#include "cli/remake.h"
#include "cli/request_options.h"
#include "cli/say.h"
#include "cli/work.h"
#include "lacuna/core/atomic_file.h"
#include "lacuna/core/available_memory.h"
#include "lacuna/core/error.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/recording.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna::cli {
namespace {

namespace fs = std::filesystem;

struct GenerateOptions {
  MachineOptions machine;
  ModelOptions model;
  AttentionOptions attention;
  DecodeSettings decode;
  RequestOptions request;
  AuditOptions audit;
  PeerOptions peer;
  std::string prompt, prompt_file;
  std::string output = "out.mp4", latents, resume, record, record_sites;
  bool no_decode = false, no_prompt_cache = false, json = false, quiet = false;
  double max_memory_gb = 0.0;
  std::vector<std::pair<const char*, const CLI::Option*>> of_the_video;  // by key of the request
};

void add_content_options(CLI::App& command, GenerateOptions& o) {
  auto* content = command.add_option_group("Content");
  content->add_option("-p,--prompt", o.prompt, "What the video shows");
  content->add_option("--prompt-file", o.prompt_file, "Read the prompt from a file")
      ->check(names_a_file());
  o.request.add_content_to(*content);
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  LACUNA_CHECK(in.good() && !fs::is_directory(path), "prompt file: could not read {}", path);
  std::string text(std::istreambuf_iterator<char>(in), {});
  LACUNA_CHECK(text.size() <= (1u << 20), "prompt file: {} has {} bytes, at most 1 MiB", path,
               text.size());
  LACUNA_CHECK(text.find_first_not_of(" \t\r\n") != std::string::npos,
               "prompt file: {} is empty, expected a prompt", path);
  return text;
}

Request make_request(const GenerateOptions& o, const Model& model) {
  Request r = o.request.make(model);
  r.prompt = o.prompt_file.empty() ? o.prompt : read_text(o.prompt_file);
  r.dtype = o.model.dtype;
  o.attention.fill(r);
  r.replay_masks = o.audit.replay_masks;
  r.policy_content = policy_content(r);
  return r;
}

void add_output_options(CLI::App& command, GenerateOptions& o) {
  auto* output = command.add_option_group("Output");
  output->add_option("-o,--output,--save_file", o.output, "File ending in " + video_endings())
      ->check(names_a_file())
      ->capture_default_str();
  output->add_option("--fps", o.request.fps, "Frames per second; default of the model");
  output
      ->add_option("--latents", o.latents,
                   "Keep the latents in this file (default: beside the output until it is done)")
      ->check(names_a_file());
  output->add_flag("--no-decode", o.no_decode, "Stop after the latents; see lacuna decode");
  output->add_option("--resume", o.resume, "Go on from the latents file of a stopped run")
      ->check(names_a_file());
  auto* record =
      output
          ->add_option("--record", o.record,
                       "Write q, k and v of chosen attention calls to this file; see lacuna replay")
          ->check(names_a_file());
  output
      ->add_option("--record-sites", o.record_sites,
                   "steps=LIST;layers=LIST;branches=cond|both; what is left out means all "
                   "(branches: cond)")
      ->needs(record);
  output->add_flag("--no-prompt-cache", o.no_prompt_cache,
                   "Do not keep prompt embeddings in the cache folder");
  output
      ->add_option("--max-memory", o.max_memory_gb,
                   "GB that may be used. On a GPU weights that have no room are copied there "
                   "when they are used; what needs more is refused")
      // At least the byte that tells a limit from none, and what fits a count of bytes.
      ->check(real_number(1e-9, 1e9, "GB"));
  output->add_flag("--json", o.json, "Print the summary as one JSON object");
  output->add_flag("-q,--quiet", o.quiet, "Print nothing but errors and what --json asks for");
}

GenerationFiles make_files(const GenerateOptions& o) {
  GenerationFiles files;
  if (!o.no_decode) files.video = o.output;
  const fs::path beside = o.output + ".latents.safetensors";
  files.latents = !o.latents.empty()  ? fs::path(o.latents)
                  : !o.resume.empty() ? fs::path(o.resume)
                                      : beside;
  // A file that the user named is the user's; the one beside the output goes with the last frame.
  files.keep_latents = !o.latents.empty() || o.no_decode || files.latents != beside;
  if (!o.no_prompt_cache) files.prompt_cache = prompt_cache_folder();
  return files;
}

// What will be written. Throws UsageError when two are one file, or one is the file to go on from:
// that only the latents may be, which then replace it by intent.
std::vector<NamedFile> files_of_run(const GenerateOptions& o, const GenerationFiles& files) {
  std::vector<NamedFile> outputs = {{"--output", files.video, true},
                                    {"--record", o.record},
                                    {"--trace", o.audit.trace},
                                    {"--save-masks", o.audit.save_masks},
                                    {"--manifest", o.audit.manifest}};
  check_files_differ(outputs, {{"--resume", o.resume}});
  outputs.insert(outputs.begin() + 1, {"--latents", files.latents});
  check_files_differ(outputs);
  return outputs;
}

// What the run reads beside its model; a request that goes on names its own policy.
void check_inputs_differ(const GenerateOptions& o, const Request& request,
                         const std::vector<NamedFile>& outputs) {
  check_files_differ(outputs, {{"--prompt-file", o.prompt_file},
                               {"--image", request.image},
                               {"--last-image", request.last_image},
                               {"--profile", request.profile},
                               {"the profile's masks", named_masks_file(request.profile)},
                               {"--replay-masks", request.replay_masks}});
}

// Whether the trace goes into a file: its times are worth waiting for a device at every call.
bool wants_times(const GenerateOptions& o) {
  return !o.audit.trace.empty() || !o.audit.manifest.empty();
}

// `made` is the file that the run was for.
void print_summary(const GenerateOptions& o, const Request& request, const GenerationResult& result,
                   const fs::path& made) {
  const Trace& trace = result.trace;
  const double attention_s = trace.attend_ms() / 1000.0, selection_s = trace.select_ms() / 1000.0;
  // A device's ops return before they are done, so a clock that does not wait for it knows nothing.
  const bool timed = result.memory.limit == 0 || wants_times(o);
  const bool planned = o.audit.dry_run, explains = o.audit.explain || planned;
  if (o.json) {
    nlohmann::ordered_json json = {{"tokens", result.tokens},
                                   {"steps", request.sampler.num_steps},
                                   {"qk_density", trace.qk_density()},
                                   {"pv_density", trace.pv_density()},
                                   {"text_seconds", result.text_seconds},
                                   {"sample_seconds", result.sample_seconds},
                                   {"attention_seconds", attention_s},
                                   {"selection_seconds", selection_s},
                                   {"decode_seconds", result.decode_seconds},
                                   {"request", nlohmann::ordered_json::parse(request.to_json())}};
    const Backend::MemoryUse& m = result.memory;
    if (m.limit > 0)
      json["device_memory"] = {{"limit", m.limit},
                               {"most", m.most},
                               {"to_device", m.to_backend},
                               {"to_host", m.to_host}};
    if (!timed) json["attention_seconds"] = json["selection_seconds"] = nullptr;
    if (planned)  // nothing ran, so nothing was measured
      for (const char* key : {"qk_density", "pv_density", "text_seconds", "sample_seconds",
                              "attention_seconds", "selection_seconds", "decode_seconds"})
        json[key] = nullptr;
    if (explains) json["explain"] = explain_json(result, planned);
    fmt::print("{}\n", json.dump());
    return;
  }
  if (explains) say("{}", explain_text(result, planned));
  if (planned) return;
  const std::string what = !request.replay_masks.empty() ? "as in " + request.replay_masks
                           : !request.profile.empty()    ? "as in " + request.profile
                                                         : request.attention;
  say("{}: {} tokens, attention {} at density {:.3f} (P V {:.3f}); sampling {:.1f} s{}, decoding "
      "{:.1f} s\n",
      one_line(made.string()), result.tokens, one_line(what), trace.qk_density(),
      trace.pv_density(), result.sample_seconds,
      timed ? fmt::format(" (attention {:.1f} s, selection {:.1f} s)", attention_s, selection_s)
            : "",
      result.decode_seconds);
  if (const std::string why = why_all_dense(trace); !why.empty()) say_note(why);
  if (result.memory.limit > 0)
    fmt::print("device memory: {} at most, {} copied there and {} back\n",
               format_bytes(static_cast<double>(result.memory.most)),
               format_bytes(static_cast<double>(result.memory.to_backend)),
               format_bytes(static_cast<double>(result.memory.to_host)));
}

// Of options given beside --resume none may contradict the file, which decides; the others, whose
// defaults it may differ from, say nothing.
void check_resumed(const GenerateOptions& o, const Model& model, const Request& saved) {
  const auto given = [](const auto& item) { return item.second->count() > 0; };
  if (std::none_of(o.of_the_video.begin(), o.of_the_video.end(), given)) return;
  const auto theirs = nlohmann::ordered_json::parse(saved.to_json());
  GenerateOptions asked = o;
  RequestOptions& r = asked.request;
  // What the given ones are read with.
  if (r.sampler.empty()) r.sampler = theirs.at("sampler");
  if (r.timesteps.empty() && r.sampler == theirs.at("sampler"))
    r.timesteps = saved.sampler.timesteps;
  if (!r.guidance && !r.guide_scale) {
    if (!r.guidance_high) r.guidance_high = saved.guidance;
    if (!r.guidance_low) r.guidance_low = saved.guidance_low;
  }
  if (!r.shift) r.shift = saved.sampler.shift;
  if (!r.embedded_guidance) r.embedded_guidance = saved.embedded_guidance;
  if (!r.boundary && !r.high_noise_steps) r.boundary = saved.boundary;
  const auto ours = nlohmann::ordered_json::parse(make_request(asked, model).to_json());
  for (const auto& [key, option] : o.of_the_video) {
    const auto saved_value = theirs.value(key, nlohmann::ordered_json());
    const auto asked_value = ours.value(key, nlohmann::ordered_json());
    if (option->count() > 0 && asked_value != saved_value)
      throw UsageError(fmt::format(
          "--resume: {} was made with {} {}, this command says {}; leave that out, or start again "
          "without --resume",
          o.resume, key, saved_value.dump(), asked_value.dump()));
  }
}

// Files may have moved; what they change decides.
void check_same_lora(const GenerateOptions& o, const Model& model, const Request& saved) {
  if (saved.lora_content == model.lora_content()) return;
  const auto spelled = [](const Request& request) {
    const std::string words = lora_options(request);
    return words.empty() ? std::string(" no --lora") : words;
  };
  Request ours;
  name_lora(model, ours);
  throw UsageError(fmt::format("--resume: {} was made with{}, this command has{}; say the same",
                               o.resume, spelled(saved), spelled(ours)));
}

RecordFilter record_filter(const GenerateOptions& o, const Model& model, const Request& request,
                           const std::optional<SamplingState>& resume) {
  RecordFilter filter = parse_record_sites(o.record_sites);
  check_record_sites(filter, make_sampler(request.sampler)->num_steps(),
                     static_cast<int>(model.architecture().sizes().num_layers),
                     resume ? resume->next_step : 0);
  return filter;
}

// The last finished step of a run that was stopped and left this file; 0 = none.
int stopped_step(const fs::path& latents) {
  std::error_code ignored;
  if (!fs::is_regular_file(latents, ignored)) return 0;
  try {
    return load_state(latents).state.next_step;
  } catch (const Error&) {
    return 0;  // not such a file
  }
}

// The files that were asked for and will lack steps, because an earlier run did them.
std::string files_in_part(const GenerateOptions& o, int first_step) {
  const std::vector<int> steps = parse_record_sites(o.record_sites).steps;
  const bool records_in_part =
      steps.empty() || *std::min_element(steps.begin(), steps.end()) < first_step;
  const std::pair<const char*, bool> all[] = {{"--record", !o.record.empty() && records_in_part},
                                              {"--trace", !o.audit.trace.empty()},
                                              {"--save-masks", !o.audit.save_masks.empty()},
                                              {"--manifest", !o.audit.manifest.empty()}};
  std::string names;
  for (const auto& [option, in_part] : all)
    if (in_part) names += (names.empty() ? "" : ", ") + std::string(option);
  return names;
}

void note_start(const GenerateOptions& o, const Model& model, const Backend& backend,
                const Request& request, const fs::path& latents, int left_step, int first_step,
                const NoteHook& note) {
  const int num_steps = request.sampler.num_steps;
  note(fmt::format("{} on {}; {}x{}, {} frames, {} steps", model.title(), backend.description(),
                   request.width, request.height, request.frames, num_steps));
  if (model.is_synthetic()) note("made-up weights: the picture means nothing");
  if (!model.assumption().empty()) note(model.assumption());
  if (!request.tae.empty()) note(fmt::format("decoder: {}, fast and less exact", request.tae));
  if (!request.guided() && !o.request.negative_prompt.value_or("").empty())
    note("note: with guidance 1 nothing reads the negative prompt; see --guidance");
  if (left_step > 0)
    note(
        fmt::format("note: {0} holds {1} steps of an earlier run and will be replaced; to go on "
                    "with it: --resume {0}",
                    latents.string(), left_step));
  if (first_step == 0) return;
  if (const std::string names = files_in_part(o, first_step); !names.empty())
    note(fmt::format(
        "note: the run goes on at step {} of {}; the steps before it are left out of {}",
        first_step, num_steps, names));
}

// The request of the options, or that of a stopped run, which comes with its state.
Request starting_request(const GenerateOptions& o, const Model& model,
                         std::optional<SamplingState>& resume) {
  if (o.resume.empty()) {
    if (o.prompt.empty() && o.prompt_file.empty()) throw UsageError("no prompt: -p \"...\"");
    if (!o.prompt.empty() && !o.prompt_file.empty())
      throw UsageError("--prompt-file: takes no --prompt beside it");
    return make_request(o, model);
  }
  LoadedState loaded = load_state(o.resume);
  LACUNA_CHECK(loaded.request.model == model.identity(),
               "resume: {} was made with {}, this model is {}", o.resume, loaded.request.model,
               model.identity());
  check_same_lora(o, model, loaded.request);
  check_resumed(o, model, loaded.request);
  resume = std::move(loaded.state);
  loaded.request.tae = model.tiny_decoder().string();  // of this run: latents are without it
  return std::move(loaded.request);
}

std::string resuming_command(const GenerateOptions& o, const fs::path& latents) {
  const Team* team = processes();
  return fmt::format("{}lacuna generate --resume {}, the same --model{} and the same --output",
                     team != nullptr ? fmt::format("mpirun -n {} ", team->size()) : "",
                     latents.string(), o.model.has_lora() ? ", the same LoRA" : "");
}

// The latents of a run that failed, and how it goes on from them.
std::string way_back(const GenerateOptions& o, const fs::path& latents, int steps, int num_steps) {
  const std::string command =
      steps == num_steps
          ? fmt::format("lacuna decode {} -o {}, the same --model", latents.string(), o.output)
          : resuming_command(o, latents);
  return fmt::format("; {} of {} steps are kept; go on with: {}", steps, num_steps, command);
}

void run_generate(const GenerateOptions& given) {
  GenerateOptions o = given;
  Team* const team = processes();
  if (!speaks()) o.quiet = true, o.json = false;
  const Tiling tiling = o.decode.tiling();
  std::unique_ptr<Backend> backend;
  in_turn([&] { backend = o.machine.open(); });  // it may measure this machine
  const GenerationFiles files = make_files(o);
  const std::vector<NamedFile> outputs = files_of_run(o, files);
  const auto model = o.model.open(outputs);
  std::optional<SamplingState> resume;
  const Request request = starting_request(o, *model, resume);
  check_inputs_differ(o, request, outputs);
  const int left_step = resume ? 0 : stopped_step(files.latents);
  bool begun = false;
  int kept = 0;  // steps whose latents this run has saved

  Context ctx{*backend};
  ctx.cancel = &interrupt_flag();
  Work bar(o.quiet);
  GenerationHooks hooks;
  const WorkShare share(team, request.guided());
  ctx.team = share.forward_team();
  hooks.share = &share;
  if (!o.quiet) {
    hooks.note = say_note;
    if (!share.alone()) hooks.note(describe(share));
    if (const std::string line = o.peer.note(); !line.empty()) hooks.note(line);
    note_start(o, *model, *backend, request, files.latents, left_step,
               resume ? resume->next_step : 0, hooks.note);
  }
  hooks.encode = [&](int64_t done, int64_t total) {
    if (total > 1) bar.update("encoding", done, total);
  };
  hooks.step = [&](const StepReport& report) {
    begun = true;
    bar.update("sampling", report.step + 1, report.num_steps,
               fmt::format("density {:.3f}", report.qk_density));
  };
  hooks.decode = [&](int64_t done, int64_t total) { bar.update("decoding", done, total); };
  hooks.saved = [&](int steps) { kept = steps; };
  std::optional<Recorder> recorder;
  if (!o.record.empty()) {
    // Half of what is free: the generation needs the rest.
    AtomicFile writable(o.record);  // better known now than after the run
    recorder.emplace(*backend, record_filter(o, *model, request, resume), available_memory() / 2);
    hooks.inputs = [&](const auto&... inputs) { recorder->add(inputs...); };
  }
  hooks.timed = wants_times(o);
  Audit audit(o.audit, *model, request, hooks);
  GenerationResult result;
  try {
    const auto max_memory = static_cast<int64_t>(o.max_memory_gb * 1e9);
    result = generate(*model, ctx, request, files, tiling, max_memory, hooks, std::move(resume));
  } catch (const Cancelled&) {
    bar.end();
    if (!begun && left_step > 0)
      throw Interrupted{fmt::format("stopped before the first step; {} still holds the earlier run",
                                    files.latents.string())};
    if (!fs::exists(files.latents))
      throw Interrupted{"stopped before the first step; nothing was written"};
    throw Interrupted{"stopped; go on with: " + resuming_command(o, files.latents)};
  } catch (const std::exception& error) {
    bar.end();
    if (kept == 0) throw;
    const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
    throw Error((memory ? "out of memory" : error.what()) +
                way_back(o, files.latents, kept, request.sampler.num_steps));
  }
  bar.end();
  const fs::path& made = o.no_decode ? files.latents : files.video;
  if (share.is_root()) audit.save(result, *model, request, *backend, made);
  if (recorder && !o.audit.dry_run) recorder->save(o.record);
  if (!o.quiet || o.json) print_summary(o, request, result, made);
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "Make a video from a prompt");
  command->group("Commands");
  auto options = std::make_shared<GenerateOptions>();
  add_content_options(*command, *options);
  options->model.add_to(*command);
  options->request.add_sampling_to(*command);
  options->attention.add_to(*command);
  add_output_options(*command, *options);
  options->audit.add_to(*command);
  options->decode.add_to(*command);
  options->machine.add_to(*command);
  options->peer.add_to(*command);
  const auto decides = [&](const char* key, const char* option) {
    options->of_the_video.emplace_back(key, command->get_option(option));
  };
  for (const auto& [key, option] : options_of_keys()) decides(key, option);
  decides("prompt", "--prompt-file");
  decides("width", "--size"), decides("height", "--size");
  decides("timesteps", "--timesteps"), decides("warp_timesteps", "--timesteps-shifted");
  for (const char* key : {"guidance", "guidance_low"})
    decides(key, "--sample_guide_scale"), decides(key, "--high-noise-cfg-scale");
  for (const char* key : {"steps", "boundary"}) decides(key, "--high-noise-steps");
  command->callback([options] { run_generate(*options); });
}

}  // namespace lacuna::cli
