// SPDX-License-Identifier: Apache-2.0
// The loop around one attention call: refresh, select, attend, observe, trace.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "lacuna/backend/backend.h"
#include "lacuna/core/site.h"
#include "lacuna/core/state_io.h"
#include "lacuna/core/video_grid.h"
#include "lacuna/core/workspace.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/site_selection.h"
#include "lacuna/engine/trace.h"

namespace lacuna {

class Engine {
 public:
  // The backend must outlive the engine.
  Engine(Backend& backend, Policy policy);
  ~Engine();

  // Self-attention of one site, with sm_scale = 1 / sqrt(head_dim): q, k, v, out [num_heads,
  // seq_len, head_dim] f32|bf16 of one dtype, strided, channels contiguous, raster token order;
  // seq_len = grid.tokens() + text_tokens. out overlaps no input.
  //
  // Adds one entry to trace(). Masks are remembered per (layer, branch, expert) and forgotten when
  // the rule, the shape or the head count changes or the step goes back. Throws Error before
  // anything runs when the backend cannot do what any rule of the policy asks; nothing falls back
  // silently.
  void attend(const Site& site, const VideoGrid& grid, int64_t text_tokens, const TensorView& q,
              const TensorView& k, const TensorView& v, const TensorView& out);

  // Calls `hook` with the inputs of every attend(), before it runs; null stops that.
  using InputsHook =
      std::function<void(const Site& site, const VideoGrid& grid, int64_t text_tokens,
                         const TensorView& q, const TensorView& k, const TensorView& v)>;
  void watch_inputs(InputsHook hook) { watch_ = std::move(hook); }
  // Calls `hook` with what every attend() computed, after its kernel; null stops that. Blocks that
  // a skip rule dropped are taken out of the mask, so with a skip rule attend() throws Error,
  // before anything runs, when a block is larger than the rule's votes (check_votes).
  using SelectionsHook = std::function<void(const Site& site, const VideoGrid& grid,
                                            int64_t text_tokens, const SiteSelection& selection)>;
  void watch_selections(SelectionsHook hook) { watch_selections_ = std::move(hook); }
  // Computes what `source` says instead of what the policy says; null stops that. No method is
  // called, no skip rule runs; the trace calls it `replay`. The source may throw Error.
  using SelectionSource = std::function<SiteSelection(const Site& site)>;
  void follow_selections(SelectionSource source) { source_ = std::move(source); }
  // Dense calls that no rule asked for become errors, before their kernel: where no rule matches,
  // and where a method that looks at data gave no mask. Looks are part of their method.
  void set_strict(bool strict) { strict_ = strict; }
  // Waits for the backend at every look at the clock, so that the trace has the times of a device
  // and not those of asking it. For measuring: it keeps host and device from working side by side.
  void set_timed(bool timed) { timed_ = timed; }
  // From here on q, k, v and out of every attend() are some heads of a call whose others lie with
  // the other ranks, which call in the same order; the policy is of these heads
  // (Policy::of_heads).
  void set_share(const HeadShare& share) { share_ = share; }
  // The next attend() also writes the log-sum-exp of what each row kept, before compensation:
  // lse [num_heads, seq_len], raster order, natural log; -inf where a row kept nothing.
  void write_lse(std::span<float> lse) { lse_ = lse; }

  // Forgets masks and method states and gives scratch memory back: call between generations.
  void reset();
  // All of it between two steps, for restore() of an engine with the same policy, which must begin
  // with it where Policy::carries; replaces `to`.
  void save(StateTensors& to) const;
  // Throws Error, and knows nothing then, unless `from` is such a state of sites of this grid and
  // head count.
  void restore(const StateTensors& from, const VideoGrid& grid, const TextTokens& text,
               int64_t num_heads);

  Backend& backend() { return backend_; }
  const Policy& policy() const { return policy_; }
  Trace& trace() { return trace_; }

 private:
  struct SiteState;  // per (layer, branch, expert): method state, cached selections, drift anchors
  struct Choice;
  struct Impl;
  void check_asked(const Rule& rule, const Choice& choice, const TraceEntry& entry) const;
  void show(const SelectArgs& args, const Choice& choice, const TraceEntry& entry,
            const uint64_t* dropped) const;
  Backend& backend_;
  Policy policy_;
  Trace trace_;
  InputsHook watch_;
  SelectionsHook watch_selections_;
  SelectionSource source_;
  bool strict_ = false, timed_ = false;
  std::span<float> lse_;
  HeadShare share_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lacuna
