// SPDX-License-Identifier: Apache-2.0
// Every backend but the reference, and the CPU one at each of its levels, as test parameters.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/backend/ref/ref_backend.h"

namespace lacuna::test {

struct BackendChoice {
  std::string name;
  std::optional<cpu::Isa> isa;  // of the CPU backend
};

inline void PrintTo(const BackendChoice& choice, std::ostream* out) {  // NOLINT: GoogleTest's name
  *out << choice.name;
}

inline std::vector<BackendChoice> backends_under_test() {
  std::vector<BackendChoice> list;
  for (cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16, cpu::Isa::amx})
    list.push_back({"cpu_" + std::string(cpu::isa_name(isa)), isa});
  // cuda has attention only, and that not in f32: tests/backend/cuda.
  for (std::string_view name : backend_names())
    if (name != "ref" && name != "cpu" && name != "cuda")
      list.push_back({std::string(name), std::nullopt});
  return list;
}

inline std::string choice_name(const testing::TestParamInfo<BackendChoice>& info) {
  return info.param.name;
}

// A backend against the reference. Skips by name where the machine lacks what it needs.
class BackendTest : public testing::TestWithParam<BackendChoice> {
 protected:
  void SetUp() override {
    const BackendChoice& choice = GetParam();
    if (choice.isa.has_value()) {
      if (*choice.isa > cpu::machine_isa())
        GTEST_SKIP() << "this machine has no " << cpu::isa_name(*choice.isa);
      backend_ = make_cpu_backend(*choice.isa);
    } else {
      backend_ = make_backend(choice.name);
    }
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> ref_ = make_ref_backend();
};

}  // namespace lacuna::test
