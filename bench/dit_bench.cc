// SPDX-License-Identifier: Apache-2.0
// One forward of a Wan transformer with made-up weights: time per class of operation, peak memory.
//   dit_bench --preset wan2.1-1.3b --frames 17 --height 480 --width 832 --threads 2
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/timing_backend.h"
#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/wan/hash_case.h"

namespace lacuna {
namespace {

using bench::now_ms;
using bench::print_costs;
using bench::resident_gib;

struct Options {
  std::string preset = "wan2.1-1.3b", backend, dtype = "bf16", plan;
  int64_t frames = 17, height = 480, width = 832, text_tokens = 60;
  int64_t layers = 0;  // 0 = all
  int threads = 2, repeat = 1;
};
using bench::TimingBackend;

void run(const Options& options) {
  set_num_threads(options.threads);
  const auto inner = make_backend(options.backend);
  TimingBackend backend(*inner);
  const DType dtype = options.dtype == "f32" ? DType::f32 : DType::bf16;
  WanConfig config = wan_preset(options.preset);
  if (options.layers > 0) config.num_layers = options.layers;
  const bool large_patch = options.preset == "wan2.2-ti2v-5b";
  const int64_t scale = large_patch ? 16 : 8;
  const int64_t latent_frames = (options.frames - 1) / 4 + 1;
  const int64_t latent_height = options.height / scale, latent_width = options.width / scale;
  const int64_t tokens = config.grid(latent_frames, latent_height, latent_width).tokens();

  const double begin = now_ms();
  const auto source = hash_weights("w:", dtype);
  WeightReader reader(*source);
  const WanDit dit(config, reader);
  fmt::print(
      "{}, {}\n{}: {} layers, {} parameters, {} tokens; weights made in {:.1f} s, "
      "resident {:.2f} GiB\n",
      backend.description(), options.dtype, options.preset, config.num_layers,
      config.num_parameters(), tokens, (now_ms() - begin) / 1e3, resident_gib());

  Policy policy;
  if (!options.plan.empty()) {
    Rule rule;
    rule.plan = parse_plan(options.plan);
    policy.add(std::move(rule));
  }
  Context ctx{backend, dtype};
  Engine engine(backend, std::move(policy));
  const double t = 900.0;
  double mark = now_ms();
  const auto times = dit.embed_times(ctx, {&t, 1});
  const double time_ms = now_ms() - mark;
  mark = now_ms();
  const Tensor context = hash_input("ctx", {options.text_tokens, config.text_dim});
  const PreparedText text = dit.prepare_text(ctx, context, config.text_len);
  fmt::print("prepare: time {:.0f} ms, text ({} keys) {:.0f} ms\n", time_ms, text.keys,
             now_ms() - mark);
  const Tensor x =
      hash_input("x", {config.in_channels, latent_frames, latent_height, latent_width});
  const Tensor out(DType::f32, {config.out_channels, latent_frames, latent_height, latent_width});

  backend.costs.clear();
  double total_ms = 0.0;
  for (int i = 0; i < options.repeat; ++i) {
    mark = now_ms();
    dit.forward(ctx, engine, Site{}, x, times[0], text, out);
    const double ms = now_ms() - mark;
    total_ms += ms;
    fmt::print("forward {}: {:.0f} ms, {:.1f} GFLOP/s of dense work\n", i, ms,
               config.flops(tokens, text.keys).total() / (ms * 1e6));
  }
  print_costs(backend, total_ms, options.repeat);
  fmt::print("scratch {:.0f} MiB (formula {:.0f}), peak resident {:.2f} GiB\n",
             static_cast<double>(ctx.workspace.bytes()) / (1 << 20),
             static_cast<double>(activation_bytes(config, tokens, dtype)) / (1 << 20),
             resident_gib());
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  lacuna::Options options;
  CLI::App app("Times one forward of a Wan transformer with made-up weights");
  app.add_option("--preset", options.preset, "model sizes")->capture_default_str();
  app.add_option("--backend", options.backend, "ref, cpu");
  app.add_option("--dtype", options.dtype, "weights and compute")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--plan", options.plan, "sparse method, e.g. xattention:top_p=0.9");
  app.add_option("--frames", options.frames, "video frames")->capture_default_str();
  app.add_option("--height", options.height, "pixels")->capture_default_str();
  app.add_option("--width", options.width, "pixels")->capture_default_str();
  app.add_option("--text-tokens", options.text_tokens)->capture_default_str();
  app.add_option("--layers", options.layers, "fewer layers than the preset");
  app.add_option("--threads", options.threads)->capture_default_str();
  app.add_option("--repeat", options.repeat)->check(CLI::Range(1, 1000))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a slow run shows how far it is
  try {
    lacuna::run(options);
  } catch (const lacuna::Error& error) {
    fmt::print(stderr, "dit_bench: {}\n", error.what());
    return 1;
  }
  return 0;
}
