// SPDX-License-Identifier: Apache-2.0
// lacuna decode: a latents file to a video.
#include <fmt/format.h>

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output_files.h"
#include "cli/progress.h"
#include "cli/say.h"
#include "lacuna/core/error.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna::cli {
namespace {

struct DecodeOptions {
  MachineOptions machine;
  ModelOptions model;
  DecodeSettings decode;
  std::string latents, output = "out.mp4";
  std::optional<int> fps;
};

void run_decode(const DecodeOptions& o) {
  const std::vector<NamedFile> outputs = {{"--output", o.output, true}};
  check_files_differ(outputs, {{"latents", o.latents}});
  const Tiling tiling = o.decode.tiling();
  const auto backend = o.machine.open();
  const auto model = o.model.open(outputs);
  LoadedState loaded = load_state(o.latents);
  if (o.fps) loaded.request.fps = *o.fps;
  loaded.request.tae = model->tiny_decoder().string();
  if (loaded.state.next_step < loaded.request.sampler.num_steps) {
    say_note(fmt::format("note: stopped at step {} of {}; this is a preview",
                         loaded.state.next_step, loaded.request.sampler.num_steps));
  }
  // Families share decoders, so another model may be meant; one of other weights may not. Beside a
  // tiny decoder nothing of the model takes part.
  if (loaded.request.model != model->identity() && loaded.request.tae.empty())
    say_note(fmt::format("note: made with {}, decoding with {}; another one: --model",
                         loaded.request.model, model->identity()));
  Context ctx{*backend};
  ctx.cancel = &interrupt_flag();
  std::optional<ProgressBar> bar;
  GenerationHooks hooks;
  hooks.note = say_note;
  hooks.decode = [&](int64_t done, int64_t total) {
    if (!bar) bar.emplace("decoding", static_cast<int>(total));
    bar->update(static_cast<int>(done));
  };
  // Who decodes apart from sampling may do so because the memory did not do for both.
  const auto& shape = loaded.state.latents.view().shape;
  MemoryPlan plan;
  plan.decoder = model->decoder().memory_bytes(shape[1], shape[2], shape[3],
                                               compute_dtype(loaded.request), tiling);
  check_memory(plan, *backend, 0, hooks.note);
  try {
    decode_to_file(*model, ctx, loaded.request, loaded.state.latents, o.output, tiling, hooks);
  } catch (const Cancelled&) {
    bar.reset();
    throw Interrupted{fmt::format("stopped; {} is untouched", o.latents)};
  }
  bar.reset();
  say("{}\n", one_line(o.output));
}

}  // namespace

void add_decode(CLI::App& app) {
  auto* command = app.add_subcommand("decode", "Make a video from a latents file");
  command->group("Commands");
  auto options = std::make_shared<DecodeOptions>();
  command->add_option("latents", options->latents, "File written by lacuna generate")
      ->check(names_a_file())
      ->required();
  command->add_option("-o,--output", options->output, "File ending in " + video_endings())
      ->check(names_a_file())
      ->capture_default_str();
  command->add_option("--fps", options->fps, "Frames per second; default: those of the run");
  options->model.add_to(*command);
  // One file each time, or it would take the latents for one more.
  command->get_option("--model")->allow_extra_args(false);
  options->decode.add_to(*command);
  options->machine.add_to(*command);
  command->callback([options] { run_decode(*options); });
}

}  // namespace lacuna::cli
