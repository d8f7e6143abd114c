// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstdlib>

#include "cli/command.h"
#include "cli/default_model.h"
#include "lacuna/core/cache_folder.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/pipeline/networks.h"

namespace lacuna::cli {

void MachineOptions::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Machine");
  group->add_option("--backend", backend,
                    "cpu, ref (oracle, slow) or cuda (not yet run on hardware); default: "
                    "LACUNA_BACKEND, else cpu");
  group->add_option("-t,--threads", threads, "CPU threads; default: LACUNA_THREADS, else all")
      ->check(CLI::Range(1, 1024));
}

std::unique_ptr<Backend> MachineOptions::open() const {
  int n = threads;
  if (const char* text = std::getenv("LACUNA_THREADS");
      n == 0 && text != nullptr && *text != '\0') {
    const auto [end, error] = std::from_chars(text, text + std::strlen(text), n);
    LACUNA_CHECK(error == std::errc() && *end == '\0' && n >= 1,
                 "LACUNA_THREADS: {}, expected a number from 1", text);
  }
  if (n > 0) set_num_threads(n);
  return make_backend(backend);
}

void ModelOptions::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Model");
  group
      ->add_option("-m,--model,--ckpt_dir,--diffusion-model", paths,
                   "Checkpoint folder (diffusers or original layout) or single files "
                   "(safetensors, GGUF), several allowed; default: the small model that ships")
      ->check(names_a_file())
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  group
      ->add_option("--high-noise-diffusion-model", high_noise,
                   "Single file of the high-noise expert (Wan2.2 A14B)")
      ->check(names_a_file());
  group->add_option("--vae", vae, "Single file of the video decoder")->check(names_a_file());
  group
      ->add_option("--tae,--taesd", tae,
                   "Tiny decoder that makes the picture instead, fast and less exact: taew2_1 "
                   "(Wan2.1, A14B), taew2_2 (5B), taehv (HunyuanVideo) or taem1 (Mochi)")
      ->check(names_a_file());
  group
      ->add_option("--t5xxl,--text-encoder", text_encoder,
                   "Single file of the text encoder: UMT5, T5 (Mochi), Llama (HunyuanVideo)")
      ->check(names_a_file());
  group
      ->add_option("--clip_l,--pooled-encoder", pooled_encoder,
                   "Single file of the CLIP encoder (HunyuanVideo)")
      ->check(names_a_file());
  group
      ->add_option("--clip_vision,--image-encoder", image_encoder,
                   "Single file of CLIP's vision encoder (image-to-video of Wan 2.1)")
      ->check(names_a_file());
  group->add_option("--synthetic", synthetic,
                    fmt::format("No checkpoint: made-up weights at the size of one of {}. Time and "
                                "memory are real, the picture means nothing",
                                fmt::join(preset_names(), ", ")));
  const auto add_lora = [&](const char* name, std::vector<std::string>& words, const char* about) {
    group->add_option(name, words, about)
        ->check(names_a_file())
        ->type_name("FILE[:SCALE]")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->allow_extra_args(false);
  };
  add_lora("--lora", lora,
           "LoRA (safetensors) for every network of the model, SCALE times (1); several add up");
  add_lora("--lora-high", lora_high, "LoRA for the high-noise expert only (Wan2.2 A14B)");
  add_lora("--lora-low", lora_low, "LoRA for the low-noise expert only (Wan2.2 A14B)");
  group->add_option("--dtype", dtype, "Activations: bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
}

bool ModelOptions::is_default() const {
  return paths.empty() && synthetic.empty() && high_noise.empty() && vae.empty() &&
         text_encoder.empty() && pooled_encoder.empty() && image_encoder.empty();
}

bool ModelOptions::has_lora() const {
  return !(lora.empty() && lora_high.empty() && lora_low.empty());
}

namespace {

// FILE or FILE:SCALE. What stands behind the last colon and is no number belongs to the name.
LoraUse parse_lora(const std::string& word, LoraUse::Networks networks) {
  LoraUse use{word, 1.0, networks};
  const size_t colon = word.rfind(':');
  if (colon == std::string::npos || colon == 0) return use;
  const char *begin = word.data() + colon + 1, *end = word.data() + word.size();
  const auto parsed = std::from_chars(begin, end, use.scale);
  if (parsed.ec == std::errc() && parsed.ptr == end)
    use.file = word.substr(0, colon);
  else
    use.scale = 1.0;
  return use;
}

}  // namespace

void ModelOptions::add_loras(Model& model) const {
  using Networks = LoraUse::Networks;
  if (model.num_experts() != 2 && !(lora_high.empty() && lora_low.empty()))
    throw UsageError(fmt::format("{}: {} has one network, expected --lora",
                                 lora_high.empty() ? "--lora-low" : "--lora-high", model.name()));
  for (const auto& [words, networks] : {std::pair(&lora, Networks::all),
                                        {&lora_high, Networks::high_noise},
                                        {&lora_low, Networks::low_noise}})
    for (const std::string& word : *words) model.add_lora(parse_lora(word, networks));
}

