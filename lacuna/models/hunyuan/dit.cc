// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/dit.h"

#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/layers.h"
#include "lacuna/models/patch.h"

namespace lacuna {
namespace {

struct OwnTimes final : VideoTransformer::Times {
  const HunyuanTransformer* owner = nullptr;
  std::vector<HunyuanTime> times;
};

struct OwnPrompt final : VideoTransformer::Prompt {
  const HunyuanTransformer* owner = nullptr;
  HunyuanText text;
};

const HunyuanConfig& valid(const HunyuanConfig& config) {
  config.validate();
  return config;
}

template <typename Own, typename Any>
const Own& own(const HunyuanTransformer* network, const Any& any, const char* what) {
  const auto* mine = dynamic_cast<const Own*>(&any);
  LACUNA_CHECK(mine != nullptr && mine->owner == network,
               "hunyuanvideo: {} of another network, expected what this one prepared", what);
  return *mine;
}

}  // namespace

HunyuanArchitecture::HunyuanArchitecture(const HunyuanConfig& config) : config_(valid(config)) {}

TransformerSizes HunyuanArchitecture::sizes() const {
  TransformerSizes sizes;
  sizes.num_layers = config_.all_layers();
  sizes.num_heads = config_.num_heads;
  sizes.head_dim = config_.head_dim;
  sizes.ffn_dim = config_.mlp_dim();
  sizes.latent_channels = config_.channels;
  sizes.patch = config_.patch();
  sizes.text_dim = config_.text_dim;
  sizes.text_len = config_.text_len;
  sizes.pooled_dim = config_.pooled_dim;
  sizes.joint_text = true;
  sizes.embedded_guidance = config_.guidance_embeds;
  return sizes;
}

std::unique_ptr<VideoTransformer> HunyuanArchitecture::load(WeightReader& reader) const {
  return std::make_unique<HunyuanTransformer>(config_, reader);
}

HunyuanTransformer::HunyuanTransformer(const HunyuanConfig& config, WeightReader& reader)
    : config_(valid(config)),
      rope_(config.rope_channels, HunyuanConfig::kRopePositions, config.rope_theta),
      patch_weight_(reader.f32(
          "x_embedder.proj.weight",
          {config.dim(), config.channels, config.patch_t, config.patch_side, config.patch_side})),
      patch_bias_(reader.f32("x_embedder.proj.bias", {config.dim()})),
      head_weight_(reader.f32("proj_out.weight", {config.patch_values(), config.dim()})),
      head_bias_(reader.f32("proj_out.bias", {config.patch_values()})),
      head_modulation_(read_linear(reader, "norm_out.linear", 2 * config.dim(), config.dim())),
      conditioning_(config, reader),
      refiner_(config, reader) {
  dual_.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t i = 0; i < config.num_layers; ++i) dual_.emplace_back(config, i, reader);
  single_.reserve(static_cast<size_t>(config.num_single_layers));
  for (int64_t i = 0; i < config.num_single_layers; ++i) single_.emplace_back(config, i, reader);
  reader.finish("hunyuanvideo transformer");
  weights_ = reader.kept();
}

std::unique_ptr<VideoTransformer::Times> HunyuanTransformer::prepare_times(
    Context& ctx, std::span<const double> timesteps, double guidance) const {
  auto prepared = std::make_unique<OwnTimes>();
  prepared->owner = this;
  prepared->times = conditioning_.times(ctx.backend, timesteps, guidance);
  return prepared;
}

std::unique_ptr<VideoTransformer::Prompt> HunyuanTransformer::prepare_prompt(
    Context& ctx, const PromptEmbedding& prompt) const {
  auto prepared = std::make_unique<OwnPrompt>();
  prepared->owner = this;
  prepared->text = conditioning_.text(ctx, prompt.tokens, prompt.pooled);
  return prepared;
}

void HunyuanTransformer::check_input(const Context& ctx, Engine& engine, const Input& input) const {
  LACUNA_CHECK(ctx.compute == DType::f32 || ctx.compute == DType::bf16,
               "hunyuanvideo: compute dtype {}, expected f32 or bf16", dtype_name(ctx.compute));
  LACUNA_CHECK(&engine.backend() == &ctx.backend,
               "hunyuanvideo: engine and context use different backends, expected the same");
  LACUNA_CHECK(input.x.rank == 4 && input.x.dtype == DType::f32 && input.x.contiguous() &&
                   input.x.shape[0] == config_.channels,
               "hunyuanvideo: latent {}, expected [{}, frames, height, width] f32 contiguous",
               input.x.describe(), config_.channels);
  LACUNA_CHECK(!input.first_frame_time,
               "hunyuanvideo: a picture as the first frame, expected none (text-to-video)");
}

