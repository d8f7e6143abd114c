// SPDX-License-Identifier: Apache-2.0
// Attention kernels on a GPU: time on the device, density and error, one JSON row per line. The
// error is taken on a few query rows of every run against double sums over the same blocks.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "lacuna/backend/cuda/attend.h"
#include "lacuna/backend/cuda/driver.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/block_mask.h"
#include "lacuna/core/error.h"

namespace lacuna::bench {
namespace {

using cuda::Device;
using cuda::DeviceMemory;

struct Options {
  int64_t heads = 12, seq_len = 32760;
  int32_t head_dim = 128, block_q = 128, block_k = 64;
  int reps = 7;
  uint64_t seed = 1;
  std::vector<double> densities = {1.0, 0.5, 0.2, 0.1};
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  double uniform() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  // Sum of four uniforms: close enough to a normal, and much faster at these sizes.
  float value() {
    return static_cast<float>((uniform() + uniform() + uniform() + uniform() - 2.0) * 1.732);
  }

 private:
  uint64_t state_;
};

std::vector<BFloat16> random_tensor(const Options& o, uint64_t seed) {
  Random random(seed);
  std::vector<BFloat16> x(static_cast<size_t>(o.heads * o.seq_len * o.head_dim));
  for (BFloat16& e : x) e = BFloat16(random.value());
  return x;
}

// Random blocks; every row keeps at least one.
BlockMask random_mask(const AttendParams& p, double density, uint64_t seed) {
  BlockMask mask(p.num_heads, p.num_q_blocks, p.num_k_blocks);
  Random random(seed);
  for (int64_t head = 0; head < p.num_heads; ++head)
    for (int32_t q_block = 0; q_block < p.num_q_blocks; ++q_block) {
      const auto own = static_cast<int32_t>(random.uniform() * p.num_k_blocks);
      for (int32_t b = 0; b < p.num_k_blocks; ++b)
        if (b == own || random.uniform() < density) mask.set(head, q_block, b);
    }
  return mask;
}

struct Inputs {
  std::vector<BFloat16> q, k, v, out;
};

// Sum of |out - expected| and of |expected| of one query row.
void add_row_error(const AttendParams& p, const Inputs& in, int64_t head, int64_t token,
                   double (&sums)[2]) {
  const int64_t d = p.head_dim, row = head * p.num_q_blocks + token / p.block_q;
  std::vector<double> expected(static_cast<size_t>(d));
  double total = 0.0;
  const auto at = [&](const std::vector<BFloat16>& x, int64_t i, int64_t c) {
    return double{static_cast<float>(x[static_cast<size_t>((head * p.k_len + i) * d + c)])};
  };
  const uint64_t* kept =
      p.mask != nullptr ? p.mask + row * ((int64_t{p.num_k_blocks} + 63) / 64) : nullptr;
  for (int64_t block = 0; block < p.num_k_blocks; ++block) {
    if (kept != nullptr && (kept[block / 64] >> (block % 64) & 1) == 0) continue;
    const int64_t end = std::min<int64_t>((block + 1) * p.block_k, p.k_len);
    for (int64_t key = block * p.block_k; key < end; ++key) {
      double dot = 0.0;
      for (int64_t c = 0; c < d; ++c) dot += at(in.q, token, c) * at(in.k, key, c);
      const double weight = std::exp(dot * double{p.sm_scale});  // logits of a few units
      total += weight;
      for (int64_t c = 0; c < d; ++c) expected[static_cast<size_t>(c)] += weight * at(in.v, key, c);
    }
  }
  for (int64_t c = 0; c < d; ++c) {
    const double e = expected[static_cast<size_t>(c)] / total;
    sums[0] += std::abs(at(in.out, token, c) - e);
    sums[1] += std::abs(e);
  }
}

double rel_l1(const AttendParams& p, const Inputs& in) {
  double sums[2] = {};
  for (int i = 0; i < 8; ++i) add_row_error(p, in, i % p.num_heads, (p.q_len - 1) * i / 7, sums);
  return sums[0] / sums[1];
}

void run(const Options& o) {
  const std::unique_ptr<Device> device = cuda::make_driver_device();
  Inputs in{
      random_tensor(o, o.seed), random_tensor(o, o.seed + 1), random_tensor(o, o.seed + 2), {}};
  in.out.resize(in.q.size());
  const DeviceMemory q(*device, in.q), k(*device, in.k), v(*device, in.v), out(*device, in.out);
  AttendParams p;
  p.q = q.as<void>(), p.k = k.as<void>(), p.v = v.as<void>(), p.out = out.as<void>();
  p.dtype = AttendDType::bf16;
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride = o.seq_len * o.head_dim;
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = o.head_dim;
  p.num_heads = static_cast<int32_t>(o.heads);
  p.q_len = p.k_len = o.seq_len;
  p.head_dim = o.head_dim;
  p.sm_scale = 1.0f / std::sqrt(static_cast<float>(o.head_dim));
  p.block_q = o.block_q, p.block_k = o.block_k;
  p.num_q_blocks = static_cast<int32_t>((o.seq_len + o.block_q - 1) / o.block_q);
  p.num_k_blocks = static_cast<int32_t>((o.seq_len + o.block_k - 1) / o.block_k);
  std::vector<int64_t> pairs(static_cast<size_t>(o.heads));
  p.pv_pairs = pairs.data();
  for (double wanted : o.densities) {
    const BlockMask mask = wanted < 1.0 ? random_mask(p, wanted, o.seed + 3) : BlockMask();
    p.mask = wanted < 1.0 ? mask.words() : nullptr;
    std::vector<double> ms;
    cuda::attend_resident(*device, p);  // warm
    for (int i = 0; i < o.reps; ++i) {
      cuda::attend_resident(*device, p);
      ms.push_back(device->attend_ms());
    }
    std::sort(ms.begin(), ms.end());
    device->download(in.out.data(), p.out, in.out.size() * sizeof(BFloat16));
    double computed = 0.0;
    for (int64_t n : pairs) computed += static_cast<double>(n);
    const double all = static_cast<double>(o.heads * o.seq_len) * static_cast<double>(o.seq_len);
    const double median = ms[ms.size() / 2], flop = 4.0 * computed * o.head_dim;
    fmt::print(
        R"({{"device": "{}", "heads": {}, "seq_len": {}, "head_dim": {}, "block_q": {}, "block_k": {}, )"
        R"("density": {:.4f}, "ms_median": {:.4f}, "ms_min": {:.4f}, "tflops": {:.1f}, "rel_l1": {:.2e}}})"
        "\n",
        device->description(), o.heads, o.seq_len, o.head_dim, o.block_q, o.block_k, computed / all,
        median, ms.front(), flop / median * 1e-9, rel_l1(p, in));
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  lacuna::bench::Options o;
  CLI::App app("Attention kernels on a GPU, one JSON row per density");
  app.add_option("--heads", o.heads, "heads")->check(CLI::PositiveNumber);
  app.add_option("--seq-len", o.seq_len, "queries and keys")->check(CLI::PositiveNumber);
  app.add_option("--head-dim", o.head_dim, "64 or 128");
  app.add_option("--block-q", o.block_q, "query block")->check(CLI::PositiveNumber);
  app.add_option("--block-k", o.block_k, "key block")->check(CLI::PositiveNumber);
  app.add_option("--reps", o.reps, "timed calls")->check(CLI::PositiveNumber);
  app.add_option("--seed", o.seed, "inputs and masks");
  app.add_option("--density", o.densities, "shares of blocks to keep; 1 = dense");
  CLI11_PARSE(app, argc, argv);
  try {
    lacuna::bench::run(o);
  } catch (const lacuna::Error& e) {
    fmt::print(stderr, "cuda_bench: {}\n", e.what());
    return 1;
  }
  return 0;
}
