// SPDX-License-Identifier: Apache-2.0
// Decodes latents with a VAE of made-up weights: time per latent frame and per class of
// operation, peak memory.
//   vae_bench --preset wan2.1 --latent-frames 2 --height 480 --width 832 --threads 2
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "bench/timing_backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/vae/taehv_decoder.h"
#include "lacuna/models/vae/wan_decoder.h"

namespace lacuna::bench {
namespace {

struct Options {
  std::string preset = "wan2.1", backend, dtype = "bf16", tile = "off";
  int64_t latent_frames = 2, height = 480, width = 832, tile_size = 256;
  int threads = 2;
};

TileMode tile_mode(const std::string& name) {
  return name == "blend" ? TileMode::blend : name == "exact" ? TileMode::exact : TileMode::off;
}

std::unique_ptr<VideoDecoder> open_decoder(const std::string& preset, WeightSource& source) {
  const auto of_class = [&](const char* name) {
    return make_video_decoder(fmt::format(R"({{"_class_name": "{}"}})", name), preset, source);
  };
  if (preset == "mochi") return of_class("AutoencoderKLMochi");
  if (preset == "hunyuan") return of_class("AutoencoderKLHunyuanVideo");
  // The tiny ones, at their published sizes.
  const auto taehv = [&](int64_t channels, int64_t patch, int64_t frames) {
    TaehvConfig config{.latent_channels = channels, .patch_size = patch};
    config.time_factors.back() = frames;
    return std::make_unique<TaehvDecoder>(config, source);
  };
  if (preset == "taew2_1" || preset == "taehv") return taehv(16, 1, 2);
  if (preset == "taew2_2") return taehv(48, 2, 2);
  if (preset == "taem1") return taehv(12, 1, 3);
  return std::make_unique<WanDecoder>(vae_preset(preset), source);
}

void run(const Options& options) {
  set_num_threads(options.threads);
  const auto inner = make_backend(options.backend);
  TimingBackend backend(*inner);
  const DType compute = options.dtype == "f32" ? DType::f32 : DType::bf16;
  double mark = now_ms();
  const auto source = hash_weights("w:", compute);
  const auto decoder = open_decoder(options.preset, *source);
  fmt::print("{}, {}\n{}: weights made in {:.1f} s, resident {:.2f} GiB\n", backend.description(),
             options.dtype, options.preset, (now_ms() - mark) / 1e3, resident_gib());
  const int64_t factor = decoder->spatial_factor();
  const int64_t h = options.height / factor, w = options.width / factor;
  const Tensor latents(DType::f32, {decoder->latent_channels(), options.latent_frames, h, w});
  fill_hash("z", 0.0, 1.0, {latents.as<float>(), static_cast<size_t>(latents.numel())});

  Context ctx{backend, compute};
  DecodeStats stats;
  DecodeOptions decode;
  decode.stats = &stats;
  decode.tiling.mode = tile_mode(options.tile);
  decode.tiling.tile_height = decode.tiling.tile_width = options.tile_size;
  decode.tiling.stride_height = decode.tiling.stride_width = options.tile_size / 4 * 3;
  // The first latent frame makes one video frame, the others temporal_factor: only the latter
  // count.
  double first_ms = 0.0, steady_ms = 0.0;
  int steady = 0;
  const bool whole = decode.tiling.mode == TileMode::off;
  decode.progress = [&](int64_t done, int64_t total) {
    const double ms = now_ms() - mark;
    if (done > 1 || !whole) {
      steady_ms += ms;
      ++steady;
    } else {
      first_ms = ms;
      if (total > 1) backend.costs.clear();
    }
    fmt::print("pass {} of {}: {:.2f} s\n", done, total, ms / 1e3);
    mark = now_ms();
  };
  double sum = 0.0;
  mark = now_ms();
  decoder->decode(ctx, latents, decode, [&](const TensorView& frames) {
    for (int64_t i = 0; i < frames.numel(); i += 997) sum += frames.as<float>()[i];
  });
  const double total_ms = steady > 0 ? steady_ms : first_ms;
  const int runs = steady > 0 ? steady : 1;
  fmt::print("{:.2f} s per pass, {:.2f} TFLOP each, {:.1f} GFLOP/s (checksum {:.4f})\n",
             total_ms / runs / 1e3, backend.total_flops() / runs / 1e12,
             backend.total_flops() / (total_ms * 1e6), sum);
  print_costs(backend, total_ms, runs);
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  fmt::print(
      "activations {:.0f} MiB (formula {:.0f}), converted weights {:.0f} MiB, {} {:.2f} GiB\n",
      mib(stats.buffer_bytes),
      mib(decoder->memory_bytes(options.latent_frames, h, w, compute, decode.tiling)),
      mib(ctx.workspace.bytes()), "peak resident", resident_gib());
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  lacuna::bench::Options options;
  CLI::App app("Times the decoder of a VAE with made-up weights");
  app.add_option("--preset", options.preset,
                 "wan2.1, wan2.2, tiny, mochi, hunyuan, taew2_1, taew2_2, taehv, taem1")
      ->capture_default_str();
  app.add_option("--backend", options.backend, "ref, cpu");
  app.add_option("--dtype", options.dtype, "weights and compute")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--latent-frames", options.latent_frames)
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--height", options.height, "pixels")->capture_default_str();
  app.add_option("--width", options.width, "pixels")->capture_default_str();
  app.add_option("--tile", options.tile)
      ->check(CLI::IsMember({"off", "blend", "exact"}))
      ->capture_default_str();
  app.add_option("--tile-size", options.tile_size, "pixels")->capture_default_str();
  app.add_option("--threads", options.threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a slow run shows how far it is
  try {
    lacuna::bench::run(options);
  } catch (const lacuna::Error& error) {
    fmt::print(stderr, "vae_bench: {}\n", error.what());
    return 1;
  }
  return 0;
}
