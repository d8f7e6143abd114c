// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/dit.h"

#include <algorithm>
#include <cmath>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

const WanConfig& validated(const WanConfig& config) {
  config.validate();
  return config;
}

struct WanTimes final : VideoTransformer::Times {
  std::vector<TimeEmbedding> embeddings;
};

struct WanPrompt final : VideoTransformer::Prompt {
  PreparedText text;
};

// The ranges of a share's rows.
std::vector<TokenTime> own_times(std::span<const TokenTime> times, const TokenShare& share) {
  std::vector<TokenTime> own;
  for (const TokenTime& range : times) {
    const int64_t begin = std::max(range.begin, share.begin());
    const int64_t end = std::min(range.end, share.end());
    if (begin < end) own.push_back({begin - share.begin(), end - share.begin(), range.time});
  }
  return own;
}

}  // namespace

WanDit::WanDit(const WanConfig& config, WeightReader& reader)
    : config_(validated(config)),
      rope_(config.rope_channels(), config.rope_max_positions, config.rope_theta),
      patch_weight_(reader.f32(
          "patch_embedding.weight",
          {config.dim(), config.in_channels, config.patch_t, config.patch_h, config.patch_w})),
      patch_bias_(reader.f32("patch_embedding.bias", {config.dim()})),
      head_table_(reader.f32("scale_shift_table", {1, 2, config.dim()})),
      head_weight_(reader.f32("proj_out.weight", {config.patch_outputs(), config.dim()})),
      head_bias_(reader.f32("proj_out.bias", {config.patch_outputs()})),
      time_embedder_(config, reader),
      text_embedder_(config, reader) {
  if (config.image_dim > 0) image_embedder_.emplace(config, reader);
  blocks_.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks_.emplace_back(config, layer, reader);
  }
  reader.finish("wan transformer");
  weights_ = reader.kept();
}

std::vector<TimeEmbedding> WanDit::embed_times(Context& ctx, std::span<const double> timesteps,
                                               const WanTap* tap) const {
  return time_embedder_.prepare(ctx.backend, timesteps, tap);
}

PreparedText WanDit::prepare_text(Context& ctx, const TensorView& context, int64_t text_len,
                                  const WanTap* tap) const {
  const Tensor embedded = text_embedder_.forward(ctx, context, text_len, tap);
  PreparedText text;
  text.keys = embedded.view().shape[0];
  const int64_t padding = text_len - context.shape[0];
  if (padding > 0) {
    text.bias = Tensor::zeros(DType::f32, {text.keys});
    text.bias.as<float>()[text.keys - 1] =
        static_cast<float>(std::log(static_cast<double>(padding)));
  }
  text.k.resize(blocks_.size());
  text.v.resize(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].prepare_text(ctx, embedded, text.k[i], text.v[i]);
  }
  return text;
}

void WanDit::prepare_image(Context& ctx, const TensorView& rows, PreparedText& text,
                           const WanTap* tap) const {
  LACUNA_CHECK(image_embedder_.has_value(), "wan: image rows {}, expected none of this network",
               rows.describe());
  const Tensor embedded = image_embedder_->forward(ctx, rows, tap);
  text.image_keys = rows.shape[0];
  text.image_k.resize(blocks_.size());
  text.image_v.resize(blocks_.size());
  for (size_t i = 0; i < blocks_.size(); ++i)
    blocks_[i].prepare_image(ctx, embedded, text.image_k[i], text.image_v[i]);
}

