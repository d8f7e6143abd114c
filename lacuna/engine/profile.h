// SPDX-License-Identifier: Apache-2.0
// A policy on disk: versioned JSON, with masks in a .safetensors file beside it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/core/video_grid.h"
#include "lacuna/engine/policy.h"

namespace lacuna {

// What a profile was made for; masks and thresholds mean nothing elsewhere.
struct ProfileTarget {
  std::string model;        // "wan2.1-t2v-1.3b", for messages
  std::string fingerprint;  // of the weights; equality is all that is asked of it
  int num_layers = 0, num_heads = 0, head_dim = 0;
  VideoGrid grid;
  int64_t text_tokens = 0;
  std::vector<double> sigmas;  // noise level of every step; its size is the number of steps
  // Of a run with LoRA, which is in its fingerprint: the weights without; else empty. In no file.
  std::string base{};
  int num_steps() const { return static_cast<int>(sigmas.size()); }
  bool operator==(const ProfileTarget&) const = default;
};

struct ProfileRule {
  Rule rule;
  std::optional<double> density;  // achieved when it was made, 0..1; for reports
};

struct Profile {
  ProfileTarget target;
  std::vector<ProfileRule> rules;
  Policy policy() const;
};

// Reads a file that may be hostile. Throws Error naming file and JSON path on: not JSON, larger
// than 64 MiB, another schema or version, a formula this build computes otherwise, an unknown key,
// a wrong type, a value out of its ParamSpec range, a list that is not one value per head, a side
// file whose name is a path, a mask with another hash, in blocks of two sizes or that breaks an
// invariant of BlockMask. Rules that name one mask share it.
Profile load_profile(const std::filesystem::path& path);
// Throws Error saying what differs unless the run has the profile's model, fingerprint, sizes,
// grid, number of steps and sigmas (to 1e-6: solvers print them rounded). One that was made without
// the run's LoRA serves too: heads keep their roles, what it loses was measured on the base.
void check_profile(const Profile& profile, const ProfileTarget& run);
// Where save_profile puts masks: the same name with extension .safetensors.
std::filesystem::path profile_masks(const std::filesystem::path& profile);
// The file that a profile to be read says its masks are in. Empty where it names none or is no
// profile: whoever loads it says so.
std::filesystem::path named_masks_file(const std::filesystem::path& profile);
// Writes `path` and, when a rule has fixed masks, profile_masks(path). Loading it gives the same
// profile, saving that gives the same bytes. Throws Error on anything load_profile would reject,
// and on masks with explicit offsets or token orders, which version 1 cannot hold.
void save_profile(const Profile& profile, const std::filesystem::path& path);

}  // namespace lacuna
