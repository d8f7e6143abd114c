// SPDX-License-Identifier: Apache-2.0
// Who does what when several processes make one video.
//
// With guidance and an even number of processes one half runs the conditional forward and the other
// the unconditional one, at the same time; the processes of a half share its tokens and heads
// (TokenShare). All of them hold the latents and take the same sampler steps.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <utility>

#include "lacuna/core/site.h"
#include "lacuna/core/state_io.h"
#include "lacuna/core/team.h"
#include "lacuna/core/tensor.h"
#include "lacuna/engine/engine.h"
#include "lacuna/engine/policy.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

class WorkShare {
 public:
  // Of one process when `world` is null; else it must outlive this. Every rank makes one.
  explicit WorkShare(Team* world = nullptr, bool guided = false);

  bool alone() const { return world_ == nullptr; }
  // Writes files and speaks.
  bool is_root() const { return world_ == nullptr || world_->is_root(); }
  // Ranks that share this process's forwards; null where it runs them alone.
  Team* forward_team() const;
  int forward_ranks() const;
  int local_ranks() const { return world_ == nullptr ? 1 : world_->local_size(); }
  bool runs(Branch branch) const {
    return halves_ == 1 || (branch == Branch::cond) == (half_ == 0);
  }

  // Of the heads here: how many, which for the engine, and their part of a policy.
  int64_t num_heads(int64_t all) const;
  HeadShare heads(int64_t num_heads) const;
  Policy policy(const Policy& whole, int64_t num_heads) const;

  // Both velocities to everyone, from the half that has them; `uncond` null where nobody has one.
  void exchange(const TensorView& cond, const TensorView* uncond) const;
  // The root's, which alone runs encoders: f32 of any shape, empty ones too.
  void broadcast(std::initializer_list<Tensor*> tensors) const;
  // Engine::save() of every process to the root, for the latents file; the others keep none.
  void gather(StateTensors& attention) const;
  // What of such a file is this process's. Throws Error unless as many processes wrote it.
  StateTensors own(StateTensors attention) const;
  // The trace of a step from all processes (share_trace).
  void share_trace(Trace& trace, size_t first) const;

 private:
  void send(const TensorView& values, int root) const;
  std::pair<int64_t, int64_t> head_range(int64_t all) const;
  Team* world_;
  int halves_ = 1, half_ = 0;
  std::unique_ptr<Team> own_half_;  // of two
};

}  // namespace lacuna
