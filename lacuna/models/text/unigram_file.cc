// SPDX-License-Identifier: Apache-2.0
// Finds the tokenizer inside a file, whatever the file is.
#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/core/gguf.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/text/hostile_json.h"
#include "lacuna/models/text/unigram_model.h"

namespace lacuna {
namespace {

UnigramModel read_gguf(const std::filesystem::path& path) {
  const GgufFile file(path);
  const std::string who = path.string();
  const std::string prefix = "tokenizer.ggml.";
  const auto kind = file.string(prefix + "model");
  LACUNA_CHECK(kind == "t5", "{}: tokenizer `{}`, expected t5", who,
               kind.value_or("(none)").substr(0, 60));
  GgufVocabulary vocabulary;
  if (const auto tokens = file.strings(prefix + "tokens")) {
    vocabulary.tokens.assign(tokens->begin(), tokens->end());
  }
  vocabulary.scores = file.floats(prefix + "scores").value_or(std::vector<float>());
  for (const int64_t type : file.integers(prefix + "token_type").value_or(std::vector<int64_t>())) {
    vocabulary.token_types.push_back(static_cast<int32_t>(std::clamp<int64_t>(type, 0, 7)));
  }
  // i8 or u8, depending on the converter.
  const auto charsmap = file.integers(prefix + "precompiled_charsmap");
  for (const int64_t byte : charsmap.value_or(std::vector<int64_t>())) {
    LACUNA_CHECK(byte >= -128 && byte <= 255, "{}: {}precompiled_charsmap holds {}, expected bytes",
                 who, prefix, byte);
    vocabulary.precompiled_charsmap.push_back(static_cast<char>(byte));
  }
  vocabulary.add_space_prefix = file.boolean(prefix + "add_space_prefix").value_or(true);
  vocabulary.remove_extra_whitespaces =
      file.boolean(prefix + "remove_extra_whitespaces").value_or(true);
  vocabulary.eos_token_id = file.integer(prefix + "eos_token_id");
  return unigram_from_gguf(std::move(vocabulary), who);
}

// ComfyUI text encoders carry the bytes of spiece.model as a tensor.
UnigramModel read_safetensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const TensorView& bytes = file.at("spiece_model");
  LACUNA_CHECK((bytes.dtype == DType::u8 || bytes.dtype == DType::i8) && bytes.rank == 1,
               "{}: `spiece_model` is {}, expected [bytes] u8", path.string(), bytes.describe());
  return parse_spiece_model(
      {static_cast<const char*>(bytes.data), static_cast<size_t>(bytes.numel())}, path.string());
}

// How many sentinels the tokenizer has by the tokenizer_config.json beside spiece.model: T5 has
// 100, UMT5, whose files may lack it, 300.
int32_t extra_ids_beside(const std::filesystem::path& spiece) {
  constexpr int32_t kUmt5 = 300;
  const std::filesystem::path path = spiece.parent_path() / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return kUmt5;
  const MappedFile mapped(path);
  const std::string who = path.string();
  check_not_lfs_pointer(mapped.bytes(), who);
  const nlohmann::json json = parse_hostile_json(
      {reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()}, who);
  const HostileObject config(json, "file", who);
  return config.find("extra_ids") == nullptr ? kUmt5 : config.id("extra_ids");
}

}  // namespace

UnigramModel read_unigram_model(const std::filesystem::path& path) {
  std::filesystem::path file = path;
  if (std::filesystem::is_directory(path)) {
    file = path / "tokenizer.json";
    if (!std::filesystem::exists(file)) file = path / "spiece.model";
    LACUNA_CHECK(std::filesystem::exists(file),
                 "{}: neither tokenizer.json nor spiece.model, expected one", path.string());
  }
  std::string who = file.string();
  const MappedFile mapped(file);
  const auto bytes = mapped.bytes();
  check_not_lfs_pointer(bytes, who);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("GGUF")) return read_gguf(file);
  if (file.extension() == ".safetensors") return read_safetensors(file);
  // A ModelProto starts with the tag of its first piece, 0x0a, which is also a line feed.
  const size_t start = text.find_first_not_of(" \t\r\n");
  const bool json = start != std::string_view::npos && text[start] == '{';
  if (json) return parse_tokenizer_json(text, who);
  return parse_spiece_model(text, who, extra_ids_beside(file));
}

}  // namespace lacuna
