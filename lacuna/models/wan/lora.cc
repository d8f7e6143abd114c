// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/lora.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/checkpoint.h"
#include "lacuna/models/context.h"
#include "lacuna/models/wan/names.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxRankOfLora = 2048;

// What a tensor is to its module.
enum class Role : uint8_t { down, up, alpha, weight, bias, table };

struct Suffix {
  std::string_view text;
  Role role;
};
constexpr Suffix kSuffixes[] = {
    {".lora_A.weight", Role::down},
    {".lora_A.default.weight", Role::down},
    {".lora_down.weight", Role::down},
    {".lora_B.weight", Role::up},
    {".lora_B.default.weight", Role::up},
    {".lora_up.weight", Role::up},
    {".alpha", Role::alpha},
    {".diff", Role::weight},
    {".diff_b", Role::bias},
    {".diff_m", Role::table},
};

constexpr std::string_view kPrefixes[] = {"model.diffusion_model.", "diffusion_model.",
                                          "transformer."};
constexpr std::string_view kFlatPrefix = "lora_unet_";

// Why a name is refused, by a part of it.
struct Sign {
  std::string_view part, meaning;
};
constexpr Sign kSigns[] = {
    {"dora_scale", "a magnitude of DoRA"},
    {"lora_magnitude_vector", "a magnitude of DoRA"},
    {"hada_", "LoHa, not LoRA"},
    {"lokr_", "LoKr, not LoRA"},
    {"oft_", "OFT, not LoRA"},
    {"lora_mid", "LoRA of a convolution in three parts"},
    {"lora_te", "a change to a text encoder"},
    {"text_encoder", "a change to a text encoder"},
    {"vace_", "a change to a VACE network"},
};

[[noreturn]] void refuse(const fs::path& path, std::string_view name) {
  for (const Sign& sign : kSigns)
    LACUNA_CHECK(name.find(sign.part) == std::string_view::npos,
                 "{}: holds {}, which is {}; expected LoRA of a Wan transformer", path.string(),
                 name, sign.meaning);
  fail("{}: holds {}, expected LoRA of a Wan transformer", path.string(), name);
}

std::vector<int64_t> shape_of(const TensorView& view) {
  return {view.shape.begin(), view.shape.begin() + view.rank};
}

// The module's name and what the tensor is to it.
std::optional<std::pair<std::string, Role>> split(std::string_view name) {
  for (const Suffix& suffix : kSuffixes) {
    if (!name.ends_with(suffix.text)) continue;
    name.remove_suffix(suffix.text.size());
    if (name.starts_with(kFlatPrefix)) {
      std::string module = wan_module_of_flat(name.substr(kFlatPrefix.size()));
      if (module.empty()) return {};
      return std::pair{std::move(module), suffix.role};
    }
    for (const std::string_view prefix : kPrefixes) {
      if (!name.starts_with(prefix)) continue;
      name.remove_prefix(prefix.size());
      break;
    }
    return std::pair{std::string(name), suffix.role};
  }
  return {};
}

// The diffusers name of the tensor that is changed; empty when it is none of the network.
std::string target_of(const std::string& module, Role role) {
  const auto known = [](const std::string& name) {
    return wan_to_original(name).empty() ? wan_to_diffusers(name) : name;
  };
  if (role == Role::bias) return known(module + ".bias");
  if (role == Role::table) return known(module + ".modulation");
  const std::string weight = known(module + ".weight");
  // A table has no `.weight`.
  return weight.empty() && role == Role::weight ? known(module) : weight;
}

// What diffusers writes beside tensors; alpha of every pair, if it says so.
std::optional<double> alpha_of_metadata(const SafetensorsFile& file) {
  const auto text = file.metadata().find("lora_adapter_metadata");
  if (text == file.metadata().end()) return {};
  const std::string who = file.path().string() + ": lora_adapter_metadata";
  const nlohmann::json json = parse_config_json(text->second, who);
  LACUNA_CHECK(json.is_object(), "{}: expected a JSON object", who);
  std::optional<double> alpha;
  for (const auto& [key, value] : json.items()) {
    const std::string_view name = std::string_view(key).substr(key.rfind('.') + 1);
    if (name == "lora_alpha") {
      constexpr double kMost = std::numeric_limits<float>::max();
      LACUNA_CHECK(value.is_number() && std::abs(value.get<double>()) <= kMost &&
                       (!alpha || *alpha == value.get<double>()),
                   "{}: {} is {}, expected one finite number in f32", who, key, value.dump());
      alpha = value.get<double>();
    }
    const bool off = value.is_null() || value == false || (value.is_structured() && value.empty());
    LACUNA_CHECK((name != "use_dora" && name != "use_rslora" && name != "alpha_pattern") || off,
                 "{}: {}, expected plain LoRA with one alpha", who, key);
  }
  return alpha;
}