VideoGrid WanDit::check_inputs(const Context& ctx, Engine& engine, const TensorView& x,
                               std::span<const TokenTime> times, const PreparedText& text,
                               const TensorView& out) const {
  LACUNA_CHECK(ctx.compute == DType::f32 || ctx.compute == DType::bf16,
               "wan: compute dtype {}, expected f32 or bf16", dtype_name(ctx.compute));
  LACUNA_CHECK(&engine.backend() == &ctx.backend,
               "wan: engine and context use different backends, expected the same");
  LACUNA_CHECK(
      x.rank == 4 && x.dtype == DType::f32 && x.contiguous() && x.shape[0] == config_.in_channels,
      "wan: latent {}, expected [{}, frames, height, width] f32 contiguous", x.describe(),
      config_.in_channels);
  LACUNA_CHECK(out.rank == 4 && out.dtype == DType::f32 && out.contiguous() &&
                   out.shape[0] == config_.out_channels && out.shape[1] == x.shape[1] &&
                   out.shape[2] == x.shape[2] && out.shape[3] == x.shape[3],
               "wan: output {}, expected [{}, {}, {}, {}] f32 contiguous", out.describe(),
               config_.out_channels, x.shape[1], x.shape[2], x.shape[3]);
  const VideoGrid grid = config_.grid(x.shape[1], x.shape[2], x.shape[3]);
  LACUNA_CHECK(!times.empty() && static_cast<int64_t>(times.size()) <= kMaxTokenTimes,
               "wan: {} timestep ranges, expected 1..{}", times.size(), kMaxTokenTimes);
  int64_t begin = 0;
  for (const TokenTime& range : times) {
    LACUNA_CHECK(range.begin == begin && range.end > begin,
                 "wan: timestep range {}..{}, expected a non-empty one from {}", range.begin,
                 range.end, begin);
    LACUNA_CHECK(range.time != nullptr && range.time->modulation.numel() == 6 * config_.dim(),
                 "wan: time embedding of another model, expected width {}", config_.dim());
    begin = range.end;
  }
  LACUNA_CHECK(begin == grid.tokens(), "wan: timesteps for {} tokens, expected {}", begin,
               grid.tokens());
  LACUNA_CHECK(text.k.size() == blocks_.size() && text.v.size() == blocks_.size() &&
                   text.k[0].numel() == text.keys * config_.dim(),
               "wan: text prepared for {} layers, expected {} layers of this model", text.k.size(),
               blocks_.size());
  LACUNA_CHECK(text.image_k.size() == (config_.image_dim > 0 ? blocks_.size() : 0),
               "wan: pictures prepared for {} layers, expected {} layers of this model",
               text.image_k.size(), config_.image_dim > 0 ? blocks_.size() : 0);
  LACUNA_CHECK(text.k[0].view().dtype == ctx.compute, "wan: text prepared in {}, expected {}",
               dtype_name(text.k[0].view().dtype), dtype_name(ctx.compute));
  return grid;
}

void WanDit::forward(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
                     const TimeEmbedding& time, const PreparedText& text, const TensorView& out,
                     const WanTap* tap) const {
  LACUNA_CHECK(x.rank == 4, "wan: latent {}, expected [channels, frames, height, width]",
               x.describe());
  const VideoGrid grid = config_.grid(x.shape[1], x.shape[2], x.shape[3]);
  const TokenTime all{0, grid.tokens(), &time};
  forward(ctx, engine, site, x, {&all, 1}, text, out, tap);
}

void WanDit::forward(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
                     std::span<const TokenTime> times, const PreparedText& text,
                     const TensorView& out, const WanTap* tap) const {
  const VideoGrid grid = check_inputs(ctx, engine, x, times, text, out);
  LACUNA_CHECK(tap == nullptr || ctx.team == nullptr, "wan: taps of one process among several");
  const TokenShare share(grid, config_.num_heads, ctx.team);
  WanPass pass{ctx,
               engine,
               config_,
               site,
               grid,
               share,
               share.boxes(rope_),
               own_times(times, share),
               text,
               WanActivations::take(ctx, config_, share.tokens()),
               tap};
  run(pass, x, 0, config_.num_layers, out);
}

void WanDit::forward_part(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
                          const TimeEmbedding& time, const PreparedText& text,
                          const LayerPart& part, const TensorView& out) const {
  LACUNA_CHECK(x.rank == 4, "wan: latent {}, expected [channels, frames, height, width]",
               x.describe());
  const TokenTime all{0, config_.grid(x.shape[1], x.shape[2], x.shape[3]).tokens(), &time};
  const VideoGrid grid = check_inputs(ctx, engine, x, {&all, 1}, text, out);
  LACUNA_CHECK(part.begin >= 0 && part.begin <= part.end && part.end <= config_.num_layers,
               "wan: layers {} to {}, expected a range of 0 to {}", part.begin, part.end,
               config_.num_layers);
  const TensorView& stream = part.residual;
  LACUNA_CHECK(stream.rank == 2 && stream.dtype == DType::f32 && stream.contiguous() &&
                   stream.shape[0] == grid.tokens() && stream.shape[1] == config_.dim(),
               "wan: residual {}, expected [{}, {}] f32 contiguous", stream.describe(),
               grid.tokens(), config_.dim());
  LACUNA_CHECK(ctx.team == nullptr, "wan: part of a forward in one process among several");
  const TokenShare share(grid, config_.num_heads, nullptr);
  WanPass pass{ctx,
               engine,
               config_,
               site,
               grid,
               share,
               share.boxes(rope_),
               {all},
               text,
               WanActivations::take(ctx, config_, grid.tokens())};
  pass.act.residual = stream;
  run(pass, x, part.begin, part.end, out);
}

std::unique_ptr<VideoTransformer::Times> WanDit::prepare_times(Context& ctx,
                                                               std::span<const double> timesteps,
                                                               double /*guidance*/) const {
  auto times = std::make_unique<WanTimes>();
  times->embeddings = embed_times(ctx, timesteps);
  return times;
}

