// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/memory_tally.h"

#include <algorithm>

namespace lacuna {

int MemoryTally::feature(std::initializer_list<int> busy, int64_t elements) {
  int i = 0;
  while (std::find(busy.begin(), busy.end(), i) != busy.end()) ++i;
  int64_t& size = features_[static_cast<size_t>(i)];
  size = std::max(size, elements);
  return i;
}

void MemoryTally::scratch(std::string_view name, int64_t elements) {
  int64_t& size = scratch_[name];
  size = std::max(size, elements);
}

int64_t MemoryTally::elements() const {
  int64_t sum = history_;
  for (const int64_t f : features_) sum += f;
  for (const auto& [name, elements] : scratch_) sum += elements;
  return sum;
}

void count_conv(MemoryTally& tally, const TallyMap& map, int64_t c_in) {
  tally.scratch("window", (2 + map.frames) * map.cells * c_in);
  tally.history(2 * map.cells * c_in);
}

int count_res(MemoryTally& tally, const TallyMap& map, const ResBlock& block, int x, int pinned) {
  const int64_t c_in = block.conv1.conv.in_channels(), c = block.conv1.conv.out_channels();
  count_conv(tally, map, c_in);
  const int hidden = tally.feature({x, pinned}, map.size(c));
  count_conv(tally, map, c);
  return block.shortcut ? tally.feature({hidden, pinned}, map.size(c)) : hidden;
}

int count_mid(MemoryTally& tally, const TallyMap& map, const MidBlock& mid, int x) {
  const int64_t c = mid.attention.gamma.numel();
  x = count_res(tally, map, mid.before, x, -1);
  tally.scratch("window", map.size(c));
  tally.scratch("qkv", 3 * map.cells * c);
  const int mixed = tally.feature({x}, map.size(c));
  x = tally.feature({x, mixed}, map.size(c));
  return count_res(tally, map, mid.after, x, -1);
}

}  // namespace lacuna
