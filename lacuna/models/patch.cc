// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/patch.h"

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// Where the patch of a token lies in a latent.
struct Walk {
  int64_t channels, frames, height, width;  // of the latent
  PatchSize patch;

  int64_t tokens_h() const { return height / patch.h; }
  int64_t tokens_w() const { return width / patch.w; }
  int64_t tokens() const { return frames / patch.t * tokens_h() * tokens_w(); }
  // Latent offset of channel 0 of the patch's first value.
  int64_t origin(int64_t token) const {
    const int64_t w = token % tokens_w();
    const int64_t h = token / tokens_w() % tokens_h();
    const int64_t t = token / (tokens_w() * tokens_h());
    return (t * patch.t * height + h * patch.h) * width + w * patch.w;
  }
};

Walk check(const char* who, const TensorView& latent, const PatchSize& patch,
           const TensorView& rows) {
  LACUNA_CHECK(latent.rank == 4 && latent.dtype == DType::f32 && latent.contiguous(),
               "{}: latent {}, expected [c, t, h, w] f32 contiguous", who, latent.describe());
  LACUNA_CHECK(latent.shape[1] % patch.t == 0 && latent.shape[2] % patch.h == 0 &&
                   latent.shape[3] % patch.w == 0,
               "{}: latent {}, expected multiples of the patch {} x {} x {}", who,
               latent.describe(), patch.t, patch.h, patch.w);
  const Walk walk{latent.shape[0], latent.shape[1], latent.shape[2], latent.shape[3], patch};
  LACUNA_CHECK(rows.rank == 2 && rows.dtype == DType::f32 && rows.contiguous() &&
                   rows.shape[0] == walk.tokens() &&
                   rows.shape[1] == walk.channels * patch.volume(),
               "{}: rows {}, expected [{}, {}] f32 contiguous", who, rows.describe(), walk.tokens(),
               walk.channels * patch.volume());
  return walk;
}

constexpr int64_t kTokensPerTask = 1024;

}  // namespace

void patchify(const TensorView& latent, const PatchSize& patch, const TensorView& rows) {
  const Walk walk = check("patchify", latent, patch, rows);
  const float* from = latent.as<float>();
  float* to = rows.as<float>();
  const int64_t plane = walk.height * walk.width;
  parallel_ranges(walk.tokens(), kTokensPerTask, [&](int64_t begin, int64_t end) {
    float* value = to + begin * walk.channels * patch.volume();
    for (int64_t token = begin; token < end; ++token) {
      const float* base = from + walk.origin(token);
      for (int64_t c = 0; c < walk.channels; ++c) {
        for (int64_t t = 0; t < patch.t; ++t) {
          for (int64_t h = 0; h < patch.h; ++h) {
            const float* line = base + (c * walk.frames + t) * plane + h * walk.width;
            for (int64_t w = 0; w < patch.w; ++w) *value++ = line[w];
          }
        }
      }
    }
  });
}

void unpatchify(const TensorView& rows, const PatchSize& patch, PatchOrder order,
                const TensorView& latent) {
  const Walk walk = check("unpatchify", latent, patch, rows);
  const float* from = rows.as<float>();
  float* to = latent.as<float>();
  const int64_t plane = walk.height * walk.width, channels = walk.channels;
  const bool fastest = order == PatchOrder::channel_fastest;
  const int64_t channel_step = fastest ? 1 : patch.volume(), cell_step = fastest ? channels : 1;
  parallel_ranges(walk.tokens(), kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const float* cell = from + token * channels * patch.volume();
      float* base = to + walk.origin(token);
      for (int64_t t = 0; t < patch.t; ++t) {
        for (int64_t h = 0; h < patch.h; ++h) {
          for (int64_t w = 0; w < patch.w; ++w, cell += cell_step) {
            float* place = base + t * plane + h * walk.width + w;
            for (int64_t c = 0; c < channels; ++c)
              place[c * walk.frames * plane] = cell[c * channel_step];
          }
        }
      }
    }
  });
}

}  // namespace lacuna
