// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/plan.h"

#include <algorithm>
#include <bit>

#include "lacuna/core/block_mask.h"
#include "lacuna/core/threads.h"

namespace lacuna::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct Blocks {
  int64_t len;
  int32_t block, count;
  const int32_t* offsets;  // of this head, or null

  int32_t begin(int32_t b) const {
    return offsets != nullptr ? offsets[b]
                              : static_cast<int32_t>(std::min<int64_t>(int64_t{b} * block, len));
  }
  int32_t size(int32_t b) const { return begin(b + 1) - begin(b); }
};

const int32_t* head_offsets(const int32_t* offsets, int32_t count, int32_t call) {
  return offsets == nullptr ? nullptr : offsets + call * (int64_t{count} + 1);
}

struct Half {
  int32_t row, rows, q_block;
};

// What is planned for one head; offsets count from its own start, Job::head is left open.
struct HeadPlan {
  std::vector<Job> jobs;
  std::vector<TileList> lists;
  std::vector<int32_t> places, first_half;
  int64_t tiles = 0, out_tiles = 0, pairs = 0;
};

// How a call is planned, for all heads alike.
struct Rules {
  explicit Rules(const AttendParams& p);

  const AttendParams& p;
  Votes votes = Votes::none;
  bool whole;   // no outward sign of blocks: halves and slots need not stop at their ends
  bool join;    // see Plan
  bool folds;   // something is to be folded
  bool shared;  // all heads walk the lists of the first
  int32_t block_k, k_blocks;

  Blocks q(int32_t call) const {
    if (whole) return {p.q_len, static_cast<int32_t>(p.q_len), 1, nullptr};
    return {p.q_len, p.block_q, p.num_q_blocks, head_offsets(p.q_offsets, p.num_q_blocks, call)};
  }
  Blocks k(int32_t call) const {
    return {p.k_len, block_k, k_blocks,
            whole ? nullptr : head_offsets(p.k_offsets, p.num_k_blocks, call)};
  }
};

Votes choose_votes(const AttendParams& p) {
  if (p.skip == SkipKind::none) return Votes::none;
  if (p.k_offsets == nullptr)
    return std::min<int64_t>(p.block_k, p.k_len) > kSlotKeys ? Votes::per_tile : Votes::per_slot;
  for (int32_t call = 0; call < p.num_heads; ++call) {
    const int32_t* offsets = head_offsets(p.k_offsets, p.num_k_blocks, call);
    for (int32_t b = 0; b < p.num_k_blocks; ++b)
      if (offsets[b + 1] - offsets[b] > kSlotKeys) return Votes::per_tile;
  }
  return Votes::per_slot;
}

Rules::Rules(const AttendParams& params)
    : p(params),
      votes(choose_votes(params)),
      whole(params.mask == nullptr && params.skip == SkipKind::none &&
            params.block_mass == nullptr),
      folds(params.skip != SkipKind::none || params.block_mass != nullptr),
      shared(params.mask == nullptr &&
             (whole || (params.q_offsets == nullptr && params.k_offsets == nullptr))),
      block_k(whole ? kSlotKeys : params.block_k),
      k_blocks(whole ? static_cast<int32_t>(ceil_div(params.k_len, kSlotKeys))
                     : params.num_k_blocks) {
  join = !whole && !folds && (params.k_offsets != nullptr || params.block_k % kSlotKeys != 0);
}

// The blocks that two rows of the mask keep.
class Union {
 public:
  Union(const Rules& rules, int32_t call, int32_t a, int32_t b)
      : k_(rules.k(call)),
        words_((k_.count + 63) / 64),
        a_(row(rules, call, a)),
        b_(b < 0 ? a_ : row(rules, call, b)) {}

  // Sum over the kept blocks of their tokens, or of ceil(tokens / unit).
  int64_t keys() const {
    return sum([](int32_t size) { return int64_t{size}; });
  }
  int64_t pieces(int32_t unit) const {
    return sum([unit](int32_t size) { return ceil_div(size, unit); });
  }
  int32_t size(int32_t block) const { return k_.size(block); }
  bool in_both(int32_t block) const {
    return a_ == nullptr || ((a_[block / 64] & b_[block / 64]) >> (block % 64) & 1) != 0;
  }

 private:
  static const uint64_t* row(const Rules& rules, int32_t call, int32_t q_block) {
    const AttendParams& p = rules.p;
    if (p.mask == nullptr) return nullptr;
    return p.mask + (int64_t{call} * p.num_q_blocks + q_block) * mask_words(p.num_k_blocks);
  }
  uint64_t word(int32_t w) const {
    if (a_ != nullptr) return a_[w] | b_[w];
    const int32_t blocks = k_.count - w * 64;
    return blocks >= 64 ? ~uint64_t{0} : (uint64_t{1} << blocks) - 1;
  }

