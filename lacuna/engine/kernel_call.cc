// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/kernel_call.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {

namespace {

constexpr int32_t kDenseBlock = 128;

void check_dtype(const TensorView& q) {
  LACUNA_CHECK(q.dtype == DType::f32 || q.dtype == DType::bf16, "attend: {}, expected f32 or bf16",
               dtype_name(q.dtype));
}

void check_like(const char* name, const TensorView& x, const char* other, const TensorView& y) {
  LACUNA_CHECK(x.rank == 3 && x.shape == y.shape && x.dtype == y.dtype,
               "attend: {} {}, expected the shape and dtype of {} {}", name, x.describe(), other,
               y.describe());
}

void check_channels(const char* name, const TensorView& x) {
  LACUNA_CHECK(x.stride[2] == 1 || x.shape[2] == 1, "attend: {} channel stride {}, expected 1",
               name, x.stride[2]);
}

// One value per head out of one value or one per head.
const float* spread(const char* name, const std::vector<float>& values, int32_t num_heads,
                    std::vector<float>& out) {
  LACUNA_CHECK(values.size() == 1 || static_cast<int32_t>(values.size()) == num_heads,
               "skip: {} {} values, expected 1 or {}", values.size(), name, num_heads);
  out.resize(static_cast<size_t>(num_heads));
  for (int32_t h = 0; h < num_heads; ++h) out[h] = values[values.size() == 1 ? 0 : h];
  return out.data();
}

int64_t head_stride(const TokenOrder& order) {
  return order.num_heads == 1 ? 0 : order.seq_len;
}

}  // namespace

void KernelCall::begin(const TensorView& q, const TensorView& k, const TensorView& v,
                       const TensorView& out, int64_t seq_len) {
  LACUNA_CHECK(q.rank == 3 && q.shape[0] > 0 && q.shape[1] == seq_len && seq_len > 0,
               "attend: q {}, expected [num_heads, {}, head_dim]", q.describe(), seq_len);
  check_dtype(q);
  check_like("k", k, "q", q);
  begin(q, k, v, out);
}

void KernelCall::begin(const TensorView& q, const TensorView& k, const TensorView& v,
                       const TensorView& out) {
  LACUNA_CHECK(q.rank == 3 && q.shape[0] > 0, "attend: q {}, expected [num_heads, q_len, head_dim]",
               q.describe());
  check_dtype(q);
  LACUNA_CHECK(
      k.rank == 3 && k.shape[0] == q.shape[0] && k.shape[2] == q.shape[2] && k.dtype == q.dtype,
      "attend: k {}, expected the heads, channels and dtype of q {}", k.describe(), q.describe());
  check_like("v", v, "k", k);
  check_like("out", out, "q", q);
  check_channels("q", q);
  check_channels("k", k);
  check_channels("v", v);
  check_channels("out", out);
  q_ = q, k_ = k, v_ = v, out_ = out;
  selection_ = nullptr;
  compensation_ = Compensation::none;
  lse_ = {};
  params_ = {};
  params_.dtype = q.dtype == DType::f32 ? AttendDType::f32 : AttendDType::bf16;
  params_.num_heads = static_cast<int32_t>(q.shape[0]);
  params_.q_len = q.shape[1];
  params_.k_len = k.shape[1];
  params_.head_dim = static_cast<int32_t>(q.shape[2]);
  params_.sm_scale = 1.0f / std::sqrt(static_cast<float>(params_.head_dim));
  params_.block_q = params_.block_k = kDenseBlock;
  params_.num_q_blocks = BlockLayout::uniform(params_.q_len, kDenseBlock).num_blocks;
  params_.num_k_blocks = BlockLayout::uniform(params_.k_len, kDenseBlock).num_blocks;
  point_at(q, k, v, out);
}

