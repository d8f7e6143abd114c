// SPDX-License-Identifier: Apache-2.0
// Inputs of the contract of methods.
#pragma once

#include "tests/methods/fixtures.h"

namespace lacuna::test {

// Ragged in every way: short last blocks, border tiles, text that shares a block with video.
inline const Shape kShapes[] = {
    {{5, 8, 9}, 0, 3}, {{5, 8, 9}, 21, 3}, {{3, 8, 16}, 0, 2}, {{1, 1, 1}, 0, 1}, {{2, 3, 5}, 5, 2},
};

// Masks for `fixed`: checkers plus the diagonal.
inline Selection checkers(const Shape& shape) {
  Selection all;
  all.q_layout = all.k_layout = BlockLayout::uniform(shape.seq_len(), 32);
  const int32_t blocks = all.q_layout.num_blocks;
  all.mask = BlockMask(shape.num_heads, blocks, blocks);
  for (int64_t h = 0; h < shape.num_heads; ++h)
    for (int32_t qb = 0; qb < blocks; ++qb)
      for (int32_t kb = 0; kb < blocks; ++kb)
        if ((qb + kb + h) % 2 == 0 || qb == kb) all.mask.set(h, qb, kb);
  return all;
}

// Small blocks where the method has that parameter, so that tests see many blocks.
inline Params small_blocks(const Method& method) {
  Params params(method.specs());
  for (const ParamSpec& spec : method.specs()) {
    if (spec.name.starts_with("block")) params.set(spec.name, 32);
    if (spec.name.ends_with("_clusters")) params.set(spec.name, 12);
    if (spec.name == "first_iterations") params.set(spec.name, 5);
    if (spec.name.starts_with("tile_")) params.set(spec.name, spec.name == "tile_frames" ? 2 : 3);
    if (spec.name.starts_with("window_")) params.set(spec.name, 1);
  }
  return params;
}

}  // namespace lacuna::test