  template <typename F>
  int64_t sum(const F& of) const {
    int64_t total = 0;
    if (k_.offsets == nullptr) {
      int64_t blocks = 0;
      for (int32_t w = 0; w < words_; ++w) blocks += std::popcount(word(w));
      total = blocks * of(k_.block);
      // The last one may be short.
      if (k_.count > 0 && (word(words_ - 1) >> ((k_.count - 1) % 64) & 1) != 0)
        total -= of(k_.block) - of(k_.size(k_.count - 1));
      return total;
    }
    for (int32_t w = 0; w < words_; ++w)
      for (uint64_t rest = word(w); rest != 0; rest &= rest - 1)
        total += of(k_.size(w * 64 + std::countr_zero(rest)));
    return total;
  }

  const Blocks k_;
  const int32_t words_;
  const uint64_t *a_, *b_;  // null = every block
};

// Key tiles of a list, or the most there can be.
int32_t count_tiles(const Rules& rules, int32_t call, int32_t a, int32_t b) {
  const AttendParams& p = rules.p;
  const Union blocks(rules, call, a, b);
  const int32_t unit = rules.votes == Votes::per_tile ? kTileKeys : kSlotKeys;
  int64_t pieces = blocks.pieces(unit);
  if (rules.votes != Votes::none && p.order == VisitOrder::coarse_to_fine && b >= 0 && a != b &&
      rules.k_blocks > 0) {
    // The own block of one half comes again, in its place, for the other.
    const int32_t own[] = {own_key_block(a, p.num_q_blocks, rules.k_blocks),
                           own_key_block(b, p.num_q_blocks, rules.k_blocks)};
    for (const int32_t block : own)
      if (own[0] != own[1] && blocks.in_both(block)) pieces += ceil_div(blocks.size(block), unit);
  }
  return static_cast<int32_t>(rules.votes == Votes::per_tile ? pieces : (pieces + 1) / 2);
}

std::vector<Half> list_halves(const Rules& rules, int32_t call) {
  const Blocks q = rules.q(call);
  std::vector<Half> halves;
  for (int32_t b = 0; b < q.count; ++b)
    for (int32_t row = q.begin(b); row < q.begin(b + 1); row += kHalfRows)
      halves.push_back({row, std::min<int32_t>(kHalfRows, q.begin(b + 1) - row), b});
  return halves;
}

int64_t count_pairs(const Rules& rules, int32_t call) {
  const AttendParams& p = rules.p;
  if (p.mask == nullptr) return p.q_len * p.k_len;
  const Blocks q = rules.q(call);
  int64_t pairs = 0;
  for (int32_t b = 0; b < q.count; ++b) pairs += q.size(b) * Union(rules, call, b, b).keys();
  return pairs;
}

HeadPlan plan_head(const Rules& rules, int32_t call) {
  const std::vector<Half> halves = list_halves(rules, call);
  // Lists in the order of their halves, then longest first, so that the last jobs to be handed out
  // are short.
  struct Group {
    int32_t q_block[2];
    int32_t first_half, jobs, tiles;
  };
  std::vector<Group> groups;
  for (size_t i = 0; i < halves.size(); i += 2) {
    const int32_t a = halves[i].q_block, b = i + 1 < halves.size() ? halves[i + 1].q_block : -1;
    if (groups.empty() || groups.back().q_block[0] != a || groups.back().q_block[1] != b)
      groups.push_back({{a, b}, static_cast<int32_t>(i), 0, count_tiles(rules, call, a, b)});
    ++groups.back().jobs;
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const Group& x, const Group& y) { return x.tiles > y.tiles; });
  HeadPlan plan;
  plan.jobs.reserve((halves.size() + 1) / 2);
  if (rules.folds) plan.places.resize((halves.size() + 1) / 2);
  for (const Group& g : groups) {
    plan.lists.push_back({plan.tiles,
                          call,
                          {g.q_block[0], g.q_block[1]},
                          static_cast<int32_t>(plan.jobs.size()),
                          rules.join ? g.jobs : 0});
    for (int32_t j = 0; j < g.jobs; ++j) {
      const auto i = static_cast<size_t>(g.first_half + 2 * j);
      const Half a = halves[i], b = i + 1 < halves.size() ? halves[i + 1] : Half{0, 0, -1};
      if (rules.folds) plan.places[i / 2] = static_cast<int32_t>(plan.jobs.size());
      plan.jobs.push_back(
          {0, call, {a.row, b.row}, {a.rows, b.rows}, g.tiles, plan.tiles, plan.out_tiles});
      plan.out_tiles += g.tiles;
    }
    plan.tiles += g.tiles;
  }
  if (rules.folds) {
    plan.first_half.resize(static_cast<size_t>(rules.p.num_q_blocks));
    for (size_t i = halves.size(); i-- > 0;)
      plan.first_half[static_cast<size_t>(halves[i].q_block)] = static_cast<int32_t>(i);
  }
  if (rules.p.pv_pairs != nullptr && rules.votes == Votes::none)
    plan.pairs = count_pairs(rules, call);
  return plan;
}

