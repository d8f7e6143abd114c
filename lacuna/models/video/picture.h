// SPDX-License-Identifier: Apache-2.0
// Still pictures of strangers, and their way to the size of a video.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lacuna {

struct Picture {
  int width = 0, height = 0;  // pixels
  std::vector<uint8_t> rgb;   // [height, width, 3]
};

constexpr size_t kMaxPictureFile = size_t{1} << 30;  // bytes

// A PNG, JPEG, WebP, BMP, TIFF, GIF or PNM file, known by its bytes and not by its name; a JPEG
// upright as its EXIF data say; of a GIF, PNG or TIFF with several pictures the first. Grey becomes
// RGB, 16 bits become 8, alpha is left out, as upstream's loaders do. Throws Error when it is none
// of these, damaged, more than 16384 pixels a side, 2^26 pixels or 1 GiB, and of what libav does
// not decode: animated WebP, TIFF with a JPEG within, with alpha or with tags of image editors.
Picture read_picture(const std::filesystem::path& path);

// FNV-1a 64 of the file's bytes, 16 hex digits; empty where there is no such file or it is too
// large: whoever reads it says so.
std::string picture_content(const std::filesystem::path& path);

enum class ResizeFilter : uint8_t { lanczos, bicubic };  // of three lobes; a = -1/2

struct PixelSize {
  int width = 0, height = 0;
};

// Scaled to `scaled` and cut to `kept` around its middle, the left and upper one of two. Filters
// widen where a picture shrinks; columns come before rows with 8 bits between; weights have 22
// bits. That is Pillow level for level, but where Pillow 13 begins with the rows: pictures that
// shrink and are more than twice as high as wide, of which noise is up to 32 levels apart.
// libswscale's Lanczos is 44 levels away at worst. Throws Error unless there are a picture and
// sizes of at least one pixel and no more is kept than there is.
Picture resize_and_cut(const Picture& picture, ResizeFilter filter, PixelSize scaled,
                       PixelSize kept);

// Scaled to cover width x height, the proportions kept, and cut to that around its middle, as
// Wan's own scripts do, with Lanczos. Throws Error as resize_and_cut().
Picture cover(const Picture& picture, int width, int height);

}  // namespace lacuna
