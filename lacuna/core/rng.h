// SPDX-License-Identifier: Apache-2.0
// Numbers that are a pure function of a name or a seed.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lacuna {

uint64_t fnv1a64(std::string_view text);

// Uniform in [-1, 1): element i of the tensor called `name`; splitmix64 of the FNV-1a hash.
double hash_uniform(std::string_view name, uint64_t i);

// out[i] = float(offset + amplitude * hash_uniform(name, first + i)), parallel.
void fill_hash(std::string_view name, double offset, double amplitude, std::span<float> out,
               uint64_t first = 0);

// Standard normals equal to torch.randn on the CPU with this seed (float32, to 2e-7).
// n >= 16; torch uses another path below that.
void torch_randn(uint64_t seed, std::span<float> out);

}  // namespace lacuna
