// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hunyuan_prompt.h"

#include <gtest/gtest.h>

#include "lacuna/core/metrics.h"
#include "lacuna/core/rng.h"
#include "tests/models/text/support.h"

namespace lacuna {
namespace {

class HunyuanPrompt : public ::testing::Test {
 protected:
  PromptEmbedding encode(std::span<const int32_t> llama_ids, std::span<const int32_t> clip_ids) {
    return hunyuan_prompt(ctx_, llama_, clip_, llama_ids, clip_ids);
  }

  std::unique_ptr<Backend> backend_ = make_backend("ref");
  Context ctx_{*backend_};
  std::unique_ptr<WeightSource> source_ = hash_weights("w:", DType::f32);
  const LlamaConfig config_{.vocab_size = 200,
                            .dim = 32,
                            .num_heads = 2,
                            .num_kv_heads = 1,
                            .head_dim = 16,
                            .ffn_dim = 48,
                            .num_layers = 3};
  const LlamaTextEncoder llama_{config_, *source_, {}, kHunyuanSkippedLayers};
  const ClipTextEncoder clip_{
      {.vocab_size = 200, .dim = 32, .num_heads = 2, .ffn_dim = 48, .num_layers = 2},
      *source_,
      "text_model."};
  const std::vector<int32_t> ids_ = test::hash_ids("ids:hunyuan", 400, 199.0);
  const std::vector<int32_t> clip_ids_{198, 4, 70, 199};
};

// FNV-1a of the template of diffusers (DEFAULT_PROMPT_TEMPLATE, 0.42.1) with "a cat" in it.
TEST_F(HunyuanPrompt, AsksTheLlamaAsThePipelineDoes) {
  const std::string text = hunyuan_llama_text("a cat");
  EXPECT_EQ(text.size(), 515u);
  EXPECT_EQ(fnv1a64(text), 0xda618e4024f6f3d2u);
  EXPECT_TRUE(hunyuan_llama_text("{} {x}").ends_with("\n\n{} {x}<|eot_id|>"));
}

TEST_F(HunyuanPrompt, HandsOnTheRowsBehindTheTemplate) {
  const auto ids = std::span(ids_).first(101);
  const PromptEmbedding y = encode(ids, clip_ids_);
  ASSERT_EQ(y.tokens.view().shape[0], 6);
  ASSERT_EQ(y.tokens.view().shape[1], 32);
  EXPECT_EQ(compare(y.tokens, llama_.encode(ctx_, ids, 95)).max_abs, 0.0);
  ASSERT_EQ(y.pooled.view().rank, 1);
  EXPECT_EQ(compare(y.pooled, clip_.encode(ctx_, clip_ids_)).max_abs, 0.0);
}

TEST_F(HunyuanPrompt, CutsTheEndOfALongPrompt) {
  std::vector<int32_t> clip_ids = test::hash_ids("ids:clip", 90, 190.0);
  clip_ids.push_back(199);
  const PromptEmbedding y = encode(ids_, clip_ids);
  ASSERT_EQ(y.tokens.view().shape[0], 256);
  EXPECT_EQ(compare(y.tokens, llama_.encode(ctx_, std::span(ids_).first(351), 95)).max_abs, 0.0);
  clip_ids.erase(clip_ids.begin() + 76, clip_ids.begin() + 90);
  ASSERT_EQ(clip_ids.size(), 77u);
  EXPECT_EQ(compare(y.pooled, clip_.encode(ctx_, clip_ids)).max_abs, 0.0);
}

TEST_F(HunyuanPrompt, RefusesWhatDoesNotFit) {
  EXPECT_NO_THROW(encode(std::span(ids_).first(96), clip_ids_));
  EXPECT_THROW(encode(std::span(ids_).first(95), clip_ids_), Error);
  EXPECT_THROW(encode(std::span(ids_).first(96), {}), Error);
  const LlamaTextEncoder other(config_, *source_, {}, 1);
  EXPECT_THROW(hunyuan_prompt(ctx_, other, clip_, ids_, clip_ids_), Error);
}

}  // namespace
}  // namespace lacuna
