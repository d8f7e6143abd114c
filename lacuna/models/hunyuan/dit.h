// SPDX-License-Identifier: Apache-2.0
// The HunyuanVideo 1.0 video diffusion transformer (text-to-video).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "lacuna/models/hunyuan/block.h"
#include "lacuna/models/hunyuan/conditioning.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/hunyuan/refiner.h"
#include "lacuna/models/rope.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

class HunyuanArchitecture final : public Architecture {
 public:
  // Throws Error on a bad config.
  explicit HunyuanArchitecture(const HunyuanConfig& config);

  std::string_view family() const override { return "hunyuan"; }
  TransformerSizes sizes() const override;
  VideoGrid grid(int64_t frames, int64_t height, int64_t width) const override {
    return config_.grid(frames, height, width);
  }
  int64_t num_parameters() const override { return config_.num_parameters(); }
  ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const override {
    return config_.flops(video_tokens, text_tokens);
  }
  int64_t activation_bytes(int64_t video_tokens, DType compute) const override {
    return config_.activation_bytes(video_tokens, compute);
  }
  int64_t prompt_bytes(DType) const override { return config_.prompt_bytes(); }
  PassingWeights passing_weights(DType compute, double stored, bool lora) const override {
    return config_.passing_weights(compute, stored, lora);
  }
  std::unique_ptr<VideoTransformer> load(WeightReader& reader) const override;

 private:
  HunyuanConfig config_;
};

class HunyuanTransformer final : public VideoTransformer {
 public:
  // Asks the reader for diffusers names. Matrices are views into the reader's source, which must
  // outlive this object. Throws Error on a bad config and, once, listing every missing tensor.
  HunyuanTransformer(const HunyuanConfig& config, WeightReader& reader);

  std::span<const TensorView> weights() const override { return weights_; }
  std::unique_ptr<Times> prepare_times(Context& ctx, std::span<const double> timesteps,
                                       double guidance) const override;
  // A prompt has one row or more. Rows beyond the valid ones are no input: they would be masked out
  // as keys, and their own results would not be read.
  std::unique_ptr<Prompt> prepare_prompt(Context& ctx,
                                         const PromptEmbedding& prompt) const override;
  // Text rows of a part's residual that the prompt does not use are set to zero when it begins
  // at 0.
  void forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
               const TensorView& velocity) const override;

 private:
  void check_input(const Context& ctx, Engine& engine, const Input& input) const;
  void check_part(const LayerPart& part, int64_t video_tokens) const;
  void embed(const HunyuanPass& pass, const TensorView& x) const;
  void run_layer(HunyuanPass& pass, int64_t layer) const;
  void head(const HunyuanPass& pass, const TensorView& velocity) const;

  HunyuanConfig config_;
  AxisRope rope_;
  // Patch embedding and head stay f32 in every mode: they are tiny.
  Tensor patch_weight_, patch_bias_;  // [d, patch values], [d]
  Tensor head_weight_, head_bias_;    // [patch values, d], [patch values]
  Linear head_modulation_;            // scale, shift
  HunyuanConditioning conditioning_;
  HunyuanRefiner refiner_;
  std::vector<HunyuanDualBlock> dual_;
  std::vector<HunyuanSingleBlock> single_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
