// SPDX-License-Identifier: Apache-2.0
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/gguf.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/weights.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

// ComfyUI's marker of scaled 8-bit checkpoints; it stands outside the prefix of the other names.
constexpr std::string_view kScaledMarker = "scaled_fp8";
// Tensors that describe another tensor's storage: applied here, not shown to models.
constexpr std::array<std::string_view, 5> kSideTensors = {
    ".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant"};
constexpr std::array<std::string_view, 3> kPrefixes = {"model.diffusion_model.", "diffusion_model.",
                                                       "model."};

std::vector<int64_t> shape_of(const TensorView& view) {
  return {view.shape.begin(), view.shape.begin() + view.rank};
}

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// One file, whichever its format.
struct OpenFile {
  fs::path path;
  std::unique_ptr<SafetensorsFile> safetensors;
  std::unique_ptr<GgufFile> gguf;

  const TensorMap& tensors() const { return gguf ? gguf->tensors() : safetensors->tensors(); }
};

OpenFile open_file(const fs::path& path) {
  OpenFile file;
  file.path = path;
  std::array<char, 4> magic{};
  {
    const MappedFile mapped(path);
    std::copy_n(mapped.bytes().begin(), std::min(magic.size(), mapped.bytes().size()),
                magic.begin());
  }
  const std::string_view start(magic.data(), magic.size());
  LACUNA_CHECK(!start.starts_with("PK") && !start.starts_with("\x80\x02"),
               "{}: a pickled PyTorch file, which can run code when loaded; convert it to "
               "safetensors first",
               path.string());
  if (start == "GGUF") {
    file.gguf = std::make_unique<GgufFile>(path);
  } else {
    file.safetensors = std::make_unique<SafetensorsFile>(path);
  }
  return file;
}

std::string_view common_prefix(const TensorMap& tensors) {
  for (std::string_view prefix : kPrefixes) {
    bool found = false, everywhere = true;
    for (const auto& [name, view] : tensors) {
      if (name == kScaledMarker) continue;
      found = true;
      everywhere = everywhere && name.size() > prefix.size() && name.starts_with(prefix);
    }
    if (found && everywhere) return prefix;
  }
  return {};
}

// Shapes that hold the same elements in the same order, as files spell them.
bool same_layout(std::span<const int64_t> stored, std::span<const int64_t> wanted) {
  const auto skip_ones = [](std::span<const int64_t> s) {
    while (!s.empty() && s.front() == 1) s = s.subspan(1);
    return s;
  };
  const auto equal = [](std::span<const int64_t> a, std::span<const int64_t> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  };
  if (equal(skip_ones(stored), skip_ones(wanted))) return true;
  int64_t merged = 0;
  return wanted.size() >= 2 && stored.size() + 1 == wanted.size() &&
         !__builtin_mul_overflow(wanted[0], wanted[1], &merged) && stored[0] == merged &&
         equal(stored.subspan(1), wanted.subspan(2));
}

// ComfyUI describes a quantised tensor in a JSON blob beside it. 8-bit floats with a scalar scale
// are read here; int8 needs a rotation of the activations that no model in this library applies.
void check_quantization(std::string_view name, const TensorView& blob, const fs::path& path) {
  const std::string_view text(static_cast<const char*>(blob.data),
                              static_cast<size_t>(storage_bytes(blob.dtype, blob.numel())));
  LACUNA_CHECK(text.find("float8") != std::string_view::npos,
               "{}: an int8 \"comfy_quant\" checkpoint ({}), expected f32, f16, bf16, 8-bit float "
               "or GGUF weights",
               path.string(), name);
}

class FileSource : public WeightSource {
 public:
  explicit FileSource(const std::vector<fs::path>& paths) {
    LACUNA_CHECK(!paths.empty(), "open_weights: no files, expected at least one");
    for (const fs::path& path : paths) add(path);
  }

  std::string describe() const override {
    std::string text = files_.front().path.string();
    if (files_.size() > 1) text += fmt::format(" and {} more files", files_.size() - 1);
    return text;
  }

