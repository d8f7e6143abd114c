// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/walk.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <limits>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"

namespace lacuna {

namespace {

constexpr std::string_view kFormat = "calibration-2";
constexpr std::string_view kStatePrefix = "state.";

// The next thing to do: `step` of `prompt`.
struct Position {
  int prompt = 0, step = 0;
};

class Walker {
 public:
  Walker(Subject& subject, Measurement& measurement, std::filesystem::path file,
         const WalkHooks& hooks)
      : subject_(subject),
        measurement_(measurement),
        file_(std::move(file)),
        hooks_(hooks),
        dense_(subject.backend(), Policy()) {
    const auto shape = subject.latent_shape();
    velocity_ = Tensor(DType::f32, shape);
    residual_ = Tensor(DType::f32, subject.stream_shape(), subject.backend());
    settings_ = fmt::format("{} {}", measurement.settings(), subject.describe());
  }

  void run() {
    const bool resumed = std::filesystem::exists(file_) && load();
    for (int prompt = 0; prompt < subject_.num_prompts(); ++prompt)
      for (int step = 0; step < steps_of(prompt); ++step) {
        total_ += cost(prompt, step);
        if (prompt < at_.prompt || (prompt == at_.prompt && step < at_.step))
          done_ += cost(prompt, step);
      }
    report();
    try {
      for (bool go_on = resumed; at_.prompt < subject_.num_prompts(); go_on = false)
        walk_prompt(go_on);
    } catch (...) {
      save();
      throw;
    }
  }

 private:
  void walk_prompt(bool go_on) {
    const int steps = steps_of(at_.prompt);
    if (steps > 0 && !go_on) {
      subject_.begin(at_.prompt);
      begun_ = true;
    }
    while (at_.step < steps) {
      step();
      // Nobody looks at what comes after the last wanted step.
      if (at_.step + 1 < steps) subject_.finish_step(dense_, velocity_);
      ++at_.step;
      measured_ = false;
      dense_.trace().clear();
      if (at_.step < steps) ran(int64_t{layers()} * (subject_.branches() - 1));
    }
    at_ = {at_.prompt + 1, 0};
    begun_ = false;
  }

  void step() {
    if (measurement_.wants(at_.prompt, at_.step) && !measured_) {
      measurement_.measure(subject_, at_.prompt, at_.step, velocity_,
                           [this](int64_t count) { ran(count); });
      measured_velocity_ = copy_of(velocity_);
      measured_ = true;
    } else {
      subject_.run(dense_, {0, layers()}, residual_, velocity_);
      // A kernel that also reported mass may have summed in another order.
      if (measured_ && !measured_velocity_.empty())
        std::copy_n(measured_velocity_.as<float>(), velocity_.numel(), velocity_.as<float>());
      ran(layers());
    }
  }

  // Up to the last step that is wanted.
  int steps_of(int prompt) const {
    int steps = 0;
    for (int step = 0; step < subject_.target().num_steps(); ++step)
      if (measurement_.wants(prompt, step)) steps = step + 1;
    return steps;
  }
  int layers() const { return subject_.target().num_layers; }
  int64_t cost(int prompt, int step) const {
    const int64_t conditional =
        measurement_.wants(prompt, step) ? measurement_.cost(prompt, step) : layers();
    return conditional +
           (step + 1 < steps_of(prompt) ? int64_t{layers()} * (subject_.branches() - 1) : 0);
  }

  void report() {
    if (hooks_.progress) hooks_.progress(std::min(done_, total_), total_);
  }
  void ran(int64_t count) {
    done_ += count;
    report();
    const auto now = Clock::now();
    const double since = std::chrono::duration<double>(now - saved_).count();
    if (since < std::max(hooks_.save_every_seconds, 20.0 * save_seconds_)) return;
    save();
    saved_ = Clock::now();
    save_seconds_ = std::chrono::duration<double>(saved_ - now).count();
  }

  void save();
  bool load();

