// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/block.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

constexpr float kStreamEps = 1e-6f, kHeadEps = 1e-5f;

// Rows of a modulation.
constexpr int64_t kAttentionScale = 0, kAttentionGate = 1, kFfnScale = 2, kFfnGate = 3;

MochiStreamBlock::Names video_names(int64_t layer) {
  const std::string block = fmt::format("transformer_blocks.{}.", layer);
  const std::string attention = block + "attn1.";
  return {block + "norm1.linear", attention + "to_q",   attention + "to_k",     attention + "to_v",
          attention + "norm_q",   attention + "norm_k", attention + "to_out.0", block + "ff"};
}

MochiStreamBlock::Names text_names(int64_t layer, bool last) {
  const std::string block = fmt::format("transformer_blocks.{}.", layer);
  const std::string attention = block + "attn1.";
  return {block + (last ? "norm1_context.linear_1" : "norm1_context.linear"),
          attention + "add_q_proj",
          attention + "add_k_proj",
          attention + "add_v_proj",
          attention + "norm_added_q",
          attention + "norm_added_k",
          attention + "to_add_out",
          block + "ff_context"};
}

}  // namespace

MochiActivations MochiActivations::take(Context& ctx, const MochiConfig& config,
                                        int64_t video_tokens, int64_t text_tokens,
                                        const TensorView& residual) {
  const int64_t d = config.dim(), n = video_tokens, width = config.text_width;
  const int64_t used = n + text_tokens, all = n + config.text_len;
  const int64_t element = storage_bytes(ctx.compute, 1);
  Workspace& workspace = ctx.workspace;
  MochiActivations act;
  // Of the longest prompt's size, so that another prompt takes no other memory.
  act.attended = workspace.get("mochi.attended", ctx.compute, {all, d}).slice(0, used);
  act.q = workspace.get("mochi.q", ctx.compute, {all, d}).slice(0, used);
  act.k = workspace.get("mochi.k", ctx.compute, {all, d}).slice(0, used);
  act.v = workspace.get("mochi.v", ctx.compute, {all, d}).slice(0, used);
  act.patches = workspace.get("mochi.patches", DType::f32,
                              {n * std::max(config.patch_inputs(), config.patch_outputs())});
  const int64_t rows = rows_at_once(n), text_rows = rows_at_once(config.text_len);
  const int64_t product =
      element * std::max(rows * config.ffn_dim(), text_rows * config.text_ffn_dim());
  act.product = workspace.get("mochi.product", DType::u8, {product});
  act.branch = workspace.get(
      "mochi.branch", DType::u8,
      {std::max(product, storage_bytes(DType::f32, std::max(rows * d, text_rows * width)))});
  act.condition = workspace.host("mochi.condition", DType::f32, {1, d});

  const auto stream = [&](int64_t begin, int64_t end, int64_t channels) {
    MochiStream part;
    part.residual = residual.slice(begin, end).narrow(1, 0, channels);
    part.attended = act.attended.slice(begin, end);
    part.normed = part.attended.narrow(1, 0, channels);
    part.q = act.q.slice(begin, end);
    part.k = act.k.slice(begin, end);
    part.v = act.v.slice(begin, end);
    return part;
  };
  act.video = stream(0, n, d);
  act.text = stream(n, used, width);
  act.video.modulation = workspace.host("mochi.modulation", DType::f32, {4, d});
  act.text.modulation = workspace.host("mochi.text_modulation", DType::f32, {4, width});
  return act;
}

MochiStreamBlock::MochiStreamBlock(const MochiConfig& config, const Names& names, int64_t width,
                                   int64_t ffn_dim, WeightReader& reader)
    : width_(width), ffn_dim_(ffn_dim), num_heads_(static_cast<int32_t>(config.num_heads)) {
  const int64_t d = config.dim();
  modulation_ = read_linear(reader, names.modulation, (leaves() ? 4 : 1) * width, d);
  q_ = read_linear(reader, names.q, d, width, Bias::none);
  k_ = read_linear(reader, names.k, d, width, Bias::none);
  v_ = read_linear(reader, names.v, d, width, Bias::none);
  norm_q_ = reader.f32(names.norm_q + ".weight", {config.head_dim});
  norm_k_ = reader.f32(names.norm_k + ".weight", {config.head_dim});
  if (!leaves()) return;
  out_ = read_linear(reader, names.out, width, d);
  up_ = read_linear(reader, names.ffn + ".net.0.proj", 2 * ffn_dim, width, Bias::none);
  down_ = read_linear(reader, names.ffn + ".net.2", width, ffn_dim, Bias::none);
}

// Makes factors of what the linear gives: 1 + scale and tanh(gate).
void MochiStreamBlock::modulate(MochiPass& pass, const MochiStream& stream) const {
  const int64_t values = modulation_.out_features();
  float* row = stream.modulation.as<float>();
  modulation_.forward(pass.ctx, pass.act.condition, make_view(row, DType::f32, {1, values}));
  for (int64_t i = 0; i < values; ++i) {
    const int64_t which = i / width_;
    const bool gate = which == kAttentionGate || which == kFfnGate;
    row[i] = gate ? std::tanh(row[i]) : 1.0f + row[i];
  }
}

