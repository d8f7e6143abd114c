// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/umt5.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/safetensors.h"
#include "tests/models/text/support.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

using test::MapSource;
using ::testing::HasSubstr;

Umt5Config golden_config() {
  return {.vocab_size = 200,
          .dim = 64,
          .num_heads = 4,
          .head_dim = 16,
          .ffn_dim = 160,
          .num_layers = 3};
}

Umt5Config t5_config() {
  Umt5Config config = golden_config();
  config.shared_bias = true;
  return config;
}

std::vector<int32_t> golden_ids() {
  std::vector<int32_t> ids = test::hash_ids("ids:umt5", 17, 199.0);
  ids.push_back(1);
  return ids;
}

// All tensors of the golden model under another naming scheme.
MapSource renamed_golden(const Umt5Names& names, DType embedding = DType::f32) {
  const Umt5Config c = golden_config();
  MapSource source;
  const auto hash = hash_weights("w:", DType::f32);
  const auto put = [&](const std::string& name, std::initializer_list<int64_t> shape) {
    const TensorView view = hash->load(name, std::span<const int64_t>(shape.begin(), shape.size()));
    const DType dtype = name == "token_embedding.weight" ? embedding : DType::f32;
    source.put(umt5_source_name(name, names), converted(view, dtype));
  };
  put("token_embedding.weight", {c.vocab_size, c.dim});
  put("norm.weight", {c.dim});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string p = "blocks." + std::to_string(i) + ".";
    put(p + "norm1.weight", {c.dim});
    put(p + "norm2.weight", {c.dim});
    put(p + "pos_embedding.embedding.weight", {kUmt5Buckets, c.num_heads});
    for (const char* m : {"q", "k", "v"}) put(p + "attn." + m + ".weight", {c.inner_dim(), c.dim});
    put(p + "attn.o.weight", {c.dim, c.inner_dim()});
    put(p + "ffn.gate.0.weight", {c.ffn_dim, c.dim});
    put(p + "ffn.fc1.weight", {c.ffn_dim, c.dim});
    put(p + "ffn.fc2.weight", {c.dim, c.ffn_dim});
  }
  return source;
}

Tensor encode_golden(std::string_view backend_name, DType compute, std::span<const int32_t> ids) {
  const auto backend = make_backend(backend_name);
  Context ctx{*backend, compute};
  const auto source = hash_weights("w:", DType::f32);
  const Umt5Encoder encoder(golden_config(), *source, detect_umt5_names(*source));
  return encoder.encode(ctx, ids);
}

class Umt5OnBackend : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!test::has_backend(GetParam())) GTEST_SKIP() << "no backend " << GetParam();
  }
};

// Golden case `umt5-valid18`: transformers' UMT5EncoderModel in f32 on hash weights.
TEST_P(Umt5OnBackend, ReproducesTheGolden) {
  const std::vector<int32_t> ids = golden_ids();
  EXPECT_EQ(ids, (std::vector<int32_t>{19, 111, 182, 126, 66, 133, 82, 134, 68, 44, 72, 42, 197, 88,
                                       179, 40, 25, 1}));
  const Tensor y = encode_golden(GetParam(), DType::f32, ids);
  ASSERT_EQ(y.view().rank, 2);
  ASSERT_EQ(y.view().shape[0], 18);
  test::expect_golden(
      y, {"umt5-valid18",
          18 * 64,
          0.996272222,
          -13.8910568,
          {{0, -0.7738253}, {1, 0.4321171}, {2, 1.323613}, {3, -0.855696}, {1151, -0.355733}}});
}

// transformers' T5EncoderModel: tools/parity/text_encoders.py.
TEST_P(Umt5OnBackend, SharesTheBiasOfLayer0AsT5) {
  const auto backend = make_backend(GetParam());
  Context ctx{*backend};
  std::vector<int32_t> ids = test::hash_ids("ids:t5", 17, 199.0);
  ids.push_back(1);
  const auto source = hash_weights("w:", DType::f32);
  test::expect_golden(Umt5Encoder(t5_config(), *source, {}).encode(ctx, ids),
                      {"t5-valid18",
                       18 * 64,
                       0.996403204,
                       23.5089744,
                       {{0, 1.3321803},
                        {1, -0.80915797},
                        {2, 0.0057765888},
                        {3, -0.83721203},
                        {1151, 0.73418307}}});
}

// Logits are not scaled by 1/sqrt(head_dim), so rounding q and k to bf16 costs more than in the
// video transformer (2.2e-2 here; transformers in bf16 throughout: 3.5e-2, cosine 0.99938).
TEST_P(Umt5OnBackend, Bf16StaysNearF32) {
  const Tensor reference = encode_golden("ref", DType::f32, golden_ids());
  const Tensor y = encode_golden(GetParam(), DType::bf16, golden_ids());
  const ErrorStats error = compare(y, reference);
  EXPECT_LT(error.rel_l2, 2.6e-2);
  EXPECT_GT(error.cos_sim, 0.9996);
}

