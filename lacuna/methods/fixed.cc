// SPDX-License-Identifier: Apache-2.0
// Fixed: masks that were chosen elsewhere, handed in by a profile (CalibAtt's vote, a searched
// window) or by a replay of recorded masks. Copies the asked heads out of SelectArgs::fixed.
//
// Text rows and columns are added, because a recorded mask may come from a run without text.
#include "lacuna/core/error.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

class Fixed final : public Method {
 public:
  std::string_view name() const override { return "fixed"; }
  std::string_view summary() const override { return "Masks from a profile or a replay"; }
  std::span<const ParamSpec> specs() const override { return {}; }
  bool static_mask() const override { return true; }
  bool takes_masks() const override { return true; }
  int64_t held_bytes(const HoldArgs& args) const override {
    if (args.fixed == nullptr) return 0;
    const Selection& s = *args.fixed;
    const bool made = s.mask.empty() && args.drops;
    return selection_bytes(s) +
           (made ? mask_bytes(args.sizes.num_heads, s.q_layout.num_blocks, s.k_layout.num_blocks)
                 : 0);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    LACUNA_CHECK(args.fixed != nullptr,
                 "fixed: no mask given, expected one from a profile or replay");
    const int64_t num_heads = args.q.shape[0];
    check_selection(*args.fixed, "fixed", num_heads, args.seq_len(), 0);
    Selection selection = pick_heads(*args.fixed, args.head_ids);
    if (!selection.mask.empty()) keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& fixed_method() {
  static const Fixed method;
  return method;
}

}  // namespace lacuna
