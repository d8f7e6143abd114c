// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/rng.h"

#include <cmath>
#include <numbers>
#include <random>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

double splitmix_uniform(uint64_t hash, uint64_t i) {
  uint64_t z = hash + (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  // 24 bits fit int32, whose conversion needs no sign branch.
  return static_cast<double>(static_cast<int32_t>(z >> 40)) * (2.0 / 16777216.0) - 1.0;
}

// Box-Muller on 16 uniforms, as torch's CPU generator pairs them: j with j + 8.
void transform_group(float* a) {
  for (int j = 0; j < 8; ++j) {
    const float u1 = 1.0f - a[j];
    const float u2 = a[j + 8];
    const float radius = std::sqrt(-2.0f * std::log(u1));
    const float theta = 2.0f * std::numbers::pi_v<float> * u2;
    a[j] = radius * std::cos(theta);
    a[j + 8] = radius * std::sin(theta);
  }
}

}  // namespace

uint64_t fnv1a64(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325ull;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

double hash_uniform(std::string_view name, uint64_t i) {
  return splitmix_uniform(fnv1a64(name), i);
}

void fill_hash(std::string_view name, double offset, double amplitude, std::span<float> out,
               uint64_t first) {
  const uint64_t hash = fnv1a64(name);
  parallel_ranges(static_cast<int64_t>(out.size()), 1 << 18, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<float>(offset + amplitude * splitmix_uniform(hash, first + i));
    }
  });
}

void torch_randn(uint64_t seed, std::span<float> out) {
  const size_t n = out.size();
  LACUNA_CHECK(n >= 16, "torch_randn: {} values, expected 16 or more", n);
  std::mt19937 generator(static_cast<uint32_t>(seed));
  const auto uniform = [&] {
    return static_cast<float>(generator() & 0xFFFFFFu) * (1.0f / 16777216.0f);
  };
  for (float& x : out) x = uniform();
  for (size_t i = 0; i + 16 <= n; i += 16) transform_group(out.data() + i);
  if (n % 16 != 0) {
    float* tail = out.data() + n - 16;
    for (int j = 0; j < 16; ++j) tail[j] = uniform();
    transform_group(tail);
  }
}

}  // namespace lacuna
