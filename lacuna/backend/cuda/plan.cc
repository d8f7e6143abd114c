// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <unordered_map>

#include "lacuna/core/block_mask.h"

namespace lacuna::cuda {
namespace {

struct Blocks {
  int64_t len;
  int32_t block, count;
  const int32_t* offsets;  // of this head, or null

  Blocks(int64_t len_, int32_t block_, int32_t count_, const int32_t* offsets_, int32_t call)
      : len(len_),
        block(block_),
        count(count_),
        offsets(offsets_ == nullptr ? nullptr : offsets_ + call * (int64_t{count_} + 1)) {}
  int32_t begin(int32_t b) const {
    return offsets != nullptr ? offsets[b]
                              : static_cast<int32_t>(std::min<int64_t>(int64_t{b} * block, len));
  }
  int32_t end(int32_t b) const { return begin(b + 1); }
};

Blocks key_blocks(const AttendParams& p, int32_t call) {
  return {p.k_len, p.block_k, p.num_k_blocks, p.k_offsets, call};
}

// A key block and which halves visit it, as bits.
struct Entry {
  int32_t block;
  uint8_t halves;
};

// Consecutive keys of one visit.
struct Segment {
  int32_t begin, end, block;
  uint8_t halves;
};

struct Half {
  int32_t row, rows, q_block;
};

// Key tiles of Plan::tiles.
struct List {
  int64_t begin = -1;
  int32_t tiles = 0;
};

Votes choose_votes(const AttendParams& p) {
  if (p.skip == SkipKind::none) return Votes::none;
  for (int32_t call = 0; call < p.num_heads; ++call) {
    const Blocks k = key_blocks(p, call);
    for (int32_t b = 0; b < k.count; ++b)
      if (k.end(b) - k.begin(b) > kSlotKeys) return Votes::per_tile;
  }
  return Votes::per_slot;
}

// Both lists ascending.
std::vector<Entry> unite_sorted(std::span<const int32_t> a, std::span<const int32_t> b) {
  std::vector<Entry> out;
  size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    const bool has_a = i < a.size() && (j == b.size() || a[i] <= b[j]);
    const bool has_b = j < b.size() && (i == a.size() || b[j] <= a[i]);
    out.push_back({has_a ? a[i] : b[j], static_cast<uint8_t>((has_a ? 1 : 0) | (has_b ? 2 : 0))});
    i += has_a, j += has_b;
  }
  return out;
}

// A list in which both lists appear in their own order. Where the orders disagree, a block comes
// twice; the half whose next common block is nearer goes ahead to it.
std::vector<Entry> unite_in_order(std::span<const int32_t> a, std::span<const int32_t> b) {
  std::unordered_map<int32_t, size_t> at_a, at_b;
  for (size_t i = 0; i < a.size(); ++i) at_a[a[i]] = i;
  for (size_t j = 0; j < b.size(); ++j) at_b[b[j]] = j;
  std::vector<Entry> out;
  size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    if (i < a.size() && j < b.size() && a[i] == b[j]) {
      out.push_back({a[i++], 3});
      ++j;
      continue;
    }
    // How far the other half's list must go to reach this half's next block.
    constexpr size_t kNever = SIZE_MAX;
    size_t to_a = kNever, to_b = kNever;
    if (i < a.size())
      if (const auto it = at_b.find(a[i]); it != at_b.end() && it->second >= j)
        to_a = it->second - j;
    if (j < b.size())
      if (const auto it = at_a.find(b[j]); it != at_a.end() && it->second >= i)
        to_b = it->second - i;
    const bool take_a = j == b.size() || (i < a.size() && (to_a == kNever || (to_b <= to_a)));
    if (take_a) {
      out.push_back({a[i++], 1});
    } else {
      out.push_back({b[j++], 2});
    }
  }
  return out;
}

class Builder {
 public:
  Builder(const AttendParams& p, Plan& plan)
      : p_(p),
        plan_(plan),
        dense_order_(p.mask == nullptr &&
                     (p.skip == SkipKind::none || p.order == VisitOrder::ascending)) {
    if (!dense_order_)
      index_ = compact_blocks(p.mask, p.num_heads, p.num_q_blocks, p.num_k_blocks, p.order);
  }

