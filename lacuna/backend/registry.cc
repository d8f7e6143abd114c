// SPDX-License-Identifier: Apache-2.0
// Names to backends.
#include <fmt/format.h>

#include <array>
#include <cstdlib>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// In order of preference: cuda is never the default while it has not run on hardware.
constexpr std::array<std::string_view, 3> kNames = {"cpu", "ref", "cuda"};

}  // namespace

std::span<const std::string_view> backend_names() {
  return kNames;
}

std::unique_ptr<Backend> make_backend(std::string_view name) {
  std::string_view who = "backend";
  if (name.empty()) {
    const char* chosen = std::getenv("LACUNA_BACKEND");
    if (chosen != nullptr && chosen[0] != '\0') {
      who = "LACUNA_BACKEND";
      name = chosen;
    } else {
      name = kNames.front();
    }
  }
  if (name == "cpu") return make_cpu_backend();
  if (name == "ref") return make_ref_backend();
  if (name == "cuda") return make_cuda_backend();
  fail("{}: '{}', expected one of {}", who, name, fmt::join(kNames, ", "));
}

}  // namespace lacuna