void MochiStreamBlock::norm(MochiPass& pass, const MochiStream& stream, int64_t row) const {
  pass.ctx.backend.rms_norm(stream.residual, stream.modulation.as<float>() + row * width_,
                            kStreamEps, NormSpan::row, nullptr, num_heads_, stream.normed);
}

void MochiStreamBlock::add_gated(MochiPass& pass, const MochiStream& stream, int64_t begin,
                                 const TensorView& branch, int64_t row) const {
  Backend& backend = pass.ctx.backend;
  const TensorView to = stream.residual.slice(begin, begin + branch.shape[0]);
  backend.rms_norm(branch, stream.modulation.as<float>() + row * width_, kStreamEps, NormSpan::row,
                   nullptr, num_heads_, branch);
  backend.add(to, branch, to);
}

void MochiStreamBlock::enter(MochiPass& pass, const MochiStream& stream,
                             const RopeTables* rope) const {
  Context& ctx = pass.ctx;
  modulate(pass, stream);
  norm(pass, stream, kAttentionScale);
  q_.forward(ctx, stream.normed, stream.q);
  k_.forward(ctx, stream.normed, stream.k);
  v_.forward(ctx, stream.normed, stream.v);
  ctx.backend.rms_norm(stream.q, norm_q_.as<float>(), kHeadEps, NormSpan::head, rope, num_heads_,
                       stream.q);
  ctx.backend.rms_norm(stream.k, norm_k_.as<float>(), kHeadEps, NormSpan::head, rope, num_heads_,
                       stream.k);
}

void MochiStreamBlock::leave(MochiPass& pass, const MochiStream& stream) const {
  Context& ctx = pass.ctx;
  const int64_t rows = stream.rows(), step = rows_at_once(rows);
  const TensorView out = ctx.weight(out_, "weight");  // once, if it has to be converted
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(begin + step, rows);
    const TensorView branch = pass.act.branch.reuse(DType::f32, {end - begin, width_});
    ctx.backend.linear(stream.attended.slice(begin, end), out, out_.bias.as<float>(),
                       Epilogue::none, nullptr, branch);
    add_gated(pass, stream, begin, branch, kAttentionGate);
  }
  feed_forward(pass, stream);
}

void MochiStreamBlock::feed_forward(MochiPass& pass, const MochiStream& stream) const {
  Context& ctx = pass.ctx;
  Backend& backend = ctx.backend;
  norm(pass, stream, kFfnScale);
  const TensorView up = ctx.weight(up_, "mochi.ffn.up");
  const TensorView down = ctx.weight(down_, "mochi.ffn.down");
  const int64_t rows = stream.rows(), step = rows_at_once(rows);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t count = std::min(step, rows - begin);
    const TensorView x = stream.normed.slice(begin, begin + count);
    const TensorView value = pass.act.product.reuse(ctx.compute, {count, ffn_dim_});
    const TensorView gate = pass.act.branch.reuse(ctx.compute, {count, ffn_dim_});
    backend.linear(x, up.slice(0, ffn_dim_), nullptr, Epilogue::none, nullptr, value);
    backend.linear(x, up.slice(ffn_dim_, 2 * ffn_dim_), nullptr, Epilogue::none, nullptr, gate);
    backend.gated_product(Epilogue::silu, gate, value, value);
    const TensorView branch = pass.act.branch.reuse(DType::f32, {count, width_});
    backend.linear(value, down, nullptr, Epilogue::none, nullptr, branch);
    add_gated(pass, stream, begin, branch, kFfnGate);
  }
}

MochiBlock::MochiBlock(const MochiConfig& config, int64_t layer, WeightReader& reader)
    : layer_(layer),
      video_(config, video_names(layer), config.dim(), config.ffn_dim(), reader),
      text_(config, text_names(layer, layer == config.num_layers - 1), config.text_width,
            layer == config.num_layers - 1 ? 0 : config.text_ffn_dim(), reader) {}

void MochiBlock::forward(MochiPass& pass) const {
  pass.ctx.check_cancel();
  pass.site.layer = static_cast<int>(layer_);
  const MochiActivations& act = pass.act;
  const int64_t text_tokens = act.text.rows();
  video_.enter(pass, act.video, &pass.rope);
  if (text_tokens > 0) text_.enter(pass, act.text, nullptr);
  const auto heads = [&](const TensorView& rows) {
    return heads_view(rows, pass.config.num_heads, pass.config.head_dim);
  };
  pass.engine.attend(pass.site, pass.grid, text_tokens, heads(act.q), heads(act.k), heads(act.v),
                     heads(act.attended));
  video_.leave(pass, act.video);
  if (text_tokens > 0 && text_.leaves()) text_.leave(pass, act.text);
}

}  // namespace lacuna
