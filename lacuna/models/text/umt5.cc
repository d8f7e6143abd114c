// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/umt5.h"

#include <fmt/format.h>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

AttendDType attend_dtype(DType dtype) {
  return dtype == DType::bf16 ? AttendDType::bf16 : AttendDType::f32;
}

// The bias of (query i, key j) depends on j - i only, so one diagonal vector per head,
// [num_heads, 2 n - 1], holds all of it; the kernel reads it with a query stride of -1.
TensorView bias_diagonals(Context& ctx, const Tensor& table, int64_t num_heads, int64_t n) {
  const int64_t width = 2 * n - 1;
  const TensorView out = ctx.workspace.host("umt5.bias", DType::f32, {num_heads, width});
  const float* from = table.as<float>();
  auto* to = out.as<float>();
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t i = 0; i < width; ++i) {
      to[h * width + i] = from[umt5_bucket(i - (n - 1)) * num_heads + h];
    }
  }
  return out;
}

}  // namespace

int32_t umt5_bucket(int64_t distance) {
  // A table instead of the float logarithm it was rounded from.
  static constexpr int64_t kFirst[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
  const int64_t a = distance < 0 ? -distance : distance;
  int32_t bucket = 15;
  while (a < kFirst[bucket]) --bucket;
  return distance > 0 ? bucket + 16 : bucket;
}

Umt5Encoder::Umt5Encoder(const Umt5Config& config, WeightSource& source, const Umt5Names& names)
    : config_(config) {
  config_.validate();
  WeightReader reader(source,
                      [&names](std::string_view name) { return umt5_source_name(name, names); });
  const int64_t d = config_.dim, inner = config_.inner_dim(), f = config_.ffn_dim;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    const ScaledView w = reader.unscaled(name, {out, in});
    return Linear{w.stored, Tensor(), w.scale};
  };
  // Read by the host alone, a row here and there.
  embedding_ = reader.unscaled("token_embedding.weight", {config_.vocab_size, d});
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string p = fmt::format("blocks.{}.", i);
    Layer layer;
    layer.attn_norm = reader.f32(p + "norm1.weight", {d});
    layer.bias =
        reader.f32(p + "pos_embedding.embedding.weight", {kUmt5Buckets, config_.num_heads});
    layer.q = linear(p + "attn.q.weight", inner, d);
    layer.k = linear(p + "attn.k.weight", inner, d);
    layer.v = linear(p + "attn.v.weight", inner, d);
    layer.o = linear(p + "attn.o.weight", d, inner);
    layer.ffn_norm = reader.f32(p + "norm2.weight", {d});
    layer.gate = linear(p + "ffn.gate.0.weight", f, d);
    layer.up = linear(p + "ffn.fc1.weight", f, d);
    layer.down = linear(p + "ffn.fc2.weight", d, f);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = reader.f32("norm.weight", {d});
  reader.finish("umt5");
  weights_.assign(reader.kept().begin() + 1, reader.kept().end());  // without the embedding
}

// Rows are converted one by one: the embedding is the largest tensor (2 GB in bf16) and a prompt
// touches at most 512 of its 256384 rows.
Tensor Umt5Encoder::embed(Context& ctx, std::span<const int32_t> ids) const {
  const int64_t d = config_.dim;
  const auto& [table, scale] = embedding_;
  const int64_t row_bytes = storage_bytes(table.dtype, d);
  Tensor x(DType::f32, {static_cast<int64_t>(ids.size()), d}, ctx.backend);
  const TensorView rows = ctx.workspace.mirror("umt5.rows", x);
  for (size_t i = 0; i < ids.size(); ++i) {
    auto* row = static_cast<uint8_t*>(table.data) + ids[i] * row_bytes;
    convert(make_view(row, table.dtype, {d}),
            make_view(rows.as<float>() + static_cast<int64_t>(i) * d, DType::f32, {d}), scale,
            "umt5 embedding");
  }
  ctx.backend.copy(rows, x);
  return x;
}

