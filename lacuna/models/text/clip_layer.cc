// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/clip_layer.h"

#include <algorithm>
#include <cmath>

#include "lacuna/models/layers.h"
#include "lacuna/models/text/encoder_parts.h"

namespace lacuna {
namespace {

// quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702, so SiLU is all that backends need.
// The factors go into vectors (norm, biases, gate), which are f32: in the matrices they would cost
// a rounding and a copy.
constexpr float kQuickGelu = 1.702f;

void scale_values(const Tensor& tensor, float factor) {
  auto* values = tensor.as<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) values[i] *= factor;
}

Linear clip_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in) {
  Linear read = read_scaled_linear(reader, name, out, in);
  read.bias = reader.f32(name + ".bias", {out});
  return read;
}

}  // namespace

ClipNorm::ClipNorm(WeightReader& reader, const std::string& name, int64_t dim)
    : weight(reader.f32(name + ".weight", {dim})), bias(reader.f32(name + ".bias", {dim})) {}

void ClipNorm::forward(Context& ctx, const TensorView& x, float eps, const TensorView& out) const {
  ctx.backend.layer_norm(x, weight.as<float>(), bias.as<float>(), nullptr, nullptr, eps, out);
}

ClipLayer::ClipLayer(const ClipLayerConfig& config, WeightReader& reader, const std::string& name)
    : config_(config),
      attn_norm_(reader, name + "layer_norm1", config.dim),
      q_(clip_linear(reader, name + "self_attn.q_proj", config.dim, config.dim)),
      k_(clip_linear(reader, name + "self_attn.k_proj", config.dim, config.dim)),
      v_(clip_linear(reader, name + "self_attn.v_proj", config.dim, config.dim)),
      o_(clip_linear(reader, name + "self_attn.out_proj", config.dim, config.dim)),
      ffn_norm_(reader, name + "layer_norm2", config.dim),
      up_(clip_linear(reader, name + "mlp.fc1", config.ffn_dim, config.dim)),
      down_(clip_linear(reader, name + "mlp.fc2", config.dim, config.ffn_dim)) {
  if (config_.activation != ClipActivation::quick_gelu) return;
  for (const Tensor* scaled : {&ffn_norm_.weight, &ffn_norm_.bias, &up_.bias, &down_.bias})
    scale_values(*scaled, kQuickGelu);
  ffn_gate_ = Tensor(DType::f32, {config_.dim});
  std::fill_n(ffn_gate_.as<float>(), config_.dim, 1.0f / kQuickGelu);
}

void ClipLayer::attend(Context& ctx, const TensorView& x, const float* causal) const {
  const int64_t n = x.shape[0], d = config_.dim, head_dim = d / config_.num_heads;
  const auto rows = [&](std::string_view slot) {
    return ctx.workspace.get(slot, ctx.compute, {n, d});
  };
  const auto heads = [&](const TensorView& view) {
    return heads_view(view, config_.num_heads, head_dim);
  };
  const TensorView u = rows("clip.u"), q = rows("clip.q"), k = rows("clip.k"), v = rows("clip.v");
  const TensorView out = rows("clip.attn");
  attn_norm_.forward(ctx, x, config_.eps, u);
  q_.forward(ctx, u, q);
  k_.forward(ctx, u, k);
  v_.forward(ctx, u, v);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  AttendParams params = self_attention(heads(q), heads(k), heads(v), heads(out), scale);
  params.bias = causal;
  if (causal != nullptr) params.bias_q_stride = -1;
  ctx.backend.attend(params);
  o_.forward(ctx, out, x, Epilogue::residual);
}

void ClipLayer::feed_forward(Context& ctx, const TensorView& x) const {
  const int64_t n = x.shape[0];
  const TensorView u = ctx.workspace.get("clip.u", ctx.compute, {n, config_.dim});
  const TensorView h = ctx.workspace.get("clip.ffn", ctx.compute, {n, config_.ffn_dim});
  ffn_norm_.forward(ctx, x, config_.eps, u);
  if (config_.activation == ClipActivation::quick_gelu) {
    up_.forward(ctx, u, h, Epilogue::silu);
    down_.forward(ctx, h, x, Epilogue::residual, ffn_gate_.as<float>());
  } else {
    forward_gelu(ctx, up_, u, h);
    down_.forward(ctx, h, x, Epilogue::residual);
  }
}

void ClipLayer::forward(Context& ctx, const TensorView& x, const float* causal) const {
  attend(ctx, x, causal);
  feed_forward(ctx, x);
}

}  // namespace lacuna