  void add_head(int32_t call) {
    const std::vector<Half> halves = list_halves(call);
    const size_t first_job = plan_.jobs.size();
    List list;
    Plan::Blocks of{{-1, -1}};
    for (size_t i = 0; i < halves.size(); i += 2) {
      const Half a = halves[i];
      const Half b = i + 1 < halves.size() ? halves[i + 1] : Half{0, 0, -1};
      const Plan::Blocks q{{a.q_block, b.q_block}};
      if (dense_order_ && p_.k_offsets == nullptr) {
        // Every job of every head walks the same tiles, but for jobs of a single half.
        List& dense = dense_[b.rows > 0 ? 1 : 0];
        if (dense.begin < 0) dense = append_list(call, a, b);
        list = dense;
      } else if (of.slot[0] != q.slot[0] || of.slot[1] != q.slot[1]) {
        list = append_list(call, a, b);
        of = q;
      }
      plan_.jobs.push_back({p_.head_ids != nullptr ? p_.head_ids[call] : call,
                            call,
                            {a.row, b.row},
                            {a.rows, b.rows},
                            list.tiles,
                            list.begin,
                            plan_.out_tiles});
      plan_.q_blocks.push_back(q);
      plan_.out_tiles += list.tiles;
    }
    sort_jobs(first_job);
  }

 private:
  std::vector<Half> list_halves(int32_t call) const {
    const Blocks q(p_.q_len, p_.block_q, p_.num_q_blocks, p_.q_offsets, call);
    std::vector<Half> out;
    // Without any outward sign of query blocks, tiles need not stop at their ends.
    if (dense_order_ && p_.skip == SkipKind::none && p_.block_mass == nullptr) {
      for (int32_t row = 0; row < p_.q_len; row += kHalfRows)
        out.push_back({row, std::min<int32_t>(kHalfRows, static_cast<int32_t>(p_.q_len) - row), 0});
      return out;
    }
    for (int32_t b = 0; b < q.count; ++b)
      for (int32_t row = q.begin(b); row < q.end(b); row += kHalfRows)
        out.push_back({row, std::min<int32_t>(kHalfRows, q.end(b) - row), b});
    return out;
  }

  std::span<const int32_t> list(int32_t call, const Half& half) {
    if (half.rows == 0) return {};
    if (dense_order_) {
      all_.resize(static_cast<size_t>(p_.num_k_blocks));
      for (int32_t b = 0; b < p_.num_k_blocks; ++b) all_[static_cast<size_t>(b)] = b;
      return all_;
    }
    const auto row = static_cast<size_t>(int64_t{call} * p_.num_q_blocks + half.q_block);
    return {index_.cols.data() + index_.row_begin[row],
            index_.cols.data() + index_.row_begin[row + 1]};
  }

  std::vector<Entry> unite(int32_t call, const Half& a, const Half& b) {
    const std::span<const int32_t> la = list(call, a), lb = list(call, b);
    if (plan_.votes != Votes::none) return unite_in_order(la, lb);
    std::vector<int32_t> sa(la.begin(), la.end()), sb(lb.begin(), lb.end());
    std::sort(sa.begin(), sa.end());
    std::sort(sb.begin(), sb.end());
    return unite_sorted(sa, sb);
  }

  List append_list(int32_t call, const Half& a, const Half& b) {
    const auto begin = static_cast<int64_t>(plan_.tiles.size());
    append_tiles(call, unite(call, a, b));
    return {begin, static_cast<int32_t>(static_cast<int64_t>(plan_.tiles.size()) - begin)};
  }

