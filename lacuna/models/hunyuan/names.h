// SPDX-License-Identifier: Apache-2.0
// The two naming schemes of HunyuanVideo checkpoints. This library asks for diffusers names; the
// files of the authors (and GGUF files made from them) use other ones, and keep some matrices
// stacked on another.
#pragma once

#include <memory>

#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// `source` itself where it has diffusers names, else one over it that does: parts of stacked
// matrices are views of their rows; the shift and scale of the head, which the two schemes order
// differently, become a copy. Throws Error naming the source and the tensors looked for.
std::unique_ptr<WeightSource> with_hunyuan_names(std::unique_ptr<WeightSource> source);

// From tensor shapes alone, for single-file checkpoints without config.json; diffusers names.
// Shapes do not tell how a head's channels are split between the axes: the head must have the 128
// of the released network.
HunyuanConfig infer_hunyuan_config(const WeightSource& source);

}  // namespace lacuna
