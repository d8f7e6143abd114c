// SPDX-License-Identifier: Apache-2.0
// Methods on recorded attention inputs: what each keeps, loses and costs, at equal density or at
// equal time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
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
    std::string parameter;  // as options name it
    double sparse, full;    // may be on another scale, on which steps are even
    std::function<void(ReplayCase&, double)> set;
    // The parameter's value as options take it; unset = the knob's, in four digits.
    std::function<std::string(double)> value_text = {};
  };
  std::optional<Knob> knob;
};

// A case from a method's and a skip rule's words (parse_plan, parse_skip).
ReplayCase replay_case(std::string_view attention, std::string_view skip);
// Each of `attention` and each of `skip` alone; with neither, every method that needs no masks from
// a profile and every skip rule, at their defaults.
std::vector<ReplayCase> replay_cases(std::span<const std::string> attention,
                                     std::span<const std::string> skip);

// Means over the recorded calls. Errors are against dense attention in f32 of the same inputs.
struct ReplayRow {
  std::string name, parameter;  // parameter and value that were found, or empty
  double qk_density = 1.0, pv_density = 1.0;
  double recall = 1.0;  // softmax mass of what was kept, mean over rows
  double rel_l1 = 0.0;  // sum |o - o'| / sum |o'|
  // Per call, medians over repeats. A dense call is timed right before each case, and the case's
  // times are scaled by dense_ms over that: machines drift within a run, ratios stay.
  double select_ms = 0.0;  // of one selection
  double attend_ms = 0.0;
  double dense_ms = 0.0;  // dense attention, at the start of the run
  // Selections per call: 1, or one in a whole generation for a mask that is never made again.
  double selections = 1.0;

  // Of what speedup() counts.
  double selection_share() const { return selections * select_ms / dense_ms; }
  double total_ms() const { return selections * select_ms + attend_ms; }
  double speedup() const { return dense_ms / total_ms(); }
};

class Replay {
 public:
  // Runs everything dense first. `repeats` >= 1 timed runs of every case. The recording must
  // outlive the object. `between`, if given, is called before every attention call and may throw to
  // stop.
  Replay(Backend& backend, std::span<const RecordedCall> calls, int repeats,
         std::function<void()> between = {});

  // Dense attention in the recorded dtype: the noise floor.
  ReplayRow dense() const { return dense_; }
  // The same with keys and values in reverse order: another order of summation.
  ReplayRow reordered();
  ReplayRow run(const ReplayCase& wanted);
  // What was found on the way, by value of a case's knob. Searches of one case for several
  // densities share it.
  using Known = std::map<double, double>;
  // Empty when the case has no knob or its range does not reach the target within 5 %. Looks for
  // the value untimed, where possible by selecting alone, and measures it once.
  std::optional<ReplayRow> at_density(const ReplayCase& wanted, double pv_density,
                                      Known* known = nullptr);
  std::optional<ReplayRow> at_speedup(const ReplayCase& wanted, double speedup);

 private:
  struct Reference {
    Tensor out;              // [heads, seq_len, head_dim] f32
    std::vector<float> lse;  // [heads, seq_len]
  };
  ReplayRow measure(const ReplayCase& wanted, int repeats);
  double density_of(const ReplayCase& wanted);
  std::optional<ReplayRow> search(const ReplayCase& wanted, double target, Known& known,
                                  const std::function<double(const ReplayCase&)>& value);

  Backend& backend_;
  std::span<const RecordedCall> calls_;
  int repeats_;
  std::function<void()> between_;
  std::vector<Reference> references_;
  ReplayRow dense_;
};

}  // namespace lacuna
