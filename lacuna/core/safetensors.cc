// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference implementation
constexpr std::string_view kMetadataKey = "__metadata__";

struct NamedDType {
  std::string_view name;
  DType dtype;
};
constexpr NamedDType kDTypeNames[] = {
    {"F32", DType::f32}, {"F16", DType::f16},         {"BF16", DType::bf16},
    {"F64", DType::f64}, {"F8_E4M3", DType::f8_e4m3}, {"F8_E5M2", DType::f8_e5m2},
    {"I64", DType::i64}, {"I32", DType::i32},         {"I16", DType::i16},
    {"I8", DType::i8},   {"U8", DType::u8},           {"BOOL", DType::boolean},
};

struct Entry {
  std::string name;
  std::optional<DType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<int64_t>> offsets;  // [begin, end)
};

// Accepts exactly the header's grammar, event by event, so that nothing hostile is ever stored:
// no deep nesting, no long lists, no second entry of the same name.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::string who, std::vector<Entry>& entries, Metadata& metadata)
      : who_(std::move(who)), entries_(entries), metadata_(metadata) {}

  bool null() override { reject("null"); }
  bool boolean(bool) override { reject("a boolean"); }
  bool number_integer(number_integer_t) override { reject("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { reject("a fraction"); }
  bool binary(binary_t&) override { reject("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (level_ != Level::list) reject("a number");
    LACUNA_CHECK(value <= INT64_MAX, "{}: {} of {} is {}, expected below 2^63", who_, key_, name_,
                 value);
    std::vector<int64_t>& list = key_ == "shape" ? *entry_.shape : *entry_.offsets;
    const size_t limit = key_ == "shape" ? kMaxRank : 2;
    LACUNA_CHECK(list.size() < limit, "{}: {} of {} has more than {} numbers", who_, key_, name_,
                 limit);
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (level_ == Level::metadata) {
      const bool fresh = metadata_.emplace(key_, value).second;
      LACUNA_CHECK(fresh, "{}: metadata key {} appears twice", who_, key_);
      return true;
    }
    if (level_ != Level::tensor || key_ != "dtype") reject("a string");
    LACUNA_CHECK(!entry_.dtype, "{}: dtype of {} appears twice", who_, name_);
    for (const NamedDType& d : kDTypeNames) {
      if (d.name == value) entry_.dtype = d.dtype;
    }
    LACUNA_CHECK(entry_.dtype, "{}: {} has dtype {}, which is not supported", who_, name_, value);
    return true;
  }

  bool key(string_t& value) override {
    (level_ == Level::top ? name_ : key_) = value;
    return true;
  }

  bool start_object(size_t) override {
    if (level_ == Level::outside) {
      level_ = Level::top;
    } else if (level_ == Level::top && name_ == kMetadataKey) {
      LACUNA_CHECK(!metadata_seen_, "{}: {} appears twice", who_, kMetadataKey);
      metadata_seen_ = true;
      level_ = Level::metadata;
    } else if (level_ == Level::top) {
      entry_ = Entry{name_, {}, {}, {}};
      level_ = Level::tensor;
    } else {
      reject("an object");
    }
    return true;
  }

  bool end_object() override {
    if (level_ == Level::tensor) {
      LACUNA_CHECK(entry_.dtype && entry_.shape && entry_.offsets && entry_.offsets->size() == 2,
                   "{}: {} lacks dtype, shape or data_offsets", who_, name_);
      entries_.push_back(std::move(entry_));
    }
    level_ = level_ == Level::top ? Level::outside : Level::top;
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != Level::tensor) reject("a list");
    auto* list = key_ == "shape"          ? &entry_.shape
                 : key_ == "data_offsets" ? &entry_.offsets
                                          : nullptr;
    if (list == nullptr) reject("a list");
    LACUNA_CHECK(!*list, "{}: {} of {} appears twice", who_, key_, name_);
    list->emplace();
    level_ = Level::list;
    return true;
  }

  bool end_array() override {
    level_ = Level::tensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail("{}: header is not JSON near byte {}", who_, position);
  }

 private:
  enum class Level { outside, top, tensor, list, metadata };

  [[noreturn]] void reject(const char* what) const {
    fail("{}: header has {} at {} {}, expected name: {{dtype, shape, data_offsets}}", who_, what,
         name_, key_);
  }

  std::string who_;
  std::vector<Entry>& entries_;
  Metadata& metadata_;
  Level level_ = Level::outside;
  bool metadata_seen_ = false;
  std::string name_, key_;
  Entry entry_;
};

TensorView checked_view(const Entry& entry, std::span<const uint8_t> data, const std::string& who) {
  const int64_t begin = (*entry.offsets)[0], end = (*entry.offsets)[1];
  LACUNA_CHECK(begin <= end && static_cast<uint64_t>(end) <= data.size(),
               "{}: {} lies at [{}, {}), outside {} bytes of data", who, entry.name, begin, end,
               data.size());
  TensorView view;
  int64_t bytes = 0;
  try {
    view = make_view(const_cast<uint8_t*>(data.data()) + begin, *entry.dtype, *entry.shape);
    bytes = storage_bytes(*entry.dtype, view.numel());
  } catch (const Error& error) {
    fail("{}: {}: {}", who, entry.name, error.what());
  }
  LACUNA_CHECK(bytes == end - begin, "{}: {} {} has {} bytes, expected {}", who, entry.name,
               view.describe(), end - begin, bytes);
  return view;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  const std::string who = path.string();
  const std::span<const uint8_t> bytes = file_.bytes();
  check_not_lfs_pointer(bytes, who);
  LACUNA_CHECK(bytes.size() >= 8, "{}: {} bytes, too short for a safetensors file", who,
               bytes.size());
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  LACUNA_CHECK(header_size <= kMaxHeader && header_size <= bytes.size() - 8,
               "{}: header of {} bytes in a file of {}, not a safetensors file", who, header_size,
               bytes.size());
  const auto header = bytes.subspan(8, header_size);
  std::vector<Entry> entries;
  HeaderReader reader(who, entries, metadata_);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  const auto data = bytes.subspan(8 + header_size);
  std::vector<ByteRange> ranges;
  for (const Entry& entry : entries) {
    ranges.push_back({(*entry.offsets)[0], (*entry.offsets)[1], entry.name});
    const bool fresh = tensors_.emplace(entry.name, checked_view(entry, data, who)).second;
    LACUNA_CHECK(fresh, "{}: tensor {} appears twice", who, entry.name);
  }
  check_disjoint(std::move(ranges), who);
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  const auto found = tensors_.find(name);
  LACUNA_CHECK(found != tensors_.end(), "{}: no tensor {}", path().string(), name);
  return found->second;
}

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, TensorView>>& tensors,
                       const Metadata& metadata) {
  std::vector<const std::pair<std::string, TensorView>*> order;
  for (const auto& tensor : tensors) {
    const TensorView& view = tensor.second;
    LACUNA_CHECK(view.contiguous() && view.device == Device::cpu && !is_quantized(view.dtype),
                 "write {}: {} is {}, expected a contiguous plain host tensor", path.string(),
                 tensor.first, view.describe());
    LACUNA_CHECK(tensor.first != kMetadataKey, "write {}: a tensor may not be called {}",
                 path.string(), kMetadataKey);
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const int64_t wa = storage_bytes(a->second.dtype, 1), wb = storage_bytes(b->second.dtype, 1);
    return wa != wb ? wa > wb : a->first < b->first;
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  // An ordered object is a list that contains() and [] walk; a mask log may have 100,000 tensors.
  auto& entries = header.get_ref<nlohmann::ordered_json::object_t&>();
  std::set<std::string_view> names;
  int64_t offset = 0;
  for (const auto* tensor : order) {
    const TensorView& view = tensor->second;
    LACUNA_CHECK(names.insert(tensor->first).second, "write {}: tensor {} is given twice",
                 path.string(), tensor->first);
    const auto* named = std::find_if(std::begin(kDTypeNames), std::end(kDTypeNames),
                                     [&](const NamedDType& d) { return d.dtype == view.dtype; });
    const int64_t end = offset + storage_bytes(view.dtype, view.numel());
    nlohmann::ordered_json entry = {
        {"dtype", named->name},
        {"shape", std::vector<int64_t>(view.shape.begin(), view.shape.begin() + view.rank)},
        {"data_offsets", {offset, end}}};
    entries.emplace_back(tensor->first, std::move(entry));
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    fail("write {}: a name or metadata value is not UTF-8", path.string());
  }
  // Spaces until the data starts on a cache line.
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  LACUNA_CHECK(text.size() <= kMaxHeader, "write {}: header of {} bytes, at most {}", path.string(),
               text.size(), kMaxHeader);
  AtomicFile file(path);
  const uint64_t size = text.size();
  file.write(&size, sizeof(size));
  file.write(text);
  for (const auto* tensor : order) {
    const TensorView& view = tensor->second;
    file.write(view.data, static_cast<size_t>(storage_bytes(view.dtype, view.numel())));
  }
  file.commit();
}

}  // namespace lacuna