float alpha_value(const TensorView& view, const fs::path& path, std::string_view name) {
  LACUNA_CHECK(view.numel() == 1, "{}: {} is {}, expected one number", path.string(), name,
               view.describe());
  const float alpha = converted(view, DType::f32).as<float>()[0];
  LACUNA_CHECK(std::isfinite(alpha), "{}: {} is {}, expected a finite number", path.string(), name,
               alpha);
  return alpha;
}

// Whether some element has all the bits of `exponent`, which makes it infinity or NaN.
template <typename Bits>
bool any_with(const TensorView& view, Bits exponent) {
  constexpr int64_t kPiece = 4096;  // a loop of known length becomes vectors
  const auto* from = static_cast<const std::byte*>(view.data);
  std::array<Bits, kPiece> piece{};
  for (int64_t begin = 0; begin < view.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, view.numel() - begin);
    std::memcpy(piece.data(), from + begin * static_cast<int64_t>(sizeof(Bits)),
                static_cast<size_t>(count) * sizeof(Bits));
    Bits found = 0;  // a short last piece ends with elements of the one before, or zeros
    for (const Bits bits : piece) found |= static_cast<Bits>((bits & exponent) == exponent);
    if (found != 0) return true;
  }
  return false;
}

// view: f32, f16 or bf16, at any address.
bool is_finite(const TensorView& view) {
  if (view.dtype == DType::f32) return !any_with<uint32_t>(view, 0x7f800000);
  return !any_with<uint16_t>(view, view.dtype == DType::f16 ? 0x7c00 : 0x7f80);
}

void check_pair(const LoraFile::Change& change, const fs::path& path) {
  const TensorView &up = change.up, &down = change.down;
  LACUNA_CHECK(up.data != nullptr && down.data != nullptr,
               "{}: {} without its other half, expected both matrices of a pair", path.string(),
               change.source);
  const bool ones = up.rank >= 2 && std::all_of(up.shape.begin() + 2, up.shape.begin() + up.rank,
                                                [](int64_t size) { return size == 1; });
  LACUNA_CHECK(ones && down.rank >= 2 && up.shape[1] == down.shape[0],
               "{}: {} and its other half are {} and {}, expected [out, rank] and [rank, in]",
               path.string(), change.source, up.describe(), down.describe());
  LACUNA_CHECK(down.shape[0] >= 1 && down.shape[0] <= kMaxRankOfLora,
               "{}: {} has rank {}, expected 1 to {}", path.string(), change.source, down.shape[0],
               kMaxRankOfLora);
}

// Also what is refused when it is read, so that a command may say what it is.
bool is_lora_name(std::string_view name) {
  for (const std::string_view part :
       {".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".hada_w", ".lokr_w"})
    if (name.find(part) != std::string_view::npos) return true;
  for (const std::string_view end : {".diff", ".diff_b", ".diff_m"})
    if (name.ends_with(end)) return true;
  return false;
}

// --- the source ----------------------------------------------------------------------------------

// sum += scale * diff, any float dtype at any address.
void add_diff(const TensorView& diff, double scale, const Tensor& sum) {
  const Tensor values = converted(diff, DType::f32);
  float* to = sum.as<float>();
  const float* from = values.as<float>();
  for (int64_t i = 0; i < sum.numel(); ++i) to[i] += static_cast<float>(scale * double{from[i]});
}

// [r, k] times `scale` -> [k, r] f32.
Tensor transposed(const TensorView& down, float scale) {
  const int64_t r = down.shape[0], k = down.numel() / r;
  const Tensor rows = converted(down, DType::f32, scale);
  Tensor result(DType::f32, {k, r});
  const float* from = rows.as<float>();
  float* to = result.as<float>();
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < k; ++j) to[j * r + i] = from[i * k + j];
  return result;
}

// sum [n, k] += up [n, r] down^T [k, r]. Of what is no Linear's: patch embedding and head, small.
void add_product(const TensorView& up, const Tensor& down, const Tensor& sum) {
  const int64_t r = down.view().shape[1], k = down.view().shape[0], n = sum.numel() / k;
  const Tensor rows = converted(up, DType::f32);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double y = 0.0;
      for (int64_t c = 0; c < r; ++c)
        y += double{rows.as<float>()[i * r + c]} * double{down.as<float>()[j * r + c]};
      sum.as<float>()[i * k + j] += static_cast<float>(y);
    }
}

