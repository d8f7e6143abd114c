// SPDX-License-Identifier: Apache-2.0
// Backends as test parameters.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"

namespace lacuna::test {

struct BackendChoice {
  std::string name;
  // Throws Error where the machine lacks what the backend needs.
  std::function<std::unique_ptr<Backend>()> make;
};

inline void PrintTo(const BackendChoice& choice, std::ostream* out) {  // NOLINT: GoogleTest's name
  *out << choice.name;
}

// What the contract tests of this binary run on, beside the reference: CUDA on the emulator and on
// a GPU in test_cuda (tests/backend/cuda), the CPU backend at each of its levels in the others
// (tests/backend).
std::vector<BackendChoice> backends_under_test();

inline std::vector<BackendChoice> backends_and_reference() {
  std::vector<BackendChoice> list = backends_under_test();
  list.push_back({"ref", make_ref_backend});
  return list;
}

inline std::string choice_name(const testing::TestParamInfo<BackendChoice>& info) {
  return info.param.name;
}

// A backend against the reference. Skips by name where the machine lacks what it needs.
class BackendTest : public testing::TestWithParam<BackendChoice> {
 protected:
  void SetUp() override {
    try {
      backend_ = GetParam().make();
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }

  // Random cases: fewer where instructions are emulated.
  int turns(int all) const {
    const bool slow =
        GetParam().name.starts_with("emulated") || GetParam().name.ends_with("software");
    return slow ? all / 4 : all;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> ref_ = make_ref_backend();
};

}  // namespace lacuna::test
