// SPDX-License-Identifier: Apache-2.0
// Attention of the CPU backend: time, share of the machine's measured peak and error, dense and
// sparse. The first lines are the peaks that the shares refer to.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
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
  std::vector<double> densities = {1.0};
};

cpu::Isa parse_isa(const std::string& name) {
  if (name.empty()) return cpu::active_isa();
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    if (cpu::isa_name(isa) == name && isa <= cpu::machine_isa()) return isa;
  fail("attend_bench: isa {}, expected one that this machine has", name);
}

SkipKind parse_skip(const std::string& name) {
  if (name == "none") return SkipKind::none;
  if (name == "running_max") return SkipKind::running_max;
  if (name == "running_lse") return SkipKind::running_lse;
  if (name == "recall") return SkipKind::recall;
  fail("attend_bench: skip {}, expected none, running_max, running_lse or recall", name);
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

void run(const Options& o) {
  set_num_threads(o.threads);
  const cpu::Isa isa = parse_isa(o.isa);
  const CpuPeak peak = measure_cpu_peak(cpu::machine_isa());
  std::printf("peak, one core, GFLOP/s: FMA ymm %.1f, FMA zmm %.1f, vdpbf16ps zmm %.1f\n",
              peak.fma_ymm, peak.fma_zmm, peak.bf16_zmm);
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
  const bool native = o.bf16 && isa >= cpu::Isa::avx512_bf16 && o.head_dim % 2 == 0;
  const double limit = (native                  ? peak.bf16_zmm
                        : isa == cpu::Isa::avx2 ? peak.fma_ymm
                                                : peak.fma_zmm) *
                       o.threads;
  std::printf("%s, %lld x %lld x %lld, %d threads, %s blocks of %d, skip %s\n", kernel.c_str(),
              static_cast<long long>(o.heads), static_cast<long long>(o.seq_len),
              static_cast<long long>(o.head_dim), o.threads, o.mask.c_str(), o.block,
              o.skip.c_str());
  std::printf("%8s %8s %9s %9s %9s %7s %7s %9s\n", "density", "pv", "ms", "ms min", "GFLOP/s",
              "peak", "effic.", "rel_l2");
  const double pair_count = static_cast<double>(o.heads) * static_cast<double>(o.seq_len) *
                            static_cast<double>(o.seq_len);
  double dense_ms = 0;
  for (const double wanted : o.densities) {
    Lists lists;
    lists.density = 1;
    if (wanted < 1) lists = make_lists(o.mask, p.num_k_blocks, o.heads, wanted);
    p.row_begin = wanted < 1 ? lists.row_begin.data() : nullptr;
    p.cols = lists.cols.data();
    cpu::attend(p, isa);  // warm-up: scratch memory, page faults
    std::vector<double> times;
    for (int i = 0; i < o.reps; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      cpu::attend(p, isa);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      times.push_back(1e3 * spent.count());
    }
    std::sort(times.begin(), times.end());
    data.read_back();
    int64_t pv = 0;
    for (int64_t n : pairs) pv += n;
    if (wanted >= 1) dense_ms = times[0];
    const double flops = 2.0 * static_cast<double>(o.head_dim) *
                         (pair_count * lists.density + static_cast<double>(pv));
    const double rate = 1e-6 * flops / times[0];
    std::printf("%8.3f %8.3f %9.2f %9.2f %9.1f %6.1f%% %7s %9.1e\n", lists.density,
                static_cast<double>(pv) / pair_count, times[times.size() / 2], times[0], rate,
                100 * rate / limit,
                dense_ms > 0 && wanted < 1
                    ? fmt::format("{:.3f}", dense_ms * lists.density / times[0]).c_str()
                    : "-",
                sampled_error(o, data, p));
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  lacuna::bench::Options o;
  CLI::App app("CPU attention: time, share of peak, error");
  app.add_option("--heads", o.heads)->check(CLI::PositiveNumber);
  app.add_option("--seq-len", o.seq_len)->check(CLI::PositiveNumber);
  app.add_option("--head-dim", o.head_dim)->check(CLI::PositiveNumber);
  app.add_flag("--bf16", o.bf16);
  app.add_option("--isa", o.isa, "avx2, avx512, avx512_bf16, amx; default: LACUNA_ISA or the best");
  app.add_option("--threads", o.threads)->check(CLI::PositiveNumber);
  app.add_option("--reps", o.reps)->check(CLI::PositiveNumber);
  app.add_option("--block", o.block)->check(CLI::PositiveNumber);
  app.add_option("--mask", o.mask)->check(CLI::IsMember({"random", "window", "frames"}));
  app.add_option("--density", o.densities, "1 = dense, the reference of the efficiency column");
  app.add_option("--skip", o.skip, "none, running_max, running_lse, recall");
  app.add_option("--bias", o.bias, "per key or per (query, key) pair")
      ->check(CLI::IsMember({"none", "key", "pair"}));
  app.add_option("--skip-param", o.skip_param);
  CLI11_PARSE(app, argc, argv);
  try {
    lacuna::bench::run(o);
  } catch (const lacuna::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
