// SPDX-License-Identifier: Apache-2.0
// Byte-pair merging.
#pragma once

#include <cstdint>
#include <vector>

namespace lacuna {

// The neighbours left and right become the token `merged`.
struct BpeMerge {
  int32_t left, right, merged;
};

class BpeMerges {
 public:
  BpeMerges() = default;
  // Best first; of two with the same neighbours the later one counts. Ids are not negative.
  explicit BpeMerges(const std::vector<BpeMerge>& merges);

  // Merges the neighbours of one word, the best pair first and of equal ones the leftmost, until
  // none is left. O(n log n).
  void apply(std::vector<int32_t>& ids) const;

 private:
  struct Entry {
    uint64_t pair;
    int32_t rank, merged;
  };
  const Entry* find(int32_t left, int32_t right) const;

  std::vector<Entry> entries_;  // by pair
};

}  // namespace lacuna
