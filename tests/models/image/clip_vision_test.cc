// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/clip_vision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <tuple>

#include "lacuna/core/convert.h"
#include "lacuna/core/metrics.h"
#include "lacuna/models/layers.h"
#include "tests/models/text/support.h"
#include "tests/support/error_of.h"
#include "tests/support/guarded_backend.h"

namespace lacuna {
namespace {

using test::MapSource;
using ::testing::HasSubstr;

constexpr ClipVisionConfig kSmall{
    .image_size = 28, .patch_size = 14, .dim = 64, .num_heads = 4, .ffn_dim = 160, .num_layers = 3};

Tensor vision_pixels(int64_t size) {
  Tensor pixels(DType::f32, {3, size, size});
  fill_hash("pixels", 0.0, 1.7, {pixels.as<float>(), static_cast<size_t>(pixels.numel())});
  return pixels;
}

// All that is read of the small model, under a prefix.
MapSource small_source(const std::string& prefix) {
  MapSource source;
  const auto hash = hash_weights("w:vision_model.", DType::f32);
  const auto put = [&](const std::string& name, std::vector<int64_t> shape) {
    source.put(prefix + name, copy_of(hash->load(name, shape)));
  };
  put("embeddings.class_embedding", {64});
  put("embeddings.patch_embedding.weight", {64, 3, 14, 14});
  put("embeddings.position_embedding.weight", {5, 64});
  const auto both = [&](const std::string& name, std::vector<int64_t> weight) {
    put(name + ".weight", weight);
    put(name + ".bias", {weight[0]});
  };
  both("pre_layrnorm", {64});
  for (int i = 0; i < 2; ++i) {
    const std::string p = "encoder.layers." + std::to_string(i) + ".";
    for (const char* m : {"q_proj", "k_proj", "v_proj", "out_proj"})
      both(p + "self_attn." + m, {64, 64});
    both(p + "mlp.fc1", {160, 64});
    both(p + "mlp.fc2", {64, 160});
    for (const char* m : {"layer_norm1", "layer_norm2"}) both(p + m, {64});
  }
  put("encoder.layers.2.mlp.fc1.weight", {160, 64});  // tells the number of layers, is not read
  return source;
}

Tensor encode_small(std::string_view backend_name, DType compute, const ClipVisionConfig& config) {
  const auto backend = make_backend(backend_name);
  Context ctx{*backend, compute};
  const auto source = hash_weights("w:", DType::f32);
  return ClipVisionEncoder(config, *source, "vision_model.")
      .encode(ctx, vision_pixels(config.image_size));
}

// What the backend's form with tanh would be off by is a hundred times the limit.
TEST(ForwardGelu, IsThatOfTheErrorFunction) {
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = make_backend(name);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Context ctx{*backend, dtype};
      const Tensor x(DType::f32, {401, 1}), w(DType::f32, {1, 1}), out(dtype, {401, 1});
      w.as<float>()[0] = 1.0f;
      for (int i = 0; i < 401; ++i) x.as<float>()[i] = 0.02f * static_cast<float>(i - 200);
      Linear identity;
      identity.weight = w;
      forward_gelu(ctx, identity, x, out);
      const Tensor y = converted(out, DType::f32);
      for (int i = 0; i < 401; ++i) {
        const double v = x.as<float>()[i], exact = 0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0)));
        EXPECT_NEAR(y.as<float>()[i], exact, dtype == DType::f32 ? 1e-6 : 4e-3 * std::abs(v))
            << v << " on " << name;
      }
    }
  }
}

TEST(ClipVision, EveryPrefixGivesTheSameRows) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  const Tensor reference = encode_small("ref", DType::f32, kSmall);
  ASSERT_EQ(reference.view().shape[0], 5);
  ASSERT_EQ(reference.view().shape[1], 64);
  for (const char* prefix : {"vision_model.", "", "clip.vision_model."}) {
    MapSource source = small_source(prefix);
    EXPECT_EQ(detect_clip_vision_prefix(source), prefix);
    ClipVisionConfig config = infer_clip_vision_config(source, prefix);
    EXPECT_EQ(config.image_size, 28);
    EXPECT_EQ(config.patch_size, 14);
    EXPECT_EQ(config.dim, 64);
    EXPECT_EQ(config.ffn_dim, 160);
    EXPECT_EQ(config.num_layers, 3);
    EXPECT_EQ(config.num_heads, 1);
    EXPECT_EQ(config.activation, ClipActivation::quick_gelu);
    config.num_heads = 4;
    config.activation = ClipActivation::gelu;
    const Tensor y = ClipVisionEncoder(config, source, prefix).encode(ctx, vision_pixels(28));
    EXPECT_EQ(compare(y, reference).max_abs, 0.0);
  }
  MapSource empty;
  EXPECT_THROW(detect_clip_vision_prefix(empty), Error);
}

