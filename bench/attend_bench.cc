// SPDX-License-Identifier: Apache-2.0
// Attention of the CPU backend: time, share of the machine's measured peak and error, dense and
// sparse. The first lines are the peaks that the shares refer to.
#include "bench/attend_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "bench/attend_case.h"
#include "bench/attend_suite.h"
#include "bench/cpu_peak.h"
#include "cli/command.h"
#include "cli/options.h"
#include "cli/work.h"
#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/attend_levels.h"
#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/engine/policy.h"
#include "lacuna/models/context.h"
#include "lacuna/report/machine_info.h"

namespace lacuna::bench {
namespace {

constexpr int kRowsPerCase = 6;

struct AttendOptions {
  std::string suite;
  double seconds = SuiteSettings{}.seconds;
  int64_t heads = 1, seq_len = 16384, head_dim = 128;
  int block = 128, reps = 5, threads = 1;
  bool bf16 = false;
  std::string isa = "", mask = "random", skip = "none", bias = "none";
  std::optional<double> skip_param;
  bool json = false;
  std::vector<double> densities = {1.0, 0.5, 0.25, 0.1, 0.05};
};

cpu::Isa parse_isa(const AttendOptions& o) {
  const std::string& name = o.isa;
  if (name.empty())
    return cpu::active_attend_levels().of(o.bf16 ? AttendDType::bf16 : AttendDType::f32,
                                          static_cast<int32_t>(o.head_dim));
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    if (cpu::isa_name(isa) == name && isa <= cpu::machine_isa()) return isa;
  fail("bench attend: isa {}, expected one that this machine has", name);
}

// What attention gets of the rule that was named: its first parameter, or that one's default.
struct SkipChoice {
  SkipKind kind;
  float param;
};

SkipChoice choose_skip(const AttendOptions& o) {
  const SkipInfo& info = find_skip(o.skip);
  if (info.specs.empty()) {
    if (o.skip_param) throw cli::UsageError("--skip-param: needs --skip with a rule, not none");
    return {info.kind, 0};
  }
  Params params(info.specs);
  const std::string_view name = info.specs.front().name;
  if (o.skip_param) params.set(name, *o.skip_param);
  return {info.kind, static_cast<float>(params.get(name))};
}

struct AttendRow {
  double density, pv_density, ms, ms_min, gflops, share, efficiency, rel_l2;  // efficiency 0 = none
};

void print_machine(const AttendOptions& o, const CpuPeak& peak, const std::string& kernel) {
  if (o.json) {
    fmt::print(
        "{{\"fma_ymm_gflops\": {:.1f}, \"fma_zmm_gflops\": {:.1f}, \"bf16_zmm_gflops\": {:.1f}, "
        "\"amx_bf16_gflops\": {:.1f}}}\n",
        peak.fma_ymm, peak.fma_zmm, peak.bf16_zmm, peak.amx_bf16);
    return;
  }
  fmt::print("peak, one core, GFLOP/s: {}\n", peak.text());
  fmt::print(
      "{}, {} heads x {} tokens x {}, {} threads, {} blocks of {}, skip {}; rates and efficiency "
      "of the fastest call\n",
      kernel, o.heads, o.seq_len, o.head_dim, o.threads, o.mask, o.block, o.skip);
  fmt::print("{:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9}\n", "density", "pv", "ms", "ms min",
             "GFLOP/s", "peak", "effic.", "rel_l2");
}

void print_row(const AttendOptions& o, const std::string& kernel, const AttendRow& r) {
  if (o.json) {
    fmt::print(
        "{{\"name\": \"attend\", \"kernel\": \"{}\", \"dtype\": \"{}\", \"seq_len\": {}, "
        "\"num_heads\": {}, \"head_dim\": {}, \"threads\": {}, \"block\": {}, \"pattern\": \"{}\", "
        "\"skip\": \"{}\", \"density\": {:.4f}, \"pv_density\": {:.4f}, \"ms\": {:.3f}, "
        "\"ms_min\": {:.3f}, \"gflops\": {:.1f}, \"share_of_peak\": {:.4f}, \"efficiency\": "
        "{:.4f}, "
        "\"rel_l2\": {:.3e}}}\n",
        kernel, o.bf16 ? "bf16" : "f32", o.seq_len, o.heads, o.head_dim, o.threads, o.block,
        r.density < 1 ? o.mask : "dense", o.skip, r.density, r.pv_density, r.ms, r.ms_min, r.gflops,
        r.share, r.efficiency, r.rel_l2);
  } else {
    fmt::print("{:8.3f} {:8.3f} {:9.2f} {:9.2f} {:9.1f} {:6.1f}% {:>7} {:9.1e}\n", r.density,
               r.pv_density, r.ms, r.ms_min, r.gflops, 100 * r.share,
               r.efficiency > 0 ? fmt::format("{:.3f}", r.efficiency) : "-", r.rel_l2);
  }
  std::fflush(stdout);
}

// Sorted wall times of o.reps calls, after one that warms scratch memory and page tables.
std::vector<double> time_calls(const AttendOptions& o, const AttendParams& p, cpu::Isa isa) {
  cpu::attend(p, isa);
  std::vector<double> times;
  for (int i = 0; i < o.reps; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    cpu::attend(p, isa);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    times.push_back(1e3 * spent.count());
  }
  std::sort(times.begin(), times.end());
  return times;
}

void run_case(const AttendOptions& o) {
  const SkipChoice skip = choose_skip(o);
  set_num_threads(o.threads);
  const cpu::Isa isa = parse_isa(o);
  const CpuPeak peak = measure_cpu_peak(cpu::machine_isa());
  AttendData data({o.heads, o.seq_len, o.head_dim, o.bf16});
  AttendParams p = data.params(o.block);
  const std::vector<float> skip_param(static_cast<size_t>(o.heads), skip.param);
  p.skip = skip.kind;
  p.skip_param = skip_param.data();
  // Zeros: the sampled error stays that of plain attention.
  std::vector<float> bias;
  if (o.bias != "none") {
    p.bias_q_stride = o.bias == "pair" ? o.seq_len : 0;
    bias.assign(static_cast<size_t>(o.bias == "pair" ? o.seq_len * o.seq_len : o.seq_len), 0.0f);
    p.bias = bias.data();
  }
  std::vector<int64_t> pairs(static_cast<size_t>(o.heads));
  p.pv_pairs = pairs.data();
  const std::string kernel = cpu::attend_kernel_name(p, isa);
  print_machine(o, peak, kernel);
  const double all_pairs = static_cast<double>(o.heads) * static_cast<double>(o.seq_len) *
                           static_cast<double>(o.seq_len);
  double dense_ms = 0;
  for (const double wanted : o.densities) {
    KeptBlocks kept{BlockMask(), 1};
    if (wanted < 1) kept = make_kept(o.mask, p.num_k_blocks, o.heads, wanted);
    p.mask = wanted < 1 ? kept.mask.words() : nullptr;
    const std::vector<double> times = time_calls(o, p, isa);
    data.read_back();
    const double pv = static_cast<double>(std::accumulate(pairs.begin(), pairs.end(), int64_t{0}));
    if (wanted >= 1) dense_ms = times[0];
    AttendRow row{kept.density, pv / all_pairs, times[times.size() / 2], times[0]};
    row.gflops = 1e-6 * attend_flops(p, kept.density, row.pv_density) / times[0];
    row.share = row.gflops / (o.threads * peak.of(attend_unit(p, isa)));
    row.efficiency = dense_ms > 0 && wanted < 1 ? dense_ms * kept.density / times[0] : 0.0;
    row.rel_l2 = sampled_error(data, p, kRowsPerCase).rel_l2;
    print_row(o, kernel, row);
  }
}

// Which level serves which type, and the rates that this was chosen by.
nlohmann::ordered_json levels_json(const cpu::AttendLevels& levels) {
  nlohmann::ordered_json json = {{"source", levels.source}};
  for (const bool bf16 : {false, true}) {
    const AttendDType dtype = bf16 ? AttendDType::bf16 : AttendDType::f32;
    nlohmann::ordered_json& type = json[bf16 ? "bf16" : "f32"];
    type["level"] = isa_name(levels.of(dtype, cpu::kLevelHeadDim));
    for (const cpu::LevelRate& rate : bf16 ? levels.rates.bf16 : levels.rates.f32)
      type["gflops"][std::string(isa_name(rate.isa))] = std::round(10 * rate.gflops) / 10;
  }
  return json;
}

// "f32 avx512 (avx2 105.5, avx512 108.7)"
std::string level_text(const nlohmann::ordered_json& levels, const char* dtype) {
  const nlohmann::ordered_json& type = levels[dtype];
  std::string rates;
  if (type.contains("gflops"))
    for (const auto& [level, gflops] : type["gflops"].items())
      rates += fmt::format("{}{} {}", rates.empty() ? "" : ", ", level, gflops.get<double>());
  return fmt::format("{} {}{}", dtype, type["level"].get<std::string>(),
                     rates.empty() ? "" : fmt::format(" ({})", rates));
}

void print_suite_machine(const AttendOptions& o, const CpuPeak& peak, const Backend& backend) {
  nlohmann::ordered_json machine = machine_info(backend);
  const nlohmann::ordered_json levels = levels_json(cpu::active_attend_levels());
  machine["levels"] = levels;
  if (o.json) {
    for (const PeakUnit unit : kPeakUnits)
      machine[peak_key(unit)] = std::round(10 * peak.of(unit)) / 10;
    fmt::print("{}\n", nlohmann::ordered_json{{"machine", machine}}.dump());
    return;
  }
  fmt::print("{}, {}\n", machine["cpu"].get<std::string>(), backend.description());
  fmt::print("peak, one core, GFLOP/s: {}\n", peak.text());
  fmt::print("attention levels, GFLOP/s, {}: {}; {}\n", levels["source"].get<std::string>(),
             level_text(levels, "f32"), level_text(levels, "bf16"));
  fmt::print("{} tokens, one head, one thread; ratios are medians of pairs\n{}\n", o.seq_len,
             suite_table_head());
}

void run_suite(const AttendOptions& o) {
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const CpuPeak peak = measure_cpu_peak(cpu::machine_isa());
  print_suite_machine(o, peak, *backend);
  cli::Work work(false);
  std::map<std::string, int> verdicts;
  double cpu_share = 1;
  SuiteEvents events;
  events.next = [&](int done, int total, const SuiteRow& next) {
    work.update("measuring", done, total, fmt::format("{} at {}", next.name, next.level));
  };
  events.poll = cli::check_interrupt;
  events.row = [&](const SuiteRow& row) {
    work.clear();
    ++verdicts[verdict(row)];
    cpu_share = std::min(cpu_share, row.cpu_share.value_or(1));
    fmt::print("{}\n", o.json ? to_json(row).dump() : to_line(row));
    std::fflush(stdout);
  };
  try {
    run_attend_suite({o.seq_len, o.seconds}, peak, *backend, events);
  } catch (const Cancelled&) {
    work.end();
    throw cli::Interrupted{"stopped; the rows above are complete"};
  }
  work.end();
  if (o.json) return;
  std::string summary;
  for (const auto& [name, count] : verdicts)
    summary += fmt::format("{}{} {}", summary.empty() ? "" : ", ", count, name);
  fmt::print("{}\n", summary);
  if (cpu_share < 0.97)
    fmt::print("other work ran here: a row had a core for only {:.0f} % of its time\n",
               100 * cpu_share);
}

void add_suite_options(CLI::App& command, AttendOptions& o) {
  auto* suite =
      command
          .add_option("--suite", o.suite,
                      "cpu: every row that the CPU kernels are held to, against its bars (must, "
                      "reach): share of the measured peak, oneDNN, sequence length, threads, "
                      "sparsity, selection, block mass, skip rules, extreme logits. Rows this "
                      "machine cannot run are named. LACUNA_ISA lowers the level")
          ->check(CLI::IsMember({"cpu"}));
  for (const char* fixed : {"--heads", "--head-dim", "--bf16", "--isa", "--threads", "--reps",
                            "--block", "--mask", "--density", "--skip", "--skip-param", "--bias"})
    suite->excludes(command.get_option(fixed));
  command
      .add_option("--seconds", o.seconds,
                  "With --suite: time to spend, roughly; pairs of calls per row follow, 3 to 31")
      ->check(cli::real_number(0.0, 86400.0))
      ->capture_default_str()
      ->needs(suite);
}

}  // namespace

void add_attend_bench(CLI::App& bench) {
  auto* command = bench.add_subcommand(
      "attend", "Attention kernels: time, share of peak, error, one case or a suite");
  auto o = std::make_shared<AttendOptions>();
  command->add_option("--heads", o->heads, "Attention heads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--seq-len", o->seq_len, "Tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--head-dim", o->head_dim, "Channels per head")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--bf16", o->bf16, "bf16 q, k, v; default f32");
  command->add_option("--isa", o->isa,
                      "avx2, avx512, avx512_bf16, amx; default: LACUNA_ISA or the fastest");
  command->add_option("-t,--threads", o->threads, "CPU threads")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--reps", o->reps, "Timed calls per row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--block", o->block, "Tokens per block")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--mask", o->mask, "Which blocks are kept below density 1")
      ->check(CLI::IsMember({"random", "window", "frames"}))
      ->capture_default_str();
  command
      ->add_option("--density", o->densities, "1 = dense, the reference of the efficiency column")
      ->check(cli::real_number(0.001, 1.0))
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  auto* skip = command->add_option("--skip", o->skip, "none, running_max, running_lse or recall")
                   ->capture_default_str();
  command
      ->add_option("--skip-param", o->skip_param,
                   "lambda, or r of recall; default: the rule's, see lacuna methods")
      ->check(cli::real_number())
      ->needs(skip);
  command->add_option("--bias", o->bias, "per key or per (query, key) pair")
      ->check(CLI::IsMember({"none", "key", "pair"}))
      ->capture_default_str();
  command->add_flag("--json", o->json, "One JSON object a line: the machine, then the rows");
  add_suite_options(*command, *o);
  command->callback([o] { o->suite.empty() ? run_case(*o) : run_suite(*o); });
}

}  // namespace lacuna::bench
