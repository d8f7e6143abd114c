// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/clip_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "lacuna/core/convert.h"
#include "lacuna/core/metrics.h"
#include "tests/models/text/support.h"

namespace lacuna {
namespace {

using test::MapSource;
using ::testing::HasSubstr;

ClipTextConfig golden_clip(int64_t end_token) {
  return {.vocab_size = 200,
          .dim = 64,
          .num_heads = 4,
          .ffn_dim = 160,
          .num_layers = 3,
          .end_token = end_token};
}

// Begin, 20 tokens, end and what pads to 77.
std::vector<int32_t> golden_clip_ids(int32_t end) {
  std::vector<int32_t> ids = test::hash_ids("ids:clip", 20, 190.0);
  ids.insert(ids.begin(), 198);
  ids.resize(77, end);
  return ids;
}

Tensor encode_clip(std::string_view backend_name, DType compute, int64_t end_token,
                   std::span<const int32_t> ids) {
  const auto backend = make_backend(backend_name);
  Context ctx{*backend, compute};
  const auto source = hash_weights("w:", DType::f32);
  const std::string prefix = detect_clip_text_prefix(*source);
  return ClipTextEncoder(golden_clip(end_token), *source, prefix).encode(ctx, ids);
}

class ClipOnBackend : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!test::has_backend(GetParam())) GTEST_SKIP() << "no backend " << GetParam();
  }
};

// transformers' CLIPTextModel, padded to 77 without a mask: tools/parity/text_encoders.py.
TEST_P(ClipOnBackend, PoolsTheRowOfTheHighestId) {
  const test::Golden golden{
      "clip-highest",
      64,
      1.00584887,
      -7.82779878,
      {{0, -1.0668494}, {1, 1.4661199}, {2, 1.2583877}, {3, 1.1814929}, {63, 1.164418}}};
  const std::vector<int32_t> ids = golden_clip_ids(199);
  test::expect_golden(encode_clip(GetParam(), DType::f32, 2, ids), golden);
  const auto unpadded = std::span(ids).first(22);
  test::expect_golden(encode_clip(GetParam(), DType::f32, 2, unpadded), golden);
}

TEST_P(ClipOnBackend, PoolsTheRowOfTheEndToken) {
  test::expect_golden(
      encode_clip(GetParam(), DType::f32, 195, golden_clip_ids(195)),
      {"clip-end",
       64,
       0.998332846,
       -2.05873907,
       {{0, -1.5525718}, {1, 0.71377969}, {2, 0.4732624}, {3, 1.4749597}, {63, 0.3421708}}});
}

TEST_P(ClipOnBackend, Bf16StaysNearF32) {
  const Tensor reference = encode_clip("ref", DType::f32, 2, golden_clip_ids(199));
  const Tensor y = encode_clip(GetParam(), DType::bf16, 2, golden_clip_ids(199));
  const ErrorStats error = compare(y, reference);
  EXPECT_LT(error.rel_l2, 1e-2);
  EXPECT_GT(error.cos_sim, 0.9999);
}

// All 77 rows are one prompt's.
TEST_P(ClipOnBackend, TheLongestPromptAgreesWithRef) {
  std::vector<int32_t> ids = test::hash_ids("ids:long clip", 76, 190.0);
  ids.push_back(199);
  const Tensor reference = encode_clip("ref", DType::f32, 2, ids);
  EXPECT_LT(compare(encode_clip(GetParam(), DType::f32, 2, ids), reference).rel_l2, 2e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, ClipOnBackend, ::testing::Values("ref", "cpu"));

// All tensors of the golden model.
MapSource golden_clip_source(const std::string& prefix) {
  MapSource source;
  const auto hash = hash_weights("w:text_model.", DType::f32);
  const auto put = [&](const std::string& name, std::vector<int64_t> shape) {
    source.put(prefix + name, copy_of(hash->load(name, shape)));
  };
  put("embeddings.token_embedding.weight", {200, 64});
  put("embeddings.position_embedding.weight", {77, 64});
  const auto both = [&](const std::string& name, std::vector<int64_t> weight) {
    put(name + ".weight", weight);
    put(name + ".bias", {weight[0]});
  };
  for (int i = 0; i < 3; ++i) {
    const std::string p = "encoder.layers." + std::to_string(i) + ".";
    for (const char* m : {"q_proj", "k_proj", "v_proj", "out_proj"})
      both(p + "self_attn." + m, {64, 64});
    both(p + "mlp.fc1", {160, 64});
    both(p + "mlp.fc2", {64, 160});
    for (const char* m : {"layer_norm1", "layer_norm2"}) both(p + m, {64});
  }
  both("final_layer_norm", {64});
  return source;
}

TEST(ClipTextEncoder, EveryPrefixGivesTheSameResult) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const std::vector<int32_t> ids = golden_clip_ids(199);
  const Tensor reference = encode_clip("ref", DType::f32, 2, ids);
  for (const char* prefix : {"text_model.", "", "text_encoders.clip_l.transformer.text_model."}) {
    MapSource source = golden_clip_source(prefix);
    EXPECT_EQ(detect_clip_text_prefix(source), prefix);
    ClipTextConfig config = infer_clip_text_config(source, prefix);
    EXPECT_EQ(config.vocab_size, 200);
    EXPECT_EQ(config.dim, 64);
    EXPECT_EQ(config.ffn_dim, 160);
    EXPECT_EQ(config.num_layers, 3);
    EXPECT_EQ(config.max_tokens, 77);
    EXPECT_EQ(config.num_heads, 1);  // heads of 64
    config.num_heads = 4;
    const Tensor y = ClipTextEncoder(config, source, prefix).encode(ctx, ids);
    EXPECT_EQ(compare(y, reference).max_abs, 0.0);
  }
  MapSource empty;
  EXPECT_THROW(detect_clip_text_prefix(empty), Error);
}

