// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "lacuna/core/error.h"
#include "lacuna/core/gguf.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/models/weights.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfig = size_t{1} << 20;
constexpr size_t kMaxIndex = size_t{64} << 20;
constexpr int kMaxDepth = 64;

std::string read_text(const fs::path& path, size_t limit) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  check_not_lfs_pointer(bytes, path.string());
  LACUNA_CHECK(bytes.size() <= limit, "{}: {} bytes, expected at most {}", path.string(),
               bytes.size(), limit);
  return {bytes.begin(), bytes.end()};
}

nlohmann::json read_object(const std::string& text, const fs::path& path) {
  nlohmann::json json = parse_config_json(text, path.string());
  LACUNA_CHECK(json.is_object(), "{}: expected a JSON object", path.string());
  return json;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool is_weight_file(const fs::path& path) {
  const std::string extension = lower(path.extension().string());
  return extension == ".safetensors" || extension == ".gguf";
}

bool is_pickle(const fs::path& path) {
  const std::string extension = lower(path.extension().string());
  return extension == ".pth" || extension == ".pt" || extension == ".bin" || extension == ".ckpt";
}

// Of safetensors: repositories may keep the pickles and their index beside them.
bool is_index(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".index.json") && !name.ends_with(".bin.index.json");
}

std::vector<fs::path> list_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->is_regular_file(error)) files.push_back(it->path());
  }
  LACUNA_CHECK(!error, "{}: {}", folder.string(), error.message());
  std::sort(files.begin(), files.end());
  return files;
}

// A link to a file that is gone, as a pruned download cache leaves behind.
bool is_dangling(const fs::path& path) {
  std::error_code error;
  return fs::is_symlink(path, error) && !fs::exists(path, error);
}

void check_not_dangling(const fs::path& path) {
  std::error_code error;
  LACUNA_CHECK(!is_dangling(path), "{}: a link to a missing file, {}; fetch it again",
               path.string(), fs::read_symlink(path, error).string());
}

// Those that list_files leaves out.
std::vector<fs::path> dangling_weights(const fs::path& folder) {
  std::vector<fs::path> links;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (is_weight_file(it->path()) && is_dangling(it->path())) links.push_back(it->path());
  }
  std::sort(links.begin(), links.end());
  return links;
}

// --- shards --------------------------------------------------------------------------------------

// `stem-00002-of-00006.safetensors`
struct ShardName {
  std::string stem;
  int index = 0, count = 0;
};

std::optional<ShardName> parse_shard_name(const fs::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view kPattern = "-#####-of-#####.safetensors";
  if (name.size() <= kPattern.size()) return {};
  const std::string_view tail = std::string_view(name).substr(name.size() - kPattern.size());
  for (size_t i = 0; i < tail.size(); ++i) {
    const bool fits = kPattern[i] == '#' ? std::isdigit(static_cast<unsigned char>(tail[i])) != 0
                                         : kPattern[i] == tail[i];
    if (!fits) return {};
  }
  return ShardName{name.substr(0, name.size() - tail.size()),
                   std::stoi(std::string(tail.substr(1, 5))),
                   std::stoi(std::string(tail.substr(10, 5)))};
}

using FileGroup = std::vector<fs::path>;  // the shards of one set of tensors

FileGroup expand_index(const fs::path& index) {
  FileGroup files;
  for (const std::string& name : shard_files(read_text(index, kMaxIndex), index.string())) {
    files.push_back(index.parent_path() / name);
    check_not_dangling(files.back());
    LACUNA_CHECK(fs::is_regular_file(files.back()), "{}: shard {} is missing", index.string(),
                 name);
  }
  return files;
}