std::unique_ptr<Model> ModelOptions::open(const std::vector<NamedFile>& outputs) const {
  std::vector<std::filesystem::path> files;
  // The high-noise expert comes first: the order decides when names do not tell.
  if (!high_noise.empty()) files.emplace_back(high_noise);
  files.insert(files.end(), paths.begin(), paths.end());
  for (const std::string& extra : {vae, text_encoder, pooled_encoder, image_encoder}) {
    if (!extra.empty()) files.emplace_back(extra);
  }
  if (!synthetic.empty() && !(files.empty() && tae.empty()))
    throw UsageError("--synthetic: takes no checkpoint files beside it");
  if (files.empty() && synthetic.empty()) files.push_back(default_model());
  if (!tae.empty()) files.emplace_back(tae);
  auto model = synthetic.empty()
                   ? Model::open(files)
                   : Model::synthetic(synthetic, dtype == "f32" ? DType::f32 : DType::bf16);
  if (!tae.empty() && model->tiny_decoder().empty())
    throw UsageError(
        fmt::format("--tae: {} holds none, expected a TAEHV; a full VAE is --vae", tae));
  add_loras(*model);
  std::vector<NamedFile> inputs;
  for (const auto& read : {files, model->files()})
    for (const std::filesystem::path& file : read) inputs.push_back({"a file of the model", file});
  check_files_differ(outputs, inputs);
  return model;
}

void AttentionOptions::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Attention");
  group
      ->add_option("-a,--attention,--sparse", attention,
                   "METHOD or PRESET[:name=value,...], e.g. xattention:top_p=0.9,refresh=drift or "
                   "haste; options given beside a preset win; see lacuna methods")
      ->capture_default_str();
  group->add_option("--skip", skip,
                    "What the kernel drops while it runs, e.g. running_max:lambda=0.01 or "
                    "recall:r=0.95; default: none, or that of the preset; see lacuna methods");
  group
      ->add_option("--profile", profile,
                   "Profile of lacuna calibrate or lacuna doctor, instead of -a")
      ->check(names_a_file());
  group->add_option("--dense-steps", dense_steps,
                    "Dense steps: a count or share from the start (10, 20%), or 0-4,49");
  group->add_option("--dense-layers", dense_layers,
                    "Dense layers, e.g. 0,29 or 0,-1 (the last) or 3% from the start");
  group->add_option("--min-tokens", min_tokens, "Dense below this many tokens")
      ->check(CLI::NonNegativeNumber);
}

void AttentionOptions::fill(Request& request) const {
  request.attention = attention;
  request.skip = skip;
  request.profile = profile;
  request.dense_steps = dense_steps;
  request.dense_layers = dense_layers;
  request.min_tokens = min_tokens;
}

void DecodeSettings::add_to(CLI::App& command) {
  auto* group = command.add_option_group("Decoding");
  auto* mode =
      group
          ->add_option("--vae-tile", tile,
                       "off; exact (less memory, same result); blend (as upstream, approximate)")
          ->check(CLI::IsMember({"off", "exact", "blend"}))
          ->capture_default_str();
  group
      ->add_flag_callback(
          "--vae-tiling", [this] { tile = "blend"; }, "Same as --vae-tile blend")
      ->excludes(mode);
  group->add_option("--vae-tile-size", tile_size, "Pixels; default 256");
  group->add_option("--vae-tile-stride", tile_stride, "Pixels, blend only; default 192");
}

Tiling DecodeSettings::tiling() const {
  if (tile_size && tile == "off")
    throw UsageError("--vae-tile-size: needs --vae-tile exact or blend");
  if (tile_stride && tile != "blend")
    throw UsageError(fmt::format("--vae-tile-stride: needs --vae-tile blend, not {}", tile));
  Tiling t;
  t.mode = tile == "exact" ? TileMode::exact : tile == "blend" ? TileMode::blend : TileMode::off;
  t.tile_height = t.tile_width = tile_size.value_or(256);
  t.stride_height = t.stride_width = tile_stride.value_or(192);
  return t;
}

CLI::Validator names_a_file() {
  const auto check = [](std::string& word) {
    return std::string(word.empty() ? "empty, expected the name of a file" : "");
  };
  return {check, "", "file"};
}

CLI::Validator real_number(double low, double high, const std::string& counted) {
  const bool any = high == std::numeric_limits<double>::max();
  const std::string range = any ? "" : fmt::format("{:g} to {:g}", low, high);
  const std::string wanted =
      any ? "a finite number"
          : fmt::format("a number{} from {}", counted.empty() ? "" : " of " + counted, range);
  const auto check = [=](std::string& word) {
    double value = 0.0;
    // Not the other way round: nan compares false with both.
    const bool fits = CLI::detail::lexical_cast(word, value) && value >= low && value <= high;
    return fits ? std::string() : fmt::format("{}, expected {}", word, wanted);
  };
  return {check, range, "number"};
}

std::filesystem::path prompt_cache_folder() {
  const std::filesystem::path folder = cache_folder();
  return folder.empty() ? folder : folder / "prompts";
}

}  // namespace lacuna::cli
