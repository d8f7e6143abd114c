// SPDX-License-Identifier: Apache-2.0
// lacuna info: what a checkpoint, tiny decoder or LoRA is and what it costs, or how a clip was
// made.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/remake.h"
#include "cli/say.h"
#include "lacuna/core/error.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/pipeline/networks.h"
#include "lacuna/models/tensor_set.h"
#include "lacuna/models/vae/taehv_config.h"
#include "lacuna/models/wan/lora.h"

namespace lacuna::cli {
namespace {

struct InfoOptions {
  ModelOptions model;
  bool json = false;
};

struct Size {
  int frames, height, width;
  bool operator==(const Size&) const = default;
};

// Sizes to choose from, beside the model's own: of Wan those that people ask for; of the others
// those that their authors recommend, after what a CPU may be asked for.
std::vector<Size> sizes_of(std::string_view family) {
  if (family == "mochi") return {{31, 480, 848}, {85, 480, 848}, {163, 480, 848}};
  if (family == "hunyuan")
    return {{33, 320, 544}, {129, 544, 960}, {129, 720, 720}, {129, 960, 960}, {129, 720, 1280}};
  return {{17, 480, 832}, {33, 480, 832}, {81, 480, 832}, {81, 720, 1280}, {121, 704, 1280}};
}

nlohmann::ordered_json describe(Model& model) {
  const TransformerSizes c = model.architecture().sizes();
  const FamilyDefaults& d = model.defaults();
  nlohmann::ordered_json json;
  json["name"] = model.title();
  json["fingerprint"] = fmt::format("{:016x}", model.fingerprint());
  json["licence"] = d.license;
  if (!model.tiny_decoder().empty()) json["tiny_decoder"] = model.tiny_decoder().string();
  json["parameters"] = model.architecture().num_parameters();
  json["experts"] = model.num_experts();
  json["stored_bytes_per_expert"] = model.transformer_bytes();
  json["layers"] = c.num_layers;
  json["heads"] = c.num_heads;
  json["head_dim"] = c.head_dim;
  json["width"] = c.dim();
  json["ffn_dim"] = c.ffn_dim;
  json["patch"] = {c.patch.t, c.patch.h, c.patch.w};
  if (c.image_dim > 0) json["image_encoder"] = model.has_image_encoder();
  json["defaults"] = {{"size", fmt::format("{}x{}", d.width, d.height)},
                      {"frames", d.frames},
                      {"fps", d.fps},
                      {"steps", d.steps},
                      {"shift", d.shift},
                      {"guidance", d.guidance}};
  if (d.embedded_guidance) json["defaults"]["embedded_guidance"] = *d.embedded_guidance;
  json["sizes"] = nlohmann::ordered_json::array();
  std::vector<Size> sizes = {{d.frames, d.height, d.width}};
  for (const Size& s : sizes_of(model.architecture().family())) {
    if (s != sizes.front()) sizes.push_back(s);
  }
  for (const Size& s : sizes) {
    nlohmann::ordered_json row;
    row["size"] = fmt::format("{}x{}x{}", s.frames, s.height, s.width);
    try {
      const VideoGrid grid = model.grid(model.latent_shape(s.width, s.height, s.frames));
      const ForwardFlops flops = model.architecture().flops(grid.tokens(), c.text_len);
      row["grid"] = {grid.frames, grid.height, grid.width};
      row["tokens"] = grid.tokens();
      row["tflop_per_forward"] = flops.total() / 1e12;
      row["attention_share"] = flops.self_attention / flops.total();
    } catch (const Error&) {
      continue;  // a size this model cannot make
    }
    json["sizes"].push_back(row);
  }
  return json;
}

// Three digits, and no exponent for what models have.
std::string significant(double value) {
  return value < 100 ? fmt::format("{:.3g}", value) : fmt::format("{:.0f}", value);
}

// As --size has it, from the frames x height x width of the JSON.
std::string width_first(const std::string& size) {
  const size_t height = size.find('x') + 1, width = size.find('x', height) + 1;
  return fmt::format("{}x{}, {} frames", size.substr(width),
                     size.substr(height, width - height - 1), size.substr(0, height - 1));
}

void print(const nlohmann::ordered_json& j) {
  say("{}\n", one_line(j["name"].get<std::string>()));
  say("  fingerprint  {}\n  licence      {}\n", j["fingerprint"].get<std::string>(),
      one_line(j["licence"].get<std::string>()));
  fmt::print(
      "  network      {} layers, width {}, {} heads x {}, feed-forward {}, {} M parameters\n",
      j["layers"].get<int>(), j["width"].get<int>(), j["heads"].get<int>(),
      j["head_dim"].get<int>(), j["ffn_dim"].get<int>(),
      significant(j["parameters"].get<double>() / 1e6));
  if (j.contains("tiny_decoder"))
    say("  decoder      {}, TAEHV\n", one_line(j["tiny_decoder"].get<std::string>()));
  fmt::print("  stored       {}{}\n", format_bytes(j["stored_bytes_per_expert"].get<double>()),
             j["experts"] == 2 ? " for each of two experts" : "");
  if (j.contains("image_encoder"))
    fmt::print("  pictures     {}\n", j["image_encoder"].get<bool>()
                                          ? "seen through an image encoder, which is here"
                                          : "need an image encoder: --image-encoder, such as "
                                            "clip_vision_h.safetensors");
  const auto& d = j["defaults"];
  const std::string embedded =
      d.contains("embedded_guidance")
          ? fmt::format(", embedded guidance {}", d["embedded_guidance"].get<double>())
          : "";
  fmt::print("  defaults     {}, {} frames at {} fps, {} steps, shift {}, guidance {}{}\n",
             d["size"].get<std::string>(), d["frames"].get<int>(), d["fps"].get<int>(),
             d["steps"].get<int>(), d["shift"].get<double>(), d["guidance"].get<double>(),
             embedded);
  fmt::print("\n  {:<21} {:>15} {:>8} {:>13} {:>16}\n", "size", "grid, t x h x w", "tokens",
             "TFLOP/forward", "self-attention");
  for (const auto& s : j["sizes"]) {
    fmt::print("  {:<21} {:>15} {:>8} {:>13} {:>14.0f} %\n",
               width_first(s["size"].get_ref<const std::string&>()),
               fmt::format("{}x{}x{}", s["grid"][0].get<int>(), s["grid"][1].get<int>(),
                           s["grid"][2].get<int>()),
               s["tokens"].get<int64_t>(), significant(s["tflop_per_forward"].get<double>()),
               100 * s["attention_share"].get<double>());
  }
}

// Names of files are any bytes.
void print_json(const nlohmann::ordered_json& json) {
  fmt::print("{}\n", json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print(const InfoOptions& o, const MadeBy& made) {
  if (!made.command.empty()) {
    if (o.json) {
      print_json({{"command", made.command}});
    } else {
      say("{}\nmade by:\n{}\n", one_line(o.model.paths.front()), made.command);
    }
    return;
  }
  const Request& r = made.request;
  const std::string command = command_of(r);
  if (o.json) {
    print_json({{"request", nlohmann::ordered_json::parse(r.to_json())},
                {"next_step", made.next_step},
                {"command", command}});
    return;
  }
  say("{}\n  made with    {}\n  steps        {} of {}\n", one_line(o.model.paths.front()),
      one_line(r.model), made.next_step, r.sampler.num_steps);
  say("\nthe same again, with the model and an output file added:\n{}\n", command);
}

// Whether lacuna inspect may know it: JSON that is no index of a model's shards, or safetensors
// with such a key.
bool is_for_inspect(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  if (path.extension() == ".json") return !path.filename().string().ends_with(".index.json");
  try {
    const Metadata metadata = SafetensorsFile(path).metadata();
    return metadata.contains("lacuna_masks") || metadata.contains("lacuna_recording");
  } catch (const Error&) {
    return false;  // what opens it as a model says what it lacks
  }
}

// The released families whose transformer has the shapes that the file changes.
std::vector<std::string> families_of(const LoraFile& file) {
  std::vector<std::string> names;
  for (const std::string_view preset : preset_names()) {
    if (preset.starts_with("tiny")) continue;  // for demonstrations, no release
    try {
      file.check(wan_preset(preset));
      names.emplace_back(preset);
    } catch (const Error&) {  // of another size
    }
  }
  return names;
}

// The source of a tiny decoder's tensors; null where the path is none.
std::unique_ptr<WeightSource> open_tiny_decoder(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return nullptr;
  try {
    auto source = open_weights({path});
    return is_tiny_decoder(classify_tensors(source->names())) ? std::move(source) : nullptr;
  } catch (const Error&) {
    return nullptr;  // what opens it as a model says what it lacks
  }
}

nlohmann::ordered_json describe(const std::string& path, WeightSource& source) {
  const TaehvConfig config = infer_taehv_config(source, path);
  int64_t parameters = 0;
  for (const std::string& name : source.names())
    if (name.starts_with("decoder.")) parameters += source.raw(name).numel();
  nlohmann::ordered_json json;
  json["tiny_decoder"] = path;
  json["licence"] = "MIT (weights by madebyollin; check the card of others)";
  json["latent_channels"] = config.latent_channels;
  json["pixels_per_cell"] = {config.temporal_factor(), config.spatial_factor(),
                             config.spatial_factor()};
  json["parameters"] = parameters;
  json["fits"] = nlohmann::ordered_json::array();
  for (const std::string_view preset : preset_names())
    if (preset.find("tiny") == preset.npos &&
        preset_architecture(preset)->sizes().latent_channels == config.latent_channels)
      json["fits"].push_back(preset);
  return json;
}

void print_tiny_decoder(const nlohmann::ordered_json& j) {
  say("{}\n  tiny decoder TAEHV, {} latent channels, {} frames of {} x {} pixels a cell, {} M "
      "parameters\n",
      one_line(j["tiny_decoder"].get<std::string>()), j["latent_channels"].get<int64_t>(),
      j["pixels_per_cell"][0].get<int64_t>(), j["pixels_per_cell"][1].get<int64_t>(),
      j["pixels_per_cell"][2].get<int64_t>(), significant(j["parameters"].get<double>() / 1e6));
  say("  licence      {}\n  fits         {}\n", j["licence"].get<std::string>(),
      j["fits"].empty() ? "no released model"
                        : fmt::format("by its channels, of which its weights know one: {}",
                                      fmt::join(j["fits"].get<std::vector<std::string>>(), ", ")));
}

nlohmann::ordered_json describe(const LoraFile& file) {
  int64_t pairs = 0, diffs = 0, least = INT64_MAX, most = 0;
  std::set<int64_t> widths;
  std::set<std::string> layers, modules;
  for (const auto& [name, change] : file.changes()) {
    std::string_view module = name;
    if (module.starts_with("blocks.")) {
      const size_t dot = module.find('.', 7);
      layers.emplace(module.substr(7, dot - 7));
      module.remove_prefix(dot + 1);
    }
    modules.emplace(module.ends_with(".weight") ? module.substr(0, module.size() - 7) : module);
    if (change.diff.data != nullptr) ++diffs;
    if (change.rank() == 0) continue;
    ++pairs;
    least = std::min(least, change.rank());
    most = std::max(most, change.rank());
    if (name.find(".attn") != std::string::npos) widths.insert(change.up.shape[0]);
  }
  nlohmann::ordered_json json;
  json["lora"] = file.path().string();
  json["fingerprint"] = fmt::format("{:016x}", file.fingerprint());
  json["rank"] = {pairs > 0 ? least : 0, most};
  json["matrices"] = pairs;
  json["differences"] = diffs;
  json["layers"] = layers.size();
  json["modules"] = modules;
  json["width"] = nullptr;
  if (widths.size() == 1) json["width"] = *widths.begin();
  json["fits"] = families_of(file);
  return json;
}

void print_lora(const nlohmann::ordered_json& j) {
  const auto words = [&](const char* key) {
    return fmt::format("{}", fmt::join(j[key].get<std::vector<std::string>>(), ", "));
  };
  const int64_t least = j["rank"][0], most = j["rank"][1];
  say("{}\n  LoRA         {} matrices of rank {}, {} differences\n",
      one_line(j["lora"].get<std::string>()), j["matrices"].get<int64_t>(),
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most),
      j["differences"].get<int64_t>());
  say("  fingerprint  {}\n", j["fingerprint"].get<std::string>());
  say("  layers       {} of them: {}\n", j["layers"].get<int64_t>(), words("modules"));
  if (!j["width"].is_null()) say("  width        {}\n", j["width"].get<int64_t>());
  say("  fits         {}\n", j["fits"].empty() ? "no released model" : words("fits"));
}

void run_info(const InfoOptions& o) {
  // With LoRA or made-up weights beside it, what is named is a model.
  if (o.model.paths.size() == 1 && !o.model.has_lora() && o.model.synthetic.empty()) {
    const std::string& path = o.model.paths.front();
    if (is_lora_file(path)) {
      const auto json = describe(LoraFile(path));
      return o.json ? print_json(json) : print_lora(json);
    }
    if (const auto source = open_tiny_decoder(path)) {
      const auto json = describe(path, *source);
      return o.json ? print_json(json) : print_tiny_decoder(json);
    }
    if (const auto made = made_by(path)) return print(o, *made);
    LACUNA_CHECK(!is_for_inspect(path),
                 "info: {}, expected a checkpoint, a clip or a latents file; traces, mask logs, "
                 "profiles and recordings are for lacuna inspect",
                 path);
  }
  const auto model = o.model.open();
  if (!model->assumption().empty()) say_note(model->assumption());
  const auto json = describe(*model);
  if (o.json) {
    print_json(json);
  } else {
    print(json);
  }
}

}  // namespace

void add_info(CLI::App& app) {
  auto* command = app.add_subcommand(
      "info", "What a checkpoint or LoRA is and costs to run, or how a clip was made");
  command->group("Commands");
  auto options = std::make_shared<InfoOptions>();
  options->model.add_to(*command);
  command
      ->add_option(
          "checkpoint", options->model.paths,
          "Folder or files, same as --model; or one LoRA, tiny decoder, clip or latents file")
      ->check(names_a_file())
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  command->add_flag("--json", options->json, "As one JSON object");
  command->callback([options] { run_info(*options); });
}

}  // namespace lacuna::cli
