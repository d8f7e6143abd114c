// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/llama_text.h"

#include <fmt/format.h>

#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {

LlamaTextEncoder::LlamaTextEncoder(const LlamaConfig& config, WeightSource& source,
                                   const LlamaNames& names, int64_t skipped_layers)
    : config_(config), adjacent_pairs_(names.gguf) {
  config_.validate();
  LACUNA_CHECK(skipped_layers >= 1 && skipped_layers < config_.num_layers,
               "llama: {} layers skipped of {}, expected at least 1 of either kind", skipped_layers,
               config_.num_layers);
  WeightReader reader(source,
                      [&names](std::string_view name) { return llama_source_name(name, names); });
  const int64_t d = config_.dim, f = config_.ffn_dim;
  const int64_t inner = config_.num_heads * config_.head_dim;
  const int64_t kv = config_.num_kv_heads * config_.head_dim;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return read_scaled_linear(reader, name, out, in);
  };
  // Read by the host alone, a row here and there.
  embedding_ = reader.unscaled("embed_tokens.weight", {config_.vocab_size, d});
  for (int64_t i = 0; i < config_.num_layers - skipped_layers; ++i) {
    const std::string p = fmt::format("layers.{}.", i);
    Layer layer;
    layer.attn_norm = reader.f32(p + "input_layernorm.weight", {d});
    layer.q = linear(p + "self_attn.q_proj", inner, d);
    layer.k = linear(p + "self_attn.k_proj", kv, d);
    layer.v = linear(p + "self_attn.v_proj", kv, d);
    layer.o = linear(p + "self_attn.o_proj", d, inner);
    layer.feed_forward.norm = reader.f32(p + "post_attention_layernorm.weight", {d});
    layer.feed_forward.gate = linear(p + "mlp.gate_proj", f, d);
    layer.feed_forward.up = linear(p + "mlp.up_proj", f, d);
    layer.feed_forward.down = linear(p + "mlp.down_proj", d, f);
    layers_.push_back(std::move(layer));
  }
  reader.finish("llama");
  weights_.assign(reader.kept().begin() + 1, reader.kept().end());  // without the embedding
}

LlamaTextEncoder::Positions LlamaTextEncoder::positions(Context& ctx, int64_t n) const {
  const int64_t pairs = config_.head_dim / 2;
  Positions out;
  out.bias = causal_bias(ctx, n);
  out.cos.resize(static_cast<size_t>(n * pairs));
  out.sin.resize(out.cos.size());
  for (int64_t c = 0; c < pairs; ++c) {
    const double exponent = -static_cast<double>(c) / static_cast<double>(pairs);
    const double frequency = std::pow(config_.rope_theta, exponent);
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i * pairs + c);
      out.cos[at] = static_cast<float>(std::cos(static_cast<double>(i) * frequency));
      out.sin[at] = static_cast<float>(std::sin(static_cast<double>(i) * frequency));
    }
  }
  return out;
}

// linear(u) with every head rotated by its row's position. By the host, in f32: backends rotate
// adjacent pairs as a part of rms_norm only, which Llama does not have here, and a prompt of 351
// rows is 1.8 million values a layer beside the 218 million weights that the layer reads.
TensorView LlamaTextEncoder::rotated(Context& ctx, const Linear& linear, const TensorView& u,
                                     const Positions& positions, std::string_view slot) const {
  const int64_t n = u.shape[0], channels = linear.out_features(), pairs = config_.head_dim / 2;
  const TensorView made = ctx.workspace.get("llama.unrotated", DType::f32, {n, channels});
  linear.forward(ctx, u, made);
  const TensorView rows = ctx.workspace.mirror("llama.rotated", made);
  ctx.backend.copy(made, rows);
  const int64_t step = adjacent_pairs_ ? 2 : 1, other = adjacent_pairs_ ? 1 : pairs;
  for (int64_t i = 0; i < n; ++i) {
    const float* cos = positions.cos.data() + i * pairs;
    const float* sin = positions.sin.data() + i * pairs;
    float* row = rows.as<float>() + i * channels;
    for (float* head = row; head < row + channels; head += config_.head_dim) {
      for (int64_t c = 0; c < pairs; ++c) {
        float& a = head[c * step];
        float& b = head[c * step + other];
        const float turned = a * cos[c] - b * sin[c];
        b = b * cos[c] + a * sin[c];
        a = turned;
      }
    }
  }
  const TensorView out = ctx.workspace.get(slot, ctx.compute, {n, channels});
  ctx.backend.copy(rows, out);
  return out;
}

void LlamaTextEncoder::attend(Context& ctx, const Layer& layer, const Positions& positions,
                              const TensorView& x) const {
  const int64_t n = x.shape[0], kv_heads = config_.num_kv_heads, head_dim = config_.head_dim;
  const TensorView u = ctx.workspace.get("text.u", ctx.compute, {n, config_.dim});
  ctx.backend.rms_norm(x, layer.attn_norm.as<float>(), config_.eps, NormSpan::row, nullptr, 0, u);
  const TensorView q = rotated(ctx, layer.q, u, positions, "llama.q");
  const TensorView k = rotated(ctx, layer.k, u, positions, "llama.k");
  const TensorView v = ctx.workspace.get("llama.v", ctx.compute, {n, kv_heads * head_dim});
  layer.v.forward(ctx, u, v);
  const TensorView out =
      ctx.workspace.get("llama.attn", ctx.compute, {n, config_.num_heads * head_dim});

  // Query head g * group + j goes with key head g. One call for every j takes each key head once,
  // so keys and values are not repeated.
  const int64_t group = config_.num_heads / kv_heads;
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  for (int64_t j = 0; j < group; ++j) {
    const auto query_heads = [&](const TensorView& rows) {
      return heads_view(rows, config_.num_heads, head_dim).narrow(0, j, kv_heads, group);
    };
    AttendParams params =
        self_attention(query_heads(q), heads_view(k, kv_heads, head_dim),
                       heads_view(v, kv_heads, head_dim), query_heads(out), scale);
    params.bias = positions.bias;
    params.bias_q_stride = -1;
    ctx.backend.attend(params);
  }
  layer.o.forward(ctx, out, x, Epilogue::residual);
}

Tensor LlamaTextEncoder::encode(Context& ctx, std::span<const int32_t> ids,
                                int64_t first_row) const {
  check_token_ids("llama", ids, kMaxTokens, config_.vocab_size);
  const auto n = static_cast<int64_t>(ids.size());
  LACUNA_CHECK(first_row >= 0 && first_row < n, "llama: rows from {} on of {} tokens, expected one",
               first_row, n);
  const Tensor x = embed_tokens(ctx, embedding_, ids);
  const Positions at = positions(ctx, n);
  for (const Layer& layer : layers_) {
    ctx.check_cancel();  // a layer of 8 billion parameters is a second of reading
    attend(ctx, layer, at, x);
    layer.feed_forward.add_to(ctx, config_.eps, Epilogue::silu, x);
  }
  Tensor out(DType::f32, {n - first_row, config_.dim});
  ctx.backend.copy(x.view().slice(first_row, n), out);
  return out;
}

}  // namespace lacuna
