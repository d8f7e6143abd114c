// SPDX-License-Identifier: Apache-2.0
// Parts that the text encoders are made of.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/attend_params.h"
#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Throws Error unless there are 1 to `most` ids, each in 0..vocab_size-1. `who` starts the message.
void check_token_ids(std::string_view who, std::span<const int32_t> ids, int64_t most,
                     int64_t vocab_size);

// The matrix called `name`.weight [out, in], no bias, with the scale of 8-bit floats beside it.
Linear read_scaled_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in);

// The feed-forward of T5 and Llama: x += down(activation(gate u) * up u) of u, x normed by rows.
struct GatedFeedForward {
  Tensor norm;  // [dim] f32
  Linear gate, up, down;

  // x [n, dim] f32, in place. Scratch: "text.u", "text.gate", "text.up" of the workspace.
  void add_to(Context& ctx, float eps, Epilogue activation, const TensorView& x) const;
};

// Rows `ids` of a table [vocabulary, dim] of any dtype, made f32 one by one, because a table is
// gigabytes and a prompt touches a few hundred rows: [ids.size(), dim] f32 in the backend's memory.
Tensor embed_tokens(Context& ctx, const ScaledView& table, std::span<const int32_t> ids);

// Every token over every token. q, k, v, out: views [heads, tokens, head_dim] of one dtype, f32 or
// bf16, channels contiguous. No bias.
AttendParams self_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                            const TensorView& out, float sm_scale);

// The bias that hides later tokens, for n tokens: 0 for j <= i and -inf for j > i. It depends on
// j - i alone, so 2 n - 1 values hold all of it (AttendParams::bias_q_stride of -1). Returns the
// value of j = i = 0; valid until the next call with this context.
const float* causal_bias(Context& ctx, int64_t n);

}  // namespace lacuna
