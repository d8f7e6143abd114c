// SPDX-License-Identifier: Apache-2.0
// lacuna verify: golden numbers of the upstream implementations on this machine.
#include "lacuna/models/pipeline/verify.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/say.h"
#include "lacuna/core/error.h"

namespace lacuna::cli {
namespace {

struct VerifyOptions {
  MachineOptions machine;
  std::string goldens, dtype = "f32";
  bool json = false;
};

std::string read_goldens(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  LACUNA_CHECK(in.good(), "goldens: could not read {}", path);
  return {std::istreambuf_iterator<char>(in), {}};
}

void run_verify(const VerifyOptions& o) {
  const auto backend = o.machine.open();
  const DType compute = o.dtype == "bf16" ? DType::bf16 : DType::f32;
  int passed = 0, failed = 0;
  const auto report = [&](const VerifyResult& r) {
    (r.passed ? passed : failed) += 1;
    if (o.json) {
      // An error that is not finite becomes null: JSON has no word for it.
      nlohmann::ordered_json json = {
          {"name", r.name}, {"passed", r.passed}, {"error_over_tolerance", r.worst}};
      if (!r.detail.empty()) json["detail"] = r.detail;
      fmt::print("{}\n", json.dump());
    } else {
      say("{} {:<46} error/tolerance {:.3f}{}{}\n", r.passed ? "ok  " : "FAIL", one_line(r.name),
          r.worst, r.detail.empty() ? "" : "  ", one_line(r.detail));
    }
  };
  if (o.goldens.empty()) {
    for (const GoldenFile& file : shipped_goldens()) {
      verify_goldens(file.json, file.name, *backend, compute, report);
    }
  } else {
    verify_goldens(read_goldens(o.goldens), o.goldens, *backend, compute, report);
  }
  if (!o.json) {
    fmt::print("{} ({}): {} passed, {} failed\n", backend->description(), o.dtype, passed, failed);
  }
  if (failed > 0) fail("verify: {} of {} numbers differ from upstream", failed, passed + failed);
}

}  // namespace

void add_verify(CLI::App& app) {
  auto* command = app.add_subcommand("verify", "Check this build against upstream golden numbers");
  command->group("Commands");
  auto options = std::make_shared<VerifyOptions>();
  command->add_option("--goldens", options->goldens, "Another file of cases (docs/formats.md)")
      ->check(names_a_file());
  command
      ->add_option("--dtype", options->dtype,
                   "f32: against the file; bf16: against our own f32 run")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object a line");
  options->machine.add_to(*command);
  command->callback([options] { run_verify(*options); });
}

}  // namespace lacuna::cli
