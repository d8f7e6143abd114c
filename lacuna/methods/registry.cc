// SPDX-License-Identifier: Apache-2.0
// The list of methods. An explicit list, not static initialisers: linkers drop unused objects from
// static libraries, and a list can be read.
#include <array>

#include "lacuna/core/error.h"
#include "lacuna/methods/method.h"

namespace lacuna {

#define LACUNA_METHOD(name) const Method& name##_method();
#include "lacuna/methods/methods.def"
#undef LACUNA_METHOD

std::span<const Method* const> all_methods() {
  static const std::array methods = {
#define LACUNA_METHOD(name) &name##_method(),
#include "lacuna/methods/methods.def"
#undef LACUNA_METHOD
  };
  return methods;
}

const Method& find_method(std::string_view name) {
  std::string names;
  for (const Method* method : all_methods()) {
    if (method->name() == name) return *method;
    names += names.empty() ? "" : ", ";
    names += method->name();
  }
  fail("method: '{}', expected one of {}", name, names);
}

}  // namespace lacuna
