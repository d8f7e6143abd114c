// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "lacuna/backend/cpu/attend_plan.h"
#include "lacuna/backend/cpu/attend_scratch.h"
#include "lacuna/backend/cpu/attend_tile.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

constexpr int64_t kPackedBudget = int64_t{128} << 20;  // bytes of packed K and V held at a time
constexpr int64_t kPiecesPerPackTask = 8;
// Query tiles that share one pass over K and V when these do not fit L2.
constexpr int32_t kSuperTiles = 4;
constexpr int64_t kL2Bytes = int64_t{1} << 20;

struct Task {
  int32_t head = 0;  // within the chunk
  int32_t first_tile = 0, num_tiles = 0;
};

// One call. Lives as a thread-local of the caller so that its vectors keep their memory.
class AttendRun {
 public:
  void run(const AttendParams& params, const KernelOps& ops);

 private:
  const HeadPlan& plan(int32_t head) const { return plans_[shared_plan_ ? 0 : head]; }
  void clear_outputs();
  void run_chunk(int32_t first, int32_t count);
  void pack(int64_t task);
  void list_tasks(int32_t count);
  void run_task(const Task& task);

  const AttendParams* p_ = nullptr;
  const KernelOps* ops_ = nullptr;
  bool plain_ = false, whole_blocks_ = false, shared_plan_ = false;
  std::vector<HeadPlan> plans_;  // of the chunk's heads, or one for all
  std::vector<Task> tasks_;
  ScratchBuffer packed_k_, packed_v_, key_bias_;
  int32_t chunk_first_ = 0;
  int64_t head_bytes_ = 0;  // packed K (or V) of one head
  int64_t pack_tasks_per_head_ = 0;
};

void AttendRun::run(const AttendParams& params, const KernelOps& ops) {
  p_ = &params;
  ops_ = &ops;
  const bool blocks_seen =
      params.skip != SkipKind::none || params.block_mass != nullptr || params.skip_bits != nullptr;
  plain_ = params.mask == nullptr && !blocks_seen;
  whole_blocks_ = params.block_mass != nullptr || params.skip_bits != nullptr;
  shared_plan_ = plain_ || (params.q_offsets == nullptr && params.k_offsets == nullptr);
  clear_outputs();
  if (params.num_heads == 0 || params.q_len == 0) return;
  // The last piece of every block may be rounded up.
  const int64_t max_rows =
      params.k_len + (int64_t{params.num_k_blocks} + 1) * (ops.key_multiple - 1);
  head_bytes_ = (max_rows * params.head_dim * ops.element_bytes / 64 + 1) * 64;
  const int64_t per_chunk = std::max<int64_t>(1, kPackedBudget / (2 * head_bytes_));
  for (int64_t first = 0; first < params.num_heads; first += per_chunk)
    run_chunk(static_cast<int32_t>(first),
              static_cast<int32_t>(std::min<int64_t>(per_chunk, params.num_heads - first)));
}

void AttendRun::clear_outputs() {
  const AttendParams& p = *p_;
  for (int32_t call = 0; call < p.num_heads; ++call) {
    const int64_t head = p.head_ids != nullptr ? p.head_ids[call] : call;
    if (p.pv_pairs != nullptr) p.pv_pairs[call] = 0;
    const int64_t row = head * p.num_q_blocks, words = (int64_t{p.num_k_blocks} + 63) / 64;
    if (p.block_mass != nullptr)
      std::fill_n(p.block_mass + row * p.num_k_blocks, int64_t{p.num_q_blocks} * p.num_k_blocks,
                  0.0f);
    if (p.skip_bits != nullptr)
      std::fill_n(p.skip_bits + row * words, p.num_q_blocks * words, uint64_t{0});
  }
}

void AttendRun::run_chunk(int32_t first, int32_t count) {
  chunk_first_ = first;
  const int32_t num_plans = shared_plan_ ? 1 : count;
  if (plans_.size() < static_cast<size_t>(num_plans)) plans_.resize(num_plans);
  if (!shared_plan_ || first == 0)
    for (int32_t i = 0; i < num_plans; ++i)
      plans_[i].build(*p_, first + i, plain_, ops_->key_multiple);
  packed_k_.get(head_bytes_ * count);
  packed_v_.get(head_bytes_ * count);
  if (p_->bias != nullptr && p_->bias_q_stride == 0) key_bias_.get_array<float>(p_->k_len * count);
  int64_t most_pieces = 0;
  for (int32_t i = 0; i < num_plans; ++i)
    most_pieces = std::max<int64_t>(most_pieces, plans_[i].pieces.size());
  pack_tasks_per_head_ = (most_pieces + kPiecesPerPackTask - 1) / kPiecesPerPackTask;
  parallel_tasks(pack_tasks_per_head_ * count, [this](int64_t task, int) { pack(task); });
  list_tasks(count);
  parallel_tasks(static_cast<int64_t>(tasks_.size()),
                 [this](int64_t task, int) { run_task(tasks_[task]); });
}

