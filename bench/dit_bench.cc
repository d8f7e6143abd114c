// SPDX-License-Identifier: Apache-2.0
// One forward of a Wan transformer with made-up weights: time per class of operation, peak memory.
//   dit_bench --preset wan2.1-1.3b --frames 17 --height 480 --width 832 --threads 2
#include <fmt/core.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/wan/hash_case.h"

namespace lacuna {
namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double resident_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

struct Cost {
  double ms = 0.0, flops = 0.0;
  int calls = 0;
};

// Forwards every call and keeps the time by class of operation.
class TimingBackend : public Backend {
 public:
  explicit TimingBackend(Backend& inner) : inner_(inner) {}
  std::map<std::string, Cost> costs;

  std::string_view name() const override { return inner_.name(); }
  std::string description() const override { return inner_.description(); }
  std::string unsupported(const AttendParams& params) const override {
    return inner_.unsupported(params);
  }
  void attend(const AttendParams& p) override {
    const double flops = 4.0 * p.q_len * p.k_len * p.head_dim * p.num_heads;
    const char* kind = p.q_len == p.k_len ? "self" : "cross";
    timed(fmt::format("attend {}", kind), p.row_begin == nullptr ? flops : 0.0,
          [&] { inner_.attend(p); });
  }
  void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                 const float* lse_b) override {
    timed("merge_lse", 0.0, [&] { inner_.merge_lse(out_a, lse_a, out_b, lse_b); });
  }
  void block_mean(const TensorView& x, std::span<const int32_t> heads, const BlockLayout& layout,
                  const TensorView& out) override {
    timed("selection", 0.0, [&] { inner_.block_mean(x, heads, layout, out); });
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k, std::span<const int32_t> heads,
                           const BlockLayout& q_layout, const BlockLayout& k_layout, float sm_scale,
                           int32_t stride, bool compat, const TensorView& out) override {
    timed("selection", 0.0, [&] {
      inner_.antidiagonal_scores(q, k, heads, q_layout, k_layout, sm_scale, stride, compat, out);
    });
  }
  void select_top_p(const TensorView& scores, std::span<const float> top_p,
                    BlockMask& mask) override {
    timed("selection", 0.0, [&] { inner_.select_top_p(scores, top_p, mask); });
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                    BlockMask& mask) override {
    timed("selection", 0.0, [&] { inner_.select_top_k(scores, top_k, mask); });
  }
  BlockIndex compact(const BlockMask& mask, VisitOrder order) override {
    BlockIndex index;
    timed("selection", 0.0, [&] { index = inner_.compact(mask, order); });
    return index;
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                     const TensorView& out) override {
    timed("reorder", 0.0, [&] { inner_.gather_tokens(x, order, stride, out); });
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                      const TensorView& out) override {
    timed("reorder", 0.0, [&] { inner_.scatter_tokens(x, order, stride, out); });
  }
  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    const double flops = 2.0 * x.shape[0] * w.shape[0] * w.shape[1];
    const char* const kEpilogues[] = {"", " gelu", " silu", " residual"};
    timed(fmt::format("linear [{},{}] {}{}", w.shape[0], w.numel() / w.shape[0],
                      dtype_name(x.dtype), kEpilogues[static_cast<int>(epilogue)]),
          flops, [&] { inner_.linear(x, w, bias, epilogue, gate, out); });
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    timed("layer_norm", 0.0, [&] { inner_.layer_norm(x, weight, bias, scale, shift, eps, out); });
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, const RopeTables* rope,
                int32_t num_heads, const TensorView& out) override {
    timed(rope != nullptr ? "rms_norm + rope" : "rms_norm", 0.0,
          [&] { inner_.rms_norm(x, weight, eps, rope, num_heads, out); });
  }
  void gelu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) override {
    timed("gelu_mul", 0.0, [&] { inner_.gelu_mul(gate, up, out); });
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    timed("conv3d", 0.0, [&] { inner_.conv3d(x, w, bias, conv, residual, out); });
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    timed("channel_norm", 0.0, [&] { inner_.channel_norm(x, gamma, silu, out); });
  }

 private:
  template <typename Body>
  void timed(const std::string& kind, double flops, const Body& body) {
    const double begin = now_ms();
    body();
    Cost& cost = costs[kind];
    cost.ms += now_ms() - begin;
    cost.flops += flops;
    ++cost.calls;
  }
  Backend& inner_;
};

struct Options {
  std::string preset = "wan2.1-1.3b", backend, dtype = "bf16", plan;
  int64_t frames = 17, height = 480, width = 832, text_tokens = 60;
  int64_t layers = 0;  // 0 = all
  int threads = 2, repeat = 1;
};

void print_costs(const TimingBackend& backend, double total_ms, int runs) {
  std::vector<std::pair<std::string, Cost>> rows(backend.costs.begin(), backend.costs.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  double known_ms = 0.0;
  fmt::print("{:<34}{:>7}{:>11}{:>8}{:>10}\n", "operation", "calls", "ms", "share", "GFLOP/s");
  for (const auto& [kind, cost] : rows) {
    known_ms += cost.ms;
    fmt::print("{:<34}{:>7}{:>11.1f}{:>7.1f}%{:>10.1f}\n", kind, cost.calls / runs, cost.ms / runs,
               100.0 * cost.ms / total_ms, cost.flops / (cost.ms * 1e6));
  }
  const double rest = total_ms - known_ms;
  fmt::print("{:<34}{:>7}{:>11.1f}{:>7.1f}%\n", "outside the backend", "", rest / runs,
             100.0 * rest / total_ms);
}

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
  Context ctx{backend, dtype, {}};
  Engine engine(backend, std::move(policy));
  const double t = 900.0;
  double mark = now_ms();
  const auto times = dit.prepare_times(ctx, {&t, 1});
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
