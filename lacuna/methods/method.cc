// SPDX-License-Identifier: Apache-2.0
#include "lacuna/methods/method.h"

#include "lacuna/methods/selection.h"

namespace lacuna {

int64_t Method::held_bytes(const HoldArgs& args) const {
  const auto blocks = [&](std::string_view side) -> int64_t {
    for (const ParamSpec& spec : specs())
      if (spec.name == "block" || spec.name == side)
        return BlockLayout::uniform(args.sizes.seq_len(),
                                    static_cast<int32_t>(args.params.get_int(spec.name)))
            .num_blocks;
    return 0;
  };
  return mask_bytes(args.sizes.num_heads, blocks("block_q"), blocks("block_k"));
}

}  // namespace lacuna
