// SPDX-License-Identifier: Apache-2.0
// Attention in three plain steps per tile of query rows: all listed logits, the skip rule's
// verdict on each piece, softmax over what was kept.
#include <algorithm>
#include <vector>

#include "lacuna/backend/attend_check.h"
#include "lacuna/backend/ref/numeric.h"
#include "lacuna/backend/ref/ops.h"
#include "lacuna/backend/ref/skip_rule.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::ref {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Keys that are judged together.
struct Piece {
  int32_t block;
  Range keys;
  int64_t column;  // of its first key in the tile's logits
};

Range block_range(const int32_t* offsets, int32_t num_blocks, int32_t block, int64_t len,
                  int64_t call, int32_t b) {
  if (offsets != nullptr) {
    const int32_t* row = offsets + call * (int64_t{num_blocks} + 1);
    return {row[b], row[b + 1]};
  }
  return {std::min<int64_t>(int64_t{b} * block, len),
          std::min<int64_t>((b + int64_t{1}) * block, len)};
}

// One query block of one head.
class QueryBlock {
 public:
  QueryBlock(const AttendParams& p, const BlockIndex& listed, int64_t call, int32_t qb);
  void run();
  int64_t pv_pairs() const { return pv_pairs_; }

 private:
  void list_pieces();
  void run_tile(Range rows);
  void compute_logits(Range rows);
  void judge_pieces(int64_t num_rows);
  void accumulate_values(Range rows);
  void write_rows(Range rows);
  void write_block_outputs();
  double* logits(int64_t row) { return logits_.data() + row * num_columns_; }

  const AttendParams& p_;
  const BlockIndex& listed_;
  const int64_t call_;
  const int64_t head_;
  const int32_t qb_;
  const bool bf16_;
  Range rows_;
  SkipRule rule_;
  std::vector<Piece> pieces_;
  int64_t num_columns_ = 0;
  std::vector<double> logits_;       // [tile rows, columns]; probabilities after run_tile
  std::vector<char> kept_;           // [pieces], of the current tile
  std::vector<RowState> state_;      // [tile rows]
  std::vector<double> sums_;         // [tile rows, head_dim]
  std::vector<char> block_kept_;     // [num_k_blocks], by any tile
  std::vector<char> block_skipped_;  // [num_k_blocks], at least one piece was
  std::vector<double> block_mass_;   // [num_k_blocks], summed over rows
  int64_t pv_pairs_ = 0;
};

QueryBlock::QueryBlock(const AttendParams& p, const BlockIndex& listed, int64_t call, int32_t qb)
    : p_(p),
      listed_(listed),
      call_(call),
      head_(p.head_ids != nullptr ? p.head_ids[call] : call),
      qb_(qb),
      bf16_(p.dtype == AttendDType::bf16),
      rows_(block_range(p.q_offsets, p.num_q_blocks, p.block_q, p.q_len, call, qb)),
      block_kept_(static_cast<size_t>(p.num_k_blocks)),
      block_skipped_(static_cast<size_t>(p.num_k_blocks)),
      block_mass_(static_cast<size_t>(p.num_k_blocks)) {
  rule_.kind = p.skip;
  if (p.skip != SkipKind::none) rule_.param = p.skip_param[call];
  if (p.skip_kappa != nullptr) rule_.kappa = p.skip_kappa[call];
}

void QueryBlock::run() {
  list_pieces();
  for (int64_t begin = rows_.begin; begin < rows_.end; begin += kVoteRows)
    run_tile({begin, std::min<int64_t>(begin + kVoteRows, rows_.end)});
  write_block_outputs();
}

void QueryBlock::list_pieces() {
  const auto row = static_cast<size_t>(call_ * p_.num_q_blocks + qb_);
  for (int64_t i = listed_.row_begin[row]; i < listed_.row_begin[row + 1]; ++i) {
    const int32_t kb = listed_.cols[static_cast<size_t>(i)];
    const Range keys = block_range(p_.k_offsets, p_.num_k_blocks, p_.block_k, p_.k_len, call_, kb);
    for (int64_t begin = keys.begin; begin < keys.end; begin += kVoteKeys) {
      const Range piece{begin, std::min<int64_t>(begin + kVoteKeys, keys.end)};
      pieces_.push_back({kb, piece, num_columns_});
      num_columns_ += piece.size();
    }
  }
}