// Weight files and indexes -> groups, in the order of their first file. A file named by an index
// belongs to it.
std::vector<FileGroup> group_files(const std::vector<fs::path>& files) {
  std::vector<FileGroup> groups;
  std::set<fs::path> taken;
  for (const fs::path& file : files) {
    if (!is_index(file)) continue;
    groups.push_back(expand_index(file));
    taken.insert(groups.back().begin(), groups.back().end());
  }
  std::map<std::string, size_t> sharded;  // folder and stem -> group
  for (const fs::path& file : files) {
    if (!is_weight_file(file) || taken.contains(file)) continue;
    const auto shard = parse_shard_name(file);
    if (!shard) {
      groups.push_back({file});
      continue;
    }
    const std::string key =
        fmt::format("{}-of-{}", (file.parent_path() / shard->stem).string(), shard->count);
    const auto [found, fresh] = sharded.emplace(key, groups.size());
    if (fresh) groups.emplace_back();
    groups[found->second].push_back(file);
  }
  for (const auto& [key, group] : sharded) {
    const int count = parse_shard_name(groups[group].front())->count;
    LACUNA_CHECK(static_cast<int>(groups[group].size()) == count,
                 "{}: {} of {} shards, expected all", groups[group].front().string(),
                 groups[group].size(), count);
  }
  return groups;
}

// --- parts ---------------------------------------------------------------------------------------

void read_config(CheckpointPart& part, const fs::path& file) {
  check_not_dangling(file);
  if (!fs::is_regular_file(file)) return;
  part.config_file = file;
  part.config_text = read_text(file, kMaxConfig);
  part.config = read_object(part.config_text, file);
}

// Names that only stand in a part's own folder, beside its own config.json.
bool has_folder_name(const FileGroup& files) {
  const std::string name = files.front().filename().string();
  return name.starts_with("diffusion_pytorch_model") || name == "model.safetensors" ||
         name.starts_with("model-0");
}

// A group of files with its kind, and the config.json in its folder if that can only be its own.
CheckpointPart make_part(const FileGroup& files, bool folder_config) {
  CheckpointPart part;
  part.files = files;
  const std::vector<std::string> names = open_weights(files)->names();
  part.tensors = classify_tensors(names);
  refuse_other_networks(part.tensors, names, files.front().string());
  const bool lora = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name.find(".lora_") != std::string::npos;
  });
  LACUNA_CHECK(part.tensors != TensorSet::unknown || !lora,
               "{}: holds LoRA; give it with --lora, beside the model that it changes",
               files.front().string());
  if (folder_config) read_config(part, files.front().parent_path() / "config.json");
  return part;
}

// One file in two options is in the wrong one of them; two transformers of one file would pass for
// two experts.
void check_parts(const std::vector<CheckpointPart>& parts) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const fs::path& file = parts[i].files.front();
    LACUNA_CHECK(
        parts[i].tensors != TensorSet::unknown,
        "{}: holds no transformer, VAE, text or image encoder of Wan, Mochi or HunyuanVideo",
        file.string());
    std::error_code error;
    for (size_t j = 0; j < i; ++j)
      LACUNA_CHECK(!fs::equivalent(parts[j].files.front(), file, error),
                   "{}: given twice, holds a {}; expected another file for each part",
                   file.string(), part_name(parts[i].tensors));
  }
}

// Puts each part in its place. Replaces parts that `checkpoint` already has.
void place_parts(std::vector<CheckpointPart> parts, Checkpoint& checkpoint) {
  check_parts(parts);
  std::vector<CheckpointPart> transformers, others;
  for (CheckpointPart& part : parts) {
    (is_transformer(part.tensors) ? transformers : others).push_back(std::move(part));
  }
  LACUNA_CHECK(transformers.size() <= 2, "{}: one of {} transformers, expected one or two",
               transformers.empty() ? "" : transformers.front().files.front().string(),
               transformers.size());
  if (!transformers.empty()) {
    const auto says = [](const CheckpointPart& part, std::string_view word) {
      return lower(part.files.front().filename().string()).find(word) != std::string::npos;
    };
    if (transformers.size() == 2 && !says(transformers[0], "high") &&
        (says(transformers[0], "low") || says(transformers[1], "high"))) {
      std::swap(transformers[0], transformers[1]);
    }
    checkpoint.transformer = std::move(transformers[0]);
    checkpoint.transformer_2 =
        transformers.size() == 2 ? std::move(transformers[1]) : CheckpointPart{};
  }
  std::set<std::string_view> placed;
  for (CheckpointPart& part : others) {
    CheckpointPart& place = is_text_encoder(part.tensors)          ? checkpoint.text_encoder
                            : is_pooled_text_encoder(part.tensors) ? checkpoint.pooled_encoder
                            : is_tiny_decoder(part.tensors)        ? checkpoint.tiny_decoder
                            : is_image_encoder(part.tensors)       ? checkpoint.image_encoder
                                                                   : checkpoint.vae;
    const std::string_view name = part_name(part.tensors);
    LACUNA_CHECK(placed.insert(name).second, "{} and {}: two {} candidates, expected one",
                 place.files.front().string(), part.files.front().string(), name);
    place = std::move(part);
  }
}

