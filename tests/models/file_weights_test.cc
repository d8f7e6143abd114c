// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <tuple>

#include "lacuna/core/bf16.h"
#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/weights.h"
#include "tests/core/gguf_builder.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

std::vector<int64_t> dims(std::initializer_list<int64_t> d) {
  return d;
}

Tensor counting(DType dtype, std::initializer_list<int64_t> shape, float first) {
  Tensor wide(DType::f32, shape);
  for (int64_t i = 0; i < wide.numel(); ++i) wide.as<float>()[i] = first + static_cast<float>(i);
  return dtype == DType::f32 ? std::move(wide) : converted(wide, dtype);
}

class FileWeights : public testing::Test {
 protected:
  template <typename Action>
  static std::string error_of(Action action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TempFolder temp_;
  const fs::path directory_ = temp_.path();
};

TEST_F(FileWeights, MergesSafetensorsAndGgufWithoutTheirPrefixes) {
  const Tensor a = counting(DType::bf16, {2, 3}, 1), b = counting(DType::f32, {2}, 5);
  const fs::path one = directory_ / "one.safetensors";
  // The marker of scaled files carries no prefix and must not hide the one the others share.
  write_safetensors(one, {{"model.diffusion_model.a.weight", a},
                          {"model.diffusion_model.blocks.0.b.bias", b},
                          {"scaled_fp8", counting(DType::f32, {2}, 0)}});
  const fs::path two = GgufBuilder()
                           .tensor("g.weight", 0, {2, 1}, std::string(8, '\0'))
                           .tensor("merged.weight", 0, {2, 2, 6}, std::string(96, '\0'))
                           .write(directory_ / "two.gguf");
  const auto source = open_weights({one, two});
  EXPECT_THAT(source->names(),
              testing::ElementsAre("a.weight", "blocks.0.b.bias", "g.weight", "merged.weight"));
  const TensorView view = source->load("a.weight", dims({2, 3}));
  EXPECT_EQ(view.dtype, DType::bf16);
  EXPECT_EQ(static_cast<float>(view.as<BFloat16>()[5]), 6.0f);
  EXPECT_EQ(source->shape("g.weight"), dims({1, 2}));
  // Leading ones and a merged pair of first dimensions are spellings of the same tensor.
  EXPECT_EQ(source->load("g.weight", dims({2})).rank, 1);
  EXPECT_EQ(source->load("merged.weight", dims({3, 2, 2, 2})).shape[1], 2);
  EXPECT_THAT(source->describe(), AllOf(HasSubstr("one.safetensors"), HasSubstr("1 more")));
}

TEST_F(FileWeights, KeepsAPrefixThatIsNotEverywhere) {
  const Tensor t = counting(DType::f32, {2}, 0);
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, {{"model.a", t}, {"other.b", t}});
  EXPECT_TRUE(open_weights({path})->has("model.a"));
}

TEST_F(FileWeights, ShapeErrorNamesFileTensorGivenAndExpected) {
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, {{"a.weight", counting(DType::f32, {2, 3}, 0)}});
  const auto source = open_weights({path});
  for (const auto& wrong : {dims({3, 2}), dims({6}), dims({2, 3, 1}), dims({1, 2, 4})}) {
    EXPECT_THAT(error_of([&] { source->load("a.weight", wrong); }),
                AllOf(HasSubstr("x.safetensors"), HasSubstr("a.weight"), HasSubstr("[2, 3]"),
                      HasSubstr("expected [")));
  }
  EXPECT_THAT(error_of([&] { source->load("gone", dims({1})); }), HasSubstr("no tensor gone"));
}

