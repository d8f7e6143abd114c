// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

std::vector<int64_t> dims(std::initializer_list<int64_t> d) {
  return d;
}

TEST(HashWeights, MatchesTheListedCheckValuesTimesTheFanInRule) {
  const auto source = hash_weights("w:", DType::f32);
  const TensorView w = source->load("patch_embedding.weight", dims({128, 16, 1, 2, 2}));
  const double amplitude = std::sqrt(3.0 / 64);
  const double expected[] = {-0.666820526, 0.5858711, 0.682827473, -0.0947955847};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(w.as<float>()[i], amplitude * expected[i], 1e-7) << i;
  }
}

TEST(HashWeights, FirstMatchingRuleGivesOffsetAndAmplitude) {
  const auto source = hash_weights("w:", DType::f32);
  struct Case {
    const char* name;
    std::vector<int64_t> shape;
    double offset, amplitude;
  };
  const Case cases[] = {
      {"blocks.0.norm2.bias", {4096}, 0.0, 0.1},
      {"blocks.0.norm2.weight", {4096}, 1.0, 0.1},
      {"blocks.0.scale_shift_table", {1, 6, 1024}, 0.0, 0.5},
      {"decoder.norm_out.gamma", {4096, 1, 1, 1}, 1.0, 0.1},
      {"token_embedding.weight", {64, 64}, 0.0, 1.0},
      {"blocks.1.pos_embedding.embedding.weight", {64, 64}, 0.0, 1.0},
      {"blocks.0.attn1.to_q.weight", {64, 75}, 0.0, 0.2},
  };
  for (const Case& c : cases) {
    const TensorView t = source->load(c.name, c.shape);
    double low = 1e9, high = -1e9;
    for (int64_t i = 0; i < t.numel(); ++i) {
      low = std::min<double>(low, t.as<float>()[i]);
      high = std::max<double>(high, t.as<float>()[i]);
    }
    EXPECT_NEAR(low, c.offset - c.amplitude, 0.02 * c.amplitude) << c.name;
    EXPECT_NEAR(high, c.offset + c.amplitude, 0.02 * c.amplitude) << c.name;
  }
}

TEST(HashWeights, Bf16IsTheRoundedF32AndViewsStay) {
  const auto wide = hash_weights("w2:", DType::f32);
  const auto narrow = hash_weights("w2:", DType::bf16);
  // Longer than one range, with a ragged end.
  const auto shape = dims({3, 16411});
  const TensorView a = wide->load("x.weight", shape), b = narrow->load("x.weight", shape);
  const void* first = b.data;
  for (int64_t i = 0; i < a.numel(); ++i) {
    ASSERT_EQ(BFloat16(a.as<float>()[i]).bits, b.as<BFloat16>()[i].bits) << i;
  }
  for (int i = 0; i < 100; ++i) narrow->load("y" + std::to_string(i), dims({8, 8}));
  EXPECT_EQ(narrow->load("x.weight", shape).data, first);
  EXPECT_NE(narrow->load("x.weight", dims({16411, 3})).data, first);
  EXPECT_THROW(hash_weights("w:", DType::f16), Error);
}

// A source with one tensor.
class OneTensor : public WeightSource {
 public:
  std::string describe() const override { return "one.safetensors"; }
  bool has(std::string_view name) const override { return name == "stored.weight"; }
  std::vector<std::string> names() const override { return {"stored.weight"}; }
  std::vector<int64_t> shape(std::string_view) const override { return {2}; }
  TensorView load(std::string_view, std::span<const int64_t>) override { return data_; }
  Tensor data_ = Tensor::zeros(DType::bf16, {2});
};

TEST(WeightReader, CollectsEveryMissingNameIntoOneError) {
  OneTensor source;
  WeightReader reader(source);
  EXPECT_EQ(reader.f32("gone.bias", {3}).numel(), 3);
  EXPECT_EQ(reader.stored("lost.weight", {3, 4}).data, nullptr);
  try {
    reader.finish("wan");
    FAIL() << "finish accepted missing tensors";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(),
                testing::AllOf(testing::HasSubstr("one.safetensors"),
                               testing::HasSubstr("gone.bias"), testing::HasSubstr("lost.weight")));
  }
}

// Shapes come from a config: a file without the tensors must not cost their memory.
TEST(WeightReader, DoesNotMakeZerosForAHugeMissingTensor) {
  OneTensor source;
  WeightReader reader(source);
  EXPECT_EQ(reader.f32("gone.bias", {3}).numel(), 3);
  try {
    reader.passing_f32("huge.weight", {1 << 13, 1 << 13});
    FAIL() << "made 256 MiB of zeros";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(),
                testing::AllOf(testing::HasSubstr("lacks 2 tensors"),
                               testing::HasSubstr("gone.bias"), testing::HasSubstr("huge.weight")));
  }
}

TEST(WeightReader, RenamesAndConverts) {
  OneTensor source;
  source.data_.as<BFloat16>()[1] = BFloat16(1.5f);
  WeightReader reader(source, [](std::string_view name) {
    return name == "model.weight" ? std::string("stored.weight") : std::string(name);
  });
  EXPECT_TRUE(reader.has("model.weight"));
  EXPECT_FALSE(reader.has("other"));
  const Tensor t = reader.f32("model.weight", {2});
  EXPECT_EQ(t.as<float>()[0], 0.0f);
  EXPECT_EQ(t.as<float>()[1], 1.5f);
  reader.finish("wan");
}

}  // namespace
}  // namespace lacuna
