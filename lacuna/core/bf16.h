// SPDX-License-Identifier: Apache-2.0
// bfloat16 storage type: round to nearest even on the way in, exact on the way out.
#pragma once

#include <bit>
#include <cstdint>

namespace lacuna {

struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    // NaN would round to infinity; keep it a quiet NaN.
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};

static_assert(sizeof(BFloat16) == 2);

}  // namespace lacuna
