// SPDX-License-Identifier: Apache-2.0
#include "cli/request_options.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <utility>

#include "cli/command.h"
#include "cli/options.h"
#include "lacuna/core/error.h"
#include "lacuna/models/video/picture.h"

namespace lacuna::cli {
namespace {

// Whether the sampler runs a list of timesteps.
bool is_list(SamplerKind kind) {
  return kind == SamplerKind::ode_list || kind == SamplerKind::renoise;
}

void parse_size(const std::string& size, Request& request) {
  const char *begin = size.data(), *end = begin + size.size();
  const auto width = std::from_chars(begin, end, request.width);
  const bool crossed =
      width.ec == std::errc() && width.ptr != end && (*width.ptr == 'x' || *width.ptr == '*');
  const auto height = std::from_chars(crossed ? width.ptr + 1 : end, end, request.height);
  if (height.ec != std::errc() || height.ptr != end)
    throw UsageError(fmt::format("--size: {}, expected WIDTHxHEIGHT such as 832x480", size));
}

// What both experts get: the high-noise one first, then the low-noise one.
using Guidance = std::pair<std::optional<double>, std::optional<double>>;

// Wan's generate.py: LOW,HIGH or one number for both.
Guidance parse_guide_scale(const std::string& text) {
  const char *at = text.data(), *end = at + text.size();
  double values[2] = {};
  for (double& value : values) {
    const auto parsed = std::from_chars(at, end, value);
    const bool last = parsed.ptr == end;
    if (parsed.ec != std::errc() || !std::isfinite(value) ||
        !(last || (*parsed.ptr == ',' && &value == values)))
      throw UsageError(
          fmt::format("--sample_guide_scale: {}, expected one number or LOW,HIGH", text));
    if (last && &value == values) return {value, value};
    at = parsed.ptr + 1;
  }
  return {values[1], values[0]};
}

void set_guidance(const RequestOptions& o, const FamilyDefaults& d, Request& r) {
  Guidance given{o.guidance, o.guidance};
  if (o.guide_scale) given = parse_guide_scale(*o.guide_scale);
  // In stable-diffusion.cpp the plain scale is that of the low-noise expert.
  if (o.guidance_high) given.first = o.guidance_high;
  if (o.guidance_low) given.second = o.guidance_low;
  r.guidance = given.first.value_or(d.guidance);
  r.guidance_low = given.second.value_or(d.guidance_low);
}

// As stable-diffusion.cpp counts: --steps are those of the low-noise expert, which go on along one
// schedule. Here the boundary says which expert a step is of.
void set_high_noise_steps(const RequestOptions& o, int num_experts, Request& r) {
  if (num_experts != 2)
    throw UsageError("--high-noise-steps: needs a checkpoint with a high-noise expert");
  if (is_list(r.sampler.kind))
    throw UsageError("--high-noise-steps: takes no --sampler ode or renoise; see --boundary");
  LACUNA_CHECK(r.sampler.num_steps >= 1, "steps: {}, expected 1 or more", r.sampler.num_steps);
  const int high = *o.high_noise_steps;
  r.sampler.num_steps += high;
  const auto sampler = make_sampler(r.sampler);
  r.boundary = (sampler->timestep(high - 1) + sampler->timestep(high)) / 2000.0;
}

// Throws UsageError on what was given and changes nothing, but for what the commands that info
// prints may hold: these name every value, used or not, and must run with any default.
void refuse_without_effect(const RequestOptions& o, const Model& model, const Request& r) {
  if ((o.width && *o.width != r.width) || (o.height && *o.height != r.height))
    throw UsageError(fmt::format(
        "--size: {} beside --width and --height that differ, expected one of them", o.size));
  if (o.timesteps_shifted && !is_list(r.sampler.kind))
    throw UsageError("--timesteps-shifted: needs --sampler ode or renoise");
  if (o.guidance && o.guidance_high && o.guidance_low)
    throw UsageError("--guidance: both experts have their own");
  if (r.embedded_guidance && !model.architecture().sizes().embedded_guidance)
    throw UsageError(
        fmt::format("--embedded-guidance: {} takes no guidance scale as an input; see --guidance",
                    model.name()));
  if (model.num_experts() == 1 && r.guidance_low != r.guidance)
    throw UsageError(fmt::format("{}: guidance {} and {}, this model has one expert: --guidance",
                                 o.guidance_low    ? "--guidance-low"
                                 : o.guidance_high ? "--high-noise-cfg-scale"
                                                   : "--sample_guide_scale",
                                 r.guidance, r.guidance_low));
}

// Decimal as it is printed: CLI11 alone reads 010 as 8, and -1 and 2^64 as 2^64 - 1.
std::string check_seed(std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (error != std::errc() || end != text.data() + text.size())
    return fmt::format("{}, expected a number from 0 to 2^64 - 1; there is no random seed", text);
  text = fmt::format("{}", seed);
  return {};
}

}  // namespace

void PictureOptions::add_to(CLI::App& group) {
  group
      .add_option("-i,--image,--init-img,--first_frame", first,
                  "The picture that the video begins with (image-to-video models): PNG, JPEG, "
                  "WebP, ... It is scaled to cover the size and cut around its middle")
      ->check(names_a_file());
  group
      .add_option("--last-image,--end-img,--last_frame", last,
                  "The picture that it ends with (Wan2.1 FLF2V-14B, Wan2.2 I2V-A14B)")
      ->check(names_a_file());
}

void PictureOptions::fill(Request& request) const {
  request.image = first;
  request.image_content = picture_content(first);
  request.last_image = last;
  request.last_image_content = picture_content(last);
}

void name_lora(const Model& model, Request& request) {
  for (const LoraUse& use : model.loras()) {
    auto& words = use.networks == LoraUse::Networks::high_noise  ? request.lora_high
                  : use.networks == LoraUse::Networks::low_noise ? request.lora_low
                                                                 : request.lora;
    words.push_back(lora_word(use));
  }
  request.lora_content = model.lora_content();
}

void RequestOptions::add_content_to(CLI::App& group) {
  pictures.add_to(group);
  group.add_option("-n,--negative-prompt", negative_prompt,
                   "What it should not show; default of the model (Wan: its authors' list)");
  group.add_option("-W,--width", width, "Pixels; default of the model");
  group.add_option("-H,--height", height, "Pixels; default of the model");
  group.add_option("--size", size, "WIDTHxHEIGHT or WIDTH*HEIGHT, instead of -W and -H");
  group.add_option("--frames,--video-frames,--frame_num", frames,
                   "Frames: 4n+1 for Wan and HunyuanVideo, 6n+1 for Mochi; default of the model");
  group.add_option("-s,--seed,--base_seed", seed, "Same seed, same video")
      ->transform(CLI::Validator(check_seed, "", "seed"))
      ->capture_default_str();
}

void RequestOptions::add_sampling_to(CLI::App& command) {
  auto* sampling = command.add_option_group("Sampling");
  auto* all_steps = sampling->add_option("--steps,--sample_steps", steps,
                                         "Denoising steps; default of the model");
  auto* one_guidance =
      sampling
          ->add_option(
              "--guidance,--cfg-scale,--cfg", guidance,
              "Classifier-free guidance; 1 turns it off and halves the time; default of the "
              "model")
          ->check(real_number());
  sampling
      ->add_option("--guidance-low,--cfg-low", guidance_low,
                   "Guidance of the low-noise expert (Wan2.2 A14B)")
      ->check(real_number());
  sampling
      ->add_option("--high-noise-cfg-scale", guidance_high,
                   "Guidance of the high-noise expert; --guidance is then the other's")
      ->check(real_number());
  sampling
      ->add_option("--sample_guide_scale", guide_scale,
                   "Guidance as in Wan's generate.py: one number, or LOW,HIGH of two experts")
      ->excludes(one_guidance);
  sampling
      ->add_option(
          "--embedded-guidance", embedded_guidance,
          "Guidance scale that the network takes as an input (HunyuanVideo); default of the "
          "model")
      ->check(real_number());
  sampling
      ->add_option("--shift,--flow-shift,--sample_shift", shift,
                   "Sigma shift: the larger, the more steps at high noise; default of the model")
      ->check(real_number());
  auto* switch_at =
      sampling
          ->add_option("--boundary,--moe-boundary", boundary,
                       "Timestep / 1000 at which the low-noise expert takes over; default of the "
                       "model")
          ->check(real_number());
  sampling
      ->add_option("--high-noise-steps", high_noise_steps,
                   "Steps of the high-noise expert before the --steps of the other, instead of "
                   "--boundary")
      ->check(CLI::Range(1, 999))
      ->needs(all_steps)
      ->excludes(switch_at);
  sampling->add_option("--sampler,--sample_solver,--sampling-method", sampler,
                       "unipc, euler, ode or renoise (few-step models); default of the model");
  sampling->add_option("--high-noise-sampling-method", high_noise_sampler,
                       "Accepted where it is the --sampler, which both experts have");
  sampling
      ->add_option("--sigma-convention", sigma_convention,
                   "How sigmas are spaced; default of the model and sampler")
      ->check(CLI::IsMember({"diffusers", "wan", "flow_matching", "unit", "linear_quadratic"}));
  sampling->add_option("--timesteps", timesteps, "List for ode and renoise, 1000 downwards")
      ->delimiter(',')
      ->check(real_number())
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  sampling->add_flag("--timesteps-shifted", timesteps_shifted,
                     "The list is already shifted (Self-Forcing, FastWan)");
}

Request RequestOptions::make(const Model& model) const {
  const FamilyDefaults& d = model.defaults();
  Request r;
  r.model = model.identity();
  name_lora(model, r);
  r.tae = model.tiny_decoder().string();
  pictures.fill(r);
  r.negative_prompt = negative_prompt.value_or(d.negative_prompt);
  r.width = width.value_or(d.width);
  r.height = height.value_or(d.height);
  if (!size.empty()) parse_size(size, r);
  r.frames = frames.value_or(d.frames);
  r.fps = fps.value_or(d.fps);
  r.sampler.kind = sampler.empty() ? model.sampler_kind() : parse_sampler(sampler);
  r.sampler.convention = model.sigma_convention();
  if (r.sampler.kind == SamplerKind::euler && !model.architecture().sizes().joint_text)
    r.sampler.convention = SigmaConvention::flow_matching;
  if (!sigma_convention.empty()) r.sampler.convention = parse_convention(sigma_convention);
  r.sampler.num_steps = steps.value_or(d.steps);
  r.sampler.shift = shift.value_or(d.shift_at(r.width, r.height));
  r.sampler.timesteps = timesteps;
  r.sampler.warp_timesteps = !timesteps_shifted;
  set_guidance(*this, d, r);
  r.embedded_guidance = embedded_guidance ? embedded_guidance : d.embedded_guidance;
  r.boundary = boundary.value_or(d.boundary);
  r.seed = seed;
  if (high_noise_steps) set_high_noise_steps(*this, model.num_experts(), r);
  if (!high_noise_sampler.empty() && parse_sampler(high_noise_sampler) != r.sampler.kind)
    throw UsageError(fmt::format("--high-noise-sampling-method: {}, expected {} as --sampler",
                                 high_noise_sampler, sampler_name(r.sampler.kind)));
  if (is_list(r.sampler.kind)) {
    // The list is the schedule: shares of steps, reports and decode count these.
    r.sampler.num_steps = make_sampler(r.sampler)->num_steps();
    if (steps && *steps != r.sampler.num_steps)
      throw UsageError(fmt::format("--steps: {}, the list of timesteps has {}; see --timesteps",
                                   *steps, r.sampler.num_steps));
  } else if (!timesteps.empty()) {
    throw UsageError("--timesteps: needs --sampler ode or renoise");
  }
  LACUNA_CHECK(r.fps >= 1 && r.fps <= 1000, "fps: {}, expected 1 to 1000", r.fps);
  if (const double g = r.embedded_guidance.value_or(0.0); !(g >= 0.0 && g <= 1000.0))
    fail("embedded guidance: {}, expected 0 to 1000", g);
  LACUNA_CHECK(r.boundary >= 0.0 && r.boundary <= 1.0, "boundary: {}, expected 0 to 1", r.boundary);
  refuse_without_effect(*this, model, r);
  return r;
}

}  // namespace lacuna::cli
