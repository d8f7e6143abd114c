// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/llama_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <tuple>

#include "lacuna/core/convert.h"
#include "lacuna/core/metrics.h"
#include "tests/models/text/support.h"

namespace lacuna {
namespace {

using test::MapSource;
using ::testing::HasSubstr;

constexpr int64_t kSkipped = 2;

LlamaConfig golden_llama() {
  return {.vocab_size = 200,
          .dim = 96,
          .num_heads = 6,
          .num_kv_heads = 2,
          .head_dim = 24,
          .ffn_dim = 160,
          .num_layers = 5};
}

Tensor encode_llama(std::string_view backend_name, DType compute, std::span<const int32_t> ids,
                    int64_t first_row = 0) {
  const auto backend = make_backend(backend_name);
  Context ctx{*backend, compute};
  const auto source = hash_weights("w:", DType::f32);
  const LlamaTextEncoder encoder(golden_llama(), *source, detect_llama_names(*source), kSkipped);
  return encoder.encode(ctx, ids, first_row);
}

class LlamaOnBackend : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!test::has_backend(GetParam())) GTEST_SKIP() << "no backend " << GetParam();
  }
};

// transformers' LlamaModel, 113 tokens padded to 128 with a mask, hidden_states[-3], rows 95 to
// 112: tools/parity/text_encoders.py.
TEST_P(LlamaOnBackend, ReproducesTheGolden) {
  const std::vector<int32_t> ids = test::hash_ids("ids:llama", 113, 199.0);
  const Tensor y = encode_llama(GetParam(), DType::f32, ids, 95);
  ASSERT_EQ(y.view().shape[0], 18);
  test::expect_golden(
      y,
      {"llama-valid18",
       18 * 96,
       1.27334038,
       -7.05449715,
       {{0, -0.30932057}, {1, -0.40683949}, {2, 0.39670366}, {3, 1.4005151}, {1727, -1.1424155}}});
}

TEST_P(LlamaOnBackend, Bf16StaysNearF32) {
  const std::vector<int32_t> ids = test::hash_ids("ids:llama", 113, 199.0);
  const Tensor reference = encode_llama("ref", DType::f32, ids);
  const Tensor y = encode_llama(GetParam(), DType::bf16, ids);
  const ErrorStats error = compare(y, reference);
  EXPECT_LT(error.rel_l2, 1.2e-2);
  EXPECT_GT(error.cos_sim, 0.9999);
}

// HunyuanVideo's longest: 95 tokens of template, 256 of text.
TEST_P(LlamaOnBackend, TheLongestPromptAgreesWithRef) {
  const std::vector<int32_t> ids = test::hash_ids("ids:long llama", 351, 199.0);
  const Tensor reference = encode_llama("ref", DType::f32, ids);
  EXPECT_LT(compare(encode_llama(GetParam(), DType::f32, ids), reference).rel_l2, 2e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, LlamaOnBackend, ::testing::Values("ref", "cpu"));

TEST(LlamaTextEncoder, NoTokenSeesWhatFollows) {
  const std::vector<int32_t> ids = test::hash_ids("ids:llama", 140, 199.0);
  const Tensor whole = encode_llama("ref", DType::f32, ids);
  const Tensor part = encode_llama("ref", DType::f32, std::span(ids).first(130), 1);
  const Tensor same = copy_of(whole.view().slice(1, 130));
  EXPECT_EQ(compare(part, same).max_abs, 0.0);
}

// Rows of a matrix as llama.cpp's converter puts them: channels c and c + head_dim / 2 of a head
// lie beside each other.
Tensor pairs_beside(const TensorView& matrix, int64_t head_dim) {
  Tensor out(DType::f32, {matrix.shape[0], matrix.shape[1]});
  const auto bytes = static_cast<size_t>(matrix.shape[1]) * sizeof(float);
  for (int64_t row = 0; row < matrix.shape[0]; ++row) {
    const int64_t c = row % head_dim;
    const int64_t from = row - c + c / 2 + (c % 2) * (head_dim / 2);
    std::memcpy(out.view().slice(row, row + 1).data, matrix.slice(from, from + 1).data, bytes);
  }
  return out;
}

// The golden model with heads of `head_dim` under another naming scheme.
MapSource llama_source(const LlamaConfig& c, const LlamaNames& names) {
  MapSource source;
  const auto hash = hash_weights("w:model.", DType::f32);
  const auto put = [&](const std::string& name, std::vector<int64_t> shape, bool rotary = false) {
    const TensorView view = hash->load(name, shape);
    source.put(llama_source_name(name, names),
               rotary && names.gguf ? pairs_beside(view, c.head_dim) : copy_of(view));
  };
  put("embed_tokens.weight", {c.vocab_size, c.dim});
  const int64_t inner = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    put(p + "input_layernorm.weight", {c.dim});
    put(p + "post_attention_layernorm.weight", {c.dim});
    put(p + "self_attn.q_proj.weight", {inner, c.dim}, true);
    put(p + "self_attn.k_proj.weight", {kv, c.dim}, true);
    put(p + "self_attn.v_proj.weight", {kv, c.dim});
    put(p + "self_attn.o_proj.weight", {c.dim, inner});
    put(p + "mlp.gate_proj.weight", {c.ffn_dim, c.dim});
    put(p + "mlp.up_proj.weight", {c.ffn_dim, c.dim});
    put(p + "mlp.down_proj.weight", {c.dim, c.ffn_dim});
  }
  return source;
}

