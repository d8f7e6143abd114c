// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// Sets or clears LACUNA_BACKEND and puts it back.
class ScopedVariable {
 public:
  explicit ScopedVariable(const char* value) {
    if (const char* old = std::getenv(kName)) old_ = old;
    set(value);
  }
  ~ScopedVariable() { set(old_ ? old_->c_str() : nullptr); }

 private:
  static constexpr const char* kName = "LACUNA_BACKEND";
  static void set(const char* value) {
    if (value != nullptr) {
      setenv(kName, value, 1);
    } else {
      unsetenv(kName);
    }
  }
  std::optional<std::string> old_;
};

std::string error_of(std::string_view name) {
  try {
    make_backend(name);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Registry, MakesEveryBackendByItsName) {
  EXPECT_THAT(backend_names(), testing::ElementsAre("cpu", "ref", "cuda"));
  for (std::string_view name : backend_names()) {
    if (name == "cuda" && error_of(name) != "no error") continue;  // CudaSaysWhyItIsNotThere
    const auto backend = make_backend(name);
    EXPECT_EQ(backend->name(), name);
    EXPECT_THAT(backend->description(), testing::StartsWith(std::string(name)));
  }
}

TEST(Registry, CudaSaysWhyItIsNotThere) {
  const std::string error = error_of("cuda");
  if (error == "no error") GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(error, testing::StartsWith("cuda: "));
  EXPECT_THAT(error, testing::HasSubstr("expected"));
  EXPECT_EQ(error.find('\n'), std::string::npos);
}

TEST(Registry, UnknownNamesListTheKnown) {
  EXPECT_EQ(error_of("gpu"), "backend: 'gpu', expected one of cpu, ref, cuda");
}

TEST(Registry, EmptyNameFollowsTheVariableThenPrefersTheFirst) {
  {
    ScopedVariable variable("ref");
    EXPECT_EQ(make_backend()->name(), "ref");
  }
  {
    ScopedVariable variable("tpu");
    EXPECT_EQ(error_of(""), "LACUNA_BACKEND: 'tpu', expected one of cpu, ref, cuda");
  }
  ScopedVariable variable(nullptr);
  EXPECT_EQ(make_backend()->name(), "cpu");
}

}  // namespace
}  // namespace lacuna