TEST_F(FileWeights, ScaledEightBitFloatsComeAsTheirProduct) {
  Tensor w(DType::f8_e4m3, {2, 2});
  const uint8_t codes[] = {0x38, 0xb8, 0x40, 0x7e};  // 1, -1, 2, 448
  std::memcpy(w.view().data, codes, 4);
  const Tensor scale = counting(DType::f32, {1}, 0.25f), scalar = counting(DType::f32, {}, 3.0f);
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, {{"a.weight", w},
                           {"a.scale_weight", scale},
                           {"b.weight", w},
                           {"b.weight_scale", scalar},
                           {"plain.weight", w},
                           {"rows.weight", w},
                           {"rows.weight_scale", counting(DType::f32, {2, 1}, 1)},
                           {"int8.weight", Tensor::zeros(DType::i8, {2, 2})},
                           {"int8.weight_scale", scalar}});
  const auto source = open_weights({path});
  const TensorView a = source->load("a.weight", dims({2, 2}));
  ASSERT_EQ(a.dtype, DType::bf16);
  EXPECT_EQ(static_cast<float>(a.as<BFloat16>()[1]), -0.25f);
  EXPECT_EQ(static_cast<float>(a.as<BFloat16>()[3]), 112.0f);
  EXPECT_EQ(static_cast<float>(source->load("b.weight", dims({2, 2})).as<BFloat16>()[2]), 6.0f);
  EXPECT_EQ(source->load("a.weight", dims({2, 2})).data, a.data) << "made once";
  EXPECT_EQ(source->load("plain.weight", dims({2, 2})).dtype, DType::f8_e4m3);
  EXPECT_THAT(error_of([&] {
                source->load("rows.weight", dims({2, 2}));
              }),
              HasSubstr("one scale per tensor"));
  EXPECT_THAT(error_of([&] {
                source->load("int8.weight", dims({2, 2}));
              }),
              HasSubstr("i8 with a scale"));
  EXPECT_THAT(source->names(), testing::Each(testing::EndsWith(".weight")));
}

TEST_F(FileWeights, LooksAtScaledTensorsWithoutMakingTheirProduct) {
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, {{"a.weight", Tensor::zeros(DType::f8_e4m3, {4, 3})},
                           {"a.scale_weight", counting(DType::f32, {1}, 0.5f)},
                           {"b.weight", Tensor::zeros(DType::f8_e4m3, {5})},
                           {"c.weight", counting(DType::f32, {2}, 0)}});
  const auto source = open_weights({path});
  EXPECT_EQ(source->raw("a.weight").dtype, DType::f8_e4m3);
  EXPECT_EQ(source->raw("a.weight").numel(), 12);
  EXPECT_EQ(source->added_bytes(), 12) << "two bytes each instead of one";
  EXPECT_EQ(source->load("a.weight", dims({4, 3})).dtype, DType::bf16);
}

TEST_F(FileWeights, GivesScaledEightBitFloatsAndTheirScaleWithoutACopy) {
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, {{"a.weight", Tensor::zeros(DType::f8_e4m3, {4, 3})},
                           {"a.scale_weight", counting(DType::f32, {1}, 0.5f)},
                           {"b.weight", Tensor::zeros(DType::f8_e4m3, {5})},
                           {"c.weight", counting(DType::bf16, {2}, 0)}});
  const auto source = open_weights({path});
  for (const auto& [name, shape, scale] : {std::tuple{"a.weight", dims({4, 3}), 0.5f},
                                           {"b.weight", dims({5}), 1.0f},
                                           {"c.weight", dims({2}), 1.0f}}) {
    const ScaledView w = source->load_unscaled(name, shape);
    EXPECT_EQ(w.scale, scale) << name;
    EXPECT_EQ(w.stored.data, source->raw(name).data) << name;
    EXPECT_EQ(w.stored.describe(), source->raw(name).describe()) << name;
  }
  EXPECT_THAT(error_of([&] {
                source->load_unscaled("a.weight", dims({3, 4}));
              }),
              AllOf(HasSubstr("a.weight"), HasSubstr("[4, 3]"), HasSubstr("expected [3, 4]")));
}

