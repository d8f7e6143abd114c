// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/manifest.h"

#include "lacuna/engine/profile_format.h"
#include "lacuna/models/video/video_writer.h"
#include "lacuna/report/machine_info.h"

namespace lacuna {
namespace {

constexpr int kManifestVersion = 1;

// Bytes of the file, or of the PNG frames that stand for it.
Json size_json(const std::filesystem::path& output, int frames) {
  namespace fs = std::filesystem;
  Json json = {{"file", output.filename().string()}};
  std::error_code none;
  if (const auto size = fs::file_size(output, none); !none) {
    json["bytes"] = size;
    return json;
  }
  uintmax_t bytes = 0;
  int64_t files = 0;
  for (int frame = 0; frame < frames; ++frame) {
    const auto size = fs::file_size(png_frame(output, frame), none);
    if (none) break;
    bytes += size;
    ++files;
  }
  json["bytes"] = bytes;
  json["files"] = files;
  return json;
}

}  // namespace

RunHeader run_header(Model& model, const Request& request, const Backend& backend,
                     const std::vector<std::string>& rules) {
  RunHeader header;
  header.machine = machine_info(backend);
  header.version = header.machine["version"];
  header.date = header.machine["date"];
  header.machine.erase("version");
  header.machine.erase("date");
  header.request = Json::parse(request.to_json());
  header.target = profile_target(model, request);
  header.rules = rules;
  return header;
}

uint64_t overall_mask_hash(std::span<const TraceEntry> calls, std::optional<Branch> branch) {
  uint64_t h = 0xcbf29ce484222325ull;
  const auto mix = [&h](uint64_t word) {
    for (int i = 0; i < 8; ++i) h = (h ^ ((word >> (8 * i)) & 0xff)) * 0x100000001b3ull;
  };
  for (const TraceEntry& call : calls) {
    if (branch && *branch != call.site.branch) continue;
    mix(static_cast<uint64_t>(call.site.step));
    mix(static_cast<uint64_t>(call.site.layer));
    mix(static_cast<uint64_t>(call.site.expert));
    mix(call.mask_hash);
  }
  return h;
}

Json manifest_json(const RunHeader& header, const GenerationResult& result,
                   const std::filesystem::path& output) {
  const Trace& trace = result.trace;
  const auto hash = [&](std::optional<Branch> branch) {
    return mask_hash_text(overall_mask_hash(trace.entries(), branch));
  };
  Json json = {{"lacuna_manifest", kManifestVersion}};
  json.update(header_json(header));
  json["seed"] = header.request.at("seed");
  json["tokens"] = result.tokens;
  json["calls"] = trace.entries().size();
  json["masks"] = {
      {"cond", hash(Branch::cond)}, {"uncond", hash(Branch::uncond)}, {"total", hash({})}};
  json["density"] = {{"qk", trace.qk_density()}, {"pv", trace.pv_density()}};
  json["seconds"] = {{"text", result.text_seconds},
                     {"sample", result.sample_seconds},
                     {"attention", trace.attend_ms() / 1000.0},
                     {"selection", trace.select_ms() / 1000.0},
                     {"decode", result.decode_seconds}};
  json["output"] = size_json(output, header.request.at("frames").get<int>());
  return json;
}

}  // namespace lacuna
