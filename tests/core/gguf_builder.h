// SPDX-License-Identifier: Apache-2.0
// Writes small GGUF files, right and wrong ones, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lacuna {

class GgufBuilder {
 public:
  template <typename T>
  static std::string raw(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string text(std::string_view s) { return raw(uint64_t{s.size()}) + std::string(s); }

  // A key-value pair with its value already encoded.
  GgufBuilder& value(std::string_view key, uint32_t type, const std::string& encoded) {
    values_ += text(key) + raw(type) + encoded;
    ++num_values;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t v) { return value(key, 4, raw(v)); }
  GgufBuilder& string(std::string_view key, std::string_view v) { return value(key, 8, text(v)); }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& list) {
    std::string encoded = raw(uint32_t{8}) + raw(uint64_t{list.size()});
    for (const std::string& s : list) encoded += text(s);
    return value(key, 9, encoded);
  }
  template <typename T>
  GgufBuilder& numbers(std::string_view key, uint32_t type, const std::vector<T>& list) {
    std::string encoded = raw(type) + raw(uint64_t{list.size()});
    for (T v : list) encoded += raw(v);
    return value(key, 9, encoded);
  }
  // dims fastest first, as stored. The data is appended at the next multiple of `alignment`.
  GgufBuilder& tensor(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims,
                      const std::string& data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    info(name, type, dims, data_.size());
    data_ += data;
    return *this;
  }
  GgufBuilder& info(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims,
                    uint64_t offset) {
    infos_ += text(name) + raw(static_cast<uint32_t>(dims.size()));
    for (uint64_t d : dims) infos_ += raw(d);
    infos_ += raw(type) + raw(offset);
    ++num_tensors;
    return *this;
  }

  std::string bytes() const {
    std::string all = magic + raw(version) + raw(num_tensors) + raw(num_values) + values_ + infos_;
    all.resize((all.size() + alignment - 1) / alignment * alignment);
    return all + data_;
  }
  std::filesystem::path write(const std::filesystem::path& path) const {
    std::ofstream(path, std::ios::binary) << bytes();
    return path;
  }

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t num_tensors = 0, num_values = 0;
  size_t alignment = 32;

 private:
  std::string values_, infos_, data_;
};

}  // namespace lacuna
