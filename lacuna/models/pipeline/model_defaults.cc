// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/model_defaults.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/models/text/hostile_json.h"

namespace lacuna {
namespace {

struct IntegerKey {
  std::string_view name;
  int FamilyDefaults::*field;
  int max;
};
constexpr IntegerKey kIntegers[] = {{"width", &FamilyDefaults::width, 8192},
                                    {"height", &FamilyDefaults::height, 8192},
                                    {"frames", &FamilyDefaults::frames, 4096},
                                    {"fps", &FamilyDefaults::fps, 240},
                                    {"steps", &FamilyDefaults::steps, 1000}};

int read_integer(const nlohmann::json& value, const IntegerKey& key, std::string_view who) {
  const bool fits = value.is_number_unsigned() && value.get<uint64_t>() >= 1 &&
                    value.get<uint64_t>() <= static_cast<uint64_t>(key.max);
  LACUNA_CHECK(fits, "{}: lacuna_defaults.{} out of range, expected an integer from 1 to {}", who,
               key.name, key.max);
  return value.get<int>();
}

double read_number(const nlohmann::json& value, std::string_view key, double min, double max,
                   std::string_view who) {
  const bool fits = value.is_number() && value.get<double>() >= min && value.get<double>() <= max;
  LACUNA_CHECK(fits, "{}: lacuna_defaults.{} out of range, expected a number from {} to {}", who,
               key, min, max);
  return value.get<double>();
}

std::string read_text(const nlohmann::json& value, std::string_view key, size_t max,
                      std::string_view who) {
  LACUNA_CHECK(value.is_string() && value.get_ref<const std::string&>().size() <= max,
               "{}: lacuna_defaults.{}, expected text of at most {} bytes", who, key, max);
  return value.get<std::string>();
}

}  // namespace

void read_model_defaults(const nlohmann::json& json, std::string_view who, FamilyDefaults& defaults,
                         std::string& name) {
  LACUNA_CHECK(json.is_object(), "{}: lacuna_defaults, expected an object", who);
  for (const auto& [key, value] : json.items()) {
    const auto* integer = std::find_if(std::begin(kIntegers), std::end(kIntegers),
                                       [&](const IntegerKey& k) { return k.name == key; });
    if (integer != std::end(kIntegers)) {
      defaults.*(integer->field) = read_integer(value, *integer, who);
    } else if (key == "shift") {
      defaults.shift = read_number(value, key, 1e-3, 1e3, who);
    } else if (key == "guidance") {
      defaults.guidance = defaults.guidance_low = read_number(value, key, 0.0, 1e3, who);
    } else if (key == "name") {
      name = read_text(value, key, 200, who);
    } else if (key == "license") {
      defaults.license = read_text(value, key, 200, who);
    } else if (key == "negative_prompt") {
      defaults.negative_prompt = read_text(value, key, 2000, who);
    } else {
      fail("{}: lacuna_defaults.{}, not a known key", who, key);
    }
  }
}

double read_flow_shift(const nlohmann::json& json, std::string_view who, bool inverted) {
  struct Fixed {
    const char* key;
    nlohmann::json absent, expected;
  };
  constexpr const char* kClass = "FlowMatchEulerDiscreteScheduler";
  const Fixed fixed[] = {
      {"_class_name", kClass, kClass},          {"num_train_timesteps", 1000, 1000},
      {"invert_sigmas", false, inverted},       {"use_dynamic_shifting", false, false},
      {"shift_terminal", nullptr, nullptr},     {"use_karras_sigmas", false, false},
      {"use_exponential_sigmas", false, false}, {"use_beta_sigmas", false, false},
      {"stochastic_sampling", false, false}};
  for (const Fixed& key : fixed) {
    const auto found = json.find(key.key);
    const bool stated = found != json.end() && !found->is_null();
    const nlohmann::json& value = stated ? *found : key.absent;
    LACUNA_CHECK(value == key.expected, "{}: {} {}, expected {}", who, key.key, shown_json(value),
                 key.expected.dump());
  }
  const auto shift = json.find("shift");
  if (shift == json.end()) return 1.0;
  const bool fits = shift->is_number() && shift->get<double>() > 0 && shift->get<double>() <= 100;
  LACUNA_CHECK(fits, "{}: shift {}, expected a number above 0, at most 100", who,
               shown_json(*shift));
  return shift->get<double>();
}

}  // namespace lacuna
