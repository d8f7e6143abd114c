// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/engine/fixtures.h"

namespace lacuna::test {
namespace {

using testing::HasSubstr;

PolicyWords expand(std::string attention, std::string skip = "", std::string steps = "",
                   std::string layers = "", int num_steps = 50, int num_layers = 40) {
  return expand_words({std::move(attention), std::move(skip), std::move(steps), std::move(layers)},
                      num_steps, num_layers);
}

TEST(Presets, EveryPresetIsAPolicy) {
  std::set<std::string_view> names;
  for (const Method* method : all_methods()) names.insert(method->name());
  for (const Preset& preset : all_presets()) {
    SCOPED_TRACE(preset.name);
    EXPECT_TRUE(names.insert(preset.name).second) << "the name is taken";
    EXPECT_EQ(find_preset(preset.name), &preset);
    EXPECT_FALSE(preset.source.empty());
    for (const auto& [steps, layers] : {std::pair{50, 40}, std::pair{4, 30}, std::pair{1, 4}}) {
      const PolicyWords words = expand(std::string(preset.name), "", "", "", steps, layers);
      const Policy policy = make_policy(parse_plan(words.attention), parse_skip(words.skip),
                                        words.dense_steps, words.dense_layers, 0, steps);
      const Rule& last = policy.rules().back();
      EXPECT_EQ(last.plan.method->name(), preset.attention.substr(0, preset.attention.find(':')));
      EXPECT_EQ(last.plan.skip.kind == SkipKind::none, preset.skip.empty());
    }
  }
}

TEST(Presets, WarmUpScalesWithTheRun) {
  const auto dense = [](const char* name, int steps, int layers) {
    const PolicyWords words = expand(name, "", "", "", steps, layers);
    return words.dense_steps + " | " + words.dense_layers;
  };
  EXPECT_EQ(dense("svg-wan", 50, 40), "10 | 0-0");
  EXPECT_EQ(dense("svg-wan", 50, 30), "10 | ") << "3 % of 30 layers is none, as in the scripts";
  EXPECT_EQ(dense("svg-wan", 4, 40), "0 | 0-0");
  EXPECT_EQ(dense("radial-wan2.2", 40, 40), "11 | 0");
  EXPECT_EQ(dense("haste", 50, 30), "5 | ");
  EXPECT_EQ(dense("blasst", 40, 40), "14 | 0-1,38,39");
  EXPECT_EQ(dense("blasst", 40, 30), "14 | 0-1,28,29");
}

// AdaSpa's look is the step after its dense ones and its search is at 29 of 50, at any length.
TEST(Presets, SearchesScaleWithTheRun) {
  const auto attention = [](const char* name, int steps) {
    return expand(name, "", "", "", steps).attention;
  };
  EXPECT_EQ(attention("adaspa-video", 50), "adaspa:density=0.2,refresh=at_steps,at=9+29");
  EXPECT_EQ(attention("adaspa-video", 40), "adaspa:density=0.2,refresh=at_steps,at=7+23");
  EXPECT_EQ(attention("adaspa-video", 20), "adaspa:density=0.2,refresh=at_steps,at=3+11");
  EXPECT_EQ(attention("adaspa-video:at=5+6", 20), "adaspa:density=0.2,refresh=at_steps,at=5+6");
  EXPECT_EQ(attention("adaspa-video:at=50%", 20), "adaspa:density=0.2,refresh=at_steps,at=10");
}

// As a preset's line in `lacuna methods` is typed again.
TEST(Presets, SearchesOfAMethodMayBeSharesToo) {
  const auto attention = [](const char* words) { return expand(words, "", "", "", 40).attention; };
  EXPECT_EQ(attention("adaspa:density=0.2,refresh=at_steps,at=18%+58%"),
            "adaspa:density=0.2,refresh=at_steps,at=7+23");
  EXPECT_EQ(attention("xattention:at=0-2+27.5%,refresh=at_steps"),
            "xattention:at=0-2+11,refresh=at_steps");
  EXPECT_EQ(attention("xattention:at=3,refresh=at_steps"), "xattention:at=3,refresh=at_steps");
  EXPECT_EQ(error_of([&] { attention("xattention:refresh=at_steps,at=1-10%"); }),
            "at: '1-10%', expected a share such as 20%");
}

// t >= 0.86 are 14 of 40 steps at shift 3, where it was published, and 27 at shift 12, the habit of
// Wan2.2 A14B.
TEST(Presets, BlasstIsDenseByNoiseLevel) {
  const auto dense = [](double shift, const char* given) {
    std::vector<double> sigmas;
    for (int i = 0; i < 40; ++i) {
      const double base = 1.0 - 0.999 * i / 40;
      sigmas.push_back(shift * base / (1.0 + (shift - 1.0) * base));
    }
    return expand_words({"blasst", "", given, ""}, 40, 40, sigmas).dense_steps;
  };
  EXPECT_EQ(dense(3.0, ""), "14");
  EXPECT_EQ(dense(12.0, ""), "27");
  EXPECT_EQ(dense(12.0, "5"), "5");
}

TEST(Presets, HasteIsReuseOnXAttention) {
  const Plan plan = parse_plan(expand("haste").attention);
  EXPECT_EQ(plan.method->name(), "xattention");
  EXPECT_EQ(plan.params.get_int("stride"), 16);
  EXPECT_EQ(plan.params.get("top_p"), 0.9);
  EXPECT_EQ(plan.refresh.kind, RefreshKind::drift);
  EXPECT_EQ(plan.refresh.delta, 30.0);
  EXPECT_FALSE(plan.refresh.relative);
  EXPECT_EQ(plan.refresh.gate_low, 0.4);
  EXPECT_EQ(plan.refresh.gate_high, 0.8);
}

TEST(Presets, GivenWordsWin) {
  const PolicyWords words = expand("blasst", "recall:r=0.9", "2", "0%");
  EXPECT_EQ(words.attention, "dense");
  EXPECT_EQ(words.skip, "recall:r=0.9");
  EXPECT_EQ(words.dense_steps, "2");
  EXPECT_EQ(words.dense_layers, "");
  EXPECT_EQ(expand("blasst", "none").skip, "none");
  EXPECT_EQ(expand("haste", "", "0").dense_steps, "0");
  EXPECT_EQ(expand("haste").skip, "none");
}

TEST(Presets, GivenParametersWin) {
  EXPECT_EQ(expand("haste:delta=20").attention,
            "xattention:stride=16,top_p=0.9,refresh=drift,relative=0,delta=20");
  EXPECT_EQ(expand("haste:refresh=every_step,top_p=0.5").attention,
            "xattention:stride=16,refresh=every_step,top_p=0.5");
  EXPECT_EQ(expand("cef:refresh=never").attention, "dense:refresh=never");
  EXPECT_THAT(error_of([] { parse_plan(expand("haste:").attention); }),
              HasSubstr("expected key=value"));
  EXPECT_THAT(error_of([] { parse_plan(expand("haste:delta=1,delta=2").attention); }),
              HasSubstr("'delta' twice"));
}

TEST(Presets, MethodsPassThroughWithSharesResolved) {
  const PolicyWords words = expand("xattention:top_p=0.5", "", "20%", "0,5%,-1");
  EXPECT_EQ(words.attention, "xattention:top_p=0.5");
  EXPECT_EQ(words.skip, "none");
  EXPECT_EQ(words.dense_steps, "10");
  EXPECT_EQ(words.dense_layers, "0,0-1,39");
  EXPECT_EQ(expand("dense", "", "0-4,49", "0,39").dense_steps, "0-4,49");
  EXPECT_EQ(expand("dense", "", "27.5%", "", 40).dense_steps, "11");
  EXPECT_EQ(expand("dense", "", "100%", "", 7).dense_steps, "7");
}

TEST(Presets, ErrorsNameMethodsAndPresets) {
  const std::string unknown = error_of([] { expand("svg-wam"); });
  EXPECT_THAT(unknown, HasSubstr("'svg-wam', expected one of the methods dense, "));
  EXPECT_THAT(unknown, HasSubstr("presets haste"));
  EXPECT_THAT(unknown, HasSubstr("svg-wan"));
  EXPECT_NE(error_of([] { expand(""); }), "");
  for (const char* bad : {"%", "x%", "101%", "-1%", "nan%", "5%%"})
    EXPECT_THAT(error_of([&] { expand("dense", "", bad); }), HasSubstr("expected a share")) << bad;
  for (const char* bad :
       {"-0", "-41", "--1", "-x", "-1-3", "40", "0,40", "38-40", ",", "x", "1,,2"})
    EXPECT_THAT(error_of([&] { expand("dense", "", "", bad); }), HasSubstr("expected")) << bad;
  EXPECT_EQ(error_of([] { expand("dense", "", "", "0-1,39,-40", 50, 40); }), "");
  EXPECT_EQ(error_of([] { expand("dense", "", "", "0,39", 50, 30); }),
            "dense-layers: 39, expected layers below 30");
}

}  // namespace
}  // namespace lacuna::test