std::unique_ptr<VideoTransformer::Prompt> WanDit::prepare_prompt(
    Context& ctx, const PromptEmbedding& prompt) const {
  auto prepared = std::make_unique<WanPrompt>();
  prepared->text = prepare_text(ctx, prompt.tokens, config_.text_len);
  if (config_.image_dim > 0 || !prompt.image.empty())
    prepare_image(ctx, prompt.image, prepared->text);
  return prepared;
}

void WanDit::forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
                     const TensorView& velocity) const {
  const auto* times = dynamic_cast<const WanTimes*>(&input.times);
  const auto* prompt = dynamic_cast<const WanPrompt*>(&input.prompt);
  LACUNA_CHECK(times != nullptr && prompt != nullptr,
               "wan: times or prompt prepared by another network, expected this one");
  const TimeEmbedding& time = times->embeddings.at(input.time);
  if (part != nullptr) {
    LACUNA_CHECK(!input.first_frame_time,
                 "wan: part of a forward with a first frame, expected all tokens at one timestep");
    return forward_part(ctx, engine, input.site, input.x, time, prompt->text, *part, velocity);
  }
  if (!input.first_frame_time)
    return forward(ctx, engine, input.site, input.x, time, prompt->text, velocity);
  const auto& shape = input.x.shape;
  const VideoGrid grid = config_.grid(shape[1], shape[2], shape[3]);
  const int64_t tokens = grid.tokens(), of_frame = grid.tokens_per_frame();
  const TokenTime ranges[] = {{0, of_frame, &times->embeddings.at(*input.first_frame_time)},
                              {of_frame, tokens, &time}};
  forward(ctx, engine, input.site, input.x, {ranges, tokens > of_frame ? 2u : 1u}, prompt->text,
          velocity);
}

void WanDit::run(WanPass& pass, const TensorView& x, int64_t begin, int64_t end,
                 const TensorView& out) const {
  pass.site.num_layers = static_cast<int>(config_.num_layers);
  if (begin == 0) embed_patches(pass, x);
  for (int64_t layer = begin; layer < end; ++layer) blocks_[layer].forward(pass);
  if (end == config_.num_layers) head(pass, out);
}

TensorView WanDit::latent_rows(WanPass& pass, const TensorView& own) const {
  if (pass.share.whole()) return pass.ctx.workspace.mirror("wan.patches.host", own);
  return pass.ctx.workspace.host("wan.patches.host", DType::f32,
                                 {pass.grid.tokens(), own.shape[1]});
}

void WanDit::embed_patches(WanPass& pass, const TensorView& x) const {
  const int64_t inputs = config_.patch_inputs();
  const TensorView rows = pass.act.patches.reuse(DType::f32, {pass.rows(), inputs});
  const TensorView made = latent_rows(pass, rows);
  patchify(x, patch(), made);
  pass.ctx.backend.copy(made.slice(pass.share.begin(), pass.share.end()), rows);
  pass.ctx.backend.linear(rows, patch_weight_.view().reshape({config_.dim(), inputs}),
                          patch_bias_.as<float>(), Epilogue::none, nullptr, pass.act.residual);
  pass.show("patch_embedding", pass.act.residual);
}

void WanDit::head(WanPass& pass, const TensorView& out) const {
  const int64_t d = config_.dim();
  const int64_t outputs = config_.patch_outputs();
  const TensorView rows = pass.act.patches.reuse(DType::f32, {pass.rows(), outputs});
  float* shift = pass.act.modulation.as<float>();  // the blocks no longer need it
  float* scale = shift + d;
  const float* table = head_table_.as<float>();
  for (const TokenTime& range : pass.times) {
    const float* temb = range.time->temb.as<float>();
    for (int64_t j = 0; j < d; ++j) {
      shift[j] = table[j] + temb[j];
      scale[j] = table[d + j] + temb[j];
    }
    for (int64_t begin = range.begin; begin < range.end; begin += pass.act.chunk_rows) {
      const int64_t end = std::min(begin + pass.act.chunk_rows, range.end);
      const TensorView normed = pass.act.hidden.reuse(DType::f32, {end - begin, d});
      pass.ctx.backend.layer_norm(pass.act.residual.slice(begin, end), nullptr, nullptr, scale,
                                  shift, config_.eps, normed);
      pass.ctx.backend.linear(normed, head_weight_, head_bias_.as<float>(), Epilogue::none, nullptr,
                              rows.slice(begin, end));
    }
  }
  pass.show("proj_out", rows);
  const TensorView velocity = latent_rows(pass, rows);
  pass.ctx.backend.copy(rows, velocity.slice(pass.share.begin(), pass.share.end()));
  if (!pass.share.whole()) pass.share.gather(velocity);
  unpatchify(velocity, patch(), PatchOrder::channel_fastest, out);
}

}  // namespace lacuna
