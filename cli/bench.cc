// SPDX-License-Identifier: Apache-2.0
// lacuna bench: time beside density and error.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench/attend_bench.h"
#include "bench/select_bench.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/processes.h"
#include "cli/request_options.h"
#include "cli/say.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/pipeline/generation.h"

namespace lacuna::cli {
namespace {

struct BenchOptions {
  MachineOptions machine;
  ModelOptions model;
  std::vector<std::string> attention{"dense"};
  std::string skip, dense_steps, prompt = "a red ball rolls over grass";
  std::optional<int> width, height, frames;
  int steps = 1;
  double guidance = 1.0;
  PictureOptions pictures;
  bool json = false;
};

struct Row {
  std::string attention;
  GenerationResult result;
  double rel_l2;  // of the latents, to the first row
};

Request bench_request(const BenchOptions& o, const Model& model, const std::string& attention) {
  Request request;
  request.prompt = o.prompt;
  o.pictures.fill(request);
  request.width = *o.width, request.height = *o.height, request.frames = *o.frames;
  request.sampler.kind = model.sampler_kind();
  request.sampler.convention = model.sigma_convention();
  request.sampler.num_steps = o.steps;
  request.sampler.shift = model.defaults().shift_at(request.width, request.height);
  request.embedded_guidance = model.defaults().embedded_guidance;
  request.guidance = request.guidance_low = o.guidance;
  request.dtype = o.model.dtype;
  request.attention = attention;
  request.skip = attention == "dense" ? "none" : o.skip;
  request.dense_steps = attention == "dense" ? "" : o.dense_steps;
  return request;
}

Row run_one(const BenchOptions& o, Model& model, Backend& backend, const std::string& attention,
            const std::filesystem::path& latents, Tensor& reference) {
  const Request request = bench_request(o, model, attention);
  Context ctx{backend};
  ctx.cancel = &interrupt_flag();
  GenerationFiles files;
  files.latents = latents;
  GenerationHooks hooks;
  hooks.timed = true;
  const WorkShare share(processes(), request.guided());
  ctx.team = share.forward_team();
  hooks.share = &share;
  Row row{attention, generate(model, ctx, request, files, {}, 0, hooks), 0.0};
  if (!share.is_root()) return row;
  Tensor result = std::move(load_state(latents).state.latents);
  if (reference.empty()) {
    reference = std::move(result);
  } else {
    row.rel_l2 = compare(result, reference).rel_l2;
  }
  return row;
}

void print(const BenchOptions& o, const Row& row, const Row& first) {
  const Trace& t = row.result.trace;
  const double forwards = o.steps * (o.guidance == 1.0 ? 1 : 2);
  const double seconds = row.result.sample_seconds / forwards;
  nlohmann::ordered_json j;
  j["attention"] = row.attention;
  j["tokens"] = row.result.tokens;
  j["forward_seconds"] = seconds;
  j["attention_seconds"] = t.attend_ms() / 1000 / forwards;
  j["selection_seconds"] = t.select_ms() / 1000 / forwards;
  j["qk_density"] = t.qk_density();
  j["pv_density"] = t.pv_density();
  j["speedup"] = first.result.sample_seconds / row.result.sample_seconds;
  j["latents_rel_l2"] = row.rel_l2;
  if (o.json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  fmt::print("{:<34} {:>9.2f} {:>11.2f} {:>11.3f} {:>8.3f} {:>8.3f} {:>8.2f}x {:>10.2e}\n",
             row.attention, seconds, j["attention_seconds"].get<double>(),
             j["selection_seconds"].get<double>(), t.qk_density(), t.pv_density(),
             j["speedup"].get<double>(), row.rel_l2);
}

// Where the latents of a run pass through; removed however the bench ends.
struct ScratchFile {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / fmt::format("lacuna-bench-{}.safetensors", getpid());
  ~ScratchFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

// The shortest clip of this size that the model can make.
int fewest_frames(Model& model, const BenchOptions& o) {
  for (int frames = o.pictures.last.empty() ? 1 : 2; frames < *o.frames; ++frames) {
    try {
      model.latent_shape(*o.width, *o.height, frames);
      return frames;
    } catch (const Error&) {
      continue;  // not a length of this model
    }
  }
  return *o.frames;
}

// What was not asked for: the small model at its own size, others at one that a CPU can wait for.
BenchOptions with_size(BenchOptions o, const Model& model) {
  const bool own = o.model.is_default();
  const FamilyDefaults& d = model.defaults();
  if (!o.width) o.width = own ? d.width : 832;
  if (!o.height) o.height = own ? d.height : 480;
  if (!o.frames) o.frames = own ? d.frames : 17;
  return o;
}

void run_bench(const BenchOptions& given) {
  std::unique_ptr<Backend> backend;
  in_turn([&] { backend = given.machine.open(); });  // it may measure this machine
  const auto model = given.model.open();
  const BenchOptions o = with_size(given, *model);
  // Better known now than behind the rows before it.
  for (const std::string& attention : o.attention)
    request_policy(*model, bench_request(o, *model, attention));
  const ScratchFile latents;
  if (!o.json && speaks()) {
    say("{} on {}, {}x{}, {} frames, {} steps, guidance {}\n", one_line(model->title()),
        backend->description(), *o.width, *o.height, *o.frames, o.steps, o.guidance);
    fmt::print("{:<34} {:>9} {:>11} {:>11} {:>8} {:>8} {:>9} {:>10}\n", "attention", "forward s",
               "attention s", "selection s", "QK dens", "PV dens", "speed-up", "rel L2");
  }
  // The first forward of a process reads or makes the weights and builds kernels; the first row,
  // which the others are measured against, would pay for that.
  BenchOptions warm = o;
  warm.steps = 1;
  warm.frames = fewest_frames(*model, o);
  Tensor nobodys;
  run_one(warm, *model, *backend, "dense", latents.path, nobodys);
  std::vector<Row> rows;
  Tensor reference;
  for (const std::string& attention : o.attention) {
    rows.push_back(run_one(o, *model, *backend, attention, latents.path, reference));
    if (speaks()) print(o, rows.back(), rows.front());
  }
}

void add_bench_generate(CLI::App& bench) {
  auto* command = bench.add_subcommand("generate", "Whole forwards of a model, dense and sparse");
  auto options = std::make_shared<BenchOptions>();
  options->model.add_to(*command);
  command
      ->add_option("-a,--attention", options->attention,
                   "Policies to time; speed-up and error refer to the first")
      ->capture_default_str();
  command->add_option("--skip", options->skip, "Skip rule of the sparse policies");
  command->add_option("--dense-steps", options->dense_steps, "Dense steps of the sparse policies");
  command->add_option("-W,--width", options->width,
                      "Pixels; default 832, the small model's own for it");
  command->add_option("-H,--height", options->height,
                      "Pixels; default 480, the small model's own for it");
  command->add_option("--frames", options->frames,
                      "Frames; default 17, the small model's own for it");
  command->add_option("--steps", options->steps, "Denoising steps")->capture_default_str();
  command->add_option("--guidance", options->guidance, "1 = one forward a step")
      ->check(real_number())
      ->capture_default_str();
  command->add_option("-p,--prompt", options->prompt, "What the video shows")
      ->capture_default_str();
  options->pictures.add_to(*command);
  command->add_flag("--json", options->json, "One JSON object a line");
  options->machine.add_to(*command);
  command->callback([options] { run_bench(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* command = app.add_subcommand("bench", "Time attention or whole forwards on this machine");
  command->group("Commands");
  command->require_subcommand(1);
  bench::add_attend_bench(*command);
  bench::add_select_bench(*command);
  add_bench_generate(*command);
}

}  // namespace lacuna::cli
