// SPDX-License-Identifier: Apache-2.0
// CalibAtt (arXiv 2603.05503) at inference: what its calibration chose offline.
//
// A head either takes its mask from the profile, as `fixed` does, or is *repetitive* (anchors > 0,
// section 2.5): its spatial rows of a frame attend nearly alike, so only `anchors` of them, equally
// spaced, are computed against all keys, and every other token takes the output of the token in its
// column of the nearest computed row (same frame).
//
// The published kernel gets the anchor rows as queries. Here they come first in the head's query
// order; the query blocks after them keep nothing, and rows are copied when the kernel is done. A
// query block that the anchors end in is computed whole, then overwritten where it copies.
// Text rows are never copied. With anchors >= the grid's height the head is dense.
#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/methods/anchors.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kCalibAttSpecs[] = {
    {"anchors", 0, 0, 1024, true,
     "spatial rows of a frame that stand for all; 0 takes the profile's mask"},
};

// One row per head of `heads`, raster.
void widen(TokenOrder& order, int64_t heads, int64_t seq_len) {
  if (!order.empty()) return;
  order = {seq_len, heads, {}};
  order.order.reserve(static_cast<size_t>(heads * seq_len));
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < seq_len; ++t) order.order.push_back(static_cast<int32_t>(t));
}

// Makes head i of the selection repetitive.
void repeat(Selection& selection, int64_t i, const SelectArgs& args, int32_t anchors) {
  const int64_t seq_len = args.seq_len(), width = args.grid.width;
  const auto height = static_cast<int32_t>(args.grid.height);
  const auto num_heads = static_cast<int64_t>(args.head_ids.size());
  widen(selection.q_order, num_heads, seq_len);
  widen(selection.row_source, num_heads, seq_len);
  int32_t* order = selection.q_order.order.data() + i * seq_len;
  int32_t* source = selection.row_source.order.data() + i * seq_len;
  const std::vector<int32_t> nearest = nearest_anchors(height, anchors);
  std::vector<int32_t> copying;
  int64_t computed = 0;
  for (int64_t row = 0; row < args.grid.frames * height; ++row) {
    const int64_t anchor = row - row % height + nearest[static_cast<size_t>(row % height)];
    for (int64_t x = 0; x < width; ++x) {
      const auto token = static_cast<int32_t>(row * width + x);
      source[token] = static_cast<int32_t>(anchor * width + x);
      if (anchor == row) {
        order[computed++] = token;
      } else {
        copying.push_back(token);
      }
    }
  }
  std::copy(copying.begin(), copying.end(), order + computed);
  for (int32_t qb = 0; qb < selection.mask.num_q_blocks(); ++qb)
    for (int32_t kb = 0; kb < selection.mask.num_k_blocks(); ++kb)
      if (selection.q_layout.begin(i, qb) < computed) {
        selection.mask.set(i, qb, kb);
      } else {
        selection.mask.clear(i, qb, kb);
      }
}

class CalibAtt final : public Method {
 public:
  std::string_view name() const override { return "calibatt"; }
  std::string_view summary() const override {
    return "Masks voted offline, repetitive heads by anchor rows (CalibAtt), from a profile";
  }
  std::span<const ParamSpec> specs() const override { return kCalibAttSpecs; }
  bool static_mask() const override { return true; }
  bool takes_masks() const override { return true; }
  bool moves_tokens(const Params& params) const override {
    const std::span<const double> anchors = params.values("anchors");
    return std::any_of(anchors.begin(), anchors.end(), [](double count) { return count > 0; });
  }
  int64_t held_bytes(const HoldArgs& args) const override {
    const int64_t moved = order_bytes(args.sizes.num_heads, args.sizes.seq_len());
    return (args.fixed != nullptr ? selection_bytes(*args.fixed) : 0) +
           (moves_tokens(args.params) ? 2 * moved : 0);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    LACUNA_CHECK(args.fixed != nullptr, "calibatt: no masks given, expected them from a profile");
    check_selection(*args.fixed, "calibatt", args.q.shape[0], args.seq_len(), 0);
    LACUNA_CHECK(
        args.fixed->q_order.empty() && args.fixed->q_layout.offsets.empty() &&
            !args.fixed->mask.empty(),
        "calibatt: masks with an order or explicit offsets, expected uniform raster blocks");
    Selection selection = pick_heads(*args.fixed, args.head_ids);
    for (size_t i = 0; i < args.head_ids.size(); ++i) {
      const int64_t anchors = args.params.get_int("anchors", args.head_ids[i]);
      if (anchors > 0)
        repeat(selection, static_cast<int64_t>(i), args, static_cast<int32_t>(anchors));
    }
    keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& calibatt_method() {
  static const CalibAtt method;
  return method;
}

}  // namespace lacuna
