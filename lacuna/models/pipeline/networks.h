// SPDX-License-Identifier: Apache-2.0
// Which network a part of a checkpoint or the name of a preset is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/checkpoint.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/weights.h"

namespace lacuna {

// The weights of a network, under names that network_rename() knows.
std::unique_ptr<WeightSource> open_network(const CheckpointPart& part);

// What config.json says, which must be about all of the weights; without one, what they tell.
// Throws Error on a network that this library does not compute.
std::unique_ptr<const Architecture> read_architecture(const CheckpointPart& part,
                                                      const WeightSource& source);

// For WeightReader: diffusers name -> name in a source of such tensors.
std::function<std::string(std::string_view)> network_rename(TensorSet tensors,
                                                            const WeightSource& source);

// Throws Error unless the two are experts of one model: of the same sizes, and the second has every
// tensor of the first.
void check_experts(const CheckpointPart& first_part, const WeightSource& first,
                   const CheckpointPart& second_part, const WeightSource& second);

// By its name, of any family. Throws Error listing them.
std::unique_ptr<const Architecture> preset_architecture(std::string_view name);
std::vector<std::string_view> preset_names();

}  // namespace lacuna
