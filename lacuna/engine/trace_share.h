// SPDX-License-Identifier: Apache-2.0
// One trace of a run whose heads and guidance branches lay in several processes.
#pragma once

#include <cstddef>

#include "lacuna/core/team.h"
#include "lacuna/engine/trace.h"

namespace lacuna {

// From entry `first` on, the trace becomes on every rank that of all ranks, by branch and layer: of
// calls of one site heads add up, densities are means over heads, times are those of the slowest
// rank, and the mask hash is made of theirs, by rank; so it differs from that of one process.
void share_trace(Team& team, Trace& trace, size_t first);

}  // namespace lacuna
