// SPDX-License-Identifier: Apache-2.0
// The sections that `inspect` is made of.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/recording.h"
#include "lacuna/engine/trace_file.h"
#include "lacuna/methods/method.h"
#include "lacuna/report/sections.h"

namespace lacuna {

// Density, refreshes and times per step, per layer and per both, and what ran where.
void add_trace_sections(const TraceFile& trace, Json& sections);

// A selection at a place of a run.
struct PlacedMask {
  int step = 0, layer = 0;
  Branch branch = Branch::cond;
  size_t selection = 0;
  std::string note;
};
struct MaskSeries {
  std::vector<PlacedMask> places;
  int64_t num_heads = 0;
  VideoGrid grid;
  std::function<Selection(size_t)> selection;
};
// `count` of the values, evenly spread, the first and the last among them.
std::vector<int> some_of(const std::set<int>& values, int64_t count);
// Density per head over steps, what heads attend to, how alike masks of steps are, a gallery. Of
// the conditional branch, or of the other where that is all there is.
void add_mask_sections(const MaskSeries& series, Json& sections);

// Rules in words and their fixed masks.
void add_profile_sections(const Profile& profile, Json& sections);

// Blocks of 64 x 64: the density each head needs for a recall of 90, 95 and 99 %, and the masks of
// 95 %. Runs dense attention.
void add_recording_sections(std::span<const RecordedCall> calls, Backend& backend, Json& sections);

}  // namespace lacuna
