// SPDX-License-Identifier: Apache-2.0
// bf16 matrix products on a GPU at the sizes of Wan, by the library and by our own kernel: one JSON
// row each. The peak they are measured against is the library's 8192 x 8192 x 8192 of the same run.
// The error is taken on a few elements against double sums.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/gemm.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna::bench {
namespace {

struct Shape {
  int32_t m, n, k;
};

std::vector<BFloat16> random_matrix(int64_t rows, int64_t columns, uint64_t seed) {
  std::vector<BFloat16> x(static_cast<size_t>(rows * columns));
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (BFloat16& e : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    e = BFloat16(static_cast<float>(static_cast<double>(state >> 11) * 0x1p-52 - 1.0));
  }
  return x;
}

double best_ms(cuda::Device& device, int reps, const std::function<void()>& call) {
  call();  // warm
  double best = 1e30;
  for (int i = 0; i < reps; ++i) {
    device.synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < 4; ++j) call();
    device.synchronize();
    const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
    best = std::min(best, ms.count() / 4);
  }
  return best;
}

double rel_l1(const cuda::Gemm& g, const std::vector<BFloat16>& x, const std::vector<BFloat16>& w,
              const std::vector<BFloat16>& out) {
  double error = 0.0, sum = 0.0;
  for (int64_t i = 0; i < 64; ++i) {
    const int64_t row = (g.m - 1) * i / 63, column = (g.n - 1) * (i * 37 % 64) / 63;
    double y = 0.0;
    for (int64_t c = 0; c < g.k; ++c)
      y += double{static_cast<float>(x[static_cast<size_t>(row * g.k + c)])} *
           double{static_cast<float>(w[static_cast<size_t>(column * g.k + c)])};
    error += std::abs(y - double{static_cast<float>(out[static_cast<size_t>(row * g.n + column)])});
    sum += std::abs(y);
  }
  return error / sum;
}

// Prints a row; returns TFLOP/s, 0 where the library refuses.
double run(cuda::Device& device, const Shape& s, bool own, double peak, int reps) {
  const std::vector<BFloat16> x = random_matrix(s.m, s.k, 1), w = random_matrix(s.n, s.k, 2);
  std::vector<BFloat16> out(static_cast<size_t>(int64_t{s.m} * s.n));
  const cuda::DeviceMemory dx(device, x), dw(device, w), dout(device, out.size() * 2);
  cuda::Gemm g{};
  g.x = dx.as<void>(), g.w = dw.as<void>(), g.out = dout.as<void>();
  g.x_stride = g.w_stride = s.k, g.out_stride = s.n;
  g.m = s.m, g.n = s.n, g.k = s.k;
  g.bf16 = g.out_bf16 = true;
  if (!own && !device.gemm(g)) return 0.0;
  const double ms = best_ms(device, reps, [&] {
    if (own) {
      cuda::own_gemm(device, g);
    } else {
      device.gemm(g);
    }
  });
  device.download(out.data(), dout.as<void>(), out.size() * 2);
  const double tflops = 2e-9 * s.m * double{static_cast<double>(s.n)} * s.k / ms;
  fmt::print(R"({{"device": "{}", "gemm": "{}", "m": {}, "n": {}, "k": {}, "ms_min": {:.4f}, )"
             R"("tflops": {:.1f}, "of_peak": {}, "rel_l1": {:.2e}}})"
             "\n",
             device.description(), own ? "own" : "library", s.m, s.n, s.k, ms, tflops,
             peak > 0.0 ? fmt::format("{:.3f}", tflops / peak) : "null", rel_l1(g, x, w, out));
  std::fflush(stdout);
  return tflops;
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using lacuna::bench::run;
  int reps = 5;
  CLI::App app("bf16 matrix products on a GPU, one JSON row each");
  app.add_option("--reps", reps, "timed calls")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    const auto device = lacuna::cuda::make_driver_device();
    const double peak = run(*device, {8192, 8192, 8192}, false, 0.0, reps);
    run(*device, {8192, 8192, 8192}, true, peak, reps);
    // Wan 1.3B and 14B at 480p: projections, feed-forward.
    for (const lacuna::bench::Shape& s : {lacuna::bench::Shape{32760, 1536, 1536},
                                          {32760, 8960, 1536},
                                          {32760, 5120, 5120},
                                          {32760, 5120, 13824}})
      for (bool own : {false, true}) run(*device, s, own, peak, reps);
  } catch (const lacuna::Error& e) {
    fmt::print(stderr, "cuda_gemm_bench: {}\n", e.what());
    return 1;
  }
  return 0;
}
