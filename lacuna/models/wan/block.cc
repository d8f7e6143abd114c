// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/block.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

const float* modulation_row(const WanPass& pass, size_t time, int64_t row) {
  const int64_t dim = pass.config.dim();
  return pass.act.modulation.as<float>() + (static_cast<int64_t>(time) * 6 + row) * dim;
}

}  // namespace

WanActivations WanActivations::take(Context& ctx, const WanConfig& config, int64_t rows) {
  const int64_t d = config.dim();
  Workspace& workspace = ctx.workspace;
  WanActivations act;
  act.chunk_rows = rows_at_once(rows);
  act.residual = workspace.get("wan.residual", DType::f32, {rows, d});
  act.normed = workspace.get("wan.normed", ctx.compute, {rows, d});
  act.q = workspace.get("wan.q", ctx.compute, {rows, d});
  act.k = workspace.get("wan.k", ctx.compute, {rows, d});
  act.v = workspace.get("wan.v", ctx.compute, {rows, d});
  act.patches = workspace.get("wan.patches", DType::f32,
                              {rows * std::max(config.patch_inputs(), config.patch_outputs())});
  act.modulation = workspace.host("wan.modulation", DType::f32, {kMaxTokenTimes, 6, d});
  const int64_t hidden = std::max(act.chunk_rows * config.ffn_dim * storage_bytes(ctx.compute, 1),
                                  act.chunk_rows * d * storage_bytes(DType::f32, 1));
  act.hidden = workspace.get("wan.hidden", DType::u8, {hidden});
  return act;
}

void WanPass::show(std::string_view name, const TensorView& value) const {
  if (tap != nullptr) show_tap(ctx, *tap, name, value);
}

WanBlock::Attention::Attention(const std::string& name, int64_t dim, WeightReader& reader)
    : q(read_linear(reader, name + ".to_q", dim, dim)),
      k(read_linear(reader, name + ".to_k", dim, dim)),
      v(read_linear(reader, name + ".to_v", dim, dim)),
      out(read_linear(reader, name + ".to_out.0", dim, dim)),
      norm_q(reader.f32(name + ".norm_q.weight", {dim})),
      norm_k(reader.f32(name + ".norm_k.weight", {dim})) {}

WanBlock::WanBlock(const WanConfig& config, int64_t layer, WeightReader& reader)
    : layer_(layer),
      num_heads_(config.num_heads),
      head_dim_(config.head_dim),
      eps_(config.eps),
      table_(reader.f32(fmt::format("blocks.{}.scale_shift_table", layer), {1, 6, config.dim()})),
      self_(fmt::format("blocks.{}.attn1", layer), config.dim(), reader),
      cross_(fmt::format("blocks.{}.attn2", layer), config.dim(), reader),
      norm2_weight_(reader.f32(fmt::format("blocks.{}.norm2.weight", layer), {config.dim()})),
      norm2_bias_(reader.f32(fmt::format("blocks.{}.norm2.bias", layer), {config.dim()})),
      up_(read_linear(reader, fmt::format("blocks.{}.ffn.net.0.proj", layer), config.ffn_dim,
                      config.dim())),
      down_(read_linear(reader, fmt::format("blocks.{}.ffn.net.2", layer), config.dim(),
                        config.ffn_dim)) {
  if (config.image_dim == 0) return;
  const std::string name = fmt::format("blocks.{}.attn2", layer);
  const int64_t d = config.dim();
  image_ = {read_linear(reader, name + ".add_k_proj", d, d),
            read_linear(reader, name + ".add_v_proj", d, d),
            reader.f32(name + ".norm_added_k.weight", {d})};
}

void WanBlock::prepare_text(Context& ctx, const TensorView& embedded, Tensor& k, Tensor& v) const {
  prepare(ctx, embedded, cross_.k, cross_.v, cross_.norm_k, k, v);
}

void WanBlock::prepare_image(Context& ctx, const TensorView& embedded, Tensor& k, Tensor& v) const {
  LACUNA_CHECK(image_.has_value(), "wan: pictures for a network without image keys");
  prepare(ctx, embedded, image_->k, image_->v, image_->norm_k, k, v);
}

