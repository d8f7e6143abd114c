// SPDX-License-Identifier: Apache-2.0
// The Mochi 1 video diffusion transformer (text-to-video).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/mochi/block.h"
#include "lacuna/models/mochi/conditioning.h"
#include "lacuna/models/mochi/mochi_config.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// A Mochi network to pipelines.
class MochiArchitecture final : public Architecture {
 public:
  // Throws Error on a config that is not valid.
  explicit MochiArchitecture(const MochiConfig& config);
  const MochiConfig& config() const { return config_; }
  std::string_view family() const override { return "mochi"; }
  TransformerSizes sizes() const override;
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const override {
    return config_.grid(frames, height, width);
  }
  int64_t num_parameters() const override { return config_.num_parameters(); }
  ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const override {
    return config_.flops(video_tokens, text_tokens);
  }
  int64_t activation_bytes(int64_t video_tokens, DType compute) const override {
    return mochi_activation_bytes(config_, video_tokens, compute);
  }
  int64_t prompt_bytes(DType) const override { return mochi_prompt_bytes(config_); }
  PassingWeights passing_weights(DType compute, double stored, bool lora) const override {
    return mochi_passing_weights(config_, compute, stored, lora);
  }
  std::unique_ptr<VideoTransformer> load(WeightReader& reader) const override;

 private:
  MochiConfig config_;
};

// Padding is no part of a prompt here: upstream masks padded text tokens as keys and reads none of
// their rows, so a prompt is its valid tokens. One without tokens is allowed: upstream masks all of
// an empty prompt when it is told to.
class MochiDit final : public VideoTransformer {
 public:
  // Asks the reader for diffusers names. Matrices are views into the reader's source, which must
  // outlive this object. Throws Error on a bad config and, once, listing every missing tensor.
  MochiDit(const MochiConfig& config, WeightReader& reader);

  const MochiConfig& config() const { return config_; }
  std::span<const TensorView> weights() const override { return weights_; }
  // The guidance scale is no input of this network.
  std::unique_ptr<Times> prepare_times(Context& ctx, std::span<const double> timesteps,
                                       double guidance) const override;
  std::unique_ptr<Prompt> prepare_prompt(Context& ctx,
                                         const PromptEmbedding& prompt) const override;
  // What upstream's module gives at these timesteps, which rise as noise falls: its pipeline takes
  // data - noise from it. Scratch comes from ctx.workspace: mochi_activation_bytes().
  void forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
               const TensorView& velocity) const override;

 private:
  VideoGrid check_inputs(const Context& ctx, Engine& engine, const Input& input,
                         const TensorView& velocity) const;
  void check_part(const LayerPart& part, int64_t video_tokens) const;
  void embed_patches(MochiPass& pass, const TensorView& x) const;
  void head(MochiPass& pass, const TensorView& velocity) const;

  MochiConfig config_;
  // Patch embedding and head stay f32 in every mode: they are tiny.
  Tensor patch_weight_, patch_bias_;  // [d, patch inputs], [d]
  Tensor frequencies_;                // [3, num_heads, head_dim / 2]
  MochiTimeEmbedder time_embedder_;
  MochiPooler pooler_;
  MochiTextEmbedder text_embedder_;
  std::vector<MochiBlock> blocks_;
  Linear head_modulation_;          // [2 d, d]: scale, shift
  Tensor head_weight_, head_bias_;  // [patch outputs, d], [patch outputs]
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
