// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/cache_folder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>

namespace lacuna {
namespace {

// Sets or clears (null) a variable until the end of the scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) before_ = old;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) { value != nullptr ? setenv(name_, value, 1) : unsetenv(name_); }
  const char* name_;
  std::optional<std::string> before_;
};

TEST(CacheFolder, FollowsXdgThenHome) {
  const Variable home("HOME", "/somebody");
  {
    const Variable xdg("XDG_CACHE_HOME", "/fast");
    EXPECT_EQ(cache_folder(), "/fast/lacuna");
  }
  for (const char* unset : {static_cast<const char*>(nullptr), ""}) {
    const Variable xdg("XDG_CACHE_HOME", unset);
    EXPECT_EQ(cache_folder(), "/somebody/.cache/lacuna");
    const Variable homeless("HOME", nullptr);
    EXPECT_TRUE(cache_folder().empty());
  }
}

}  // namespace
}  // namespace lacuna
