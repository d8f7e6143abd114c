// SPDX-License-Identifier: Apache-2.0
// How much memory the layers of an autoencoder will ask a Stream for: the same walk, counting only.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string_view>

#include "lacuna/models/vae/blocks.h"

namespace lacuna {

// Stream without memory: largest size per buffer, sum of histories. Sizes in elements.
class MemoryTally {
 public:
  // A clip of one pass keeps no histories.
  explicit MemoryTally(bool one_pass) : one_pass_(one_pass) {}
  int feature(std::initializer_list<int> busy, int64_t elements);
  void scratch(std::string_view name, int64_t elements);  // the name outlives this
  void history(int64_t elements) { history_ += one_pass_ ? 0 : elements; }
  int64_t elements() const;

 private:
  bool one_pass_;
  std::array<int64_t, 4> features_{};
  std::map<std::string_view, int64_t> scratch_;
  int64_t history_ = 0;
};

// One map: frames of the steady pass and cells per frame.
struct TallyMap {
  int64_t frames = 1, cells = 0;
  int64_t size(int64_t c) const { return frames * cells * c; }
};

// What the layers of blocks.h ask for on such a map; `x` is the buffer of their input, the result
// that of their output.
void count_conv(MemoryTally& tally, const TallyMap& map, int64_t c_in);
int count_res(MemoryTally& tally, const TallyMap& map, const ResBlock& block, int x, int pinned);
int count_mid(MemoryTally& tally, const TallyMap& map, const MidBlock& mid, int x);

}  // namespace lacuna
