// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lacuna::cpu {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kInf = std::numeric_limits<float>::infinity();

// 32-bit floats that hold one packed tile of Q, or of O.
int64_t tile_floats(int32_t head_dim) {
  return int64_t{kVoteRows} * head_dim;
}

inline float to_log2(float bias) {
  const float x = bias * static_cast<float>(kLog2E);
  const float lowest = std::numeric_limits<float>::lowest();
  return bias >= lowest && x < lowest ? lowest : x;
}

}  // namespace

void log2_bias(const float* bias, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = to_log2(bias[i]);
}

void TileBatch::begin(const AttendParams& params, const KernelOps& ops, const HeadData& head) {
  p_ = &params;
  ops_ = &ops;
  head_ = head;
  vote_ = SkipVote(params, head.call);
  scale_ = static_cast<float>(double{params.sm_scale} * kLog2E);
  words_ = (int64_t{params.num_k_blocks} + 63) / 64;
}

int64_t TileBatch::run(int32_t first, int32_t count) {
  pairs_ = 0;
  const int64_t floats = tile_floats(p_->head_dim);
  float* tiles = tiles_.get_array<float>(2 * floats * count);
  scores_.get_array<float>(int64_t{kVoteRows} * kVoteKeys);
  uint64_t* bits =
      p_->skip_bits != nullptr ? bits_.get_array<uint64_t>(2 * words_ * count) : nullptr;
  if (states_.size() < static_cast<size_t>(count)) {
    states_.resize(count);
    mass_.resize(count);
  }
  for (int32_t i = 0; i < count; ++i) {
    State& s = states_[i];
    s.q = tiles + 2 * floats * i;
    s.o = s.q + floats;
    s.kept = bits != nullptr ? bits + 2 * words_ * i : nullptr;
    s.skipped = bits != nullptr ? s.kept + words_ : nullptr;
    mass_[i].clear();
    start(s, head_.plan->tiles[first + i]);
  }
  // Every tile visits its own list in its own order; tiles that stand at the same piece share it.
  const auto lowest = [&] {
    int32_t piece = PieceCursor::kNone;
    for (int32_t i = 0; i < count; ++i) piece = std::min(piece, states_[i].cursor.piece());
    return piece;
  };
  for (int32_t piece = lowest(); piece != PieceCursor::kNone;) {
    uint64_t standing = 0;
    for (int32_t i = 0; i < count; ++i) {
      if (states_[i].cursor.piece() != piece) continue;
      standing |= uint64_t{1} << i;
      states_[i].cursor.next();
    }
    int32_t next = lowest();
    const int32_t following = next;
    for (int32_t i = 0; i < count; ++i) {
      if ((standing >> i & 1) == 0) continue;
      step(states_[i], piece, next);
      next = PieceCursor::kNone;  // one prefetch is enough
    }
    piece = following;
  }
  for (int32_t i = 0; i < count; ++i) finish(states_[i]);
  return pairs_;
}

void TileBatch::start(State& s, const Tile& tile) {
  const AttendParams& p = *p_;
  s.tile = &tile;
  s.cursor = PieceCursor(p, *head_.plan, head_.call, tile.q_block);
  s.visited = s.kept_pieces = 0;
  std::fill_n(s.rows.m, kVoteRows, -kInf);
  std::fill_n(s.rows.l, kVoteRows, 0.0f);
  std::fill_n(s.rows.u, kVoteRows, 0.0f);
  // Rows past the tile's last granule are never written by the kernel but read by loops over all.
  std::fill_n(s.rows.mhat, kVoteRows, -kInf);
  std::fill_n(s.rows.alpha, kVoteRows, 0.0f);
  std::fill_n(s.rows.sum, kVoteRows, 0.0f);
  if (s.kept != nullptr) std::fill_n(s.kept, 2 * words_, uint64_t{0});
  const int64_t element = p.dtype == AttendDType::bf16 ? 2 : 4;
  const int64_t at = head_.head * p.q_head_stride + tile.row * p.q_token_stride;
  ops_->pack_q({static_cast<const char*>(p.q) + at * element, p.q_token_stride, p.dtype}, tile.rows,
               p.head_dim, scale_, s.q);
}

