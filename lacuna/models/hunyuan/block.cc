// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/block.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"

namespace lacuna {
namespace {

constexpr float kEps = 1e-6f;  // of every norm; no config says another

TensorView of(const TensorView& view, RowRange rows) {
  return view.slice(rows.begin, rows.end);
}

}  // namespace

HunyuanActivations HunyuanActivations::take(Context& ctx, const HunyuanConfig& config,
                                            int64_t video_tokens, const TensorView& residual) {
  const int64_t d = config.dim(), rows = video_tokens + config.text_len;
  Workspace& workspace = ctx.workspace;
  HunyuanActivations act;
  act.part_rows = rows_at_once(rows);
  act.residual = residual.data != nullptr
                     ? residual
                     : workspace.get("hunyuan.residual", DType::f32, {rows, d});
  act.normed = workspace.get("hunyuan.normed", ctx.compute, {rows, d});
  act.q = workspace.get("hunyuan.q", ctx.compute, {rows, d});
  act.k = workspace.get("hunyuan.k", ctx.compute, {rows, d});
  act.v = workspace.get("hunyuan.v", ctx.compute, {rows, d});
  act.patches = workspace.get("hunyuan.patches", DType::f32, {video_tokens, config.patch_values()});
  act.modulation = workspace.host("hunyuan.modulation", DType::f32, {2, 6, d});
  act.condition = workspace.host("hunyuan.condition", ctx.compute, {1, d});
  const int64_t width = std::max(d + config.mlp_dim(), config.refiner_mlp_dim());
  const int64_t hidden = std::max(storage_bytes(ctx.compute, act.part_rows * width),
                                  storage_bytes(DType::f32, act.part_rows * d));
  act.hidden = workspace.get("hunyuan.hidden", DType::u8, {hidden});
  return act;
}

const float* HunyuanPass::modulate(const Linear& linear, int64_t first) const {
  const int64_t d = config.dim();
  float* values = act.modulation.as<float>() + first * d;
  linear.forward(ctx, act.condition, make_view(values, DType::f32, {1, linear.out_features()}));
  return values;
}

void HunyuanPass::norm(RowRange rows, const float* scale, const float* shift,
                       const TensorView& out) const {
  ctx.backend.layer_norm(of(act.residual, rows), nullptr, nullptr, scale, shift, kEps, out);
}

void HunyuanPass::feed_forward(RowRange rows, const Linear& up, const Linear& down,
                               Epilogue activation, const float* gate) const {
  // Fetched once for all parts, each in its own slot: a checkpoint in another dtype is converted
  // here, not per part.
  const TensorView wide = ctx.weight(up, "hunyuan.up"), narrow = ctx.weight(down, "hunyuan.down");
  for (int64_t begin = rows.begin; begin < rows.end; begin += act.part_rows) {
    const RowRange part{begin, std::min(begin + act.part_rows, rows.end)};
    const TensorView hidden =
        act.hidden.reuse(ctx.compute, {part.end - part.begin, up.out_features()});
    ctx.backend.linear(of(act.normed, part), wide, up.bias.as<float>(), activation, nullptr,
                       hidden);
    ctx.backend.linear(hidden, narrow, down.bias.as<float>(), Epilogue::residual, gate,
                       of(act.residual, part));
  }
}

void HunyuanPass::attend() const {
  const auto heads = [&](const TensorView& rows) {
    return heads_view(of(rows, all_rows()), config.num_heads, config.head_dim);
  };
  engine.attend(site, grid, text.rows, heads(act.q), heads(act.k), heads(act.v), heads(act.normed));
}

HunyuanQkv::HunyuanQkv(const HunyuanConfig& config, WeightReader& reader, const std::string& q_name,
                       const std::string& k_name, const std::string& v_name,
                       const std::string& norms)
    : q(read_linear(reader, q_name, config.dim(), config.dim())),
      k(read_linear(reader, k_name, config.dim(), config.dim())),
      v(read_linear(reader, v_name, config.dim(), config.dim())),
      norm_q(reader.f32(norms + "q.weight", {config.head_dim})),
      norm_k(reader.f32(norms + "k.weight", {config.head_dim})) {}

void HunyuanQkv::project(const HunyuanPass& pass, RowRange rows) const {
  const TensorView x = of(pass.act.normed, rows);
  q.forward(pass.ctx, x, of(pass.act.q, rows));
  k.forward(pass.ctx, x, of(pass.act.k, rows));
  v.forward(pass.ctx, x, of(pass.act.v, rows));
}

void HunyuanQkv::norm_heads(const HunyuanPass& pass, RowRange rows) const {
  const RopeTables* rope = rows.begin < pass.video_rows().end ? &pass.rope : nullptr;
  const auto num_heads = static_cast<int32_t>(pass.config.num_heads);
  const auto norm = [&](const TensorView& x, const Tensor& weight) {
    pass.ctx.backend.rms_norm(x, weight.as<float>(), kEps, NormSpan::head, rope, num_heads, x);
  };
  norm(of(pass.act.q, rows), norm_q);
  norm(of(pass.act.k, rows), norm_k);
}

HunyuanDualBlock::HunyuanDualBlock(const HunyuanConfig& config, int64_t index, WeightReader& reader)
    : video_(read_video(config, fmt::format("transformer_blocks.{}.", index), reader)),
      text_(read_text(config, fmt::format("transformer_blocks.{}.", index), reader)) {}

HunyuanDualBlock::Stream HunyuanDualBlock::read_video(const HunyuanConfig& config,
                                                      const std::string& block,
                                                      WeightReader& reader) {
  const int64_t d = config.dim(), f = config.mlp_dim();
  const std::string attn = block + "attn.";
  return {read_linear(reader, block + "norm1.linear", 6 * d, d),
          HunyuanQkv(config, reader, attn + "to_q", attn + "to_k", attn + "to_v", attn + "norm_"),
          read_linear(reader, attn + "to_out.0", d, d),
          read_linear(reader, block + "ff.net.0.proj", f, d),
          read_linear(reader, block + "ff.net.2", d, f)};
}

HunyuanDualBlock::Stream HunyuanDualBlock::read_text(const HunyuanConfig& config,
                                                     const std::string& block,
                                                     WeightReader& reader) {
  const int64_t d = config.dim(), f = config.mlp_dim();
  const std::string attn = block + "attn.";
  return {read_linear(reader, block + "norm1_context.linear", 6 * d, d),
          HunyuanQkv(config, reader, attn + "add_q_proj", attn + "add_k_proj", attn + "add_v_proj",
                     attn + "norm_added_"),
          read_linear(reader, attn + "to_add_out", d, d),
          read_linear(reader, block + "ff_context.net.0.proj", f, d),
          read_linear(reader, block + "ff_context.net.2", d, f)};
}

void HunyuanDualBlock::before(const HunyuanPass& pass, const Stream& stream, RowRange rows,
                              const float* modulation) {
  const int64_t d = pass.config.dim();
  pass.norm(rows, modulation + d, modulation, of(pass.act.normed, rows));
  stream.qkv.project(pass, rows);
  stream.qkv.norm_heads(pass, rows);
}

void HunyuanDualBlock::after(const HunyuanPass& pass, const Stream& stream, RowRange rows,
                             const float* modulation) {
  const int64_t d = pass.config.dim();
  const TensorView normed = of(pass.act.normed, rows);
  stream.out.forward(pass.ctx, normed, of(pass.act.residual, rows), Epilogue::residual,
                     modulation + 2 * d);
  pass.norm(rows, modulation + 4 * d, modulation + 3 * d, normed);
  pass.feed_forward(rows, stream.up, stream.down, Epilogue::gelu_tanh, modulation + 5 * d);
}

void HunyuanDualBlock::forward(const HunyuanPass& pass) const {
  const float* video = pass.modulate(video_.modulation);
  const float* text = pass.modulate(text_.modulation, 6);
  before(pass, video_, pass.video_rows(), video);
  before(pass, text_, pass.text_rows(), text);
  pass.attend();
  after(pass, video_, pass.video_rows(), video);
  after(pass, text_, pass.text_rows(), text);
}

HunyuanSingleBlock::HunyuanSingleBlock(const HunyuanConfig& config, int64_t index,
                                       WeightReader& reader)
    : modulation_(read_linear(reader,
                              fmt::format("single_transformer_blocks.{}.norm.linear", index),
                              3 * config.dim(), config.dim())),
      qkv_(config, reader, fmt::format("single_transformer_blocks.{}.attn.to_q", index),
           fmt::format("single_transformer_blocks.{}.attn.to_k", index),
           fmt::format("single_transformer_blocks.{}.attn.to_v", index),
           fmt::format("single_transformer_blocks.{}.attn.norm_", index)),
      up_(read_linear(reader, fmt::format("single_transformer_blocks.{}.proj_mlp", index),
                      config.mlp_dim(), config.dim())),
      out_(read_linear(reader, fmt::format("single_transformer_blocks.{}.proj_out", index),
                       config.dim(), config.dim() + config.mlp_dim())) {}

void HunyuanSingleBlock::forward(const HunyuanPass& pass) const {
  Context& ctx = pass.ctx;
  const HunyuanActivations& act = pass.act;
  const int64_t d = pass.config.dim(), f = up_.out_features();
  const RowRange rows = pass.all_rows();
  const float* shift = pass.modulate(modulation_);
  const float *scale = shift + d, *gate = shift + 2 * d;
  pass.norm(rows, scale, shift, of(act.normed, rows));
  qkv_.project(pass, rows);
  qkv_.norm_heads(pass, pass.video_rows());
  qkv_.norm_heads(pass, pass.text_rows());
  pass.attend();
  const TensorView up = ctx.weight(up_, "hunyuan.up"), out = ctx.weight(out_, "hunyuan.down");
  for (int64_t begin = 0; begin < rows.end; begin += act.part_rows) {
    const RowRange part{begin, std::min(begin + act.part_rows, rows.end)};
    const TensorView both = act.hidden.reuse(ctx.compute, {part.end - part.begin, d + f});
    // Attention took the place of the normed rows: they are made a second time, where keys were.
    const TensorView normed = of(act.k, part);
    pass.norm(part, scale, shift, normed);
    ctx.backend.copy(of(act.normed, part), both.narrow(1, 0, d));
    ctx.backend.linear(normed, up, up_.bias.as<float>(), Epilogue::gelu_tanh, nullptr,
                       both.narrow(1, d, f));
    ctx.backend.linear(both, out, out_.bias.as<float>(), Epilogue::residual, gate,
                       of(act.residual, part));
  }
}

}  // namespace lacuna
