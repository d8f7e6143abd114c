// SPDX-License-Identifier: Apache-2.0
// The denoising loop, and its state on disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/scheduler/sampler.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

// Everything a run needs to go on from `next_step` bit for bit.
struct SamplingState {
  // [channels, frames, height, width] f32. Of a network without condition channels frame 0 is the
  // request's picture, if any, encoded, from the start.
  Tensor latents;
  // Of the request's pictures (EncodedPictures), where the network takes it; never changes. It is
  // kept because a whole video takes minutes to encode and a fraction of the latents to store.
  Tensor condition, image;
  int next_step = 0;
  std::vector<std::pair<std::string, Tensor>> sampler;  // Sampler::state()
  StateTensors attention;                               // Engine::save(), if it carries anything
  uint64_t prompts = 0;  // hash of the embeddings it runs under; 0 = not known
};

class WorkShare;

struct StepReport {
  int step, num_steps;
  double seconds;
  double qk_density, pv_density;  // means over the step's attention calls
};

struct PromptEmbeddings {
  PromptEmbedding positive;
  PromptEmbedding negative;  // of requests that are guided; Mochi takes one without tokens, too
};

struct SamplingInputs {
  // The network of an expert (0 = only or high-noise); may load it and drop the other.
  std::function<const VideoTransformer&(int expert)> transformer;
  int num_experts = 1;
  TransformerSizes sizes;
  const Request& request;
  const PromptEmbeddings& prompts;
  const WorkShare* share = nullptr;  // among several processes, which all sample; null = alone
};

// Which of `num_experts` networks runs a step of this sampler: 0 = only or high-noise.
int expert_at(int num_experts, const Request& request, const Sampler& sampler, int step);

// Standard normals [channels, frames, height, width] as torch draws them on the CPU for this seed.
Tensor initial_noise(uint64_t seed, int64_t channels, int64_t frames, int64_t height,
                     int64_t width);

// One generation step by step: sample() runs it to its end, calibration looks into its steps.
class Denoiser {
 public:
  // Goes on from `state`, which is always that of the last finished step. All three outlive it.
  Denoiser(Context& ctx, const SamplingInputs& inputs, SamplingState& state);
  ~Denoiser();

  int num_steps() const;
  // Which network runs a step.
  int expert(int step) const;
  // The conditional branch of step state.next_step: layers of `part` (VideoTransformer::forward),
  // or the whole forward, into velocity [channels, frames, height, width] f32. Nothing in a process
  // whose share is the other branch: its velocity comes in finish().
  void conditional(Engine& engine, const TensorView& velocity, const LayerPart* part = nullptr);
  // The rest of that step from the conditional velocity, which it changes: guidance and sampler.
  // Throws Error when a latent is no longer a finite number.
  void finish(Engine& engine, const TensorView& velocity);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs steps state.next_step .. num_steps - 1. After each step `state` is complete and on_step is
// called. Throws Cancelled out of a step that ctx.cancel stopped; `state` is then that of the last
// finished step.
void sample(Context& ctx, Engine& engine, const SamplingInputs& inputs, SamplingState& state,
            const std::function<void(const StepReport&)>& on_step);

// Latents file: safetensors with `latents`, `condition`, `image`, `sampler.*`, `attention.*`, and
// the request as metadata; written atomically. It is all that `decode` and `--resume` need.
void save_state(const std::filesystem::path& path, const Request& request,
                const SamplingState& state);
struct LoadedState {
  Request request;
  SamplingState state;
};
// Whether save_state wrote the file, as far as its header tells; false for files of any other kind.
bool is_latents_file(const std::filesystem::path& path);
// Throws Error when the file is not such a file or is inconsistent.
LoadedState load_state(const std::filesystem::path& path);

}  // namespace lacuna
