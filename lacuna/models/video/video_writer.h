// SPDX-License-Identifier: Apache-2.0
// Video files from RGB frames: H.264 MP4 and VP9 WebM through libav*, lossless y4m, PNG frames.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace lacuna {

struct VideoInfo {
  int width = 0, height = 0;  // pixels; MP4 and WebM (4:2:0) need even sizes
  int fps = 16;
  std::string comment;  // settings as JSON, so that a clip can be made again
};

// Frames go in one by one; nothing appears under the final name before finish(). Destroyed without
// finish(), everything written is removed.
class VideoWriter {
 public:
  virtual ~VideoWriter() = default;
  // rgb [height, width, 3] u8. Throws Error on a full disk.
  virtual void write(std::span<const uint8_t> rgb) = 0;
  virtual void finish() = 0;
};

// By file ending: .mp4, .webm, .y4m, or .png with a frame number pattern such as frames/%04d.png
// (without a pattern `-%04d` goes before the ending). Throws Error, before any work is lost, when
// the ending is unknown, the folder is missing or not writable, or this libav has no such encoder.
// Encoders run on one thread: their output would depend on the number otherwise.
std::unique_ptr<VideoWriter> open_video(const std::filesystem::path& path, const VideoInfo& info);

// Whether open_video writes files of this ending, and these endings in words: ".mp4, ... or .png".
bool is_video_name(const std::filesystem::path& path);
std::string video_endings();

// The file of frame 0, 1, ... of a PNG sequence that was opened as `path`.
std::filesystem::path png_frame(const std::filesystem::path& path, int frame);
// Whether `file` is the name of any frame of it; names of one folder that is spelt alike.
bool is_png_frame(const std::filesystem::path& path, const std::filesystem::path& file);

// The comment of a file made by open_video (for a PNG sequence: of its first frame); empty if none.
// Throws Error when the file cannot be read.
std::string read_video_comment(const std::filesystem::path& path);

// One frame [height, width, 3] u8 as a PNG file in memory, with info's comment in it if there is
// one. Throws Error when sizes do not fit.
std::vector<uint8_t> encode_png(const VideoInfo& info, std::span<const uint8_t> rgb);

// RGB frames [height, width, 3] in [-1, 1] -> u8, (x + 1) / 2 * 255 truncated after clamping, as
// the published pipelines export video.
void to_rgb8(std::span<const float> frame, std::span<uint8_t> rgb);

}  // namespace lacuna
