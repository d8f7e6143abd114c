// SPDX-License-Identifier: Apache-2.0
// All methods on the same recorded q, k and v: at equal density, at equal time, and who is not
// beaten.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lacuna/calibrate/replay.h"
#include "lacuna/engine/json_object.h"

namespace lacuna {

struct TournamentSettings {
  std::vector<double> densities{0.1, 0.2, 0.3, 0.5, 0.7};  // of P V, each in (0, 1]
  std::vector<double> times{0.25, 0.5, 0.75};  // shares of dense attention's time, (0, 1)
  double loss = 0.05;  // rel_l1 that counts as good enough, for the question who is fastest
};

struct TournamentPoint {
  std::string contestant;
  std::optional<double> target;  // density searched for; empty = as given, there is no knob
  ReplayRow row;
  bool on_density_front = false, on_time_front = false;
};

struct Tournament {
  TournamentSettings settings;
  ReplayRow dense, reordered;  // the noise floor
  std::vector<TournamentPoint> points;
  struct Miss {
    std::string contestant;
    std::optional<double> density;  // not reached; empty = keeps everything, as dense does
  };
  std::vector<Miss> missed;
};

// Measures every case at every density; `progress` gets (done, total, what comes next).
Tournament run_tournament(Replay& replay, std::span<const ReplayCase> cases,
                          const TournamentSettings& settings,
                          const std::function<void(int, int, const std::string&)>& progress = {});

// A contestant's loss at a time it was not measured at: log rel_l1 along the line between its two
// measured neighbours in time. Empty outside of what was measured.
std::optional<double> loss_at_time(const Tournament& tournament, const std::string& contestant,
                                   double ms);

// The result in words, most important first: who loses least at each density, who is fastest below
// the loss, what cannot be told from rounding.
std::vector<std::string> tournament_sentences(const Tournament& tournament);

// Sections of the report: ranking, equal density, equal time, two fronts, the sentences.
Json tournament_sections(const Tournament& tournament);

}  // namespace lacuna
