// SPDX-License-Identifier: Apache-2.0
// lacuna methods: what can be asked for, generated from the code.
#include <fmt/format.h>

#include "cli/command.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/presets.h"
#include "lacuna/engine/tables.h"

namespace lacuna::cli {
namespace {

void print_specs(std::span<const ParamSpec> specs) {
  for (const ParamSpec& p : specs) {
    fmt::print("      {:<16} {:<8} {} (from {:g} to {:g})\n", p.name,
               fmt::format("{:g}", p.default_value), p.help, p.min, p.max);
  }
}

void print_text() {
  fmt::print("Methods (--attention NAME[:parameter=value,...])\n");
  for (const Method* m : all_methods()) {
    fmt::print("  {:<14} {}\n", m->name(), m->summary());
    print_specs(m->specs());
  }
  fmt::print("\nRefresh rules (a parameter of every method: refresh=NAME)\n");
  for (const RefreshInfo& r : all_refresh_rules()) {
    fmt::print("  {:<14} {}\n", r.name, r.summary);
    print_specs(r.specs);
  }
  fmt::print("\nCompensation of dropped blocks (a parameter of every method: compensate=NAME)\n");
  for (const CompensationInfo& c : all_compensations()) {
    fmt::print("  {:<14} {}\n", c.name, c.summary);
    print_specs(c.specs);
  }
  fmt::print("\nSkip rules (--skip NAME[:parameter=value,...])\n");
  for (const SkipInfo& s : all_skip_rules()) {
    fmt::print("  {:<14} {}\n", s.name, s.summary);
    print_specs(s.specs);
  }
  fmt::print("\nPresets (--attention NAME[:parameter=value,...]; options beside it win)\n");
  for (const Preset& p : all_presets()) {
    fmt::print("  {:<17} --attention {}{}{}", p.name, p.attention, p.skip.empty() ? "" : " --skip ",
               p.skip);
    fmt::print("{}{}{}{}\n      {}\n", p.dense_steps.empty() ? "" : " --dense-steps ",
               p.dense_steps, p.dense_layers.empty() ? "" : " --dense-layers ", p.dense_layers,
               p.source);
  }
}

}  // namespace

void add_methods(CLI::App& app) {
  auto* command =
      app.add_subcommand("methods", "List methods, refresh rules, skip rules and presets");
  command->group("Commands");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "As one JSON object");
  command->callback([json] {
    if (*json) {
      fmt::print("{}\n", methods_json());
    } else {
      print_text();
    }
  });
}

}  // namespace lacuna::cli