class LoraSource : public WeightSource {
 public:
  LoraSource(std::unique_ptr<WeightSource> base, std::vector<ScaledLora> loras,
             const std::function<std::string(std::string_view)>& rename)
      : base_(std::move(base)), loras_(std::move(loras)) {
    for (const ScaledLora& lora : loras_)
      for (const auto& [name, change] : lora.file->changes())
        uses_[rename ? rename(name) : name].push_back({&change, lora.scale});
  }

  std::string describe() const override {
    return fmt::format("{} with LoRA {}", base_->describe(), loras_.front().file->path().string());
  }
  bool has(std::string_view name) const override { return base_->has(name); }
  std::vector<std::string> names() const override { return base_->names(); }
  std::vector<int64_t> shape(std::string_view name) const override { return base_->shape(name); }
  TensorView raw(std::string_view name) override { return base_->raw(name); }

  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const auto uses = uses_.find(name);
    if (uses == uses_.end()) return base_->load(name, shape);
    Tensor sum = with_diffs(name, shape, uses->second);
    for (const Use& use : uses->second)
      if (use.change->rank() > 0) add_product(use.change->up, make_down(use), sum);
    return keep(std::move(sum));
  }

  Matrix load_matrix(std::string_view name, std::span<const int64_t> shape) override {
    const auto uses = uses_.find(name);
    if (uses == uses_.end()) return base_->load_matrix(name, shape);
    const bool changed = std::any_of(uses->second.begin(), uses->second.end(),
                                     [](const Use& use) { return use.change->diff.data; });
    Matrix matrix;
    matrix.stored =
        changed ? keep(with_diffs(name, shape, uses->second)) : base_->load(name, shape);
    for (const Use& use : uses->second) {
      if (use.change->rank() == 0) continue;
      const TensorView& up = use.change->up;
      matrix.added.push_back(
          {make_view(up.data, up.dtype, {up.shape[0], up.shape[1]}), keep(make_down(use))});
    }
    return matrix;
  }

 private:
  struct Use {
    const LoraFile::Change* change;
    double scale;
  };

  static Tensor make_down(const Use& use) {
    return transposed(use.change->down, static_cast<float>(use.scale * double{use.change->factor}));
  }

  Tensor with_diffs(std::string_view name, std::span<const int64_t> shape,
                    const std::vector<Use>& uses) {
    Tensor sum = converted(base_->load(name, shape), DType::f32);
    for (const Use& use : uses)
      if (use.change->diff.data != nullptr) add_diff(use.change->diff, use.scale, sum);
    return sum;
  }

  TensorView keep(Tensor tensor) {
    owned_.push_back(std::move(tensor));
    return owned_.back();
  }

  std::unique_ptr<WeightSource> base_;
  std::vector<ScaledLora> loras_;
  std::map<std::string, std::vector<Use>, std::less<>> uses_;  // by name in the base
  std::vector<Tensor> owned_;
};

}  // namespace

LoraFile::LoraFile(const fs::path& path) : file_(path) {
  const std::optional<double> common_alpha = alpha_of_metadata(file_);
  std::map<std::string, float> alphas;
  for (const auto& [name, view] : file_.tensors()) {
    const auto part = split(name);
    if (!part) refuse(path, name);
    const auto& [module, role] = *part;
    const std::string target = target_of(module, role);
    if (target.empty()) refuse(path, name);
    LACUNA_CHECK(view.dtype == DType::f32 || view.dtype == DType::f16 || view.dtype == DType::bf16,
                 "{}: {} is {}, expected f32, f16 or bf16", path.string(), name, view.describe());
    bool fresh = true;
    if (role == Role::alpha) {
      fresh = alphas.emplace(target, alpha_value(view, path, name)).second;
    } else {
      LACUNA_CHECK(is_finite(view), "{}: {} holds infinity or NaN, expected finite numbers",
                   path.string(), name);
      Change& change = changes_[target];
      TensorView& place = role == Role::down ? change.down
                          : role == Role::up ? change.up
                                             : change.diff;
      fresh = place.data == nullptr;
      place = view;
      change.source = name;
    }
    LACUNA_CHECK(fresh, "{}: {} says again what another tensor says of {}, expected one of them",
                 path.string(), name, target);
  }
  LACUNA_CHECK(!changes_.empty(), "{}: no tensors, expected LoRA", path.string());
  for (auto& [target, change] : changes_) {
    const auto alpha = alphas.find(target);
    const bool pair = change.up.data != nullptr || change.down.data != nullptr;
    LACUNA_CHECK(pair || alpha == alphas.end(), "{}: an alpha for {} without a pair, expected both",
                 path.string(), target);
    if (!pair) continue;
    check_pair(change, path);
    const auto rank = static_cast<double>(change.rank());
    if (alpha != alphas.end()) {
      change.factor = static_cast<float>(double{alpha->second} / rank);
      alphas.erase(alpha);
    } else if (common_alpha) {
      change.factor = static_cast<float>(*common_alpha / rank);
    }
  }
  LACUNA_CHECK(alphas.empty(), "{}: an alpha for {} without a pair, expected both", path.string(),
               alphas.begin()->first);
}

