// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>

#include "lacuna/core/error.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Safetensors : public testing::Test {
 protected:
  fs::path file(const std::string& bytes) {
    const fs::path path = directory_ / "hostile.safetensors";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // Header text with its length in front and `data_size` bytes of data behind.
  fs::path with_header(const std::string& header, size_t data_size) {
    const uint64_t size = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &size, 8);
    return file(bytes + header + std::string(data_size, 'x'));
  }
  static std::string error_of(const fs::path& path) {
    try {
      SafetensorsFile opened(path);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TempFolder temp_;
  const fs::path directory_ = temp_.path();
};

TEST_F(Safetensors, RoundTripKeepsNamesShapesBytesAndMetadata) {
  Tensor a(DType::f32, {2, 3}), b(DType::i8, {5}), c(DType::bf16, {1, 1, 2, 1, 3}),
      scalar(DType::f64, {}), none(DType::f32, {0, 4});
  std::vector<std::pair<std::string, TensorView>> tensors = {
      {"b", b}, {"a.weight", a}, {"c \"quoted\"\n", c}, {"scalar", scalar}, {"none", none}};
  uint8_t next = 1;
  for (auto& [name, view] : tensors) {
    auto* p = static_cast<uint8_t*>(view.data);
    for (int64_t i = 0; i < storage_bytes(view.dtype, view.numel()); ++i) p[i] = next++;
  }
  const fs::path path = directory_ / "x.safetensors";
  write_safetensors(path, tensors, {{"format", "pt"}, {"k", "v"}});
  const SafetensorsFile read(path);
  EXPECT_EQ(read.metadata(), (Metadata{{"format", "pt"}, {"k", "v"}}));
  ASSERT_EQ(read.tensors().size(), tensors.size());
  for (const auto& [name, view] : tensors) {
    const TensorView& got = read.at(name);
    EXPECT_EQ(got.describe(), view.describe()) << name;
    const auto bytes = static_cast<size_t>(storage_bytes(view.dtype, view.numel()));
    EXPECT_EQ(std::memcmp(got.data, view.data, bytes), 0) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.data) % storage_bytes(view.dtype, 1), 0u) << name;
  }
  EXPECT_THROW(read.at("absent"), Error);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1) << "temporary file left";
}

TEST_F(Safetensors, WriterRefusesWhatTheFormatCannotHold) {
  Tensor a(DType::f32, {2, 3}), b(DType::i8, {5}), q(DType::q8_0, {32});
  TensorView strided = a;
  std::swap(strided.shape[0], strided.shape[1]);
  std::swap(strided.stride[0], strided.stride[1]);
  const fs::path path = directory_ / "x.safetensors";
  EXPECT_THROW(write_safetensors(path, {{"a", a}, {"a", a}}), Error);
  EXPECT_THROW(write_safetensors(path, {{"a", a}, {"b", b}, {"a", b}}), Error);
  EXPECT_THROW(write_safetensors(path, {{"__metadata__", a}}), Error);
  EXPECT_THROW(write_safetensors(path, {{"s", strided}}), Error);
  EXPECT_THROW(write_safetensors(path, {{"q", q}}), Error);
  EXPECT_THROW(write_safetensors(path, {{"\xff", a}}), Error);
  EXPECT_TRUE(fs::is_empty(directory_));
}

// A second or less; a walk over all names for each of them takes minutes.
TEST_F(Safetensors, WritesAsManyTensorsAsAMaskLogHas) {
  const Tensor x = Tensor::zeros(DType::i64, {1});
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (int i = 0; i < 160000; ++i)
    tensors.emplace_back("mask-abcdef012" + std::to_string(1000000 + i), x);
  const fs::path path = directory_ / "x.safetensors";
  const auto start = std::chrono::steady_clock::now();
  write_safetensors(path, tensors);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  EXPECT_LT(taken.count(), 20.0);
  EXPECT_EQ(SafetensorsFile(path).tensors().size(), tensors.size());
}

TEST_F(Safetensors, AcceptsGapsAndUnalignedTensors) {
  const auto path = with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[3,7]},)"
                                R"("b":{"data_offsets":[9,9],"dtype":"U8","shape":[0]}} )",
                                12);
  const SafetensorsFile read(path);
  EXPECT_EQ(std::memcmp(read.at("a").data, "xxxx", 4), 0);
  EXPECT_EQ(read.at("b").numel(), 0);
}

TEST_F(Safetensors, HostileFilesAreRefusedByName) {
  EXPECT_THAT(error_of(directory_ / "missing"), HasSubstr("missing"));
  EXPECT_THAT(error_of(directory_), HasSubstr("directory"));
  EXPECT_THAT(error_of(file("")), HasSubstr("too short"));
  EXPECT_THAT(error_of(file(std::string(8, '\xff'))), HasSubstr("header of"));
  EXPECT_THAT(error_of(file(std::string("\x09\0\0\0\0\0\0\0{}", 10))), HasSubstr("header of 9"));
  EXPECT_THAT(error_of(file("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")),
              HasSubstr("git lfs pull"));
}

TEST_F(Safetensors, HostileHeadersAreRefusedByName) {
  struct Case {
    const char* header;
    const char* message;
  };
  const Case cases[] = {
      {"", "not JSON"},
      {"{", "not JSON"},
      {"[]", "a list"},
      {"3", "a number"},
      {"{} {}", "not JSON"},
      {R"({"t":3})", "a number"},
      {R"({"t":{}})", "lacks"},
      {R"({"t":{"dtype":"F32","shape":[1]}})", "lacks"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", "lacks"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", "more than 2"},
      {R"({"t":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", "F31"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", "has 8 bytes, expected 4"},
      {R"({"t":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})", "outside 8 bytes"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})", "outside"},
      {R"({"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "negative"},
      {R"({"t":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "fraction"},
      {R"({"t":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", "2^63"},
      {R"({"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", "overflow"},
      {R"({"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", "overflow"},
      {R"({"t":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})",
       "overflow"},
      {R"({"t":{"dtype":"U8","shape":[1,1,1,1,1,1],"data_offsets":[0,1]}})", "more than 5"},
      {R"({"t":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", "a list"},
      {R"({"t":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "twice"},
      {R"({"t":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "twice"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}}})", "an object"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       "twice"},
      {R"({"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
       R"("u":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       "t and u overlap"},
      {R"({"__metadata__":{"a":1}})", "a number"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", "twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "twice"},
  };
  for (const Case& c : cases) {
    const std::string message = error_of(with_header(c.header, 8));
    EXPECT_THAT(message, HasSubstr(c.message)) << c.header;
    EXPECT_THAT(message, HasSubstr("hostile.safetensors")) << c.header;
  }
  // Deep nesting must not reach a recursive parser.
  EXPECT_THAT(error_of(with_header(std::string(1 << 20, '['), 0)), HasSubstr("a list"));
}

}  // namespace
}  // namespace lacuna
