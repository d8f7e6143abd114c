// SPDX-License-Identifier: Apache-2.0
// Strided copies and sums in host memory.
#pragma once

#include "lacuna/core/tensor.h"

namespace lacuna {

// to = from, element by element, parallel: views in host memory of one shape, rank <= 5, any
// strides; stride 0 in `from` repeats. f32 <-> bf16 convert (round to nearest even), and what
// convert() reads does, contiguous, to contiguous f32 or bf16; otherwise equal dtypes,
// block-quantised ones contiguous. The views do not overlap, except that a copy of a view to itself
// does nothing. Throws Error on unequal shapes or dtypes it cannot convert.
void copy_elements(const TensorView& from, const TensorView& to);

// out = a + b, element by element, parallel: views in host memory of one shape and dtype (f32 or
// bf16), rank <= 5, any strides; stride 0 in a and b repeats. Sums are f32. out may be a or b.
void add_elements(const TensorView& a, const TensorView& b, const TensorView& out);

// What every copy and every sum asks of its views, wherever they lie. Throw Error.
void check_copy(const TensorView& from, const TensorView& to);
void check_add(const TensorView& a, const TensorView& b, const TensorView& out);

}  // namespace lacuna
