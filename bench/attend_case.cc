// SPDX-License-Identifier: Apache-2.0
#include "bench/attend_case.h"

#include <algorithm>
#include <cmath>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/core/rng.h"

namespace lacuna::bench {
namespace {

constexpr double kTwoLevelGap = 16.0;
constexpr float kExtremeDeviation = 40.0f;

void fill_normal(uint64_t seed, size_t n, std::vector<float>& x) {
  x.resize(n);
  std::vector<float> pool(1 << 16);
  torch_randn(seed, pool);
  uint64_t state = seed;
  for (float& value : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = pool[state >> 48];
  }
}

// The last channel says which keys matter: q has a constant there, k plus or minus the same. Not
// the first: sums in f32 would carry the large term through all others.
void set_two_levels(AttendData& data) {
  const CaseShape& s = data.shape;
  const double root = std::sqrt(static_cast<double>(s.head_dim));
  const auto level = static_cast<float>(std::sqrt(0.5 * kTwoLevelGap * root));
  for (int64_t token = 0; token < s.heads * s.seq_len; ++token) {
    const size_t at = static_cast<size_t>((token + 1) * s.head_dim - 1);
    data.q[at] = level;
    data.k[at] = token % s.seq_len / kVoteKeys % 5 == 0 ? level : -level;
  }
}

void narrow(std::vector<float>& x, std::vector<BFloat16>& y) {
  y.reserve(x.size());
  for (float& value : x) {
    y.emplace_back(value);
    value = static_cast<float>(y.back());
  }
}

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += double{a[c]} * double{b[c]};
  return sum;
}

// Softmax over the kept keys of row i of head 0 -> out [head_dim]; returns the log-sum-exp.
double exact_row(const AttendData& data, const AttendParams& p, int64_t i,
                 std::vector<double>& out) {
  const int64_t d = p.head_dim, row = i / p.block_q;
  std::vector<double> logits;
  std::vector<int64_t> keys;
  const uint64_t* kept =
      p.mask != nullptr ? p.mask + row * ((int64_t{p.num_k_blocks} + 63) / 64) : nullptr;
  for (int64_t b = 0; b < p.num_k_blocks; ++b) {
    if (kept != nullptr && (kept[b / 64] >> (b % 64) & 1) == 0) continue;
    for (int64_t j = b * p.block_k; j < std::min<int64_t>((b + 1) * p.block_k, p.k_len); ++j) {
      logits.push_back(
          dot(&data.q[static_cast<size_t>(i * d)], &data.k[static_cast<size_t>(j * d)], d) *
          double{p.sm_scale});
      keys.push_back(j);
    }
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  std::fill(out.begin(), out.end(), 0.0);
  for (size_t n = 0; n < keys.size(); ++n) {
    const double w = std::exp(logits[n] - top);
    const float* v = &data.v[static_cast<size_t>(keys[n] * d)];
    total += w;
    for (int64_t c = 0; c < d; ++c) out[static_cast<size_t>(c)] += w * double{v[c]};
  }
  for (double& x : out) x /= total;
  return top + std::log(total);
}

}  // namespace

AttendData::AttendData(const CaseShape& s) : shape(s) {
  const auto n = static_cast<size_t>(s.heads * s.seq_len * s.head_dim);
  fill_normal(1, n, q);
  fill_normal(2, n, k);
  fill_normal(3, n, v);
  if (s.logits == Logits::two_level) set_two_levels(*this);
  if (s.logits == Logits::extreme)
    for (float& x : q) x *= kExtremeDeviation;
  out.resize(n);
  if (!s.bf16) return;
  narrow(q, q16);
  narrow(k, k16);
  narrow(v, v16);
  out16.resize(n);
}

AttendParams AttendData::params(int32_t block) {
  AttendParams p;
  p.dtype = shape.bf16 ? AttendDType::bf16 : AttendDType::f32;
  p.q = shape.bf16 ? static_cast<void*>(q16.data()) : q.data();
  p.k = shape.bf16 ? static_cast<void*>(k16.data()) : k.data();
  p.v = shape.bf16 ? static_cast<void*>(v16.data()) : v.data();
  p.out = shape.bf16 ? static_cast<void*>(out16.data()) : out.data();
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride =
      shape.seq_len * shape.head_dim;
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = shape.head_dim;
  p.num_heads = static_cast<int32_t>(shape.heads);
  p.q_len = p.k_len = shape.seq_len;
  p.head_dim = static_cast<int32_t>(shape.head_dim);
  p.sm_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  p.block_q = p.block_k = block;
  p.num_q_blocks = p.num_k_blocks = static_cast<int32_t>((shape.seq_len + block - 1) / block);
  return p;
}

void AttendData::read_back() {
  for (size_t i = 0; i < out16.size(); ++i) out[i] = static_cast<float>(out16[i]);
}

KeptBlocks make_kept(const std::string& kind, int32_t blocks, int64_t heads, double density) {
  KeptBlocks kept{BlockMask(heads, blocks, blocks), 0};
  int64_t count = 0;
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
      if (!keep) continue;
      kept.mask.set(row / blocks, centre, b);
      ++count;
    }
  }
  kept.density = static_cast<double>(count) /
                 (static_cast<double>(heads) * blocks * static_cast<double>(blocks));
  return kept;
}

SampledError sampled_error(const AttendData& data, const AttendParams& p, int rows) {
  const auto d = static_cast<size_t>(p.head_dim);
  SampledError error;
  double diff = 0, norm = 0;
  std::vector<double> want(d);
  for (int sample = 0; sample < rows; ++sample) {
    const int64_t i = (sample * int64_t{7919} + 13) % p.q_len;
    const double lse = exact_row(data, p, i, want);
    if (p.lse != nullptr) error.lse = std::max(error.lse, std::abs(double{p.lse[i]} - lse));
    for (size_t c = 0; c < d; ++c) {
      const double e = double{data.out[static_cast<size_t>(i) * d + c]} - want[c];
      diff += e * e;
      norm += want[c] * want[c];
    }
  }
  error.rel_l2 = std::sqrt(diff / norm);
  return error;
}

double attend_flops(const AttendParams& p, double density, double pv_density) {
  return 2.0 * p.num_heads * static_cast<double>(p.q_len) * static_cast<double>(p.k_len) *
         p.head_dim * (density + pv_density);
}

PeakUnit attend_unit(const AttendParams& p, cpu::Isa isa) {
  const cpu::KernelOps* ops = &cpu::attend_kernel(p.dtype, p.head_dim, isa);
  if (ops == &cpu::kAttendF32Avx2) return PeakUnit::fma_ymm;
  if (ops == &cpu::kAttendF32Avx512) return PeakUnit::fma_zmm;
  return ops == &cpu::kAttendBf16Amx ? PeakUnit::amx_bf16 : PeakUnit::bf16_zmm;
}

}  // namespace lacuna::bench
