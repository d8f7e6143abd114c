// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/tables.h"

#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/presets.h"

namespace lacuna {

namespace {

using Json = nlohmann::ordered_json;

std::string number(double value) {
  return fmt::format("{:g}", value);
}

std::string table_head(std::string_view kind) {
  return fmt::format(
      "| {} | what | parameter | default | range | meaning |\n|---|---|---|---|---|---|\n", kind);
}

void add_rows(std::string& text, std::string_view name, std::string_view summary,
              std::span<const ParamSpec> specs) {
  if (specs.empty()) text += fmt::format("| `{}` | {} | | | | |\n", name, summary);
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParamSpec& spec = specs[i];
    text += fmt::format("| {} | {} | `{}` | {} | {} to {} | {} |\n",
                        i == 0 ? fmt::format("`{}`", name) : "", i == 0 ? summary : "", spec.name,
                        number(spec.default_value), number(spec.min), number(spec.max), spec.help);
  }
}

Json params_json(std::span<const ParamSpec> specs) {
  Json list = Json::array();
  for (const ParamSpec& spec : specs)
    list.push_back({{"name", spec.name},
                    {"default", spec.default_value},
                    {"min", spec.min},
                    {"max", spec.max},
                    {"integer", spec.integer},
                    {"help", spec.help}});
  return list;
}

template <typename Info>
Json rules_json(std::span<const Info> rules) {
  Json list = Json::array();
  for (const Info& info : rules)
    list.push_back({{"name", info.name},
                    {"summary", info.summary},
                    {"formula", info.formula},
                    {"params", params_json(info.specs)}});
  return list;
}

}  // namespace

std::string methods_table_markdown() {
  std::string text = table_head("method");
  for (const Method* method : all_methods())
    add_rows(text, method->name(), method->summary(), method->specs());
  text.append("\n").append(table_head("refresh"));
  for (const RefreshInfo& info : all_refresh_rules())
    add_rows(text, info.name, info.summary, info.specs);
  text.append("\n").append(table_head("skip"));
  for (const SkipInfo& info : all_skip_rules()) add_rows(text, info.name, info.summary, info.specs);
  text.append("\n").append(table_head("compensate"));
  for (const CompensationInfo& info : all_compensations())
    add_rows(text, info.name, info.summary, info.specs);
  text += "\n| preset | attention | skip | dense steps | dense layers | source |\n";
  text += "|---|---|---|---|---|---|\n";
  const auto code = [](std::string_view word) {
    return word.empty() ? std::string() : fmt::format("`{}`", word);
  };
  for (const Preset& p : all_presets())
    text += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", p.name, code(p.attention),
                        code(p.skip), p.dense_steps, p.dense_layers, p.source);
  return text;
}

std::string methods_json() {
  Json json;
  json["methods"] = Json::array();
  for (const Method* method : all_methods())
    json["methods"].push_back({{"name", method->name()},
                               {"summary", method->summary()},
                               {"formula", method->formula()},
                               {"static_mask", method->static_mask()},
                               {"params", params_json(method->specs())}});
  json["refresh"] = rules_json(all_refresh_rules());
  json["skip"] = rules_json(all_skip_rules());
  json["compensate"] = rules_json(all_compensations());
  json["presets"] = Json::array();
  for (const Preset& p : all_presets())
    json["presets"].push_back({{"name", p.name},
                               {"attention", p.attention},
                               {"skip", p.skip},
                               {"dense_steps", p.dense_steps},
                               {"dense_layers", p.dense_layers},
                               {"source", p.source}});
  return json.dump(2);
}

}  // namespace lacuna