// --- layouts -------------------------------------------------------------------------------------

constexpr const char* kConvert =
    "import sys, torch, safetensors.torch as s; "
    "s.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])";

// OpenCLIP, as image-to-video repositories of Wan hold it.
bool is_clip_pickle(const fs::path& path) {
  return is_pickle(path) && lower(path.filename().string()).find("clip") != std::string::npos;
}

void refuse_pickle(const fs::path& path) {
  LACUNA_CHECK(!is_clip_pickle(path),
               "{}: a pickled PyTorch file, which can run code when loaded; take ComfyUI's "
               "clip_vision_h.safetensors, or the image_encoder of the model's diffusers release, "
               "and give that with --image-encoder",
               path.string());
  fail(
      "{}: a pickled PyTorch file, which can run code when loaded; convert it to safetensors "
      "(python3 -c \"{}\" IN OUT), or take a repackaged .safetensors or .gguf file, and give that "
      "as well",
      path.string(), kConvert);
}

// The weights of one diffusers subfolder: the index if there is one, else the plain name, else the
// only candidate (precision variants lie side by side).
CheckpointPart diffusers_part(const fs::path& folder) {
  CheckpointPart part;
  if (!fs::is_directory(folder)) return part;
  const std::vector<fs::path> files = list_files(folder);
  FileGroup chosen;
  for (const fs::path& file : files) {
    if (chosen.empty() && is_index(file)) chosen = expand_index(file);
  }
  for (const char* name : {"diffusion_pytorch_model.safetensors", "model.safetensors"}) {
    if (chosen.empty() && fs::is_regular_file(folder / name)) chosen = {folder / name};
  }
  if (chosen.empty()) {
    const std::vector<FileGroup> groups = group_files(files);
    LACUNA_CHECK(groups.size() <= 1, "{}: {} and {} both look like weights, expected one set",
                 folder.string(), groups[0].front().filename().string(),
                 groups[1].front().filename().string());
    if (!groups.empty()) chosen = groups.front();
  }
  if (chosen.empty()) {
    for (const fs::path& link : dangling_weights(folder)) check_not_dangling(link);
    const auto pickle = std::find_if(files.begin(), files.end(), is_pickle);
    if (pickle != files.end()) refuse_pickle(*pickle);
    fail("{}: no weights, expected *.safetensors or *.gguf", folder.string());
  }
  part = make_part(chosen, true);
  return part;
}

