// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/video_writer.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "lacuna/core/error.h"
#include "lacuna/models/video/formats.h"

namespace lacuna {
namespace {

void check_folder(const std::filesystem::path& path) {
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  LACUNA_CHECK(std::filesystem::is_directory(folder), "output: folder {} does not exist",
               folder.string());
}

}  // namespace

std::unique_ptr<VideoWriter> open_video(const std::filesystem::path& path, const VideoInfo& info) {
  LACUNA_CHECK(info.width > 0 && info.height > 0 && info.width <= 16384 && info.height <= 16384,
               "output: {}x{} pixels, expected 1 to 16384 each way", info.width, info.height);
  LACUNA_CHECK(info.fps > 0 && info.fps <= 1000, "output: {} fps, expected 1 to 1000", info.fps);
  check_folder(path);
  const std::string ending = path.extension().string();
  if (ending == ".mp4" || ending == ".webm") {
    LACUNA_CHECK(info.width % 2 == 0 && info.height % 2 == 0,
                 "output: {}x{} pixels, {} needs even sizes (use .y4m or .png)", info.width,
                 info.height, ending);
    return open_libav_video(path, info);
  }
  if (ending == ".y4m") return open_y4m_video(path, info);
  if (ending == ".png") return open_png_frames(path, info);
  fail("output: {}, expected a name ending in .mp4, .webm, .y4m or .png", path.string());
}

void to_rgb8(std::span<const float> frame, std::span<uint8_t> rgb) {
  LACUNA_CHECK(frame.size() == rgb.size(), "to_rgb8: {} values into {}", frame.size(), rgb.size());
  for (size_t i = 0; i < frame.size(); ++i) {
    // NaN compares false and becomes 0.
    const float unit = frame[i] > -1.0f ? std::min((frame[i] + 1.0f) * 0.5f, 1.0f) : 0.0f;
    rgb[i] = static_cast<uint8_t>(unit * 255.0f);
  }
}

}  // namespace lacuna
