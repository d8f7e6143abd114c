// SPDX-License-Identifier: Apache-2.0
// Names to backends.
#include <fmt/format.h>

#include <array>
#include <cstdlib>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

constexpr std::array<std::string_view, 1> kNames = {"ref"};

}  // namespace

std::span<const std::string_view> backend_names() {
  return kNames;
}

std::unique_ptr<Backend> make_backend(std::string_view name) {
  if (name.empty()) {
    const char* chosen = std::getenv("LACUNA_BACKEND");
    name = chosen != nullptr && chosen[0] != '\0' ? chosen : kNames[0];
  }
  if (name == "ref") return make_ref_backend();
  fail("backend: {}, expected one of {}", name, fmt::join(kNames, ", "));
}

}  // namespace lacuna
