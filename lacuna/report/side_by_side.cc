// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/side_by_side.h"

#include <algorithm>
#include <cmath>

#include "lacuna/core/error.h"
#include "lacuna/report/font.h"

namespace lacuna {
namespace {

constexpr int kReadableWidth = 240;  // 40 characters at scale 1
constexpr int kMargin = 4;           // around a label, at scale 1; also between clips
constexpr uint8_t kInk[3] = {235, 235, 235};

int even(int n) {
  return n + n % 2;
}

void draw_clip(std::span<const uint8_t> frame, const Clip& clip, int enlarge, int left, int top,
               const Canvas& canvas) {
  for (int y = 0; y < clip.height * enlarge; ++y) {
    const uint8_t* row = frame.data() + size_t{3} * (y / enlarge) * clip.width;
    uint8_t* out = &canvas.rgb[3 * (static_cast<size_t>(top + y) * canvas.width + left)];
    for (int x = 0; x < clip.width * enlarge; ++x)
      std::copy_n(row + size_t{3} * (x / enlarge), 3, out + size_t{3} * x);
  }
}

}  // namespace

SideBySideLayout::SideBySideLayout(int clips, int clip_width, int clip_height) {
  LACUNA_CHECK(clips > 0 && clip_width > 0 && clip_height > 0,
               "side by side: {} clips of {}x{} pixels, expected some", clips, clip_width,
               clip_height);
  columns = clips <= 3 ? clips : static_cast<int>(std::ceil(std::sqrt(clips)));
  rows = (clips + columns - 1) / columns;
  enlarge = std::max(1, (kReadableWidth + clip_width - 1) / clip_width);
  text_scale = std::max(1, clip_width * enlarge / (2 * kReadableWidth));
  strip_height = text_scale * (kLines * kLineHeight + 2 * kMargin);
  cell_width = even(clip_width * enlarge + kMargin);
  cell_height = even(clip_height * enlarge + strip_height);
  width = columns * cell_width;
  height = rows * cell_height;
}

int SideBySideLayout::line_length() const {
  return std::max(1, (cell_width / text_scale - 2 * kMargin) / kAdvance);
}

std::vector<std::string> wrap_label(std::span<const std::string> label, int line_length) {
  const auto length = static_cast<size_t>(line_length);
  std::vector<std::string> lines;
  for (const std::string& text : label)
    for (size_t at = 0; at < text.size() || at == 0; at += length)
      lines.push_back(text.substr(at, length));
  if (lines.size() <= SideBySideLayout::kLines) return lines;
  // Measurements stand in the last line; what has to go goes from the name before it.
  const std::string last = lines.back();
  lines.resize(SideBySideLayout::kLines - 1);
  std::string& cut = lines.back();
  cut = cut.substr(0, length - std::min<size_t>(2, length)) + "..";
  lines.push_back(last);
  return lines;
}

void write_side_by_side(std::span<const LabelledClip> clips, VideoWriter& writer,
                        const std::function<void()>& next) {
  LACUNA_CHECK(!clips.empty(), "side by side: no clips");
  const Clip& first = *clips.front().clip;
  for (const LabelledClip& c : clips)
    LACUNA_CHECK(c.clip->width == first.width && c.clip->rgb.size() == first.rgb.size(),
                 "side by side: clips of {}x{} and {}x{} pixels, expected one size and length",
                 first.width, first.height, c.clip->width, c.clip->height);
  const SideBySideLayout layout(static_cast<int>(clips.size()), first.width, first.height);
  std::vector<uint8_t> picture(size_t{3} * layout.width * layout.height);
  const Canvas canvas{layout.width, layout.height, picture};
  const auto corner = [&](size_t i) {
    const int column = static_cast<int>(i) % layout.columns;
    const int row = static_cast<int>(i) / layout.columns;
    return std::pair(column * layout.cell_width, row * layout.cell_height);
  };
  for (size_t i = 0; i < clips.size(); ++i) {
    const auto [left, top] = corner(i);
    int y = top + kMargin * layout.text_scale;
    for (const std::string& line : wrap_label(clips[i].label, layout.line_length())) {
      draw_text(canvas, left + kMargin * layout.text_scale, y, layout.text_scale, line, kInk);
      y += kLineHeight * layout.text_scale;
    }
  }
  for (int t = 0; t < first.frames(); ++t) {
    if (next) next();
    for (size_t i = 0; i < clips.size(); ++i) {
      const auto [left, top] = corner(i);
      draw_clip(clips[i].clip->frame(t), first, layout.enlarge, left + kMargin / 2,
                top + layout.strip_height, canvas);
    }
    writer.write(picture);
  }
  writer.finish();
}

}  // namespace lacuna