TEST_F(FileWeights, UnalignedTensorsAreCopiedSoThatViewsAreAligned) {
  const std::string header =
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";  // 54 bytes: data at 62
  ASSERT_NE((8 + header.size()) % 4, 0u);
  std::string bytes = GgufBuilder::raw(uint64_t{header.size()}) + header;
  bytes += GgufBuilder::raw(1.5f) + GgufBuilder::raw(-2.5f);
  const fs::path path = directory_ / "x.safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  const auto source = open_weights({path});
  const TensorView a = source->load("a", dims({2}));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data) % 4, 0u);
  EXPECT_EQ(a.as<float>()[0], 1.5f);
  EXPECT_EQ(a.as<float>()[1], -2.5f);
  EXPECT_EQ(source->load("a", dims({2})).data, a.data);
}

TEST_F(FileWeights, RefusesWhatItCannotReadByName) {
  const fs::path pickle = directory_ / "Wan2.1_VAE.pth";
  std::ofstream(pickle) << "PK\x03\x04 data.pkl";
  EXPECT_THAT(error_of([&] { open_weights({pickle}); }),
              AllOf(HasSubstr("Wan2.1_VAE.pth"), HasSubstr("convert")));
  const fs::path empty = directory_ / "empty.safetensors";
  std::ofstream(empty).close();
  EXPECT_THAT(error_of([&] { open_weights({empty}); }), HasSubstr("too short"));
  EXPECT_THAT(error_of([&] { open_weights({}); }), HasSubstr("no files"));

  const fs::path one = directory_ / "one.safetensors", two = directory_ / "two.safetensors";
  write_safetensors(one, {{"a", counting(DType::f32, {2}, 0)}});
  write_safetensors(two, {{"model.a", counting(DType::f32, {2}, 0)}});
  EXPECT_THAT(error_of([&] {
                open_weights({one, two});
              }),
              AllOf(HasSubstr("one.safetensors"), HasSubstr("two.safetensors")));
}

TEST_F(FileWeights, AScaleThatStandsTwiceIsRefused) {
  const fs::path one = directory_ / "one.safetensors", two = directory_ / "two.safetensors";
  const Tensor w = Tensor::zeros(DType::f8_e4m3, {2}), half = counting(DType::f32, {1}, 0.5f);
  write_safetensors(one, {{"a.weight", w}, {"a.scale_weight", half}});
  write_safetensors(two, {{"a.scale_weight", counting(DType::f32, {1}, 2.0f)}});
  EXPECT_THAT(error_of([&] {
                open_weights({one, two});
              }),
              AllOf(HasSubstr("two.safetensors"), HasSubstr("a.scale_weight")));
  write_safetensors(two, {{"b.weight", w}, {"b.scale_weight", half}, {"b.weight_scale", half}});
  const auto source = open_weights({one, two});
  EXPECT_THAT(error_of([&] { source->load("b.weight", dims({2})); }),
              AllOf(HasSubstr("b.scale_weight"), HasSubstr("b.weight_scale")));
  EXPECT_EQ(source->load("a.weight", dims({2})).dtype, DType::bf16);
}

TEST_F(FileWeights, TellsQuantisedComfyCheckpointsApart) {
  const auto write = [&](std::string_view json) {
    Tensor blob(DType::u8, {static_cast<int64_t>(json.size())});
    std::memcpy(blob.view().data, json.data(), json.size());
    const fs::path path = directory_ / "q.safetensors";
    write_safetensors(path, {{"a.comfy_quant", blob}});
    return error_of([&] { open_weights({path}); });
  };
  EXPECT_THAT(write(R"({"format": "int8_tensorwise", "convrot": true})"),
              AllOf(HasSubstr("comfy_quant"), HasSubstr("q.safetensors")));
  EXPECT_EQ(write(R"({"format": "float8_e4m3fn"})"), "accepted");
}

}  // namespace
}  // namespace lacuna
