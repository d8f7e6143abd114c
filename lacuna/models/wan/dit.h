// SPDX-License-Identifier: Apache-2.0
// The Wan 2.1 / 2.2 video diffusion transformer: text-to-video, image-to-video through channels of
// a condition and image keys, TI2V through per-token timesteps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/core/site.h"
#include "lacuna/core/tensor.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/patch.h"
#include "lacuna/models/rope.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/wan/block.h"
#include "lacuna/models/wan/conditioning.h"
#include "lacuna/models/wan/wan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

class WanDit final : public VideoTransformer {
 public:
  // Asks the reader for diffusers names (see wan_rename). Matrices are views into the reader's
  // source, which must outlive this object. Throws Error on a bad config and, once, listing every
  // missing tensor.
  WanDit(const WanConfig& config, WeightReader& reader);

  const WanConfig& config() const { return config_; }
  // What a backend may keep a copy of (ConstantWeights).
  std::span<const TensorView> weights() const override { return weights_; }

  // context [valid rows, text_dim] f32 from the text encoder; rows up to text_len count as zero
  // padding, which the network attends to (there is no text mask). Once per prompt.
  PreparedText prepare_text(Context& ctx, const TensorView& context, int64_t text_len,
                            const WanTap* tap = nullptr) const;
  // Adds the keys and values of pictures, rows [n, image_dim] f32 of an image encoder. Networks
  // with an image_dim need them, others throw Error.
  void prepare_image(Context& ctx, const TensorView& rows, PreparedText& text,
                     const WanTap* tap = nullptr) const;
  // Timesteps in 0..1000. Once per schedule.
  std::vector<TimeEmbedding> embed_times(Context& ctx, std::span<const double> timesteps,
                                         const WanTap* tap = nullptr) const;

  // Velocity (noise - data) of latent x. Where ctx.team is set its ranks share the work: all of
  // them call with the same x and get all of out; the engine sees this rank's heads (TokenShare).
  //   x   [in_channels, frames, height, width] f32 contiguous, on the host
  //   out [out_channels, frames, height, width] f32 contiguous, on the host
  // `site` gives step, sigma, branch and expert; layer and num_layers are filled in here. The
  // engine's backend must be ctx.backend. Scratch comes from ctx.workspace: activation_bytes().
  void forward(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
               const TimeEmbedding& time, const PreparedText& text, const TensorView& out,
               const WanTap* tap = nullptr) const;
  // The same with a timestep per range of tokens: ranges are non-empty, ascending and cover all
  // tokens of the grid; at most kMaxTokenTimes.
  void forward(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
               std::span<const TokenTime> times, const PreparedText& text, const TensorView& out,
               const WanTap* tap = nullptr) const;
  // The layers of `part` only, all tokens at one timestep. x is read when they begin at 0, out is
  // written when they end at num_layers. Parts run one after the other give the bytes of forward().
  void forward_part(Context& ctx, Engine& engine, const Site& site, const TensorView& x,
                    const TimeEmbedding& time, const PreparedText& text, const LayerPart& part,
                    const TensorView& out) const;

  // As pipelines ask for it: prompts count as padded to config().text_len rows; the guidance scale
  // is no input of this network.
  std::unique_ptr<Times> prepare_times(Context& ctx, std::span<const double> timesteps,
                                       double guidance) const override;
  std::unique_ptr<Prompt> prepare_prompt(Context& ctx,
                                         const PromptEmbedding& prompt) const override;
  void forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
               const TensorView& velocity) const override;

 private:
  void run(WanPass& pass, const TensorView& x, int64_t begin, int64_t end,
           const TensorView& out) const;
  VideoGrid check_inputs(const Context& ctx, Engine& engine, const TensorView& x,
                         std::span<const TokenTime> times, const PreparedText& text,
                         const TensorView& out) const;
  void embed_patches(WanPass& pass, const TensorView& x) const;
  void head(WanPass& pass, const TensorView& out) const;
  PatchSize patch() const { return {config_.patch_t, config_.patch_h, config_.patch_w}; }
  // Rows of all tokens on the host, for latents; `own` are this share's, in backend memory.
  TensorView latent_rows(WanPass& pass, const TensorView& own) const;

  WanConfig config_;
  AxisRope rope_;
  // Patch embedding and head stay f32 in every mode: they are tiny.
  Tensor patch_weight_, patch_bias_;  // [d, patch inputs], [d]
  Tensor head_table_;                 // [2, d]: shift, scale
  Tensor head_weight_, head_bias_;    // [patch outputs, d], [patch outputs]
  TimeEmbedder time_embedder_;
  TextEmbedder text_embedder_;
  std::optional<ImageEmbedder> image_embedder_;
  std::vector<WanBlock> blocks_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
