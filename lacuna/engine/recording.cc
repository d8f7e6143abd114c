// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/recording.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lacuna/core/error.h"
#include "lacuna/engine/policy.h"

namespace lacuna {

namespace {

constexpr std::string_view kSites = "lacuna_recording";  // metadata key: a JSON array of calls
constexpr int64_t kMaxSide = 1 << 16, kMaxText = 1 << 20;

bool listed(const std::vector<int>& list, int value) {
  return list.empty() || std::find(list.begin(), list.end(), value) != list.end();
}

std::string tensor_name(size_t call, const char* part) {
  return fmt::format("call{:04d}.{}", call, part);
}

nlohmann::json to_json(const RecordedCall& call) {
  const Site& s = call.site;
  return {{"step", s.step},
          {"num_steps", s.num_steps},
          {"sigma", s.sigma},
          {"layer", s.layer},
          {"num_layers", s.num_layers},
          {"branch", s.branch == Branch::cond ? "cond" : "uncond"},
          {"expert", s.expert},
          {"grid", {call.grid.frames, call.grid.height, call.grid.width}},
          {"text_tokens", call.text_tokens}};
}

// Reads one entry of the JSON array; `who` names file and call.
class Fields {
 public:
  Fields(const nlohmann::json& json, std::string who) : json_(json), who_(std::move(who)) {
    LACUNA_CHECK(json_.is_object(), "{}: not a JSON object", who_);
  }

  int64_t integer(const nlohmann::json& value, std::string_view key, int64_t min,
                  int64_t max) const {
    const bool fits = value.is_number_integer() && value.get<int64_t>() >= min &&
                      value.get<int64_t>() <= max && (min >= 0 || !value.is_number_unsigned());
    LACUNA_CHECK(fits, "{}: {} out of range, expected an integer from {} to {}", who_, key, min,
                 max);
    return value.get<int64_t>();
  }
  int64_t integer(const char* key, int64_t min, int64_t max) const {
    return integer(at(key), key, min, max);
  }
  const nlohmann::json& at(const char* key) const {
    const auto found = json_.find(key);
    LACUNA_CHECK(found != json_.end(), "{}: {} is missing", who_, key);
    return *found;
  }
  const std::string& who() const { return who_; }

 private:
  const nlohmann::json& json_;
  std::string who_;
};

RecordedCall call_from_json(const nlohmann::json& json, const std::string& who) {
  const Fields fields(json, who);
  RecordedCall call;
  call.site.num_steps = static_cast<int>(fields.integer("num_steps", 1, kMaxIndex));
  call.site.step = static_cast<int>(fields.integer("step", 0, call.site.num_steps - 1));
  call.site.num_layers = static_cast<int>(fields.integer("num_layers", 1, kMaxIndex));
  call.site.layer = static_cast<int>(fields.integer("layer", 0, call.site.num_layers - 1));
  call.site.expert = static_cast<int>(fields.integer("expert", 0, 1));
  const nlohmann::json& sigma = fields.at("sigma");
  LACUNA_CHECK(sigma.is_number() && sigma.get<double>() >= 0.0 && sigma.get<double>() <= 1e6,
               "{}: sigma, expected a number from 0", who);
  call.site.sigma = sigma.get<float>();
  const nlohmann::json& branch = fields.at("branch");
  LACUNA_CHECK(branch == "cond" || branch == "uncond", "{}: branch, expected cond or uncond", who);
  call.site.branch = branch == "cond" ? Branch::cond : Branch::uncond;
  const nlohmann::json& grid = fields.at("grid");
  LACUNA_CHECK(grid.is_array() && grid.size() == 3, "{}: grid, expected three integers", who);
  call.grid = {fields.integer(grid[0], "grid", 1, kMaxSide),
               fields.integer(grid[1], "grid", 1, kMaxSide),
               fields.integer(grid[2], "grid", 1, kMaxSide)};
  call.text_tokens = fields.integer("text_tokens", 0, kMaxText);
  return call;
}

void check_tensors(const RecordedCall& call, const std::string& who) {
  const TensorView& q = call.q;
  LACUNA_CHECK(q.rank == 3 && (q.dtype == DType::f32 || q.dtype == DType::bf16) && q.numel() > 0,
               "{}: q {}, expected [num_heads, seq_len, head_dim] f32 or bf16", who, q.describe());
  const int64_t tokens = call.grid.tokens() + call.text_tokens;
  LACUNA_CHECK(q.shape[1] == tokens, "{}: q {}, expected {} tokens", who, q.describe(), tokens);
  for (const TensorView* x : {&call.q, &call.k, &call.v}) {
    LACUNA_CHECK(x->rank == 3 && x->dtype == q.dtype && x->shape == q.shape,
                 "{}: k or v {}, expected the shape and dtype of q {}", who, x->describe(),
                 q.describe());
    // Kernels read them where they lie in the file.
    const auto width = static_cast<uintptr_t>(storage_bytes(x->dtype, 1));
    LACUNA_CHECK(reinterpret_cast<uintptr_t>(x->data) % width == 0,
                 "{}: {} is not aligned in the file, expected multiples of {} bytes", who,
                 x->describe(), width);
  }
}

}  // namespace

bool RecordFilter::matches(const Site& site) const {
  return listed(steps, site.step) && listed(layers, site.layer) &&
         (uncond || site.branch == Branch::cond);
}

RecordFilter parse_record_sites(std::string_view text) {
  RecordFilter filter;
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    const size_t equal = part.find('=');
    const std::string_view key = part.substr(0, equal);
    const std::string_view value = equal == part.npos ? "" : part.substr(equal + 1);
    if (key == "steps" && !value.empty()) {
      filter.steps = parse_index_list(value);
    } else if (key == "layers" && !value.empty()) {
      filter.layers = parse_index_list(value);
    } else if (key == "branches" && (value == "cond" || value == "both")) {
      filter.uncond = value == "both";
    } else {
      fail("record sites: {}, expected steps=LIST;layers=LIST;branches=cond|both", part);
    }
  }
  return filter;
}