void KernelCall::point_at(const TensorView& q, const TensorView& k, const TensorView& v,
                          const TensorView& out) {
  params_.q = q.data;
  params_.k = k.data;
  params_.v = v.data;
  params_.out = out.data;
  params_.q_head_stride = q.stride[0];
  params_.q_token_stride = q.stride[1];
  params_.k_head_stride = k.stride[0];
  params_.k_token_stride = k.stride[1];
  params_.v_head_stride = v.stride[0];
  params_.v_token_stride = v.stride[1];
  params_.out_head_stride = out.stride[0];
  params_.out_token_stride = out.stride[1];
}

void KernelCall::set_skip(const SkipRule& skip) {
  params_.skip = skip.kind;
  params_.order = skip.kind == SkipKind::none ? VisitOrder::ascending : VisitOrder::coarse_to_fine;
  params_.skip_param = params_.skip_kappa = nullptr;
  if (skip.kind == SkipKind::none) return;
  params_.skip_param = spread("parameter", skip.param, params_.num_heads, skip_param_);
  // lambda = a / L. Here, because a policy does not know the length and may serve several. Above 1
  // a piece that raises the maximum would be skipped, which is not BLASST's rule.
  if (skip.per_key)
    for (float& lambda : skip_param_)
      lambda = std::min(1.0f, lambda / static_cast<float>(params_.k_len));
  if (!skip.kappa.empty())
    params_.skip_kappa = spread("kappa", skip.kappa, params_.num_heads, skip_kappa_);
}

void KernelCall::keep(const Selection& selection) {
  selection_ = &selection;
  const BlockLayout &q = selection.q_layout, &k = selection.k_layout;
  params_.block_q = q.block;
  params_.block_k = k.block;
  params_.num_q_blocks = q.num_blocks;
  params_.num_k_blocks = k.num_blocks;
  params_.q_offsets = q.offsets.empty() ? nullptr : q.offsets.data();
  params_.k_offsets = k.offsets.empty() ? nullptr : k.offsets.data();
  const BlockMask& mask = selection.mask;
  params_.mask = nullptr;
  if (mask.empty()) return;
  LACUNA_CHECK(mask.num_heads() == params_.num_heads && mask.num_q_blocks() == q.num_blocks &&
                   mask.num_k_blocks() == k.num_blocks,
               "attend: mask of {} heads, {}x{} blocks, expected {} heads, {}x{} blocks",
               mask.num_heads(), mask.num_q_blocks(), mask.num_k_blocks(), params_.num_heads,
               q.num_blocks, k.num_blocks);
  params_.mask = mask.words();
}

void KernelCall::ask(const Selection& selection, Observation& seen) {
  const int64_t heads = params_.num_heads;
  if (selection.wants_lse) seen.lse = ask_lse();
  if (selection.wants_block_mass)
    seen.block_mass = params_.block_mass =
        workspace_
            .host("engine.block_mass", DType::f32,
                  {heads, params_.num_q_blocks, params_.num_k_blocks})
            .as<float>();
  if (selection.wants_skip_bits) seen.skip_bits = ask_skip_bits();
}

const float* KernelCall::ask_lse() {
  if (params_.lse == nullptr)
    params_.lse =
        workspace_.host("engine.lse", DType::f32, {params_.num_heads, params_.q_len}).as<float>();
  return params_.lse;
}

void KernelCall::write_lse(std::span<float> lse) {
  LACUNA_CHECK(static_cast<int64_t>(lse.size()) == params_.num_heads * params_.q_len,
               "attend: room for {} values of lse, expected {} x {}", lse.size(), params_.num_heads,
               params_.q_len);
  ask_lse();
  lse_ = lse;
}

void KernelCall::copy_lse() const {
  const int64_t n = params_.q_len;
  for (int64_t h = 0; h < params_.num_heads; ++h) {
    const bool raster = selection_ == nullptr || selection_->q_order.empty();
    const int32_t* order = raster ? nullptr : selection_->q_order.head(h);
    for (int64_t p = 0; p < n; ++p) lse_[h * n + (raster ? p : order[p])] = params_.lse[h * n + p];
  }
}

