// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/trace_file.h"

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/rng.h"
#include "lacuna/engine/profile_format.h"

namespace lacuna {

namespace {

constexpr int kTraceVersion = 1;
constexpr size_t kMaxTraceBytes = size_t{256} << 20;
constexpr size_t kMaxCalls = size_t{1} << 24;
constexpr double kMaxMs = 1e15;
constexpr double kMaxDensity = 1.0 + 1e-9;  // a mean is rounded

}  // namespace

TraceEntry parse_call(const Json& json, const std::string& path, int num_rules) {
  const JsonObject o(json, path,
                     {"step", "num_steps", "sigma", "layer", "num_layers", "branch", "expert",
                      "method", "reason", "rule", "num_heads", "heads_refreshed", "qk_density",
                      "pv_density", "pooled_density", "select_ms", "attend_ms", "mask_hash"});
  TraceEntry entry;
  Site& site = entry.site;
  const auto integer = [&](std::string_view key, int64_t min, int64_t max) {
    return static_cast<int32_t>(o.integer(key, min, max));
  };
  site.num_steps = integer("num_steps", 1, kMaxIndex);
  site.step = integer("step", 0, site.num_steps - 1);
  site.sigma = static_cast<float>(o.number("sigma", 0.0, 1e6));
  site.num_layers = integer("num_layers", 1, kMaxIndex);
  site.layer = integer("layer", 0, site.num_layers - 1);
  site.branch = read_branch(o);
  site.expert = integer("expert", 0, 1);
  entry.method = o.text("method", 64);
  entry.reason = o.text("reason", 256);
  entry.rule = integer("rule", -1, num_rules - 1);
  entry.num_heads = integer("num_heads", 1, kMaxIndex);
  entry.heads_refreshed = integer("heads_refreshed", 0, entry.num_heads);
  entry.qk_density = o.number("qk_density", 0.0, kMaxDensity);
  entry.pv_density = o.number("pv_density", 0.0, kMaxDensity);
  entry.pooled_density = o.number("pooled_density", 0.0, kMaxDensity);
  entry.select_ms = o.number("select_ms", 0.0, kMaxMs);
  entry.attend_ms = o.number("attend_ms", 0.0, kMaxMs);
  entry.mask_hash = parse_mask_hash(o.text("mask_hash", 16), o.path("mask_hash"));
  return entry;
}

namespace {

RunHeader read_header(const JsonObject& top) {
  RunHeader header;
  header.version = top.text("version", 64);
  header.date = top.text("date", 64);
  header.machine = top.at("machine");
  header.request = top.at("request");
  for (const char* key : {"machine", "request"})
    LACUNA_CHECK(top.at(key).is_object(), "{}: expected an object", top.path(key));
  for (const auto& [key, value] : header.machine.items())
    LACUNA_CHECK(value.is_string() || value.is_number(), "{}.{}: expected text or a number",
                 top.path("machine"), key);
  header.target = read_target(top);
  for (const Json& rule : top.array("rules", kMaxIndex)) {
    LACUNA_CHECK(rule.is_string(), "{}: expected an array of text", top.path("rules"));
    header.rules.push_back(rule.get<std::string>());
  }
  return header;
}

}  // namespace

Json call_json(const TraceEntry& call) {
  Json line;
  line["step"] = call.site.step;
  line["num_steps"] = call.site.num_steps;
  line["sigma"] = call.site.sigma;
  line["layer"] = call.site.layer;
  line["num_layers"] = call.site.num_layers;
  line["branch"] = branch_name(call.site.branch);
  line["expert"] = call.site.expert;
  line["method"] = call.method;
  line["reason"] = call.reason;
  line["rule"] = call.rule;
  line["num_heads"] = call.num_heads;
  line["heads_refreshed"] = call.heads_refreshed;
  line["qk_density"] = call.qk_density;
  line["pv_density"] = call.pv_density;
  line["pooled_density"] = call.pooled_density;
  line["select_ms"] = call.select_ms;
  line["attend_ms"] = call.attend_ms;
  line["mask_hash"] = mask_hash_text(call.mask_hash);
  return line;
}

std::string run_name(const Json& request) {
  return mask_hash_text(fnv1a64(dump_json(request)));
}

Json header_json(const RunHeader& header) {
  Json json;
  json["version"] = header.version;
  json["date"] = header.date;
  json["machine"] = header.machine;
  json["request"] = header.request;
  add_target(header.target, json);
  json["rules"] = header.rules;
  return json;
}

void save_trace(const std::filesystem::path& path, const RunHeader& header, const Trace& trace) {
  Json json = {{"lacuna_trace", kTraceVersion}};
  json.update(header_json(header));
  AtomicFile file(path);
  // One call per line: readable, and line tools work.
  std::string text = "{";
  for (const auto& [key, value] : json.items())
    text += fmt::format("\n{}: {},", dump_json(key), dump_json(value));
  text += "\n\"calls\": [";
  for (size_t i = 0; i < trace.entries().size(); ++i) {
    text += i == 0 ? "\n" : ",\n";
    text += dump_json(call_json(trace.entries()[i]));
  }
  file.write(text + "\n]}\n");
  file.commit();
}

TraceFile load_trace(const std::filesystem::path& path) {
  const std::string who = path.string();
  const MappedFile file(path);
  LACUNA_CHECK(file.bytes().size() <= kMaxTraceBytes, "{}: {} bytes, expected at most {}", who,
               file.bytes().size(), kMaxTraceBytes);
  const Json json =
      parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, who);
  // The version first: another one may have other keys.
  LACUNA_CHECK(json.is_object() && json.contains("lacuna_trace"),
               "{}: not a trace; make one with lacuna generate --trace", who);
  const int64_t version = json_integer(json["lacuna_trace"], who + ":lacuna_trace", 0, INT32_MAX);
  LACUNA_CHECK(version == kTraceVersion, "{}: trace version {}, expected {}", who, version,
               kTraceVersion);
  const JsonObject top(json, who,
                       {"lacuna_trace", "version", "date", "machine", "request", "model", "grid",
                        "sigmas", "rules", "calls"},
                       ':');
  TraceFile trace;
  trace.header = read_header(top);
  const Json& calls = top.array("calls", kMaxCalls);
  for (size_t i = 0; i < calls.size(); ++i)
    trace.calls.push_back(parse_call(calls[i], fmt::format("{}:calls[{}]", who, i),
                                     static_cast<int>(trace.header.rules.size())));
  return trace;
}

}  // namespace lacuna