void Umt5Encoder::attend(Context& ctx, const Layer& layer, const TensorView& x) const {
  const int64_t n = x.shape[0], inner = config_.inner_dim();
  const TensorView u = ctx.workspace.get("umt5.u", ctx.compute, {n, config_.dim});
  ctx.backend.rms_norm(x, layer.attn_norm.as<float>(), config_.eps, NormSpan::row, nullptr, 0, u);
  const TensorView q = ctx.workspace.get("umt5.q", ctx.compute, {n, inner});
  const TensorView k = ctx.workspace.get("umt5.k", ctx.compute, {n, inner});
  const TensorView v = ctx.workspace.get("umt5.v", ctx.compute, {n, inner});
  const TensorView out = ctx.workspace.get("umt5.attn", ctx.compute, {n, inner});
  layer.q.forward(ctx, u, q);
  layer.k.forward(ctx, u, k);
  layer.v.forward(ctx, u, v);
  const TensorView bias = bias_diagonals(ctx, layer.bias, config_.num_heads, n);

  AttendParams params;
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  params.out = out.data;
  params.dtype = attend_dtype(ctx.compute);
  params.q_head_stride = params.k_head_stride = params.v_head_stride = params.out_head_stride =
      config_.head_dim;
  params.q_token_stride = params.k_token_stride = params.v_token_stride = params.out_token_stride =
      inner;
  params.num_heads = static_cast<int32_t>(config_.num_heads);
  params.q_len = params.k_len = n;
  params.head_dim = static_cast<int32_t>(config_.head_dim);
  params.sm_scale = 1.0f;  // T5 keeps the scale inside the initialisation of its weights
  params.bias = bias.as<float>() + (n - 1);
  params.bias_head_stride = 2 * n - 1;
  params.bias_q_stride = -1;
  params.num_q_blocks = static_cast<int32_t>((n + params.block_q - 1) / params.block_q);
  params.num_k_blocks = static_cast<int32_t>((n + params.block_k - 1) / params.block_k);
  ctx.backend.attend(params);
  layer.o.forward(ctx, out, x, Epilogue::residual);
}

void Umt5Encoder::feed_forward(Context& ctx, const Layer& layer, const TensorView& x) const {
  const int64_t n = x.shape[0];
  const TensorView u = ctx.workspace.get("umt5.u", ctx.compute, {n, config_.dim});
  ctx.backend.rms_norm(x, layer.ffn_norm.as<float>(), config_.eps, NormSpan::row, nullptr, 0, u);
  const TensorView gate = ctx.workspace.get("umt5.gate", ctx.compute, {n, config_.ffn_dim});
  const TensorView up = ctx.workspace.get("umt5.up", ctx.compute, {n, config_.ffn_dim});
  layer.gate.forward(ctx, u, gate);
  layer.up.forward(ctx, u, up);
  ctx.backend.gated_product(Epilogue::gelu_tanh, gate, up, gate);
  layer.down.forward(ctx, gate, x, Epilogue::residual);
}

Tensor Umt5Encoder::encode(Context& ctx, std::span<const int32_t> ids) const {
  LACUNA_CHECK(!ids.empty() && ids.size() <= static_cast<size_t>(kMaxTokens),
               "umt5: {} tokens, expected 1 to {}", ids.size(), kMaxTokens);
  for (const int32_t id : ids) {
    LACUNA_CHECK(id >= 0 && id < config_.vocab_size,
                 "umt5: token id {}, expected 0 to {} (tokenizer of another model?)", id,
                 config_.vocab_size - 1);
  }
  const Tensor x =
      embed(ctx, ids);  // residual stream, f32: f16 overflows in wo, bf16 loses 3 digits
  for (const Layer& layer : layers_) {
    ctx.check_cancel();  // a layer of UMT5-XXL is seconds of reading
    attend(ctx, layer, x);
    feed_forward(ctx, layer, x);
  }
  Tensor out(DType::f32, {static_cast<int64_t>(ids.size()), config_.dim});
  ctx.backend.rms_norm(x, final_norm_.as<float>(), config_.eps, NormSpan::row, nullptr, 0, out);
  return out;
}

}  // namespace lacuna