void TileBatch::step(State& s, int32_t piece_index, int32_t next) {
  const AttendParams& p = *p_;
  const Piece& piece = head_.plan->pieces[piece_index];
  const int32_t rows = s.tile->rows;
  const int64_t row_bytes = int64_t{p.head_dim} * ops_->element_bytes;
  const char *next_k = nullptr, *next_v = nullptr;
  int64_t next_bytes = 0;
  if (next != PieceCursor::kNone) {
    const Piece& n = head_.plan->pieces[next];
    next_k = head_.packed_k + n.packed * row_bytes;
    next_v = head_.packed_v + n.packed * row_bytes;
    next_bytes = n.keys * row_bytes;
  }
  float* scores = static_cast<float*>(scores_.get(0));
  ops_->scores(head_.packed_k + piece.packed * row_bytes, s.q, piece.keys, rows, p.head_dim, scale_,
               head_.key_bias != nullptr ? head_.key_bias + piece.key : nullptr, scores, &s.rows,
               next_k, next_bytes);
  if (p.bias != nullptr && p.bias_q_stride != 0) add_pair_bias(s, piece);
  const bool first_visit = s.visited++ == 0;
  const bool drop = vote_.active() && !first_visit && vote_.drop(*ops_, rows, piece.keys, s.rows);
  if (s.kept != nullptr)
    (drop ? s.skipped : s.kept)[piece.block / 64] |= uint64_t{1} << (piece.block % 64);
  if (drop) return;
  ops_->softmax(scores, piece.keys, rows, vote_.active() ? 0.0f : ops_->max_slack, &s.rows);
  vote_.kept(s.rows);
  if (p.block_mass != nullptr) {
    MassRecord& record = mass_[&s - states_.data()].emplace_back();
    std::copy_n(s.rows.sum, kVoteRows, record.sum);
    std::copy_n(s.rows.m, kVoteRows, record.m);
    record.block = piece.block;
  }
  ops_->accumulate(head_.packed_v + piece.packed * row_bytes, scores, piece.keys, rows, p.head_dim,
                   s.kept_pieces == 0, &s.rows, s.o, next_v, next_bytes);
  ++s.kept_pieces;
  pairs_ += int64_t{rows} * piece.keys;
}

// A bias per (query, key) is added after the product; the maxima are taken anew.
void TileBatch::add_pair_bias(State& s, const Piece& piece) {
  const AttendParams& p = *p_;
  float* scores = static_cast<float*>(scores_.get(0));
  const float* bias =
      p.bias + head_.head * p.bias_head_stride + s.tile->row * p.bias_q_stride + piece.key;
  std::fill_n(s.rows.mhat, s.tile->rows, -kInf);
  for (int32_t begin = 0; begin < s.tile->rows; begin += kGranule) {
    float* granule = scores + int64_t{begin} * kVoteKeys;
    const int32_t n = std::min(kGranule, s.tile->rows - begin);
    for (int32_t r = 0; r < n; ++r) {
      const float* row = bias + (begin + r) * p.bias_q_stride;
      float top = -kInf;
      for (int32_t j = 0; j < piece.keys; ++j) {
        float& x = granule[j * kGranule + r];
        x += to_log2(row[j]);
        top = std::max(top, x);
      }
      s.rows.mhat[begin + r] = top;
    }
  }
}

void TileBatch::finish(State& s) {
  const AttendParams& p = *p_;
  const int64_t element = p.dtype == AttendDType::bf16 ? 2 : 4;
  const int64_t at = head_.head * p.out_head_stride + s.tile->row * p.out_token_stride;
  ops_->finish(s.kept_pieces > 0 ? s.o : nullptr, s.tile->rows, p.head_dim, &s.rows,
               static_cast<char*>(p.out) + at * element, p.out_token_stride, p.dtype);
  if (p.lse != nullptr) write_lse(s);
  if (p.block_mass != nullptr) {
    const std::vector<MassRecord>& records = mass_[&s - states_.data()];
    for (const MassRecord& record : records) add_mass(s, &record);
  }
  if (p.skip_bits != nullptr) add_skip_bits(s);
}

void TileBatch::write_lse(const State& s) {
  float* lse = p_->lse + head_.head * p_->q_len + s.tile->row;
  for (int32_t r = 0; r < s.tile->rows; ++r) {
    const float l = s.rows.l[r];
    lse[r] =
        l == 0.0f ? -kInf : static_cast<float>((double{s.rows.m[r]} + std::log2(double{l})) * kLn2);
  }
}

void TileBatch::add_mass(const State& s, const MassRecord* record) {
  const AttendParams& p = *p_;
  alignas(64) float below[kVoteRows], weight[kVoteRows];
  for (int32_t r = 0; r < kVoteRows; ++r) below[r] = record->m[r] - s.rows.m[r];
  ops_->exp2_rows(below, weight);
  float mass = 0.0f;
  for (int32_t r = 0; r < s.tile->rows; ++r)
    if (record->sum[r] != 0.0f) mass += weight[r] * record->sum[r] / s.rows.l[r];
  const int64_t row = head_.head * p.num_q_blocks + s.tile->q_block;
  p.block_mass[row * p.num_k_blocks + record->block] +=
      mass / static_cast<float>(s.tile->block_rows);
}

void TileBatch::add_skip_bits(const State& s) {
  if (s.tile->first_of_block) block_kept_.assign(static_cast<size_t>(words_), 0);
  uint64_t* bits = p_->skip_bits + (head_.head * p_->num_q_blocks + s.tile->q_block) * words_;
  for (int64_t w = 0; w < words_; ++w) {
    block_kept_[w] |= s.kept[w];
    bits[w] = (bits[w] | s.skipped[w]) & ~block_kept_[w];
  }
}

}  // namespace lacuna::cpu