TEST(ClipTextEncoder, NamesEveryMissingTensor) {
  MapSource source = golden_clip_source("text_model.");
  source.erase("text_model.encoder.layers.1.self_attn.k_proj.bias");
  source.erase("text_model.final_layer_norm.weight");
  try {
    ClipTextEncoder(golden_clip(2), source, "text_model.");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("text_model.encoder.layers.1.self_attn.k_proj.bias"));
    EXPECT_THAT(error.what(), HasSubstr("text_model.final_layer_norm.weight"));
  }
}

TEST(ClipTextEncoder, RefusesBadIds) {
  const auto encode = [](int64_t end_token, std::vector<int32_t> ids) {
    encode_clip("ref", DType::f32, end_token, ids);
  };
  EXPECT_NO_THROW(encode(195, {198, 195}));
  EXPECT_THROW(encode(195, {198, 194}), Error);  // no end token
  EXPECT_THROW(encode(2, {}), Error);
  EXPECT_THROW(encode(2, {198, 200}), Error);
  EXPECT_THROW(encode(2, {-1}), Error);
  EXPECT_THROW(encode(2, std::vector<int32_t>(78, 1)), Error);
}

TEST(ClipTextEncoder, StopsBetweenLayers) {
  const auto backend = make_backend("ref");
  const std::atomic<bool> stop{true};
  Context ctx{*backend, DType::f32, &stop};
  const auto source = hash_weights("w:", DType::f32);
  const ClipTextEncoder encoder(golden_clip(2), *source, "text_model.");
  EXPECT_THROW(encoder.encode(ctx, std::vector<int32_t>{1, 2}), Cancelled);
}

TEST(ClipTextConfig, ReadsTheConfigOfClipL) {
  const ClipTextConfig config = clip_text_config_from_json(
      R"({"architectures":["CLIPTextModel"],"bos_token_id":0,"dropout":0.0,"eos_token_id":2,
          "hidden_act":"quick_gelu","hidden_size":768,"intermediate_size":3072,
          "layer_norm_eps":1e-05,"max_position_embeddings":77,"model_type":"clip_text_model",
          "num_attention_heads":12,"num_hidden_layers":12,"pad_token_id":1,"projection_dim":768,
          "vocab_size":49408})",
      "config.json");
  const ClipTextConfig expected;
  EXPECT_EQ(config.vocab_size, expected.vocab_size);
  EXPECT_EQ(config.dim, expected.dim);
  EXPECT_EQ(config.head_dim(), 64);
  EXPECT_EQ(config.ffn_dim, expected.ffn_dim);
  EXPECT_EQ(config.num_layers, expected.num_layers);
  EXPECT_EQ(config.max_tokens, expected.max_tokens);
  EXPECT_EQ(config.eps, expected.eps);
  EXPECT_EQ(config.end_token, 2);
}

TEST(ClipTextConfig, HostileTextGivesOneErrorThatNamesTheField) {
  const std::string good =
      R"({"vocab_size":200,"hidden_size":64,"intermediate_size":160,"num_hidden_layers":3,
"num_attention_heads":4,"max_position_embeddings":77,"eos_token_id":2})";
  EXPECT_NO_THROW(clip_text_config_from_json(good, "x"));
  const std::tuple<std::string, std::string, std::string> swaps[] = {
      {"\"hidden_size\":64", "\"hidden_size\":-64", "hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":66", "hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":18446744073709551615", "hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":\"64\"", "hidden_size"},
      {"\"intermediate_size\":160", "\"intermediate_size\":1e9", "intermediate_size"},
      {"\"num_hidden_layers\":3", "\"num_hidden_layers\":1000000000", "num_hidden_layers"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":0", "num_attention_heads"},
      {"\"max_position_embeddings\":77", "\"max_position_embeddings\":0", "max_position"},
      {"\"eos_token_id\":2", "\"eos_token_id\":200", "eos_token_id"},
      {"\"eos_token_id\":2", "\"eos_token_id\":[2]", "eos_token_id"},
      {"\"eos_token_id\":2", "\"eos_token\":2", "eos_token_id"},
      {"\"eos_token_id\":2", "\"eos_token_id\":2,\"hidden_act\":\"gelu\"", "hidden_act"},
      {"\"eos_token_id\":2", "\"eos_token_id\":2,\"model_type\":\"clip\"", "model_type"},
      {"\"eos_token_id\":2", "\"eos_token_id\":2,\"layer_norm_eps\":0", "layer_norm_eps"},
      {"\"eos_token_id\":2", "\"eos_token_id\":2,\"layer_norm_eps\":null", "layer_norm_eps"},
  };
  for (const auto& [from, to, field] : swaps) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    try {
      clip_text_config_from_json(text, "x");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(field)) << text;
      EXPECT_THAT(error.what(), HasSubstr("x: "));
    }
  }
  for (const char* text : {"", "[]", "{", "null", "\xff", "{}"})
    EXPECT_THROW(clip_text_config_from_json(text, "x"), Error) << text;
}

}  // namespace
}  // namespace lacuna
