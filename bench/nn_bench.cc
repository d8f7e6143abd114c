// SPDX-License-Identifier: Apache-2.0
// Network and selection operations of the CPU backend: time, GFLOP/s and share of the measured
// arithmetic peak, or GB/s and share of the measured copy speed. LACUNA_ISA lowers the level.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/cpu_peak.h"
#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"

namespace lacuna::bench {
namespace {

struct Options {
  int64_t tokens = 7800;
  int reps = 5, threads = 1;
  std::string only;
};

struct Machine {
  double f32_peak = 0, bf16_peak = 0;  // GFLOP/s of all threads
  double copy = 0;                     // GB/s read + written, all threads
};

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

struct Times {
  double median = 0, min = 0;
};

Times measure(int reps, const std::function<void()>& op) {
  op();  // scratch memory and primitives
  std::vector<double> t;
  for (int i = 0; i < reps; ++i) {
    const double start = now();
    op();
    t.push_back(now() - start);
  }
  std::sort(t.begin(), t.end());
  return {t[t.size() / 2], t[0]};
}

Tensor random_tensor(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor x(dtype, shape);
  std::vector<float> values(static_cast<size_t>(x.numel()));
  fill_hash("bench", 0.0, 1.0, values);
  for (int64_t i = 0; i < x.numel(); ++i) {
    if (dtype == DType::f32) {
      x.as<float>()[i] = values[i];
    } else {
      x.as<BFloat16>()[i] = BFloat16(values[i]);
    }
  }
  return x;
}

void report(const std::string& what, DType dtype, const Times& t, double amount, double peak,
            const char* unit) {
  std::printf("%-34s %-5s %9.2f ms (min %9.2f) %8.1f %s %5.1f %%\n", what.c_str(),
              std::string(dtype_name(dtype)).c_str(), t.median * 1e3, t.min * 1e3,
              amount / t.median * 1e-9, unit, 100.0 * amount / t.median * 1e-9 / peak);
  std::fflush(stdout);
}

double peak_of(const Machine& machine, DType dtype) {
  const bool native = dtype == DType::bf16 && cpu::active_isa() >= cpu::Isa::avx512_bf16;
  return native ? machine.bf16_peak : machine.f32_peak;
}

Machine measure_machine(const Options& o) {
  const CpuPeak peak = measure_cpu_peak(cpu::machine_isa());
  Machine m;
  m.f32_peak = o.threads * (cpu::active_isa() >= cpu::Isa::avx512 ? peak.fma_zmm : peak.fma_ymm);
  m.bf16_peak = o.threads * (cpu::active_isa() == cpu::Isa::amx ? peak.amx_bf16 : peak.bf16_zmm);
  const int64_t n = int64_t{64} << 20;
  const Tensor from = Tensor::zeros(DType::u8, {n}), to = Tensor::zeros(DType::u8, {n});
  const Times t = measure(o.reps, [&] {
    parallel_ranges(n, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(to.as<uint8_t>() + begin, from.as<uint8_t>() + begin,
                  static_cast<size_t>(end - begin));
    });
  });
  m.copy = 2.0 * static_cast<double>(n) / t.min * 1e-9;
  std::printf("# %d thread(s), level %s: f32 peak %.0f GF/s, bf16 peak %.0f GF/s, copy %.1f GB/s\n",
              o.threads, std::string(cpu::isa_name(cpu::active_isa())).c_str(), m.f32_peak,
              m.bf16_peak, m.copy);
  return m;
}

void bench_linear(Backend& backend, const Options& o, const Machine& machine) {
  struct Shape {
    int64_t m, n, k;
    Epilogue epilogue;
    const char* note;
  };
  const int64_t t = o.tokens;
  const Shape shapes[] = {{t, 1536, 1536, Epilogue::none, ""},
                          {t, 4608, 1536, Epilogue::none, ""},
                          {t, 8960, 1536, Epilogue::gelu_tanh, " gelu"},
                          {t, 1536, 8960, Epilogue::residual, " gated sum"},
                          {512, 1536, 4096, Epilogue::gelu_tanh, " gelu"},
                          {64, 1536, 1536, Epilogue::none, ""},
                          {1, 9216, 1536, Epilogue::none, ""}};
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Shape& s : shapes) {
      const Tensor x = random_tensor(dtype, {s.m, s.k}), w = random_tensor(dtype, {s.n, s.k});
      const bool sum = s.epilogue == Epilogue::residual;
      const Tensor out = Tensor::zeros(sum ? DType::f32 : dtype, {s.m, s.n});
      const std::vector<float> bias(static_cast<size_t>(s.n), 0.5f), gate(bias);
      const Times t_run = measure(o.reps, [&] {
        backend.linear(x, w, bias.data(), s.epilogue, sum ? gate.data() : nullptr, out);
      });
      const std::string what = fmt::format("linear {} x {} -> {}{}", s.m, s.k, s.n, s.note);
      report(what, dtype, t_run, 2.0 * s.m * s.n * s.k, peak_of(machine, dtype), "GF/s");
    }
}