void HunyuanTransformer::check_part(const LayerPart& part, int64_t video_tokens) const {
  LACUNA_CHECK(part.begin >= 0 && part.begin <= part.end && part.end <= config_.all_layers(),
               "hunyuanvideo: layers {} to {}, expected a range of 0 to {}", part.begin, part.end,
               config_.all_layers());
  const TensorView& stream = part.residual;
  const int64_t rows = video_tokens + config_.text_len;
  LACUNA_CHECK(stream.rank == 2 && stream.dtype == DType::f32 && stream.contiguous() &&
                   stream.shape[0] == rows && stream.shape[1] == config_.dim(),
               "hunyuanvideo: residual {}, expected [{}, {}] f32 contiguous", stream.describe(),
               rows, config_.dim());
}

void HunyuanTransformer::forward(Context& ctx, Engine& engine, const Input& input,
                                 const LayerPart* part, const TensorView& velocity) const {
  check_input(ctx, engine, input);
  const auto& x = input.x.shape;
  const VideoGrid grid = config_.grid(x[1], x[2], x[3]);
  if (part != nullptr) check_part(*part, grid.tokens());
  const int64_t begin = part == nullptr ? 0 : part->begin;
  const int64_t end = part == nullptr ? config_.all_layers() : part->end;
  LACUNA_CHECK(end < config_.all_layers() || (velocity.rank == 4 && velocity.dtype == DType::f32 &&
                                              velocity.contiguous() && velocity.shape == x),
               "hunyuanvideo: velocity {}, expected {} contiguous", velocity.describe(),
               input.x.describe());
  const std::vector<HunyuanTime>& times = own<OwnTimes>(this, input.times, "times").times;
  LACUNA_CHECK(input.time < times.size(), "hunyuanvideo: timestep {}, expected one of {}",
               input.time, times.size());
  const HunyuanText& text = own<OwnPrompt>(this, input.prompt, "prompt").text;
  HunyuanPass pass{ctx,
                   engine,
                   config_,
                   input.site,
                   grid,
                   rope_.tables(grid),
                   times[input.time],
                   text,
                   HunyuanActivations::take(ctx, config_, grid.tokens(),
                                            part == nullptr ? TensorView{} : part->residual)};
  pass.site.num_layers = static_cast<int>(config_.all_layers());
  if (begin == 0) {
    embed(pass, input.x);
    refiner_.forward(pass);
  }
  activate_condition(pass.time.blocks, pass.text.blocks, pass.act.condition);
  for (int64_t layer = begin; layer < end; ++layer) run_layer(pass, layer);
  if (end == config_.all_layers()) head(pass, velocity);
}

void HunyuanTransformer::embed(const HunyuanPass& pass, const TensorView& x) const {
  const TensorView made = pass.ctx.workspace.mirror("hunyuan.patches.host", pass.act.patches);
  patchify(x, config_.patch(), made);
  pass.ctx.backend.copy(made, pass.act.patches);
  const RowRange video = pass.video_rows();
  pass.ctx.backend.linear(pass.act.patches,
                          patch_weight_.view().reshape({config_.dim(), config_.patch_values()}),
                          patch_bias_.as<float>(), Epilogue::none, nullptr,
                          pass.act.residual.slice(video.begin, video.end));
  const TensorView unused =
      pass.act.residual.slice(pass.text_rows().end, pass.act.residual.shape[0]);
  if (unused.shape[0] == 0) return;
  float zero = 0.0f;
  TensorView zeros = unused;
  zeros.data = &zero;
  zeros.device = Device::cpu;
  zeros.stride = {};
  pass.ctx.backend.copy(zeros, unused);
}

void HunyuanTransformer::run_layer(HunyuanPass& pass, int64_t layer) const {
  pass.ctx.check_cancel();
  pass.site.layer = static_cast<int>(layer);
  if (layer < config_.num_layers) {
    dual_[static_cast<size_t>(layer)].forward(pass);
  } else {
    single_[static_cast<size_t>(layer - config_.num_layers)].forward(pass);
  }
}

void HunyuanTransformer::head(const HunyuanPass& pass, const TensorView& velocity) const {
  const int64_t d = config_.dim();
  const TensorView& rows = pass.act.patches;
  const float* scale = pass.modulate(head_modulation_);
  const float* shift = scale + d;
  for (int64_t begin = 0; begin < pass.grid.tokens(); begin += pass.act.part_rows) {
    const RowRange part{begin, std::min(begin + pass.act.part_rows, pass.grid.tokens())};
    const TensorView normed = pass.act.hidden.reuse(DType::f32, {part.end - part.begin, d});
    pass.norm(part, scale, shift, normed);
    pass.ctx.backend.linear(normed, head_weight_, head_bias_.as<float>(), Epilogue::none, nullptr,
                            rows.slice(part.begin, part.end));
  }
  const TensorView made = pass.ctx.workspace.mirror("hunyuan.patches.host", rows);
  pass.ctx.backend.copy(rows, made);
  unpatchify(made, config_.patch(), PatchOrder::channel_slowest, velocity);
}

}  // namespace lacuna