void QueryBlock::run_tile(Range rows) {
  logits_.assign(static_cast<size_t>(rows.size() * num_columns_), 0.0);
  compute_logits(rows);
  judge_pieces(rows.size());
  accumulate_values(rows);
  write_rows(rows);
}

void QueryBlock::compute_logits(Range rows) {
  const int64_t d = p_.head_dim;
  const Reader q{p_.q, bf16_}, k{p_.k, bf16_};
  std::vector<float> q_rows(static_cast<size_t>(rows.size() * d)), k_row(static_cast<size_t>(d));
  for (int64_t i = 0; i < rows.size(); ++i)
    q.row(head_ * p_.q_head_stride + (rows.begin + i) * p_.q_token_stride,
          std::span(q_rows).subspan(i * d, d));
  for (const Piece& piece : pieces_) {
    for (int64_t j = 0; j < piece.keys.size(); ++j) {
      const int64_t key = piece.keys.begin + j;
      k.row(head_ * p_.k_head_stride + key * p_.k_token_stride, k_row);
      for (int64_t i = 0; i < rows.size(); ++i) {
        double x = double{p_.sm_scale} * dot(q_rows.data() + i * d, k_row.data(), d);
        if (p_.bias != nullptr)
          x += p_.bias[head_ * p_.bias_head_stride + (rows.begin + i) * p_.bias_q_stride + key];
        logits(i)[piece.column + j] = x;
      }
    }
  }
}

void QueryBlock::judge_pieces(int64_t num_rows) {
  state_.assign(static_cast<size_t>(num_rows), {});
  kept_.assign(pieces_.size(), 1);
  std::vector<double> mhat(static_cast<size_t>(num_rows));
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const int64_t n = pieces_[i].keys.size(), column = pieces_[i].column;
    // The first visited piece is always kept.
    bool skip = rule_.kind != SkipKind::none && i > 0;
    for (int64_t r = 0; r < num_rows; ++r) {
      const double* x = logits(r) + column;
      mhat[r] = *std::max_element(x, x + n);
      skip = skip && votes_to_skip(rule_, state_[r], mhat[r], n);
    }
    for (int64_t r = 0; r < num_rows; ++r) {
      if (skip) {
        on_skip(rule_, state_[r], mhat[r], n);
      } else {
        on_keep(state_[r], logits(r) + column, n, mhat[r]);
      }
    }
    kept_[i] = !skip;
    (skip ? block_skipped_ : block_kept_)[pieces_[i].block] = 1;
    if (!skip) pv_pairs_ += num_rows * n;
  }
}

void QueryBlock::accumulate_values(Range rows) {
  const int64_t d = p_.head_dim;
  const Reader v{p_.v, bf16_};
  sums_.assign(static_cast<size_t>(rows.size() * d), 0.0);
  std::vector<float> v_row(static_cast<size_t>(d));
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (!kept_[i]) continue;
    const Piece& piece = pieces_[i];
    for (int64_t j = 0; j < piece.keys.size(); ++j) {
      v.row(head_ * p_.v_head_stride + (piece.keys.begin + j) * p_.v_token_stride, v_row);
      for (int64_t r = 0; r < rows.size(); ++r) {
        const double x = logits(r)[piece.column + j];
        if (x == kNegInf) continue;
        const double probability = std::exp(x - state_[r].m) / state_[r].l;
        block_mass_[piece.block] += probability;
        double* sum = sums_.data() + r * d;
        for (int64_t c = 0; c < d; ++c) sum[c] += probability * double{v_row[c]};
      }
    }
  }
}