void read_diffusers(const fs::path& root, Checkpoint& checkpoint) {
  checkpoint.layout = CheckpointLayout::diffusers;
  const fs::path index = root / "model_index.json";
  checkpoint.model_index = read_object(read_text(index, kMaxConfig), index);
  struct Slot {
    const char* folder;
    CheckpointPart& part;
    bool (*fits)(TensorSet);
  };
  const Slot slots[] = {{"transformer", checkpoint.transformer, is_transformer},
                        {"transformer_2", checkpoint.transformer_2, is_transformer},
                        {"vae", checkpoint.vae, is_vae},
                        {"text_encoder", checkpoint.text_encoder, is_text_encoder},
                        {"text_encoder_2", checkpoint.pooled_encoder, is_pooled_text_encoder},
                        {"image_encoder", checkpoint.image_encoder, is_image_encoder}};
  for (const Slot& slot : slots) {
    slot.part = diffusers_part(root / slot.folder);
    LACUNA_CHECK(slot.part.empty() || slot.fits(slot.part.tensors),
                 "{}: the tensors are of no {} that this library computes",
                 (root / slot.folder).string(), slot.folder);
  }
  const fs::path processor = root / "image_processor" / "preprocessor_config.json";
  check_not_dangling(processor);
  if (fs::is_regular_file(processor)) {
    checkpoint.image_processor = processor;
    checkpoint.image_processor_text = read_text(processor, kMaxConfig);
  }
  const fs::path scheduler = root / "scheduler" / "scheduler_config.json";
  check_not_dangling(scheduler);
  if (fs::is_regular_file(scheduler)) {
    checkpoint.scheduler = read_object(read_text(scheduler, kMaxConfig), scheduler);
  }
}

// Reads a folder of weight files, with A14B's two subfolders if present. Returns what could be
// weights but cannot be read: pickles, and links to missing files.
std::vector<fs::path> read_original(const fs::path& root, Checkpoint& checkpoint) {
  checkpoint.layout = CheckpointLayout::original;
  const std::vector<fs::path> files = list_files(root);
  const std::vector<FileGroup> groups = group_files(files);
  std::vector<CheckpointPart> parts;
  for (const FileGroup& group : groups) {
    CheckpointPart part = make_part(group, has_folder_name(group));
    // It changes every picture: to lie there is not to be asked for.
    if (!is_tiny_decoder(part.tensors)) parts.push_back(std::move(part));
  }
  // config.json at the root is the transformer's, unless the folder holds a single other part.
  for (CheckpointPart& part : parts) {
    if (is_transformer(part.tensors) || parts.size() == 1) read_config(part, root / "config.json");
  }
  place_parts(std::move(parts), checkpoint);
  for (const auto& [name, part] : {std::pair("high_noise_model", &checkpoint.transformer),
                                   std::pair("low_noise_model", &checkpoint.transformer_2)}) {
    if (!fs::is_directory(root / name)) continue;
    LACUNA_CHECK(part->empty(), "{}: transformers in the folder and in {}, expected one place",
                 root.string(), name);
    *part = diffusers_part(root / name);
    LACUNA_CHECK(is_transformer(part->tensors),
                 "{}: the tensors are not those of a Wan transformer", (root / name).string());
  }
  if (checkpoint.transformer.empty() && checkpoint.vae.empty() && checkpoint.text_encoder.empty()) {
    for (const char* sub : {"transformer", "vae"}) {
      if (!fs::is_directory(root / sub)) continue;
      check_not_dangling(root / "model_index.json");
      fail("{}: {} but no model_index.json, expected a whole diffusers folder, or {} alone",
           root.string(), sub, (root / sub).string());
    }
  }
  std::vector<fs::path> unusable = dangling_weights(root);
  std::copy_if(files.begin(), files.end(), std::back_inserter(unusable), is_pickle);
  return unusable;
}

// --- tokenizer -----------------------------------------------------------------------------------

bool embeds_tokenizer(const CheckpointPart& encoder) {
  if (encoder.files.size() != 1) return false;
  if (encoder.tensors == TensorSet::umt5_gguf) {
    return GgufFile(encoder.files.front()).metadata().contains("tokenizer.ggml.tokens");
  }
  return open_weights(encoder.files)->has("spiece_model");
}

// The first of these names in these places, or empty. Throws Error where all there is is a link to
// a missing file.
fs::path first_file(const std::vector<fs::path>& folders, std::span<const char* const> subs,
                    std::span<const char* const> names) {
  fs::path dangling;
  for (const fs::path& folder : folders) {
    for (const char* sub : subs) {
      for (const char* name : names) {
        const fs::path file = (folder / sub / name).lexically_normal();
        if (fs::is_regular_file(file)) return file;
        if (dangling.empty() && is_dangling(file)) dangling = file;
      }
    }
  }
  check_not_dangling(dangling);
  return {};
}

