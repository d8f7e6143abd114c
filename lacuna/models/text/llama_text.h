// SPDX-License-Identifier: Apache-2.0
// The first layers of a Llama (arXiv 2302.13971, 2407.21783) as a text encoder: HunyuanVideo
// listens to the hidden states of llava-llama-3-8b two layers before the end.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/text/encoder_parts.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// The default is that of llava-llama-3-8b-v1_1.
struct LlamaConfig {
  int64_t vocab_size = 128320;
  int64_t dim = 4096;
  int64_t num_heads = 32;
  int64_t num_kv_heads = 8;  // divides num_heads: that many query heads share a key head
  int64_t head_dim = 128;
  int64_t ffn_dim = 14336;
  int64_t num_layers = 32;
  float eps = 1e-5f;
  double rope_theta = 500000.0;

  // Throws Error naming field, value and allowed range.
  void validate() const;
};

// From the text of a transformers config.json, which is hostile; `who` (a file name) starts every
// message. Refuses by name what this network does not compute: scaled positions (rope_scaling),
// biases, another activation.
LlamaConfig llama_config_from_json(std::string_view json, std::string_view who);

struct LlamaNames {
  bool gguf = false;   // llama.cpp's names; its converter reorders the rows of q and k
  std::string prefix;  // of the others, before `layers.0.`, e.g. "language_model.model."
};

// Name in transformers' LlamaModel (`layers.0.self_attn.q_proj.weight`) -> name in a source that
// uses `names`. Throws Error for a name that belongs to no tensor of this network.
std::string llama_source_name(std::string_view name, const LlamaNames& names);

// Throws Error naming the source and the tensors looked for, or one that says that positions are
// scaled.
LlamaNames detect_llama_names(const WeightSource& source);

// From tensor shapes: GGUF and single files. What shapes do not tell is Llama 3's: heads of 128
// channels, eps and theta. Throws Error naming the tensor that is missing or has an unexpected
// rank.
LlamaConfig infer_llama_config(const WeightSource& source, const LlamaNames& names);

class LlamaTextEncoder {
 public:
  // Norms are read now; matrices stay views into `source`, which must outlive the encoder. The last
  // skipped_layers (1 to num_layers - 1) and the final norm are not used: hidden_states[-1 -
  // skipped_layers] of transformers. Throws Error listing missing tensors.
  LlamaTextEncoder(const LlamaConfig& config, WeightSource& source, const LlamaNames& names,
                   int64_t skipped_layers);

  // ids: 1 to kMaxTokens in 0..vocab_size-1, without padding: no token sees what follows it.
  // Returns the rows from first_row (0..n-1) on, [n - first_row, dim] f32. Throws Error. Memory: as
  // Umt5Encoder::encode.
  Tensor encode(Context& ctx, std::span<const int32_t> ids, int64_t first_row = 0) const;

  static constexpr int64_t kMaxTokens = 4096;

  const LlamaConfig& config() const { return config_; }
  int64_t skipped_layers() const {
    return config_.num_layers - static_cast<int64_t>(layers_.size());
  }
  // What a backend may keep a copy of (ConstantWeights).
  std::span<const TensorView> weights() const { return weights_; }

 private:
  struct Layer {
    Tensor attn_norm;  // [dim] f32
    Linear q, k, v, o;
    GatedFeedForward feed_forward;
  };
  // What positions decide, for all layers.
  struct Positions {
    std::vector<float> cos, sin;  // [n, head_dim / 2]
    const float* bias = nullptr;  // causal_bias
  };

  Positions positions(Context& ctx, int64_t n) const;
  TensorView rotated(Context& ctx, const Linear& linear, const TensorView& u,
                     const Positions& positions, std::string_view slot) const;
  void attend(Context& ctx, const Layer& layer, const Positions& positions,
              const TensorView& x) const;

  LlamaConfig config_;
  bool adjacent_pairs_;   // of channels that rotate together, else channel c and c + head_dim / 2
  ScaledView embedding_;  // [vocab_size, dim]
  std::vector<Layer> layers_;
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
