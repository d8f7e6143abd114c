// SPDX-License-Identifier: Apache-2.0
// Radial Attention (arXiv 2506.19852): a static mask whose width halves each time the distance
// between frames doubles, O(n log n) pairs in all.
//
// T tokens per frame, W = 2^bitlen(T). For query frame i, key frame j, D = |i - j|, g = bitlen(D),
// reach = W / 2^g:
//   1. j = 0 is kept whole when first_frame is set (Wan; HunyuanVideo runs without);
//   2. D <= 1 is kept whole;
//   3. else tokens at positions a, b of their frames are kept iff |a - b| <= max(block, reach *
//   decay)
//   4. and, where reach < block, only if D mod floor(block / reach) = 0.
// Tokens to blocks: a column of a block pair counts as dense when more than 1/3 of its rows are
// kept; the pair is kept when dense columns / non-empty columns > 0.6.
//
// Deviations from the public code: blocks are laid over the token sequence as it is and the rule
// reads the true frame of every token, where the code pads each frame pair to whole blocks; a short
// last block takes part with the rows and columns it has, where the code drops it; the
// diagonal block is always kept, so no row is empty; text rows and columns are kept.
#include <algorithm>
#include <bit>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kRadialSpecs[] = {
    {"decay", 0.2, 0.0, 64.0, false, "scales the band of distant frames; higher is denser"},
    {"block", 128, 1, 1024, true, "tokens per block"},
    {"first_frame", 1, 0, 1, true, "1 keeps all keys of the first frame"},
};

// The part of a block that lies in one frame: positions [begin, end) of that frame.
struct Segment {
  int64_t frame, begin, end;
};

struct Rule {
  int64_t frame_tokens;
  int64_t block;
  double decay;
  bool first_frame;

  // Largest kept |a - b| of a frame pair; -1 drops the pair, frame_tokens keeps it whole.
  int64_t band(int64_t q_frame, int64_t k_frame) const {
    const auto distance = static_cast<uint64_t>(std::abs(q_frame - k_frame));
    if ((first_frame && k_frame == 0) || distance <= 1) return frame_tokens;
    const int log_reach =
        std::bit_width(static_cast<uint64_t>(frame_tokens)) - std::bit_width(distance);
    const double reach = std::ldexp(1.0, log_reach);
    if (reach < static_cast<double>(block)) {
      const auto split = static_cast<uint64_t>(static_cast<double>(block) / reach);
      if (distance % split != 0) return -1;
    }
    const double width = std::max(static_cast<double>(block), reach * decay);
    return std::min(static_cast<int64_t>(width), frame_tokens);
  }
};

std::vector<Segment> segments(int64_t begin, int64_t end, int64_t frame_tokens) {
  std::vector<Segment> result;
  while (begin < end) {
    const int64_t frame = begin / frame_tokens;
    const int64_t stop = std::min(end, (frame + 1) * frame_tokens);
    result.push_back({frame, begin - frame * frame_tokens, stop - frame * frame_tokens});
    begin = stop;
  }
  return result;
}

// Rows of `rows` kept for the key at position `column` of a frame whose band is `band`.
int64_t kept_rows(const Segment& rows, int64_t column, int64_t band) {
  return std::max<int64_t>(
      0, std::min(rows.end, column + band + 1) - std::max(rows.begin, column - band));
}

bool keep_block(const Rule& rule, const std::vector<Segment>& rows,
                const std::vector<Segment>& columns) {
  int64_t num_rows = 0;
  for (const Segment& row : rows) num_rows += row.end - row.begin;
  int64_t dense = 0, non_empty = 0;
  for (const Segment& column : columns) {
    int64_t whole = 0;     // rows kept for every column of the segment
    bool partial = false;  // some row segment crosses the edge of its band
    for (const Segment& row : rows) {
      const int64_t band = rule.band(row.frame, column.frame);
      const int64_t first = kept_rows(row, column.begin, band);
      const int64_t last = kept_rows(row, column.end - 1, band);
      // Along columns the kept count rises, stays, then falls: full at both ends is full
      // throughout.
      const bool far =
          band < 0 || column.begin > row.end - 1 + band || column.end - 1 < row.begin - band;
      const bool full = first == row.end - row.begin && last == row.end - row.begin;
      if (full) whole += first;
      partial = partial || !(far || full);
    }
    const int64_t width = column.end - column.begin;
    if (!partial) {
      non_empty += whole > 0 ? width : 0;
      dense += 3 * whole > num_rows ? width : 0;
      continue;
    }
    for (int64_t c = column.begin; c < column.end; ++c) {
      int64_t kept = 0;
      for (const Segment& row : rows) {
        const int64_t band = rule.band(row.frame, column.frame);
        if (band >= 0) kept += kept_rows(row, c, band);
      }
      non_empty += kept > 0;
      dense += 3 * kept > num_rows;
    }
  }
  return 5 * dense > 3 * non_empty;  // > 0.6, and false when nothing is kept
}

class Radial final : public Method {
 public:
  std::string_view name() const override { return "radial"; }
  std::string_view summary() const override {
    return "Static bands that narrow with frame distance (Radial Attention, arXiv 2506.19852)";
  }
  std::span<const ParamSpec> specs() const override { return kRadialSpecs; }
  std::string_view density_parameter(const Params& /*params*/) const override { return "decay"; }
  bool static_mask() const override { return true; }

  void check(const Params& params) const override {
    LACUNA_CHECK(!params.per_head("block"),
                 "radial: block per head, expected one value for all heads");
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    check(args.params);
    const auto block = static_cast<int32_t>(args.params.get_int("block"));
    Selection selection;
    selection.q_layout = selection.k_layout = BlockLayout::uniform(args.seq_len(), block);
    const auto num_heads = static_cast<int64_t>(args.head_ids.size());
    const int32_t blocks = selection.q_layout.num_blocks;
    selection.mask = BlockMask(num_heads, blocks, blocks);

    std::vector<std::vector<Segment>> parts(blocks);
    for (int32_t b = 0; b < blocks; ++b)
      parts[b] = segments(selection.q_layout.begin(0, b),
                          std::min(selection.q_layout.end(0, b), args.grid.tokens()),
                          args.grid.tokens_per_frame());
    const auto rule_of = [&](int32_t head) {
      return Rule{args.grid.tokens_per_frame(), block, args.params.get("decay", head),
                  args.params.get_int("first_frame", head) != 0};
    };
    for (int64_t i = 0; i < num_heads; ++i) {
      const Rule rule = rule_of(args.head_ids[i]);
      if (i > 0) {
        const Rule previous = rule_of(args.head_ids[i - 1]);
        if (rule.decay == previous.decay && rule.first_frame == previous.first_frame) {
          selection.mask.copy_head(i, selection.mask, i - 1);
          continue;
        }
      }
      for (int32_t qb = 0; qb < blocks; ++qb)
        for (int32_t kb = 0; kb < blocks; ++kb)
          if (qb == kb || keep_block(rule, parts[qb], parts[kb])) selection.mask.set(i, qb, kb);
    }
    keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& radial_method() {
  static const Radial method;
  return method;
}

}  // namespace lacuna
