// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/names.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

// A tensor that is some rows of a stored one.
struct Piece {
  std::string stored;
  int64_t begin = 0, rows = 0, of = 0;  // `of` rows that are stored
  bool swapped = false;                 // its halves change places
};
using Pieces = std::map<std::string, Piece, std::less<>>;

// A stem stands for what follows it up to `weight` or `bias`.
struct Renamed {
  std::string_view original, diffusers;
};

constexpr Renamed kHunyuanGlobals[] = {
    {"img_in.proj", "x_embedder.proj"},
    {"txt_in.t_embedder.mlp.0", "context_embedder.time_text_embed.timestep_embedder.linear_1"},
    {"txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2"},
    {"txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1"},
    {"txt_in.c_embedder.linear_2", "context_embedder.time_text_embed.text_embedder.linear_2"},
    {"txt_in.input_embedder", "context_embedder.proj_in"},
    {"time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1"},
    {"time_in.mlp.2", "time_text_embed.timestep_embedder.linear_2"},
    {"guidance_in.mlp.0", "time_text_embed.guidance_embedder.linear_1"},
    {"guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2"},
    {"vector_in.in_layer", "time_text_embed.text_embedder.linear_1"},
    {"vector_in.out_layer", "time_text_embed.text_embedder.linear_2"},
    {"final_layer.linear", "proj_out"},
};

constexpr Renamed kHunyuanRefiner[] = {
    {"norm1", "norm1"},
    {"norm2", "norm2"},
    {"mlp.fc1", "ff.net.0.proj"},
    {"mlp.fc2", "ff.net.2"},
    {"self_attn_proj", "attn.to_out.0"},
    {"adaLN_modulation.1", "norm_out.linear"},
};

constexpr Renamed kHunyuanDual[] = {
    {"img_mod.linear", "norm1.linear"},         {"img_attn_q_norm", "attn.norm_q"},
    {"img_attn_k_norm", "attn.norm_k"},         {"img_attn_proj", "attn.to_out.0"},
    {"img_mlp.fc1", "ff.net.0.proj"},           {"img_mlp.fc2", "ff.net.2"},
    {"txt_mod.linear", "norm1_context.linear"}, {"txt_attn_q_norm", "attn.norm_added_q"},
    {"txt_attn_k_norm", "attn.norm_added_k"},   {"txt_attn_proj", "attn.to_add_out"},
    {"txt_mlp.fc1", "ff_context.net.0.proj"},   {"txt_mlp.fc2", "ff_context.net.2"},
};

constexpr Renamed kHunyuanSingle[] = {
    {"modulation.linear", "norm.linear"},
    {"q_norm", "attn.norm_q"},
    {"k_norm", "attn.norm_k"},
    {"linear2", "proj_out"},
};

// Which of the three kinds of blocks a name belongs to, with the same index in both schemes.
struct BlockKind {
  std::string_view original, diffusers;  // prefixes
  std::span<const Renamed> renamed;
};

constexpr BlockKind kHunyuanBlocks[] = {
    {"txt_in.individual_token_refiner.blocks.", "context_embedder.token_refiner.refiner_blocks.",
     kHunyuanRefiner},
    {"double_blocks.", "transformer_blocks.", kHunyuanDual},
    {"single_blocks.", "single_transformer_blocks.", kHunyuanSingle},
};

// Matrices that stand on another; what no part takes is the last part's.
struct Stack {
  std::string_view original;
  std::span<const std::string_view> diffusers;
};

