// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/clip_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"
#include "lacuna/models/text/encoder_parts.h"

namespace lacuna {
namespace {

constexpr int64_t kHighestId = 2;  // ClipTextConfig::end_token

// CLIP's activation is quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702, so SiLU is all
// that backends need. The factors go into vectors (norm, biases, gate), which are f32: in the
// matrices they would cost a rounding and a copy.
constexpr float kQuickGelu = 1.702f;

void scale_values(const Tensor& tensor, float factor) {
  auto* values = tensor.as<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) values[i] *= factor;
}

}  // namespace

ClipTextEncoder::ClipTextEncoder(const ClipTextConfig& config, WeightSource& source,
                                 const std::string& prefix)
    : config_(config) {
  config_.validate();
  WeightReader reader(source,
                      [&prefix](std::string_view name) { return prefix + std::string(name); });
  const int64_t d = config_.dim, f = config_.ffn_dim;
  const auto norm = [&](const std::string& name) {
    return Norm{reader.f32(name + ".weight", {d}), reader.f32(name + ".bias", {d})};
  };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    Linear read = read_scaled_linear(reader, name, out, in);
    read.bias = reader.f32(name + ".bias", {out});
    return read;
  };
  // Read by the host alone, a row here and there.
  token_embedding_ = reader.unscaled(kClipTokenEmbedding, {config_.vocab_size, d});
  position_embedding_ =
      reader.passing_f32("embeddings.position_embedding.weight", {config_.max_tokens, d});
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::string p = fmt::format("encoder.layers.{}.", i);
    Layer layer;
    layer.attn_norm = norm(p + "layer_norm1");
    layer.q = linear(p + "self_attn.q_proj", d, d);
    layer.k = linear(p + "self_attn.k_proj", d, d);
    layer.v = linear(p + "self_attn.v_proj", d, d);
    layer.o = linear(p + "self_attn.out_proj", d, d);
    layer.ffn_norm = norm(p + "layer_norm2");
    layer.up = linear(p + "mlp.fc1", f, d);
    layer.down = linear(p + "mlp.fc2", d, f);
    for (const Tensor* scaled :
         {&layer.ffn_norm.weight, &layer.ffn_norm.bias, &layer.up.bias, &layer.down.bias})
      scale_values(*scaled, kQuickGelu);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = norm("final_layer_norm");
  reader.finish("clip");
  ffn_gate_ = Tensor(DType::f32, {d});
  std::fill_n(ffn_gate_.as<float>(), d, 1.0f / kQuickGelu);
  weights_.assign(reader.kept().begin() + 1, reader.kept().end());  // without the embedding
}

int64_t ClipTextEncoder::end_of(std::span<const int32_t> ids) const {
  const auto found = config_.end_token == kHighestId
                         ? std::ranges::max_element(ids)
                         : std::ranges::find(ids, static_cast<int32_t>(config_.end_token));
  LACUNA_CHECK(found != ids.end(),
               "clip: no end token {} among {} tokens, expected one (tokenizer of another model?)",
               config_.end_token, ids.size());
  return found - ids.begin();
}

void ClipTextEncoder::attend(Context& ctx, const Layer& layer, const TensorView& x) const {
  const int64_t n = x.shape[0], d = config_.dim;
  const auto rows = [&](std::string_view slot) {
    return ctx.workspace.get(slot, ctx.compute, {n, d});
  };
  const auto heads = [&](const TensorView& view) {
    return heads_view(view, config_.num_heads, config_.head_dim());
  };
  const TensorView u = rows("clip.u"), q = rows("clip.q"), k = rows("clip.k"), v = rows("clip.v");
  const TensorView out = rows("clip.attn");
  ctx.backend.layer_norm(x, layer.attn_norm.weight.as<float>(), layer.attn_norm.bias.as<float>(),
                         nullptr, nullptr, config_.eps, u);
  layer.q.forward(ctx, u, q);
  layer.k.forward(ctx, u, k);
  layer.v.forward(ctx, u, v);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim())));
  AttendParams params = self_attention(heads(q), heads(k), heads(v), heads(out), scale);
  params.bias = causal_bias(ctx, n);
  params.bias_q_stride = -1;
  ctx.backend.attend(params);
  layer.o.forward(ctx, out, x, Epilogue::residual);
}

void ClipTextEncoder::feed_forward(Context& ctx, const Layer& layer, const TensorView& x) const {
  const int64_t n = x.shape[0];
  const TensorView u = ctx.workspace.get("clip.u", ctx.compute, {n, config_.dim});
  const TensorView h = ctx.workspace.get("clip.ffn", ctx.compute, {n, config_.ffn_dim});
  ctx.backend.layer_norm(x, layer.ffn_norm.weight.as<float>(), layer.ffn_norm.bias.as<float>(),
                         nullptr, nullptr, config_.eps, u);
  layer.up.forward(ctx, u, h, Epilogue::silu);
  layer.down.forward(ctx, h, x, Epilogue::residual, ffn_gate_.as<float>());
}

Tensor ClipTextEncoder::encode(Context& ctx, std::span<const int32_t> ids) const {
  check_token_ids("clip", ids, config_.max_tokens, config_.vocab_size);
  const int64_t n = end_of(ids) + 1;
  const Tensor x = embed_tokens(ctx, token_embedding_, ids.first(static_cast<size_t>(n)));
  ctx.backend.add(x, position_embedding_.view().slice(0, n), x);
  for (const Layer& layer : layers_) {
    ctx.check_cancel();
    attend(ctx, layer, x);
    feed_forward(ctx, layer, x);
  }
  Tensor pooled(DType::f32, {config_.dim});
  ctx.backend.layer_norm(x.view().slice(n - 1, n), final_norm_.weight.as<float>(),
                         final_norm_.bias.as<float>(), nullptr, nullptr, config_.eps,
                         pooled.view().reshape({1, config_.dim}));
  return pooled;
}

}  // namespace lacuna
