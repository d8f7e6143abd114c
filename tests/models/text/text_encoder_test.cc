// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/text_encoder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "lacuna/core/error.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/text/prompt_cache.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

// The tiny preset's hash weights in a safetensors file, with the fixture's tokenizer.
class TextEncoderTest : public ::testing::Test {
 protected:
  TextEncoderTest() : backend_(make_backend("ref")), ctx_{*backend_, DType::f32, {}} {
    files_.weights = {folder_ / "text_encoder.safetensors"};
    files_.tokenizer = test::test_data() / "tokenizer/bytes.tokenizer.json";
    write_weights();
  }

  void write_weights() {
    const Umt5Names names{Umt5Naming::hugging_face, ""};
    const Umt5Config c = config_;
    const auto hash = hash_weights("w:", DType::f32);
    std::vector<std::pair<std::string, TensorView>> tensors;
    const auto put = [&](const std::string& name, std::vector<int64_t> shape) {
      tensors.emplace_back(umt5_source_name(name, names), hash->load(name, shape));
    };
    put("token_embedding.weight", {c.vocab_size, c.dim});
    put("norm.weight", {c.dim});
    for (int64_t i = 0; i < c.num_layers; ++i) {
      const std::string p = "blocks." + std::to_string(i) + ".";
      for (const char* norm : {"norm1", "norm2"}) put(p + norm + ".weight", {c.dim});
      put(p + "pos_embedding.embedding.weight", {kUmt5Buckets, c.num_heads});
      for (const char* m : {"q", "k", "v"}) {
        put(p + "attn." + m + ".weight", {c.inner_dim(), c.dim});
      }
      put(p + "attn.o.weight", {c.dim, c.inner_dim()});
      put(p + "ffn.gate.0.weight", {c.ffn_dim, c.dim});
      put(p + "ffn.fc1.weight", {c.ffn_dim, c.dim});
      put(p + "ffn.fc2.weight", {c.dim, c.ffn_dim});
    }
    write_safetensors(files_.weights[0], tensors);
  }

  static bool same_bits(const Tensor& a, const Tensor& b) {
    return a.numel() == b.numel() &&
           std::memcmp(a.as<float>(), b.as<float>(), static_cast<size_t>(a.numel()) * 4) == 0;
  }

  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path();
  std::unique_ptr<Backend> backend_;
  Context ctx_;
  TextEncoderFiles files_;
  Umt5Config config_ = [] {
    Umt5Config c = umt5_preset("tiny");
    c.vocab_size = 1420;  // the fixture's ids
    return c;
  }();
};

TEST_F(TextEncoderTest, CleansTokenisesAndEncodes) {
  const TextEncoder encoder(files_);
  const Tensor e = encoder.embed(ctx_, "a red &amp; blue  cat", 64);
  const auto ids = encoder.tokenizer().encode("a red & blue cat");
  ASSERT_EQ(e.view().shape[0], static_cast<int64_t>(ids.size()));
  const auto source = hash_weights("w:", DType::f32);
  const Tensor direct = Umt5Encoder(config_, *source, {}).encode(ctx_, ids);
  EXPECT_TRUE(same_bits(e, direct));
  EXPECT_EQ(encoder.embed(ctx_, "a a a a a a a a", 64, 4).view().shape[0], 4);
}

TEST_F(TextEncoderTest, TheCacheSparesTheWeights) {
  files_.cache = folder_ / "cache";
  const TextEncoder encoder(files_);
  const Tensor first = encoder.embed(ctx_, "a red cat", 64);
  const fs::path entry = fs::directory_iterator(files_.cache)->path();
  EXPECT_TRUE(same_bits(encoder.embed(ctx_, "a red cat", 64), first));
  // Other numbers under the same key come back as they are: the encoder did not run.
  const auto ids = encoder.tokenizer().encode("a red cat");
  const Tensor other = Tensor::zeros(DType::f32, {static_cast<int64_t>(ids.size()), 64});
  const PromptCache cache(files_.cache, encoder_identity(files_.weights, "", DType::f32, "ref"));
  ASSERT_TRUE(cache.store(ids, other));
  EXPECT_TRUE(same_bits(encoder.embed(ctx_, "a red cat", 64), other));
  fs::remove(entry);
  EXPECT_TRUE(same_bits(encoder.embed(ctx_, "a red cat", 64), first));
  EXPECT_TRUE(fs::exists(entry));  // written again
  std::ofstream(entry, std::ios::trunc) << "damaged";
  EXPECT_TRUE(same_bits(encoder.embed(ctx_, "a red cat", 64), first));
  EXPECT_GT(fs::file_size(entry), 1000u);
}

// What one instruction set or config gave is not what another gives.
TEST_F(TextEncoderTest, TheCacheKnowsInstructionSetAndConfig) {
  files_.cache = folder_ / "cache";
  const auto cpu = make_backend("cpu");
  Context ctx{*cpu, DType::f32};
  const TextEncoder encoder(files_);
  const Tensor embedding = encoder.embed(ctx, "a red cat", 64);
  const auto ids = encoder.tokenizer().encode("a red cat");
  const auto kept = [&](std::string_view rounding) {
    const std::string id = encoder_identity(files_.weights, "", DType::f32, rounding);
    return PromptCache(files_.cache, id).find(ids, 64).has_value();
  };
  EXPECT_NE(cpu->rounding(), cpu->name());
  EXPECT_TRUE(kept(cpu->rounding()));
  EXPECT_FALSE(kept(cpu->name()));

  const Umt5Config& c = config_;
  files_.config_json = fmt::format(
      R"({{"vocab_size": {}, "d_model": {}, "d_kv": {}, "d_ff": {}, "num_layers": {},
        "num_heads": {}, "layer_norm_epsilon": 0.01}})",
      c.vocab_size, c.dim, c.head_dim, c.ffn_dim, c.num_layers, c.num_heads);
  EXPECT_FALSE(same_bits(TextEncoder(files_).embed(ctx, "a red cat", 64), embedding));
}

TEST_F(TextEncoderTest, SaysWhatDoesNotFit) {
  EXPECT_THROW(TextEncoder(files_).embed(ctx_, "a", 4096), Error);
  TextEncoderFiles none = files_;
  none.weights.clear();
  EXPECT_THROW(TextEncoder{none}, Error);
  none = files_;
  none.tokenizer = folder_;  // a folder without tokenizer
  EXPECT_THROW(TextEncoder{none}, Error);
}

// ComfyUI ships spiece.model inside the encoder's file.
TEST_F(TextEncoderTest, TokenizerInsideSafetensors) {
  const fs::path file = test::test_data() / "tokenizer/plain.spiece.model";
  std::ifstream in(file, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const fs::path path = folder_ / "umt5.safetensors";
  write_safetensors(
      path,
      {{"spiece_model", make_view(bytes.data(), DType::u8, {static_cast<int64_t>(bytes.size())})}});
  const Tokenizer inside = Tokenizer::from_file(path);
  const Tokenizer outside = Tokenizer::from_file(file);
  EXPECT_EQ(inside.encode("the red cat"), outside.encode("the red cat"));
}

}  // namespace
}  // namespace lacuna
