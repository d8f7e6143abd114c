// SPDX-License-Identifier: Apache-2.0
// What HunyuanVideo (arXiv 2412.03603) makes of a prompt, as its pipeline in diffusers does: hidden
// states of a Llama that was asked to describe the video, and CLIP-L's pooled row.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/models/context.h"
#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/llama_text.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

// Layers of the Llama after the hidden states that are used.
inline constexpr int64_t kHunyuanSkippedLayers = 2;
// Tokens of the template before the prompt, begin-of-text included: seen by the prompt's tokens,
// but not handed on.
inline constexpr int64_t kHunyuanTemplateTokens = 95;
// Most tokens that are handed on; the end of a longer prompt is cut off.
inline constexpr int64_t kHunyuanTextTokens = 256;

// The template with the prompt in it, as the Llama's tokenizer takes it: with its special tokens
// written out, but without begin-of-text, which the tokenizer puts in front. CLIP's tokenizer takes
// the prompt itself.
std::string hunyuan_llama_text(std::string_view prompt);

// llama_ids: of hunyuan_llama_text(prompt) with begin-of-text in front, not padded. clip_ids: of
// the prompt between begin and end token, padded to what CLIP takes or not; of more the last one
// (the end token) stays and those before it are cut. Throws Error for ids that are shorter than the
// template, a Llama with other than kHunyuanSkippedLayers skipped, or see the encoders.
PromptEmbedding hunyuan_prompt(Context& ctx, const LlamaTextEncoder& llama,
                               const ClipTextEncoder& clip, std::span<const int32_t> llama_ids,
                               std::span<const int32_t> clip_ids);

}  // namespace lacuna
