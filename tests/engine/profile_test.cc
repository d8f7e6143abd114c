// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "lacuna/methods/selection.h"
#include "tests/engine/fixtures.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

ProfileTarget target() {
  ProfileTarget t;
  t.model = "tiny";
  t.fingerprint = "00ff";
  t.num_layers = 3;
  t.num_heads = 2;
  t.head_dim = 32;
  t.grid = {2, 3, 5};
  t.text_tokens = 4;
  t.sigmas = {1.0, 0.7, 1.0 / 3.0};
  return t;
}

std::shared_ptr<const Selection> masks() {
  auto s = std::make_shared<Selection>();
  s->q_layout = s->k_layout = BlockLayout::uniform(34, 8);
  s->mask = BlockMask(2, 5, 5);
  for (int64_t h = 0; h < 2; ++h)
    for (int32_t qb = 0; qb < 5; ++qb) s->mask.set(h, qb, static_cast<int32_t>((qb + h) % 5));
  return s;
}

// One rule of every kind.
Profile sample() {
  Profile p;
  p.target = target();
  ProfileRule dense, heads, fixed, rest, carried;
  dense.rule.match.step_end = 1;
  dense.rule.reason = "dense-steps";
  heads.rule.match.layers = {0, 2};
  heads.rule.match.branch = Branch::uncond;
  heads.rule.match.expert = 1;
  heads.rule.match.sigma_min = 0.1f;
  heads.rule.match.max_tokens = 1000;
  heads.rule.plan = parse_plan("xattention:block=16,stride=8,refresh=drift,delta=0.3,pool=8");
  heads.rule.plan.params.set_per_head("top_p", {0.85, 1.0 / 3.0});
  heads.rule.plan.skip = {SkipKind::recall, {0.9f, 0.95f}, {0.3f}};
  heads.density = 0.125;
  fixed.rule.match.layers = {1};
  fixed.rule.plan = parse_plan("fixed");
  fixed.rule.plan.fixed = masks();
  rest.rule.plan = parse_plan("radial:decay=0.7,refresh=at_steps,at=1+2");
  rest.rule.plan.skip = parse_skip("running_lse:lambda=-7.3");
  carried.rule.plan = parse_plan("xattention:refresh=carry,retest=5,compensate=pooled_row");
  carried.rule.plan.skip = parse_skip("running_max:lambda=0.125");
  p.rules = {dense, heads, fixed, rest, carried};
  return p;
}

class ProfileFile : public testing::Test {
 protected:
  static std::string read(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  // What load_profile says of the sample after `change`.
  template <typename Change>
  std::string rejected(Change change) {
    json value = json::parse(sample_text());
    change(value);
    write(path_, value.dump());
    return error_of([&] { load_profile(path_); });
  }
  const std::string& sample_text() {
    if (text_.empty()) {
      save_profile(sample(), path_);
      text_ = read(path_);
    }
    return text_;
  }

  const test::TempFolder temp_;
  const std::filesystem::path folder_ = temp_.path(), path_ = folder_ / "p.json";
  std::string text_;
};

TEST_F(ProfileFile, RoundTripsBitForBit) {
  save_profile(sample(), path_);
  const std::string text = read(path_), side = read(folder_ / "p.safetensors");
  const Profile loaded = load_profile(path_);
  EXPECT_EQ(loaded.target, target());
  ASSERT_EQ(loaded.rules.size(), 5u);
  const Profile want = sample();
  for (size_t i = 0; i < 5; ++i) {
    const Rule &a = loaded.rules[i].rule, &b = want.rules[i].rule;
    EXPECT_EQ(a.match, b.match) << i;
    EXPECT_EQ(a.reason, b.reason) << i;
    EXPECT_EQ(a.plan.method, b.plan.method) << i;
    EXPECT_EQ(a.plan.refresh, b.plan.refresh) << i;
    EXPECT_EQ(a.plan.skip, b.plan.skip) << i;
    EXPECT_EQ(a.plan.compensate, b.plan.compensate) << i;
    EXPECT_EQ(loaded.rules[i].density, want.rules[i].density) << i;
  }
  EXPECT_EQ(loaded.rules[1].rule.plan.params.get("top_p", 1), 1.0 / 3.0);
  EXPECT_EQ(loaded.rules[2].rule.plan.fixed->mask, masks()->mask);
  save_profile(loaded, path_);
  EXPECT_EQ(read(path_), text);
  EXPECT_EQ(read(folder_ / "p.safetensors"), side);
  EXPECT_EQ(named_masks_file(path_), folder_ / "p.safetensors");
  EXPECT_EQ(named_masks_file(folder_ / "p.safetensors"), "");
  EXPECT_EQ(named_masks_file(folder_ / "gone.json"), "");
}

TEST_F(ProfileFile, SkipCalibrationIsReadAndKept) {
  Profile p = sample();
  p.rules[3].rule.plan.skip = parse_skip("running_max:a=300,b=2,sparsity=0.5");
  save_profile(p, path_);
  const SkipRule want = p.rules[3].rule.plan.skip;
  EXPECT_EQ(load_profile(path_).rules[3].rule.plan.skip, want);
  json value = json::parse(read(path_));
  EXPECT_EQ(value["rules"][3]["skip"]["a"].get<float>(), want.param[0]);
  value["rules"][3]["skip"] = {{"kind", "running_max"}, {"a", 300}, {"b", 2}, {"sparsity", 0.5}};
  write(path_, value.dump());
  EXPECT_EQ(load_profile(path_).rules[3].rule.plan.skip, want);
}

TEST_F(ProfileFile, WithoutMasksThereIsNoSideFile) {
  Profile p = sample();
  p.rules.erase(p.rules.begin() + 2);
  save_profile(p, path_);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "p.safetensors"));
  EXPECT_EQ(load_profile(path_).rules.size(), 4u);
  EXPECT_EQ(named_masks_file(path_), "");
}

