// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/side_by_side.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "lacuna/core/error.h"
#include "lacuna/report/font.h"

namespace lacuna {
namespace {

std::string drawn(char c) {
  std::string text;
  for (const uint8_t row : glyph(c)) {
    for (int bit = kGlyphWidth - 1; bit >= 0; --bit) text += (row >> bit & 1) != 0 ? '#' : '.';
    text += '\n';
  }
  return text;
}

TEST(Font, LettersLookLikeThemselves) {
  EXPECT_EQ(drawn('L'), "#....\n#....\n#....\n#....\n#....\n#....\n#####\n");
  EXPECT_EQ(drawn('4'), "...#.\n..##.\n.#.#.\n#..#.\n#####\n...#.\n...#.\n");
  EXPECT_EQ(drawn('\n'), drawn('?'));
  EXPECT_EQ(drawn('\x80'), drawn('?'));
  std::set<std::string> all;
  for (char c = ' '; c <= '~' && c > 0; ++c) all.insert(drawn(c));
  EXPECT_EQ(all.size(), 95u);  // no two alike
}

TEST(Font, DrawsAtItsPlaceAndStaysInside) {
  std::vector<uint8_t> rgb(3 * 20 * 10);
  const Canvas canvas{20, 10, rgb};
  const uint8_t ink[3] = {1, 2, 3};
  draw_text(canvas, 3, 2, 1, "||", ink);  // a bar is column 2 of its glyph, seven rows
  for (int y = 0; y < 10; ++y)
    for (int x = 0; x < 20; ++x) {
      const bool bar = y >= 2 && y < 9 && (x == 5 || x == 5 + kAdvance);
      EXPECT_EQ(rgb[static_cast<size_t>(3 * (y * 20 + x) + 1)], bar ? 2 : 0) << x << " " << y;
    }
  draw_text(canvas, -7, -3, 3, "@@@@@@", ink);  // address sanitizer watches
}

TEST(Label, IsWrappedAndKeepsItsLastLine) {
  const std::vector<std::string> label{"0123456789abcdef", "PSNR 9"};
  EXPECT_EQ(wrap_label(label, 10), (std::vector<std::string>{"0123456789", "abcdef", "PSNR 9"}));
  EXPECT_EQ(wrap_label(label, 20), label);
  EXPECT_EQ(wrap_label(label, 6), (std::vector<std::string>{"012345", "6789..", "PSNR 9"}));
}

TEST(Layout, IsEvenAndAGridAboveThree) {
  for (int clips = 1; clips <= 10; ++clips)
    for (const int size : {16, 97, 480, 833}) {
      const SideBySideLayout layout(clips, size, size / 2);
      EXPECT_EQ(layout.width % 2 + layout.height % 2, 0);
      EXPECT_GE(layout.columns * layout.rows, clips);
      EXPECT_LT(layout.columns * (layout.rows - 1), clips);
      EXPECT_GE(layout.line_length(), 38);
    }
  EXPECT_EQ(SideBySideLayout(3, 96, 96).columns, 3);
  EXPECT_EQ(SideBySideLayout(4, 96, 96).columns, 2);
  EXPECT_EQ(SideBySideLayout(5, 96, 96).columns, 3);
  EXPECT_THROW(SideBySideLayout(0, 96, 96), Error);
}

class Frames final : public VideoWriter {
 public:
  void write(std::span<const uint8_t> rgb) override { frames.emplace_back(rgb.begin(), rgb.end()); }
  void finish() override { finished = true; }
  std::vector<std::vector<uint8_t>> frames;
  bool finished = false;
};

TEST(SideBySide, EveryClipIsInItsCell) {
  std::vector<Clip> made;
  for (int i = 0; i < 4; ++i) {
    Clip clip{120, 80, 16, {}};
    for (int t = 0; t < 2; ++t)
      clip.rgb.insert(clip.rgb.end(), clip.frame_bytes(), static_cast<uint8_t>(50 + 40 * i + t));
    made.push_back(std::move(clip));
  }
  std::vector<LabelledClip> clips;
  for (const Clip& clip : made) clips.push_back({{"name", "PSNR"}, &clip});
  Frames out;
  int calls = 0;
  write_side_by_side(clips, out, [&] { ++calls; });
  EXPECT_TRUE(out.finished);
  EXPECT_EQ(calls, 2);
  const SideBySideLayout layout(4, 120, 80);
  ASSERT_EQ(layout.enlarge, 2);
  ASSERT_EQ(out.frames.size(), 2u);
  for (int t = 0; t < 2; ++t)
    for (int i = 0; i < 4; ++i) {
      const auto& frame = out.frames[static_cast<size_t>(t)];
      int shown = 0, ink = 0;
      for (int y = 0; y < layout.cell_height; ++y)
        for (int x = 0; x < layout.cell_width; ++x) {
          const int py = i / 2 * layout.cell_height + y, px = i % 2 * layout.cell_width + x;
          const uint8_t v = frame[static_cast<size_t>(3 * (py * layout.width + px))];
          shown += v == 50 + 40 * i + t && y >= layout.strip_height ? 1 : 0;
          ink += v > 0 && y < layout.strip_height ? 1 : 0;
        }
      EXPECT_EQ(shown, 240 * 160) << t << " " << i;
      EXPECT_GT(ink, 50) << t << " " << i;
    }
  const Clip other{64, 64, 16, std::vector<uint8_t>(3 * 64 * 64)};
  clips.push_back({{"other"}, &other});
  EXPECT_THROW(write_side_by_side(clips, out), Error);
}

}  // namespace
}  // namespace lacuna
