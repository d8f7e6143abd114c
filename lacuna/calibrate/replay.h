// SPDX-License-Identifier: Apache-2.0
// Methods on recorded attention inputs: what each keeps, loses and costs, at equal density or at
// equal time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/recording.h"

namespace lacuna {

// What to run, and the parameter that moves its density.
struct ReplayCase {
  std::string name;  // as the user says it
  Plan plan;         // method null = dense, maybe with a skip rule
  // Makes the case with another value of the parameter, smallest density at `sparse`, largest at
  // `full`; unset when the case has none.
  struct Knob {
    std::string parameter;
    double sparse, full;
    std::function<void(ReplayCase&, double)> set;
  };
  std::optional<Knob> knob;
};

// A case from a method's and a skip rule's words (parse_plan, parse_skip).
ReplayCase replay_case(std::string_view attention, std::string_view skip);

// Means over the recorded calls. Errors are against dense attention in f32 of the same inputs.
struct ReplayRow {
  std::string name, parameter;  // parameter and value that were found, or empty
  double qk_density = 1.0, pv_density = 1.0;
  double recall = 1.0;     // softmax mass of what was kept, mean over rows
  double rel_l1 = 0.0;     // sum |o - o'| / sum |o'|
  double select_ms = 0.0;  // of one selection, per call; medians over repeats
  double attend_ms = 0.0;
  double dense_ms = 0.0;  // dense attention, same run

  double selection_share() const { return select_ms / dense_ms; }
  double speedup() const { return dense_ms / (select_ms + attend_ms); }
};

class Replay {
 public:
  // Runs everything dense first. `repeats` >= 1 timed runs of every case. The recording must
  // outlive the object.
  Replay(Backend& backend, std::span<const RecordedCall> calls, int repeats);

  // Dense attention in the recorded dtype: the noise floor.
  ReplayRow dense() const { return dense_; }
  ReplayRow run(const ReplayCase& wanted);
  // Empty when the case has no knob or its range does not reach the target within 5 %.
  std::optional<ReplayRow> at_density(const ReplayCase& wanted, double pv_density);
  std::optional<ReplayRow> at_speedup(const ReplayCase& wanted, double speedup);

 private:
  struct Reference {
    Tensor out;              // [heads, seq_len, head_dim] f32
    std::vector<float> lse;  // [heads, seq_len]
  };
  ReplayRow measure(const ReplayCase& wanted, int repeats);
  std::optional<ReplayRow> search(const ReplayCase& wanted, double target,
                                  const std::function<double(const ReplayRow&)>& value);

  Backend& backend_;
  std::span<const RecordedCall> calls_;
  int repeats_;
  std::vector<Reference> references_;
  ReplayRow dense_;
};

}  // namespace lacuna
