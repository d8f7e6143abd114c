// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

constexpr uint64_t kMaxKey = 65535;        // the format's limit
constexpr uint64_t kMaxTensorName = 1024;  // upstream's 64, then 128; be generous but bounded
constexpr int kMaxNesting = 4;
constexpr int64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxListed = 1 << 22;  // vocabularies hold 2^18 tokens
constexpr std::string_view kOrigShape = "comfy.gguf.orig_shape.";

// Reads forward through the mapped bytes and refuses to step past their end.
class Cursor {
 public:
  Cursor(std::span<const uint8_t> bytes, std::string who) : bytes_(bytes), who_(std::move(who)) {}

  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }
  const std::string& who() const { return who_; }

  std::span<const uint8_t> take(uint64_t size) {
    LACUNA_CHECK(size <= left(), "{}: {} bytes wanted at byte {}, {} left in the file", who_, size,
                 position_, left());
    const auto taken = bytes_.subspan(position_, size);
    position_ += size;
    return taken;
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view string(uint64_t limit = UINT64_MAX) {
    const auto size = number<uint64_t>();
    LACUNA_CHECK(size <= limit, "{}: a name of {} bytes, at most {}", who_, size, limit);
    const auto text = take(size);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

 private:
  std::span<const uint8_t> bytes_;
  std::string who_;
  size_t position_ = 0;
};

// Bytes of one element; 0 for strings, arrays and unknown types.
uint64_t fixed_size(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    default:
      return 0;
  }
}

GgufType read_type(Cursor& in) {
  const auto type = in.number<uint32_t>();
  LACUNA_CHECK(type <= static_cast<uint32_t>(GgufType::f64), "{}: value type {}, expected 0 to 12",
               in.who(), type);
  return static_cast<GgufType>(type);
}

GgufArray read_array(Cursor& in, std::span<const uint8_t> file, int depth) {
  LACUNA_CHECK(depth <= kMaxNesting, "{}: arrays nested deeper than {}", in.who(), kMaxNesting);
  GgufArray array;
  array.type = read_type(in);
  array.count = in.number<uint64_t>();
  const size_t begin = in.position();
  if (const uint64_t size = fixed_size(array.type); size != 0) {
    LACUNA_CHECK(array.count <= in.left() / size, "{}: array of {} elements, {} bytes left",
                 in.who(), array.count, in.left());
    in.take(array.count * size);
  } else {
    // Each string takes at least its 8-byte length, each array 12, so the loop ends with the file.
    for (uint64_t i = 0; i < array.count; ++i) {
      if (array.type == GgufType::string) {
        in.string();
      } else {
        read_array(in, file, depth + 1);
      }
    }
  }
  array.bytes = file.subspan(begin, in.position() - begin);
  return array;
}

GgufValue read_number(Cursor& in, GgufType type) {
  switch (type) {
    case GgufType::u8:
      return int64_t{in.number<uint8_t>()};
    case GgufType::i8:
      return int64_t{in.number<int8_t>()};
    case GgufType::u16:
      return int64_t{in.number<uint16_t>()};
    case GgufType::i16:
      return int64_t{in.number<int16_t>()};
    case GgufType::u32:
      return int64_t{in.number<uint32_t>()};
    case GgufType::i32:
      return int64_t{in.number<int32_t>()};
    case GgufType::i64:
      return in.number<int64_t>();
    case GgufType::u64: {
      const auto value = in.number<uint64_t>();
      if (value > INT64_MAX) return value;
      return static_cast<int64_t>(value);
    }
    case GgufType::f32:
      return double{in.number<float>()};
    case GgufType::f64:
      return in.number<double>();
    default:
      return in.number<uint8_t>() != 0;
  }
}

GgufValue read_value(Cursor& in, std::span<const uint8_t> file) {
  const GgufType type = read_type(in);
  if (type == GgufType::string) return in.string();
  if (type == GgufType::array) return read_array(in, file, 1);
  return read_number(in, type);
}