// In memory a mask is as large once as on disk, however many rules name it.
TEST_F(ProfileFile, RulesShareTheMaskTheyName) {
  Profile p = sample();
  p.rules.push_back(p.rules[2]);
  p.rules[5].rule.plan.fixed = masks();
  save_profile(p, path_);
  const Profile loaded = load_profile(path_);
  EXPECT_EQ(loaded.rules[2].rule.plan.fixed, loaded.rules[5].rule.plan.fixed);
  EXPECT_EQ(loaded.rules[5].rule.plan.fixed->mask, masks()->mask);
  json value = json::parse(read(path_));
  value["rules"][5]["mask"]["block_k"] = 7;  // 5 blocks too
  write(path_, value.dump());
  EXPECT_THAT(error_of([&] { load_profile(path_); }),
              HasSubstr("rules[5].mask: blocks of 8 x 7, another rule has this mask with"));
}

TEST_F(ProfileFile, PolicyDrivesTheEngine) {
  sample_text();
  const Profile p = load_profile(path_);
  const std::unique_ptr<Backend> backend = make_backend("ref");
  Engine engine(*backend, p.policy());
  const Input in = make_input({p.target.grid, 4, 2});
  EXPECT_EQ(attend(engine, site_at(0, 1), in).reason, "dense-steps");
  EXPECT_EQ(attend(engine, site_at(1, 2, Branch::uncond, 1), in).method, "xattention");
  EXPECT_EQ(attend(engine, site_at(1, 2, Branch::uncond, 0), in).method, "radial");
  const TraceEntry fixed = attend(engine, site_at(1, 1), in);
  EXPECT_EQ(fixed.method, "fixed");
  BlockMask want = masks()->mask;
  want.keep_k_blocks(3, 5);  // text starts at token 30, in block 3 of 8 tokens
  want.keep_q_blocks(3, 5);
  EXPECT_EQ(fixed.mask_hash, want.hash());
}