const uint64_t* KernelCall::ask_skip_bits() {
  const int64_t words = (int64_t{params_.num_k_blocks} + 63) / 64;
  if (params_.skip_bits == nullptr)
    params_.skip_bits = static_cast<uint64_t*>(
        workspace_
            .host("engine.skip_bits", DType::i64, {params_.num_heads, params_.num_q_blocks, words})
            .data);
  return params_.skip_bits;
}

TensorView KernelCall::gathered(const char* name, const TensorView& x, const TokenOrder& order) {
  if (order.empty()) return x;
  const TensorView moved = workspace_.get(name, x.dtype, {x.shape[0], x.shape[1], x.shape[2]});
  backend_.gather_tokens(x, order.order.data(), head_stride(order), moved);
  return moved;
}

void KernelCall::attend(const TensorView& q, const TensorView& k, const TensorView& v,
                        const TensorView& out) {
  point_at(q, k, v, out);
  const bool compensated = selection_ != nullptr && compensation_ != Compensation::none &&
                           (!selection_->mask.empty() || params_.skip != SkipKind::none);
  if (compensated) ask_lse();
  if (compensated && params_.skip != SkipKind::none) ask_skip_bits();
  backend_.attend(params_);
  if (!lse_.empty()) copy_lse();
  if (compensated)
    pooled_pairs_ = compensator_.join(compensation_, params_, *selection_, q, k, v, out);
}

void KernelCall::run() {
  pv_pairs_.assign(static_cast<size_t>(params_.num_heads), 0);
  params_.pv_pairs = pv_pairs_.data();
  pooled_pairs_ = 0;
  attend_in_order();
}

// Row t of the output is the row that the kernel computed for token t, or for the token that t
// stands for: a scatter, or a gather through the inverse order.
void KernelCall::put_back(const TensorView& out) {
  const TokenOrder &order = selection_->q_order, &source = selection_->row_source;
  if (source.empty())
    return backend_.scatter_tokens(out, order.order.data(), head_stride(order), out_);
  const int64_t n = params_.q_len;
  const int64_t heads =
      order.empty() ? source.num_heads : std::max(source.num_heads, order.num_heads);
  rows_.seq_len = n;
  rows_.num_heads = heads;
  rows_.order.resize(static_cast<size_t>(heads * n));
  parallel_tasks(heads, [&](int64_t h, int) {
    const int32_t* from = source.head(h);
    int32_t* rows = rows_.order.data() + h * n;
    if (order.empty()) {
      std::copy_n(from, n, rows);
      return;
    }
    std::vector<int32_t> place(static_cast<size_t>(n));
    for (int64_t p = 0; p < n; ++p) place[order.head(h)[p]] = static_cast<int32_t>(p);
    for (int64_t t = 0; t < n; ++t) rows[t] = place[from[t]];
  });
  backend_.gather_tokens(out, rows_.order.data(), head_stride(rows_), out_);
}

void KernelCall::attend_in_order() {
  const bool raster =
      selection_ == nullptr || (selection_->q_order.empty() && selection_->k_order.empty());
  const bool moves =
      selection_ != nullptr && (!selection_->q_order.empty() || !selection_->row_source.empty());
  const TensorView out = moves ? workspace_.get("engine.out", out_.dtype,
                                                {out_.shape[0], out_.shape[1], out_.shape[2]})
                               : out_;
  if (raster) {
    attend(q_, k_, v_, out);
  } else {
    attend(gathered("engine.q", q_, selection_->q_order),
           gathered("engine.k", k_, selection_->k_order),
           gathered("engine.v", v_, selection_->k_order), out);
  }
  if (moves) put_back(out);
}

double KernelCall::share(int64_t pairs) const {
  return static_cast<double>(pairs) /
         (static_cast<double>(params_.num_heads) * static_cast<double>(params_.q_len) *
          static_cast<double>(params_.k_len));
}

double KernelCall::pv_density() const {
  return share(std::accumulate(pv_pairs_.begin(), pv_pairs_.end(), int64_t{0}));
}

double KernelCall::pooled_density() const {
  return share(pooled_pairs_);
}

}  // namespace lacuna