struct TensorType {
  uint32_t number;
  std::string_view name;
  std::optional<DType> dtype;
};
constexpr TensorType kTensorTypes[] = {
    {0, "F32", DType::f32},    {1, "F16", DType::f16},    {2, "Q4_0", DType::q4_0},
    {3, "Q4_1", DType::q4_1},  {6, "Q5_0", DType::q5_0},  {7, "Q5_1", DType::q5_1},
    {8, "Q8_0", DType::q8_0},  {9, "Q8_1", {}},           {10, "Q2_K", DType::q2_k},
    {11, "Q3_K", DType::q3_k}, {12, "Q4_K", DType::q4_k}, {13, "Q5_K", DType::q5_k},
    {14, "Q6_K", DType::q6_k}, {15, "Q8_K", {}},          {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},        {18, "IQ3_XXS", {}},       {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},        {21, "IQ3_S", {}},         {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},        {24, "I8", DType::i8},     {25, "I16", DType::i16},
    {26, "I32", DType::i32},   {27, "I64", DType::i64},   {28, "F64", DType::f64},
    {29, "IQ1_M", {}},         {30, "BF16", DType::bf16},
};

DType tensor_dtype(uint32_t number, const std::string& who) {
  for (const TensorType& type : kTensorTypes) {
    if (type.number != number) continue;
    LACUNA_CHECK(type.dtype.has_value(),
                 "{} has type {}, expected F32 F16 BF16 F64, an integer type or one of Q8_0 Q4_0 "
                 "Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K",
                 who, type.name);
    return *type.dtype;
  }
  fail("{} has type number {}, which is not known", who, number);
}

struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // row-major
  int64_t begin = 0, end = 0;  // in the data section
};

// Sizes are checked here, the place in the file by the caller, who knows where the data starts.
TensorInfo read_tensor_info(Cursor& in) {
  TensorInfo info;
  info.name = in.string(kMaxTensorName);
  const std::string who = in.who() + ": tensor " + info.name;
  const auto rank = in.number<uint32_t>();
  LACUNA_CHECK(rank <= kMaxRank, "{} has {} dimensions, at most {}", who, rank, kMaxRank);
  int64_t count = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = in.number<uint64_t>();
    LACUNA_CHECK(size <= INT64_MAX && !__builtin_mul_overflow(count, size, &count),
                 "{}: element count overflows 64 bits", who);
    info.shape.insert(info.shape.begin(), static_cast<int64_t>(size));
  }
  info.dtype = tensor_dtype(in.number<uint32_t>(), who);
  const int64_t row = info.shape.empty() ? 1 : info.shape.back();
  try {
    storage_bytes(info.dtype, row);  // whole blocks in each row
    const auto offset = in.number<uint64_t>();
    const int64_t bytes = storage_bytes(info.dtype, count);
    LACUNA_CHECK(offset <= INT64_MAX && !__builtin_add_overflow(offset, bytes, &info.end),
                 "offset {} overflows", offset);
    info.begin = static_cast<int64_t>(offset);
  } catch (const Error& error) {
    fail("{}: {}", who, error.what());
  }
  return info;
}

void read_header(Cursor& in) {
  const auto magic = in.take(4);
  LACUNA_CHECK(std::memcmp(magic.data(), "GGUF", 4) == 0, "{}: not a GGUF file", in.who());
  const auto version = in.number<uint32_t>();
  LACUNA_CHECK(version == 2 || version == 3, "{}: GGUF version {}, expected 2 or 3{}", in.who(),
               version, (version & 0xffff) == 0 ? " (big-endian files are not supported)" : "");
}

