// SPDX-License-Identifier: Apache-2.0
// Attention of the CPU backend: time, share of the machine's measured peak and error, dense and
// sparse. The first lines are the peaks that the shares refer to.
#include "bench/attend_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cpu_peak.h"
#include "lacuna/backend/cpu/attend.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/threads.h"

namespace lacuna::bench {
namespace {

struct Options {
  int64_t heads = 1, seq_len = 16384, head_dim = 128;
  int block = 128, reps = 5, threads = 1;
  bool bf16 = false;
  std::string isa = "", mask = "random", skip = "none", bias = "none";
  float skip_param = 0;
  bool json = false;
  std::vector<double> densities = {1.0, 0.5, 0.25, 0.1, 0.05};
};

cpu::Isa parse_isa(const std::string& name) {
  if (name.empty()) return cpu::active_isa();
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    if (cpu::isa_name(isa) == name && isa <= cpu::machine_isa()) return isa;
  fail("bench attend: isa {}, expected one that this machine has", name);
}

SkipKind parse_skip(const std::string& name) {
  if (name == "none") return SkipKind::none;
  if (name == "running_max") return SkipKind::running_max;
  if (name == "running_lse") return SkipKind::running_lse;
  if (name == "recall") return SkipKind::recall;
  fail("bench attend: skip {}, expected none, running_max, running_lse or recall", name);
}

// Kept blocks of one head; the block nearest the diagonal always stays.
struct Lists {
  std::vector<int64_t> row_begin = {0};
  std::vector<int32_t> cols;
  double density = 0;
};

Lists make_lists(const std::string& kind, int32_t blocks, int64_t heads, double density) {
  Lists lists;
  const int32_t width = std::max<int32_t>(1, static_cast<int32_t>(std::lround(density * blocks)));
  for (int64_t row = 0; row < heads * blocks; ++row) {
    const int32_t centre = static_cast<int32_t>(row % blocks);
    const int32_t left = std::clamp(centre - width / 2, 0, blocks - width);
    for (int32_t b = 0; b < blocks; ++b) {
      const double u = 0.5 * (1 + hash_uniform("mask", static_cast<uint64_t>(row * blocks + b)));
      // frames: one block in `period` along the row, as temporal heads keep.
      const int32_t period = std::max<int32_t>(1, static_cast<int32_t>(std::lround(1 / density)));
      const bool keep = kind == "window"   ? b >= left && b < left + width
                        : kind == "frames" ? (b - centre) % period == 0
                                           : u < density || b == centre;
      if (keep) lists.cols.push_back(b);
    }
    lists.row_begin.push_back(static_cast<int64_t>(lists.cols.size()));
  }
  lists.density = static_cast<double>(lists.cols.size()) /
                  (static_cast<double>(heads) * blocks * static_cast<double>(blocks));
  return lists;
}

struct Data {
  std::vector<float> q, k, v, out;
  std::vector<BFloat16> q16, k16, v16, out16;

  explicit Data(const Options& o) {
    const size_t n = static_cast<size_t>(o.heads * o.seq_len * o.head_dim);
    const auto normal = [n](uint64_t seed, std::vector<float>& x) {
      x.resize(n);
      std::vector<float> pool(1 << 16);
      torch_randn(seed, pool);
      uint64_t state = seed;
      for (float& value : x) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        value = pool[state >> 48];
      }
    };
    normal(1, q);
    normal(2, k);
    normal(3, v);
    out.resize(n);
    if (!o.bf16) return;
    const auto narrow = [](std::vector<float>& x, std::vector<BFloat16>& y) {
      y.reserve(x.size());
      for (float& value : x) {
        y.emplace_back(value);
        value = static_cast<float>(y.back());
      }
    };
    narrow(q, q16);
    narrow(k, k16);
    narrow(v, v16);
    out16.resize(n);
  }
  void read_back() {
    for (size_t i = 0; i < out16.size(); ++i) out[i] = static_cast<float>(out16[i]);
  }
};

// Relative L2 error of a few rows of the first head against double.
double sampled_error(const Options& o, const Data& data, const AttendParams& p) {
  const int64_t d = o.head_dim;
  double diff = 0, norm = 0;
  for (int sample = 0; sample < 6; ++sample) {
    const int64_t i = (sample * int64_t{7919} + 13) % o.seq_len;
    std::vector<double> sum(static_cast<size_t>(d), 0.0), logits;
    std::vector<int64_t> keys;
    const int64_t row = i / p.block_q;
    const int64_t first = p.row_begin != nullptr ? p.row_begin[row] : 0;
    const int64_t last = p.row_begin != nullptr ? p.row_begin[row + 1] : p.num_k_blocks;
    for (int64_t at = first; at < last; ++at) {
      const int64_t b = p.row_begin != nullptr ? p.cols[at] : at;
      for (int64_t j = b * p.block_k; j < std::min<int64_t>((b + 1) * p.block_k, p.k_len); ++j) {
        double x = 0;
        for (int64_t c = 0; c < d; ++c) x += double{data.q[i * d + c]} * double{data.k[j * d + c]};
        logits.push_back(x * double{p.sm_scale});
        keys.push_back(j);
      }
    }
    const double top = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (size_t n = 0; n < keys.size(); ++n) {
      const double w = std::exp(logits[n] - top);
      total += w;
      for (int64_t c = 0; c < d; ++c) sum[c] += w * double{data.v[keys[n] * d + c]};
    }
    for (int64_t c = 0; c < d; ++c) {
      const double want = sum[c] / total, e = double{data.out[i * d + c]} - want;
      diff += e * e;
      norm += want * want;
    }
  }
  return std::sqrt(diff / norm);
}

AttendParams make_params(const Options& o, Data& data) {
  AttendParams p;
  p.dtype = o.bf16 ? AttendDType::bf16 : AttendDType::f32;
  p.q = o.bf16 ? static_cast<void*>(data.q16.data()) : data.q.data();
  p.k = o.bf16 ? static_cast<void*>(data.k16.data()) : data.k.data();
  p.v = o.bf16 ? static_cast<void*>(data.v16.data()) : data.v.data();
  p.out = o.bf16 ? static_cast<void*>(data.out16.data()) : data.out.data();
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride = o.seq_len * o.head_dim;
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = o.head_dim;
  p.num_heads = static_cast<int32_t>(o.heads);
  p.q_len = p.k_len = o.seq_len;
  p.head_dim = static_cast<int32_t>(o.head_dim);
  p.sm_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(o.head_dim)));
  p.block_q = p.block_k = o.block;
  p.num_q_blocks = p.num_k_blocks = static_cast<int32_t>((o.seq_len + o.block - 1) / o.block);
  return p;
}

