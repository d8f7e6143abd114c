// SPDX-License-Identifier: Apache-2.0
// lacuna.Mask: which blocks of attention are computed, for all heads.
#pragma once

#include "lacuna/methods/method.h"

namespace lacuna::python {

// `selection.mask` is never empty. Token orders and uneven blocks are those of the method.
struct Mask {
  Selection selection;
  const BlockLayout& q() const { return selection.q_layout; }
  const BlockLayout& k() const { return selection.k_layout; }
  bool moves_tokens() const {
    return !selection.q_order.empty() || !selection.k_order.empty() ||
           !selection.row_source.empty();
  }
};

}  // namespace lacuna::python