TEST(ClipVision, InfersTheReleasedSizes) {
  const auto inferred = [](int64_t dim, int64_t patch, int64_t positions, int64_t ffn, int layers) {
    MapSource source;
    source.put("embeddings.class_embedding", Tensor(DType::f32, {dim}));
    source.put("embeddings.patch_embedding.weight", Tensor(DType::f32, {dim, 3, patch, patch}));
    source.put("embeddings.position_embedding.weight", Tensor(DType::f32, {positions, dim}));
    for (int i = 0; i < layers; ++i)
      source.put("encoder.layers." + std::to_string(i) + ".mlp.fc1.weight",
                 i == 0 ? Tensor(DType::f32, {ffn, dim}) : Tensor(DType::f32, {1, 1}));
    return infer_clip_vision_config(source, "");
  };
  const ClipVisionConfig huge = inferred(1280, 14, 257, 5120, 32), expected;
  EXPECT_EQ(huge.image_size, expected.image_size);
  EXPECT_EQ(huge.patch_size, expected.patch_size);
  EXPECT_EQ(huge.dim, expected.dim);
  EXPECT_EQ(huge.num_heads, expected.num_heads);
  EXPECT_EQ(huge.ffn_dim, expected.ffn_dim);
  EXPECT_EQ(huge.num_layers, expected.num_layers);
  EXPECT_EQ(huge.activation, expected.activation);
  EXPECT_EQ(huge.rows(), 257);
  const ClipVisionConfig large = inferred(1024, 14, 577, 4096, 24);
  EXPECT_EQ(large.image_size, 336);
  EXPECT_EQ(large.num_heads, 16);
  EXPECT_EQ(large.activation, ClipActivation::quick_gelu);
  EXPECT_EQ(inferred(768, 32, 50, 3072, 12).num_heads, 12);
  EXPECT_THROW(inferred(1280, 14, 256, 5120, 32), Error);  // no class
  EXPECT_THROW(inferred(1280, 14, 257, 5120, 1), Error);
}

TEST(ClipVision, Bf16StaysNearF32) {
  const Tensor reference = encode_small("ref", DType::f32, kSmall);
  for (const char* backend : {"ref", "cpu"}) {
    const ErrorStats error = compare(encode_small(backend, DType::bf16, kSmall), reference);
    EXPECT_LT(error.rel_l2, 1e-2) << backend;
    EXPECT_GT(error.cos_sim, 0.9999) << backend;
  }
}

// With activations in memory that the host cannot touch.
TEST(ClipVision, ABackendWithItsOwnMemoryGivesTheSameBytes) {
  for (const ClipActivation activation : {ClipActivation::gelu, ClipActivation::quick_gelu})
    for (const DType storage : {DType::f32, DType::bf16})
      for (const DType compute : {DType::f32, DType::bf16}) {
        ClipVisionConfig config = kSmall;
        config.activation = activation;
        const auto source = hash_weights("w:", storage);
        const ClipVisionEncoder encoder(config, *source, "vision_model.");
        const auto encode = [&](Backend& backend) {
          const ConstantWeights constant(backend, encoder.weights());
          Context ctx{backend, compute};
          return encoder.encode(ctx, vision_pixels(28));
        };
        test::GuardedBackend guarded(make_backend("cpu"));
        const Tensor out = encode(guarded);
        EXPECT_TRUE(test::same_bytes(out, encode(*make_backend("cpu"))));
        EXPECT_EQ(guarded.allocations(), 0u);
        EXPECT_FALSE(guarded.broken_promise);
      }
}

TEST(ClipVision, NamesEveryMissingTensorButNotThoseOfTheLastLayer) {
  MapSource source = small_source("vision_model.");
  source.erase("vision_model.encoder.layers.1.self_attn.k_proj.bias");
  source.erase("vision_model.pre_layrnorm.weight");
  const std::string error =
      test::error_of([&] { ClipVisionEncoder(kSmall, source, "vision_model."); });
  EXPECT_THAT(error, HasSubstr("vision_model.encoder.layers.1.self_attn.k_proj.bias"));
  EXPECT_THAT(error, HasSubstr("vision_model.pre_layrnorm.weight"));
  EXPECT_THAT(error, testing::Not(HasSubstr("layers.2")));
}

