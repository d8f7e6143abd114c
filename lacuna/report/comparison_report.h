// SPDX-License-Identifier: Apache-2.0
// A comparison as the data of a report, and as labels of clips.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "lacuna/report/comparison.h"

namespace lacuna {

// All sections: quality and cost per candidate with the noise floor apart, what the floor means,
// frames side by side (if clips were kept), PSNR and flicker per frame, density over steps and
// layers, time per layer. `machine` as machine_info() gives it. Pictures take at most
// max_picture_bytes; 0 leaves them out.
nlohmann::ordered_json comparison_report(const Comparison& comparison, const CompareTask& task,
                                         const std::string& model_name,
                                         const nlohmann::ordered_json& machine,
                                         size_t max_picture_bytes);

// True when the candidate's squared error of frames (identical ones: 0) and latents error, means
// over the runs, are no worse than those of the worst row of the floor; false without a floor.
bool within_floor(const Comparison& comparison, const CompareSubject& candidate);

// Name and measurements over all runs, for the strip above a clip.
std::vector<std::string> clip_label(const CompareSubject& subject);

}  // namespace lacuna
