// SPDX-License-Identifier: Apache-2.0
// The formats behind open_video; use that.
#pragma once

#include <filesystem>
#include <memory>

#include "lacuna/models/video/video_writer.h"

struct SwsContext;

namespace lacuna {

std::unique_ptr<VideoWriter> open_libav_video(const std::filesystem::path& path,
                                              const VideoInfo& info);
std::unique_ptr<VideoWriter> open_y4m_video(const std::filesystem::path& path,
                                            const VideoInfo& info);
std::unique_ptr<VideoWriter> open_png_frames(const std::filesystem::path& path,
                                             const VideoInfo& info);
// From RGB of 8 bits to `pixel_format`, an AVPixelFormat of BT.709 in limited range; `filter` is
// one of swscale's. To be freed by sws_freeContext.
SwsContext* bt709_scaler(const VideoInfo& info, int pixel_format, int filter);
// `clip.png` -> `clip-%04d.png`; throws Error on any other use of %.
std::string png_pattern(const std::filesystem::path& path);
std::string read_libav_comment(const std::filesystem::path& path);
std::string read_y4m_comment(const std::filesystem::path& path);
std::string read_png_comment(const std::filesystem::path& path);

}  // namespace lacuna