void check_record_sites(const RecordFilter& filter, int num_steps, int num_layers, int first_step) {
  const auto check = [](const char* what, const std::vector<int>& list, int count) {
    for (const int value : list)
      LACUNA_CHECK(value < count, "record sites: {} {}, expected less than {}", what, value, count);
  };
  check("step", filter.steps, num_steps);
  check("layer", filter.layers, num_layers);
  const int last = filter.steps.empty()
                       ? num_steps - 1
                       : *std::max_element(filter.steps.begin(), filter.steps.end());
  LACUNA_CHECK(
      first_step <= last,
      "record sites: the run goes on at step {} of {}, behind the last that is chosen, {}; "
      "choose a step that is to come or start again without --resume",
      first_step, num_steps, last);
}

Recorder::Recorder(Backend& backend, RecordFilter filter, int64_t max_bytes)
    : backend_(backend), filter_(std::move(filter)), bytes_left_(max_bytes) {}

void Recorder::add(const Site& site, const VideoGrid& grid, int64_t text_tokens,
                   const TensorView& q, const TensorView& k, const TensorView& v) {
  if (!filter_.matches(site)) return;
  bytes_left_ -= 3 * storage_bytes(q.dtype, q.numel());
  LACUNA_CHECK(bytes_left_ >= 0,
               "record: the chosen calls need more memory than there is; choose fewer steps or "
               "layers with --record-sites");
  RecordedCall call{site, grid, text_tokens, {}, {}, {}};
  for (const auto& [from, to] : {std::pair{&q, &call.q}, {&k, &call.k}, {&v, &call.v}}) {
    tensors_.emplace_back(from->dtype, std::span(from->shape.data(), 3));
    *to = tensors_.back();
    backend_.copy(*from, *to);
  }
  calls_.push_back(call);
}

void Recorder::save(const std::filesystem::path& path) const {
  LACUNA_CHECK(!calls_.empty(), "record: no attention call matched --record-sites");
  std::vector<std::pair<std::string, TensorView>> tensors;
  nlohmann::json sites = nlohmann::json::array();
  for (size_t i = 0; i < calls_.size(); ++i) {
    tensors.emplace_back(tensor_name(i, "q"), calls_[i].q);
    tensors.emplace_back(tensor_name(i, "k"), calls_[i].k);
    tensors.emplace_back(tensor_name(i, "v"), calls_[i].v);
    sites.push_back(to_json(calls_[i]));
  }
  write_safetensors(path, tensors, {{std::string(kSites), sites.dump()}});
}

Recording::Recording(const std::filesystem::path& path) : file_(path) {
  const std::string name = path.string();
  const auto text = file_.metadata().find(kSites);
  LACUNA_CHECK(text != file_.metadata().end(),
               "{}: not a recording; make one with lacuna generate --record", name);
  const nlohmann::json sites =
      nlohmann::json::parse(text->second, nullptr, /*allow_exceptions=*/false);
  LACUNA_CHECK(sites.is_array() && !sites.empty(), "{}: no calls in its metadata", name);
  for (size_t i = 0; i < sites.size(); ++i) {
    const std::string who = fmt::format("{}: call {}", name, i);
    RecordedCall call = call_from_json(sites[i], who);
    call.q = file_.at(tensor_name(i, "q"));
    call.k = file_.at(tensor_name(i, "k"));
    call.v = file_.at(tensor_name(i, "v"));
    check_tensors(call, who);
    calls_.push_back(call);
  }
}

}  // namespace lacuna
