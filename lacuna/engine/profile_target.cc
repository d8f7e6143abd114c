// SPDX-License-Identifier: Apache-2.0
// The model, grid and schedule that a file belongs to.
#include <algorithm>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/engine/profile_format.h"

namespace lacuna {

namespace {

constexpr int64_t kMaxGrid = 1 << 20;

template <typename T>
void expect_same(std::string_view file, const char* what, const T& given, const T& expected) {
  LACUNA_CHECK(given == expected, "{}: made for {} {}, this run has {}", file, what, given,
               expected);
}

}  // namespace

void add_target(const ProfileTarget& target, Json& json) {
  json["model"] = {{"name", target.model},
                   {"fingerprint", target.fingerprint},
                   {"num_layers", target.num_layers},
                   {"num_heads", target.num_heads},
                   {"head_dim", target.head_dim}};
  json["grid"] = {{"frames", target.grid.frames},
                  {"height", target.grid.height},
                  {"width", target.grid.width},
                  {"text_tokens", target.text_tokens}};
  json["sigmas"] = target.sigmas;
}

ProfileTarget read_target(const JsonObject& top) {
  ProfileTarget target;
  const JsonObject model(top.at("model"), top.path("model"),
                         {"name", "fingerprint", "num_layers", "num_heads", "head_dim"});
  target.model = model.text("name", 256);
  target.fingerprint = model.text("fingerprint", 256);
  target.num_layers = static_cast<int>(model.integer("num_layers", 1, kMaxIndex));
  target.num_heads = static_cast<int>(model.integer("num_heads", 1, kMaxIndex));
  target.head_dim = static_cast<int>(model.integer("head_dim", 1, kMaxIndex));
  const JsonObject grid(top.at("grid"), top.path("grid"),
                        {"frames", "height", "width", "text_tokens"});
  target.grid = {grid.integer("frames", 1, kMaxGrid), grid.integer("height", 1, kMaxGrid),
                 grid.integer("width", 1, kMaxGrid)};
  target.text_tokens = grid.integer("text_tokens", 0, kMaxGrid);
  // Each factor is at most 2^20, so the product cannot overflow.
  LACUNA_CHECK(target.grid.tokens() + target.text_tokens <= INT32_MAX,
               "{}: {} tokens, expected at most 2^31-1", top.path("grid"),
               target.grid.tokens() + target.text_tokens);
  target.sigmas = top.numbers("sigmas", kMaxIndex, 0.0, 1e6);
  LACUNA_CHECK(!target.sigmas.empty(), "{}: empty, expected one per step", top.path("sigmas"));
  return target;
}

void check_target(const ProfileTarget& made, const ProfileTarget& run, std::string_view what) {
  expect_same(what, "model", made.model, run.model);
  LACUNA_CHECK(made.fingerprint == run.fingerprint,
               "{}: made for weights {}, this run has {}; LoRA is part of them", what,
               made.fingerprint, run.fingerprint);
  expect_same(what, "layers:", made.num_layers, run.num_layers);
  expect_same(what, "heads:", made.num_heads, run.num_heads);
  expect_same(what, "head_dim", made.head_dim, run.head_dim);
  const auto grid_text = [](const ProfileTarget& t) {
    return fmt::format("{}x{}x{} with {} text tokens", t.grid.frames, t.grid.height, t.grid.width,
                       t.text_tokens);
  };
  expect_same(what, "grid", grid_text(made), grid_text(run));
  expect_same(what, "steps:", made.num_steps(), run.num_steps());
  for (int i = 0; i < run.num_steps(); ++i)
    LACUNA_CHECK(std::abs(made.sigmas[i] - run.sigmas[i]) <= 1e-6,
                 "{}: made for sigma {} at step {}, this run has {}", what, made.sigmas[i], i,
                 run.sigmas[i]);
}

std::string dump_json(const Json& json) try {
  return json.dump();
} catch (const Json::exception& error) {
  fail("json: {}, expected valid UTF-8", error.what());
}

std::string_view branch_name(Branch branch) {
  return branch == Branch::cond ? "cond" : "uncond";
}

Branch read_branch(const JsonObject& object) {
  const std::string name = object.text("branch", 16);
  LACUNA_CHECK(name == "cond" || name == "uncond", "{}: '{}', expected cond or uncond",
               object.path("branch"), name);
  return name == "cond" ? Branch::cond : Branch::uncond;
}

std::string mask_hash_text(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

uint64_t parse_mask_hash(const std::string& text, std::string_view path) {
  const bool hex = text.size() == 16 && std::all_of(text.begin(), text.end(), [](char c) {
                     return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                   });
  LACUNA_CHECK(hex, "{}: '{}', expected 16 hex digits", path, text);
  return std::stoull(text, nullptr, 16);
}

}  // namespace lacuna
