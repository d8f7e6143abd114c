// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/model_defaults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

FamilyDefaults family() {
  return {832, 480, 81, 16, 50, 8.0, 6.0, 5.0, 0.875, "Apache-2.0", "blurry"};
}

TEST(ModelDefaults, ReadsEveryKey) {
  FamilyDefaults d = family();
  std::string name = "custom";
  read_model_defaults(
      nlohmann::json::parse(R"({"name": "shapes", "license": "CC0", "negative_prompt": "",
        "width": 96, "height": 64, "frames": 32, "fps": 8, "steps": 20, "shift": 3, "guidance": 4.5})"),
      "m", d, name);
  EXPECT_EQ(name, "shapes");
  EXPECT_EQ(d.license, "CC0");
  EXPECT_EQ(d.negative_prompt, "");
  EXPECT_EQ(d.width, 96);
  EXPECT_EQ(d.height, 64);
  EXPECT_EQ(d.frames, 32);
  EXPECT_EQ(d.fps, 8);
  EXPECT_EQ(d.steps, 20);
  EXPECT_EQ(d.shift, 3.0);
  EXPECT_EQ(d.guidance, 4.5);
  EXPECT_EQ(d.guidance_low, 4.5);
  EXPECT_EQ(d.boundary, 0.875);
}

TEST(ModelDefaults, KeepsWhatIsNotNamed) {
  FamilyDefaults d = family();
  std::string name = "custom";
  read_model_defaults(nlohmann::json::object(), "m", d, name);
  EXPECT_EQ(name, "custom");
  EXPECT_EQ(d.width, 832);
  EXPECT_EQ(d.negative_prompt, "blurry");
  EXPECT_EQ(d.guidance_low, 5.0);
}

TEST(ModelDefaults, RefusesWhatDoesNotFit) {
  const std::string long_text(2001, 'x');
  for (const std::string& text : std::vector<std::string>{
           "[]", R"({"width": 0})", R"({"width": -8})", R"({"width": 9000})", R"({"width": 96.5})",
           R"({"frames": "32"})", R"({"steps": 1e30})", R"({"shift": 0})", R"({"shift": null})",
           R"({"guidance": -1})", R"({"name": 3})", R"({"heigth": 96})",
           R"({"negative_prompt": ")" + long_text + R"("})"}) {
    FamilyDefaults d = family();
    std::string name;
    try {
      read_model_defaults(nlohmann::json::parse(text), "model_index.json", d, name);
      ADD_FAILURE() << "accepted " << text.substr(0, 60);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("model_index.json: lacuna_defaults"));
    }
  }
}

TEST(FlowShift, IsThatOfTheScheduler) {
  const auto shift = [](const char* text, bool inverted) {
    return read_flow_shift(nlohmann::json::parse(text), "s", inverted);
  };
  EXPECT_EQ(shift(R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0,
                      "num_train_timesteps": 1000, "use_dynamic_shifting": false,
                      "base_shift": 0.5, "shift_terminal": null, "invert_sigmas": false,
                      "use_karras_sigmas": false, "stochastic_sampling": false})",
                  false),
            7.0);
  EXPECT_EQ(shift(R"({"shift": 2, "invert_sigmas": true})", true), 2.0);
  EXPECT_EQ(shift("{}", false), 1.0);
}

TEST(FlowShift, AnotherScheduleIsRefusedByName) {
  for (const auto& [key, value] : std::initializer_list<std::pair<std::string, std::string>>{
           {"_class_name", R"("UniPCMultistepScheduler")"},
           {"num_train_timesteps", "500"},
           {"invert_sigmas", "true"},
           {"use_dynamic_shifting", "true"},
           {"shift_terminal", "0.02"},
           {"use_karras_sigmas", "true"},
           {"use_exponential_sigmas", "true"},
           {"use_beta_sigmas", "true"},
           {"stochastic_sampling", "true"},
           {"shift", "0"},
           {"shift", "1e9"},
           {"shift", "null"},
           {"shift", R"("7")"}}) {
    try {
      read_flow_shift(nlohmann::json::parse("{\"" + key + "\": " + value + "}"), "the file", false);
      ADD_FAILURE() << key;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::StartsWith("the file: " + key + " "));
    }
  }
}

}  // namespace
}  // namespace lacuna
