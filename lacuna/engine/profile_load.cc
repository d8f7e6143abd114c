// SPDX-License-Identifier: Apache-2.0
// Reading profiles, which may be hostile: every value is typed and bounded before it is used.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/profile_format.h"

namespace lacuna {

namespace {

constexpr size_t kMaxProfileBytes = size_t{64} << 20;
constexpr size_t kMaxRules = 1 << 20;

// A name in the profile's own folder; anything with a path in it could read other files.
void check_side_name(const std::string& name, std::string_view path) {
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  LACUNA_CHECK(plain, "{}: '{}', expected a file name without a path", path, name);
}

SiteMatch read_match(const Json& json, const std::string& path, const ProfileTarget& target) {
  const JsonObject object(json, path,
                          {"steps", "sigmas", "layers", "branch", "expert", "max_tokens"});
  SiteMatch match;
  if (object.has("steps")) {
    const std::vector<int> steps = object.indices("steps", 2, 1 << 30);
    LACUNA_CHECK(steps.size() == 2 && steps[0] < steps[1], "{}: expected [first, past the last]",
                 object.path("steps"));
    match.step_begin = steps[0];
    match.step_end = steps[1];
  }
  if (object.has("sigmas")) {
    const auto sigmas = object.numbers("sigmas", 2, 0.0, double{std::numeric_limits<float>::max()});
    LACUNA_CHECK(sigmas.size() == 2 && sigmas[0] < sigmas[1],
                 "{}: expected [lowest, past the highest]", object.path("sigmas"));
    match.sigma_min = static_cast<float>(sigmas[0]);
    match.sigma_max = static_cast<float>(sigmas[1]);
  }
  if (object.has("layers")) {
    match.layers = object.indices("layers", kMaxIndex, target.num_layers - 1);
    LACUNA_CHECK(!match.layers.empty(), "{}: empty, expected layers or no key",
                 object.path("layers"));
  }
  if (object.has("branch")) match.branch = read_branch(object);
  if (object.has("expert")) match.expert = static_cast<int>(object.integer("expert", 0, 1));
  if (object.has("max_tokens")) match.max_tokens = object.integer("max_tokens", 1, INT32_MAX);
  return match;
}

// Values of `specs` in `json`, whose other keys are `others`. A scalar, or an array of one per head
// where `num_heads` > 0.
Params read_params(const Json& json, const std::string& path, std::span<const ParamSpec> specs,
                   std::initializer_list<std::string_view> others, int num_heads) {
  LACUNA_CHECK(json.is_object(), "{}: expected an object", path);
  Params params(specs);
  for (const auto& [key, value] : json.items()) {
    if (std::find(others.begin(), others.end(), key) != others.end()) continue;
    const std::string where = path + "." + key;
    try {
      params.get(key);  // known?
      if (value.is_array() && num_heads > 0) {
        LACUNA_CHECK(static_cast<int>(value.size()) == num_heads,
                     "{} values, expected one for each of {} heads", value.size(), num_heads);
        std::vector<double> values;
        for (const Json& item : value) values.push_back(json_number(item, key, -1e300, 1e300));
        // A single head's list is that head's value.
        params.set_per_head(key, std::move(values));
      } else {
        params.set(key, json_number(value, key, -1e300, 1e300));
      }
    } catch (const Error& error) {
      fail("{}: {}", where, error.what());
    }
  }
  return params;
}

Refresh read_refresh(const Json& json, const std::string& path) {
  LACUNA_CHECK(json.is_object() && json.contains("kind") && json["kind"].is_string(),
               "{}: expected an object with a kind", path);
  const RefreshInfo& info = find_refresh(json["kind"].get<std::string>());
  const bool listed = info.kind == RefreshKind::at_steps;
  const Params params = listed ? read_params(json, path, info.specs, {"kind", "at"}, 0)
                               : read_params(json, path, info.specs, {"kind"}, 0);
  std::vector<int> steps;
  if (listed) steps = JsonObject(json, path, {"kind", "at"}).indices("at", kMaxIndex, kMaxIndex);
  return make_refresh(info.kind, params, std::move(steps));
}

SkipRule read_skip(const Json& json, const std::string& path, int num_heads) {
  LACUNA_CHECK(json.is_object() && json.contains("kind") && json["kind"].is_string(),
               "{}: expected an object with a kind", path);
  const SkipInfo& info = find_skip(json["kind"].get<std::string>());
  SkipRule skip = make_skip(info.kind, read_params(json, path, info.specs, {"kind"}, num_heads));
  if (!json.contains("kappa")) skip.kappa.clear();
  return skip;
}

// Where masks come from; null when only the JSON is checked.
struct MaskSource {
  const SafetensorsFile* file = nullptr;
  bool skip = false;  // leave masks out
  // By hash: a small file may name a large mask often.
  std::map<uint64_t, std::shared_ptr<const Selection>> known;
};

std::shared_ptr<const Selection> read_mask(const Json& json, const std::string& path,
                                           const ProfileTarget& target, MaskSource& source) {
  const JsonObject object(json, path, {"hash", "block_q", "block_k"});
  auto selection = std::make_shared<Selection>();
  const int64_t seq_len = target.grid.tokens() + target.text_tokens;
  const auto layout = [&](const char* key) {
    return BlockLayout::uniform(seq_len, static_cast<int32_t>(object.integer(key, 1, 1 << 20)));
  };
  selection->q_layout = layout("block_q");
  selection->k_layout = layout("block_k");
  const uint64_t hash = parse_mask_hash(object.text("hash", 16), object.path("hash"));
  auto& known = source.known[hash];
  if (known != nullptr) {
    // As many blocks of another size would be another copy.
    LACUNA_CHECK(known->q_layout.block == selection->q_layout.block &&
                     known->k_layout.block == selection->k_layout.block,
                 "{}: blocks of {} x {}, another rule has this mask with blocks of {} x {}", path,
                 selection->q_layout.block, selection->k_layout.block, known->q_layout.block,
                 known->k_layout.block);
    return known;
  }
  if (source.skip) return known = std::move(selection);
  LACUNA_CHECK(source.file != nullptr, "{}: a mask without masks_file", path);
  const TensorView& words = source.file->at(mask_tensor_name(hash));
  const int32_t rows = selection->q_layout.num_blocks, columns = selection->k_layout.num_blocks;
  const std::array<int64_t, kMaxRank> shape = {target.num_heads, rows,
                                               (int64_t{columns} + 63) / 64};
  LACUNA_CHECK(words.dtype == DType::i64 && words.rank == 3 && words.shape == shape,
               "{}: tensor {}, expected [{}, {}, {}] i64", path, words.describe(), shape[0],
               shape[1], shape[2]);
  BlockMask mask(target.num_heads, rows, columns);
  const auto* bytes = static_cast<const char*>(words.data);
  for (int64_t h = 0; h < mask.num_heads(); ++h)
    for (int32_t qb = 0; qb < rows; ++qb) {
      const auto row = mask.row(h, qb);
      std::memcpy(row.data(), bytes, row.size_bytes());
      bytes += row.size_bytes();
    }
  mask.validate();
  LACUNA_CHECK(mask.hash() == hash, "{}: mask has hash {}, expected {}", path,
               mask_hash_text(mask.hash()), mask_hash_text(hash));
  selection->mask = std::move(mask);
  return known = std::move(selection);
}

ProfileRule read_rule(const Json& json, const std::string& path, const ProfileTarget& target,
                      MaskSource& source) {
  const JsonObject object(
      json, path,
      {"match", "reason", "method", "params", "refresh", "compensate", "mask", "skip", "density"});
  ProfileRule item;
  Plan& plan = item.rule.plan;
  item.rule.match = read_match(object.at("match"), object.path("match"), target);
  if (object.has("reason")) item.rule.reason = object.text("reason", 256);
  if (object.has("method")) {
    plan.method = &find_method(object.text("method", 64));
    const Json none = Json::object();
    plan.params = read_params(object.has("params") ? object.at("params") : none,
                              object.path("params"), plan.method->specs(), {}, target.num_heads);
    plan.method->check(plan.params);
    plan.refresh = read_refresh(object.at("refresh"), object.path("refresh"));
    if (object.has("compensate"))
      plan.compensate = find_compensation(object.text("compensate", 64)).kind;
    const bool given = object.has("mask"), wanted = plan.method->takes_masks();
    LACUNA_CHECK(given == wanted, "{}: {}, method {} expects {}", object.path("mask"),
                 given ? "given" : "missing", plan.method->name(), wanted ? "a mask" : "none");
    if (given) plan.fixed = read_mask(object.at("mask"), object.path("mask"), target, source);
  } else {
    for (const char* key : {"params", "refresh", "compensate", "mask"})
      LACUNA_CHECK(!object.has(key), "{}: given without a method", object.path(key));
  }
  if (object.has("skip"))
    plan.skip = read_skip(object.at("skip"), object.path("skip"), target.num_heads);
  check_plan(plan);
  check_steps(plan, target.num_steps());
  if (object.has("density")) item.density = object.number("density", 0.0, 1.0);
  return item;
}

// Exactly the formulas in use must be listed, with the versions that this build computes.
void check_formulas(const Json& json, const std::string& path,
                    const std::vector<ProfileRule>& rules) {
  LACUNA_CHECK(json.is_object(), "{}: expected an object", path);
  std::set<std::string> used;
  for (const ProfileRule& item : rules)
    for (const auto& [name, version] : formulas_of(item.rule.plan)) {
      if (!used.insert(name).second) continue;
      LACUNA_CHECK(json.contains(name), "{}.{}: missing, expected {}", path, name, version);
      const int64_t given = json_integer(json[name], path + "." + name, 0, kMaxIndex);
      LACUNA_CHECK(given == version, "{}.{}: formula version {}, this build computes {}", path,
                   name, given, version);
    }
  for (const auto& [name, unused] : json.items())
    LACUNA_CHECK(used.contains(name), "{}: unknown key {}, no rule uses it", path, name);
}

Profile read_profile(const Json& json, const std::string& who,
                     const std::filesystem::path* side_folder) {
  const JsonObject top(
      json, who,
      {"schema", "version", "formulas", "model", "grid", "sigmas", "masks_file", "rules"}, ':');
  const std::string schema = top.text("schema", 64);
  LACUNA_CHECK(schema == kProfileSchema, "{}: schema '{}', expected {}", who, schema,
               kProfileSchema);
  const int64_t version = top.integer("version", 0, INT32_MAX);
  LACUNA_CHECK(version == kProfileVersion, "{}: version {}, expected {}", who, version,
               kProfileVersion);
  Profile profile;
  profile.target = read_target(top);
  MaskSource source;
  source.skip = side_folder == nullptr;
  std::optional<SafetensorsFile> side;
  if (top.has("masks_file")) {
    const std::string name = top.text("masks_file", 255);
    check_side_name(name, top.path("masks_file"));
    if (side_folder != nullptr) source.file = &side.emplace(*side_folder / name);
  }
  const Json& rules = top.array("rules", kMaxRules);
  for (size_t i = 0; i < rules.size(); ++i) {
    const std::string path = fmt::format("{}:rules[{}]", who, i);
    try {
      profile.rules.push_back(read_rule(rules[i], path, profile.target, source));
    } catch (const Error& error) {
      const std::string_view what = error.what();
      if (what.starts_with(path)) throw;
      fail("{}: {}", path, what);  // an error of Params or BlockMask: say where
    }
  }
  check_formulas(top.at("formulas"), top.path("formulas"), profile.rules);
  return profile;
}

Json read_profile_json(const std::filesystem::path& path) {
  const MappedFile file(path);
  LACUNA_CHECK(file.bytes().size() <= kMaxProfileBytes, "{}: {} bytes, expected at most {}",
               path.string(), file.bytes().size(), kMaxProfileBytes);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  return parse_json(text, path.string());
}

}  // namespace

void check_profile_json(const Json& json, std::string_view who) {
  read_profile(json, std::string(who), nullptr);
}

Profile load_profile(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  return read_profile(read_profile_json(path), path.string(), &folder);
}

std::filesystem::path named_masks_file(const std::filesystem::path& profile) {
  try {
    const Json json = read_profile_json(profile);
    const auto name = json.find("masks_file");
    if (name != json.end() && name->is_string())
      return profile.parent_path() / name->get<std::string>();
  } catch (const Error&) {
  }
  return {};
}

}  // namespace lacuna
