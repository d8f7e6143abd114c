// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/encoder_parts.h"

#include <algorithm>
#include <limits>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"

namespace lacuna {

void check_token_ids(std::string_view who, std::span<const int32_t> ids, int64_t most,
                     int64_t vocab_size) {
  LACUNA_CHECK(!ids.empty() && ids.size() <= static_cast<size_t>(most),
               "{}: {} tokens, expected 1 to {}", who, ids.size(), most);
  for (const int32_t id : ids) {
    LACUNA_CHECK(id >= 0 && id < vocab_size,
                 "{}: token id {}, expected 0 to {} (tokenizer of another model?)", who, id,
                 vocab_size - 1);
  }
}

Linear read_scaled_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in) {
  const ScaledView w = reader.unscaled(name + ".weight", {out, in});
  return {w.stored, Tensor(), w.scale};
}

void GatedFeedForward::add_to(Context& ctx, float eps, Epilogue activation,
                              const TensorView& x) const {
  const int64_t n = x.shape[0], width = gate.out_features();
  const TensorView u = ctx.workspace.get("text.u", ctx.compute, {n, x.shape[1]});
  ctx.backend.rms_norm(x, norm.as<float>(), eps, NormSpan::row, nullptr, 0, u);
  const TensorView gates = ctx.workspace.get("text.gate", ctx.compute, {n, width});
  const TensorView ups = ctx.workspace.get("text.up", ctx.compute, {n, width});
  gate.forward(ctx, u, gates);
  up.forward(ctx, u, ups);
  ctx.backend.gated_product(activation, gates, ups, gates);
  down.forward(ctx, gates, x, Epilogue::residual);
}

Tensor embed_tokens(Context& ctx, const ScaledView& table, std::span<const int32_t> ids) {
  const TensorView& stored = table.stored;
  const int64_t dim = stored.shape[1];
  const int64_t row_bytes = storage_bytes(stored.dtype, dim);
  Tensor x(DType::f32, {static_cast<int64_t>(ids.size()), dim}, ctx.backend);
  const TensorView rows = ctx.workspace.mirror("token rows", x);
  for (size_t i = 0; i < ids.size(); ++i) {
    auto* row = static_cast<uint8_t*>(stored.data) + ids[i] * row_bytes;
    convert(make_view(row, stored.dtype, {dim}),
            make_view(rows.as<float>() + static_cast<int64_t>(i) * dim, DType::f32, {dim}),
            table.scale, "token embedding");
  }
  ctx.backend.copy(rows, x);
  return x;
}

AttendParams self_attention(const TensorView& q, const TensorView& k, const TensorView& v,
                            const TensorView& out, float sm_scale) {
  AttendParams params;
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.out = out.data;
  params.dtype = q.dtype == DType::bf16 ? AttendDType::bf16 : AttendDType::f32;
  params.q_head_stride = q.stride[0];
  params.k_head_stride = k.stride[0];
  params.v_head_stride = v.stride[0];
  params.out_head_stride = out.stride[0];
  params.q_token_stride = q.stride[1];
  params.k_token_stride = k.stride[1];
  params.v_token_stride = v.stride[1];
  params.out_token_stride = out.stride[1];
  params.num_heads = static_cast<int32_t>(q.shape[0]);
  params.q_len = q.shape[1];
  params.k_len = k.shape[1];
  params.head_dim = static_cast<int32_t>(q.shape[2]);
  params.sm_scale = sm_scale;
  const auto blocks = [](int64_t tokens, int32_t block) {
    return static_cast<int32_t>((tokens + block - 1) / block);
  };
  params.num_q_blocks = blocks(params.q_len, params.block_q);
  params.num_k_blocks = blocks(params.k_len, params.block_k);
  return params;
}

const float* causal_bias(Context& ctx, int64_t n) {
  const TensorView bias = ctx.workspace.host("causal bias", DType::f32, {2 * n - 1});
  auto* values = bias.as<float>();
  std::fill(values, values + n, 0.0f);
  std::fill(values + n, values + 2 * n - 1, -std::numeric_limits<float>::infinity());
  return values + n - 1;
}

}  // namespace lacuna