  void append_tiles(int32_t call, const std::vector<Entry>& entries) {
    const Blocks k = key_blocks(p_, call);
    std::vector<Segment> slots;
    const bool free_order = plan_.votes == Votes::none;
    const bool join = free_order && p_.block_mass == nullptr;
    const int32_t longest = plan_.votes == Votes::per_tile ? kTileKeys : kSlotKeys;
    for (const Segment& s : segments(k, entries, join))
      for (int32_t key = s.begin; key < s.end; key += longest)
        slots.push_back({key, std::min(key + longest, s.end), s.block, s.halves});
    if (free_order)
      std::stable_partition(slots.begin(), slots.end(),
                            [](const Segment& s) { return s.end - s.begin < kSlotKeys; });
    if (plan_.votes == Votes::per_tile) {
      for (const Segment& s : slots) {
        const int32_t middle = std::min(s.begin + kSlotKeys, s.end);
        push_tile({s.begin, middle, s.block, s.halves}, {middle, s.end, s.block, s.halves});
      }
      return;
    }
    size_t i = 0;
    if (slots.size() % 2 != 0) {
      push_tile(slots[0], {0, 0, 0, 0});
      i = 1;
    }
    for (; i < slots.size(); i += 2) push_tile(slots[i], slots[i + 1]);
  }

  static std::vector<Segment> segments(const Blocks& k, const std::vector<Entry>& entries,
                                       bool join) {
    std::vector<Segment> out;
    for (const Entry& e : entries) {
      const Segment s{k.begin(e.block), k.end(e.block), e.block, e.halves};
      if (s.begin == s.end) continue;
      if (join && !out.empty() && out.back().end == s.begin && out.back().halves == s.halves) {
        out.back().end = s.end;
      } else {
        out.push_back(s);
      }
    }
    return out;
  }

  void push_tile(const Segment& first, const Segment& second) {
    const bool used = second.end > second.begin;
    KeyTile t{{first.begin, used ? second.begin : first.begin}, {}};
    for (int half = 0; half < 2; ++half) {
      if (first.halves >> half & 1)
        t.valid[half][0] = static_cast<uint8_t>(first.end - first.begin);
      if (used && (second.halves >> half & 1))
        t.valid[half][1] = static_cast<uint8_t>(second.end - second.begin);
    }
    plan_.tiles.push_back(t);
    plan_.k_blocks.push_back({{first.block, used ? second.block : first.block}});
  }

  // Longest first, so that the last jobs to be handed out are short.
  void sort_jobs(size_t first) {
    const size_t n = plan_.jobs.size() - first;
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; ++i) order[i] = first + i;
    std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
      return plan_.jobs[x].num_tiles > plan_.jobs[y].num_tiles;
    });
    std::vector<Job> jobs;
    std::vector<Plan::Blocks> blocks;
    for (size_t i : order) jobs.push_back(plan_.jobs[i]), blocks.push_back(plan_.q_blocks[i]);
    std::copy(jobs.begin(), jobs.end(), plan_.jobs.begin() + static_cast<std::ptrdiff_t>(first));
    std::copy(blocks.begin(), blocks.end(),
              plan_.q_blocks.begin() + static_cast<std::ptrdiff_t>(first));
  }

  const AttendParams& p_;
  Plan& plan_;
  const bool dense_order_;  // every block, ascending
  BlockIndex index_;        // else
  std::vector<int32_t> all_;
  List dense_[2];  // of jobs with one half and with two
};

// What a call's blocks add up to while jobs are folded.
struct Totals {
  std::vector<uint64_t> kept, skipped;  // [calls, q blocks, words]
  std::vector<double> mass;             // [calls, q blocks, k blocks], summed over rows
  std::vector<int64_t> pairs;           // [calls]
};

