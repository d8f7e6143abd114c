// SPDX-License-Identifier: Apache-2.0
// Sparse VideoGen (SVG1, arXiv 2502.01776): every head is either spatial (near frames) or temporal
// (one position in all frames). Temporal heads see their tokens position by position (token =
// position * frames + frame), after which both kinds keep the same band of keys.
//
// Which kind (online profiling; sample_mse in the code): exact attention of a few rows, dense and
// under each of two band masks; the mask with the smaller mean squared error wins, spatial on a
// tie. Band of this profile: key blocks with |i - j| < floor(profile_frames * T / block), T tokens
// per frame, in the head's order, and the first T keys of that order.
// Band that runs (code sparsity_to_width): with N tokens, d = density - 2 text / N,
//   |q - k| <= N (1 - sqrt(1 - d)), rounded up to whole blocks,
// and the first T keys.
//
// Where paper and code differ this follows the code: rows are drawn with replacement from the first
// `max_row` tokens (the paper: 1 % of all rows); the profile's band does not depend on `density`;
// the sink of a temporal head is the first T keys of its own order, which are the first T / frames
// positions in all frames and not the first frame. The scripts call the density "sparsity".
//
// Deviations: the sample follows from the site alone, so a run can be repeated; blocks at the edge
// of the band and of the sink are kept whole, where the code masks tokens inside them; the
// profile's band is at least the diagonal; text is seen by the profile and kept by the mask.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kSvgSpecs[] = {
    {"density", 0.3, 0.001, 1.0, false, "share of pairs the band keeps"},
    {"samples", 64, 1, 4096, true, "query rows that tell spatial from temporal heads"},
    {"max_row", 10000, 0, 1 << 24, true, "rows come from the first so many tokens; 0 = all"},
    {"profile_frames", 2, 0, 1024, false, "half width in frames of the bands that are compared"},
    {"block", 128, 1, 1024, true, "tokens per block"},
    {"first_frame", 1, 0, 1, true, "1 keeps as many leading keys as a frame has"},
};

AttendParams attend_params(const TensorView& q, const TensorView& k, const TensorView& v,
                           const TensorView& out, float sm_scale) {
  AttendParams p;
  p.q = q.data, p.k = k.data, p.v = v.data, p.out = out.data;
  p.dtype = q.dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  p.q_head_stride = q.stride[0], p.q_token_stride = q.stride[1];
  p.k_head_stride = k.stride[0], p.k_token_stride = k.stride[1];
  p.v_head_stride = v.stride[0], p.v_token_stride = v.stride[1];
  p.out_head_stride = out.stride[0], p.out_token_stride = out.stride[1];
  p.num_heads = static_cast<int32_t>(q.shape[0]);
  p.q_len = q.shape[1], p.k_len = k.shape[1];
  p.head_dim = static_cast<int32_t>(q.shape[2]);
  p.sm_scale = sm_scale;
  // One row per query block, so that every row has its own list of keys.
  p.block_q = 1;
  p.num_q_blocks = static_cast<int32_t>(p.q_len);
  p.num_k_blocks = BlockLayout::uniform(p.k_len, p.block_k).num_blocks;
  return p;
}

double squared_error(const TensorView& a, const TensorView& b) {
  const auto sum = [n = a.numel()](const auto* x, const auto* y) {
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      const double difference = double{static_cast<float>(x[i])} - static_cast<float>(y[i]);
      total += difference * difference;
    }
    return total;
  };
  return a.dtype == DType::f32 ? sum(a.as<float>(), b.as<float>())
                               : sum(a.as<BFloat16>(), b.as<BFloat16>());
}

// Tells spatial heads from temporal ones.
class HeadProfile {
 public:
  HeadProfile(const SelectArgs& args, const TokenOrder& frame_minor)
      : args_(args), frame_minor_(frame_minor), layout_(layout_of(args)) {
    draw_rows();
  }

