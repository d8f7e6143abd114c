// SPDX-License-Identifier: Apache-2.0
// kappa of the recall skip rule, measured per head.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lacuna/calibrate/calibration.h"

namespace lacuna {

struct RecallSettings {
  double recall = 0.95;        // r of the skip rule
  double quantile = 0.9;       // of tile mass / (keys * e^max); 1 certifies the rows looked at
  int64_t rows = 64;           // query rows per head and sampled step, evenly spread; 0 = all
  std::string host = "dense";  // the method the rule runs in
  int intervals = 4;           // of each expert's steps; one step of each is looked at per prompt
  uint64_t seed = 0;           // of the sampling of steps
  std::string dense_steps;     // kept dense in the profile
};

// Counts of tile mass / (keys * e^max), which lies in [1 / kVoteKeys, 1], on a logarithmic scale.
class KappaHistogram {
 public:
  static constexpr int kBins = 1024;
  explicit KappaHistogram(std::span<int64_t> bins) : bins_(bins) {}  // kBins; not cleared
  void add(double ratio);
  // Upper end of the bin at which `quantile` of the counts is reached, at most 1: never below the
  // true quantile. 1 when nothing was counted.
  double quantile(double quantile) const;

 private:
  std::span<int64_t> bins_;
};

// Tile mass / (keys * e^max) of one row of scaled logits [k_len] in pieces of kVoteKeys keys, as
// kernels judge them: one ratio per piece, the last may be short.
void piece_ratios(std::span<const float> logits, std::span<double> ratios);

// Row i of `wanted` (at most n) of n: the middle of the i-th of so many equal parts.
int64_t spread_row(int64_t i, int64_t wanted, int64_t n);

Calibration calibrate_recall(Subject& subject, const RecallSettings& settings,
                             const std::filesystem::path& progress_file, const WalkHooks& hooks);

}  // namespace lacuna