  using Clock = std::chrono::steady_clock;
  Subject& subject_;
  Measurement& measurement_;
  std::filesystem::path file_;
  const WalkHooks& hooks_;
  Engine dense_;
  Tensor velocity_, residual_;
  Tensor measured_velocity_;  // of the step that is measured; empty from older files
  std::string settings_;
  Position at_;
  bool begun_ = false;     // the subject is at at_.step of at_.prompt
  bool measured_ = false;  // that step is in the tensors, but not finished
  int64_t done_ = 0, total_ = 0;
  Clock::time_point saved_ = Clock::now();
  double save_seconds_ = 0.0;
};

void Walker::save() {
  NamedTensors tensors = measurement_.tensors();
  if (begun_)
    for (const auto& [name, tensor] : subject_.state())
      tensors.emplace_back(std::string(kStatePrefix) + name, tensor);
  if (measured_ && !measured_velocity_.empty())
    tensors.emplace_back("velocity", measured_velocity_.view());
  write_safetensors(file_, tensors,
                    {{"lacuna.format", std::string(kFormat)},
                     {"settings", settings_},
                     {"prompt", std::to_string(at_.prompt)},
                     {"step", std::to_string(at_.step)},
                     {"begun", begun_ ? "1" : "0"},
                     {"measured", measured_ ? "1" : "0"}});
}

std::string metadata(const SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  LACUNA_CHECK(found != file.metadata().end(), "{}: no {}, expected a calibration in progress",
               file.path().string(), key);
  return found->second;
}

int metadata_int(const SafetensorsFile& file, std::string_view key, int max) {
  const std::string text = metadata(file, key);
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  LACUNA_CHECK(error == std::errc() && *end == '\0' && value >= 0 && value <= max,
               "{}: {} {}, expected 0 to {}", file.path().string(), key, text, max);
  return value;
}

// True when the subject is inside a prompt.
bool Walker::load() {
  const SafetensorsFile file(file_);
  const std::string who = file_.string();
  LACUNA_CHECK(metadata(file, "lacuna.format") == kFormat, "{}: format {}, expected {}", who,
               metadata(file, "lacuna.format"), kFormat);
  LACUNA_CHECK(metadata(file, "settings") == settings_,
               "{}: progress of a calibration with other settings; remove it to start again", who);
  at_.prompt = metadata_int(file, "prompt", subject_.num_prompts());
  at_.step = metadata_int(file, "step", subject_.target().num_steps());
  for (const auto& [name, tensor] : measurement_.tensors()) {
    const TensorView& from = file.at(name);
    LACUNA_CHECK(from.dtype == tensor.dtype && from.shape == tensor.shape, "{}: {} {}, expected {}",
                 who, name, from.describe(), tensor.describe());
    std::memcpy(tensor.data, from.data,
                static_cast<size_t>(storage_bytes(tensor.dtype, tensor.numel())));
  }
  begun_ = metadata_int(file, "begun", 1) == 1;
  measured_ = metadata_int(file, "measured", 1) == 1;
  if (!begun_) return false;
  NamedTensors state;
  for (const auto& [name, view] : file.tensors())
    if (name.starts_with(kStatePrefix)) state.emplace_back(name.substr(kStatePrefix.size()), view);
  if (const auto v = file.tensors().find("velocity"); measured_ && v != file.tensors().end()) {
    const TensorView &from = v->second, &expected = velocity_;
    LACUNA_CHECK(from.dtype == expected.dtype && from.shape == expected.shape,
                 "{}: velocity {}, expected {}", who, from.describe(), expected.describe());
    measured_velocity_ = copy_of(from);
  }
  subject_.restore(at_.prompt, at_.step, state);
  return true;
}

}  // namespace

void walk(Subject& subject, Measurement& measurement, const std::filesystem::path& progress_file,
          const WalkHooks& hooks) {
  Walker(subject, measurement, progress_file, hooks).run();
}

// Not fnv1a64 modulo count: its low bits follow from the low bits of the letters, so that all that
// is picked for one head, an even number of ways each, would move together.
int pick(int count, const std::string& key) {
  const double share = 0.5 + 0.5 * hash_uniform(key, 0);
  return std::min(count - 1, static_cast<int>(share * count));
}

int sample_step(int begin, int end, int i, int count, const std::string& key) {
  const int64_t steps = end - begin;
  const int64_t first = i * steps / count, last = (i + 1) * steps / count;
  return begin + static_cast<int>(first) + pick(static_cast<int>(last - first), key);
}

IndexRange expert_steps(const Subject& subject, int expert) {
  IndexRange range{subject.target().num_steps(), 0};
  for (int step = 0; step < subject.target().num_steps(); ++step)
    if (subject.expert(step) == expert) {
      range.begin = std::min(range.begin, step);
      range.end = step + 1;
    }
  if (range.begin > range.end) range = {0, 0};
  return range;
}

}  // namespace lacuna
