// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/wan_config.h"

#include <gmock/gmock.h>

#include "lacuna/models/layers.h"
#include "lacuna/models/wan/hash_case.h"
#include "tests/models/wan/support.h"

namespace lacuna {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::FakeFile;
using ::testing::HasSubstr;
using testing::make_file;
using testing::tensors_of;

TEST(WanConfig, PresetsHaveThePublishedSizes) {
  // Billions of parameters and tensor counts of the released checkpoints.
  EXPECT_NEAR(wan_preset("wan2.1-1.3b").num_parameters() * 1e-9, 1.4190, 5e-5);
  EXPECT_NEAR(wan_preset("wan2.1-14b").num_parameters() * 1e-9, 14.2885, 5e-5);
  EXPECT_NEAR(wan_preset("wan2.2-a14b").num_parameters() * 1e-9, 14.2885, 5e-5);
  EXPECT_NEAR(wan_preset("wan2.2-ti2v-5b").num_parameters() * 1e-9, 4.9998, 5e-5);
  EXPECT_EQ(wan_preset("wan2.1-1.3b").num_tensors(), 825);
  EXPECT_EQ(wan_preset("wan2.1-14b").num_tensors(), 1095);
  EXPECT_NEAR(wan_preset("wan2.2-i2v-a14b").num_parameters() * 1e-9, 14.2889, 5e-5);
  EXPECT_NEAR(wan_preset("wan2.1-i2v-14b").num_parameters() * 1e-9, 16.3949, 5e-5);
  EXPECT_EQ(wan_preset("wan2.1-i2v-14b").num_tensors(), 1303);
  EXPECT_EQ(wan_preset("wan2.1-flf2v-14b").num_tensors(), 1304);
  for (const std::string_view name : wan_preset_names()) EXPECT_NO_THROW(wan_preset(name));
  EXPECT_THAT(error_of([] { wan_preset("wan9"); }), AllOf(HasSubstr("wan9"), HasSubstr("tiny")));
}

TEST(WanConfig, CountsEqualWhatTheModelAsksFor) {
  WanConfig two_pictures = wan_preset("tiny-i2v");
  two_pictures.image_positions = 14;
  for (WanConfig config :
       {golden_wan_config(), wan_preset("tiny"), wan_preset("tiny-i2v"), two_pictures}) {
    config.patch_t = 2;
    int64_t parameters = 0;
    const auto tensors = tensors_of(config);
    for (const auto& [name, shape] : tensors) {
      int64_t size = 1;
      for (const int64_t extent : shape) size *= extent;
      parameters += size;
    }
    EXPECT_EQ(parameters, config.num_parameters());
    EXPECT_EQ(static_cast<int64_t>(tensors.size()), config.num_tensors());
  }
  EXPECT_EQ(golden_wan_config().num_parameters(), 842240);
}

TEST(WanConfig, FlopsMatchThePublishedTable) {
  struct Row {
    const char* preset;
    int64_t frames, height, width;  // latent
    int64_t tokens;
    double self, cross, gemm;  // TFLOP, rounded to one decimal or to whole numbers
    double tolerance;
  };
  for (const Row& row : {Row{"wan2.1-1.3b", 5, 40, 64, 3200, 1.9, 0.3, 8.1, 0.06},
                         Row{"wan2.1-1.3b", 21, 60, 104, 32760, 197.8, 3.1, 82.1, 0.06},
                         Row{"wan2.1-14b", 21, 90, 160, 75600, 4682, 31.7, 1810, 0.6},
                         Row{"wan2.2-ti2v-5b", 31, 44, 80, 27280, 274, 5.2, 237, 0.6}}) {
    const WanConfig config = wan_preset(row.preset);
    EXPECT_EQ(config.grid(row.frames, row.height, row.width).tokens(), row.tokens);
    const ForwardFlops flops = config.flops(row.tokens, 512);
    EXPECT_NEAR(flops.self_attention * 1e-12, row.self, row.tolerance);
    EXPECT_NEAR(flops.cross_attention * 1e-12, row.cross, row.tolerance);
    EXPECT_NEAR(flops.gemm * 1e-12, row.gemm, row.tolerance);
  }
}

TEST(WanConfig, ActivationsFitBesideTheWeights) {
  // 81 frames of 480 x 832 with the 1.3B network.
  EXPECT_LT(activation_bytes(wan_preset("wan2.1-1.3b"), 32760, DType::bf16), 700 << 20);
  EXPECT_LT(activation_bytes(wan_preset("wan2.1-1.3b"), 75600, DType::bf16), int64_t{3} << 29);
  EXPECT_EQ(rows_at_once(1), 1);
  EXPECT_EQ(rows_at_once(2048), 2048);
  EXPECT_EQ(rows_at_once(2049), 1025);
  EXPECT_EQ(rows_at_once(7800), 1950);
  // Both matrices of the feed-forward, and the largest of the others: the text embedding's.
  EXPECT_EQ(passing_weights(wan_preset("wan2.1-1.3b"), DType::f32, 2.0, false).converted,
            4 * (2 * 1536 * 8960 + 1536 * 4096));
}

constexpr const char* kDiffusers = R"({"_class_name":"WanTransformer3DModel",
  "_diffusers_version":"0.33.0","added_kv_proj_dim":null,"attention_head_dim":128,
  "cross_attn_norm":true,"eps":1e-06,"ffn_dim":8960,"freq_dim":256,"image_dim":null,
  "in_channels":16,"num_attention_heads":12,"num_layers":30,"out_channels":16,
  "patch_size":[1,2,2],"pos_embed_seq_len":null,"qk_norm":"rms_norm_across_heads",
  "rope_max_seq_len":1024,"text_dim":4096})";
