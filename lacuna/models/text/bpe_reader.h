// SPDX-License-Identifier: Apache-2.0
// What the readers of both file forms of a byte-pair model share.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "lacuna/models/text/bpe_model.h"
#include "lacuna/models/text/hostile_json.h"

namespace lacuna {

// Llama 3's tokenizer.json has 9 to 17 MB.
inline constexpr size_t kMaxBpeFileBytes = size_t{64} << 20;

// {token: id, ...} with ids 0 to n - 1, each once. Throws Error naming `who`.
BpeVocabulary read_bpe_vocabulary(const nlohmann::json& tokens, std::string_view who);

// Neighbours by their texts, best first. Throws Error naming `who` and the place in the list if one
// of them or what they make together is no token, or if there are more than 2^22.
BpeMerges find_bpe_merges(std::span<const std::pair<std::string_view, std::string_view>> merges,
                          const BpeVocabulary& vocabulary, std::string_view who);

// An entry "left right" of a list. Throws Error naming `who` and `place`.
std::pair<std::string_view, std::string_view> split_bpe_merge(std::string_view entry, size_t place,
                                                              std::string_view who);

// An added token as tokenizer.json and tokenizer_config.json state it, but for its id.
AddedToken read_bpe_added(const HostileObject& object, int32_t id, std::string_view who);

}  // namespace lacuna
