// SPDX-License-Identifier: Apache-2.0
// XAttention (arXiv 2503.16428, Algorithm 1), non-causal as run on video.
//
// Order: raster. Score: antidiagonal sums (Backend::antidiagonal_scores). With groups of `stride` =
// S tokens, L[g][u] = sum_{i < S} q[gS + S - 1 - i] . k[uS + i], z = L * sm_scale / S, softmax over
// u, summed inside each block. Select: per query block the fewest key blocks whose mass reaches
// top_p of the row's; top_p may differ per head.
//
// The scale is that of the published code, sm_scale / S (mean scaled logit); the paper prints
// 1 / sqrt(d S). The paper selects over a whole map, the code per query block: we follow the code.
//
// Deviations: a short last group divides by the pairs it has and padding takes no mass; scores stay
// f32 (published: bf16 scores, f64 comparison); text rows and columns are always kept (published:
// no special treatment). compat = 1 brings back the published padding and always keeps key block 0,
// which the published code does by scattering rejected indices to 0. keep_sink keeps query block 0
// dense and keep_recent the diagonal, as the published options do; first_frame keeps all keys
// of the first frame and is ours.
#include "lacuna/core/error.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kXAttentionSpecs[] = {
    {"top_p", 0.9, 0.001, 1.0, false, "share of estimated mass each query block keeps"},
    {"stride", 16, 4, 32, true, "tokens per antidiagonal: 4, 8, 16 or 32; higher is cheaper"},
    {"block", 128, 4, 1024, true, "tokens per block, a multiple of stride"},
    {"keep_sink", 0, 0, 1, true, "1 keeps the row of query block 0 dense"},
    {"keep_recent", 0, 0, 1, true, "1 keeps the diagonal"},
    {"first_frame", 0, 0, 1, true, "1 keeps all keys of the first frame"},
    {"compat", 0, 0, 1, true, "1 keeps the published handling of padding and of key block 0"},
};

class XAttention final : public Method {
 public:
  std::string_view name() const override { return "xattention"; }
  std::string_view summary() const override {
    return "Antidiagonal scores, top-p per query block (XAttention, arXiv 2503.16428)";
  }
  std::span<const ParamSpec> specs() const override { return kXAttentionSpecs; }
  std::string_view density_parameter(const Params& /*params*/) const override { return "top_p"; }

  void check(const Params& params) const override {
    for (const ParamSpec& spec : kXAttentionSpecs)
      LACUNA_CHECK(spec.name == "top_p" || !params.per_head(spec.name),
                   "xattention: {} per head, expected one value for all heads", spec.name);
    const int64_t stride = params.get_int("stride"), block = params.get_int("block");
    LACUNA_CHECK(stride == 4 || stride == 8 || stride == 16 || stride == 32,
                 "xattention: stride {}, expected 4, 8, 16 or 32", stride);
    LACUNA_CHECK(block % stride == 0, "xattention: block {}, expected a multiple of stride {}",
                 block, stride);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    check(args.params);
    const bool compat = args.params.get_int("compat") != 0;
    Selection selection;
    selection.q_layout = selection.k_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block")));
    const auto num_heads = static_cast<int64_t>(args.head_ids.size());
    const int32_t blocks = selection.q_layout.num_blocks;
    const TensorView scores =
        args.workspace.get("xattention.scores", DType::f32, {num_heads, blocks, blocks});
    args.backend.antidiagonal_scores(
        args.q, args.k, args.head_ids, selection.q_layout, selection.k_layout, args.sm_scale,
        static_cast<int32_t>(args.params.get_int("stride")), compat, scores);

    selection.mask = BlockMask(num_heads, blocks, blocks);
    if (compat) selection.mask.keep_k_blocks(0, 1);
    if (args.params.get_int("keep_sink") != 0) selection.mask.keep_q_blocks(0, 1);
    if (args.params.get_int("keep_recent") != 0)
      for (int64_t i = 0; i < num_heads; ++i)
        for (int32_t b = 0; b < blocks; ++b) selection.mask.set(i, b, b);
    if (args.params.get_int("first_frame") != 0) {
      const int64_t block = selection.k_layout.block;
      selection.mask.keep_k_blocks(
          0, static_cast<int32_t>((args.grid.tokens_per_frame() + block - 1) / block));
    }
    std::vector<float> top_p(args.head_ids.size());
    for (size_t i = 0; i < top_p.size(); ++i)
      top_p[i] = static_cast<float>(args.params.get("top_p", args.head_ids[i]));
    args.backend.select_top_p(scores, top_p, selection.mask);
    keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& xattention_method() {
  static const XAttention method;
  return method;
}

}  // namespace lacuna
