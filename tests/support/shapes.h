// SPDX-License-Identifier: Apache-2.0
// The shapes every attention backend is tested on.
#pragma once

#include <vector>

#include "tests/support/attend_case.h"

namespace lacuna::test {

class ShapeList {
 public:
  explicit ShapeList(uint64_t first_seed) : seed_(first_seed) {}
  void add(AttendSpec spec) {
    spec.seed = seed_++;
    specs_.push_back(spec);
  }
  const std::vector<AttendSpec>& specs() const { return specs_; }

 private:
  uint64_t seed_;
  std::vector<AttendSpec> specs_;
};

// Ragged tails around tile sizes, one token, and unequal lengths.
inline void add_lengths(ShapeList& list) {
  const int64_t lengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 200, 391};
  int turn = 0;
  for (int64_t len : lengths) {
    const auto storage = static_cast<Storage>(turn % 4);
    const int32_t dim = turn++ % 2 == 0 ? 64 : 128;
    list.add({.q_len = len, .k_len = len, .head_dim = dim, .storage = storage});
    list.add({.q_len = len,
              .k_len = len,
              .head_dim = 192 - dim,
              .block_q = 64,
              .block_k = 64,
              .storage = storage,
              .density = 0.5});
  }
  list.add({.heads = 1, .q_len = 1000, .k_len = 1000, .density = 0.4});
  // Cross-attention, decode, one key.
  list.add(
      {.heads = 3, .q_len = 200, .k_len = 17, .head_dim = 128, .storage = Storage::tokens_first});
  list.add({.heads = 3, .q_len = 1, .k_len = 391});
  list.add({.q_len = 129, .k_len = 1, .storage = Storage::odd});
  list.add({.q_len = 65, .k_len = 260, .head_dim = 128, .density = 0.6});
}

inline void add_heads_and_blocks(ShapeList& list) {
  // Head subsets, in any order.
  list.add({.heads = 5,
            .head_ids = {3, 0},
            .q_len = 130,
            .k_len = 130,
            .storage = Storage::tokens_first});
  list.add({.heads = 4,
            .head_ids = {2},
            .q_len = 200,
            .k_len = 200,
            .head_dim = 128,
            .storage = Storage::padded,
            .density = 0.5});
  list.add({.heads = 4,
            .head_ids = {3, 1, 0},
            .q_len = 150,
            .k_len = 150,
            .explicit_blocks = true,
            .storage = Storage::odd,
            .density = 0.5});
  // Blocks: small, odd, unequal, larger than the sequence.
  list.add({.q_len = 200, .k_len = 200, .block_q = 16, .block_k = 16, .density = 0.3});
  list.add({.q_len = 200, .k_len = 230, .block_q = 100, .block_k = 33, .density = 0.5});
  list.add(
      {.q_len = 260, .k_len = 300, .head_dim = 128, .block_q = 64, .block_k = 256, .density = 0.7});
  list.add({.q_len = 70, .k_len = 70, .block_q = 512, .block_k = 512, .density = 0.5});
}

inline void add_layouts_and_biases(ShapeList& list) {
  // Explicit layouts with empty blocks, dense and listed, and query blocks that keep nothing.
  list.add({.q_len = 391, .k_len = 391, .block_q = 64, .block_k = 64, .explicit_blocks = true});
  list.add({.q_len = 391,
            .k_len = 300,
            .head_dim = 128,
            .block_q = 64,
            .block_k = 32,
            .explicit_blocks = true,
            .storage = Storage::padded,
            .density = 0.4});
  list.add({.q_len = 300,
            .k_len = 300,
            .block_q = 64,
            .block_k = 64,
            .density = 0.3,
            .empty_rows = true});
  list.add({.q_len = 200,
            .k_len = 200,
            .block_q = 32,
            .block_k = 32,
            .explicit_blocks = true,
            .density = 0.3,
            .empty_rows = true});
  // Bias per key and per pair, with -inf entries; sharp and very sharp logits.
  list.add({.q_len = 129, .k_len = 77, .head_dim = 128, .bias = Bias::per_key});
  list.add({.q_len = 129,
            .k_len = 200,
            .block_q = 64,
            .block_k = 64,
            .density = 0.6,
            .bias = Bias::full,
            .bias_masked = 0.3});
  list.add({.q_len = 70,
            .k_len = 150,
            .storage = Storage::odd,
            .bias = Bias::per_key,
            .bias_masked = 0.5});
  list.add({.q_len = 200, .k_len = 200, .head_dim = 128, .pattern = Pattern::structured});
  list.add({.q_len = 300, .k_len = 300, .density = 0.5, .sharpness = 40.0});
}

// All of the above, f32, head_dim 64 or 128.
inline std::vector<AttendSpec> attend_shapes() {
  ShapeList list(101);
  add_lengths(list);
  add_heads_and_blocks(list);
  add_layouts_and_biases(list);
  return list.specs();
}

// head_dim that need not have a fast kernel; a backend may refuse them by unsupported().
inline std::vector<AttendSpec> odd_head_dims() {
  std::vector<AttendSpec> list;
  uint64_t seed = 500;
  for (int32_t dim : {1, 7, 16, 32, 40, 72, 80, 96, 112, 160, 256, 384}) {
    list.push_back({.q_len = 129,
                    .k_len = 140,
                    .head_dim = dim,
                    .block_q = 64,
                    .block_k = 64,
                    .storage = static_cast<Storage>(seed % 4),
                    .density = 0.6,
                    .seed = seed});
    ++seed;
  }
  return list;
}

// A shape from all of the above at random.
inline AttendSpec random_shape(uint64_t seed) {
  Rng rng(seed);
  AttendSpec s;
  s.seed = seed;
  s.heads = static_cast<int32_t>(rng.integer(1, 4));
  if (rng.chance(0.3)) s.head_ids = {static_cast<int32_t>(rng.integer(0, s.heads - 1))};
  s.q_len = rng.integer(1, 300);
  s.k_len = rng.chance(0.5) ? s.q_len : rng.integer(1, 300);
  s.head_dim = rng.chance(0.5) ? 64 : 128;
  s.block_q = static_cast<int32_t>(rng.chance(0.7) ? 16 * rng.integer(1, 12) : rng.integer(1, 150));
  s.block_k = static_cast<int32_t>(rng.chance(0.7) ? 16 * rng.integer(1, 12) : rng.integer(1, 150));
  s.explicit_blocks = rng.chance(0.3);
  s.storage = static_cast<Storage>(rng.integer(0, 3));
  s.density = rng.chance(0.3) ? 1.0 : rng.uniform(0.1, 0.9);
  s.empty_rows = rng.chance(0.2);
  s.bias = rng.chance(0.6) ? Bias::none : (rng.chance(0.5) ? Bias::per_key : Bias::full);
  s.bias_masked = rng.chance(0.5) ? 0.0 : rng.uniform(0.0, 0.6);
  s.pattern = rng.chance(0.5) ? Pattern::noise : Pattern::structured;
  s.sharpness = rng.chance(0.8) ? 1.0 : 8.0;
  return s;
}

}  // namespace lacuna::test
