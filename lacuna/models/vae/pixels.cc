// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/pixels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

// Calls body with a typed null pointer so that generic code can name the element type.
template <typename Body>
void with_element(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(static_cast<float*>(nullptr));
    case DType::bf16:
      return body(static_cast<BFloat16*>(nullptr));
    default:
      fail("vae: {} activations, expected f32 or bf16", dtype_name(dtype));
  }
}

// Rows are the unit of parallel work; a few thousand elements keep the hand-out cheap.
constexpr int64_t kGrainElements = 1 << 15;

void parallel_rows(int64_t rows, int64_t row_elements,
                   const std::function<void(int64_t row)>& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, row_elements));
  parallel_ranges(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// One frame [1, h, w, c] with its channels as [groups, repeats], for what repeats channels.
TensorView grouped(const TensorView& frame, int64_t repeats) {
  TensorView view = frame;
  view.shape = {frame.shape[1], frame.shape[2], frame.shape[3] / repeats, repeats};
  view.stride = {frame.stride[1], frame.stride[2], repeats, 1};
  return view;
}

float value_or(std::span<const float> values, int64_t i, float fallback) {
  return values.empty() ? fallback : values[static_cast<size_t>(i)];
}

}  // namespace

TensorView region_of(const TensorView& x, const Region& region) {
  return x.narrow(1, region.top, region.height).narrow(2, region.left, region.width);
}

void paste_region(Backend& backend, const TensorView& x, const Region& region, int64_t t_begin,
                  int64_t top, int64_t left, const TensorView& video) {
  backend.copy(region_of(x, region), region_of(video.slice(t_begin, t_begin + x.shape[0]),
                                               {top, left, region.height, region.width}));
}

void interleave_phase(Backend& backend, const TensorView& phase, int dy, int dx,
                      const Region& region, const DupShortcut* shortcut, const TensorView& out) {
  const int64_t height = phase.shape[1], width = phase.shape[2], c = phase.shape[3];
  // Low-resolution cells whose pixel (2y + dy, 2x + dx) lies inside the region.
  const int64_t y_begin = (region.top - dy + 1) / 2;
  const int64_t y_end = (region.top + region.height - dy + 1) / 2;
  const int64_t x_begin = (region.left - dx + 1) / 2;
  const int64_t x_end = (region.left + region.width - dx + 1) / 2;
  LACUNA_CHECK(y_begin >= 0 && x_begin >= 0 && y_end <= height && x_end <= width,
               "interleave: region reaches ({}, {}) of a {} x {} map", y_end, x_end, height, width);
  const int64_t rows = y_end - y_begin, columns = x_end - x_begin;
  if (rows == 0 || columns == 0) return;
  const Region cells{y_begin, x_begin, rows, columns};
  const TensorView from = region_of(phase, cells);
  const TensorView to = out.narrow(1, 2 * y_begin + dy - region.top, rows, 2)
                            .narrow(2, 2 * x_begin + dx - region.left, columns, 2);
  if (shortcut == nullptr) return backend.copy(from, to);
  const DupChannels& dup = *shortcut->channels;
  const auto factor_t = static_cast<int64_t>(dup.offset.size());
  for (int64_t f = 0; f < phase.shape[0]; ++f) {
    const int64_t g = f + shortcut->skip, frame = g / factor_t;
    TensorView extra =
        region_of(shortcut->x.slice(frame, frame + 1), cells)
            .narrow(3, dup.offset[static_cast<size_t>(g % factor_t)], c / dup.repeats, dup.step);
    const int64_t step = extra.stride[3];
    extra = grouped(extra, 1);
    extra.shape[3] = dup.repeats;
    extra.stride[2] = step;
    extra.stride[3] = 0;
    const TensorView pixels = grouped(to.slice(f, f + 1), dup.repeats);
    backend.add(grouped(from.slice(f, f + 1), dup.repeats), extra, pixels);
  }
}

void unpack_latents(const TensorView& latents, int64_t t_begin, const Region& region,
                    std::span<const float> mean, std::span<const float> std_dev,
                    const TensorView& out) {
  const int64_t channels = latents.shape[0], frames = latents.shape[1];
  const int64_t height = latents.shape[2], width = latents.shape[3];
  const float* src = latents.as<float>();
  with_element(out.dtype, [&]<typename T>(T*) {
    T* dst = out.as<T>();
    parallel_rows(out.shape[0] * region.height, region.width * channels, [&](int64_t row) {
      const int64_t t = t_begin + row / region.height, y = region.top + row % region.height;
      for (int64_t c = 0; c < channels; ++c) {
        const float scale = value_or(std_dev, c, 1.0f), shift = value_or(mean, c, 0.0f);
        const float* line = src + ((c * frames + t) * height + y) * width + region.left;
        T* to = dst + row * region.width * channels + c;
        for (int64_t x = 0; x < region.width; ++x) to[x * channels] = T(line[x] * scale + shift);
      }
    });
  });
}