  bool has(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, stored] : tensors_) result.push_back(name);
    return result;
  }

  std::vector<int64_t> shape(std::string_view name) const override {
    return shape_of(find(name).view);
  }

  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const TensorView view = ready(name, find(name, shape));
    return make_view(view.data, view.dtype, shape);
  }

  ScaledView load_unscaled(std::string_view name, std::span<const int64_t> shape) override {
    const Stored& stored = find(name, shape);
    const float scale = scale_of(name, stored);
    if (scale == 1.0f) return {load(name, shape), 1.0f};
    return {make_view(stored.view.data, stored.view.dtype, shape), scale};  // bytes lie aligned
  }

  TensorView raw(std::string_view name) override { return find(name).view; }

  int64_t added_bytes() const override {
    int64_t added = 0;
    for (const auto& [name, stored] : tensors_) {
      if (find_scale(name) == nullptr) continue;
      const int64_t count = stored.view.numel();
      added += storage_bytes(DType::bf16, count) - storage_bytes(stored.view.dtype, count);
    }
    return added;
  }

 private:
  struct Stored {
    TensorView view;
    size_t file = 0;
  };

  void add(const fs::path& path) {
    files_.push_back(open_file(path));
    const TensorMap& tensors = files_.back().tensors();
    const size_t prefix = common_prefix(tensors).size();
    for (const auto& [full_name, view] : tensors) {
      if (full_name.ends_with("comfy_quant")) check_quantization(full_name, view, path);
      if (full_name == kScaledMarker) continue;
      std::string name = full_name.substr(prefix);
      const bool side = std::any_of(kSideTensors.begin(), kSideTensors.end(),
                                    [&](std::string_view s) { return name.ends_with(s); });
      if (side) {
        const auto [where, fresh] = side_.emplace(std::move(name), view);
        LACUNA_CHECK(fresh, "{}: tensor {} also stands in another file", path.string(),
                     where->first);
        continue;
      }
      const auto [where, fresh] =
          tensors_.emplace(std::move(name), Stored{view, files_.size() - 1});
      LACUNA_CHECK(fresh, "{}: tensor {} also stands in {}", path.string(), where->first,
                   files_[where->second.file].path.string());
    }
  }

  const Stored& find(std::string_view name) const {
    const auto found = tensors_.find(name);
    LACUNA_CHECK(found != tensors_.end(), "{}: no tensor {}", describe(), name);
    return found->second;
  }

  const Stored& find(std::string_view name, std::span<const int64_t> shape) const {
    const Stored& stored = find(name);
    const std::vector<int64_t> given = shape_of(stored.view);
    LACUNA_CHECK(same_layout(given, shape), "{}: tensor {} has shape {}, expected {}",
                 files_[stored.file].path.string(), name, shape_text(given), shape_text(shape));
    return stored;
  }

  // The side tensor that scales a tensor, or null.
  const TensorMap::value_type* find_scale(std::string_view name) const {
    constexpr std::string_view kWeight = ".weight";
    if (!name.ends_with(kWeight)) return nullptr;
    const std::string_view stem = name.substr(0, name.size() - kWeight.size());
    const auto one = side_.find(fmt::format("{}.scale_weight", stem));
    const auto other = side_.find(fmt::format("{}.weight_scale", stem));
    LACUNA_CHECK(one == side_.end() || other == side_.end(), "{}: {} and {}, expected one scale",
                 describe(), one->first, other->first);
    if (one != side_.end()) return &*one;
    return other == side_.end() ? nullptr : &*other;
  }

  // The scale that belongs to a tensor; 1 when the file has none.
  float scale_of(std::string_view name, const Stored& stored) const {
    const auto* found = find_scale(name);
    if (found == nullptr) return 1.0f;
    const std::string file = files_[stored.file].path.string();
    const DType dtype = stored.view.dtype;
    LACUNA_CHECK(dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2,
                 "{}: {} is {} with a scale, expected an 8-bit float", file, name,
                 dtype_name(dtype));
    LACUNA_CHECK(found->second.numel() == 1, "{}: {} has shape {}, expected one scale per tensor",
                 file, found->first, shape_text(shape_of(found->second)));
    return converted(found->second, DType::f32).as<float>()[0];
  }

  // The tensor with its scale applied and its data aligned: the mapped bytes where possible, else
  // an owned copy made once.
  TensorView ready(std::string_view name, const Stored& stored) {
    const TensorView& view = stored.view;
    const float scale = scale_of(name, stored);
    // Dequantisation reads bytes, whatever their address.
    const auto element =
        is_quantized(view.dtype) ? 1u : static_cast<uintptr_t>(storage_bytes(view.dtype, 1));
    const bool aligned = reinterpret_cast<uintptr_t>(view.data) % element == 0;
    if (scale == 1.0f && aligned) return view;
    const auto found = owned_.find(std::string(name));
    if (found != owned_.end()) return found->second;
    Tensor copy = scale == 1.0f ? Tensor(view.dtype, shape_of(view))
                                : converted(view, DType::bf16, scale, name);
    if (scale == 1.0f) {
      std::memcpy(copy.view().data, view.data,
                  static_cast<size_t>(storage_bytes(view.dtype, view.numel())));
    }
    return owned_.emplace(std::string(name), std::move(copy)).first->second;
  }

  std::vector<OpenFile> files_;
  std::map<std::string, Stored, std::less<>> tensors_;
  TensorMap side_;
  std::unordered_map<std::string, Tensor> owned_;
};

}  // namespace

std::unique_ptr<WeightSource> open_weights(const std::vector<fs::path>& files) {
  return std::make_unique<FileSource>(files);
}

}  // namespace lacuna
