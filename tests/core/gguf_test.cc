// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "tests/core/gguf_builder.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kF32 = 0, kQ8_0 = 8;

class Gguf : public testing::Test {
 protected:
  std::string error_of(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    try {
      GgufFile file(path_);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  std::string error_of(const GgufBuilder& builder) { return error_of(builder.bytes()); }

  const test::TempFolder temp_;
  const fs::path path_ = temp_.path() / "model.gguf";
};

std::string floats(int n) {
  std::string bytes;
  for (int i = 0; i < n; ++i) bytes += GgufBuilder::raw(static_cast<float>(i));
  return bytes;
}

TEST_F(Gguf, ReadsValuesOfEveryType) {
  GgufBuilder b;
  b.value("u8", 0, GgufBuilder::raw(uint8_t{200}))
      .value("i8", 1, GgufBuilder::raw(int8_t{-3}))
      .value("u16", 2, GgufBuilder::raw(uint16_t{60000}))
      .value("i16", 3, GgufBuilder::raw(int16_t{-300}))
      .u32("u32", 4'000'000'000u)
      .value("i32", 5, GgufBuilder::raw(int32_t{-70000}))
      .value("f32", 6, GgufBuilder::raw(0.5f))
      .value("bool", 7, GgufBuilder::raw(uint8_t{1}))
      .string("string", "wan")
      .value("u64", 10, GgufBuilder::raw(uint64_t{1} << 63))
      .value("i64", 11, GgufBuilder::raw(int64_t{-1} << 40))
      .value("f64", 12, GgufBuilder::raw(-2.25))
      .strings("tokens", {"<pad>", "", std::string("a\0b", 3)})
      .numbers<float>("scores", 6, {0.0f, -1.5f})
      .numbers<int32_t>("types", 5, {3, -1})
      .value("nested", 9,
             GgufBuilder::raw(uint32_t{9}) + GgufBuilder::raw(uint64_t{1}) +
                 GgufBuilder::raw(uint32_t{0}) + GgufBuilder::raw(uint64_t{2}) + "ab");
  const GgufFile file(b.write(path_));
  EXPECT_EQ(file.integer("u8"), 200);
  EXPECT_EQ(file.integer("i8"), -3);
  EXPECT_EQ(file.integer("u16"), 60000);
  EXPECT_EQ(file.integer("i16"), -300);
  EXPECT_EQ(file.integer("u32"), 4'000'000'000);
  EXPECT_EQ(file.integer("i32"), -70000);
  EXPECT_EQ(file.integer("i64"), int64_t{-1} << 40);
  EXPECT_EQ(file.number("f32"), 0.5);
  EXPECT_EQ(file.number("f64"), -2.25);
  EXPECT_EQ(file.number("u64"), 9223372036854775808.0);
  EXPECT_EQ(file.number("i16"), -300.0);
  EXPECT_EQ(file.boolean("bool"), true);
  EXPECT_EQ(file.string("string"), "wan");
  EXPECT_THAT(*file.strings("tokens"), ElementsAre("<pad>", "", std::string_view("a\0b", 3)));
  EXPECT_THAT(*file.floats("scores"), ElementsAre(0.0f, -1.5f));
  EXPECT_THAT(*file.integers("types"), ElementsAre(3, -1));
  EXPECT_EQ(std::get<GgufArray>(file.metadata().at("nested")).count, 1u);
  EXPECT_FALSE(file.integer("absent").has_value());
  EXPECT_FALSE(file.strings("absent").has_value());
  EXPECT_THROW(file.integer("string"), Error);
  EXPECT_THROW(file.integer("u64"), Error);
  EXPECT_THROW(file.string("u8"), Error);
  EXPECT_THROW(file.strings("scores"), Error);
  EXPECT_THROW(file.floats("types"), Error);
  EXPECT_THROW(file.integers("nested"), Error);
  EXPECT_THROW(file.integers("tokens"), Error);
}

TEST_F(Gguf, TensorsComeRowMajorWithFiveDimensionsAndOverriddenShapes) {
  GgufBuilder b;
  const std::string long_name(127, 'n');
  b.tensor("patch_embedding.weight", kF32, {2, 2, 1, 3, 4}, floats(48))
      .tensor(long_name, kQ8_0, {64, 3}, std::string(6 * 34, '\1'))
      .tensor("scalar", kF32, {}, floats(1))
      .tensor("folded", kF32, {4, 3}, floats(12))
      .numbers<int32_t>("comfy.gguf.orig_shape.folded", 5, {2, 3, 2});
  const GgufFile file(b.write(path_));
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors().at("patch_embedding.weight").describe(), "[4, 3, 1, 2, 2] f32");
  EXPECT_EQ(file.tensors().at(long_name).describe(), "[3, 64] q8_0");
  EXPECT_EQ(file.tensors().at("scalar").rank, 0);
  EXPECT_EQ(file.tensors().at("folded").describe(), "[2, 3, 2] f32");
  const Tensor patch = converted(file.tensors().at("patch_embedding.weight"), DType::f32);
  EXPECT_EQ(patch.as<float>()[47], 47.0f);
  EXPECT_EQ(static_cast<const char*>(file.tensors().at(long_name).data)[203], '\1');
}

TEST_F(Gguf, HonoursTheAlignment) {
  GgufBuilder b;
  b.alignment = 4;
  b.u32("general.alignment", 4).tensor("a", kF32, {1}, floats(1)).tensor("b", kF32, {2}, floats(2));
  const GgufFile file(b.write(path_));
  const auto* a = static_cast<const char*>(file.tensors().at("a").data);
  EXPECT_EQ(static_cast<const char*>(file.tensors().at("b").data) - a, 4);
  for (uint32_t wrong : {0u, 3u, 1u << 30}) {
    EXPECT_THAT(error_of(GgufBuilder().u32("general.alignment", wrong)), HasSubstr("alignment"));
  }
}

TEST_F(Gguf, HostileFilesAreRefusedByName) {
  GgufBuilder good;
  good.string("k", "v").tensor("t", kF32, {4}, floats(4));
  EXPECT_EQ(error_of(good), "accepted");
  // Every truncation is an error, never a crash (sanitizers watch).
  const std::string bytes = good.bytes();
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_NE(error_of(bytes.substr(0, n)), "accepted") << n;
  }
  GgufBuilder wrong = good;
  wrong.magic = "GGML";
  EXPECT_THAT(error_of(wrong), HasSubstr("not a GGUF"));
  wrong = good, wrong.version = 0x03000000;
  EXPECT_THAT(error_of(wrong), HasSubstr("big-endian"));
  wrong = good, wrong.version = 2;
  EXPECT_EQ(error_of(wrong), "accepted");
  for (const uint32_t version : {0u, 1u, 4u}) {
    wrong = good, wrong.version = version;
    EXPECT_THAT(error_of(wrong), HasSubstr("expected 2 or 3"));
  }
  wrong = good, wrong.num_tensors = UINT64_MAX;
  EXPECT_THAT(error_of(wrong), HasSubstr("tensors and"));
  wrong = good, wrong.num_values = uint64_t{1} << 40;
  EXPECT_THAT(error_of(wrong), HasSubstr("values in"));
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
  EXPECT_THAT(error_of(pointer), HasSubstr("git lfs pull"));
}

TEST_F(Gguf, HostileValuesAreRefusedByName) {
  const auto u32 = [](uint32_t v) { return GgufBuilder::raw(v); };
  const auto u64 = [](uint64_t v) { return GgufBuilder::raw(v); };
  EXPECT_THAT(error_of(GgufBuilder().value("k", 13, "")), HasSubstr("value type 13"));
  EXPECT_THAT(error_of(GgufBuilder().u32("k", 1).u32("k", 2)), HasSubstr("k appears twice"));
  EXPECT_THAT(error_of(GgufBuilder().value("k", 8, u64(UINT64_MAX))), HasSubstr("bytes wanted"));
  EXPECT_THAT(error_of(GgufBuilder().value("k", 9, u32(10) + u64(uint64_t{1} << 61))),
              HasSubstr("elements"));
  EXPECT_THAT(error_of(GgufBuilder().value("k", 9, u32(8) + u64(UINT64_MAX))),
              HasSubstr("bytes wanted"));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += u32(9) + u64(1);
  EXPECT_THAT(error_of(GgufBuilder().value("k", 9, deep)), HasSubstr("nested"));
  EXPECT_THAT(error_of(GgufBuilder().u32(std::string(70000, 'k'), 1)), HasSubstr("at most 65535"));
}

TEST_F(Gguf, ListsAreNotLongerThanAVocabulary) {
  const std::vector<uint8_t> most(size_t{1} << 22), more(most.size() + 1);
  GgufBuilder b;
  b.numbers<uint8_t>("most", 0, most).numbers<uint8_t>("more", 0, more);
  const GgufFile file(b.write(path_));
  EXPECT_EQ(file.integers("most")->size(), most.size());
  for (const auto& list : {std::function<void()>([&] { file.integers("more"); }),
                           std::function<void()>([&] { file.strings("more"); }),
                           std::function<void()>([&] { file.floats("more"); })}) {
    try {
      list();
      ADD_FAILURE() << "listed";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("4194305 values, expected at most 4194304"));
    }
  }
  GgufBuilder shape;
  shape.tensor("t", kF32, {16}, floats(16)).numbers<uint8_t>("comfy.gguf.orig_shape.t", 0, more);
  EXPECT_THAT(error_of(shape), HasSubstr("orig_shape.t has 4194305 values"));
}

TEST_F(Gguf, HostileTensorsAreRefusedByName) {
  const auto with = [](std::string_view name, uint32_t type, std::vector<uint64_t> dims,
                       uint64_t offset = 0) {
    return GgufBuilder().tensor("first", kF32, {16}, floats(16)).info(name, type, dims, offset);
  };
  EXPECT_THAT(error_of(with("t", kF32, {4}, 0)), HasSubstr("overlap"));
  EXPECT_THAT(error_of(with("t", kF32, {4}, 64)), HasSubstr("t lies at"));
  EXPECT_THAT(error_of(with("t", kF32, {1}, 2)), HasSubstr("t lies at"));
  EXPECT_THAT(error_of(with("t", kF32, {4}, UINT64_MAX)), HasSubstr("overflows"));
  EXPECT_THAT(error_of(with("t", kF32, {4}, INT64_MAX - 4)), HasSubstr("overflows"));
  EXPECT_THAT(error_of(with("t", kF32, {1, 1, 1, 1, 1, 1})), HasSubstr("6 dimensions"));
  EXPECT_THAT(error_of(with("t", kF32, {1ull << 32, 1ull << 32})), HasSubstr("overflows"));
  EXPECT_THAT(error_of(with("t", kF32, {1ull << 62})), HasSubstr("overflows"));
  EXPECT_THAT(error_of(with("t", kQ8_0, {48, 2})), HasSubstr("multiple of 32"));
  EXPECT_THAT(error_of(with("t", 15, {256})), HasSubstr("Q8_K"));
  EXPECT_THAT(error_of(with("t", 99, {256})), HasSubstr("number 99"));
  EXPECT_THAT(error_of(with("first", kF32, {0})), HasSubstr("twice"));
  EXPECT_THAT(error_of(with(std::string(2000, 'x'), kF32, {0})), HasSubstr("at most 1024"));
  for (const std::vector<int32_t>& shape :
       {std::vector<int32_t>{17}, {-1, -16}, {2, 2, 2, 2, 1, 1}}) {
    GgufBuilder b;
    b.tensor("t", kF32, {16}, floats(16)).numbers("comfy.gguf.orig_shape.t", 5, shape);
    EXPECT_THAT(error_of(b), HasSubstr("tensor t"));
  }
}

}  // namespace
}  // namespace lacuna