constexpr const char* kOriginal = R"({"_class_name":"WanModel","_diffusers_version":"0.30.0",
  "dim":3072,"eps":1e-06,"ffn_dim":14336,"freq_dim":256,"in_dim":48,"model_type":"ti2v",
  "num_heads":24,"num_layers":30,"out_dim":48,"text_len":512})";

TEST(WanConfig, ReadsBothConfigFormats) {
  const WanConfig small = wan_config_from_json(kDiffusers, "config.json");
  EXPECT_EQ(small.num_parameters(), wan_preset("wan2.1-1.3b").num_parameters());
  EXPECT_EQ(small.num_heads, 12);
  EXPECT_FLOAT_EQ(small.eps, 1e-6f);
  const WanConfig large = wan_config_from_json(kOriginal, "config.json");
  EXPECT_EQ(large.num_parameters(), wan_preset("wan2.2-ti2v-5b").num_parameters());
  EXPECT_EQ(large.head_dim, 128);
  // Widths other than 128 and patches over two frames.
  const WanConfig pico = wan_config_from_json(
      R"({"num_layers":10,"num_attention_heads":4,"attention_head_dim":64,"ffn_dim":1024,
          "in_channels":32,"out_channels":32,"patch_size":[2,1,1],"text_dim":128,"text_len":32})",
      "config.json");
  EXPECT_EQ(pico.dim(), 256);
  EXPECT_EQ(pico.patch_inputs(), 64);
  EXPECT_EQ(pico.text_len, 32);
  EXPECT_EQ(pico.grid(32, 24, 24).tokens(), 16 * 24 * 24);
}

// kDiffusers with the value of one key replaced, or the key added.
std::string with(const std::string& key, const std::string& value) {
  std::string text = kDiffusers;
  const std::string quoted = "\"" + key + "\":";
  const size_t at = text.find(quoted);
  if (at == std::string::npos) return "{" + quoted + value + "," + text.substr(1);
  const size_t begin = at + quoted.size();
  const size_t end =
      text[begin] == '[' ? text.find(']', begin) + 1 : text.find_first_of(",}", begin);
  return text.replace(begin, end - begin, value);
}