// Stages of the Wan 2.1 VAE decoder at 480 x 832.
void bench_conv(Backend& backend, const Options& o, const Machine& machine) {
  struct Shape {
    int64_t t, h, w, c_in, c_out, kt, k;
    bool residual;
  };
  const Shape shapes[] = {{1, 60, 104, 16, 384, 3, 3, false},   {1, 60, 104, 384, 384, 3, 3, true},
                          {2, 120, 208, 384, 384, 3, 3, true},  {4, 240, 416, 192, 192, 3, 3, true},
                          {4, 480, 832, 96, 96, 3, 3, true},    {4, 480, 832, 192, 96, 1, 3, false},
                          {4, 240, 416, 384, 192, 1, 1, false}, {4, 480, 832, 96, 3, 3, 3, false}};
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Shape& s : shapes) {
      const Tensor x = random_tensor(dtype, {s.t + s.kt - 1, s.h, s.w, s.c_in});
      const Tensor w = random_tensor(dtype, {s.c_out, s.c_in, s.kt, s.k, s.k});
      const Tensor out = Tensor::zeros(dtype, {s.t, s.h, s.w, s.c_out});
      const Tensor residual = Tensor::zeros(dtype, {s.t, s.h, s.w, s.c_out});
      const std::vector<float> bias(static_cast<size_t>(s.c_out), 0.5f);
      const auto pad = static_cast<int32_t>(s.k / 2);
      const ConvParams conv{.pad_top = pad, .pad_bottom = pad, .pad_left = pad, .pad_right = pad};
      const Times t_run = measure(std::min(o.reps, 3), [&] {
        backend.conv3d(x, w, bias.data(), conv, s.residual ? &residual.view() : nullptr, out);
      });
      const std::string what = fmt::format("conv {}x{}x{} {}->{} k{}x{}x{}{}", s.t, s.h, s.w,
                                           s.c_in, s.c_out, s.kt, s.k, s.k, s.residual ? " +" : "");
      report(what, dtype, t_run, 2.0 * out.numel() * s.c_in * s.kt * s.k * s.k,
             peak_of(machine, dtype), "GF/s");
    }
}

