// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/hunyuan_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/metrics.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/text/hunyuan_prompt.h"
#include "tests/support/error_of.h"
#include "tests/support/noting_weights.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json fixture_json(const char* file) {
  std::ifstream in(test::test_data() / "tokenizer/bpe" / file);
  return Json::parse(in);
}

// Llama 3's fixture as a tokenizer of single bytes, with one token for so much of the template that
// it is as long as that of the real one. `begin`: id of the token in front of all.
Json fitting_tokenizer(int begin) {
  constexpr std::string_view kEnd = "<|eot_id|>";
  std::string before = hunyuan_llama_text("");
  before.resize(before.size() - kEnd.size());
  // The long token leaves two tokens less than the template has, of which kEnd is one.
  before.resize(before.size() - (kHunyuanTemplateTokens - 2 + kEnd.size() - 1));
  Json json = fixture_json("llama3.tokenizer.json");
  json["model"]["merges"] = Json::array();
  json["model"]["ignore_merges"] = false;
  json["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"] = {begin};
  json["added_tokens"] = Json::array();
  int id = 1000;
  for (const std::string_view text :
       {std::string_view("<|begin_of_text|>"), kEnd, std::string_view(before)})
    json["added_tokens"].push_back({{"id", id++},
                                    {"content", text},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  return json;
}

void save(const fs::path& file, const Json& json) {
  std::ofstream(file) << json.dump();
}

// Tiny encoders and tokenizers on disk, as a HunyuanVideo folder has them.
class HunyuanEncoder : public ::testing::Test {
 protected:
  HunyuanEncoder() {
    save_llama("w:");
    save_clip("w:");
    save(folder_ / "llama.json", fitting_tokenizer(1000));
  }

  void save_llama(const std::string& weights) const {
    test::NotingWeights source(weights, DType::f32);
    const LlamaTextEncoder llama(llama_config_from_json(kLlamaConfig, "test"), source, {},
                                 kHunyuanSkippedLayers);
    source.save(folder_ / "llama", "");
  }
  void save_clip(const std::string& weights) const {
    test::NotingWeights source(weights, DType::f32);
    const ClipTextEncoder clip(clip_text_config_from_json(kClipConfig, "test"), source, "");
    source.save(folder_ / "clip", "");
  }

  HunyuanEncoderFiles files() const {
    constexpr const char* kWeights = "diffusion_pytorch_model.safetensors";
    return {.llama = {folder_ / "llama" / kWeights},
            .clip = {folder_ / "clip" / kWeights},
            .llama_config = kLlamaConfig,
            .clip_config = kClipConfig,
            .llama_tokenizer = folder_ / "llama.json",
            .clip_tokenizer = test::test_data() / "tokenizer/bpe/clip.tokenizer.json",
            .cache = cache_};
  }
  PromptEmbedding embed(const HunyuanEncoderFiles& files, std::string_view prompt = "a cat") {
    TransformerSizes sizes;
    sizes.text_dim = 32;
    sizes.pooled_dim = 48;
    return HunyuanTextEncoder(files).embed(ctx_, prompt, sizes);
  }
  std::vector<fs::path> entries() const {
    std::vector<fs::path> found;
    if (fs::exists(cache_))
      for (const auto& entry : fs::directory_iterator(cache_)) found.push_back(entry.path());
    return found;
  }
  // Zeros for the rows that the only entry holds: whoever gets them has not run the Llama.
  void mark_entry() const {
    ASSERT_EQ(entries().size(), 1u);
    const SafetensorsFile file(entries()[0]);
    const TensorView rows = file.at("embedding");
    const Tensor zeros = Tensor::zeros(DType::f32, {rows.shape[0], rows.shape[1]});
    write_safetensors(entries()[0], {{"ids", file.at("ids")}, {"embedding", zeros}},
                      file.metadata());
  }
  static bool same(const Tensor& a, const Tensor& b) {
    return a.view().shape == b.view().shape && compare(a, b).max_abs == 0.0;
  }
  static bool marked(const PromptEmbedding& embedding) {
    const float* values = embedding.tokens.as<float>();
    return std::all_of(values, values + embedding.tokens.numel(), [](float v) { return v == 0; });
  }

  static constexpr const char* kLlamaConfig = R"({"vocab_size": 1003, "hidden_size": 32,
      "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
      "num_hidden_layers": 3})";
  static constexpr const char* kClipConfig = R"({"vocab_size": 1002, "hidden_size": 48,
      "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2,
      "max_position_embeddings": 77, "eos_token_id": 2})";
  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path(), cache_ = folder_ / "cache";
  const std::unique_ptr<Backend> backend_ = make_backend("ref");
  Context ctx_{*backend_, DType::f32};
};

