// SPDX-License-Identifier: Apache-2.0
// UMT5 text encoder, the one every Wan model listens to: T5 (arXiv 1910.10683) with a relative bias
// in every layer (UniMax, arXiv 2304.09151). And T5 1.1 itself, where all layers share one bias:
// Mochi's encoder.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/text/encoder_parts.h"
#include "lacuna/models/weights.h"

namespace lacuna {

struct Umt5Config {
  int64_t vocab_size = 256384;  // rows of the embedding, padding rows included
  int64_t dim = 4096;
  int64_t num_heads = 64;
  int64_t head_dim = 64;
  int64_t ffn_dim = 10240;
  int64_t num_layers = 24;
  float eps = 1e-6f;
  bool shared_bias = false;  // T5 1.1: the relative bias of layer 0 is that of all layers

  int64_t inner_dim() const { return num_heads * head_dim; }
  // Throws Error naming field, value and allowed range. No product of valid sizes overflows int64.
  void validate() const;
  int64_t num_parameters() const;
};

// Buckets of the relative bias. Fixed: the bucket table is that of 32 buckets up to distance 128,
// which every released UMT5 (and T5) uses.
inline constexpr int64_t kUmt5Buckets = 32;

// Bucket 0..31 of a key that lies `distance` = key index - query index tokens to the right.
int32_t umt5_bucket(int64_t distance);

// "umt5-xxl" (Wan's), "t5-xxl" (Mochi's), or "tiny" with made-up weights. Throws Error listing the
// names.
Umt5Config umt5_preset(std::string_view name);

// From the text of a transformers config.json, which is hostile; `who` (a file name) starts every
// message. `model_type` tells T5 from UMT5. Refuses what is not an encoder of this kind: other
// bucket counts, ungated or non-GELU feed-forward (the first T5).
Umt5Config umt5_config_from_json(std::string_view json, std::string_view who);

enum class Umt5Naming : uint8_t { original, hugging_face, gguf };

struct Umt5Names {
  Umt5Naming naming = Umt5Naming::original;
  std::string prefix;           // stripped by single-file exports, e.g. "text_encoder."
  bool tied_embedding = false;  // HF files that only hold encoder.embed_tokens.weight
};

// Original name (`blocks.0.attn.q.weight`) -> name in a source that uses `names`. Throws Error for
// a name that belongs to no tensor of this network.
std::string umt5_source_name(std::string_view original, const Umt5Names& names);

// Throws Error naming the source and the tensors looked for.
Umt5Names detect_umt5_names(const WeightSource& source);

// From tensor shapes alone: GGUF and single files. T5 is what has no bias in layer 1. Throws Error
// naming the tensor that is missing or has an unexpected rank.
Umt5Config infer_umt5_config(const WeightSource& source, const Umt5Names& names);

class Umt5Encoder {
 public:
  // Norms and bias tables are read now (under 1 MB per layer); matrices stay views into `source`,
  // which must outlive the encoder. Throws Error listing missing tensors.
  Umt5Encoder(const Umt5Config& config, WeightSource& source, const Umt5Names& names);

  // ids [n] in 0..vocab_size-1, end of sequence included, padding not: padding keys are masked in
  // the reference, so running at the valid length is exact and costs 512/n times less.
  // Returns [n, dim] f32, final norm applied. Throws Error on an empty list, more than kMaxTokens
  // ids or an id outside the vocabulary.
  //
  // Memory: each matrix passes through one scratch buffer of Context::weight, so what is private
  // never exceeds one matrix in the compute dtype plus activations. Pages of a mapped file are the
  // page cache's: the kernel drops them under pressure, so no madvise is needed, and a second
  // prompt finds them warm where memory allows.
  Tensor encode(Context& ctx, std::span<const int32_t> ids) const;

  static constexpr int64_t kMaxTokens = 4096;

  const Umt5Config& config() const { return config_; }
  // What a backend may keep a copy of (ConstantWeights).
  std::span<const TensorView> weights() const { return weights_; }

 private:
  struct Layer {
    Tensor attn_norm;  // [dim] f32
    Tensor bias;       // [kUmt5Buckets, num_heads] f32, empty if layer 0 has it
    Linear q, k, v, o;
    GatedFeedForward feed_forward;
  };

  // bias [num_heads, 2 n - 1]: by distance, key minus query
  void attend(Context& ctx, const Layer& layer, const TensorView& bias, const TensorView& x) const;

  Umt5Config config_;
  ScaledView embedding_;  // [vocab_size, dim]
  std::vector<Layer> layers_;
  Tensor final_norm_;  // [dim] f32
  std::vector<TensorView> weights_;
};

}  // namespace lacuna
