// SPDX-License-Identifier: Apache-2.0
// The pipeline as calibration sees it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lacuna/calibrate/subject.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/pictures.h"

namespace lacuna::cli {

class PipelineSubject final : public Subject {
 public:
  // Prompt p is `request` with that prompt and seed + p. Embeds all prompts, drops the encoder.
  // Throws Error on anything a generation would refuse before step 0.
  PipelineSubject(Model& model, Context& ctx, const Request& request,
                  const std::vector<std::string>& prompts,
                  const std::filesystem::path& prompt_cache);

  Backend& backend() override { return ctx_.backend; }
  const ProfileTarget& target() const override { return target_; }
  std::string describe() const override;
  int num_prompts() const override { return static_cast<int>(prompts_.size()); }
  int num_experts() const override { return model_.num_experts(); }
  int expert(int step) const override { return experts_[static_cast<size_t>(step)]; }
  int branches() const override { return request_.guided() ? 2 : 1; }
  std::array<int64_t, 4> latent_shape() const override {
    return {latent_.channels, latent_.frames, latent_.height, latent_.width};
  }
  std::array<int64_t, 2> stream_shape() const override {
    const TransformerSizes sizes = model_.architecture().sizes();
    return {sizes.stream_rows(target_.grid.tokens()), sizes.dim()};
  }

  void begin(int prompt) override;
  NamedTensors state() const override;
  void restore(int prompt, int step, const NamedTensors& state) override;
  void run(Engine& engine, IndexRange layers, const TensorView& residual,
           const TensorView& velocity) override;
  void finish_step(Engine& engine, const TensorView& velocity) override;

 private:
  void start(int prompt);

  Model& model_;
  Context& ctx_;
  Request request_, request_of_prompt_;
  std::vector<std::string> prompts_;
  std::vector<PromptEmbeddings> embedded_;
  ProfileTarget target_;
  Model::LatentShape latent_;
  EncodedPictures pictures_;
  std::vector<int> experts_;  // per step
  SamplingState state_;
  std::unique_ptr<SamplingInputs> inputs_;
  std::unique_ptr<Denoiser> denoiser_;  // of one prompt
};

}  // namespace lacuna::cli
