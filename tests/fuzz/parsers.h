// SPDX-License-Identifier: Apache-2.0
// One function per parser of hostile input. Each takes arbitrary bytes and returns whether they
// were accepted; lacuna::Error is the only refusal. Anything else that escapes, and any read
// outside the input (sanitizers watch), is a bug. Shared by the fuzzers and by the test that
// replays their corpus.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lacuna::fuzz {

bool try_safetensors(std::span<const uint8_t> input);
bool try_gguf(std::span<const uint8_t> input);
// The first byte chooses: shard index, config.json of a transformer, VAE or text encoder.
bool try_json(std::span<const uint8_t> input);

// The first byte chooses: tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json with
// 0x1e between them. What is accepted encodes a text.
bool try_bpe(std::span<const uint8_t> input);
bool try_masks(std::span<const uint8_t> input);
bool try_trace(std::span<const uint8_t> input);

struct Parser {
  std::string_view name;  // folder under tests/fuzz/corpus
  bool (*run)(std::span<const uint8_t> input);
};
inline constexpr Parser kParsers[] = {{"safetensors", try_safetensors},
                                      {"gguf", try_gguf},
                                      {"json", try_json},
                                      {"bpe", try_bpe},
                                      {"masks", try_masks},
                                      {"trace", try_trace}};

}  // namespace lacuna::fuzz