// One slot of one half.
void fold_slot(const AttendParams& p, const Job& job, int half, int64_t row_index, int64_t out_slot,
               int32_t block, int keys, bool kept, const float* slot_lse, const float* lse,
               Totals& t) {
  const int64_t words = (int64_t{p.num_k_blocks} + 63) / 64;
  auto& bits = kept ? t.kept : t.skipped;
  bits[static_cast<size_t>(row_index * words + block / 64)] |= uint64_t{1} << (block % 64);
  if (!kept) return;
  t.pairs[static_cast<size_t>(job.call)] += int64_t{keys} * job.rows[half];
  if (slot_lse == nullptr) return;
  double& mass = t.mass[static_cast<size_t>(row_index * p.num_k_blocks + block)];
  const float* part = slot_lse + out_slot * (2 * kHalfRows) + half * kHalfRows;
  const float* whole = lse + job.head * p.q_len + job.row[half];
  for (int r = 0; r < job.rows[half]; ++r)
    if (!std::isinf(part[r])) mass += std::exp(double{part[r]} * std::log(2.0) - whole[r]);
}

void write_rows(const AttendParams& p, const Totals& t) {
  const int64_t words = (int64_t{p.num_k_blocks} + 63) / 64;
  for (int32_t call = 0; call < p.num_heads; ++call) {
    const int64_t head = p.head_ids != nullptr ? p.head_ids[call] : call;
    const Blocks q(p.q_len, p.block_q, p.num_q_blocks, p.q_offsets, call);
    if (p.pv_pairs != nullptr) p.pv_pairs[call] = t.pairs[static_cast<size_t>(call)];
    for (int32_t b = 0; b < p.num_q_blocks; ++b) {
      const int64_t from = int64_t{call} * p.num_q_blocks + b, to = head * p.num_q_blocks + b;
      for (int64_t w = 0; p.skip_bits != nullptr && w < words; ++w) {
        const auto at = static_cast<size_t>(from * words + w);
        p.skip_bits[to * words + w] = t.skipped[at] & ~t.kept[at];
      }
      const double rows = q.end(b) - q.begin(b);
      for (int64_t kb = 0; p.block_mass != nullptr && kb < p.num_k_blocks; ++kb)
        p.block_mass[to * p.num_k_blocks + kb] =
            rows == 0 ? 0.0f
                      : static_cast<float>(t.mass[static_cast<size_t>(from * p.num_k_blocks + kb)] /
                                           rows);
    }
  }
}

}  // namespace

Plan make_plan(const AttendParams& p) {
  Plan plan;
  plan.votes = choose_votes(p);
  Builder builder(p, plan);
  for (int32_t call = 0; call < p.num_heads; ++call) builder.add_head(call);
  return plan;
}

void fold_outputs(const AttendParams& p, const Plan& plan, const uint8_t* kept,
                  const float* slot_lse, const float* lse) {
  if (p.skip_bits == nullptr && p.pv_pairs == nullptr && p.block_mass == nullptr) return;
  const auto rows = static_cast<size_t>(int64_t{p.num_heads} * p.num_q_blocks);
  const auto words = static_cast<size_t>((p.num_k_blocks + 63) / 64);
  Totals t;
  t.kept.resize(rows * words);
  t.skipped.resize(rows * words);
  t.pairs.resize(static_cast<size_t>(p.num_heads));
  if (p.block_mass != nullptr) t.mass.resize(rows * static_cast<size_t>(p.num_k_blocks));
  for (size_t j = 0; j < plan.jobs.size(); ++j) {
    const Job& job = plan.jobs[j];
    for (int64_t i = 0; i < job.num_tiles; ++i) {
      const KeyTile& tile = plan.tiles[static_cast<size_t>(job.tile_begin + i)];
      const Plan::Blocks& blocks = plan.k_blocks[static_cast<size_t>(job.tile_begin + i)];
      const int64_t out = job.out_begin + i;
      for (int half = 0; half < 2; ++half)
        for (int slot = 0; slot < 2; ++slot) {
          if (tile.valid[half][slot] == 0 || job.rows[half] == 0) continue;
          const int64_t row = int64_t{job.call} * p.num_q_blocks + plan.q_blocks[j].slot[half];
          const bool is_kept = kept == nullptr || (kept[out * 2 + half] >> slot & 1);
          fold_slot(p, job, half, row, out * 2 + slot, blocks.slot[slot], tile.valid[half][slot],
                    is_kept, slot_lse, lse, t);
        }
    }
  }
  write_rows(p, t);
}

}  // namespace lacuna::cuda