constexpr std::string_view kPlainQkv[] = {"attn.to_q", "attn.to_k", "attn.to_v"};
constexpr std::string_view kTextQkv[] = {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"};
constexpr std::string_view kQkvAndUp[] = {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"};
constexpr Stack kHunyuanStacks[] = {{"self_attn_qkv", kPlainQkv},
                                    {"img_attn_qkv", kPlainQkv},
                                    {"txt_attn_qkv", kTextQkv},
                                    {"linear1", kQkvAndUp}};

// Rows of each part but the last: the width of the network, which the matrix beside a bias tells.
int64_t part_rows(const WeightSource& source, const std::string& stem) {
  const std::string matrix = stem + ".weight";
  if (!source.has(matrix)) return 0;
  const std::vector<int64_t> shape = source.shape(matrix);
  return shape.size() == 2 ? shape[1] : 0;
}

class HunyuanOriginal final : public WeightSource {
 public:
  explicit HunyuanOriginal(std::unique_ptr<WeightSource> base) : base_(std::move(base)) {
    for (const std::string& name : base_->names()) add(name);
  }

  std::string describe() const override { return base_->describe(); }
  bool has(std::string_view name) const override { return pieces_.find(name) != pieces_.end(); }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, piece] : pieces_) result.push_back(name);
    return result;
  }
  std::vector<int64_t> shape(std::string_view name) const override {
    const Piece& piece = find(name);
    std::vector<int64_t> shape = base_->shape(piece.stored);
    shape[0] = piece.rows;
    return shape;
  }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    const Piece& piece = find(name);
    if (piece.swapped) return swapped(name, base_->load(piece.stored, shape));
    return rows_of(name, piece, base_->load(piece.stored, whole(piece, shape)), shape);
  }
  ScaledView load_unscaled(std::string_view name, std::span<const int64_t> shape) override {
    const Piece& piece = find(name);
    if (piece.swapped) return {load(name, shape), 1.0f};
    ScaledView all = base_->load_unscaled(piece.stored, whole(piece, shape));
    all.stored = rows_of(name, piece, all.stored, shape);
    return all;
  }
  TensorView raw(std::string_view name) override {
    const Piece& piece = find(name);
    const TensorView all = base_->raw(piece.stored);
    return all.rank == 0 ? all : all.slice(piece.begin, piece.begin + piece.rows);
  }
  int64_t added_bytes() const override { return base_->added_bytes() + swapped_bytes_; }

 private:
  void add(const std::string& name) {
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos) return;
    const std::string stem = name.substr(0, dot), leaf = name.substr(dot);  // with its point
    const std::vector<int64_t> shape = base_->shape(name);
    if (shape.empty()) return;
    if (stem == "final_layer.adaLN_modulation.1") {
      pieces_["norm_out.linear" + leaf] = {name, 0, shape[0], shape[0], true};
      const TensorView stored = base_->raw(name);
      swapped_bytes_ += storage_bytes(stored.dtype, stored.numel());
      return;
    }
    for (const Renamed& renamed : kHunyuanGlobals)
      if (stem == renamed.original)
        pieces_[std::string(renamed.diffusers) + leaf] = {name, 0, shape[0], shape[0]};
    for (const BlockKind& kind : kHunyuanBlocks)
      if (stem.starts_with(kind.original)) add_of_block(kind, name, stem, leaf, shape[0]);
  }

  void add_of_block(const BlockKind& kind, const std::string& name, const std::string& stem,
                    const std::string& leaf, int64_t rows) {
    const std::string_view rest = std::string_view(stem).substr(kind.original.size());
    const size_t dot = rest.find('.');
    if (dot == std::string_view::npos) return;
    const std::string block = std::string(kind.diffusers) + std::string(rest.substr(0, dot + 1));
    const std::string_view own = rest.substr(dot + 1);
    for (const Renamed& renamed : kind.renamed)
      if (own == renamed.original)
        pieces_[block + std::string(renamed.diffusers) + leaf] = {name, 0, rows, rows};
    for (const Stack& stack : kHunyuanStacks) {
      if (own != stack.original) continue;
      const int64_t width = part_rows(*base_, stem);
      const auto parts = static_cast<int64_t>(stack.diffusers.size());
      LACUNA_CHECK(width > 0 && rows > 0 && (rows - 1) / width >= parts - 1,
                   "hunyuanvideo: {}: {} has {} rows, expected {} parts as high as it is wide",
                   base_->describe(), name, rows, parts);
      for (int64_t i = 0; i < parts; ++i)
        pieces_[block + std::string(stack.diffusers[static_cast<size_t>(i)]) + leaf] = {
            name, i * width, i + 1 < parts ? width : rows - i * width, rows};
    }
  }

  const Piece& find(std::string_view name) const {
    const auto found = pieces_.find(name);
    LACUNA_CHECK(found != pieces_.end(), "{}: no tensor {}", describe(), name);
    return found->second;
  }

  // The shape to ask for when the part should have the wanted one.
  static std::vector<int64_t> whole(const Piece& piece, std::span<const int64_t> wanted) {
    std::vector<int64_t> shape(wanted.begin(), wanted.end());
    if (piece.rows != piece.of) shape[0] = piece.of;
    return shape;
  }

  TensorView rows_of(std::string_view name, const Piece& piece, const TensorView& all,
                     std::span<const int64_t> wanted) const {
    if (piece.rows == piece.of) return all;
    LACUNA_CHECK(piece.rows == wanted[0], "{}: {} has {} rows of {}, expected {}", describe(), name,
                 piece.rows, piece.stored, wanted[0]);
    return all.slice(piece.begin, piece.begin + piece.rows);
  }

  TensorView swapped(std::string_view name, const TensorView& stored) {
    const auto found = swapped_.find(name);
    if (found != swapped_.end()) return found->second;
    LACUNA_CHECK(stored.shape[0] % 2 == 0, "{}: {} has {} rows, expected an even number",
                 describe(), name, stored.shape[0]);
    Tensor copy = copy_of(stored);
    const int64_t bytes = storage_bytes(stored.dtype, stored.numel()), half = bytes / 2;
    const auto* from = static_cast<const char*>(stored.data);
    auto* to = static_cast<char*>(copy.view().data);
    std::memcpy(to, from + half, static_cast<size_t>(half));
    std::memcpy(to + half, from, static_cast<size_t>(half));
    return swapped_.emplace(std::string(name), std::move(copy)).first->second;
  }

  std::unique_ptr<WeightSource> base_;
  Pieces pieces_;  // by diffusers name
  std::map<std::string, Tensor, std::less<>> swapped_;
  int64_t swapped_bytes_ = 0;  // when all are loaded
};

}  // namespace