void QueryBlock::write_rows(Range rows) {
  const Writer out{p_.out, bf16_};
  for (int64_t r = 0; r < rows.size(); ++r) {
    const int64_t token = rows.begin + r;
    const int64_t offset = head_ * p_.out_head_stride + token * p_.out_token_stride;
    for (int64_t c = 0; c < p_.head_dim; ++c)
      out.set(offset + c, sums_[static_cast<size_t>(r * p_.head_dim + c)]);
    if (p_.lse != nullptr)
      p_.lse[head_ * p_.q_len + token] =
          static_cast<float>(state_[r].l == 0.0 ? kNegInf : state_[r].lse());
  }
}

void QueryBlock::write_block_outputs() {
  const int64_t row = head_ * p_.num_q_blocks + qb_;
  if (p_.block_mass != nullptr)
    for (int32_t kb = 0; kb < p_.num_k_blocks; ++kb)
      p_.block_mass[row * p_.num_k_blocks + kb] =
          rows_.size() == 0 ? 0.0f : static_cast<float>(block_mass_[kb] / rows_.size());
  if (p_.skip_bits != nullptr) {
    const int64_t words = (int64_t{p_.num_k_blocks} + 63) / 64;
    uint64_t* bits = p_.skip_bits + row * words;
    std::fill_n(bits, words, 0);
    for (int32_t kb = 0; kb < p_.num_k_blocks; ++kb)
      if (block_skipped_[kb] && !block_kept_[kb]) bits[kb / 64] |= uint64_t{1} << (kb % 64);
  }
}

}  // namespace

std::string attend_unsupported(const AttendParams& p) {
  if (p.dtype != AttendDType::f32 && p.dtype != AttendDType::bf16)
    return "attend: dtype unknown, expected f32 or bf16";
  return check_attend(p);
}

void attend(const AttendParams& p) {
  const std::string why = attend_unsupported(p);
  if (!why.empty()) throw Error(why);
  if (p.num_heads == 0 || p.q_len == 0) {
    if (p.pv_pairs != nullptr) std::fill_n(p.pv_pairs, p.num_heads, 0);
    return;
  }
  const int64_t num_tasks = int64_t{p.num_heads} * p.num_q_blocks;
  const BlockIndex listed =
      compact_blocks(p.mask, p.num_heads, p.num_q_blocks, p.num_k_blocks, p.order);
  std::vector<int64_t> pairs(static_cast<size_t>(num_tasks));
  parallel_tasks(num_tasks, [&](int64_t task, int) {
    QueryBlock block(p, listed, task / p.num_q_blocks, static_cast<int32_t>(task % p.num_q_blocks));
    block.run();
    pairs[task] = block.pv_pairs();
  });
  if (p.pv_pairs == nullptr) return;
  for (int64_t i = 0; i < p.num_heads; ++i) {
    p.pv_pairs[i] = 0;
    for (int32_t qb = 0; qb < p.num_q_blocks; ++qb) p.pv_pairs[i] += pairs[i * p.num_q_blocks + qb];
  }
}

void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b, const float* lse_b) {
  check_merge(Reach::host, out_a, lse_a, out_b, lse_b);
  const int64_t q_len = out_a.shape[1];
  parallel_tasks(out_a.shape[0] * q_len, [&](int64_t row, int) {
    const int64_t h = row / q_len, i = row % q_len;
    const double a = lse_a[row], b = lse_b[row];
    if (b == kNegInf) return;  // nothing to add
    const double m = std::max(a, b);
    const double lse = m + std::log(std::exp(a - m) + std::exp(b - m));
    const double weight_a = std::exp(a - lse), weight_b = std::exp(b - lse);
    const int64_t at_a = h * out_a.stride[0] + i * out_a.stride[1];
    const int64_t at_b = h * out_b.stride[0] + i * out_b.stride[1];
    for (int64_t c = 0; c < out_a.shape[2]; ++c)
      writer(out_a).set(at_a + c, weight_a * double{reader(out_a)[at_a + c]} +
                                      weight_b * double{reader(out_b)[at_b + c]});
    lse_a[row] = static_cast<float>(lse);
  });
}

}  // namespace lacuna::ref