TEST_F(ProfileFile, NamesWhatIsWrong) {
  EXPECT_THAT(rejected([](json& j) { j["schema"] = "other"; }),
              HasSubstr("schema 'other', expected lacuna-profile"));
  EXPECT_THAT(rejected([](json& j) { j["version"] = 2; }), HasSubstr("version 2, expected 1"));
  EXPECT_THAT(rejected([](json& j) { j["extra"] = 1; }), HasSubstr("unknown key \"extra\""));
  EXPECT_THAT(rejected([](json& j) { j["formulas"]["method.xattention"] = 7; }),
              HasSubstr("formulas.method.xattention: formula version 7, this build computes 1"));
  EXPECT_THAT(rejected([](json& j) { j["formulas"].erase("skip.recall"); }),
              HasSubstr("formulas.skip.recall: missing"));
  EXPECT_THAT(rejected([](json& j) { j["formulas"]["method.svg"] = 1; }),
              HasSubstr("unknown key method.svg"));
  EXPECT_THAT(rejected([](json& j) { j["model"]["num_heads"] = 2.5; }),
              HasSubstr("p.json:model.num_heads: 2.5, expected a whole number"));
  EXPECT_THAT(rejected([](json& j) { j["grid"]["frames"] = 0; }), HasSubstr("grid.frames: 0"));
  EXPECT_THAT(rejected([](json& j) { j["grid"]["frames"] = j["grid"]["width"] = 1 << 20; }),
              HasSubstr("tokens, expected at most 2^31-1"));
  EXPECT_THAT(rejected([](json& j) { j["sigmas"] = "none"; }), HasSubstr("sigmas: \"none\""));
  EXPECT_THAT(rejected([](json& j) { j["sigmas"] = json::array(); }), HasSubstr("one per step"));
  EXPECT_THAT(rejected([](json& j) { j.erase("grid"); }), HasSubstr("p.json:grid: missing"));
  EXPECT_THAT(rejected([](json& j) { j["rules"] = 3; }), HasSubstr("expected an array"));
}

TEST_F(ProfileFile, NamesTheRuleThatIsWrong) {
  const auto rule = [this](int i, auto change) {
    return rejected([&](json& j) { change(j["rules"][i]); });
  };
  EXPECT_THAT(rule(1, [](json& r) { r["method"] = "magic"; }),
              HasSubstr("rules[1]: method: 'magic', expected one of dense"));
  EXPECT_THAT(rule(1, [](json& r) { r["params"]["top_q"] = 1; }),
              HasSubstr("rules[1].params.top_q: parameter: 'top_q', expected one of top_p"));
  EXPECT_THAT(rule(1, [](json& r) { r["params"]["top_p"] = {0.5, 1.5}; }), HasSubstr("top_p: 1.5"));
  EXPECT_THAT(rule(1,
                   [](json& r) {
                     r["params"]["top_p"] = {0.5, 0.5, 0.5};
                   }),
              HasSubstr("3 values, expected one for each of 2 heads"));
  EXPECT_THAT(rule(1,
                   [](json& r) {
                     r["params"]["top_p"] = {0.5, "x"};
                   }),
              HasSubstr("expected a number"));
  EXPECT_THAT(rule(1, [](json& r) { r["params"]["stride"] = 12; }), HasSubstr("stride 12"));
  EXPECT_THAT(rule(1,
                   [](json& r) {
                     r["params"]["block"] = {16, 32};
                   }),
              HasSubstr("block per head"));
  EXPECT_THAT(rule(1, [](json& r) { r["refresh"]["kind"] = "often"; }), HasSubstr("'often'"));
  EXPECT_THAT(rule(1, [](json& r) { r["refresh"]["at"] = {1}; }), HasSubstr("refresh.at"));
  EXPECT_THAT(rule(1, [](json& r) { r["refresh"]["delta"] = -1; }), HasSubstr("delta: -1"));
  EXPECT_THAT(rule(1, [](json& r) { r["skip"]["r"] = {0.9}; }), HasSubstr("1 values, expected"));
  EXPECT_THAT(rule(1, [](json& r) { r["skip"]["lambda"] = 0.9; }), HasSubstr("skip.lambda"));
  EXPECT_THAT(rule(1, [](json& r) { r["density"] = 1.5; }), HasSubstr("density: 1.5"));
  EXPECT_THAT(rule(1, [](json& r) { r["match"]["layers"] = {3}; }), HasSubstr("match.layers: 3"));
  EXPECT_THAT(rule(1, [](json& r) { r["match"]["steps"] = {3, 3}; }), HasSubstr("match.steps"));
  EXPECT_THAT(rule(1, [](json& r) { r["match"]["branch"] = "both"; }), HasSubstr("'both'"));
  EXPECT_THAT(rule(1, [](json& r) { r["match"]["step"] = 1; }), HasSubstr("unknown key \"step\""));
  EXPECT_THAT(rule(3, [](json& r) { r["refresh"].erase("at"); }), HasSubstr("refresh.at: missing"));
  EXPECT_THAT(rule(3,
                   [](json& r) {
                     r["refresh"]["at"] = {1, 9};
                   }),
              HasSubstr("rules[3]: at: 9, expected steps below "));
  EXPECT_THAT(rule(0, [](json& r) { r["params"] = json::object(); }),
              HasSubstr("rules[0].params: given without a method"));
}

