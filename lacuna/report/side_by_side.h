// SPDX-License-Identifier: Apache-2.0
// One video of several clips, each under its label.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lacuna/models/video/video_writer.h"
#include "lacuna/report/clip.h"

namespace lacuna {

struct LabelledClip {
  std::vector<std::string> label;  // lines; longer ones are wrapped, and cut where no line is left
  const Clip* clip;
};

// Where things go: up to three clips in a row, more in a grid as square as possible. Small clips
// are enlarged by whole factors so that labels can be read. All sizes are even.
struct SideBySideLayout {
  int columns, rows;
  int enlarge;                  // pixels per pixel of a clip
  int cell_width, cell_height;  // of clip and label strip
  int strip_height, text_scale;
  int width, height;  // of the video

  SideBySideLayout(int clips, int clip_width, int clip_height);
  // Characters in a line, lines in a strip.
  int line_length() const;
  static constexpr int kLines = 3;
};

// `label` broken into at most kLines lines of line_length characters; the last ends in ".." when
// something had to go.
std::vector<std::string> wrap_label(std::span<const std::string> label, int line_length);

// Writes frame by frame into `writer`, opened for this layout's size, and finishes it. `next` is
// called before each frame and may throw to stop. Throws Error unless clips have one size and
// length.
void write_side_by_side(std::span<const LabelledClip> clips, VideoWriter& writer,
                        const std::function<void()>& next = {});

}  // namespace lacuna
