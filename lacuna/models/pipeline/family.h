// SPDX-License-Identifier: Apache-2.0
// The released families: how to recognise them, what their authors recommend, their licence.
#pragma once

#include <string_view>

#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/transformer.h"

namespace lacuna {

struct Family {
  std::string_view name;
  // Of its video decoder: a preset (vae_preset), or the config.json of another class.
  std::string_view vae;
  FamilyDefaults defaults;
  bool released = true;
  bool takes_image = false;  // as latent frame 0
};

// By the sizes of the network. What fits no release is "... (custom)".
const Family& identify_family(const Architecture& architecture, int num_experts);

// The negative prompt that Wan's authors use by default: with guidance above 1
// quality drops visibly without it.
std::string_view wan_negative_prompt();

}  // namespace lacuna
