// SPDX-License-Identifier: Apache-2.0
// What one attention call computes, for those who write it down and those who say it.
#pragma once

#include <string>

#include "lacuna/engine/policy.h"
#include "lacuna/methods/method.h"

namespace lacuna {

struct SiteSelection {
  // Of all heads; an empty mask is dense. What it wants from the kernel is what was asked for in
  // this call: a kernel that reports block mass may sum in another order.
  Selection selection;
  Compensation compensate = Compensation::none;
  std::string method, reason;  // as in TraceEntry
};

// Throws Error unless every block is one vote of a skip rule (kVoteRows x kVoteKeys tokens at
// most): only then the blocks that the rule dropped say all that it did.
void check_votes(const AttendParams& params);

}  // namespace lacuna