// Element i of a fixed-size array as a value.
GgufValue element(const GgufArray& array, uint64_t i) {
  const uint64_t size = fixed_size(array.type);
  Cursor in(array.bytes.subspan(i * size, size), "gguf array");
  return read_number(in, array.type);
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path) {
  const std::span<const uint8_t> bytes = file_.bytes();
  Cursor in(bytes, path.string());
  check_not_lfs_pointer(bytes, in.who());
  read_header(in);
  const auto num_tensors = in.number<uint64_t>();
  const auto num_values = in.number<uint64_t>();
  // The smallest tensor record is 24 bytes, the smallest key-value pair 13.
  LACUNA_CHECK(num_tensors <= in.left() / 24 && num_values <= in.left() / 13,
               "{}: {} tensors and {} values in {} bytes", in.who(), num_tensors, num_values,
               bytes.size());
  for (uint64_t i = 0; i < num_values; ++i) {
    std::string key(in.string(kMaxKey));
    GgufValue value = read_value(in, bytes);
    const auto [where, fresh] = metadata_.emplace(std::move(key), value);
    LACUNA_CHECK(fresh, "{}: key {} appears twice", in.who(), where->first);
  }
  std::vector<TensorInfo> infos;
  for (uint64_t i = 0; i < num_tensors; ++i) infos.push_back(read_tensor_info(in));

  const int64_t alignment = integer("general.alignment").value_or(32);
  LACUNA_CHECK(alignment > 0 && alignment <= kMaxAlignment &&
                   std::has_single_bit(static_cast<uint64_t>(alignment)),
               "{}: alignment {}, expected a power of two up to {}", in.who(), alignment,
               kMaxAlignment);
  const size_t padding = static_cast<size_t>(alignment) - 1;
  const size_t start = std::min((in.position() + padding) & ~padding, bytes.size());
  const auto data = bytes.subspan(start);
  std::vector<ByteRange> ranges;
  for (TensorInfo& info : infos) {
    LACUNA_CHECK(static_cast<uint64_t>(info.end) <= data.size() && info.begin % alignment == 0,
                 "{}: tensor {} lies at [{}, {}), expected a multiple of {} within {} bytes",
                 in.who(), info.name, info.begin, info.end, alignment, data.size());
    if (const auto shape = integers(std::string(kOrigShape) + info.name)) info.shape = *shape;
    TensorView view;
    int64_t size = 0;
    try {
      view = make_view(const_cast<uint8_t*>(data.data()) + info.begin, info.dtype, info.shape);
      size = storage_bytes(info.dtype, view.numel());
    } catch (const Error& error) {
      fail("{}: tensor {}: {}", in.who(), info.name, error.what());
    }
    LACUNA_CHECK(size == info.end - info.begin, "{}: tensor {} as {} has {} bytes, stored are {}",
                 in.who(), info.name, view.describe(), size, info.end - info.begin);
    const auto [where, fresh] = tensors_.emplace(info.name, view);
    LACUNA_CHECK(fresh, "{}: tensor {} appears twice", in.who(), info.name);
    ranges.push_back({info.begin, info.end, where->first});
  }
  check_disjoint(std::move(ranges), in.who());
}

const GgufArray* GgufFile::array(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return nullptr;
  const auto* array = std::get_if<GgufArray>(&found->second);
  LACUNA_CHECK(array != nullptr, "{}: {} is a single value, expected an array", path().string(),
               key);
  // A sparse file costs nothing to make, a list of its values 8 or 16 bytes each.
  LACUNA_CHECK(array->count <= kMaxListed, "{}: {} has {} values, expected at most {}",
               path().string(), key, array->count, kMaxListed);
  return array;
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return {};
  const auto* text = std::get_if<std::string_view>(&found->second);
  LACUNA_CHECK(text != nullptr, "{}: {} is not a string", path().string(), key);
  return *text;
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return {};
  const auto* value = std::get_if<int64_t>(&found->second);
  LACUNA_CHECK(value != nullptr, "{}: {} is not an integer below 2^63", path().string(), key);
  return *value;
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return {};
  if (const auto* value = std::get_if<double>(&found->second)) return *value;
  if (const auto* value = std::get_if<uint64_t>(&found->second)) return static_cast<double>(*value);
  return static_cast<double>(*integer(key));
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return {};
  const auto* value = std::get_if<bool>(&found->second);
  LACUNA_CHECK(value != nullptr, "{}: {} is not a boolean", path().string(), key);
  return *value;
}

std::optional<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  const GgufArray* list = array(key);
  if (list == nullptr) return {};
  LACUNA_CHECK(list->type == GgufType::string, "{}: {} is not an array of strings", path().string(),
               key);
  Cursor in(list->bytes, path().string());
  std::vector<std::string_view> result(list->count);
  for (std::string_view& text : result) text = in.string();
  return result;
}

std::optional<std::vector<float>> GgufFile::floats(std::string_view key) const {
  const GgufArray* list = array(key);
  if (list == nullptr) return {};
  LACUNA_CHECK(list->type == GgufType::f32 || list->type == GgufType::f64,
               "{}: {} is not an array of floats", path().string(), key);
  std::vector<float> result(list->count);
  for (uint64_t i = 0; i < list->count; ++i) {
    result[i] = static_cast<float>(std::get<double>(element(*list, i)));
  }
  return result;
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  const GgufArray* list = array(key);
  if (list == nullptr) return {};
  std::vector<int64_t> result(list->count);
  for (uint64_t i = 0; i < list->count; ++i) {
    const bool fixed = fixed_size(list->type) != 0;
    const GgufValue value = fixed ? element(*list, i) : GgufValue(false);
    const auto* number = std::get_if<int64_t>(&value);
    LACUNA_CHECK(number != nullptr, "{}: {} is not an array of integers below 2^63",
                 path().string(), key);
    result[i] = *number;
  }
  return result;
}

}  // namespace lacuna
