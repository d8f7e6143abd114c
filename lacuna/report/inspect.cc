// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/engine/mask_log.h"
#include "lacuna/engine/profile_format.h"
#include "lacuna/methods/selection.h"
#include "lacuna/report/inspect_parts.h"
#include "lacuna/report/machine_info.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

// What was found in the files; at most one of each kind.
struct Found {
  std::optional<TraceFile> trace;
  std::optional<MaskLog> masks;
  std::optional<Profile> profile;
  std::optional<Recording> recording;
};

// The first byte that is no space says whether it can be JSON.
bool looks_like_json(const fs::path& path) {
  const MappedFile file(path);
  for (const uint8_t byte : file.bytes())
    if (byte != ' ' && byte != '\n' && byte != '\r' && byte != '\t') return byte == '{';
  return false;
}

template <typename T, typename Load>
void put(std::optional<T>& place, const fs::path& path, const char* kind, Load load) {
  LACUNA_CHECK(!place, "inspect: {} is a second {}, expected one", path.string(), kind);
  place.emplace(load(path));
}

void open_json(const fs::path& path, Found& found) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  const Json json = parse_json(text, path.string());
  if (json.contains("lacuna_trace")) return put(found.trace, path, "trace", load_trace);
  LACUNA_CHECK(json.contains("schema"), "inspect: {} is JSON but neither a trace nor a profile",
               path.string());
  put(found.profile, path, "profile", load_profile);
}

void open(const fs::path& path, Found& found) {
  if (looks_like_json(path)) return open_json(path, found);
  const Metadata metadata = SafetensorsFile(path).metadata();
  if (metadata.contains("lacuna_masks"))
    return put(found.masks, path, "mask log", [](const fs::path& p) { return MaskLog(p); });
  LACUNA_CHECK(metadata.contains("lacuna_recording"),
               "inspect: {} is neither a trace, a mask log, a profile nor a recording",
               path.string());
  put(found.recording, path, "recording", [](const fs::path& p) { return Recording(p); });
}

Json settings_of(const ProfileTarget& target) {
  return {{"model", target.model},
          {"fingerprint", target.fingerprint},
          {"grid",
           fmt::format("{} x {} x {}", target.grid.frames, target.grid.height, target.grid.width)},
          {"tokens", target.grid.tokens() + target.text_tokens},
          {"steps", target.num_steps()},
          {"layers", target.num_layers},
          {"heads", target.num_heads}};
}

Json settings_of(const RecordedCall& call) {
  return {
      {"grid", fmt::format("{} x {} x {}", call.grid.frames, call.grid.height, call.grid.width)},
      {"tokens", call.q.shape[1]},
      {"heads", call.q.shape[0]},
      {"head_dim", call.q.shape[2]},
      {"dtype", dtype_name(call.q.dtype)}};
}

// Flat words of a request.
void add_request(const Json& request, Json& settings) {
  for (const auto& [key, value] : request.items()) {
    const bool empty = value.is_string() && value.get_ref<const std::string&>().empty();
    if (key.starts_with("lora") && value.is_array()) {
      std::vector<std::string> words;  // in a file that may hold anything
      for (const Json& word : value)
        words.push_back(word.is_string() ? word.get<std::string>() : word.dump());
      settings[key] = fmt::format("{}", fmt::join(words, ", "));
    }
    if ((value.is_string() || value.is_number()) && !empty && !settings.contains(key))
      settings[key] = key == "seed" ? Json(value.dump()) : value;  // a page rounds large numbers
  }
}

std::string what_ran(const std::string& method, const std::string& reason) {
  return reason.empty() ? method : fmt::format("{} ({})", method, reason);
}

// Logs of older versions do not name their run: that both are of one then shows in what ran, and in
// the masks (MaskProof). A replay is another run than the one whose masks it repeats.
void check_run(const MaskLog& log, const RunHeader& header) {
  const auto replayed = header.request.find("replay_masks");
  if (log.run().empty() || (replayed != header.request.end() && *replayed != "")) return;
  const std::string run = run_name(header.request);
  LACUNA_CHECK(run == log.run(),
               "inspect: the trace is of run {}, the masks of run {}, which differ in seed, prompt "
               "or another setting; they are of two runs",
               run, log.run());
}

// The trace's entry of a call of the log. A replay ran what the log says.
const TraceEntry& entry_of(const MaskLog::Call& call, const TraceFile& trace) {
  const Site& site = call.site;
  const auto entry = std::find_if(trace.calls.begin(), trace.calls.end(), [&](const TraceEntry& e) {
    return e.site.step == site.step && e.site.layer == site.layer && e.site.branch == site.branch;
  });
  LACUNA_CHECK(entry != trace.calls.end(),
               "inspect: the trace has no call at step {} layer {}; it is of another run than the "
               "masks",
               site.step, site.layer);
  // What a skip rule left of a dense call is a mask, for which a replay has no reason.
  const bool same = entry->method == call.method && entry->reason == call.reason;
  LACUNA_CHECK(same || entry->method == "replay",
               "inspect: step {} layer {} {} ran {} by the trace and {} by the masks; they are of "
               "two runs",
               site.step, site.layer, branch_name(site.branch),
               what_ran(entry->method, entry->reason), what_ran(call.method, call.reason));
  return *entry;
}

