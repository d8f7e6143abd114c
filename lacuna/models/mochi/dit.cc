// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/dit.h"

#include <algorithm>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"
#include "lacuna/models/mochi/rope.h"

namespace lacuna {
namespace {

constexpr float kHeadNormEps = 1e-6f;

const MochiConfig& validated(const MochiConfig& config) {
  config.validate();
  return config;
}

struct MochiTimes final : VideoTransformer::Times {
  const MochiDit* maker = nullptr;
  Tensor embedded;  // [timesteps, d] f32, on the host
};

struct MochiPrompt final : VideoTransformer::Prompt {
  const MochiDit* maker = nullptr;
  Tensor tokens;  // [valid rows, text_width] f32, in backend memory; empty without tokens
  Tensor pooled;  // [d] f32, on the host
  int64_t rows() const { return tokens.empty() ? 0 : tokens.view().shape[0]; }
};

// What `maker` prepared.
template <typename Own, typename Any>
const Own& own(const Any& prepared, const MochiDit* maker, std::string_view what) {
  const auto* mine = dynamic_cast<const Own*>(&prepared);
  LACUNA_CHECK(mine != nullptr && mine->maker == maker,
               "mochi: {} of another network, expected what this one prepared", what);
  return *mine;
}

}  // namespace

MochiDit::MochiDit(const MochiConfig& config, WeightReader& reader)
    : config_(validated(config)),
      patch_weight_(reader.f32("patch_embed.proj.weight",
                               {config.dim(), config.in_channels, config.patch, config.patch})),
      patch_bias_(reader.f32("patch_embed.proj.bias", {config.dim()})),
      frequencies_(reader.f32("pos_frequencies", {3, config.num_heads, config.head_dim / 2})),
      time_embedder_(config, reader),
      pooler_(config, reader),
      text_embedder_(config, reader),
      head_modulation_(read_linear(reader, "norm_out.linear", 2 * config.dim(), config.dim())),
      head_weight_(reader.f32("proj_out.weight", {config.patch_outputs(), config.dim()})),
      head_bias_(reader.f32("proj_out.bias", {config.patch_outputs()})) {
  blocks_.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    blocks_.emplace_back(config, layer, reader);
  reader.finish("mochi transformer");
  weights_ = reader.kept();
}

std::unique_ptr<VideoTransformer::Times> MochiDit::prepare_times(Context& ctx,
                                                                 std::span<const double> timesteps,
                                                                 double) const {
  auto times = std::make_unique<MochiTimes>();
  times->maker = this;
  times->embedded = time_embedder_.forward(ctx.backend, timesteps);
  return times;
}

std::unique_ptr<VideoTransformer::Prompt> MochiDit::prepare_prompt(
    Context& ctx, const PromptEmbedding& prompt) const {
  const TensorView& tokens = prompt.tokens;
  LACUNA_CHECK(tokens.empty() || (tokens.rank == 2 && tokens.dtype == DType::f32 &&
                                  tokens.contiguous() && tokens.shape[1] == config_.text_dim),
               "mochi: prompt {}, expected [rows, {}] f32 contiguous", tokens.describe(),
               config_.text_dim);
  LACUNA_CHECK(tokens.empty() || tokens.shape[0] <= config_.text_len,
               "mochi: {} text tokens, expected at most {}", tokens.shape[0], config_.text_len);
  auto prepared = std::make_unique<MochiPrompt>();
  prepared->maker = this;
  prepared->tokens = text_embedder_.forward(ctx.backend, tokens);
  prepared->pooled = pooler_.forward(ctx.backend, tokens);
  return prepared;
}

VideoGrid MochiDit::check_inputs(const Context& ctx, Engine& engine, const Input& input,
                                 const TensorView& velocity) const {
  const TensorView& x = input.x;
  LACUNA_CHECK(ctx.compute == DType::f32 || ctx.compute == DType::bf16,
               "mochi: compute dtype {}, expected f32 or bf16", dtype_name(ctx.compute));
  LACUNA_CHECK(&engine.backend() == &ctx.backend,
               "mochi: engine and context use different backends, expected the same");
  LACUNA_CHECK(
      x.rank == 4 && x.dtype == DType::f32 && x.contiguous() && x.shape[0] == config_.in_channels,
      "mochi: latent {}, expected [{}, frames, height, width] f32 contiguous", x.describe(),
      config_.in_channels);
  LACUNA_CHECK(velocity.rank == 4 && velocity.dtype == DType::f32 && velocity.contiguous() &&
                   velocity.shape[0] == config_.out_channels && velocity.shape[1] == x.shape[1] &&
                   velocity.shape[2] == x.shape[2] && velocity.shape[3] == x.shape[3],
               "mochi: velocity {}, expected [{}, {}, {}, {}] f32 contiguous", velocity.describe(),
               config_.out_channels, x.shape[1], x.shape[2], x.shape[3]);
  LACUNA_CHECK(!input.first_frame_time,
               "mochi: a timestep of the first frame alone, expected none (no picture goes in)");
  return config_.grid(x.shape[1], x.shape[2], x.shape[3]);
}

void MochiDit::check_part(const LayerPart& part, int64_t video_tokens) const {
  LACUNA_CHECK(part.begin >= 0 && part.begin <= part.end && part.end <= config_.num_layers,
               "mochi: layers {} to {}, expected a range of 0 to {}", part.begin, part.end,
               config_.num_layers);
  const TensorView& stream = part.residual;
  LACUNA_CHECK(stream.rank == 2 && stream.dtype == DType::f32 && stream.contiguous() &&
                   stream.shape[0] == video_tokens + config_.text_len &&
                   stream.shape[1] == config_.dim(),
               "mochi: residual {}, expected [{}, {}] f32 contiguous", stream.describe(),
               video_tokens + config_.text_len, config_.dim());
}

void MochiDit::forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
                       const TensorView& velocity) const {
  const VideoGrid grid = check_inputs(ctx, engine, input, velocity);
  const auto& times = own<MochiTimes>(input.times, this, "timesteps");
  const auto& prompt = own<MochiPrompt>(input.prompt, this, "prompt");
  const int64_t count = times.embedded.view().shape[0];
  LACUNA_CHECK(input.time < static_cast<size_t>(count),
               "mochi: timestep {} of a schedule, expected one of its {}", input.time, count);
  const int64_t d = config_.dim(), tokens = grid.tokens();
  if (part != nullptr) check_part(*part, tokens);
  const LayerPart whole{0, config_.num_layers, {}};
  const LayerPart& layers = part != nullptr ? *part : whole;
  const TensorView residual = part != nullptr ? part->residual
                                              : ctx.workspace.get("mochi.residual", DType::f32,
                                                                  {tokens + config_.text_len, d});

  MochiPass pass{ctx,
                 engine,
                 config_,
                 input.site,
                 grid,
                 mochi_rope(frequencies_, grid, ctx.workspace),
                 MochiActivations::take(ctx, config_, tokens, prompt.rows(), residual)};
  pass.site.num_layers = static_cast<int>(config_.num_layers);
  const float* time = times.embedded.as<float>() + static_cast<int64_t>(input.time) * d;
  const float* pooled = prompt.pooled.as<float>();
  float* condition = pass.act.condition.as<float>();
  for (int64_t i = 0; i < d; ++i) {
    const float sum = time[i] + pooled[i];
    condition[i] = sum / (1.0f + std::exp(-sum));
  }
  if (layers.begin == 0) {
    embed_patches(pass, input.x);
    if (prompt.rows() > 0) ctx.backend.copy(prompt.tokens, pass.act.text.residual);
  }
  for (int64_t layer = layers.begin; layer < layers.end; ++layer) blocks_[layer].forward(pass);
  if (layers.end == config_.num_layers) head(pass, velocity);
}

