// SPDX-License-Identifier: Apache-2.0
// What pipelines need of a video diffusion transformer, whatever its family.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "lacuna/core/site.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/context.h"
#include "lacuna/models/patch.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// What text encoders make of one prompt.
struct PromptEmbedding {
  Tensor tokens;  // [valid rows, text_dim] f32
  Tensor pooled;  // [pooled_dim] f32; empty where the family has none
  Tensor image;  // [rows, image_dim] f32 of the request's pictures; empty where the family has none
};

// Multiply-adds counted as two operations, for one forward (one of cond / uncond).
struct ForwardFlops {
  double self_attention = 0.0;   // of joint families over video and text tokens
  double cross_attention = 0.0;  // 0 of joint families
  double gemm = 0.0;
  double total() const { return self_attention + cross_attention + gemm; }
};

// Bytes that weights take on the way to an op.
struct PassingWeights {
  int64_t stored = 0;     // two of the largest, as stored, and one that is computed with in f32
  int64_t converted = 0;  // those kept in another dtype than is computed with, or changed by LoRA
};

struct TransformerSizes {
  int64_t num_layers = 0;  // self-attention calls of one forward
  int64_t num_heads = 0, head_dim = 0;
  int64_t ffn_dim = 0;
  int64_t latent_channels = 0;
  // Behind them in VideoTransformer::Input::x: a mask and encoded pictures (image-to-video); 0 =
  // none.
  int64_t condition_channels = 0;
  PatchSize patch;
  int64_t text_dim = 0;    // of PromptEmbedding::tokens
  int64_t text_len = 0;    // most rows of it
  int64_t pooled_dim = 0;  // of PromptEmbedding::pooled; 0 = none
  int64_t image_dim = 0;   // of PromptEmbedding::image; 0 = none
  int64_t image_rows = 0;  // of it, where the network has learnt so many positions; 0 = any number
  // Text tokens follow the video tokens in self-attention (Mochi, HunyuanVideo); else the prompt is
  // seen by cross-attention (Wan).
  bool joint_text = false;
  bool embedded_guidance = false;  // the guidance scale is an input of the network
  bool shares_tokens = false;      // Context::team: its ranks can share a forward
  // The network's time runs from noise at 0 to data at 1000 and its output is data - noise (Mochi).
  bool reversed_time = false;

  int64_t dim() const { return num_heads * head_dim; }
  // Rows of the stream between layers, [rows, dim] f32: video tokens, then text_len rows of joint
  // text, of which a prompt uses the first and a narrower text stream the first channels.
  int64_t stream_rows(int64_t video_tokens) const {
    return video_tokens + (joint_text ? text_len : 0);
  }
};

class VideoTransformer;

// A network before its weights: sizes and costs.
class Architecture {
 public:
  virtual ~Architecture() = default;
  virtual std::string_view family() const = 0;  // "wan", "mochi", "hunyuan"
  virtual TransformerSizes sizes() const = 0;
  // Token grid of a latent [channels, frames, height, width]; throws Error unless the patch divides
  // it and the network's positions reach that far.
  virtual VideoGrid grid(int64_t frames, int64_t height, int64_t width) const = 0;
  virtual int64_t num_parameters() const = 0;
  // text_tokens: rows of the prompt that are really computed with.
  virtual ForwardFlops flops(int64_t video_tokens, int64_t text_tokens) const = 0;
  // Scratch that one forward takes from Context::workspace, at the longest prompt, in bytes.
  virtual int64_t activation_bytes(int64_t video_tokens, DType compute) const = 0;
  // What prepare_prompt() makes of the longest prompt.
  virtual int64_t prompt_bytes(DType compute) const = 0;
  // `stored` bytes a parameter.
  virtual PassingWeights passing_weights(DType compute, double stored, bool lora) const = 0;
  // Throws Error listing every missing tensor. Matrices stay views into the reader's source.
  virtual std::unique_ptr<VideoTransformer> load(WeightReader& reader) const = 0;
};

// Some layers of one forward, and the stream that enters and leaves them: a forward can stop
// between layers and go on, from the same input more than once.
struct LayerPart {
  int64_t begin = 0,
          end = 0;      // layers; from 0 embeds the latent, to num_layers writes the velocity
  TensorView residual;  // [stream_rows, dim] f32 contiguous, in place; not read when begin is 0
};

class VideoTransformer {
 public:
  // What all forwards of a schedule, and all of a prompt, share. Only the network that made one
  // knows what is inside; another throws Error.
  class Times {
   public:
    virtual ~Times() = default;
  };
  class Prompt {
   public:
    virtual ~Prompt() = default;
  };

  struct Input {
    Site site;  // layer and num_layers are set by the forward
    // Latent [latent_channels + condition_channels, frames, height, width] f32 contiguous, on the
    // host.
    TensorView x;
    const Times& times;
    size_t time = 0;  // index into the timesteps of `times`
    // Index of the timestep of the first latent frame, where it is another one (TI2V: a picture
    // without noise). Throws Error in families that take no picture.
    std::optional<size_t> first_frame_time;
    const Prompt& prompt;
  };

  virtual ~VideoTransformer() = default;
  // What a backend may keep a copy of (ConstantWeights).
  virtual std::span<const TensorView> weights() const = 0;
  // timesteps in 0..1000 as the network counts them, finite; guidance: the scale of networks with
  // embedded_guidance.
  virtual std::unique_ptr<Times> prepare_times(Context& ctx, std::span<const double> timesteps,
                                               double guidance) const = 0;
  virtual std::unique_ptr<Prompt> prepare_prompt(Context& ctx,
                                                 const PromptEmbedding& prompt) const = 0;
  // The network's output [latent_channels, ...] f32 contiguous, on the host: written when the part
  // (null = the whole network) ends at num_layers. Throws Cancelled between layers when ctx.cancel
  // is set.
  virtual void forward(Context& ctx, Engine& engine, const Input& input, const LayerPart* part,
                       const TensorView& velocity) const = 0;
};

}  // namespace lacuna