// Longer than one query block, with distances past the last bucket.
TEST_P(Umt5OnBackend, LongPromptAgreesWithRef) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 201; ++i) ids.push_back((i * 37 + 5) % 200);
  const Tensor reference = encode_golden("ref", DType::f32, ids);
  const Tensor y = encode_golden(GetParam(), DType::f32, ids);
  EXPECT_LT(compare(y, reference).rel_l2, 2e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, Umt5OnBackend, ::testing::Values("ref", "cpu"));

TEST(Umt5Bucket, MatchesTheLogarithmOfThePaper) {
  for (int64_t r = -300; r <= 300; ++r) {
    const int64_t a = std::abs(r);
    int64_t expected = a;
    if (a >= 8) {
      expected = 8 + static_cast<int64_t>(std::log(double(a) / 8) / std::log(16.0) * 8 + 1e-9);
      expected = std::min<int64_t>(expected, 15);
    }
    if (r > 0) expected += 16;
    EXPECT_EQ(umt5_bucket(r), expected) << r;
  }
}

TEST(Umt5Names, EverySchemeAndPrefixIsFoundAndGivesTheSameResult) {
  const Tensor reference = encode_golden("ref", DType::f32, golden_ids());
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::f32};
  const Umt5Names all[] = {{Umt5Naming::original, ""},
                           {Umt5Naming::hugging_face, ""},
                           {Umt5Naming::hugging_face, "", true},
                           {Umt5Naming::hugging_face, "text_encoders.umt5xxl.transformer."},
                           {Umt5Naming::gguf, ""}};
  for (const Umt5Names& names : all) {
    MapSource source = renamed_golden(names);
    const Umt5Names found = detect_umt5_names(source);
    EXPECT_EQ(found.naming, names.naming);
    EXPECT_EQ(found.prefix, names.prefix);
    EXPECT_EQ(found.tied_embedding, names.tied_embedding);
    const Umt5Config config = infer_umt5_config(source, found);
    EXPECT_EQ(config.vocab_size, 200);
    EXPECT_EQ(config.dim, 64);
    EXPECT_EQ(config.num_heads, 4);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_EQ(config.ffn_dim, 160);
    EXPECT_EQ(config.num_layers, 3);
    const Tensor y = Umt5Encoder(config, source, found).encode(ctx, golden_ids());
    EXPECT_EQ(compare(y, reference).max_abs, 0.0);
  }
}

TEST(Umt5Names, T5IsWhatHasTheBiasInLayer0Alone) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const auto hash = hash_weights("w:", DType::f32);
  const Tensor reference = Umt5Encoder(t5_config(), *hash, {}).encode(ctx, golden_ids());
  for (const Umt5Naming naming : {Umt5Naming::hugging_face, Umt5Naming::gguf}) {
    const Umt5Names names{naming, ""};
    MapSource source = renamed_golden(names);
    for (const char* layer : {"blocks.1.", "blocks.2."})
      source.erase(umt5_source_name(std::string(layer) + "pos_embedding.embedding.weight", names));
    const Umt5Names found = detect_umt5_names(source);
    const Umt5Config config = infer_umt5_config(source, found);
    EXPECT_TRUE(config.shared_bias);
    const Tensor y = Umt5Encoder(config, source, found).encode(ctx, golden_ids());
    EXPECT_EQ(compare(y, reference).max_abs, 0.0);
    // A config that calls it UMT5 asks for what is not there.
    EXPECT_THROW(Umt5Encoder(golden_config(), source, found), Error);
  }
}

TEST(Umt5Names, UnknownAndMissingTensorsAreNamed) {
  EXPECT_THROW(umt5_source_name("blocks.x.attn.q.weight", {}), Error);
  EXPECT_THROW(umt5_source_name("blocks.0.attn.q.bias", {}), Error);
  MapSource empty;
  EXPECT_THROW(detect_umt5_names(empty), Error);
  MapSource source = renamed_golden({Umt5Naming::hugging_face, ""});
  source.erase("encoder.block.1.layer.0.SelfAttention.v.weight");
  try {
    Umt5Encoder(golden_config(), source, detect_umt5_names(source));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.block.1.layer.0.SelfAttention.v.weight"));
  }
}