TEST_F(HunyuanEncoder, GivesARowForEachTokenOfThePrompt) {
  const PromptEmbedding cat = embed(files());
  EXPECT_EQ(HunyuanTextEncoder(files()).count_tokens("a cat"), 6);  // five bytes and the end
  EXPECT_EQ(cat.tokens.view().shape[0], 6);
  EXPECT_EQ(cat.pooled.numel(), 48);
  EXPECT_FALSE(marked(cat));
}

TEST_F(HunyuanEncoder, TheCacheSparesTheLlama) {
  const PromptEmbedding first = embed(files());
  EXPECT_TRUE(same(embed(files()).tokens, first.tokens));
  mark_entry();
  const PromptEmbedding kept = embed(files());
  EXPECT_TRUE(marked(kept));
  EXPECT_TRUE(same(kept.pooled, first.pooled));

  const PromptEmbedding other = embed(files(), "a fox");
  EXPECT_FALSE(marked(other));
  EXPECT_FALSE(same(other.tokens, first.tokens));
  EXPECT_FALSE(same(other.pooled, first.pooled));
  EXPECT_EQ(entries().size(), 2u);
}

// CLIP is small: its row is made each time, so no entry can hold that of another CLIP.
TEST_F(HunyuanEncoder, ThePooledRowIsNotKept) {
  const PromptEmbedding first = embed(files());
  mark_entry();
  save_clip("other:");
  const PromptEmbedding other = embed(files());
  EXPECT_TRUE(marked(other));
  EXPECT_FALSE(same(other.pooled, first.pooled));
  HunyuanEncoderFiles two_prompts = files();
  two_prompts.clip_tokenizer = folder_ / "clip.json";
  Json tokenizer = fixture_json("clip.tokenizer.json");
  tokenizer["model"]["merges"] = Json::array();
  save(two_prompts.clip_tokenizer, tokenizer);
  EXPECT_FALSE(same(embed(two_prompts).pooled, other.pooled));
}

TEST_F(HunyuanEncoder, AnotherLlamaIsNotTakenFromTheCache) {
  embed(files());
  mark_entry();
  HunyuanEncoderFiles other = files();
  other.llama_config = Json::parse(kLlamaConfig)
                           .patch(Json::parse(R"([{"op": "add",
      "path": "/rms_norm_eps", "value": 0.01}])"))
                           .dump();
  EXPECT_FALSE(marked(embed(other)));
  save_llama("other:");
  EXPECT_FALSE(marked(embed(files())));
  EXPECT_EQ(entries().size(), 3u);
}

// Its ids of the prompt are the same, those of the template are not.
TEST_F(HunyuanEncoder, AnotherTemplateIsNotTakenFromTheCache) {
  const PromptEmbedding first = embed(files());
  mark_entry();
  save(folder_ / "llama.json", fitting_tokenizer(7));
  const PromptEmbedding other = embed(files());
  EXPECT_FALSE(marked(other));
  EXPECT_FALSE(same(other.tokens, first.tokens));
}

TEST_F(HunyuanEncoder, ADamagedEntryIsMadeAgain) {
  const PromptEmbedding first = embed(files());
  const fs::path entry = entries().at(0);
  std::ofstream(entry, std::ios::trunc) << "damaged";
  EXPECT_TRUE(same(embed(files()).tokens, first.tokens));
  mark_entry();
  EXPECT_TRUE(marked(embed(files())));
}

TEST_F(HunyuanEncoder, WithoutACacheNothingIsWritten) {
  HunyuanEncoderFiles bare = files();
  bare.cache.clear();
  const PromptEmbedding first = embed(bare);
  EXPECT_TRUE(entries().empty());
  EXPECT_TRUE(same(embed(files()).tokens, first.tokens));
  mark_entry();
  EXPECT_TRUE(same(embed(bare).tokens, first.tokens));
}

// Whole pipelines: tools/parity/joint_pipelines.py.
TEST_F(HunyuanEncoder, RefusesATokenizerOfAnotherLlama) {
  const auto fixtures = test::test_data() / "tokenizer/bpe";
  for (const char* file : {"llama3.tokenizer.json", "clip.tokenizer.json"}) {
    HunyuanEncoderFiles other = files();
    other.llama_tokenizer = fixtures / file;
    EXPECT_THAT(test::error_of([&] { HunyuanTextEncoder{other}; }),
                ::testing::AllOf(HasSubstr(file), HasSubstr("of the template and its end, "
                                                            "expected 96")));
  }
}

}  // namespace
}  // namespace lacuna