TEST_F(ProfileFile, RejectsMasksThatAreNotWhatTheHashSays) {
  const auto rule = [this](auto change) {
    return rejected([&](json& j) { change(j["rules"][2], j); });
  };
  EXPECT_THAT(rule([](json& r, json&) { r.erase("mask"); }),
              HasSubstr("mask: missing, method fixed expects a mask"));
  EXPECT_THAT(rejected([](json& j) { j["rules"][4]["compensate"] = "all"; }),
              HasSubstr("rules[4]: compensate: 'all', expected one of none, pooled_row"));
  EXPECT_THAT(rejected([](json& j) { j["rules"][4].erase("skip"); }),
              HasSubstr("rules[4]: refresh: carry without a skip rule"));
  EXPECT_THAT(rule([](json& r, json& j) { j["rules"][3]["mask"] = r["mask"]; }),
              HasSubstr("mask: given, method radial expects none"));
  EXPECT_THAT(rule([](json& r, json&) { r["mask"]["hash"] = "0123456789abcdef"; }),
              HasSubstr("mask-0123456789abcdef"));
  EXPECT_THAT(rule([](json& r, json&) { r["mask"]["hash"] = "xyz"; }), HasSubstr("16 hex digits"));
  EXPECT_THAT(rule([](json& r, json&) { r["mask"]["block_q"] = 4; }),
              HasSubstr("expected [2, 9, 1] i64"));
  EXPECT_THAT(rule([](json&, json& j) { j.erase("masks_file"); }), HasSubstr("without masks_file"));
  for (const char* name : {"../p.safetensors", "/etc/passwd", "a\\b", "..", ""})
    EXPECT_THAT(rule([&](json&, json& j) { j["masks_file"] = name; }),
                HasSubstr("expected a file name without a path"));
  EXPECT_THAT(rule([](json&, json& j) { j["masks_file"] = "gone.safetensors"; }),
              HasSubstr("gone.safetensors"));

  write(path_, sample_text());
  std::string side = read(folder_ / "p.safetensors");
  side[side.size() - 80] ^= 0x03;  // the first row keeps block 1 instead of block 0
  write(folder_ / "p.safetensors", side);
  EXPECT_THAT(error_of([&] { load_profile(path_); }), HasSubstr("mask has hash"));
  side[side.size() - 80] = 0;
  write(folder_ / "p.safetensors", side);
  EXPECT_THAT(error_of([&] { load_profile(path_); }),
              HasSubstr("rules[2]: block mask: head 0 query block 0 keeps nothing"));
  side[side.size() - 80] = 0x20;
  write(folder_ / "p.safetensors", side);
  EXPECT_THAT(error_of([&] { load_profile(path_); }), HasSubstr("bits past key block 4"));
}

