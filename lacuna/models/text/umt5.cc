// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/umt5.h"

#include <fmt/format.h>

#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

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
    return read_scaled_linear(reader, name, out, in);
  };
  // Read by the host alone, a row here and there.
  embedding_ = reader.unscaled("token_embedding.weight", {config_.vocab_size, d});
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string p = fmt::format("blocks.{}.", i);
    Layer layer;
    layer.attn_norm = reader.f32(p + "norm1.weight", {d});
    if (i == 0 || !config_.shared_bias) {
      layer.bias =
          reader.f32(p + "pos_embedding.embedding.weight", {kUmt5Buckets, config_.num_heads});
    }
    layer.q = linear(p + "attn.q", inner, d);
    layer.k = linear(p + "attn.k", inner, d);
    layer.v = linear(p + "attn.v", inner, d);
    layer.o = linear(p + "attn.o", d, inner);
    layer.feed_forward.norm = reader.f32(p + "norm2.weight", {d});
    layer.feed_forward.gate = linear(p + "ffn.gate.0", f, d);
    layer.feed_forward.up = linear(p + "ffn.fc1", f, d);
    layer.feed_forward.down = linear(p + "ffn.fc2", d, f);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = reader.f32("norm.weight", {d});
  reader.finish("umt5");
  weights_.assign(reader.kept().begin() + 1, reader.kept().end());  // without the embedding
}

void Umt5Encoder::attend(Context& ctx, const Layer& layer, const TensorView& bias,
                         const TensorView& x) const {
  const int64_t n = x.shape[0], inner = config_.inner_dim();
  const TensorView u = ctx.workspace.get("text.u", ctx.compute, {n, config_.dim});
  ctx.backend.rms_norm(x, layer.attn_norm.as<float>(), config_.eps, NormSpan::row, nullptr, 0, u);
  const TensorView q = ctx.workspace.get("umt5.q", ctx.compute, {n, inner});
  const TensorView k = ctx.workspace.get("umt5.k", ctx.compute, {n, inner});
  const TensorView v = ctx.workspace.get("umt5.v", ctx.compute, {n, inner});
  const TensorView out = ctx.workspace.get("umt5.attn", ctx.compute, {n, inner});
  layer.q.forward(ctx, u, q);
  layer.k.forward(ctx, u, k);
  layer.v.forward(ctx, u, v);

  const auto heads = [&](const TensorView& rows) {
    return heads_view(rows, config_.num_heads, config_.head_dim);
  };
  // T5 keeps the scale inside the initialisation of its weights.
  AttendParams params = self_attention(heads(q), heads(k), heads(v), heads(out), 1.0f);
  params.bias = bias.as<float>() + (n - 1);
  params.bias_head_stride = 2 * n - 1;
  params.bias_q_stride = -1;
  ctx.backend.attend(params);
  layer.o.forward(ctx, out, x, Epilogue::residual);
}

Tensor Umt5Encoder::encode(Context& ctx, std::span<const int32_t> ids) const {
  check_token_ids("umt5", ids, kMaxTokens, config_.vocab_size);
  // The residual stream, f32: f16 overflows in wo, bf16 loses 3 digits.
  const Tensor x = embed_tokens(ctx, embedding_, ids);
  TensorView bias;
  for (const Layer& layer : layers_) {
    ctx.check_cancel();  // a layer of UMT5-XXL is seconds of reading
    if (!layer.bias.empty())
      bias = bias_diagonals(ctx, layer.bias, config_.num_heads, x.view().shape[0]);
    attend(ctx, layer, bias, x);
    layer.feed_forward.add_to(ctx, config_.eps, Epilogue::gelu_tanh, x);
  }
  Tensor out(DType::f32, {static_cast<int64_t>(ids.size()), config_.dim});
  ctx.backend.rms_norm(x, final_norm_.as<float>(), config_.eps, NormSpan::row, nullptr, 0, out);
  return out;
}

}  // namespace lacuna