// Puts heads one behind the other.
class Joiner {
 public:
  Joiner(const Rules& rules, size_t scratch, Plan& plan)
      : rules_(rules), scratch_(scratch), plan_(plan), heads_(head_ids(rules.p)) {
    const AttendParams& p = rules.p;
    out_bytes_ =
        (p.skip != SkipKind::none ? kKeptBytes : 0) + (p.block_mass != nullptr ? kSlotLseBytes : 0);
  }

  void add(int32_t call, const HeadPlan& head, bool with_lists) {
    const size_t bytes = static_cast<size_t>(with_lists ? head.tiles : 0) * sizeof(KeyTile) +
                         static_cast<size_t>(head.out_tiles) * out_bytes_;
    if (plan_.chunks.empty() || bytes_ + bytes > scratch_) start_chunk(call);
    bytes_ += bytes;
    Plan::Chunk& chunk = plan_.chunks.back();
    const auto first_job = static_cast<int32_t>(plan_.jobs.size());
    const int64_t first_tile = rules_.shared ? 0 : chunk.tiles;
    for (Job job : head.jobs) {
      job.call = call;
      job.head = heads_[static_cast<size_t>(call)];
      job.tile_begin += first_tile;
      job.out_begin += chunk.out_tiles;
      plan_.jobs.push_back(job);
    }
    if (with_lists)
      for (TileList list : head.lists) {
        list.tile_begin += first_tile;
        list.first_job += first_job;
        plan_.lists.push_back(list);
      }
    for (const int32_t place : head.places) plan_.places.push_back(first_job + place);
    for (const int32_t half : head.first_half) plan_.first_half.push_back(2 * first_job + half);
    plan_.pairs.push_back(head.pairs);
    ++chunk.calls;
    chunk.jobs += static_cast<int64_t>(head.jobs.size());
    if (with_lists) chunk.lists += static_cast<int64_t>(head.lists.size());
    chunk.tiles = first_tile + head.tiles;
    if (rules_.folds) chunk.out_tiles += head.out_tiles;
  }

 private:
  static constexpr size_t kKeptBytes = 2, kSlotLseBytes = 4 * kHalfRows * sizeof(float);

  void start_chunk(int32_t call) {
    Plan::Chunk chunk;
    chunk.first_call = call;
    chunk.first_job = static_cast<int64_t>(plan_.jobs.size());
    chunk.first_list = static_cast<int64_t>(plan_.lists.size());
    plan_.chunks.push_back(chunk);
    bytes_ = 0;
  }

  const Rules& rules_;
  const size_t scratch_;
  Plan& plan_;
  const std::vector<int32_t> heads_;
  size_t out_bytes_;  // of a key tile
  size_t bytes_ = 0;  // of the chunk
};

}  // namespace

std::vector<int32_t> head_ids(const AttendParams& p) {
  std::vector<int32_t> heads(static_cast<size_t>(p.num_heads));
  for (int32_t i = 0; i < p.num_heads; ++i)
    heads[static_cast<size_t>(i)] = p.head_ids != nullptr ? p.head_ids[i] : i;
  return heads;
}

Plan make_plan(const AttendParams& p, size_t scratch) {
  const Rules rules(p);
  std::vector<HeadPlan> heads(static_cast<size_t>(rules.shared ? 1 : p.num_heads));
  parallel_tasks(static_cast<int64_t>(heads.size()), [&](int64_t call, int) {
    heads[static_cast<size_t>(call)] = plan_head(rules, static_cast<int32_t>(call));
  });
  Plan plan;
  plan.votes = rules.votes;
  plan.join = rules.join;
  plan.whole = rules.whole;
  plan.block_k = rules.block_k;
  plan.k_blocks = rules.k_blocks;
  Joiner joiner(rules, scratch, plan);
  for (int32_t call = 0; call < p.num_heads; ++call)
    joiner.add(call, heads[static_cast<size_t>(rules.shared ? 0 : call)],
               !rules.shared || call == 0);
  return plan;
}

}  // namespace lacuna::cuda
