// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/refiner.h"

#include <string>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

constexpr float kRefinerEps = 1e-6f;

std::string refiner_layer(int64_t index, const char* name) {
  return fmt::format("context_embedder.token_refiner.refiner_blocks.{}.{}", index, name);
}

}  // namespace

HunyuanRefiner::Layer::Layer(const HunyuanConfig& config, int64_t index, WeightReader& reader) {
  const int64_t d = config.dim(), f = config.refiner_mlp_dim();
  const auto linear = [&](const char* name, int64_t out, int64_t in) {
    return read_linear(reader, refiner_layer(index, name), out, in);
  };
  const auto vector = [&](const char* name) { return reader.f32(refiner_layer(index, name), {d}); };
  gates = linear("norm_out.linear", 2 * d, d);
  norm1_weight = vector("norm1.weight");
  norm1_bias = vector("norm1.bias");
  norm2_weight = vector("norm2.weight");
  norm2_bias = vector("norm2.bias");
  q = linear("attn.to_q", d, d);
  k = linear("attn.to_k", d, d);
  v = linear("attn.to_v", d, d);
  out = linear("attn.to_out.0", d, d);
  up = linear("ff.net.0.proj", f, d);
  down = linear("ff.net.2", d, f);
}

HunyuanRefiner::HunyuanRefiner(const HunyuanConfig& config, WeightReader& reader) {
  layers_.reserve(static_cast<size_t>(config.num_refiner_layers));
  for (int64_t i = 0; i < config.num_refiner_layers; ++i) layers_.emplace_back(config, i, reader);
}

void HunyuanRefiner::forward(const HunyuanPass& pass) const {
  const RowRange rows = pass.text_rows();
  activate_condition(pass.time.refiner, pass.text.refiner, pass.act.condition);
  pass.ctx.backend.copy(pass.text.stream, pass.act.residual.slice(rows.begin, rows.end));
  for (const Layer& layer : layers_) run(pass, layer);
}

void HunyuanRefiner::run(const HunyuanPass& pass, const Layer& layer) {
  Context& ctx = pass.ctx;
  const HunyuanConfig& config = pass.config;
  const RowRange rows = pass.text_rows();
  const auto of = [&](const TensorView& view) { return view.slice(rows.begin, rows.end); };
  const TensorView residual = of(pass.act.residual), normed = of(pass.act.normed);
  const TensorView q = of(pass.act.q), k = of(pass.act.k), v = of(pass.act.v);
  const float* gates = pass.modulate(layer.gates);
  ctx.backend.layer_norm(residual, layer.norm1_weight.as<float>(), layer.norm1_bias.as<float>(),
                         nullptr, nullptr, kRefinerEps, normed);
  layer.q.forward(ctx, normed, q);
  layer.k.forward(ctx, normed, k);
  layer.v.forward(ctx, normed, v);
  ctx.backend.attend(whole_attention(q, k, v, normed, config.num_heads, config.head_dim));
  layer.out.forward(ctx, normed, residual, Epilogue::residual, gates);
  ctx.backend.layer_norm(residual, layer.norm2_weight.as<float>(), layer.norm2_bias.as<float>(),
                         nullptr, nullptr, kRefinerEps, normed);
  pass.feed_forward(rows, layer.up, layer.down, Epilogue::silu, gates + config.dim());
}

}  // namespace lacuna