void bench_rows(Backend& backend, const Options& o, const Machine& machine) {
  const int64_t m = o.tokens / 60 * 60, d = 1536, f = 8960;
  const std::vector<float> weight(static_cast<size_t>(d), 0.5f);
  const std::vector<float> table(static_cast<size_t>(m * 22), 0.5f);
  const RopeTables rope{m / 60,       6,
                        10,           22,
                        21,           21,
                        table.data(), table.data(),
                        table.data(), table.data(),
                        table.data(), table.data()};
  const std::vector<float> learnt(static_cast<size_t>(m / 60 * 12 * 64), 0.5f);
  const std::vector<float> lines(static_cast<size_t>(10 * 12 * 64), 0.5f);
  const RopeTables summed{.frames = m / 60,
                          .height = 6,
                          .width = 10,
                          .pairs_frames = 64,
                          .pairs_height = 64,
                          .pairs_width = 64,
                          .cos_frames = learnt.data(),
                          .sin_frames = learnt.data(),
                          .cos_height = lines.data(),
                          .sin_height = lines.data(),
                          .cos_width = lines.data(),
                          .sin_width = lines.data(),
                          .summed = true};
  for (DType dtype : {DType::f32, DType::bf16}) {
    const double size = dtype == DType::f32 ? 4.0 : 2.0;
    const Tensor x32 = random_tensor(DType::f32, {m, d}), x = random_tensor(dtype, {m, d});
    const Tensor out = Tensor::zeros(dtype, {m, d});
    Times t = measure(o.reps, [&] {
      backend.layer_norm(x32, nullptr, nullptr, weight.data(), weight.data(), 1e-6f, out);
    });
    report("layer_norm f32 ->", dtype, t, m * d * (4.0 + size), machine.copy, "GB/s");
    t = measure(o.reps, [&] {
      backend.rms_norm(x, weight.data(), 1e-6f, NormSpan::row, nullptr, 12, out);
    });
    report("rms_norm", dtype, t, m * d * 2 * size, machine.copy, "GB/s");
    t = measure(o.reps,
                [&] { backend.rms_norm(x, weight.data(), 1e-6f, NormSpan::row, &rope, 12, out); });
    report("rms_norm + rope", dtype, t, m * d * 2 * size, machine.copy, "GB/s");
    t = measure(o.reps,
                [&] { backend.rms_norm(x, weight.data(), 1e-6f, NormSpan::head, &rope, 12, out); });
    report("rms_norm of heads + rope", dtype, t, m * d * 2 * size, machine.copy, "GB/s");
    t = measure(o.reps, [&] {
      backend.rms_norm(x, weight.data(), 1e-6f, NormSpan::head, &summed, 12, out);
    });
    report("rms_norm of heads + summed rope", dtype, t, m * d * 2 * size, machine.copy, "GB/s");
    const Tensor gate = random_tensor(dtype, {m, f}), up = random_tensor(dtype, {m, f});
    const Tensor gated = Tensor::zeros(dtype, {m, f});
    t = measure(o.reps, [&] { backend.gated_product(Epilogue::gelu_tanh, gate, up, gated); });
    report("gated_product", dtype, t, m * f * 3 * size, machine.copy, "GB/s");
    const Tensor pixels = random_tensor(dtype, {480, 832, 96});
    const Tensor normed = Tensor::zeros(dtype, {480, 832, 96});
    t = measure(o.reps, [&] { backend.channel_norm(pixels, weight.data(), true, normed); });
    report("channel_norm + silu", dtype, t, pixels.numel() * 2 * size, machine.copy, "GB/s");
    // Two reads and a write are the floor.
    for (const auto& [pixels_of_map, c] : {std::pair{480 * 832, 128}, {4 * 60 * 104, 512}}) {
      const Tensor map = random_tensor(dtype, {1, pixels_of_map, c});
      const Tensor grouped = Tensor::zeros(dtype, {1, pixels_of_map, c});
      t = measure(o.reps, [&] {
        backend.group_norm(map, 32, weight.data(), weight.data(), 1e-6f, true, grouped);
      });
      report(fmt::format("group_norm + silu {} x {}", pixels_of_map, c), dtype, t,
             map.numel() * 3 * size, machine.copy, "GB/s");
    }
  }
}

