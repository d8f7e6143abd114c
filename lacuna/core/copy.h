// SPDX-License-Identifier: Apache-2.0
// Strided copies in host memory.
#pragma once

#include "lacuna/core/tensor.h"

namespace lacuna {

// to = from, element by element, parallel: views in host memory of one shape, rank <= 5, any
// strides; stride 0 in `from` repeats. f32 <-> bf16 convert (round to nearest even); otherwise
// equal dtypes, block-quantised ones contiguous. The views do not overlap, except that a copy of a
// view to itself does nothing. Throws Error on unequal shapes or dtypes it cannot convert.
void copy_elements(const TensorView& from, const TensorView& to);

// What every copy asks of its two views, wherever they lie. Throws Error.
void check_copy(const TensorView& from, const TensorView& to);

}  // namespace lacuna