void WanBlock::prepare(Context& ctx, const TensorView& embedded, const Linear& to_k,
                       const Linear& to_v, const Tensor& norm_k, Tensor& k, Tensor& v) const {
  const int64_t keys = embedded.shape[0];
  k = Tensor(ctx.compute, {keys, num_heads_, head_dim_}, ctx.backend);
  v = Tensor(ctx.compute, {keys, num_heads_, head_dim_}, ctx.backend);
  const TensorView k_rows = k.view().reshape({keys, num_heads_ * head_dim_});
  const TensorView v_rows = v.view().reshape({keys, num_heads_ * head_dim_});
  to_k.forward(ctx, embedded, k_rows);
  to_v.forward(ctx, embedded, v_rows);
  ctx.backend.rms_norm(k_rows, norm_k.as<float>(), eps_, NormSpan::row, nullptr,
                       static_cast<int32_t>(num_heads_), k_rows);
}

void WanBlock::forward(WanPass& pass) const {
  pass.ctx.check_cancel();
  pass.site.layer = static_cast<int>(layer_);
  modulate(pass);
  self_attention(pass);
  cross_attention(pass);
  feed_forward(pass);
  pass.show(fmt::format("blocks.{}", layer_), pass.act.residual);
}

void WanBlock::modulate(WanPass& pass) const {
  const int64_t values = 6 * pass.config.dim();
  const float* table = table_.as<float>();
  for (size_t i = 0; i < pass.times.size(); ++i) {
    const float* time = pass.times[i].time->modulation.as<float>();
    float* sum = pass.act.modulation.as<float>() + static_cast<int64_t>(i) * values;
    for (int64_t j = 0; j < values; ++j) sum[j] = table[j] + time[j];
  }
}

void WanBlock::modulated_norm(WanPass& pass, int64_t shift_row, int64_t scale_row) const {
  for (size_t i = 0; i < pass.times.size(); ++i) {
    const TokenTime& rows = pass.times[i];
    pass.ctx.backend.layer_norm(pass.act.residual.slice(rows.begin, rows.end), nullptr, nullptr,
                                modulation_row(pass, i, scale_row),
                                modulation_row(pass, i, shift_row), eps_,
                                pass.act.normed.slice(rows.begin, rows.end));
  }
}

void WanBlock::add_gated(WanPass& pass, const Linear& linear, int64_t gate_row) const {
  for (size_t i = 0; i < pass.times.size(); ++i) {
    const TokenTime& rows = pass.times[i];
    linear.forward(pass.ctx, pass.act.normed.slice(rows.begin, rows.end),
                   pass.act.residual.slice(rows.begin, rows.end), Epilogue::residual,
                   modulation_row(pass, i, gate_row));
  }
}

void WanBlock::self_attention(WanPass& pass) const {
  Context& ctx = pass.ctx;
  const WanActivations& act = pass.act;
  const int32_t num_heads = static_cast<int32_t>(num_heads_);
  modulated_norm(pass, 0, 1);
  self_.q.forward(ctx, act.normed, act.q);
  self_.k.forward(ctx, act.normed, act.k);
  self_.v.forward(ctx, act.normed, act.v);
  if (pass.tap != nullptr) {
    // The fused kernel below leaves no value between norm and rotation.
    const Tensor normed_q(DType::f32, {pass.rows(), pass.config.dim()});
    ctx.backend.rms_norm(act.q, self_.norm_q.as<float>(), eps_, NormSpan::row, nullptr, num_heads,
                         normed_q);
    pass.show(tap_name("attn1.norm_q"), normed_q);
  }
  for (const TokenShare::Box& box : pass.boxes) {
    const TensorView q = act.q.slice(box.begin, box.end), k = act.k.slice(box.begin, box.end);
    ctx.backend.rms_norm(q, self_.norm_q.as<float>(), eps_, NormSpan::row, &box.rope, num_heads, q);
    ctx.backend.rms_norm(k, self_.norm_k.as<float>(), eps_, NormSpan::row, &box.rope, num_heads, k);
  }
  attend(pass);
  tap_linear(pass, "attn1", self_.out);
  add_gated(pass, self_.out, 2);
}

void WanBlock::attend(WanPass& pass) const {
  const WanActivations& act = pass.act;
  TensorView q = act.q, k = act.k, v = act.v, out = act.normed;
  if (!pass.share.whole()) {
    q = pass.share.to_heads(pass.ctx, act.q, "wan.q.heads");
    k = pass.share.to_heads(pass.ctx, act.k, "wan.k.heads");
    v = pass.share.to_heads(pass.ctx, act.v, "wan.v.heads");
    out = pass.ctx.workspace.host("wan.out.heads", q.dtype, {q.shape[0], q.shape[1]});
  }
  const auto heads = [&](const TensorView& rows) {
    return heads_view(rows, pass.share.heads(), head_dim_);
  };
  pass.engine.attend(pass.site, pass.grid, 0, heads(q), heads(k), heads(v), heads(out));
  if (!pass.share.whole()) pass.share.to_tokens(pass.ctx, out, act.normed);
}

