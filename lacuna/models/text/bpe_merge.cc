// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/bpe_merge.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>

namespace lacuna {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeMerges::BpeMerges(const std::vector<BpeMerge>& merges) {
  entries_.reserve(merges.size());
  int32_t rank = 0;
  for (const BpeMerge& merge : merges) {
    entries_.push_back({pair_key(merge.left, merge.right), rank++, merge.merged});
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::tuple(a.pair, b.rank) < std::tuple(b.pair, a.rank);
  });
  const auto same = [](const Entry& a, const Entry& b) { return a.pair == b.pair; };
  entries_.erase(std::unique(entries_.begin(), entries_.end(), same), entries_.end());
}

const BpeMerges::Entry* BpeMerges::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const auto it = std::lower_bound(entries_.begin(), entries_.end(), key,
                                   [](const Entry& e, uint64_t value) { return e.pair < value; });
  return it != entries_.end() && it->pair == key ? &*it : nullptr;
}

void BpeMerges::apply(std::vector<int32_t>& ids) const {
  constexpr int32_t kGone = -1;
  struct Symbol {
    int32_t id, previous, next;
  };
  const auto size = static_cast<int32_t>(ids.size());
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (int32_t i = 0; i < size; ++i) symbols.push_back({ids[static_cast<size_t>(i)], i - 1, i + 1});
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };

  using Candidate = std::tuple<int32_t, int32_t, int32_t>;  // rank, place, merged
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int32_t place) {
    if (place < 0 || at(place).next >= size) return;
    const Entry* entry = find(at(place).id, at(at(place).next).id);
    if (entry != nullptr) queue.push({entry->rank, place, entry->merged});
  };
  for (int32_t i = 0; i < size; ++i) offer(i);
  while (!queue.empty()) {
    const auto [rank, place, merged] = queue.top();
    queue.pop();
    Symbol& left = at(place);
    if (left.id == kGone || left.next >= size) continue;
    // Neighbours may have changed since. As in the library only the outcome is compared.
    Symbol& right = at(left.next);
    const Entry* entry = find(left.id, right.id);
    if (entry == nullptr || entry->merged != merged) continue;
    left.id = merged;
    left.next = right.next;
    right.id = kGone;
    if (left.next < size) at(left.next).previous = place;
    offer(left.previous);
    offer(place);
  }
  ids.clear();
  for (const Symbol& symbol : symbols) {
    if (symbol.id != kGone) ids.push_back(symbol.id);
  }
}

}  // namespace lacuna
