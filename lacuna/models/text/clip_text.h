// SPDX-License-Identifier: Apache-2.0
// CLIP's text encoder (arXiv 2103.00020), of which video models take one pooled row: HunyuanVideo's
// second encoder, CLIP-L.
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

// The default is CLIP-L's.
struct ClipTextConfig {
  int64_t vocab_size = 49408;
  int64_t dim = 768;
  int64_t num_heads = 12;
  int64_t ffn_dim = 3072;
  int64_t num_layers = 12;
  int64_t max_tokens = 77;
  float eps = 1e-5f;
  // The token whose row is the pooled one. 2 is what configs say that were written before the end
  // token was known, CLIP-L's among them: then it is the highest id of the prompt.
  int64_t end_token = 2;

  int64_t head_dim() const { return dim / num_heads; }
  // Throws Error naming field, value and allowed range.
  void validate() const;
};

// From the text of a transformers config.json, which is hostile; `who` (a file name) starts every
// message. Refuses what is not a text encoder of this kind, such as another activation.
ClipTextConfig clip_text_config_from_json(std::string_view json, std::string_view who);

inline constexpr std::string_view kClipTokenEmbedding = "embeddings.token_embedding.weight";
// What stands before `embeddings.token_embedding.weight`, e.g. "text_model.". Throws Error naming
// the source when it has no such tensor.
std::string detect_clip_text_prefix(const WeightSource& source);

// From tensor shapes: single files. Heads are 64 wide, as in every released model; eps and end
// token are CLIP-L's. Throws Error naming the tensor that is missing or has an unexpected rank.
ClipTextConfig infer_clip_text_config(const WeightSource& source, const std::string& prefix);

class ClipTextEncoder {
 public:
  // Vectors are read now; matrices stay views into `source`, which must outlive the encoder. Throws
  // Error listing missing tensors.
  ClipTextEncoder(const ClipTextConfig& config, WeightSource& source, const std::string& prefix);

  // ids: 1 to max_tokens in 0..vocab_size-1, the end token among them; padding behind it changes
  // nothing, because no token sees what follows it, and is not computed. Returns the first end
  // token's row, final norm applied: [dim] f32. Throws Error.
  Tensor encode(Context& ctx, std::span<const int32_t> ids) const;

  const ClipTextConfig& config() const { return config_; }
  // What a backend may keep a copy of (ConstantWeights).
  std::span<const TensorView> weights() const { return weights_; }

 private:
  int64_t end_of(std::span<const int32_t> ids) const;

  ClipTextConfig config_;
  ScaledView token_embedding_;  // [vocab_size, dim]
  Tensor position_embedding_;   // [max_tokens, dim] f32
  std::vector<ClipLayer> layers_;
  ClipNorm final_norm_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
