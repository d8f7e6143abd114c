// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/charsmap.h"

#include <cstring>

#include "lacuna/core/error.h"
#include "lacuna/core/utf8.h"
#include "lacuna/models/text/unicode.h"

namespace lacuna {
namespace {

// Fields of a Darts-clone unit: bits 0-7 label, 8 has_leaf, 9 scale of the offset, 10-30 offset;
// bit 31 marks a value. Comparing label with bit 31 keeps values from passing as nodes.
uint32_t unit_offset(uint32_t unit) {
  return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}
uint32_t unit_label(uint32_t unit) {
  return unit & ((1u << 31) | 0xffu);
}
bool unit_has_leaf(uint32_t unit) {
  return (unit >> 8 & 1u) != 0;
}
uint32_t unit_value(uint32_t unit) {
  return unit & ~(1u << 31);
}

}  // namespace

Charsmap::Charsmap(std::string_view blob, std::string_view who) {
  if (blob.empty()) return;
  LACUNA_CHECK(blob.size() > 4, "{}: character map of {} bytes, expected more than 4", who,
               blob.size());
  const auto byte = [&](size_t i) { return uint32_t{static_cast<uint8_t>(blob[i])}; };
  const auto read_u32 = [&](size_t at) {
    return byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16 | byte(at + 3) << 24;
  };
  const size_t trie_bytes = read_u32(0);
  LACUNA_CHECK(trie_bytes >= 4 && trie_bytes % 4 == 0 && trie_bytes < blob.size() - 4,
               "{}: character map of {} bytes claims a trie of {}, expected a multiple of 4 that "
               "leaves room for replacements",
               who, blob.size(), trie_bytes);
  LACUNA_CHECK(blob.back() == '\0', "{}: character map does not end in NUL", who);
  units_.resize(trie_bytes / 4);
  for (size_t i = 0; i < units_.size(); ++i) units_[i] = read_u32(4 + 4 * i);
  replacements_ = blob.substr(4 + trie_bytes);
  LACUNA_CHECK(is_valid_utf8(replacements_), "{}: character map with malformed UTF-8", who);
}

std::optional<Charsmap::Match> Charsmap::find(std::string_view text, bool stop_at_first) const {
  std::optional<Match> best;
  if (units_.empty()) return best;
  const auto unit_at = [&](size_t node) {
    LACUNA_CHECK(node < units_.size(), "tokenizer: character map trie leads to {}, expected < {}",
                 node, units_.size());
    return units_[node];
  };
  size_t node = unit_offset(units_[0]);
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto label = static_cast<uint8_t>(text[i]);
    node ^= label;
    const uint32_t unit = unit_at(node);
    if (unit_label(unit) != label) break;
    node ^= unit_offset(unit);
    if (!unit_has_leaf(unit)) continue;
    const size_t at = unit_value(unit_at(node));
    LACUNA_CHECK(at < replacements_.size(),
                 "tokenizer: character map replacement at {}, expected < {}", at,
                 replacements_.size());
    best = Match{i + 1, std::string_view(replacements_.data() + at)};  // the last byte is NUL
    if (stop_at_first) break;
  }
  return best;
}

std::optional<Charsmap::Match> Charsmap::longest(std::string_view text) const {
  return find(text, false);
}

std::optional<Charsmap::Match> Charsmap::shortest(std::string_view text) const {
  return find(text, true);
}

std::string Charsmap::normalize_graphemes(std::string_view text, size_t max_bytes) const {
  if (identity()) return std::string(text);
  constexpr size_t kWholeBelow = 6;  // bytes
  std::string out;
  out.reserve(text.size());
  const auto append = [&](std::string_view part) {
    out += part;
    LACUNA_CHECK(out.size() <= max_bytes,
                 "tokenizer: prompt grows past {} bytes when normalised, expected less (hostile "
                 "tokenizer file?)",
                 max_bytes);
  };
  while (!text.empty()) {
    std::string_view cluster = text.substr(0, grapheme_length(text));
    text.remove_prefix(cluster.size());
    if (cluster.size() < kWholeBelow) {
      if (const auto match = shortest(cluster)) {
        append(match->replacement);
        continue;
      }
    }
    while (!cluster.empty()) {
      const auto used = static_cast<size_t>(decode_utf8(cluster).length);
      const std::string_view character = cluster.substr(0, used);
      const auto match = shortest(character);
      append(match ? match->replacement : character);
      cluster.remove_prefix(used);
    }
  }
  return out;
}

}  // namespace lacuna
