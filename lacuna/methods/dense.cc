// SPDX-License-Identifier: Apache-2.0
// Dense: every block is kept. The yardstick, and with a skip rule the host of BLASST
// (arXiv 2512.12087) and cumulative-energy filtering (arXiv 2606.16317), which have no mask.
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr int32_t kBlock = 128;

class Dense final : public Method {
 public:
  std::string_view name() const override { return "dense"; }
  std::string_view summary() const override { return "Keeps every block"; }
  std::span<const ParamSpec> specs() const override { return {}; }
  bool static_mask() const override { return true; }
  int64_t held_bytes(const HoldArgs& args) const override {
    const int64_t blocks = BlockLayout::uniform(args.sizes.seq_len(), kBlock).num_blocks;
    return args.drops ? mask_bytes(args.sizes.num_heads, blocks, blocks) : 0;
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    Selection selection;
    selection.q_layout = selection.k_layout = BlockLayout::uniform(args.seq_len(), kBlock);
    return selection;
  }
};

}  // namespace

const Method& dense_method() {
  static const Dense method;
  return method;
}

}  // namespace lacuna