  // Per head of args.head_ids: 1 = temporal.
  std::vector<char> temporal_heads() {
    const TensorView &q = args_.q, sampled = sampled_queries();
    const auto output = [&](const char* name) {
      return args_.workspace.host(name, q.dtype, {q.shape[0], num_rows(), q.shape[2]});
    };
    const TensorView exact = output("svg.exact"), banded = output("svg.banded");
    AttendParams p = attend_params(sampled, args_.k, args_.v, exact, args_.sm_scale);
    p.num_heads = static_cast<int32_t>(args_.head_ids.size());
    p.head_ids = args_.head_ids.data();
    args_.backend.attend(p);

    std::vector<int32_t> places = rows_;
    const BlockMask spatial = keys_of(places);
    std::vector<int32_t> place_of(static_cast<size_t>(args_.grid.tokens()));
    for (size_t place = 0; place < place_of.size(); ++place)
      place_of[frame_minor_.order[place]] = static_cast<int32_t>(place);
    for (int32_t& place : places) place = place_of[place];
    const BlockMask temporal = keys_of(places);

    std::vector<char> kinds;
    for (const int32_t h : args_.head_ids) {
      const TensorView truth = exact.slice(h, h + 1), out = banded.slice(h, h + 1);
      const auto error = [&](const BlockMask& keys, const TensorView& k, const TensorView& v) {
        AttendParams one = attend_params(sampled.slice(h, h + 1), k, v, out, args_.sm_scale);
        one.block_k = layout_.block;
        one.num_k_blocks = layout_.num_blocks;
        one.mask = keys.words();
        args_.backend.attend(one);
        return squared_error(out, truth);
      };
      const double spatial_error = error(spatial, args_.k.slice(h, h + 1), args_.v.slice(h, h + 1));
      const double temporal_error =
          error(temporal, reordered("svg.k", args_.k, h), reordered("svg.v", args_.v, h));
      kinds.push_back(temporal_error < spatial_error);
    }
    return kinds;
  }

 private:
  static BlockLayout layout_of(const SelectArgs& args) {
    return BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block")));
  }
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }

  void draw_rows() {
    const Site& s = args_.site;
    const std::string name =
        fmt::format("svg.rows.{}.{}.{}.{}", s.step, s.layer, static_cast<int>(s.branch), s.expert);
    const int64_t max_row = args_.params.get_int("max_row"), tokens = args_.grid.tokens();
    const int64_t limit = max_row == 0 ? tokens : std::min(max_row, tokens);
    rows_.resize(static_cast<size_t>(std::min(args_.params.get_int("samples"), tokens)));
    for (size_t i = 0; i < rows_.size(); ++i) {
      const double share = 0.5 * (hash_uniform(name, i) + 1.0);
      rows_[i] = static_cast<int32_t>(share * static_cast<double>(limit));
    }
  }

  // [num_heads, rows, head_dim]; heads that are not asked for stay as they are.
  TensorView sampled_queries() {
    const TensorView& q = args_.q;
    const TensorView sampled =
        args_.workspace.get("svg.q", q.dtype, {q.shape[0], num_rows(), q.shape[2]});
    for (const int32_t h : args_.head_ids)
      args_.backend.gather_tokens(q.slice(h, h + 1), rows_.data(), 0, sampled.slice(h, h + 1));
    return sampled;
  }

  // Key blocks that rows at `places` of an order see under the profile's mask.
  BlockMask keys_of(const std::vector<int32_t>& places) const {
    const int64_t frame = args_.grid.tokens_per_frame(), block = layout_.block;
    const double frames = args_.params.get("profile_frames");
    const int64_t reach =
        std::max<int64_t>(1, static_cast<int64_t>(frames * static_cast<double>(frame)) / block);
    BlockMask mask(1, static_cast<int32_t>(num_rows()), layout_.num_blocks);
    if (args_.params.get_int("first_frame") != 0)
      mask.keep_k_blocks(0, static_cast<int32_t>((frame + block - 1) / block));
    if (args_.text_tokens > 0)
      mask.keep_k_blocks(static_cast<int32_t>(args_.grid.tokens() / block), layout_.num_blocks);
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t own = places[i] / block;
      const int64_t end = std::min<int64_t>(own + reach, layout_.num_blocks);
      for (int64_t kb = std::max<int64_t>(own - reach + 1, 0); kb < end; ++kb)
        mask.set(0, static_cast<int32_t>(i), static_cast<int32_t>(kb));
    }
    return mask;
  }

  // One head in frame-minor order, text last.
  TensorView reordered(const char* name, const TensorView& x, int32_t head) {
    const TensorView moved = args_.workspace.get(name, x.dtype, {1, x.shape[1], x.shape[2]});
    args_.backend.gather_tokens(x.slice(head, head + 1), frame_minor_.order.data(), 0, moved);
    return moved;
  }

  const SelectArgs& args_;
  const TokenOrder& frame_minor_;  // of all tokens, text last
  BlockLayout layout_;
  std::vector<int32_t> rows_;  // raster tokens
};