void AttendRun::pack(int64_t task) {
  const AttendParams& p = *p_;
  const int32_t in_chunk = static_cast<int32_t>(task / pack_tasks_per_head_);
  const int32_t call = chunk_first_ + in_chunk;
  const int64_t head = p.head_ids != nullptr ? p.head_ids[call] : call;
  const HeadPlan& plan = this->plan(in_chunk);
  const int64_t element = p.dtype == AttendDType::bf16 ? 2 : 4;
  const int64_t row_bytes = int64_t{p.head_dim} * ops_->element_bytes;
  char* const packed_k = static_cast<char*>(packed_k_.get(0)) + in_chunk * head_bytes_;
  char* const packed_v = static_cast<char*>(packed_v_.get(0)) + in_chunk * head_bytes_;
  const char* const k = static_cast<const char*>(p.k) + head * p.k_head_stride * element;
  const char* const v = static_cast<const char*>(p.v) + head * p.v_head_stride * element;
  const int64_t begin = task % pack_tasks_per_head_ * kPiecesPerPackTask;
  const int64_t end = std::min<int64_t>(begin + kPiecesPerPackTask, plan.pieces.size());
  for (int64_t i = begin; i < end; ++i) {
    const Piece& piece = plan.pieces[i];
    ops_->pack_k({k + piece.key * p.k_token_stride * element, p.k_token_stride, p.dtype},
                 piece.keys, p.head_dim, packed_k + piece.packed * row_bytes);
    ops_->pack_v({v + piece.key * p.v_token_stride * element, p.v_token_stride, p.dtype},
                 piece.keys, p.head_dim, packed_v + piece.packed * row_bytes);
    if (p.bias != nullptr && p.bias_q_stride == 0)
      log2_bias(p.bias + head * p.bias_head_stride + piece.key, piece.keys,
                static_cast<float*>(key_bias_.get(0)) + in_chunk * p.k_len + piece.key);
  }
}

// Tasks are runs of tiles of one head; whole query blocks where an output sums over a block's rows.
void AttendRun::list_tasks(int32_t count) {
  tasks_.clear();
  int64_t tiles = 0;
  for (int32_t i = 0; i < count; ++i) tiles += static_cast<int64_t>(plan(i).tiles.size());
  const int64_t kv_bytes = 2 * p_->k_len * p_->head_dim * ops_->element_bytes;
  int64_t size = kv_bytes > kL2Bytes / 2 ? kSuperTiles : 1;
  // Enough tasks to keep every thread busy to the end.
  size = std::clamp<int64_t>(tiles / (int64_t{4} * num_threads()), 1, size);
  for (int32_t head = 0; head < count; ++head) {
    const std::vector<Tile>& list = plan(head).tiles;
    const int32_t n = static_cast<int32_t>(list.size());
    for (int32_t begin = 0; begin < n;) {
      int32_t end = static_cast<int32_t>(std::min<int64_t>(begin + size, n));
      if (whole_blocks_)
        while (end < n && !list[end].first_of_block) ++end;
      tasks_.push_back({head, begin, end - begin});
      begin = end;
    }
  }
}

void AttendRun::run_task(const Task& task) {
  const AttendParams& p = *p_;
  const int32_t call = chunk_first_ + task.head;
  HeadData head{};
  head.call = call;
  head.head = p.head_ids != nullptr ? p.head_ids[call] : call;
  head.plan = &plan(task.head);
  head.packed_k = static_cast<const char*>(packed_k_.get(0)) + task.head * head_bytes_;
  head.packed_v = static_cast<const char*>(packed_v_.get(0)) + task.head * head_bytes_;
  if (p.bias != nullptr && p.bias_q_stride == 0)
    head.key_bias = static_cast<const float*>(key_bias_.get(0)) + task.head * p.k_len;
  static thread_local TileBatch batch;
  int64_t pairs = 0;
  batch.begin(p, *ops_, head);
  if (ops_->begin != nullptr) ops_->begin();
  for (int32_t i = 0; i < task.num_tiles; i += kSuperTiles)
    pairs += batch.run(task.first_tile + i, std::min(kSuperTiles, task.num_tiles - i));
  if (ops_->end != nullptr) ops_->end();
  if (p.pv_pairs != nullptr)
    std::atomic_ref<int64_t>(p.pv_pairs[call]).fetch_add(pairs, std::memory_order_relaxed);
}

}  // namespace

void run_attend(const AttendParams& params, const KernelOps& ops) {
  static thread_local AttendRun run;
  run.run(params, ops);
}

}  // namespace lacuna::cpu
