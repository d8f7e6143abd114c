// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/refresh.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna {

namespace {

double ratio(const L1Distance& d) {
  if (d.difference == 0.0) return 0.0;
  return d.difference / d.norm;  // infinity at a zero anchor: any move selects
}

BlockLayout mean_layout(const Refresh& rule, int64_t seq_len) {
  const int64_t pool = rule.pool == 0 ? seq_len : rule.pool;
  return BlockLayout::uniform(seq_len, static_cast<int32_t>(pool));
}

}  // namespace

int64_t anchor_bytes(const Refresh& rule, const SiteSizes& sizes) {
  if (rule.kind != RefreshKind::drift) return 0;
  const int64_t means = mean_layout(rule, sizes.seq_len()).num_blocks;
  return 2 * sizes.num_heads * means * sizes.head_dim * static_cast<int64_t>(sizeof(float));
}

L1Distance l1_distance(std::span<const float> a, std::span<const float> b) {
  L1Distance sum;
  for (size_t i = 0; i < a.size(); ++i) {
    sum.difference += std::abs(static_cast<double>(a[i]) - b[i]);
    sum.norm += std::abs(static_cast<double>(b[i]));
  }
  return sum;
}

std::span<const int32_t> RefreshState::decide(const Refresh& rule, const Site& site,
                                              const TensorView& q, const TensorView& k,
                                              Backend& backend, Workspace& workspace,
                                              const HeadShare& share) {
  const int64_t num_heads = q.shape[0];
  if (state_.empty()) set_heads(num_heads);
  LACUNA_CHECK(static_cast<int64_t>(state_.size()) == num_heads,
               "refresh: {} heads, expected {} as before", num_heads, state_.size());
  decided_step_ = site.step;
  const bool measured = rule.kind == RefreshKind::drift;
  if (measured) measure(rule, q, k, backend, workspace);
  const bool every =
      rule.kind == RefreshKind::every_step ||
      (rule.kind == RefreshKind::at_steps &&
       std::find(rule.steps.begin(), rule.steps.end(), site.step) != rule.steps.end()) ||
      (rule.kind == RefreshKind::carry && rule.retest > 0 &&
       site.step - selected_step_ >= rule.retest);
  heads_.clear();
  for (int64_t h = 0; h < num_heads; ++h) {
    const bool valid = state_[h] == Head::selected;
    // Negated so that a NaN drift selects.
    const bool moved = measured && valid && !(drift(rule, h) <= rule.delta);
    if (!valid || every || moved) heads_.push_back(static_cast<int32_t>(h));
  }
  if (measured) gate(rule, share);
  return heads_;
}

void RefreshState::set_heads(int64_t num_heads) {
  state_.assign(static_cast<size_t>(num_heads), Head::fresh);
  all_.resize(static_cast<size_t>(num_heads));
  std::iota(all_.begin(), all_.end(), 0);
}

void RefreshState::transfer(const StateIo& io, int64_t num_heads) {
  if (io.reading()) set_heads(num_heads);
  std::vector<int32_t> heads;
  for (const Head head : state_) heads.push_back(static_cast<int32_t>(head));
  io.values("heads", heads);
  LACUNA_CHECK(heads.size() == state_.size(), "state: refresh of {} heads, expected {}",
               heads.size(), state_.size());
  for (size_t h = 0; h < heads.size(); ++h) {
    LACUNA_CHECK(heads[h] >= 0 && heads[h] <= static_cast<int32_t>(Head::selected),
                 "state: refresh {} of head {}, expected 0 to 2", heads[h], h);
    state_[h] = static_cast<Head>(heads[h]);
  }
  int64_t step = selected_step_;
  io.number("selected_step", step, 0, INT32_MAX);
  selected_step_ = static_cast<int>(step);
  io.values("q_anchor", q_anchor_);
  io.values("k_anchor", k_anchor_);
}

void RefreshState::measure(const Refresh& rule, const TensorView& q, const TensorView& k,
                           Backend& backend, Workspace& workspace) {
  const int64_t num_heads = q.shape[0], seq_len = q.shape[1], head_dim = q.shape[2];
  const BlockLayout layout = mean_layout(rule, seq_len);
  head_size_ = layout.num_blocks * head_dim;
  q_mean_ = workspace.host("refresh.q_mean", DType::f32, {num_heads, layout.num_blocks, head_dim});
  k_mean_ = workspace.host("refresh.k_mean", DType::f32, {num_heads, layout.num_blocks, head_dim});
  backend.block_mean(q, all_, layout, q_mean_);
  backend.block_mean(k, all_, layout, k_mean_);
  q_anchor_.resize(static_cast<size_t>(num_heads * head_size_));
  k_anchor_.resize(static_cast<size_t>(num_heads * head_size_));
}

double RefreshState::drift(const Refresh& rule, int64_t head) const {
  const auto distance = [&](const TensorView& mean, const std::vector<float>& anchor) {
    const auto size = static_cast<size_t>(head_size_);
    return l1_distance({mean.as<float>() + head * head_size_, size},
                       {anchor.data() + head * head_size_, size});
  };
  const L1Distance dq = distance(q_mean_, q_anchor_), dk = distance(k_mean_, k_anchor_);
  return rule.relative ? ratio(dq) + ratio(dk) : dq.difference + dk.difference;
}

void RefreshState::gate(const Refresh& rule, const HeadShare& share) {
  constexpr double kReuses = 0.0, kSelects = 1.0, kHasNone = 2.0;
  std::vector<double> heads;
  for (const Head head : state_) heads.push_back(head == Head::selected ? kReuses : kHasNone);
  for (const int32_t h : heads_)
    if (state_[h] == Head::selected) heads[h] = kSelects;
  heads = share.gather(heads);
  if (std::find(heads.begin(), heads.end(), kHasNone) != heads.end()) return;
  const double selecting = std::accumulate(heads.begin(), heads.end(), 0.0);
  const double part = selecting / static_cast<double>(heads.size());
  if (part < rule.gate_low) {
    heads_.clear();
  } else if (part > rule.gate_high) {
    heads_ = all_;
  }
}

void RefreshState::selected(bool provisional) {
  selected_step_ = decided_step_;
  for (int32_t h : heads_) {
    const bool seen_before = state_[h] == Head::looked_at;
    state_[h] = provisional ? Head::looked_at : Head::selected;
    if (head_size_ == 0 || seen_before) continue;
    std::copy_n(q_mean_.as<float>() + h * head_size_, head_size_,
                q_anchor_.begin() + h * head_size_);
    std::copy_n(k_mean_.as<float>() + h * head_size_, head_size_,
                k_anchor_.begin() + h * head_size_);
  }
}

}  // namespace lacuna
