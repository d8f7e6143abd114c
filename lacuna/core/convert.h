// SPDX-License-Identifier: Apache-2.0
// Element type conversion, including the dequantisation of GGUF block types.
#pragma once

#include <cstdint>
#include <string_view>

#include "lacuna/core/tensor.h"

namespace lacuna {

// dst = scale * src, element by element, parallel. src and dst are contiguous with equal shapes and
// do not overlap; src.data may have any alignment. dst is f32, bf16 or f16; rounding is to nearest
// even, an overflow gives infinity, a NaN stays a (quiet) NaN. src is any DType of tensor.h except
// bool; values pass through f32, so f64 and i64 are rounded twice on the way to bf16 and f16.
// f8_e4m3 is the variant without infinities (0x7f and 0xff are NaN), f8_e5m2 the IEEE-like one.
// Throws Error naming `who` on unequal shapes, a strided view or a dtype it cannot write.
void convert(const TensorView& src, const TensorView& dst, float scale = 1.0f,
             std::string_view who = "convert");

// A new tensor of the given dtype holding scale * src.
Tensor converted(const TensorView& src, DType dtype, float scale = 1.0f,
                 std::string_view who = "convert");

// One IEEE half precision value.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace lacuna
