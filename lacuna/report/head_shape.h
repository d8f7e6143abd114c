// SPDX-License-Identifier: Apache-2.0
// What a head attends to, measured from its mask.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "lacuna/core/video_grid.h"
#include "lacuna/methods/method.h"

namespace lacuna {

// A mask of one head in raster order, whatever order and blocks it was made in: cells of
// `cell_tokens` queries x keys and the share of kept pairs in each.
struct CellMask {
  int64_t cells = 0, cell_tokens = 1;
  std::vector<float> share;  // [cells, cells], 0..1

  // At most `side` cells a side, averaged.
  CellMask shrunk(int64_t side) const;
  // Kept pairs of both / of either; 1 when neither keeps any. Cells must be alike.
  double jaccard(const CellMask& other) const;
};
// At most 256 cells a side. An empty mask is dense. Rows that copy others (row_source) count as
// their own blocks say.
CellMask cell_mask(const Selection& selection, int64_t head);

// Parts of the attention map, by the offset d = key - query in raster tokens and T = tokens per
// frame; a cell belongs to the first that fits:
//   sink    keys of the first frame, and text
//   band    |d| <= T / 2: the diagonal
//   stripe  |d - m T| <= T / 8 for a whole m: the same place in another frame
//   other
// Half widths are at least one cell.
enum class Region : uint8_t { sink, band, stripe, other };
inline constexpr int kNumRegions = 4;

struct HeadShape {
  double density = 1.0;
  std::array<double, kNumRegions> share{};  // of the kept pairs
  std::array<double, kNumRegions> lift{};   // share of kept pairs / share of all pairs; 1 = no bias
  // dense (density >= 0.95); local (band), temporal (stripe), sink: the region whose lift is at
  // least 1.5 and 1.25 times that of the next; mixed: two or more of them near each other; global:
  // none reaches 1.5.
  std::string kind;
};
std::string head_kind(const HeadShape& shape);  // from density and lifts
HeadShape head_shape(const CellMask& mask, const VideoGrid& grid);

// "raster", "frame-minor" (same place, all frames), "hilbert", or "permuted".
std::string order_name(const TokenOrder& order, int64_t head, const VideoGrid& grid);

}  // namespace lacuna