class Svg final : public Method {
 public:
  std::string_view name() const override { return "svg"; }
  std::string_view summary() const override {
    return "Spatial or temporal band, told per head online (Sparse VideoGen, arXiv 2502.01776)";
  }
  std::span<const ParamSpec> specs() const override { return kSvgSpecs; }
  std::string_view density_parameter(const Params& /*params*/) const override { return "density"; }
  bool moves_tokens(const Params& /*params*/) const override { return true; }
  int64_t held_bytes(const HoldArgs& args) const override {
    return Method::held_bytes(args) + 2 * order_bytes(args.sizes.num_heads, args.sizes.seq_len());
  }

  void check(const Params& params) const override {
    for (const ParamSpec& spec : kSvgSpecs)
      LACUNA_CHECK(spec.name == "density" || !params.per_head(spec.name),
                   "svg: {} per head, expected one value for all heads", spec.name);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    check(args.params);
    Selection selection;
    selection.q_layout = selection.k_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block")));
    TokenOrder frame_minor = frame_minor_order(args.grid);
    append_text(frame_minor, args.text_tokens);
    const std::vector<char> temporal = HeadProfile(args, frame_minor).temporal_heads();
    selection.q_order = selection.k_order = orders(temporal, frame_minor);

    const int32_t blocks = selection.q_layout.num_blocks;
    selection.mask = BlockMask(static_cast<int64_t>(temporal.size()), blocks, blocks);
    for (size_t i = 0; i < temporal.size(); ++i) keep_band(args, i, selection);
    if (args.params.get_int("first_frame") != 0) {
      const int64_t block = selection.k_layout.block, frame = args.grid.tokens_per_frame();
      selection.mask.keep_k_blocks(0, static_cast<int32_t>((frame + block - 1) / block));
    }
    keep_text(selection, args.grid.tokens());
    return selection;
  }

 private:
  // A row per head also where all heads are spatial: which rows there are may not depend on which
  // heads are asked for.
  static TokenOrder orders(const std::vector<char>& temporal, const TokenOrder& frame_minor) {
    const int64_t seq_len = frame_minor.seq_len;
    TokenOrder all{seq_len, static_cast<int64_t>(temporal.size()), {}};
    all.order.resize(temporal.size() * static_cast<size_t>(seq_len));
    for (size_t i = 0; i < temporal.size(); ++i) {
      const auto row = all.order.begin() + static_cast<int64_t>(i) * seq_len;
      if (temporal[i]) {
        std::copy(frame_minor.order.begin(), frame_minor.order.end(), row);
      } else {
        std::iota(row, row + seq_len, 0);
      }
    }
    return all;
  }

  static void keep_band(const SelectArgs& args, size_t i, Selection& selection) {
    const auto tokens = static_cast<double>(args.seq_len());
    const double density = args.params.get("density", args.head_ids[i]) -
                           2.0 * static_cast<double>(args.text_tokens) / tokens;
    const double width = tokens * (1.0 - std::sqrt(1.0 - std::max(density, 0.0)));
    const auto reach = static_cast<int32_t>(std::ceil(width / selection.q_layout.block));
    const int32_t blocks = selection.q_layout.num_blocks;
    for (int32_t qb = 0; qb < blocks; ++qb)
      for (int32_t kb = std::max(qb - reach, 0); kb <= std::min(qb + reach, blocks - 1); ++kb)
        selection.mask.set(static_cast<int64_t>(i), qb, kb);
  }
};

}  // namespace

const Method& svg_method() {
  static const Svg method;
  return method;
}

}  // namespace lacuna
