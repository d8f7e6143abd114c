// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/head_shape.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace lacuna {
namespace {

constexpr int64_t kMaxCells = 256;
constexpr double kDense = 0.95, kLift = 1.5, kAhead = 1.25;

struct Count {
  int32_t cell, tokens;
};

// Tokens of every block per raster cell.
std::vector<std::vector<Count>> cells_of_blocks(const BlockLayout& layout, const TokenOrder& order,
                                                int64_t head, int64_t cell_tokens) {
  std::vector<std::vector<Count>> blocks(static_cast<size_t>(layout.num_blocks));
  std::vector<int32_t> cells;
  for (int32_t b = 0; b < layout.num_blocks; ++b) {
    cells.clear();
    for (int64_t p = layout.begin(head, b); p < layout.end(head, b); ++p) {
      const int64_t token = order.empty() ? p : order.head(head)[p];
      cells.push_back(static_cast<int32_t>(token / cell_tokens));
    }
    std::sort(cells.begin(), cells.end());
    for (const int32_t cell : cells) {
      if (blocks[b].empty() || blocks[b].back().cell != cell) blocks[b].push_back({cell, 0});
      ++blocks[b].back().tokens;
    }
  }
  return blocks;
}

int64_t tokens_in(int64_t cell, int64_t cell_tokens, int64_t seq_len) {
  return std::min(cell_tokens, seq_len - cell * cell_tokens);
}

Region region_of(int64_t i, int64_t j, int64_t cell, const VideoGrid& grid) {
  const int64_t frame = grid.tokens_per_frame(), d = std::abs(j - i) * cell;
  if (j * cell < frame || j * cell >= grid.tokens()) return Region::sink;
  if (d <= std::max(cell, frame / 2)) return Region::band;
  const int64_t past = d % frame;
  return std::min(past, frame - past) <= std::max(cell, frame / 8) ? Region::stripe : Region::other;
}

}  // namespace

CellMask CellMask::shrunk(int64_t side) const {
  const int64_t factor = (cells + side - 1) / side;
  if (factor == 1) return *this;
  CellMask small{(cells + factor - 1) / factor, cell_tokens * factor, {}};
  small.share.resize(static_cast<size_t>(small.cells * small.cells));
  for (int64_t i = 0; i < small.cells; ++i)
    for (int64_t j = 0; j < small.cells; ++j) {
      double sum = 0.0;
      int64_t count = 0;
      for (int64_t y = i * factor; y < std::min((i + 1) * factor, cells); ++y)
        for (int64_t x = j * factor; x < std::min((j + 1) * factor, cells); ++x, ++count)
          sum += share[static_cast<size_t>(y * cells + x)];
      small.share[static_cast<size_t>(i * small.cells + j)] =
          static_cast<float>(sum / static_cast<double>(count));
    }
  return small;
}

double CellMask::jaccard(const CellMask& other) const {
  double both = 0.0, either = 0.0;
  for (size_t i = 0; i < share.size(); ++i) {
    both += std::min(share[i], other.share[i]);
    either += std::max(share[i], other.share[i]);
  }
  return either == 0.0 ? 1.0 : both / either;
}

CellMask cell_mask(const Selection& s, int64_t head) {
  const int64_t seq_len = s.q_layout.seq_len;
  CellMask result;
  result.cell_tokens = (seq_len + kMaxCells - 1) / kMaxCells;
  result.cells = (seq_len + result.cell_tokens - 1) / result.cell_tokens;
  const int64_t n = result.cells;
  if (s.mask.empty()) {
    result.share.assign(static_cast<size_t>(n * n), 1.0f);
    return result;
  }
  result.share.assign(static_cast<size_t>(n * n), 0.0f);
  const auto queries = cells_of_blocks(s.q_layout, s.q_order, head, result.cell_tokens);
  const auto keys = cells_of_blocks(s.k_layout, s.k_order, head, result.cell_tokens);
  std::vector<float> kept(static_cast<size_t>(n));
  for (int32_t qb = 0; qb < s.mask.num_q_blocks(); ++qb) {
    std::fill(kept.begin(), kept.end(), 0.0f);
    for (int32_t kb = 0; kb < s.mask.num_k_blocks(); ++kb) {
      if (!s.mask.get(head, qb, kb)) continue;
      for (const Count& c : keys[kb]) kept[c.cell] += static_cast<float>(c.tokens);
    }
    for (const Count& c : queries[qb])
      for (int64_t j = 0; j < n; ++j)
        result.share[c.cell * n + j] += static_cast<float>(c.tokens) * kept[j];
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      result.share[i * n + j] /= static_cast<float>(tokens_in(i, result.cell_tokens, seq_len) *
                                                    tokens_in(j, result.cell_tokens, seq_len));
  return result;
}

std::string head_kind(const HeadShape& shape) {
  if (shape.density >= kDense) return "dense";
  constexpr std::pair<Region, const char*> kKinds[] = {
      {Region::band, "local"}, {Region::stripe, "temporal"}, {Region::sink, "sink"}};
  const char* best = "global";
  double first = 0.0, second = 0.0;
  for (const auto& [region, name] : kKinds) {
    const double lift = shape.lift[static_cast<size_t>(region)];
    if (lift > first) {
      second = first;
      first = lift;
      best = name;
    } else {
      second = std::max(second, lift);
    }
  }
  if (first < kLift) return "global";
  return first >= kAhead * second ? best : "mixed";
}

HeadShape head_shape(const CellMask& mask, const VideoGrid& grid) {
  std::array<double, kNumRegions> kept{}, all{};
  for (int64_t i = 0; i < mask.cells; ++i)
    for (int64_t j = 0; j < mask.cells; ++j) {
      const auto region = static_cast<size_t>(region_of(i, j, mask.cell_tokens, grid));
      kept[region] += mask.share[static_cast<size_t>(i * mask.cells + j)];
      all[region] += 1.0;
    }
  double total = 0.0;
  for (const double part : kept) total += part;
  const auto cells = static_cast<double>(mask.cells * mask.cells);
  HeadShape shape;
  shape.density = total / cells;
  for (size_t r = 0; r < kept.size(); ++r) {
    shape.share[r] = total > 0.0 ? kept[r] / total : 0.0;
    shape.lift[r] = all[r] > 0.0 ? shape.share[r] / (all[r] / cells) : 0.0;
  }
  shape.kind = head_kind(shape);
  return shape;
}

std::string order_name(const TokenOrder& order, int64_t head, const VideoGrid& grid) {
  if (order.empty()) return "raster";
  const auto is = [&](const TokenOrder& other) {
    return std::equal(other.order.begin(), other.order.end(), order.head(head));
  };
  bool raster = true;
  for (int64_t p = 0; p < order.seq_len && raster; ++p) raster = order.head(head)[p] == p;
  if (raster) return "raster";
  if (is(frame_minor_order(grid))) return "frame-minor";
  return is(hilbert_order(grid)) ? "hilbert" : "permuted";
}

}  // namespace lacuna