TEST(LlamaNames, EverySchemeAndPrefixGivesTheSameResult) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  LlamaConfig config = golden_llama();
  config.head_dim = 128;  // what is inferred where no config says it
  config.num_heads = 4;
  const auto ids = test::hash_ids("ids:llama", 9, 199.0);
  const auto hash = hash_weights("w:", DType::f32);
  const Tensor reference =
      LlamaTextEncoder(config, *hash, {false, "model."}, kSkipped).encode(ctx, ids);
  const LlamaNames all[] = {
      {false, "model."}, {false, ""}, {false, "language_model.model."}, {true, ""}};
  for (const LlamaNames& names : all) {
    MapSource source = llama_source(config, names);
    // The vision tower of a llava has layers of the same names.
    source.put("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
               Tensor::zeros(DType::f32, {8, 8}));
    const LlamaNames found = detect_llama_names(source);
    EXPECT_EQ(found.gguf, names.gguf);
    EXPECT_EQ(found.prefix, names.prefix);
    const LlamaConfig inferred = infer_llama_config(source, found);
    EXPECT_EQ(inferred.vocab_size, 200);
    EXPECT_EQ(inferred.dim, 96);
    EXPECT_EQ(inferred.num_heads, 4);
    EXPECT_EQ(inferred.num_kv_heads, 2);
    EXPECT_EQ(inferred.head_dim, 128);
    EXPECT_EQ(inferred.ffn_dim, 160);
    EXPECT_EQ(inferred.num_layers, 5);
    const Tensor y = LlamaTextEncoder(inferred, source, found, kSkipped).encode(ctx, ids);
    EXPECT_LT(compare(y, reference).rel_l2, names.gguf ? 1e-6 : 1e-30);
  }
}

TEST(LlamaNames, ScaledPositionsAndUnknownTensorsAreNamed) {
  EXPECT_THROW(llama_source_name("layers.0.self_attn.q_proj.bias", {}), Error);
  EXPECT_THROW(llama_source_name("layers.x.self_attn.q_proj.weight", {}), Error);
  MapSource empty;
  EXPECT_THROW(detect_llama_names(empty), Error);
  MapSource scaled = llama_source(golden_llama(), {true, ""});
  EXPECT_TRUE(detect_llama_names(scaled).gguf);
  EXPECT_THROW(infer_llama_config(scaled, {true, ""}), Error);  // heads of 24 in 144 rows
  scaled.put("rope_freqs.weight", Tensor::zeros(DType::f32, {12}));
  EXPECT_THROW(detect_llama_names(scaled), Error);
}

TEST(LlamaTextEncoder, NamesEveryMissingTensorOfTheLayersThatRun) {
  const LlamaNames names{false, "model."};
  MapSource source = llama_source(golden_llama(), names);
  for (const char* name :
       {"model.layers.3.self_attn.q_proj.weight", "model.layers.4.mlp.up_proj.weight"})
    source.erase(name);
  EXPECT_NO_THROW(LlamaTextEncoder(golden_llama(), source, names, kSkipped));
  source.erase("model.layers.1.self_attn.k_proj.weight");
  source.erase("model.layers.2.post_attention_layernorm.weight");
  try {
    LlamaTextEncoder(golden_llama(), source, names, kSkipped);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("lacks 2 tensors"));
    EXPECT_THAT(error.what(), HasSubstr("model.layers.1.self_attn.k_proj.weight"));
    EXPECT_THAT(error.what(), HasSubstr("model.layers.2.post_attention_layernorm.weight"));
  }
}

