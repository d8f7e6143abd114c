// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/layers.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {

Linear read_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in,
                   Bias bias) {
  Linear linear;
  Matrix matrix = reader.matrix(name + ".weight", {out, in});
  linear.weight = matrix.stored;
  linear.added = std::move(matrix.added);
  if (bias == Bias::present) linear.bias = reader.f32(name + ".bias", {out});
  return linear;
}

void forward_gelu(Context& ctx, const Linear& linear, const TensorView& x, const TensorView& out) {
  const TensorView made = out.dtype == DType::f32
                              ? out
                              : ctx.workspace.get("gelu", DType::f32, {out.shape[0], out.shape[1]});
  linear.forward(ctx, x, made);
  const TensorView rows = ctx.workspace.mirror("gelu rows", made);
  ctx.backend.copy(made, rows);
  parallel_ranges(rows.shape[0], 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = rows.as<float>() + row * rows.stride[0];
      for (int64_t i = 0; i < rows.shape[1]; ++i)
        values[i] *= 0.5f + 0.5f * std::erf(values[i] * std::numbers::sqrt2_v<float> * 0.5f);
    }
  });
  ctx.backend.copy(rows, out);
}

TensorView heads_view(const TensorView& rows, int64_t num_heads, int64_t head_dim) {
  TensorView view = rows;
  view.rank = 3;
  view.shape = {num_heads, rows.shape[0], head_dim};
  view.stride = {head_dim, rows.stride[0], 1};
  return view;
}

AttendParams whole_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                             const TensorView& out, int64_t num_heads, int64_t head_dim) {
  AttendParams params;
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.out = out.data;
  params.dtype = q.dtype == DType::bf16 ? AttendDType::bf16 : AttendDType::f32;
  params.q_head_stride = params.k_head_stride = params.v_head_stride = params.out_head_stride =
      head_dim;
  params.q_token_stride = params.k_token_stride = params.v_token_stride = params.out_token_stride =
      num_heads * head_dim;
  params.num_heads = static_cast<int32_t>(num_heads);
  params.q_len = q.shape[0];
  params.k_len = k.shape[0];
  params.head_dim = static_cast<int32_t>(head_dim);
  params.sm_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  params.num_q_blocks = static_cast<int32_t>((params.q_len + params.block_q - 1) / params.block_q);
  params.num_k_blocks = static_cast<int32_t>((params.k_len + params.block_k - 1) / params.block_k);
  return params;
}

void timestep_sinusoid(double timestep, std::span<float> out) {
  LACUNA_CHECK(std::isfinite(timestep), "timestep: {}, expected a finite number", timestep);
  const size_t half = out.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double frequency = std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
    out[i] = static_cast<float>(std::cos(timestep * frequency));
    out[half + i] = static_cast<float>(std::sin(timestep * frequency));
  }
}

}  // namespace lacuna
