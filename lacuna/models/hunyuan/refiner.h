// SPDX-License-Identifier: Apache-2.0
// What HunyuanVideo does to the text before it meets the video.
#pragma once

#include <cstdint>
#include <vector>

#include "lacuna/models/context.h"
#include "lacuna/models/hunyuan/block.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// Self-attention of the prompt's tokens among themselves, without positions. Its gates depend on
// the timestep and on the prompt, so it runs in every forward; it is a thousandth of one.
class HunyuanRefiner {
 public:
  HunyuanRefiner(const HunyuanConfig& config, WeightReader& reader);
  // Writes the text rows of act.residual; act.condition is another one afterwards.
  void forward(const HunyuanPass& pass) const;

 private:
  struct Layer {
    Linear gates;                                               // of attention, of the feed-forward
    Tensor norm1_weight, norm1_bias, norm2_weight, norm2_bias;  // [d]
    Linear q, k, v, out, up, down;
    Layer(const HunyuanConfig& config, int64_t index, WeightReader& reader);
  };
  static void run(const HunyuanPass& pass, const Layer& layer);

  std::vector<Layer> layers_;
};

}  // namespace lacuna