TEST(Umt5Encoder, EmbeddingRowsAreReadFromNarrowStorage) {
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::f32};
  const Tensor reference = encode_golden("ref", DType::f32, golden_ids());
  MapSource source = renamed_golden({Umt5Naming::original, ""}, DType::bf16);
  const Tensor y = Umt5Encoder(golden_config(), source, {}).encode(ctx, golden_ids());
  const ErrorStats error = compare(y, reference);
  EXPECT_GT(error.rel_l2, 0.0);
  EXPECT_LT(error.rel_l2, 1e-2);
}

TEST(Umt5Encoder, StopsBetweenLayers) {
  const auto backend = make_backend("ref");
  const std::atomic<bool> stop{true};
  Context ctx{*backend, DType::f32, &stop};
  MapSource source = renamed_golden({Umt5Naming::original, ""}, DType::f32);
  EXPECT_THROW(Umt5Encoder(golden_config(), source, {}).encode(ctx, golden_ids()), Cancelled);
}

// q8_0 blocks (f16 scale, 32 signed bytes) of an embedding whose row r is the constant r / 2.
TEST(Umt5Encoder, EmbeddingRowsAreReadFromQuantisedStorage) {
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::f32};
  MapSource plain = renamed_golden({Umt5Naming::original, ""});
  MapSource quantised = renamed_golden({Umt5Naming::original, ""});
  Tensor f32(DType::f32, {200, 64});
  Tensor q8(DType::q8_0, {200, 64});
  auto* bytes = static_cast<uint8_t*>(q8.view().data);
  for (int64_t row = 0; row < 200; ++row) {
    for (int64_t c = 0; c < 64; ++c) f32.as<float>()[row * 64 + c] = 0.5f * float(row % 100);
    for (int64_t block = 0; block < 2; ++block) {
      uint8_t* at = bytes + (row * 2 + block) * 34;
      const uint16_t scale = float_to_half(0.5f);
      std::memcpy(at, &scale, 2);
      std::memset(at + 2, static_cast<int>(row % 100), 32);
    }
  }
  plain.put("token_embedding.weight", std::move(f32));
  quantised.put("token_embedding.weight", std::move(q8));
  const Tensor a = Umt5Encoder(golden_config(), plain, {}).encode(ctx, golden_ids());
  const Tensor b = Umt5Encoder(golden_config(), quantised, {}).encode(ctx, golden_ids());
  EXPECT_EQ(compare(b, a).max_abs, 0.0);
}

// ComfyUI's "fp8 scaled" files. The scale has few digits, so that its products are exact in bf16.
TEST(Umt5Encoder, MatricesWithAScaleAreNotCopied) {
  constexpr float kScale = 0.09375f;
  const Umt5Names names{Umt5Naming::original, ""};
  MapSource plain = renamed_golden(names), products = renamed_golden(names);
  Tensor scale(DType::f32, {1});
  scale.as<float>()[0] = kScale;
  std::vector<Tensor> matrices;
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const std::string& name : plain.names()) {
    const std::vector<int64_t> shape = plain.shape(name);
    const TensorView values = plain.load(name, shape);
    if (shape.size() < 2 || name.find("pos_embedding") != std::string::npos) {
      tensors.emplace_back(name, values);
      continue;
    }
    Tensor& matrix = matrices.emplace_back(DType::f8_e4m3, std::span<const int64_t>(shape));
    auto* codes = static_cast<uint8_t*>(matrix.view().data);
    for (int64_t i = 0; i < values.numel(); ++i)  // 1/8 to 15/16, signs of the golden weights
      codes[i] = static_cast<uint8_t>((values.as<float>()[i] < 0 ? 0xa0 : 0x20) + i * 37 % 24);
    tensors.emplace_back(name, matrix);
    tensors.emplace_back(name.substr(0, name.size() - 6) + "scale_weight", scale);
    products.put(name, converted(matrix, DType::bf16, kScale));
  }
  ASSERT_EQ(matrices.size(), 1u + 3 * 7);
  const test::TempFolder temp;
  write_safetensors(temp.path() / "umt5.safetensors", tensors);
  const auto source = open_weights({temp.path() / "umt5.safetensors"});
  const Umt5Encoder encoder(golden_config(), *source, names);
  for (const TensorView& w : encoder.weights())
    EXPECT_EQ(w.dtype, w.rank == 2 && w.shape[0] != kUmt5Buckets ? DType::f8_e4m3 : DType::f32);
  const Umt5Encoder expected(golden_config(), products, names);
  for (const DType compute : {DType::f32, DType::bf16}) {
    const auto cpu = make_backend("cpu");
    test::GuardedBackend guarded(make_backend("cpu"));
    Context ctx{*cpu, compute}, guarded_ctx{guarded, compute};
    const Tensor want = expected.encode(ctx, golden_ids());
    EXPECT_EQ(compare(encoder.encode(ctx, golden_ids()), want).max_abs, 0.0);
    EXPECT_EQ(compare(encoder.encode(guarded_ctx, golden_ids()), want).max_abs, 0.0);
  }
}

