// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/methods/method.h"

namespace lacuna {

namespace {

void check_value(const ParamSpec& spec, double value) {
  // Written so that NaN fails.
  const bool in_range = value >= spec.min && value <= spec.max;
  LACUNA_CHECK(in_range && (!spec.integer || value == std::floor(value)),
               "parameter {}: {}, expected {} in {} to {}", spec.name, value,
               spec.integer ? "a whole number" : "a number", spec.min, spec.max);
}

}  // namespace

Params::Params(std::span<const ParamSpec> specs) : specs_(specs) {
  values_.reserve(specs.size());
  for (const ParamSpec& spec : specs) values_.push_back({spec.default_value});
}

size_t Params::index(std::string_view name) const {
  std::string names;
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].name == name) return i;
    names += names.empty() ? "" : ", ";
    names += specs_[i].name;
  }
  fail("parameter: '{}', expected {}{}", name, names.empty() ? "none" : "one of ", names);
}

void Params::set(std::string_view name, double value) {
  const size_t i = index(name);
  check_value(specs_[i], value);
  values_[i].assign(1, value);
}

void Params::set_per_head(std::string_view name, std::vector<double> values) {
  const size_t i = index(name);
  LACUNA_CHECK(!values.empty(), "parameter {}: no values, expected one per head", name);
  for (double value : values) check_value(specs_[i], value);
  values_[i] = std::move(values);
}

double Params::get(std::string_view name, int64_t head) const {
  const auto& values = values_[index(name)];
  if (values.size() == 1) return values[0];
  LACUNA_CHECK(head >= 0 && head < static_cast<int64_t>(values.size()),
               "parameter {}: {} values, expected one for head {}", name, values.size(), head);
  return values[head];
}

int64_t Params::get_int(std::string_view name, int64_t head) const {
  return static_cast<int64_t>(get(name, head));
}

bool Params::per_head(std::string_view name) const {
  return values_[index(name)].size() > 1;
}

std::span<const double> Params::values(std::string_view name) const {
  return values_[index(name)];
}

Params Params::of_heads(int64_t begin, int64_t end, int64_t num_heads) const {
  Params taken = *this;
  for (size_t i = 0; i < values_.size(); ++i) {
    const std::vector<double>& all = values_[i];
    if (all.size() <= 1) continue;
    LACUNA_CHECK(static_cast<int64_t>(all.size()) == num_heads, "{}: {} values, expected 1 or {}",
                 specs_[i].name, all.size(), num_heads);
    taken.values_[i] = std::vector<double>(all.begin() + begin, all.begin() + end);
  }
  return taken;
}

}  // namespace lacuna