void WanBlock::cross_attention(WanPass& pass) const {
  Context& ctx = pass.ctx;
  const WanActivations& act = pass.act;
  ctx.backend.layer_norm(act.residual, norm2_weight_.as<float>(), norm2_bias_.as<float>(), nullptr,
                         nullptr, eps_, act.normed);
  pass.show(tap_name("norm2"), act.normed);
  cross_.q.forward(ctx, act.normed, act.q);
  ctx.backend.rms_norm(act.q, cross_.norm_q.as<float>(), eps_, NormSpan::row, nullptr,
                       static_cast<int32_t>(num_heads_), act.q);

  const int64_t keys = pass.text.keys, dim = pass.config.dim();
  AttendParams params = whole_attention(act.q, pass.text.k[layer_].view().reshape({keys, dim}),
                                        pass.text.v[layer_].view().reshape({keys, dim}), act.normed,
                                        num_heads_, head_dim_);
  params.bias = pass.text.bias.empty() ? nullptr : pass.text.bias.as<float>();
  ctx.backend.attend(params);
  if (image_) {
    const int64_t rows = pass.text.image_keys;
    ctx.backend.attend(whole_attention(act.q, pass.text.image_k[layer_].view().reshape({rows, dim}),
                                       pass.text.image_v[layer_].view().reshape({rows, dim}), act.k,
                                       num_heads_, head_dim_));
    ctx.backend.add(act.normed, act.k, act.normed);
  }
  tap_linear(pass, "attn2", cross_.out);
  cross_.out.forward(ctx, act.normed, act.residual, Epilogue::residual, nullptr);
}

void WanBlock::feed_forward(WanPass& pass) const {
  modulated_norm(pass, 3, 4);
  tap_feed_forward(pass);
  // Fetched once for all chunks, each in its own slot: a checkpoint in another dtype is converted
  // here, not per chunk.
  const TensorView up = pass.ctx.weight(up_, "wan.ffn.up");
  const TensorView down = pass.ctx.weight(down_, "wan.ffn.down");
  for (size_t i = 0; i < pass.times.size(); ++i) {
    const float* gate = modulation_row(pass, i, 5);
    const TokenTime& rows = pass.times[i];
    for (int64_t begin = rows.begin; begin < rows.end; begin += pass.act.chunk_rows) {
      const int64_t end = std::min(begin + pass.act.chunk_rows, rows.end);
      feed_forward_rows(pass, up, down, begin, end, gate);
    }
  }
}

void WanBlock::feed_forward_rows(WanPass& pass, const TensorView& up, const TensorView& down,
                                 int64_t begin, int64_t end, const float* gate) const {
  Context& ctx = pass.ctx;
  const TensorView hidden = pass.act.hidden.reuse(ctx.compute, {end - begin, pass.config.ffn_dim});
  ctx.backend.linear(pass.act.normed.slice(begin, end), up, up_.bias.as<float>(),
                     Epilogue::gelu_tanh, nullptr, hidden);
  ctx.backend.linear(hidden, down, down_.bias.as<float>(), Epilogue::residual, gate,
                     pass.act.residual.slice(begin, end));
}

std::string WanBlock::tap_name(std::string_view name) const {
  return fmt::format("blocks.{}.{}", layer_, name);
}

void WanBlock::tap_linear(WanPass& pass, std::string_view name, const Linear& linear) const {
  if (pass.tap == nullptr) return;
  const Tensor value(DType::f32, {pass.rows(), pass.config.dim()});
  linear.forward(pass.ctx, pass.act.normed, value);
  pass.show(tap_name(name), value);
}

void WanBlock::tap_feed_forward(WanPass& pass) const {
  if (pass.tap == nullptr) return;
  const Tensor hidden(pass.ctx.compute, {pass.rows(), pass.config.ffn_dim});
  const Tensor value(DType::f32, {pass.rows(), pass.config.dim()});
  up_.forward(pass.ctx, pass.act.normed, hidden, Epilogue::gelu_tanh);
  down_.forward(pass.ctx, hidden, value);
  pass.show(tap_name("ffn"), value);
}

}  // namespace lacuna