TEST(WanConfig, HostileConfigsAreRefusedByFieldName) {
  struct Case {
    const char *key, *value;
  };
  for (const Case& bad : {Case{"num_layers", "0"},
                          Case{"num_layers", "-1"},
                          Case{"num_layers", "1e3"},
                          Case{"num_layers", "\"30\""},
                          Case{"num_layers", "1000000000000"},
                          Case{"num_layers", "null"},
                          Case{"num_attention_heads", "18446744073709551615"},
                          Case{"num_attention_heads", "4294967297"},
                          Case{"attention_head_dim", "7"},
                          Case{"attention_head_dim", "4"},
                          Case{"attention_head_dim", "null"},
                          Case{"ffn_dim", "9223372036854775807"},
                          Case{"ffn_dim", "[]"},
                          Case{"freq_dim", "255"},
                          Case{"text_dim", "-4096"},
                          Case{"text_len", "0"},
                          Case{"in_channels", "0"},
                          Case{"eps", "0"},
                          Case{"eps", "-1e-6"},
                          Case{"eps", "1e400"},
                          Case{"eps", "\"x\""},
                          Case{"patch_size", "[1,2]"},
                          Case{"patch_size", "[0,2,2]"},
                          Case{"patch_size", "[1,2,2.5]"},
                          Case{"patch_size", "2"},
                          Case{"rope_max_seq_len", "0"},
                          Case{"rope_max_seq_len", "1000000000"},
                          Case{"cross_attn_norm", "false"},
                          Case{"cross_attn_norm", "1"},
                          Case{"qk_norm", "\"layer_norm\""},
                          Case{"image_dim", "1280"},
                          Case{"added_kv_proj_dim", "5120"},
                          Case{"pos_embed_seq_len", "514"},
                          Case{"model_type", "\"i2v\""},
                          Case{"vace_layers", "[0,5]"},
                          Case{"vsa_sparsity", "0.9"},
                          Case{"window_size", "[5,5]"},
                          Case{"_class_name", "\"HunyuanVideoTransformer3DModel\""}}) {
    const std::string json = with(bad.key, bad.value);
    const std::string message = error_of([&] { wan_config_from_json(json, "dir/config.json"); });
    EXPECT_THAT(message, HasSubstr("dir/config.json")) << json;
    // An out-of-range number is not JSON at all.
    if (std::string_view(bad.value) != "1e400") {
      EXPECT_THAT(message, HasSubstr(bad.key)) << json;
    }
  }
  // Fun-Control: latent, control and picture channels in, latent out.
  EXPECT_THAT(error_of([] { wan_config_from_json(with("in_channels", "48"), "c"); }),
              AllOf(HasSubstr("48"), HasSubstr("Fun-Control")));
  EXPECT_THAT(error_of([] { wan_config_from_json(R"({"dim":100,"num_heads":3})", "c"); }),
              HasSubstr("`dim` 100"));
  EXPECT_THAT(error_of([] { wan_config_from_json(R"({"dim":128,"num_heads":0})", "c"); }),
              HasSubstr("`num_heads` 0"));
  for (const char* text : {"", "[]", "null", "{", "{\"dim\":", "\xff\xfe", "{}"}) {
    EXPECT_THAT(error_of([&] { wan_config_from_json(text, "c"); }), HasSubstr("config.json"));
  }
  // Deep nesting must not recurse.
  EXPECT_THAT(error_of([] { wan_config_from_json(std::string(200000, '['), "c"); }),
              HasSubstr("config.json"));
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  for (const char* key :
       {"qk_norm", "image_dim", "num_layers", "patch_size", "eps", "window_size"}) {
    EXPECT_THAT(error_of([&] { wan_config_from_json(with(key, deep), "c"); }),
                HasSubstr("an array"));
  }
  EXPECT_THAT(error_of([] { wan_config_from_json(std::string((1 << 20) + 1, ' '), "c"); }),
              HasSubstr("1048577 bytes"));
}

constexpr const char* kOriginalImage = R"({"_class_name":"WanModel","dim":5120,"eps":1e-06,
  "ffn_dim":13824,"freq_dim":256,"in_dim":36,"model_type":"i2v","num_heads":40,"num_layers":40,
  "out_dim":16,"text_len":512})";

TEST(WanConfig, ReadsImageToVideo) {
  EXPECT_EQ(wan_config_from_json(with("in_channels", "36"), "c").condition_channels(), 20);
  // Of the second generation, and what is known of the first before its tensors are.
  EXPECT_EQ(wan_config_from_json(kOriginalImage, "c"), wan_preset("wan2.2-i2v-a14b"));
  std::string text = with("in_channels", "36");
  for (const auto& [null, value] : {std::pair{"\"image_dim\":null", "\"image_dim\":1280"},
                                    {"\"added_kv_proj_dim\":null", "\"added_kv_proj_dim\":1536"},
                                    {"\"pos_embed_seq_len\":null", "\"pos_embed_seq_len\":514"}})
    text.replace(text.find(null), std::string_view(null).size(), value);
  const WanConfig two = wan_config_from_json(text, "c");
  EXPECT_EQ(two.image_dim, 1280);
  EXPECT_EQ(two.image_positions, 514);
  const auto refused = [](std::string json, std::string_view from, std::string_view to) {
    json.replace(json.find(from), from.size(), to);
    return error_of([&] { wan_config_from_json(json, "c"); });
  };
  EXPECT_THAT(refused(text, ":1536,\"att", ":1280,\"att"), HasSubstr("expected 1536"));
  EXPECT_THAT(refused(text, ":514", ":513"), HasSubstr("rows of two pictures"));
  EXPECT_THAT(refused(text, ":36", ":16"), HasSubstr("expected 36 with image keys"));
  EXPECT_THAT(refused(kOriginalImage, "\"i2v\"", "\"t2v\""),
              AllOf(HasSubstr("model_type"), HasSubstr("flf2v")));
  EXPECT_THAT(refused(kOriginalImage, ":36", ":16"), HasSubstr("expected \"t2v\""));
}

