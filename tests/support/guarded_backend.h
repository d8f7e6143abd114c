// SPDX-License-Identifier: Apache-2.0
// A backend whose memory the host cannot touch: pages are without access except while an op runs.
// Host code that reads or writes backend memory crashes, or throws where it asks TensorView::as().
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna::test {

class GuardedBackend final : public Backend {
 public:
  explicit GuardedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {
    void* p = mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    LACUNA_CHECK(p != MAP_FAILED, "guarded: no address space");
    arena_ = static_cast<char*>(p);
  }
  ~GuardedBackend() override { munmap(arena_, kArena); }

  std::string_view name() const override { return inner_->name(); }
  std::string description() const override { return "guarded " + inner_->description(); }
  std::string rounding() const override { return inner_->rounding(); }
  std::string unsupported(const AttendParams& p) const override { return inner_->unsupported(p); }

  // What was asked of it, for tests.
  size_t allocations() const { return blocks_.size(); }
  size_t promises() const { return constants_.size(); }
  int64_t downloaded_bytes = 0;  // copied from backend memory to the host
  size_t most_allocated = 0;     // bytes held at once, in whole pages

  // --- memory
  lacuna::Device device() const override { return Device::cuda; }
  void* allocate(size_t bytes) override {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t size = (bytes + page) / page * page;
    size_t at = 0;  // the first gap, with one page in front and behind
    for (const auto& [begin, length] : blocks_) {
      if (begin >= at + page + size + page) break;
      at = begin + length;
    }
    at += page;
    LACUNA_CHECK(at + size < kArena, "guarded: out of memory");
    blocks_[at] = size;
    allocated_ += size;
    most_allocated = std::max(most_allocated, allocated_);
    used_ = std::max(used_, at + size);
    const Open open(*this);
    std::memset(arena_ + at, 0xff, size);  // NaN to whoever reads before writing
    return arena_ + at;
  }
  void release(void* memory) override {
    const auto found = blocks_.find(static_cast<size_t>(static_cast<char*>(memory) - arena_));
    LACUNA_CHECK(found != blocks_.end(), "guarded: releases what it did not allocate");
    allocated_ -= found->second;
    blocks_.erase(found);
  }
  void copy(const TensorView& from, const TensorView& to) override {
    if (from.device == Device::cuda && to.device == Device::cpu)
      downloaded_bytes += storage_bytes(from.dtype, from.numel());
    const Open open(*this);
    inner_->copy(host(from), host(to));
  }
  void constant(const void* begin, size_t bytes) override {
    LACUNA_CHECK(constants_.emplace(begin, std::pair(bytes, hash(begin, bytes))).second,
                 "guarded: promised twice");
  }
  void forget(const void* begin) override {
    const auto found = constants_.find(begin);
    LACUNA_CHECK(found != constants_.end(), "guarded: forgets what was not promised");
    if (hash(begin, found->second.first) != found->second.second) broken_promise = true;
    constants_.erase(found);
  }
  bool broken_promise = false;

  // --- attention and selection
  void attend(const AttendParams& params) override {
    for (const void* p :
         std::initializer_list<const void*>{params.head_ids, params.mask, params.q_offsets,
                                            params.k_offsets, params.skip_param, params.skip_kappa})
      on_host(p);
    const Open open(*this);
    inner_->attend(params);
  }
  void merge_lse(const TensorView& a, float* lse_a, const TensorView& b,
                 const float* lse_b) override {
    on_host(lse_a), on_host(lse_b);
    const Open open(*this);
    inner_->merge_lse(host(a), lse_a, host(b), lse_b);
  }
  void block_mean(const TensorView& x, std::span<const int32_t> heads, const BlockLayout& layout,
                  const TensorView& out) override {
    const Open open(*this);
    inner_->block_mean(host(x), heads, layout, host(out));
  }
  void antidiagonal_scores(const TensorView& q, const TensorView& k, std::span<const int32_t> heads,
                           const BlockLayout& q_layout, const BlockLayout& k_layout, float sm_scale,
                           int32_t stride, bool compat, const TensorView& out) override {
    const Open open(*this);
    inner_->antidiagonal_scores(host(q), host(k), heads, q_layout, k_layout, sm_scale, stride,
                                compat, host(out));
  }
  void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                  std::span<const int32_t> heads, const BlockLayout& q_layout,
                  const BlockLayout& k_layout, float sm_scale, const TensorView& out) override {
    on_host(lse);
    const Open open(*this);
    inner_->block_mass(host(q), host(k), lse, heads, q_layout, k_layout, sm_scale, host(out));
  }
  void nearest_centroids(const TensorView& x, std::span<const int32_t> heads,
                         const TensorView& centroids, const TensorView& labels) override {
    const Open open(*this);
    inner_->nearest_centroids(host(x), heads, host(centroids), host(labels));
  }
  void select_top_p(const TensorView& scores, std::span<const float> p, BlockMask& mask) override {
    const Open open(*this);
    inner_->select_top_p(host(scores), p, mask);
  }
  void select_top_k(const TensorView& scores, std::span<const int32_t> k,
                    BlockMask& mask) override {
    const Open open(*this);
    inner_->select_top_k(host(scores), k, mask);
  }
  void gather_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                     const TensorView& out) override {
    on_host(order);
    const Open open(*this);
    inner_->gather_tokens(host(x), order, stride, host(out));
  }
  void scatter_tokens(const TensorView& x, const int32_t* order, int64_t stride,
                      const TensorView& out) override {
    on_host(order);
    const Open open(*this);
    inner_->scatter_tokens(host(x), order, stride, host(out));
  }

  // --- network
  void linear(const TensorView& x, const TensorView& w, const float* bias, Epilogue epilogue,
              const float* gate, const TensorView& out) override {
    on_host(bias), on_host(gate);
    const Open open(*this);
    inner_->linear(host(x), host(w), bias, epilogue, gate, host(out));
  }
  void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                  const float* shift, float eps, const TensorView& out) override {
    on_host(weight), on_host(bias), on_host(scale), on_host(shift);
    const Open open(*this);
    inner_->layer_norm(host(x), weight, bias, scale, shift, eps, host(out));
  }
  void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                const RopeTables* rope, int32_t num_heads, const TensorView& out) override {
    on_host(weight);
    if (rope != nullptr) on_host(rope->cos_frames), on_host(rope->cos_height);
    const Open open(*this);
    inner_->rms_norm(host(x), weight, eps, span, rope, num_heads, host(out));
  }
  void add(const TensorView& a, const TensorView& b, const TensorView& out) override {
    const Open open(*this);
    inner_->add(host(a), host(b), host(out));
  }
  void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                     const TensorView& out) override {
    const Open open(*this);
    inner_->gated_product(activation, host(gate), host(up), host(out));
  }
  void conv3d(const TensorView& x, const TensorView& w, const float* bias, const ConvParams& conv,
              const TensorView* residual, const TensorView& out) override {
    on_host(bias);
    TensorView added;
    if (residual != nullptr) added = host(*residual);
    const Open open(*this);
    inner_->conv3d(host(x), host(w), bias, conv, residual == nullptr ? nullptr : &added, host(out));
  }
  void channel_norm(const TensorView& x, const float* gamma, bool silu,
                    const TensorView& out) override {
    on_host(gamma);
    const Open open(*this);
    inner_->channel_norm(host(x), gamma, silu, host(out));
  }
  void group_norm(const TensorView& x, int32_t num_groups, const float* weight, const float* bias,
                  float eps, bool silu, const TensorView& out) override {
    on_host(weight), on_host(bias);
    const Open open(*this);
    inner_->group_norm(host(x), num_groups, weight, bias, eps, silu, host(out));
  }

 private:
  // Access while it lives.
  class Open {
   public:
    explicit Open(GuardedBackend& backend) : backend_(backend) { set(PROT_READ | PROT_WRITE); }
    ~Open() { set(PROT_NONE); }
    Open(const Open&) = delete;

   private:
    void set(int access) const { mprotect(backend_.arena_, backend_.used_, access); }
    GuardedBackend& backend_;
  };

  bool guarded(const void* p) const {
    const auto* at = static_cast<const char*>(p);
    return at >= arena_ && at < arena_ + kArena;
  }
  void on_host(const void* p) const {
    LACUNA_CHECK(!guarded(p), "guarded: backend memory, expected host memory");
  }
  // The view as the wrapped backend takes it; its tag must say where it lies.
  TensorView host(TensorView view) const {
    LACUNA_CHECK(view.data == nullptr || guarded(view.data) == (view.device == Device::cuda),
                 "guarded: {} says it is not where it is", view.describe());
    view.device = Device::cpu;
    return view;
  }
  static uint64_t hash(const void* begin, size_t bytes) {
    return fnv1a64({static_cast<const char*>(begin), bytes});
  }

  static constexpr size_t kArena = size_t{1} << 34;  // addresses, not memory
  std::unique_ptr<Backend> inner_;
  char* arena_ = nullptr;
  std::map<size_t, size_t> blocks_;  // offset -> bytes
  size_t allocated_ = 0;
  size_t used_ = 0;
  std::map<const void*, std::pair<size_t, uint64_t>> constants_;
};

// A copy of `from` where `backend` computes, and one on the host.
inline Tensor on_backend(Backend& backend, const TensorView& from) {
  Tensor to(from.dtype, std::span(from.shape.data(), static_cast<size_t>(from.rank)), backend);
  backend.copy(from, to);
  return to;
}
inline Tensor on_host(Backend& backend, const TensorView& from) {
  Tensor to(from.dtype, std::span(from.shape.data(), static_cast<size_t>(from.rank)));
  backend.copy(from, to);
  return to;
}

inline bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.describe() == b.describe() && a.contiguous() && b.contiguous() &&
         std::memcmp(a.data, b.data, static_cast<size_t>(storage_bytes(a.dtype, a.numel()))) == 0;
}

}  // namespace lacuna::test