TEST(Umt5Encoder, RefusesBadIds) {
  const auto backend = make_backend("ref");
  Context ctx{*backend, DType::f32};
  const auto source = hash_weights("w:", DType::f32);
  const Umt5Encoder encoder(golden_config(), *source, {});
  EXPECT_THROW(encoder.encode(ctx, {}), Error);
  EXPECT_THROW(encoder.encode(ctx, std::vector<int32_t>{1, 200}), Error);
  EXPECT_THROW(encoder.encode(ctx, std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(encoder.encode(ctx, std::vector<int32_t>(Umt5Encoder::kMaxTokens + 1, 1)), Error);
}

TEST(Umt5Config, ReadsTheReleasedConfig) {
  const Umt5Config config = umt5_config_from_json(
      R"({"model_type":"umt5","vocab_size":256384,"d_model":4096,"d_kv":64,"d_ff":10240,
          "num_layers":24,"num_decoder_layers":24,"num_heads":64,
          "relative_attention_num_buckets":32,"relative_attention_max_distance":128,
          "layer_norm_epsilon":1e-06,"feed_forward_proj":"gated-gelu","is_gated_act":true,
          "dense_act_fn":"gelu_new"})",
      "config.json");
  EXPECT_EQ(config.num_parameters(), umt5_preset("umt5-xxl").num_parameters());
  EXPECT_NEAR(static_cast<double>(config.num_parameters()), 5.68e9, 0.01e9);
}

TEST(Umt5Config, ReadsTheConfigOfT5) {
  const std::string text =
      R"({"model_type":"t5","vocab_size":32128,"d_model":4096,"d_kv":64,"d_ff":10240,
          "num_layers":24,"num_decoder_layers":24,"num_heads":64,
          "relative_attention_num_buckets":32,"relative_attention_max_distance":128,
          "layer_norm_epsilon":1e-06,"feed_forward_proj":"gated-gelu"})";
  const Umt5Config config = umt5_config_from_json(text, "config.json");
  EXPECT_TRUE(config.shared_bias);
  EXPECT_EQ(config.num_parameters(), umt5_preset("t5-xxl").num_parameters());
  EXPECT_NEAR(static_cast<double>(config.num_parameters()), 4.762e9, 0.001e9);
  // The first T5 does not say what its feed-forward is; it is not this one.
  std::string first = text;
  first.replace(first.find(",\"feed_forward_proj\""), 33, "");
  EXPECT_THROW(umt5_config_from_json(first, "config.json"), Error);
}

TEST(Umt5Config, HostileTextGivesOneError) {
  const std::string good =
      R"({"vocab_size":200,"d_model":64,"d_kv":16,"d_ff":160,"num_layers":3,"num_heads":4})";
  EXPECT_NO_THROW(umt5_config_from_json(good, "x"));
  const std::pair<std::string, std::string> swaps[] = {
      {"\"d_model\":64", "\"d_model\":-1"},
      {"\"d_model\":64", "\"d_model\":1e30"},
      {"\"d_model\":64", "\"d_model\":18446744073709551615"},
      {"\"d_model\":64", "\"d_model\":\"64\""},
      {"\"d_model\":64", "\"d_mode\":64"},
      {"\"num_layers\":3", "\"num_layers\":1000000000"},
      {"\"num_heads\":4", "\"num_heads\":4,\"relative_attention_num_buckets\":64"},
      {"\"num_heads\":4", "\"num_heads\":4,\"feed_forward_proj\":\"relu\""},
      {"\"num_heads\":4", "\"num_heads\":4,\"feed_forward_proj\":7"},
      {"\"num_heads\":4", "\"num_heads\":4,\"model_type\":\"t5\""},  // without feed_forward_proj
      {"\"num_heads\":4", "\"num_heads\":4,\"model_type\":\"mt5\""},
      {"\"num_heads\":4", "\"num_heads\":4,\"model_type\":[]"},
      {"\"num_heads\":4", "\"num_heads\":4,\"layer_norm_epsilon\":\"x\""},
  };
  for (const auto& [from, to] : swaps) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    EXPECT_THROW(umt5_config_from_json(text, "x"), Error) << text;
  }
  for (const char* text : {"", "[]", "{", "null", "\xff"}) {
    EXPECT_THROW(umt5_config_from_json(text, "x"), Error) << text;
  }
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_THROW(umt5_config_from_json("{\"model_type\":" + deep + "}", "x"), Error);
  EXPECT_THROW(umt5_preset("umt5-small"), Error);
}

}  // namespace
}  // namespace lacuna