AttendParams dense_params(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out) {
  AttendParams p;
  p.q = q.view().data;
  p.k = k.view().data;
  p.v = v.view().data;
  p.out = out.view().data;
  p.dtype = q.view().dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  p.num_heads = 1;
  p.q_len = p.k_len = q.view().shape[1];
  p.head_dim = static_cast<int32_t>(q.view().shape[2]);
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = p.head_dim;
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride = p.q_len * p.head_dim;
  p.sm_scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  p.num_q_blocks = p.num_k_blocks = static_cast<int32_t>((p.q_len + 127) / 128);
  return p;
}

// The percentage is of the time of dense attention of the same head.
void bench_select(Backend& backend, const Options& o) {
  constexpr int64_t kLen = 16384, kDim = 128;
  const std::vector<int32_t> heads = {0};
  const BlockLayout layout = BlockLayout::uniform(kLen, 128);
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor q = random_tensor(dtype, {1, kLen, kDim}),
                 k = random_tensor(dtype, {1, kLen, kDim});
    const Tensor out = Tensor::zeros(dtype, {1, kLen, kDim});
    const AttendParams params = dense_params(q, k, q, out);
    const Times dense = measure(std::min(o.reps, 3), [&] { backend.attend(params); });
    const auto line = [&](const std::string& what, const Times& t) {
      std::printf("%-34s %-5s %9.2f ms (min %9.2f) %26.2f %% of dense\n", what.c_str(),
                  std::string(dtype_name(dtype)).c_str(), t.median * 1e3, t.min * 1e3,
                  100.0 * t.median / dense.median);
    };
    line("attend 16384 x 128 dense", dense);
    const Tensor scores(DType::f32, {1, layout.num_blocks, layout.num_blocks});
    for (int32_t stride : {8, 16, 32})
      line(fmt::format("antidiagonal_scores stride {}", stride), measure(o.reps, [&] {
             backend.antidiagonal_scores(q, k, heads, layout, layout, params.sm_scale, stride,
                                         false, scores);
           }));
    const Tensor mean(DType::f32, {1, layout.num_blocks, kDim});
    line("block_mean", measure(o.reps, [&] { backend.block_mean(q, heads, layout, mean); }));
    const float top_p[] = {0.9f};
    const int32_t top_k[] = {16};
    BlockMask mask(1, layout.num_blocks, layout.num_blocks);
    line("select_top_p 0.9", measure(o.reps, [&] { backend.select_top_p(scores, top_p, mask); }));
    line("select_top_k 16", measure(o.reps, [&] { backend.select_top_k(scores, top_k, mask); }));
    std::vector<int32_t> order(kLen);
    for (int64_t i = 0; i < kLen; ++i) order[i] = static_cast<int32_t>(i * 5 % kLen);
    line("gather_tokens", measure(o.reps, [&] { backend.gather_tokens(q, order.data(), 0, out); }));
  }
}

void run(const Options& o) {
  set_num_threads(o.threads);
  const std::unique_ptr<Backend> backend = make_cpu_backend();
  const Machine machine = measure_machine(o);
  const auto wanted = [&](const char* name) { return o.only.empty() || o.only == name; };
  if (wanted("linear")) bench_linear(*backend, o, machine);
  if (wanted("conv")) bench_conv(*backend, o, machine);
  if (wanted("rows")) bench_rows(*backend, o, machine);
  if (wanted("select")) bench_select(*backend, o);
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  CLI::App app("Network and selection operations of the CPU backend");
  lacuna::bench::Options o;
  app.add_option("--tokens", o.tokens, "rows of the transformer's matrices")
      ->check(CLI::Range(60, 1000000));
  app.add_option("--threads", o.threads)->check(CLI::Range(1, 1024));
  app.add_option("--reps", o.reps)->check(CLI::Range(1, 1000));
  app.add_option("--only", o.only)->check(CLI::IsMember({"linear", "conv", "rows", "select"}));
  CLI11_PARSE(app, argc, argv);
  try {
    lacuna::bench::run(o);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "nn_bench: %s\n", e.what());
    return 1;
  }
  return 0;
}
