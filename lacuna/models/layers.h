// SPDX-License-Identifier: Apache-2.0
// Small parts that the transformers of all families are made of.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/weights.h"

namespace lacuna {

enum class Bias : uint8_t { none, present };

// Weight and bias called `name`.weight [out, in] and `name`.bias [out].
Linear read_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in,
                   Bias bias = Bias::present);

// out [m, n] f32 or bf16 = GELU(linear(x)) with the error function itself, as what reads pictures
// has it. Backends have the form with tanh alone, which differs by up to 5e-4: this activation is
// computed by the host, in f32, which costs little for the few hundred rows of a picture.
void forward_gelu(Context& ctx, const Linear& linear, const TensorView& x, const TensorView& out);

// [tokens, num_heads * head_dim] seen as [num_heads, tokens, head_dim]; rows may be strided.
TensorView heads_view(const TensorView& rows, int64_t num_heads, int64_t head_dim);

// Rows of `rows` in which what is wide between two linears is made: at most 2048, evenly cut.
inline int64_t rows_at_once(int64_t rows) {
  constexpr int64_t kMost = 2048;
  const int64_t parts = (rows + kMost - 1) / kMost;
  return parts <= 1 ? rows : (rows + parts - 1) / parts;
}

// Attention of every row of q [m, num_heads * head_dim] over every row of k and v [n, the same],
// contiguous and of one dtype, with sm_scale = 1 / sqrt(head_dim).
AttendParams whole_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                             const TensorView& out, int64_t num_heads, int64_t head_dim);

// Sinusoid of a timestep (finite, else Error), made in double: out[i] = cos(t f_i) and
// out[n / 2 + i] = sin(t f_i) with f_i = 10000^(-i / (n / 2)), for out of n values, n even.
void timestep_sinusoid(double timestep, std::span<float> out);

}  // namespace lacuna
