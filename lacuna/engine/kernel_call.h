// SPDX-License-Identifier: Apache-2.0
// One attention call in the making: AttendParams and the memory it points to. Used again and again,
// so that nothing is allocated after the first step.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/workspace.h"
#include "lacuna/engine/compensate.h"
#include "lacuna/engine/policy.h"
#include "lacuna/methods/method.h"

namespace lacuna {

class KernelCall {
 public:
  KernelCall(Backend& backend, Workspace& workspace)
      : backend_(backend), workspace_(workspace), compensator_(backend, workspace) {}

  // Starts a dense call without a skip rule. q, k, v, out as in Engine::attend; throws Error when
  // they do not fit together or do not have `seq_len` tokens.
  void begin(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out,
             int64_t seq_len);
  // The same of any lengths: q, out [num_heads, q_len, head_dim], k, v [num_heads, k_len,
  // head_dim].
  void begin(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out);
  // In place of 1 / sqrt(head_dim), until the next begin().
  void set_scale(float sm_scale) { params_.sm_scale = sm_scale; }
  // Key blocks are visited coarse to fine iff a rule runs. Throws Error when values are neither one
  // nor one per head.
  void set_skip(const SkipRule& skip);
  // What Backend::unsupported says of the call so far.
  std::string unsupported() const { return backend_.unsupported(params_); }

  // Takes layouts, mask (empty = dense) and token orders of `selection`, which must outlive run().
  // Throws Error when the mask is not one of these layouts and heads.
  void keep(const Selection& selection);
  // Asks for the outputs `selection` wants; their addresses go to `seen`.
  void ask(const Selection& selection, Observation& seen);
  // Asks for skip bits, for whoever carries them on: valid from run() until the next call.
  const uint64_t* ask_skip_bits();
  // run() writes the log-sum-exp of what was kept, before compensation: [num_heads, q_len], raster
  // order. Throws Error on another size.
  void write_lse(std::span<float> lse);
  // What run() does about blocks that keep() or the skip rule dropped.
  void compensate(Compensation kind) { compensation_ = kind; }
  // Gathers tokens into the selection's order, attends, compensates, and puts rows back where they
  // belong: their own, or that of a token they stand for.
  void run();

  const AttendParams& params() const { return params_; }
  float sm_scale() const { return params_.sm_scale; }
  // Computed P*V pairs / all pairs of the last run().
  double pv_density() const;
  // Products of the last run()'s compensation / all pairs.
  double pooled_density() const;

 private:
  const float* ask_lse();
  double share(int64_t pairs) const;
  void attend(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out);
  void point_at(const TensorView& q, const TensorView& k, const TensorView& v,
                const TensorView& out);
  void attend_in_order();
  void copy_lse() const;
  void put_back(const TensorView& out);
  TensorView gathered(const char* name, const TensorView& x, const TokenOrder& order);

  Backend& backend_;
  Workspace& workspace_;
  AttendParams params_;
  TensorView q_, k_, v_, out_;
  const Selection* selection_ = nullptr;
  Compensator compensator_;
  Compensation compensation_ = Compensation::none;
  int64_t pooled_pairs_ = 0;
  std::span<float> lse_;  // the caller's, or empty
  std::vector<float> skip_param_, skip_kappa_;
  std::vector<int64_t> pv_pairs_;
  TokenOrder rows_;  // where rows come from that stand for others
};

}  // namespace lacuna