std::unique_ptr<WeightSource> with_hunyuan_names(std::unique_ptr<WeightSource> source) {
  // Diffusers first: the hash source has every name, and its weights are keyed by diffusers names.
  if (source->has("transformer_blocks.0.attn.add_q_proj.weight") &&
      source->has("context_embedder.proj_in.weight"))
    return source;
  LACUNA_CHECK(source->has("double_blocks.0.img_attn_qkv.weight") &&
                   source->has("txt_in.input_embedder.weight"),
               "hunyuanvideo: {} has neither `transformer_blocks.0.attn.add_q_proj.weight` "
               "(diffusers) nor `double_blocks.0.img_attn_qkv.weight` (original), expected a "
               "HunyuanVideo transformer",
               source->describe());
  return std::make_unique<HunyuanOriginal>(std::move(source));
}

HunyuanConfig infer_hunyuan_config(const WeightSource& source) {
  const auto shape_of = [&](const char* name, size_t rank) {
    LACUNA_CHECK(source.has(name), "hunyuanvideo: {} lacks `{}`, expected it to tell the sizes",
                 source.describe(), name);
    std::vector<int64_t> shape = source.shape(name);
    LACUNA_CHECK(shape.size() == rank, "hunyuanvideo: {}: `{}` has {} dimensions, expected {}",
                 source.describe(), name, shape.size(), rank);
    return shape;
  };
  const auto count = [&](std::string_view prefix, std::string_view name) {
    constexpr int64_t kMost = 257;  // one more than validate() takes
    int64_t blocks = 0;
    while (blocks < kMost && source.has(fmt::format("{}.{}.{}", prefix, blocks, name))) ++blocks;
    return blocks;
  };
  HunyuanConfig config;
  const std::vector<int64_t> patch = shape_of("x_embedder.proj.weight", 5);
  const int64_t dim = patch[0];
  config.head_dim = shape_of("transformer_blocks.0.attn.norm_q.weight", 1)[0];
  LACUNA_CHECK(config.head_dim == 128 && dim > 0 && dim % 128 == 0,
               "hunyuanvideo: {}: heads of {} in a width of {}, expected heads of 128; others need "
               "a config.json",
               source.describe(), config.head_dim, dim);
  config.num_heads = dim / 128;
  config.channels = patch[1];
  config.patch_t = patch[2];
  config.patch_side = patch[3];
  LACUNA_CHECK(patch[3] == patch[4], "hunyuanvideo: {}: a patch of {} x {}, expected a square",
               source.describe(), patch[3], patch[4]);
  config.num_layers = count("transformer_blocks", "attn.norm_q.weight");
  config.num_single_layers = count("single_transformer_blocks", "attn.norm_q.weight");
  config.num_refiner_layers =
      count("context_embedder.token_refiner.refiner_blocks", "norm1.weight");
  config.mlp_ratio =
      static_cast<double>(shape_of("transformer_blocks.0.ff.net.0.proj.weight", 2)[0]) /
      static_cast<double>(dim);
  config.text_dim = shape_of("context_embedder.proj_in.weight", 2)[1];
  config.pooled_dim = shape_of("time_text_embed.text_embedder.linear_1.weight", 2)[1];
  config.guidance_embeds = source.has("time_text_embed.guidance_embedder.linear_1.weight");
  config.validate();
  const int64_t outputs = shape_of("proj_out.weight", 2)[0];
  LACUNA_CHECK(outputs == config.patch_values(),
               "hunyuanvideo: {}: {} values of a patch in and {} out, expected as many "
               "(image-to-video networks are not supported)",
               source.describe(), config.patch_values(), outputs);
  return config;
}

}  // namespace lacuna