TEST(ClipVision, RefusesPixelsOfAnotherSizeAndStops) {
  const auto backend = make_backend("ref");
  const auto source = hash_weights("w:", DType::f32);
  const ClipVisionEncoder encoder(kSmall, *source, "");
  Context ctx{*backend};
  EXPECT_THAT(test::error_of([&] { encoder.encode(ctx, vision_pixels(42)); }),
              HasSubstr("expected [3, 28, 28]"));
  const std::atomic<bool> stop{true};
  Context stopped{*backend, DType::f32, &stop};
  EXPECT_THROW(encoder.encode(stopped, vision_pixels(28)), Cancelled);
}

TEST(ClipVision, HoldsWhatItSays) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto backend = make_backend("cpu");
    Context ctx{*backend, dtype};
    const ClipVisionConfig config{.dim = 320, .num_heads = 4, .ffn_dim = 1280, .num_layers = 3};
    const auto source = hash_weights("w:", DType::bf16);  // converted on the way where f32
    ClipVisionEncoder(config, *source, "").encode(ctx, vision_pixels(224));
    const auto held = static_cast<double>(ctx.workspace.bytes()) +
                      static_cast<double>(storage_bytes(DType::f32, config.rows() * config.dim));
    const auto said = static_cast<double>(clip_vision_bytes(config, dtype));
    EXPECT_LE(held, said);
    EXPECT_GT(held, 0.6 * said);
  }
}

TEST(ClipVisionConfig, ReadsTheConfigOfViTH) {
  const ClipVisionConfig config = clip_vision_config_from_json(
      R"({"_name_or_path":"x","architectures":["CLIPVisionModel"],"attention_dropout":0.0,
          "dropout":0.0,"hidden_act":"gelu","hidden_size":1280,"image_size":224,
          "initializer_factor":1.0,"initializer_range":0.02,"intermediate_size":5120,
          "layer_norm_eps":1e-05,"model_type":"clip_vision_model","num_attention_heads":16,
          "num_channels":3,"num_hidden_layers":32,"patch_size":14,"projection_dim":1024,
          "torch_dtype":"float32"})",
      "config.json");
  const ClipVisionConfig expected;
  EXPECT_EQ(config.image_size, expected.image_size);
  EXPECT_EQ(config.patch_size, expected.patch_size);
  EXPECT_EQ(config.dim, expected.dim);
  EXPECT_EQ(config.head_dim(), 80);
  EXPECT_EQ(config.ffn_dim, expected.ffn_dim);
  EXPECT_EQ(config.num_layers, expected.num_layers);
  EXPECT_EQ(config.eps, expected.eps);
  EXPECT_EQ(config.activation, ClipActivation::gelu);
}

TEST(ClipVisionConfig, HostileTextGivesOneErrorThatNamesTheField) {
  const std::string good =
      R"({"hidden_size":64,"intermediate_size":160,"num_hidden_layers":3,"image_size":28,
"patch_size":14,"num_attention_heads":4})";
  EXPECT_EQ(clip_vision_config_from_json(good, "x").activation, ClipActivation::quick_gelu);
  const std::tuple<std::string, std::string, std::string> swaps[] = {
      {"\"hidden_size\":64", "\"hidden_size\":-64", "hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":66", "hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":18446744073709551615", "hidden_size"},
      {"\"image_size\":28", "\"image_size\":30", "image_size"},
      {"\"image_size\":28", "\"image_size\":10", "patch_size"},
      {"\"image_size\":28", "\"image_size\":1000000000", "image_size"},
      {"\"patch_size\":14", "\"patch_size\":0", "patch_size"},
      {"\"patch_size\":14", "\"patch_size\":[14]", "patch_size"},
      {"\"intermediate_size\":160", "\"intermediate_size\":1e9", "intermediate_size"},
      {"\"num_hidden_layers\":3", "\"num_hidden_layers\":1", "num_hidden_layers"},
      {"\"num_hidden_layers\":3", "\"num_hidden_layers\":1000000000", "num_hidden_layers"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":0", "num_attention_heads"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":4,\"hidden_act\":\"relu\"",
       "hidden_act"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":4,\"num_channels\":4", "num_channels"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":4,\"model_type\":\"siglip\"",
       "model_type"},
      {"\"num_attention_heads\":4", "\"num_attention_heads\":4,\"layer_norm_eps\":0",
       "layer_norm_eps"},
  };
  for (const auto& [from, to, field] : swaps) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    const std::string error = test::error_of([&] { clip_vision_config_from_json(text, "x"); });
    EXPECT_THAT(error, HasSubstr(field)) << text;
    EXPECT_THAT(error, testing::StartsWith("x: ")) << text;
  }
  for (const char* text : {"", "[]", "{", "null", "\xff", "{}"})
    EXPECT_THROW(clip_vision_config_from_json(text, "x"), Error) << text;
}

}  // namespace
}  // namespace lacuna
