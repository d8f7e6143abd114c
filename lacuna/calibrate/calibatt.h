// SPDX-License-Identifier: Apache-2.0
// CalibAtt (arXiv 2603.05503): masks voted over prompts for every (step, layer, head).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "lacuna/calibrate/calibration.h"
#include "lacuna/calibrate/vote.h"

namespace lacuna {

struct CalibAttSettings {
  EnergySchedule energy;       // epsilon(t)
  double share = 0.5;          // rho of the vote
  int32_t block = 128;         // tokens per block
  int32_t gap = 1;             // dropped key blocks between two kept runs that are kept too
  double share_iou = 0.97;     // tau of step sharing; above 1: every step has its own masks
  double similarity = 0.87;    // gamma: from here on a head is repetitive
  int anchors = 5;             // rows that are computed for it; 0: no head is repetitive
  int similarity_prompts = 1;  // the first so many prompts are looked at for it
  std::string dense_steps;     // kept dense in the profile
};

// Cosine similarity of the attention of each spatial row to that of its nearest anchor row, both
// [width, tokens] as one vector; the median over the rows that are no anchors, of up to three
// frames. rows(first, count, p) fills p [count, tokens] with the attention of tokens first..
double row_similarity(const VideoGrid& grid, int anchors,
                      const std::function<void(int64_t first, int64_t count, float* p)>& rows);

Calibration calibrate_calibatt(Subject& subject, const CalibAttSettings& settings,
                               const std::filesystem::path& progress_file, const WalkHooks& hooks);

}  // namespace lacuna