TEST_F(ProfileFile, RejectsWhatIsNotJson) {
  const auto says = [&](const std::string& text) {
    write(path_, text);
    return error_of([&] { load_profile(path_); });
  };
  EXPECT_THAT(says(""), HasSubstr("not JSON"));
  EXPECT_THAT(says("{"), HasSubstr("not JSON"));
  EXPECT_THAT(says("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(says("{\"a\": 1, \"a\": 2}"), HasSubstr("key \"a\" twice"));
  EXPECT_THAT(says(std::string(100000, '[')), HasSubstr("nested deeper than 16"));
  EXPECT_THAT(says("{\"schema\": \"\xff\"}"), HasSubstr("not JSON"));
  EXPECT_LT(says("\"" + std::string(100000, 'a')).size(), path_.string().size() + 250);
  EXPECT_THAT(error_of([&] { load_profile(folder_ / "gone.json"); }), HasSubstr("gone.json"));
}

// Any damage gives a profile or an Error, nothing else.
TEST_F(ProfileFile, SurvivesDamage) {
  const std::string text = sample_text(), side = read(folder_ / "p.safetensors");
  uint64_t i = 0;
  const auto random = [&](size_t n) {
    return static_cast<size_t>(0.5 * (hash_uniform("damage", i++) + 1.0) * static_cast<double>(n));
  };
  int loaded = 0;
  for (int round = 0; round < 600; ++round) {
    std::string json_bytes = text, side_bytes = side;
    std::string& victim = round % 3 == 0 ? side_bytes : json_bytes;
    for (size_t n = 1 + random(3); n > 0; --n) {
      const size_t at = random(victim.size());
      switch (random(3)) {
        case 0:
          victim[at] = static_cast<char>(random(256));
          break;
        case 1:
          victim.erase(at, random(8));
          break;
        default:
          victim.insert(at, victim.substr(random(victim.size()), random(12)));
      }
    }
    write(path_, json_bytes);
    write(folder_ / "p.safetensors", side_bytes);
    try {
      load_profile(path_);
      ++loaded;
    } catch (const Error&) {
    }
  }
  EXPECT_LT(loaded, 300);
}

TEST_F(ProfileFile, SaveRejectsWhatCannotBeRead) {
  const auto says = [&](auto change) {
    Profile p = sample();
    change(p);
    const std::string error = error_of([&] { save_profile(p, path_); });
    EXPECT_FALSE(std::filesystem::exists(path_)) << error;
    return error;
  };
  EXPECT_THAT(says([](Profile& p) { p.target.sigmas[1] = std::nan(""); }), HasSubstr("sigmas"));
  EXPECT_THAT(says([](Profile& p) { p.rules[1].rule.match.layers = {7}; }), HasSubstr("layers: 7"));
  EXPECT_THAT(says([](Profile& p) { p.rules[2].rule.plan.fixed = nullptr; }), HasSubstr("mask"));
  EXPECT_THAT(says([](Profile& p) { p.target.num_heads = 3; }), HasSubstr("mask of 2 heads"));
  EXPECT_THAT(says([](Profile& p) {
                auto s = std::make_shared<Selection>(*p.rules[2].rule.plan.fixed);
                s->q_order = TokenOrder{34, 1, all_heads(34)};
                p.rules[2].rule.plan.fixed = s;
              }),
              HasSubstr("token order"));
  EXPECT_THAT(says([](Profile& p) { p.target.model = "\xff"; }), HasSubstr("UTF-8"));
}

TEST(CheckProfile, SaysWhatDiffers) {
  const Profile p = sample();
  const auto says = [&](auto change) {
    ProfileTarget run = target();
    change(run);
    return error_of([&] { check_profile(p, run); });
  };
  EXPECT_EQ(says([](ProfileTarget&) {}), "");
  EXPECT_EQ(says([](ProfileTarget& t) { t.sigmas[1] += 5e-7; }), "");
  EXPECT_EQ(says([](ProfileTarget& t) { t.model = "big"; }),
            "profile: made for model tiny, this run has big");
  EXPECT_THAT(says([](ProfileTarget& t) { t.fingerprint = "1"; }), HasSubstr("weights 00ff"));
  EXPECT_THAT(says([](ProfileTarget& t) { t.num_heads = 4; }),
              HasSubstr("heads: 2, this run has 4"));
  EXPECT_THAT(says([](ProfileTarget& t) { t.grid.frames = 3; }),
              HasSubstr("grid 2x3x5 with 4 text tokens, this run has 3x3x5"));
  EXPECT_THAT(says([](ProfileTarget& t) { t.text_tokens = 0; }), HasSubstr("with 0 text tokens"));
  EXPECT_THAT(says([](ProfileTarget& t) { t.sigmas.pop_back(); }), HasSubstr("steps: 3"));
  EXPECT_THAT(says([](ProfileTarget& t) { t.sigmas[2] = 0.5; }),
              HasSubstr("at step 2, this run has 0.5"));
}

}  // namespace
}  // namespace lacuna::test
