// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/prompt_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <system_error>
#include <utility>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"

namespace lacuna {
namespace {

constexpr std::string_view kFormat = "lacuna prompt embedding 1";

std::string_view bytes_of(std::span<const int32_t> ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size_bytes()};
}

// A finished embedding is finite; a damaged one that parses may not be.
bool all_finite(const Tensor& tensor) {
  const float* values = tensor.as<float>();
  return std::all_of(values, values + tensor.numel(), [](float v) { return std::isfinite(v); });
}

}  // namespace

std::string encoder_identity(const std::vector<std::filesystem::path>& files,
                             std::string_view config_json, DType compute,
                             std::string_view rounding) {
  constexpr size_t kBlocks = 64, kBlockBytes = 4096;
  std::string samples;
  for (const std::filesystem::path& path : files) {
    const MappedFile file(path);
    const auto bytes = file.bytes();
    samples += fmt::format("{} ", bytes.size());
    const size_t last = bytes.size() - std::min(bytes.size(), kBlockBytes);
    for (size_t i = 0; i < kBlocks; ++i) {
      const size_t begin = last / (kBlocks - 1) * i;
      const size_t count = std::min(kBlockBytes, bytes.size() - begin);
      const auto* from = reinterpret_cast<const char*>(bytes.data() + begin);
      samples += fmt::format("{:016x}", fnv1a64({from, count}));
    }
  }
  return fmt::format("{:016x} {:016x} {} {}", fnv1a64(samples), fnv1a64(config_json),
                     dtype_name(compute), rounding);
}

PromptCache::PromptCache(std::filesystem::path folder, std::string identity)
    : folder_(std::move(folder)), identity_(std::move(identity)) {}

std::filesystem::path PromptCache::entry(std::span<const int32_t> ids) const {
  const std::string key = fmt::format("{}\n{}\n", kFormat, identity_) + std::string(bytes_of(ids));
  return folder_ / fmt::format("{:016x}.safetensors", fnv1a64(key));
}

std::optional<Tensor> PromptCache::find(std::span<const int32_t> ids, int64_t dim) const {
  if (folder_.empty()) return std::nullopt;
  const std::filesystem::path path = entry(ids);
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  try {
    const SafetensorsFile file(path);
    const auto text = [&](std::string_view key) {
      const auto found = file.metadata().find(key);
      return found == file.metadata().end() ? std::string_view() : std::string_view(found->second);
    };
    if (text("format") != kFormat || text("encoder") != identity_) return std::nullopt;
    const TensorView& stored_ids = file.at("ids");
    const TensorView& values = file.at("embedding");
    const auto n = static_cast<int64_t>(ids.size());
    const bool same_ids = stored_ids.dtype == DType::i32 && stored_ids.rank == 1 &&
                          stored_ids.shape[0] == n &&
                          std::memcmp(stored_ids.data, ids.data(), ids.size_bytes()) == 0;
    const bool right_shape = values.dtype == DType::f32 && values.rank == 2 &&
                             values.shape[0] == n && values.shape[1] == dim;
    if (!same_ids || !right_shape) return std::nullopt;
    Tensor embedding = converted(values, DType::f32);
    if (!all_finite(embedding)) return std::nullopt;
    return embedding;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

bool PromptCache::store(std::span<const int32_t> ids, const TensorView& embedding) const {
  const auto n = static_cast<int64_t>(ids.size());
  LACUNA_CHECK(embedding.dtype == DType::f32 && embedding.rank == 2 && embedding.shape[0] == n,
               "prompt cache: embedding {}, expected [{}, dim] f32", embedding.describe(), n);
  if (folder_.empty()) return false;
  try {
    std::filesystem::create_directories(folder_);
    std::vector<int32_t> copy(ids.begin(), ids.end());
    write_safetensors(entry(ids),
                      {{"ids", make_view(copy.data(), DType::i32, {n})}, {"embedding", embedding}},
                      {{"format", std::string(kFormat)}, {"encoder", identity_}});
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace lacuna
