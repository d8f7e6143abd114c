// SPDX-License-Identifier: Apache-2.0
// Text in pictures: a bitmap font of 5 x 7 pixels for printable ASCII, drawn for this project.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lacuna {

inline constexpr int kGlyphWidth = 5, kGlyphHeight = 7;
// From glyph to glyph and from line to line, at scale 1.
inline constexpr int kAdvance = kGlyphWidth + 1, kLineHeight = kGlyphHeight + 2;

// Seven rows, bit 4 is the leftmost pixel; what is not printable ASCII looks like '?'.
std::span<const uint8_t, kGlyphHeight> glyph(char c);

// RGB pixels of a picture that others own: [height, width, 3] u8.
struct Canvas {
  int width, height;
  std::span<uint8_t> rgb;
};

// Draws `text` with its upper left corner at (x, y), each font pixel scale x scale, in one colour;
// pixels outside the canvas are left out.
void draw_text(const Canvas& canvas, int x, int y, int scale, std::string_view text,
               const uint8_t (&colour)[3]);

}  // namespace lacuna
