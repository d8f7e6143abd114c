// SPDX-License-Identifier: Apache-2.0
// Everything around the attention kernel (refresh, scores, selection, compaction, token moves) of
// one layer through all steps of a schedule, as a share of dense attention in the same run. The
// kernel itself runs only where a method looks at its output; that pass counts for what it costs
// over a dense one.
#include "bench/select_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/timing_backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"
#include "lacuna/engine/engine.h"
#include "lacuna/engine/presets.h"

namespace lacuna::bench {
namespace {

struct SelectOptions {
  int64_t frames = 32, height = 32, width = 32, heads = 2, head_dim = 128;
  int steps = 50, layers = 30, threads = 1;
  bool json = false;
  std::vector<std::string> attention;
};

// Times attention apart, and leaves it out where nobody reads what it says of the blocks.
class SelectionBackend final : public TimingBackend {
 public:
  using TimingBackend::TimingBackend;
  double attend_ms = 0.0;
  int attends = 0;

  void attend(const AttendParams& p) override {
    if (p.lse == nullptr && p.block_mass == nullptr && p.skip_bits == nullptr) return;
    const double begin = now_ms();
    TimingBackend::attend(p);
    attend_ms += now_ms() - begin;
    ++attends;
  }
};

// q and k as video has them: smooth over the grid, different per head, with noise.
Tensor make_input(const SelectOptions& o, uint64_t seed) {
  const int64_t tokens = o.frames * o.height * o.width;
  Tensor x(DType::f32, {o.heads, tokens, o.head_dim});
  std::vector<float> noise(1 << 16);
  torch_randn(seed, noise);
  float* at = x.as<float>();
  uint64_t state = seed;
  for (int64_t h = 0; h < o.heads; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double f =
          static_cast<double>(t / (o.height * o.width)) / static_cast<double>(o.frames);
      const double y = static_cast<double>(t / o.width % o.height) / static_cast<double>(o.height);
      const double z = static_cast<double>(t % o.width) / static_cast<double>(o.width);
      for (int64_t c = 0; c < o.head_dim; ++c) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const double wave =
            std::cos(6.28 * (static_cast<double>(c % 3) * f + static_cast<double>(c % 5) * y +
                             static_cast<double>(c % 7) * z + 0.37 * static_cast<double>(c + h)));
        *at++ = static_cast<float>(1.4 * wave) + 0.5f * noise[state >> 48];
      }
    }
  }
  return x;
}

struct SelectRow {
  std::string name;
  int selections = 0;                     // steps in which any head selects
  double first_ms = 0.0, later_ms = 0.0;  // of a selecting step; later = median, 0 = none
  double share = 0.0;                     // all steps, of dense attention in all steps
};

struct Inputs {
  TensorView q, k, v, out;
};

double dense_ms(const SelectOptions& o, Backend& backend, const Inputs& x) {
  Engine engine(backend, Policy());
  std::vector<double> times;
  for (int i = 0; i < 3; ++i) {
    const double begin = now_ms();
    engine.attend(Site{}, {o.frames, o.height, o.width}, 0, x.q, x.k, x.v, x.out);
    times.push_back(now_ms() - begin);
  }
  std::sort(times.begin(), times.end());
  return times[1];
}

Policy policy_of(const SelectOptions& o, const std::string& attention) {
  const PolicyWords words = expand_words({attention, "", "", ""}, o.steps, o.layers);
  Plan plan = parse_plan(words.attention);
  // Whether q and k drift is the model's affair: count the worst case, a selection at every step.
  plan.refresh.delta = 0.0;
  return make_policy(plan, lacuna::parse_skip(words.skip), words.dense_steps, words.dense_layers, 0,
                     o.steps);
}

SelectRow measure(const SelectOptions& o, Backend& inner, const std::string& attention,
                  double dense, Tensor& q, const Inputs& x) {
  SelectionBackend backend(inner);
  Engine engine(backend, policy_of(o, attention));
  SelectRow row{attention};
  double total = 0.0;
  std::vector<double> later;
  for (int step = 0; step < o.steps; ++step) {
    for (int64_t h = 0; h < o.heads; ++h)  // a drift in every head
      q.as<float>()[h * q.view().stride[0]] += 0.01f;
    backend.attend_ms = 0.0, backend.attends = 0;
    const double begin = now_ms();
    engine.attend({step, o.steps, 1.0f, o.layers / 2, o.layers}, {o.frames, o.height, o.width}, 0,
                  x.q, x.k, x.v, x.out);
    double spent = now_ms() - begin;
    spent -= std::min(backend.attend_ms, dense * backend.attends);
    total += spent;
    const TraceEntry& entry = engine.trace().entries().back();
    if (entry.heads_refreshed == 0) continue;
    if (row.selections++ == 0) {
      row.first_ms = spent;
    } else {
      later.push_back(spent);
    }
  }
  std::sort(later.begin(), later.end());
  if (!later.empty()) row.later_ms = later[later.size() / 2];
  row.share = total / (dense * o.steps);
  return row;
}

void print(const SelectOptions& o, const SelectRow& r, double dense) {
  if (o.json) {
    const nlohmann::ordered_json json = {
        {"name", "select"},       {"attention", r.name},    {"selections", r.selections},
        {"first_ms", r.first_ms}, {"later_ms", r.later_ms}, {"dense_ms", dense},
        {"share", r.share}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{:<34} {:>10} {:>10.1f} {:>8.2f} % {:>10.1f} {:>8.2f} % {:>9.2f} %\n", r.name,
               r.selections, r.first_ms, 100.0 * r.first_ms / dense, r.later_ms,
               100.0 * r.later_ms / dense, 100.0 * r.share);
  }
  std::fflush(stdout);
}

void run_selection(const SelectOptions& o) {
  set_num_threads(o.threads);
  const auto backend = make_backend();
  std::vector<std::string> names = o.attention;
  if (names.empty())
    for (const Preset& preset : all_presets()) names.emplace_back(preset.name);
  for (const std::string& name : names) policy_of(o, name);  // better known now than after a minute

  Tensor q = make_input(o, 1), k = make_input(o, 2), v = make_input(o, 3);
  Tensor out(DType::f32, {o.heads, o.frames * o.height * o.width, o.head_dim});
  const Inputs x{q.view(), k.view(), v.view(), out.view()};
  const double dense = dense_ms(o, *backend, x);
  if (!o.json) {
    fmt::print("{}; {} heads x {} tokens x {}, f32, {} steps; dense attention {:.1f} ms\n",
               backend->description(), o.heads, o.frames * o.height * o.width, o.head_dim, o.steps,
               dense);
    fmt::print("{:<34} {:>10} {:>10} {:>10} {:>10} {:>10} {:>11}\n", "attention", "selections",
               "first ms", "of dense", "later ms", "of dense", "all steps");
  }
  for (const std::string& name : names) print(o, measure(o, *backend, name, dense, q, x), dense);
}

}  // namespace

void add_select_bench(CLI::App& bench) {
  auto* command = bench.add_subcommand("select", "What selection costs over a schedule, by preset");
  auto o = std::make_shared<SelectOptions>();
  command->add_option("-a,--attention", o->attention, "Methods or presets; default: every preset")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--frames", o->frames, "Token grid: latent frames")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--height", o->height, "Token grid: rows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--width", o->width, "Token grid: columns")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--heads", o->heads, "Attention heads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--head-dim", o->head_dim, "Channels per head")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--steps", o->steps, "Denoising steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("-t,--threads", o->threads, "CPU threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", o->json, "One JSON object a line");
  command->callback([o] { run_selection(*o); });
}

}  // namespace lacuna::bench
