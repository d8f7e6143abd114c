// SPDX-License-Identifier: Apache-2.0
// CLIP's vision encoder (arXiv 2103.00020), whose penultimate hidden states image-to-video networks
// look at: OpenCLIP's ViT-H/14 for Wan 2.1.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/text/clip_layer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// The default is ViT-H/14's.
struct ClipVisionConfig {
  int64_t image_size = 224;  // pixels a side
  int64_t patch_size = 14;
  int64_t dim = 1280;
  int64_t num_heads = 16;
  int64_t ffn_dim = 5120;
  int64_t num_layers = 32;  // all; the last is not computed
  float eps = 1e-5f;
  ClipActivation activation = ClipActivation::gelu;

  int64_t head_dim() const { return dim / num_heads; }
  int64_t patches() const { return (image_size / patch_size) * (image_size / patch_size); }
  int64_t rows() const { return patches() + 1; }  // and the class
  // Throws Error naming field, value and allowed range.
  void validate() const;
};

// From the text of a transformers config.json, which is hostile; `who` (a file name) starts every
// message. Refuses what is not a vision encoder of this kind.
ClipVisionConfig clip_vision_config_from_json(std::string_view json, std::string_view who);

inline constexpr std::string_view kClipClassEmbedding = "embeddings.class_embedding";
// What stands before `embeddings.class_embedding`, e.g. "vision_model.". Throws Error naming the
// source when it has no such tensor.
std::string detect_clip_vision_prefix(const WeightSource& source);

// From tensor shapes: single files. Heads and activation are those of the released models of this
// width (ViT-B, L, H and bigG); eps is 1e-5. Throws Error naming the tensor that is missing or has
// an unexpected shape.
ClipVisionConfig infer_clip_vision_config(const WeightSource& source, const std::string& prefix);

class ClipVisionEncoder {
 public:
  // Vectors, positions and patch embedding are read now; matrices stay views into `source`, which
  // must outlive the encoder. Neither the last layer nor what follows it is read. Throws Error
  // listing missing tensors.
  ClipVisionEncoder(const ClipVisionConfig& config, WeightSource& source,
                    const std::string& prefix);

  // pixels [3, image_size, image_size] f32 contiguous on the host, normalised (clip_pixels()).
  // Returns the hidden states that enter the last layer, without the final norm: [rows, dim] f32 on
  // the host, the class first, then patches row by row. Throws Error, or Cancelled between layers
  // when ctx.cancel is set.
  Tensor encode(Context& ctx, const TensorView& pixels) const;

  const ClipVisionConfig& config() const { return config_; }
  // What a backend may keep a copy of (ConstantWeights).
  std::span<const TensorView> weights() const { return weights_; }

 private:
  ClipVisionConfig config_;
  Tensor class_embedding_;     // [dim] f32
  Tensor patch_embedding_;     // [dim, 3 patch_size^2] f32
  Tensor position_embedding_;  // [rows, dim] f32
  ClipNorm first_norm_;
  std::vector<ClipLayer> layers_;
  std::vector<TensorView> weights_;
};

// Bytes that encode() holds beside weights: scratch, one matrix in f32, its result.
int64_t clip_vision_bytes(const ClipVisionConfig& config, DType compute);

}  // namespace lacuna