TEST(WanConfig, TensorsTellTheImageKeys) {
  WanConfig config = wan_preset("tiny-i2v");
  config.num_heads = 2, config.head_dim = 128;
  config.image_positions = 6;
  for (const WanNames& names :
       {WanNames{WanNaming::diffusers, ""}, WanNames{WanNaming::original, "model."}}) {
    FakeFile file = make_file(config, names);
    const auto rename = wan_rename(names);
    WanConfig found = infer_wan_config(file, rename);
    EXPECT_EQ(found.image_dim, 64);
    EXPECT_EQ(found.image_positions, 6);
    EXPECT_EQ(found.num_tensors(), config.num_tensors());
    found.image_dim = 80;
    EXPECT_THAT(error_of([&] { read_image_sizes(file, rename, "c.json", found); }),
                HasSubstr("c.json: `image_dim` is 80, expected 64 as in fake.safetensors"));
    file.shapes[rename("condition_embedder.image_embedder.pos_embed")] = {1, 7, 64};
    EXPECT_THAT(error_of([&] { infer_wan_config(file, rename); }),
                HasSubstr("rows of two pictures"));
  }
}

TEST(WanConfig, GridNamesTheAxisThatDoesNotFit) {
  const WanConfig config = wan_preset("tiny");
  EXPECT_THAT(error_of([&] { config.grid(1, 7, 8); }), HasSubstr("height 7"));
  EXPECT_THAT(error_of([&] { config.grid(0, 8, 8); }), HasSubstr("frames 0"));
  EXPECT_THAT(error_of([&] { config.grid(1, 8, 2050); }), HasSubstr("1025 positions"));
}

TEST(WanConfig, IsInferredFromShapes) {
  WanConfig config = golden_wan_config();
  config.num_heads = 2;
  config.head_dim = 128;
  for (const WanNames& names :
       {WanNames{WanNaming::diffusers, ""}, WanNames{WanNaming::original, "model."}}) {
    const FakeFile file = make_file(config, names);
    const WanConfig found = infer_wan_config(file, wan_rename(detect_wan_names(file)));
    EXPECT_EQ(found.num_layers, 3);
    EXPECT_EQ(found.num_heads, 2);
    EXPECT_EQ(found.num_parameters(), config.num_parameters());
    EXPECT_EQ(found.text_dim, 96);
  }
}

// stable-diffusion.cpp writes GGUF files with the first two of five dimensions as one.
TEST(WanConfig, IsInferredFromFourDimensionsOfThePatchEmbedding) {
  const WanNames names{WanNaming::original, ""};
  FakeFile file = make_file(golden_wan_config(), names);
  const WanConfig plain = infer_wan_config(file, wan_rename(names));
  file.shapes["patch_embedding.weight"] = {128 * 16, 1, 2, 2};
  EXPECT_EQ(infer_wan_config(file, wan_rename(names)), plain);
  EXPECT_EQ(plain.in_channels, 16);
  file.shapes["patch_embedding.weight"] = {128 * 16 + 1, 1, 2, 2};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("2049 filters, expected a multiple of 128"));
}

TEST(WanConfig, InferenceRefusesWhatShapesCannotTell) {
  const WanNames names{WanNaming::diffusers, ""};
  const FakeFile narrow = make_file(golden_wan_config(), names);  // 2 heads of 64: d = 128
  EXPECT_EQ(infer_wan_config(narrow, wan_rename(names)).num_heads, 1);
  FakeFile file = make_file(golden_wan_config(), names);
  file.shapes["patch_embedding.weight"] = {96, 16, 1, 2, 2};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }), HasSubstr("width 96"));
  file.shapes["patch_embedding.weight"] = {128, 16, 2, 2};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("`patch_embedding.weight` has 4 dimensions"));
  file.shapes["patch_embedding.weight"] = {128, 52, 1, 2, 2};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("Fun-Control"));
  file.shapes["patch_embedding.weight"] = {128, 16, 0, 2, 2};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("patch of 0"));
  file.shapes["patch_embedding.weight"] = {128, 16, int64_t{1} << 40, int64_t{1} << 40, 0};
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("patch of 1099511627776"));
  file.shapes["patch_embedding.weight"] = {128, 16, 1, 2, 2};
  file.shapes.erase("proj_out.weight");
  EXPECT_THAT(error_of([&] { infer_wan_config(file, wan_rename(names)); }),
              HasSubstr("proj_out.weight"));
}

}  // namespace
}  // namespace lacuna