fs::path find_tokenizer(const Checkpoint& checkpoint) {
  if (!checkpoint.text_encoder.empty() && embeds_tokenizer(checkpoint.text_encoder)) {
    return checkpoint.text_encoder.files.front();
  }
  std::vector<fs::path> folders;
  if (checkpoint.layout != CheckpointLayout::files) folders.push_back(checkpoint.root);
  if (!checkpoint.text_encoder.empty()) {
    folders.push_back(checkpoint.text_encoder.files.front().parent_path());
  }
  constexpr const char* kSubs[] = {"tokenizer", ".", "google/umt5-xxl"};
  constexpr const char* kNames[] = {"tokenizer.json", "spiece.model"};
  return first_file(folders, kSubs, kNames);
}

fs::path find_pooled_tokenizer(const Checkpoint& checkpoint) {
  if (checkpoint.pooled_encoder.empty()) return {};
  std::vector<fs::path> folders = {checkpoint.pooled_encoder.files.front().parent_path()};
  if (checkpoint.layout == CheckpointLayout::diffusers)
    folders.insert(folders.begin(), checkpoint.root / "tokenizer_2");
  constexpr const char* kSubs[] = {"."};
  constexpr const char* kNames[] = {"tokenizer.json", "vocab.json"};
  return first_file(folders, kSubs, kNames);
}

void check_unusable(const std::vector<fs::path>& files, const Checkpoint& checkpoint) {
  for (const fs::path& file : files) {
    const std::string name = lower(file.filename().string());
    const bool vae = name.find("vae") != std::string::npos;
    const bool encoder = name.find("t5") != std::string::npos;
    const bool clip = is_clip_pickle(file);
    const bool any_clip = !checkpoint.image_encoder.empty() || !checkpoint.pooled_encoder.empty();
    if ((vae && checkpoint.vae.empty()) || (encoder && checkpoint.text_encoder.empty()) ||
        (clip && !any_clip) || (!vae && !encoder && !clip && checkpoint.transformer.empty())) {
      check_not_dangling(file);
      refuse_pickle(file);
    }
  }
}

bool is_tokenizer_file(const fs::path& path) {
  return path.filename() == "tokenizer.json" || path.extension() == ".model";
}

Checkpoint find_parts(std::span<const fs::path> paths) {
  Checkpoint checkpoint;
  checkpoint.root = paths.front();
  std::vector<fs::path> files, unusable;
  fs::path tokenizer;
  bool folder_seen = false;
  for (const fs::path& path : paths) {
    check_not_dangling(path);
    LACUNA_CHECK(fs::exists(path), "{}: no such file or folder", path.string());
    if (fs::is_directory(path)) {
      LACUNA_CHECK(!folder_seen, "{}: a second folder, expected one folder and single files",
                   path.string());
      folder_seen = true;
      checkpoint.root = path;
      if (fs::is_regular_file(path / "model_index.json")) {
        read_diffusers(path, checkpoint);
      } else {
        unusable = read_original(path, checkpoint);
      }
    } else if (is_tokenizer_file(path)) {
      tokenizer = path;
    } else {
      if (is_pickle(path)) refuse_pickle(path);
      LACUNA_CHECK(is_weight_file(path) || is_index(path),
                   "{}: expected *.safetensors, *.index.json, *.gguf, tokenizer.json or *.model",
                   path.string());
      files.push_back(path);
    }
  }
  std::vector<CheckpointPart> parts;
  for (const FileGroup& group : group_files(files))
    parts.push_back(make_part(group, has_folder_name(group)));
  place_parts(std::move(parts), checkpoint);
  check_unusable(unusable, checkpoint);
  checkpoint.tokenizer = tokenizer.empty() ? find_tokenizer(checkpoint) : tokenizer;
  checkpoint.pooled_tokenizer = find_pooled_tokenizer(checkpoint);
  LACUNA_CHECK(
      !checkpoint.transformer.empty() || !checkpoint.vae.empty() ||
          !checkpoint.text_encoder.empty() || !checkpoint.image_encoder.empty(),
      "{}: no weights, expected a diffusers folder, an original Wan folder or weight files",
      checkpoint.root.string());
  return checkpoint;
}

}  // namespace

