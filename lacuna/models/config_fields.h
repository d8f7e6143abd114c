// SPDX-License-Identifier: Apache-2.0
// The fields of a config.json that nobody vouches for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

// A field that is null counts as absent. All throw Error that starts with `who` (a file name) and
// names field, value and what was expected.
class ConfigFields {
 public:
  // `what`: the kind of file, for messages. `who` must outlive this.
  ConfigFields(std::string_view json, std::string_view who, std::string_view what);
  ~ConfigFields();

  bool has(const std::string& key) const { return find(key) != nullptr; }
  // What is absent leaves `into` as it is, unless it is required.
  void read_int(const std::string& key, int64_t& into, bool required = false) const;
  void read_number(const std::string& key, double& into) const;
  void read_bool(const std::string& key, bool& into) const;
  void read_ints(const std::string& key, std::span<int64_t> into) const;  // an array of as many
  // The field may be absent or one of `allowed` written as JSON.
  void allow_only(const std::string& key, std::initializer_list<std::string_view> allowed) const;

 private:
  const nlohmann::json* find(const std::string& key) const;  // present and not null
  int64_t integer(const nlohmann::json& value, const std::string& key) const;

  std::unique_ptr<nlohmann::json> json_;
  std::string_view who_;
};

}  // namespace lacuna
