// SPDX-License-Identifier: Apache-2.0
// Shape of the decoder of a TAEHV: the tiny autoencoders taew2_1, taew2_2, taehv and taem1.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "lacuna/models/weights.h"

namespace lacuna {

struct TaehvConfig {
  int64_t latent_channels = 16;
  int64_t patch_size = 1;  // pixels per side that are channels at last
  std::array<int64_t, 4> channels = {256, 128, 64, 64};  // of three levels and of the last map
  std::array<int64_t, 3> time_factors = {1, 2, 2};       // frames that each level makes of one

  int64_t spatial_factor() const { return 8 * patch_size; }
  int64_t temporal_factor() const { return time_factors[0] * time_factors[1] * time_factors[2]; }
};

// Published files have no config: it is read off the shapes of their tensors. `where` names the
// file in messages. Throws Error on tensors that are missing or make no such decoder.
TaehvConfig infer_taehv_config(const WeightSource& source, std::string_view where);

// For weights without shapes (hash): an object of class TAEHV with the fields above, absent ones as
// they stand there. Throws Error on anything malformed or out of range.
TaehvConfig parse_taehv_config(std::string_view json_text, std::string_view where);

}  // namespace lacuna
