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

constexpr double kLobes = 3.0;

double lanczos(double x) {
  const double px = std::numbers::pi * x;
  if (px == 0.0) return 1.0;
  return std::abs(x) >= kLobes ? 0.0 : std::sin(px) / px * std::sin(px / kLobes) / (px / kLobes);
}

// What one pixel of a scaled line is made of: pixels of the line from `first` on.
struct Taps {
  int first = 0;
  std::vector<double> weights;
};

// Pixels [begin, begin + count) of a line of `from` pixels that is scaled to `to`.
std::vector<Taps> lanczos_taps(int from, int to, int begin, int count) {
  const double ratio = static_cast<double>(from) / to;
  const double stretch = std::max(ratio, 1.0), reach = kLobes * stretch;
  std::vector<Taps> line(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    const double center = (begin + i + 0.5) * ratio;
    const int last = std::min(from, static_cast<int>(center + reach + 0.5));
    Taps& taps = line[static_cast<size_t>(i)];
    taps.first = std::max(0, static_cast<int>(center - reach + 0.5));
    double sum = 0.0;
    for (int j = taps.first; j < last; ++j)
      sum += taps.weights.emplace_back(lanczos((j - center + 0.5) / stretch));
    for (double& weight : taps.weights) weight /= sum;
  }
  return line;
}

uint8_t to_level(double value) {
  return static_cast<uint8_t>(std::clamp(value + 0.5, 0.0, 255.0));
}

// The weighted sum of values `stride` apart.
uint8_t apply(const Taps& taps, const uint8_t* values, size_t stride) {
  double sum = 0.0;
  const uint8_t* value = values + static_cast<size_t>(taps.first) * stride;
  for (const double weight : taps.weights) {
    sum += weight * *value;
    value += stride;
  }
  return to_level(sum);
}

}  // namespace

Picture cover(const Picture& picture, int width, int height) {
  LACUNA_CHECK(picture.width > 0 && picture.height > 0 && width > 0 && height > 0 &&
                   picture.rgb.size() == size_t{3} * picture.width * picture.height,
               "cover: {}x{} pixels in {} bytes to {}x{}, expected 3 bytes a pixel, 1 or more each",
               picture.width, picture.height, picture.rgb.size(), width, height);
  if (picture.width == width && picture.height == height) return picture;
  const double scale = std::max(static_cast<double>(width) / picture.width,
                                static_cast<double>(height) / picture.height);
  const int wide = std::max(width, static_cast<int>(std::nearbyint(picture.width * scale)));
  const int high = std::max(height, static_cast<int>(std::nearbyint(picture.height * scale)));
  const auto columns = lanczos_taps(picture.width, wide, (wide - width) / 2, width);
  const auto rows = lanczos_taps(picture.height, high, (high - height) / 2, height);

  // Only rows and columns that are kept: a picture of one row may be scaled to millions.
  const size_t row_bytes = size_t{3} * static_cast<size_t>(width);
  std::vector<uint8_t> narrow(row_bytes * static_cast<size_t>(picture.height));
  for (int y = rows.front().first;
       y < rows.back().first + static_cast<int>(rows.back().weights.size()); ++y) {
    const uint8_t* from = picture.rgb.data() + size_t{3} * picture.width * static_cast<size_t>(y);
    uint8_t* to = narrow.data() + row_bytes * static_cast<size_t>(y);
    for (const Taps& taps : columns)
      for (int c = 0; c < 3; ++c) *to++ = apply(taps, from + c, 3);
  }
  Picture covered{width, height, std::vector<uint8_t>(row_bytes * static_cast<size_t>(height))};
  uint8_t* to = covered.rgb.data();
  for (const Taps& taps : rows)
    for (size_t x = 0; x < row_bytes; ++x) *to++ = apply(taps, narrow.data() + x, row_bytes);
  return covered;
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