TEST(LlamaTextEncoder, RefusesBadIdsRowsAndLayers) {
  EXPECT_THROW(encode_llama("ref", DType::f32, {}), Error);
  EXPECT_THROW(encode_llama("ref", DType::f32, std::vector<int32_t>{1, 200}), Error);
  EXPECT_THROW(encode_llama("ref", DType::f32, std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(encode_llama("ref", DType::f32, std::vector<int32_t>{1, 2}, 2), Error);
  EXPECT_THROW(encode_llama("ref", DType::f32, std::vector<int32_t>{1, 2}, -1), Error);
  EXPECT_THROW(
      encode_llama("ref", DType::f32, std::vector<int32_t>(LlamaTextEncoder::kMaxTokens + 1, 1)),
      Error);
  const auto source = hash_weights("w:", DType::f32);
  for (const int64_t skipped : {0, 5})
    EXPECT_THROW(LlamaTextEncoder(golden_llama(), *source, {}, skipped), Error);
}

TEST(LlamaTextEncoder, StopsBetweenLayers) {
  const auto backend = make_backend("ref");
  const std::atomic<bool> stop{true};
  Context ctx{*backend, DType::f32, &stop};
  const auto source = hash_weights("w:", DType::f32);
  const LlamaTextEncoder encoder(golden_llama(), *source, {}, kSkipped);
  EXPECT_THROW(encoder.encode(ctx, std::vector<int32_t>{1, 2}), Cancelled);
}

// As versions 4 and 5 of transformers write it.
TEST(LlamaConfig, ReadsTheConfigOfLlama3) {
  const std::string common =
      R"({"architectures":["LlamaModel"],"attention_bias":false,"hidden_act":"silu",
          "hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":8192,
          "mlp_bias":false,"model_type":"llama","num_attention_heads":32,"num_hidden_layers":32,
          "num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":128320,)";
  for (const char* rope :
       {R"("rope_scaling":null,"rope_theta":500000.0})",
        R"("head_dim":128,"rope_parameters":{"rope_theta":500000.0,"rope_type":"default"}})"}) {
    const LlamaConfig config = llama_config_from_json(common + rope, "config.json");
    const LlamaConfig expected;
    EXPECT_EQ(config.vocab_size, expected.vocab_size);
    EXPECT_EQ(config.dim, expected.dim);
    EXPECT_EQ(config.num_heads, expected.num_heads);
    EXPECT_EQ(config.num_kv_heads, expected.num_kv_heads);
    EXPECT_EQ(config.head_dim, expected.head_dim);
    EXPECT_EQ(config.ffn_dim, expected.ffn_dim);
    EXPECT_EQ(config.num_layers, expected.num_layers);
    EXPECT_EQ(config.eps, expected.eps);
    EXPECT_EQ(config.rope_theta, expected.rope_theta);
  }
}

TEST(LlamaConfig, HostileTextGivesOneErrorThatNamesTheField) {
  const std::string good =
      R"({"vocab_size":200,"hidden_size":96,"intermediate_size":160,"num_hidden_layers":5,
"num_attention_heads":6,"num_key_value_heads":2,"head_dim":24,"rope_theta":500000})";
  EXPECT_NO_THROW(llama_config_from_json(good, "x"));
  const std::string last = "\"rope_theta\":500000";
  const std::tuple<std::string, std::string, std::string> swaps[] = {
      {"\"hidden_size\":96", "\"hidden_size\":-96", "hidden_size"},
      {"\"hidden_size\":96", "\"hidden_size\":18446744073709551615", "hidden_size"},
      {"\"hidden_size\":96", "\"hidden_size\":\"96\"", "hidden_size"},
      {"\"intermediate_size\":160", "\"intermediate_size\":1e9", "intermediate_size"},
      {"\"num_hidden_layers\":5", "\"num_hidden_layers\":1000000000", "num_hidden_layers"},
      {"\"num_attention_heads\":6", "\"num_attention_heads\":0", "num_attention_heads"},
      {"\"num_key_value_heads\":2", "\"num_key_value_heads\":4", "num_key_value_heads"},
      {"\"num_key_value_heads\":2", "\"num_key_value_heads\":12", "num_key_value_heads"},
      {"\"head_dim\":24", "\"head_dim\":23", "head_dim"},
      {"\"head_dim\":24", "\"head_dim\":0", "head_dim"},
      {last, "\"rope_theta\":0.5", "rope_theta"},
      {last, "\"rope_theta\":1e300", "rope_theta"},
      {last, "\"rope_theta\":[]", "rope_theta"},
      {last, "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "rope_scaling"},
      {last, "\"rope_scaling\":{\"rope_type\":\"llama3\"}", "llama3"},
      {last, "\"rope_parameters\":{\"rope_type\":\"yarn\"}", "yarn"},
      {last, "\"rope_parameters\":{\"rope_type\":7}", "rope_type"},
      {last, "\"rope_parameters\":{\"rope_theta\":\"x\"}", "rope_theta"},
      {last, "\"rope_scaling\":\"linear\"", "rope_scaling"},
      {last, "\"hidden_act\":\"gelu\"", "hidden_act"},
      {last, "\"attention_bias\":true", "attention_bias"},
      {last, "\"mlp_bias\":1", "mlp_bias"},
      {last, "\"model_type\":\"llava\"", "model_type"},
      {last, "\"rms_norm_eps\":0", "rms_norm_eps"},
  };
  for (const auto& [from, to, field] : swaps) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    try {
      llama_config_from_json(text, "x");
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(field)) << text;
      EXPECT_THAT(error.what(), HasSubstr("x: "));
    }
  }
  for (const char* text : {"", "[]", "{", "null", "\xff", "{}"})
    EXPECT_THROW(llama_config_from_json(text, "x"), Error) << text;
}

}  // namespace
}  // namespace lacuna