void pack_latents(const TensorView& x, std::span<const float> mean, std::span<const float> std_dev,
                  int64_t t_begin, const TensorView& latents) {
  const int64_t channels = latents.shape[0], frames = latents.shape[1];
  const int64_t height = latents.shape[2], width = latents.shape[3], stride = x.shape[3];
  float* dst = latents.as<float>();
  with_element(x.dtype, [&]<typename T>(T*) {
    const T* src = x.as<T>();
    parallel_rows(x.shape[0] * height, width * channels, [&](int64_t row) {
      const int64_t t = t_begin + row / height, y = row % height;
      for (int64_t c = 0; c < channels; ++c) {
        const float scale = 1.0f / value_or(std_dev, c, 1.0f), shift = value_or(mean, c, 0.0f);
        const T* from = src + row * width * stride + c;
        float* line = dst + ((c * frames + t) * height + y) * width;
        for (int64_t i = 0; i < width; ++i) {
          line[i] = (static_cast<float>(from[i * stride]) - shift) * scale;
        }
      }
    });
  });
}

void unpatchify(const TensorView& raw, int64_t patch, const TensorView& frames) {
  const int64_t height = raw.shape[1], width = raw.shape[2], channels = raw.shape[3];
  float* out = frames.as<float>();
  with_element(raw.dtype, [&]<typename T>(T*) {
    const T* src = raw.as<T>();
    parallel_rows(raw.shape[0] * height * patch, width * patch * 3, [&](int64_t row) {
      const int64_t ho = row % patch, cell_row = row / patch;  // cell_row = t * height + y
      const T* line = src + cell_row * width * channels;
      float* to = out + row * width * patch * 3;
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t wo = 0; wo < patch; ++wo) {
          for (int64_t c = 0; c < 3; ++c) {
            const auto v = static_cast<float>(line[x * channels + (c * patch + wo) * patch + ho]);
            to[(x * patch + wo) * 3 + c] = std::clamp(v, -1.0f, 1.0f);
          }
        }
      }
    });
  });
}

void patchify(const TensorView& video, int64_t f_begin, int64_t patch, const TensorView& out) {
  const int64_t frames = video.shape[1], video_height = video.shape[2],
                video_width = video.shape[3];
  const int64_t height = out.shape[1], width = out.shape[2], channels = out.shape[3];
  const float* src = video.as<float>();
  with_element(out.dtype, [&]<typename T>(T*) {
    T* dst = out.as<T>();
    parallel_rows(out.shape[0] * height, width * channels, [&](int64_t row) {
      const int64_t f = f_begin + row / height, y = row % height;
      T* to = dst + row * width * channels;
      for (int64_t c = 0; c < 3; ++c) {
        for (int64_t ho = 0; ho < patch; ++ho) {
          const float* line =
              src + ((c * frames + f) * video_height + y * patch + ho) * video_width;
          for (int64_t i = 0; i < width * patch; ++i) {
            to[(i / patch) * channels + (c * patch + i % patch) * patch + ho] = T(line[i]);
          }
        }
      }
    });
  });
}

void add_average_shortcut(const TensorView& x, int64_t factor_t, int64_t factor_s,
                          const TensorView& out) {
  const int64_t height = x.shape[1], width = x.shape[2], c_in = x.shape[3];
  const int64_t out_height = out.shape[1], out_width = out.shape[2], c_out = out.shape[3];
  const int64_t pad = (factor_t - x.shape[0] % factor_t) % factor_t;
  const int64_t cell = factor_t * factor_s * factor_s, group = c_in * cell / c_out;
  with_element(x.dtype, [&]<typename T>(T*) {
    const T* src = x.as<T>();
    T* dst = out.as<T>();
    parallel_rows(out.shape[0] * out_height, out_width * c_in * cell, [&](int64_t row) {
      const int64_t t = row / out_height, y = row % out_height;
      for (int64_t j = 0; j < out_width; ++j) {
        T* pixel = dst + (row * out_width + j) * c_out;
        for (int64_t c = 0; c < c_out; ++c) {
          float sum = 0.0f;
          for (int64_t k = c * group; k < (c + 1) * group; ++k) {
            const int64_t offset = k % cell,
                          from_t = t * factor_t + offset / (factor_s * factor_s) - pad;
            if (from_t < 0) continue;
            const int64_t from_y = y * factor_s + offset / factor_s % factor_s;
            const int64_t from_x = j * factor_s + offset % factor_s;
            sum += static_cast<float>(
                src[((from_t * height + from_y) * width + from_x) * c_in + k / cell]);
          }
          pixel[c] = T(static_cast<float>(pixel[c]) + sum / static_cast<float>(group));
        }
      }
    });
  });
}

}  // namespace lacuna