// Holds selections against the hashes that the trace has of them.
class MaskProof {
 public:
  void add(size_t selection, const TraceEntry& entry) {
    // Without the blocks that a skip rule dropped, the log has another mask than was selected, and
    // one where none was.
    constexpr double kRounding = 1e-12;
    if (entry.mask_hash == 0 || entry.pv_density < entry.qk_density - kRounding) return;
    const auto [known, fresh] = entries_.try_emplace(selection, &entry);
    check(known->second->mask_hash == entry.mask_hash, entry);
  }
  void check_mask(size_t selection, const BlockMask& mask) const {
    const auto known = entries_.find(selection);
    if (known != entries_.end())
      check((mask.empty() ? 0 : mask.hash()) == known->second->mask_hash, *known->second);
  }

 private:
  static void check(bool equal, const TraceEntry& entry) {
    LACUNA_CHECK(equal,
                 "inspect: step {} layer {} {} has another mask in the trace than in the masks; "
                 "they are of two runs",
                 entry.site.step, entry.site.layer, branch_name(entry.site.branch));
  }
  std::map<size_t, const TraceEntry*> entries_;
};

void add_masks(const Found& found, Json& sections) {
  const MaskLog& log = *found.masks;
  if (found.trace) {
    check_target(log.target(), found.trace->header.target, "inspect: the masks were");
    check_run(log, found.trace->header);
  }
  MaskSeries series;
  series.num_heads = log.target().num_heads;
  series.grid = log.target().grid;
  MaskProof proof;
  for (const MaskLog::Call& call : log.calls()) {
    std::string note = what_ran(call.method, call.reason);
    if (found.trace) {
      const TraceEntry& e = entry_of(call, *found.trace);
      proof.add(call.selection, e);
      note += fmt::format(", refreshed {} of {} heads, density {:.3f}", e.heads_refreshed,
                          e.num_heads, e.pv_density);
    }
    series.places.push_back(
        {call.site.step, call.site.layer, call.site.branch, call.selection, std::move(note)});
  }
  LACUNA_CHECK(!found.trace || found.trace->calls.size() == log.calls().size(),
               "inspect: the trace has {} calls, the masks have {}; they are of two runs",
               found.trace->calls.size(), log.calls().size());
  series.selection = [&](size_t index) {
    Selection s = log.selection(index);
    check_selection(s, "inspect", log.target().num_heads,
                    log.target().grid.tokens() + log.target().text_tokens, 0);
    proof.check_mask(index, s.mask);
    return s;
  };
  add_mask_sections(series, sections);
}

std::string summary_of(const Found& found) {
  std::string text;
  if (found.trace) {
    Trace trace;
    for (const TraceEntry& call : found.trace->calls) trace.add(call);
    text += fmt::format(
        "{} attention calls at density {:.3f} (P V {:.3f}): {:.2f} s attention, {:.2f} s "
        "selection. ",
        found.trace->calls.size(), trace.qk_density(), trace.pv_density(),
        trace.attend_ms() / 1000.0, trace.select_ms() / 1000.0);
  }
  if (found.masks)
    text += fmt::format("{} calls with {} different selections. ", found.masks->calls().size(),
                        found.masks->num_selections());
  if (found.profile)
    text += fmt::format("A profile of {} rules for {}. ", found.profile->rules.size(),
                        found.profile->target.model);
  if (found.recording) text += fmt::format("{} recorded calls. ", found.recording->calls().size());
  text.pop_back();
  return text;
}

}  // namespace

Json inspect(std::span<const fs::path> files, Backend& backend) {
  LACUNA_CHECK(!files.empty(), "inspect: no file, expected one or more");
  Found found;
  std::string names;
  for (const fs::path& file : files) {
    open(file, found);
    names += (names.empty() ? "" : ", ") + file.filename().string();
  }
  Json machine = machine_info(backend);
  Json settings = Json::object(), sections = Json::array();
  if (found.trace) settings = settings_of(found.trace->header.target);
  if (found.masks) settings = settings_of(found.masks->target());
  if (found.profile) settings = settings_of(found.profile->target);
  if (found.recording) settings = settings_of(found.recording->calls().front());
  if (found.trace) {
    machine = found.trace->header.machine;
    machine["version"] = found.trace->header.version;
    machine["date"] = found.trace->header.date;
    add_request(found.trace->header.request, settings);
    add_trace_sections(*found.trace, sections);
  }
  if (found.masks) add_masks(found, sections);
  if (found.profile) add_profile_sections(*found.profile, sections);
  if (found.recording) add_recording_sections(found.recording->calls(), backend, sections);
  return make_report(names, summary_of(found), std::move(machine), std::move(settings),
                     std::move(sections));
}

}  // namespace lacuna
