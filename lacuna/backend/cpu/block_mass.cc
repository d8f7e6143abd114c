// SPDX-License-Identifier: Apache-2.0
// Block mass under a given normaliser: one pass over Q K^T with the kernels of attention. A row
// whose reference maximum is its log-sum-exp and never moves has exp(logit - lse) as its
// "softmax", and the kernel's row sums of a piece are what is asked for.
#include <algorithm>
#include <limits>
#include <vector>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/attend_plan.h"
#include "lacuna/backend/cpu/attend_scratch.h"
#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/kernel_ops.h"
#include "lacuna/backend/cpu/select.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr int64_t kPiecesPerPackTask = 8;

// What AttendParams would say of this call: HeadPlan and the choice of kernel read it.
AttendParams as_attend(const TensorView& q, const BlockLayout& q_layout,
                       const BlockLayout& k_layout) {
  AttendParams p;
  p.dtype = q.dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  p.head_dim = static_cast<int32_t>(q.shape[2]);
  p.q_len = q_layout.seq_len;
  p.k_len = k_layout.seq_len;
  p.block_q = q_layout.block;
  p.block_k = k_layout.block;
  p.num_q_blocks = q_layout.num_blocks;
  p.num_k_blocks = k_layout.num_blocks;
  p.q_offsets = q_layout.offsets.empty() ? nullptr : q_layout.offsets.data();
  p.k_offsets = k_layout.offsets.empty() ? nullptr : k_layout.offsets.data();
  return p;
}

// One head: its plan, its packed keys, its rows of `out`.
struct Head {
  const AttendParams& p;
  const KernelOps& ops;
  const HeadPlan& plan;
  RowsView q, k;     // all tokens
  const float* lse;  // [q_len]
  float scale;       // sm_scale in log2 units
  char* packed_k;
  float* out;  // [num_q_blocks, num_k_blocks]
  int64_t out_stride;

  RowsView rows_at(const RowsView& x, int64_t token) const {
    const int64_t element = p.dtype == AttendDType::bf16 ? 2 : 4;
    return {static_cast<const char*>(x.data) + token * x.stride * element, x.stride, x.dtype};
  }
  int64_t row_bytes() const { return int64_t{p.head_dim} * ops.element_bytes; }

  void pack(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = plan.pieces[static_cast<size_t>(i)];
      ops.pack_k(rows_at(k, piece.key), piece.keys, p.head_dim,
                 packed_k + piece.packed * row_bytes());
    }
  }

  void add_tile(const Tile& tile) const {
    static thread_local ScratchBuffer packed_q, logits;
    void* tile_q = packed_q.get_array<float>(int64_t{kVoteRows} * p.head_dim);
    float* scores = logits.get_array<float>(int64_t{kVoteRows} * kVoteKeys);
    ops.pack_q(rows_at(q, tile.row), tile.rows, p.head_dim, scale, tile_q);
    TileRows rows = {};
    for (int32_t r = 0; r < tile.rows; ++r)
      rows.m[r] = static_cast<float>(double{lse[tile.row + r]} * kLog2E);
    float* masses = out + tile.q_block * out_stride;
    for (const Piece& piece : plan.pieces) {
      ops.scores(packed_k + piece.packed * row_bytes(), tile_q, piece.keys, tile.rows, p.head_dim,
                 scale, nullptr, scores, &rows, nullptr, 0);
      std::fill_n(rows.mhat, kVoteRows, -std::numeric_limits<float>::infinity());
      ops.softmax(scores, piece.keys, tile.rows, 0.0f, &rows);
      float mass = 0.0f;
      for (int32_t r = 0; r < tile.rows; ++r) mass += rows.sum[r];
      masses[piece.block] += mass / static_cast<float>(tile.block_rows);
    }
  }
};

}  // namespace

void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, Isa isa, const TensorView& out) {
  check_block_mass(Reach::host, q, k, lse, head_ids, q_layout, k_layout, out);
  check_channels("block_mass", out);
  if (out.numel() == 0) return;
  const AttendParams p = as_attend(q, q_layout, k_layout);
  const KernelOps& ops = attend_kernel(p.dtype, p.head_dim, isa);
  static thread_local HeadPlan plan;
  static thread_local ScratchBuffer packed;
  const int64_t element = element_bytes(q.dtype);
  for (size_t i = 0; i < head_ids.size(); ++i) {
    plan.build(p, static_cast<int32_t>(i), false, ops.key_multiple);
    void* keys =
        packed.get(std::max<int64_t>(plan.packed_keys, 1) * p.head_dim * ops.element_bytes);
    const char* q_data = static_cast<const char*>(q.data) + head_ids[i] * q.stride[0] * element;
    const char* k_data = static_cast<const char*>(k.data) + head_ids[i] * k.stride[0] * element;
    const Head head{p,
                    ops,
                    plan,
                    {q_data, q.stride[1], p.dtype},
                    {k_data, k.stride[1], p.dtype},
                    lse + head_ids[i] * p.q_len,
                    static_cast<float>(double{sm_scale} * kLog2E),
                    static_cast<char*>(keys),
                    out.as<float>() + static_cast<int64_t>(i) * out.stride[0],
                    out.stride[1]};
    parallel_ranges(static_cast<int64_t>(plan.pieces.size()), kPiecesPerPackTask,
                    [&](int64_t begin, int64_t end) { head.pack(begin, end); });
    // Tiles of one query block add to one row of `out`: a task is a whole block.
    std::vector<size_t> first_tile;
    for (size_t t = 0; t < head.plan.tiles.size(); ++t)
      if (head.plan.tiles[t].first_of_block) first_tile.push_back(t);
    first_tile.push_back(head.plan.tiles.size());
    for (int32_t qb = 0; qb < p.num_q_blocks; ++qb)
      std::fill_n(head.out + qb * head.out_stride, p.num_k_blocks, 0.0f);
    parallel_tasks(static_cast<int64_t>(first_tile.size()) - 1, [&](int64_t task, int) {
      if (ops.begin != nullptr) ops.begin();
      for (size_t t = first_tile[task]; t < first_tile[task + 1]; ++t)
        head.add_tile(head.plan.tiles[t]);
      if (ops.end != nullptr) ops.end();
    });
  }
}

}  // namespace lacuna::cpu
