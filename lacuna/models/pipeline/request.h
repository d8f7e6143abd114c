// SPDX-License-Identifier: Apache-2.0
// What one generation is made from: everything that decides the video, and nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/engine/policy.h"
#include "lacuna/models/scheduler/sampler.h"

namespace lacuna {

struct Request {
  std::string model;  // name and fingerprint of the checkpoint, checked on resume
  // LoRA as FILE:SCALE, for every network and for one of two experts.
  std::vector<std::string> lora, lora_high, lora_low;
  std::string lora_content;  // hash of what they change; empty without
  std::string prompt;
  std::string negative_prompt;
  std::string tae;            // file name of the tiny decoder that makes the picture, if any
  std::string image;          // file name of the picture that is frame 0; empty = text to video
  std::string image_content;  // hash of that file; empty = none or not known
  std::string last_image, last_image_content;  // the same of the last frame
  int width = 832, height = 480;               // pixels
  int frames = 81;
  int fps = 16;
  SamplerConfig sampler;
  double guidance = 5.0;  // classifier-free guidance; 1 = off. High-noise expert if there are two
  double guidance_low = 5.0;                // low-noise expert
  std::optional<double> embedded_guidance;  // scale that is an input of the network, if it has one
  double boundary = 0.0;  // two experts: timesteps >= 1000 * boundary use the high-noise one
  uint64_t seed = 0;
  std::string dtype = "bf16";  // of activations: f32 or bf16
  // Attention policy, in the words of the command line (engine/presets.h); empty = not given.
  std::string attention = "dense";
  std::string skip;
  std::string profile;         // file name
  std::string replay_masks;    // file name of a mask log, instead of a policy
  std::string policy_content;  // hash of what that profile or log says; empty = none or not known
  std::string dense_steps, dense_layers;
  int64_t min_tokens = 0;

  bool guided() const { return guidance != 1.0 || guidance_low != 1.0; }
  // One JSON object, keys in a fixed order: travels in latents files and video metadata.
  std::string to_json() const;
  // Throws Error naming `who`, such as the file, on malformed text or wrong types; unknown keys are
  // refused by name.
  static Request from_json(const std::string& text, const std::string& who = "request");
};

// Steps, shift, guidance and the like that the authors of a family recommend.
struct FamilyDefaults {
  int width, height, frames, fps, steps;
  double shift, guidance, guidance_low, boundary;
  std::string license;
  std::string negative_prompt;  // used with guidance when the user gives none
  std::optional<double> embedded_guidance{};
  std::optional<double> small_shift{};  // instead of `shift` up to 832 x 480 pixels

  double shift_at(int video_width, int video_height) const {
    const bool is_small = int64_t{video_width} * video_height <= 832 * 480;
    return small_shift && is_small ? *small_shift : shift;
  }
};

}  // namespace lacuna