void LoraFile::check(const WanConfig& config) const {
  for (const auto& [name, change] : changes_) {
    const std::vector<int64_t> shape = wan_shape(config, name);
    LACUNA_CHECK(!shape.empty(),
                 "{}: holds {}, which a network of {} layers does not have; the LoRA is of another",
                 path().string(), change.source, config.num_layers);
    if (change.rank() > 0) {
      std::vector<int64_t> changed = shape_of(change.down);
      changed[0] = change.up.shape[0];
      LACUNA_CHECK(changed == shape, "{}: {} changes a [{}], expected the network's [{}]",
                   path().string(), change.source, fmt::join(changed, ", "),
                   fmt::join(shape, ", "));
    }
    if (change.diff.data == nullptr) continue;
    // Tables may lack their leading one, [6, d] for [1, 6, d].
    const std::vector<int64_t> changed = shape_of(change.diff);
    const auto whole = shape[0] == 1 && shape.size() > 1 && changed.size() + 1 == shape.size()
                           ? shape.begin() + 1
                           : shape.begin();
    LACUNA_CHECK(std::equal(whole, shape.end(), changed.begin(), changed.end()),
                 "{}: {} changes a [{}], expected the network's [{}]", path().string(),
                 change.source, fmt::join(changed, ", "), fmt::join(shape, ", "));
  }
}

uint64_t LoraFile::fingerprint() const {
  std::string text = fmt::format("{:016x}", fingerprint_of(file_.tensors()));
  for (const auto& [name, change] : changes_) text += fmt::format(" {}", change.factor);
  return fnv1a64(text);
}

int64_t LoraFile::held_bytes() const {
  int64_t made = 0;
  for (const auto& [name, change] : changes_) {
    if (change.diff.data != nullptr) made += change.diff.numel();
    if (change.rank() > 0) made += change.down.numel();
  }
  return static_cast<int64_t>(fs::file_size(path())) + storage_bytes(DType::f32, made);
}

LoraFile::PairBytes LoraFile::largest_pair() const {
  PairBytes most;
  for (const auto& [name, change] : changes_) {
    if (change.rank() == 0) continue;
    const int64_t up = change.up.numel(), down = change.down.numel();
    const int64_t matrix = up / change.rank() * (down / change.rank());
    const int64_t sums = std::min(matrix, kLoraSumElements);
    most.pair = std::max(most.pair, storage_bytes(DType::f32, up + down));
    most.scratch = std::max(most.scratch, storage_bytes(DType::f32, up + sums));
  }
  return most;
}

bool is_lora_file(const fs::path& path) {
  std::error_code none;
  if (!fs::is_regular_file(path, none)) return false;
  try {
    const SafetensorsFile file(path);
    bool lora = false, network = false;
    for (const auto& [name, view] : file.tensors()) {
      lora = lora || is_lora_name(name);
      network = network || name.ends_with("norm_q.weight");
    }
    return lora && !network;
  } catch (const Error&) {
    return false;  // what opens it as a model says what it lacks
  }
}

std::unique_ptr<WeightSource> with_loras(std::unique_ptr<WeightSource> base,
                                         std::vector<ScaledLora> loras,
                                         std::function<std::string(std::string_view)> rename) {
  if (loras.empty()) return base;
  return std::make_unique<LoraSource>(std::move(base), std::move(loras), rename);
}

}  // namespace lacuna
