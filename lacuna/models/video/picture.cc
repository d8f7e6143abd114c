// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/picture.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/rng.h"

namespace lacuna {
namespace {

double lanczos(double x) {
  constexpr double kLobes = 3.0;
  const double px = std::numbers::pi * x;
  if (px == 0.0) return 1.0;
  return std::abs(x) >= kLobes ? 0.0 : std::sin(px) / px * std::sin(px / kLobes) / (px / kLobes);
}

// Keys' cubic convolution, a = -1/2.
double bicubic(double x) {
  const double d = std::abs(x);
  if (d < 1.0) return (1.5 * d - 2.5) * d * d + 1.0;
  return d < 2.0 ? ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0 : 0.0;
}

struct Kernel {
  double (*value)(double x);
  double reach;  // 0 from here on
};

Kernel kernel_of(ResizeFilter filter) {
  return filter == ResizeFilter::lanczos ? Kernel{lanczos, 3.0} : Kernel{bicubic, 2.0};
}

// Weights are fractions of 2^22, so that a sum of levels of 8 bits stays below 2^31 however far
// the negative lobes reach.
constexpr int kWeightBits = 22;

// What one pixel of a scaled line is made of: pixels of the line from `first` on.
struct Taps {
  int first = 0;
  std::vector<int32_t> weights;
};

// Pixels [begin, begin + count) of a line of `from` pixels that is scaled to `to`.
std::vector<Taps> taps_of(const Kernel& kernel, int from, int to, int begin, int count) {
  const double ratio = static_cast<double>(from) / to;
  const double stretch = std::max(ratio, 1.0), reach = kernel.reach * stretch;
  std::vector<Taps> line(static_cast<size_t>(count));
  std::vector<double> exact;
  for (int i = 0; i < count; ++i) {
    const double center = (begin + i + 0.5) * ratio;
    const int last = std::min(from, static_cast<int>(center + reach + 0.5));
    Taps& taps = line[static_cast<size_t>(i)];
    taps.first = std::max(0, static_cast<int>(center - reach + 0.5));
    exact.clear();
    double sum = 0.0;
    for (int j = taps.first; j < last; ++j)
      sum += exact.emplace_back(kernel.value((j - center + 0.5) * (1.0 / stretch)));
    for (const double weight : exact)
      taps.weights.push_back(
          static_cast<int32_t>(std::round(weight / sum * (int32_t{1} << kWeightBits))));
  }
  return line;
}

// The weighted sum of values `stride` apart.
uint8_t apply(const Taps& taps, const uint8_t* values, size_t stride) {
  int32_t sum = int32_t{1} << (kWeightBits - 1);
  const uint8_t* value = values + static_cast<size_t>(taps.first) * stride;
  for (const int32_t weight : taps.weights) {
    sum += weight * *value;
    value += stride;
  }
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));
}

}  // namespace

Picture resize_and_cut(const Picture& picture, ResizeFilter filter, PixelSize scaled,
                       PixelSize kept) {
  LACUNA_CHECK(
      picture.width > 0 && picture.height > 0 && kept.width > 0 && kept.height > 0 &&
          picture.rgb.size() == size_t{3} * picture.width * picture.height,
      "resize: {}x{} pixels in {} bytes to {}x{}, expected 3 bytes a pixel, 1 or more each",
      picture.width, picture.height, picture.rgb.size(), kept.width, kept.height);
  LACUNA_CHECK(scaled.width >= kept.width && scaled.height >= kept.height,
               "resize: to {}x{} and cut to {}x{}, expected to cut no more than there is",
               scaled.width, scaled.height, kept.width, kept.height);
  const Kernel kernel = kernel_of(filter);
  const auto columns =
      taps_of(kernel, picture.width, scaled.width, (scaled.width - kept.width) / 2, kept.width);
  const auto rows = taps_of(kernel, picture.height, scaled.height,
                            (scaled.height - kept.height) / 2, kept.height);

  // Only rows and columns that are kept: a picture of one row may be scaled to millions.
  const size_t row_bytes = size_t{3} * static_cast<size_t>(kept.width);
  std::vector<uint8_t> narrow(row_bytes * static_cast<size_t>(picture.height));
  for (int y = rows.front().first;
       y < rows.back().first + static_cast<int>(rows.back().weights.size()); ++y) {
    const uint8_t* from = picture.rgb.data() + size_t{3} * picture.width * static_cast<size_t>(y);
    uint8_t* to = narrow.data() + row_bytes * static_cast<size_t>(y);
    for (const Taps& taps : columns)
      for (int c = 0; c < 3; ++c) *to++ = apply(taps, from + c, 3);
  }
  Picture result{kept.width, kept.height,
                 std::vector<uint8_t>(row_bytes * static_cast<size_t>(kept.height))};
  uint8_t* to = result.rgb.data();
  for (const Taps& taps : rows)
    for (size_t x = 0; x < row_bytes; ++x) *to++ = apply(taps, narrow.data() + x, row_bytes);
  return result;
}

Picture cover(const Picture& picture, int width, int height) {
  LACUNA_CHECK(picture.width > 0 && picture.height > 0,
               "cover: {}x{} pixels, expected 1 or more each way", picture.width, picture.height);
  const double scale = std::max(static_cast<double>(width) / picture.width,
                                static_cast<double>(height) / picture.height);
  const PixelSize scaled{
      std::max(width, static_cast<int>(std::nearbyint(picture.width * scale))),
      std::max(height, static_cast<int>(std::nearbyint(picture.height * scale)))};
  return resize_and_cut(picture, ResizeFilter::lanczos, scaled, {width, height});
}

std::string picture_content(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none) ||
      std::filesystem::file_size(path, none) > kMaxPictureFile)
    return {};
  const MappedFile file(path);
  return fmt::format("{:016x}", fnv1a64({reinterpret_cast<const char*>(file.bytes().data()),
                                         file.bytes().size()}));
}

}  // namespace lacuna