nlohmann::json parse_config_json(std::string_view text, std::string_view who) {
  const auto limit_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    LACUNA_CHECK(depth <= kMaxDepth, "{}: JSON nested deeper than {}", who, kMaxDepth);
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), limit_depth);
  } catch (const nlohmann::json::exception& error) {
    fail("{}: not JSON: {}", who, error.what());
  }
}

std::vector<std::string> shard_files(std::string_view index_json, std::string_view who) {
  const nlohmann::json index = parse_config_json(index_json, who);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  LACUNA_CHECK(map != index.end() && map->is_object() && !map->empty(),
               "{}: no weight_map, expected tensor names and their files", who);
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    LACUNA_CHECK(file.is_string(), "{}: the file of {} is not a string", who, tensor);
    const auto& name = file.get_ref<const std::string&>();
    // A name, not a path: nothing that could lead out of the folder.
    LACUNA_CHECK(name.size() <= 255 && name.ends_with(".safetensors") && name.front() != '.' &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
                 "{}: shard name `{}` of {}, expected a plain *.safetensors name", who, name,
                 tensor);
    names.insert(name);
  }
  return {names.begin(), names.end()};
}

std::string list_parts(const Checkpoint& checkpoint) {
  std::vector<std::string> list;
  for (const CheckpointPart* part :
       {&checkpoint.transformer, &checkpoint.transformer_2, &checkpoint.vae,
        &checkpoint.tiny_decoder, &checkpoint.text_encoder, &checkpoint.pooled_encoder,
        &checkpoint.image_encoder}) {
    if (!part->empty())
      list.push_back(fmt::format("{} {}", part_name(part->tensors), part->files.front().string()));
  }
  return fmt::format("{}", fmt::join(list, ", "));
}

Checkpoint find_checkpoint(std::span<const fs::path> paths) {
  LACUNA_CHECK(!paths.empty(), "checkpoint: no path, expected a folder or weight files");
  try {
    return find_parts(paths);
  } catch (const fs::filesystem_error& error) {
    fail("checkpoint: {}", error.what());  // permissions, loops of links
  }
}

std::vector<fs::path> checkpoint_files(const Checkpoint& checkpoint) {
  std::set<fs::path> files;
  for (const CheckpointPart* part :
       {&checkpoint.transformer, &checkpoint.transformer_2, &checkpoint.vae,
        &checkpoint.tiny_decoder, &checkpoint.text_encoder, &checkpoint.pooled_encoder,
        &checkpoint.image_encoder}) {
    files.insert(part->files.begin(), part->files.end());
    if (part->config) files.insert(part->config_file);
    for (const fs::path& file : part->files)
      if (const auto shard = parse_shard_name(file))
        files.insert(file.parent_path() / (shard->stem + ".safetensors.index.json"));
  }
  if (checkpoint.model_index) files.insert(checkpoint.root / "model_index.json");
  if (checkpoint.scheduler) files.insert(checkpoint.root / "scheduler" / "scheduler_config.json");
  for (const fs::path* file :
       {&checkpoint.tokenizer, &checkpoint.pooled_tokenizer, &checkpoint.image_processor})
    if (!file->empty()) files.insert(*file);
  if (checkpoint.pooled_tokenizer.filename() == "vocab.json") {
    const fs::path folder = checkpoint.pooled_tokenizer.parent_path();
    files.insert(folder / "merges.txt");
    if (fs::is_regular_file(folder / "tokenizer_config.json"))
      files.insert(folder / "tokenizer_config.json");
  }
  return {files.begin(), files.end()};
}

}  // namespace lacuna
