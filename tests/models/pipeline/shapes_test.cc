// SPDX-License-Identifier: Apache-2.0
// The small model that ships: do its clips show the colour that the prompt names? Through the whole
// path: tokenizer, text encoder, transformer, sampler, decoder. tools/train/score.py judges more.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>

#include "lacuna/core/threads.h"
#include "lacuna/models/pipeline/generation.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

struct Colour {
  const char* name;
  std::array<float, 3> rgb;  // 0..1, as tools/train/clips.py
};
constexpr Colour kColours[] = {
    {"red", {0.92f, 0.08f, 0.10f}},    {"green", {0.10f, 0.80f, 0.15f}},
    {"blue", {0.10f, 0.25f, 1.00f}},   {"yellow", {1.00f, 0.92f, 0.08f}},
    {"orange", {1.00f, 0.50f, 0.00f}}, {"purple", {0.72f, 0.12f, 0.92f}},
    {"cyan", {0.05f, 0.92f, 0.98f}},   {"white", {1.00f, 1.00f, 1.00f}},
};

// The colour that most pixels come close to; pixels close to none are background.
class ColourCount {
 public:
  void add(const TensorView& frames) {
    const float* p = frames.as<float>();
    for (int64_t i = 0; i < frames.numel(); i += 3) {
      for (size_t c = 0; c < std::size(kColours); ++c) {
        float distance = 0.0f;
        for (int k = 0; k < 3; ++k) {
          const float d = (p[i + k] + 1.0f) / 2.0f - kColours[c].rgb[static_cast<size_t>(k)];
          distance += d * d;
        }
        if (distance < 0.05f) ++counts_[c];
      }
    }
  }
  const char* dominant() const {
    return kColours[std::max_element(counts_.begin(), counts_.end()) - counts_.begin()].name;
  }

 private:
  std::array<int64_t, std::size(kColours)> counts_{};
};

TEST(Shapes, ClipsShowTheColourOfThePrompt) {
  const fs::path folder = test::assets() / "lacuna-shapes";
  const auto backend = make_backend("cpu");
  const auto model = Model::open(std::array{folder});
  Context ctx{*backend, DType::f32};
  const test::TempFolder scratch;
  for (const char* colour : {"red", "green", "yellow"}) {
    const FamilyDefaults& d = model->defaults();
    Request r;
    r.model = "shapes";
    r.prompt = std::string("A big ") + colour + " circle moves left over a plain navy background";
    r.negative_prompt = d.negative_prompt;
    r.width = d.width, r.height = d.height, r.frames = d.frames;
    r.sampler.num_steps = 6;
    r.sampler.shift = d.shift;
    r.guidance = r.guidance_low = d.guidance;
    r.dtype = "f32";
    GenerationFiles files;
    files.latents = scratch.path() / "latents.safetensors";
    files.keep_latents = true;
    generate(*model, ctx, r, files, {}, 0, {});
    ColourCount count;
    const Tensor latents = std::move(load_state(files.latents).state.latents);
    model->decoder().decode(ctx, latents, {}, [&](const TensorView& f) { count.add(f); });
    EXPECT_STREQ(count.dominant(), colour);
  }
}

}  // namespace
}  // namespace lacuna
