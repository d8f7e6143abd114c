// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/video_writer.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "lacuna/core/error.h"
#include "lacuna/models/video/formats.h"

namespace lacuna {
namespace {

// Every ending that a video may have.
struct VideoFormat {
  std::string_view ending;
  decltype(&open_y4m_video) open;
  decltype(&read_y4m_comment) read_comment;
  bool even_sizes;  // 4:2:0
};
constexpr VideoFormat kVideoFormats[] = {
    {".mp4", open_libav_video, read_libav_comment, true},
    {".webm", open_libav_video, read_libav_comment, true},
    {".y4m", open_y4m_video, read_y4m_comment, false},
    {".png", open_png_frames, read_png_comment, false},
};

// Null when no video has this ending.
const VideoFormat* video_format(const std::filesystem::path& path) {
  const std::string ending = path.extension().string();
  for (const VideoFormat& format : kVideoFormats)
    if (format.ending == ending) return &format;
  return nullptr;
}

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
  const VideoFormat* format = video_format(path);
  LACUNA_CHECK(format != nullptr, "output: {}, expected a name ending in {}", path.string(),
               video_endings());
  LACUNA_CHECK(!format->even_sizes || (info.width % 2 == 0 && info.height % 2 == 0),
               "output: {}x{} pixels, {} needs even sizes (use .y4m or .png)", info.width,
               info.height, format->ending);
  return format->open(path, info);
}

bool is_video_name(const std::filesystem::path& path) {
  return video_format(path) != nullptr;
}

std::string video_endings() {
  std::string text;
  for (const VideoFormat& format : kVideoFormats) {
    const bool last = &format == std::end(kVideoFormats) - 1;
    text += text.empty() ? "" : last ? " or " : ", ";
    text += format.ending;
  }
  return text;
}

std::string read_video_comment(const std::filesystem::path& path) {
  const VideoFormat* format = video_format(path);
  return (format != nullptr ? format->read_comment : read_libav_comment)(path);
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