struct Row {
  double density, pv_density, ms, ms_min, gflops, share, efficiency, rel_l2;  // efficiency 0 = none
};

void print_machine(const Options& o, const CpuPeak& peak, const std::string& kernel) {
  if (o.json) {
    fmt::print(
        "{{\"fma_ymm_gflops\": {:.1f}, \"fma_zmm_gflops\": {:.1f}, \"bf16_zmm_gflops\": {:.1f}}}\n",
        peak.fma_ymm, peak.fma_zmm, peak.bf16_zmm);
    return;
  }
  fmt::print("peak, one core, GFLOP/s: FMA ymm {:.1f}, FMA zmm {:.1f}, vdpbf16ps zmm {:.1f}\n",
             peak.fma_ymm, peak.fma_zmm, peak.bf16_zmm);
  fmt::print("{}, {} heads x {} tokens x {}, {} threads, {} blocks of {}, skip {}\n", kernel,
             o.heads, o.seq_len, o.head_dim, o.threads, o.mask, o.block, o.skip);
  fmt::print("{:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9}\n", "density", "pv", "ms", "ms min",
             "GFLOP/s", "peak", "effic.", "rel_l2");
}

void print_row(const Options& o, const std::string& kernel, const Row& r) {
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
std::vector<double> time_calls(const Options& o, const AttendParams& p, cpu::Isa isa) {
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

// GFLOP/s that o.threads cores could do at most in the kernel's arithmetic.
double peak_of(const Options& o, const CpuPeak& peak, cpu::Isa isa) {
  const bool native = o.bf16 && isa >= cpu::Isa::avx512_bf16 && o.head_dim % 2 == 0;
  const double core = native ? peak.bf16_zmm : isa == cpu::Isa::avx2 ? peak.fma_ymm : peak.fma_zmm;
  return core * o.threads;
}

void run(const Options& o) {
  set_num_threads(o.threads);
  const cpu::Isa isa = parse_isa(o.isa);
  const CpuPeak peak = measure_cpu_peak(cpu::machine_isa());
  Data data(o);
  AttendParams p = make_params(o, data);
  const std::vector<float> skip_param(static_cast<size_t>(o.heads), o.skip_param);
  p.skip = parse_skip(o.skip);
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
    Lists lists;
    lists.density = 1;
    if (wanted < 1) lists = make_lists(o.mask, p.num_k_blocks, o.heads, wanted);
    p.row_begin = wanted < 1 ? lists.row_begin.data() : nullptr;
    p.cols = lists.cols.data();
    const std::vector<double> times = time_calls(o, p, isa);
    data.read_back();
    const double pv = static_cast<double>(std::accumulate(pairs.begin(), pairs.end(), int64_t{0}));
    if (wanted >= 1) dense_ms = times[0];
    const double flops = 2.0 * static_cast<double>(o.head_dim) * (all_pairs * lists.density + pv);
    Row row{lists.density, pv / all_pairs, times[times.size() / 2], times[0]};
    row.gflops = 1e-6 * flops / times[0];
    row.share = row.gflops / peak_of(o, peak, isa);
    row.efficiency = dense_ms > 0 && wanted < 1 ? dense_ms * lists.density / times[0] : 0.0;
    row.rel_l2 = sampled_error(o, data, p);
    print_row(o, kernel, row);
  }
}

}  // namespace

void add_attend_bench(CLI::App& bench) {
  auto* command = bench.add_subcommand("attend", "Attention kernels: time, share of peak, error");
  auto o = std::make_shared<Options>();
  command->add_option("--heads", o->heads)->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--seq-len", o->seq_len)->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--head-dim", o->head_dim)->check(CLI::PositiveNumber)->capture_default_str();
  command->add_flag("--bf16", o->bf16, "bf16 q, k, v; default f32");
  command->add_option("--isa", o->isa,
                      "avx2, avx512, avx512_bf16, amx; default: LACUNA_ISA or the best");
  command->add_option("-t,--threads", o->threads)
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
      ->check(CLI::Range(0.001, 1.0))
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  command->add_option("--skip", o->skip, "none, running_max, running_lse or recall")
      ->capture_default_str();
  command->add_option("--skip-param", o->skip_param, "lambda, or r of recall");
  command->add_option("--bias", o->bias, "per key or per (query, key) pair")
      ->check(CLI::IsMember({"none", "key", "pair"}))
      ->capture_default_str();
  command->add_flag("--json", o->json, "One JSON object a line: the machine, then the rows");
  command->callback([o] { run(*o); });
}

}  // namespace lacuna::bench
