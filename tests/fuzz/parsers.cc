// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/parsers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <variant>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/gguf.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/engine/mask_log.h"
#include "lacuna/engine/trace_file.h"
#include "lacuna/methods/selection.h"
#include "lacuna/models/checkpoint.h"
#include "lacuna/models/hunyuan/hunyuan_config.h"
#include "lacuna/models/image/clip_processor.h"
#include "lacuna/models/image/clip_vision.h"
#include "lacuna/models/mochi/mochi_config.h"
#include "lacuna/models/text/bpe_tokenizer.h"
#include "lacuna/models/text/clip_text.h"
#include "lacuna/models/text/llama_text.h"
#include "lacuna/models/text/umt5.h"
#include "lacuna/models/vae/hunyuan_config.h"
#include "lacuna/models/vae/mochi_config.h"
#include "lacuna/models/vae/taehv_config.h"
#include "lacuna/models/vae/vae_config.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna::fuzz {
namespace {

// A promise that a parser broke: stop so that the fuzzer keeps the input.
void require(bool holds, const char* promise) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

// The input as a file that needs no disk.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const uint8_t> bytes) : fd_(::memfd_create("input", MFD_CLOEXEC)) {
    require(fd_ >= 0, "memfd");
    const auto size = static_cast<ssize_t>(bytes.size());
    require(::write(fd_, bytes.data(), bytes.size()) == size, "memfd write");
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

// Reads every byte that an accepted tensor claims to have.
void use_tensors(const TensorMap& tensors, size_t file_size) {
  uint64_t total = 0;
  for (const auto& [name, view] : tensors) {
    require(view.rank <= kMaxRank && view.contiguous(), "row-major tensor of known rank");
    const int64_t bytes = storage_bytes(view.dtype, view.numel());
    total += static_cast<uint64_t>(bytes);
    // A volatile sum, so that the reads happen.
    volatile uint8_t sum = 0;
    for (int64_t i = 0; i < bytes; ++i) sum = sum + static_cast<const uint8_t*>(view.data)[i];
    if (view.dtype != DType::boolean) converted(view, DType::bf16);
  }
  require(total <= file_size, "tensors share no byte");
}

void use_value(const GgufFile& file, const std::string& key) {
  // Each accessor either serves the value or throws Error.
  const auto attempt = [](auto access) {
    try {
      access();
    } catch (const Error&) {
    }
  };
  attempt([&] { file.string(key); });
  attempt([&] { file.integer(key); });
  attempt([&] { file.number(key); });
  attempt([&] { file.boolean(key); });
  attempt([&] { file.strings(key); });
  attempt([&] { file.floats(key); });
  attempt([&] { file.integers(key); });
}

template <typename Parse>
bool accepted(Parse parse) {
  try {
    parse();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

bool try_safetensors(std::span<const uint8_t> input) {
  const MemoryFile memory(input);
  return accepted([&] {
    const SafetensorsFile file(memory.path());
    use_tensors(file.tensors(), input.size());
  });
}

bool try_gguf(std::span<const uint8_t> input) {
  const MemoryFile memory(input);
  return accepted([&] {
    const GgufFile file(memory.path());
    use_tensors(file.tensors(), input.size());
    for (const auto& [key, value] : file.metadata()) use_value(file, key);
  });
}

bool try_json(std::span<const uint8_t> input) {
  if (input.empty()) return false;
  const std::string_view text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  return accepted([&] {
    switch (input[0] % 13) {
      case 0:
        for (const std::string& name : shard_files(text, "index")) {
          require(std::filesystem::path(name).filename() == name, "a shard name is no path");
        }
        break;
      case 1:
        wan_config_from_json(text, "config").validate();
        break;
      case 2:
        check_vae_config(parse_vae_config(text, "config"), "config");
        break;
      case 4:
        parse_mochi_vae_config(text, "config");
        break;
      case 5:
        parse_hunyuan_vae_config(text, "config");
        break;
      case 6:
        clip_text_config_from_json(text, "config").validate();
        break;
      case 7:
        llama_config_from_json(text, "config").validate();
        break;
      case 8:
        mochi_config_from_json(text, "config").validate();
        break;
      case 9:
        hunyuan_config_from_json(text, "config").validate();
        break;
      case 10:
        parse_taehv_config(text, "config");
        break;
      case 11:
        clip_vision_config_from_json(text, "config").validate();
        break;
      case 12:
        clip_processor_config_from_json(text, "config").validate();
        break;
      default:
        umt5_config_from_json(text, "config").validate();
    }
  });
}

bool try_bpe(std::span<const uint8_t> input) {
  if (input.empty()) return false;
  std::string_view text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  const auto part = [&] {
    const std::string_view found = text.substr(0, text.find('\x1e'));
    text.remove_prefix(std::min(found.size() + 1, text.size()));
    return found;
  };
  return accepted([&] {
    BpeModel model;
    if (input[0] % 2 == 0) {
      model = parse_bpe_json(text, "tokenizer");
    } else {
      const std::string_view vocab = part(), merges = part();
      model = parse_clip_files(vocab, merges, text, "tokenizer");
    }
    const BpeTokenizer tokenizer(std::move(model));
    for (const std::string_view prompt :
         {std::string_view(
              "I'M the 12345th cat,\n\n e\xcc\x82\xcc\x81 <|eot_id|> \xe7\x8c\xab\xff"),
          text.substr(0, 512)}) {
      for (const int32_t id : tokenizer.encode_with_special(prompt, 4096))
        require(id >= 0 && id < tokenizer.vocab_size(), "ids are in range");
    }
  });
}

bool try_masks(std::span<const uint8_t> input) {
  const MemoryFile memory(input);
  return accepted([&] {
    const MaskLog log(memory.path());
    const ProfileTarget& target = log.target();
    for (const MaskLog::Call& call : log.calls())
      require(call.selection < log.num_selections(), "a call names a selection that is there");
    for (size_t i = 0; i < log.num_selections(); ++i)
      check_selection(log.selection(i), "masks", target.num_heads,
                      target.grid.tokens() + target.text_tokens, 0);
  });
}

bool try_trace(std::span<const uint8_t> input) {
  const MemoryFile memory(input);
  return accepted([&] {
    const TraceFile trace = load_trace(memory.path());
    for (const TraceEntry& call : trace.calls)
      require(call.rule < static_cast<int>(trace.header.rules.size()), "a rule that is there");
  });
}

}  // namespace lacuna::fuzz