void MochiDit::embed_patches(MochiPass& pass, const TensorView& x) const {
  const int64_t inputs = config_.patch_inputs();
  const TensorView rows = pass.act.patches.reuse(DType::f32, {pass.grid.tokens(), inputs});
  const TensorView made = pass.ctx.workspace.mirror("mochi.patches.host", rows);
  patchify(x, config_.patch_size(), made);
  pass.ctx.backend.copy(made, rows);
  pass.ctx.backend.linear(rows, patch_weight_.view().reshape({config_.dim(), inputs}),
                          patch_bias_.as<float>(), Epilogue::none, nullptr,
                          pass.act.video.residual);
}

void MochiDit::head(MochiPass& pass, const TensorView& velocity) const {
  Backend& backend = pass.ctx.backend;
  const int64_t d = config_.dim(), outputs = config_.patch_outputs(), tokens = pass.grid.tokens();
  float* scale = pass.act.video.modulation.as<float>();  // the blocks no longer need it
  const float* shift = scale + d;
  head_modulation_.forward(pass.ctx, pass.act.condition, make_view(scale, DType::f32, {1, 2 * d}));
  const TensorView rows = pass.act.patches.reuse(DType::f32, {tokens, outputs});
  const int64_t step = rows_at_once(tokens);
  for (int64_t begin = 0; begin < tokens; begin += step) {
    const int64_t end = std::min(begin + step, tokens);
    const TensorView normed = pass.act.branch.reuse(DType::f32, {end - begin, d});
    backend.layer_norm(pass.act.video.residual.slice(begin, end), nullptr, nullptr, scale, shift,
                       kHeadNormEps, normed);
    backend.linear(normed, head_weight_, head_bias_.as<float>(), Epilogue::none, nullptr,
                   rows.slice(begin, end));
  }
  const TensorView made = pass.ctx.workspace.mirror("mochi.patches.host", rows);
  backend.copy(rows, made);
  unpatchify(made, config_.patch_size(), PatchOrder::channel_fastest, velocity);
}

}  // namespace lacuna
