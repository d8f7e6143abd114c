// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/picture.h"

extern "C" {
#include <libavcodec/avcodec.h>
}
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "lacuna/models/video/video_writer.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Bytes = std::vector<uint8_t>;

class PictureTest : public testing::Test {
 protected:
  fs::path write(const std::string& name, const Bytes& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
    return folder_ / name;
  }
  std::string refused(const Bytes& bytes, const std::string& name = "a.png") const {
    const std::string error = test::error_of([&] { read_picture(write(name, bytes)); });
    EXPECT_THAT(error, testing::StartsWith("image: " + (folder_ / name).string()));
    EXPECT_EQ(error.find('\n'), std::string::npos);
    return error;
  }
  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path();
};

// Colours that tell where they stand.
Picture pattern(int width, int height) {
  Picture picture{width, height, {}};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        picture.rgb.push_back(static_cast<uint8_t>(37 * x + 61 * y + 80 * c));
  return picture;
}

// Samples of 8 or 16 bits, big endian, rows one behind the other.
Bytes png_of(int width, int height, int bits, int colour, const Bytes& samples) {
  Bytes file;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  if (setjmp(png_jmpbuf(png))) std::abort();
  png_set_write_fn(
      png, &file,
      [](png_structp p, png_bytep data, size_t size) {
        auto* to = static_cast<Bytes*>(png_get_io_ptr(p));
        to->insert(to->end(), data, data + size);
      },
      [](png_structp) {});
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), bits,
               colour, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  const size_t row = samples.size() / static_cast<size_t>(height);
  for (int y = 0; y < height; ++y)
    png_write_row(png, samples.data() + static_cast<size_t>(y) * row);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return file;
}

// 32 x 16: dark but for its right half, which is light. Grey, or its colours change from left to
// right, one sample for 2 x 2 pixels.
Bytes jpeg_of(bool coloured = false) {
  const AVCodec* codec = avcodec_find_encoder(AV_CODEC_ID_MJPEG);
  AVCodecContext* encoder = avcodec_alloc_context3(codec);
  encoder->width = 32, encoder->height = 16;
  encoder->pix_fmt = coloured ? AV_PIX_FMT_YUVJ420P : AV_PIX_FMT_YUVJ444P;
  encoder->time_base = {1, 25};
  AVFrame* frame = av_frame_alloc();
  frame->format = encoder->pix_fmt, frame->width = 32, frame->height = 16;
  AVPacket* packet = av_packet_alloc();
  if (avcodec_open2(encoder, codec, nullptr) < 0 || av_frame_get_buffer(frame, 0) < 0) std::abort();
  for (int plane = 0; plane < 3; ++plane) {
    const int part = coloured && plane != 0 ? 2 : 1;
    for (int y = 0; y < 16 / part; ++y)
      for (int x = 0; x < 32 / part; ++x)
        frame->data[plane][y * frame->linesize[plane] + x] =
            static_cast<uint8_t>(plane == 0 ? (x < 16 ? 40 : 200)
                                 : coloured ? 8 * x + 60
                                            : 128);
  }
  if (avcodec_send_frame(encoder, frame) < 0 || avcodec_receive_packet(encoder, packet) < 0)
    std::abort();
  Bytes file(packet->data, packet->data + packet->size);
  av_packet_free(&packet);
  av_frame_free(&frame);
  avcodec_free_context(&encoder);
  return file;
}

TEST_F(PictureTest, KeepsWhatAPngSays) {
  const Picture made = pattern(7, 5);
  const auto read = [&](const Bytes& file) { return read_picture(write("a.png", file)); };
  const Picture rgb = read(encode_png({.width = 7, .height = 5, .comment = ""}, made.rgb));
  EXPECT_EQ(rgb.width, 7);
  EXPECT_EQ(rgb.height, 5);
  EXPECT_EQ(rgb.rgb, made.rgb);
  EXPECT_EQ(read_picture(
                write("named.jpg", encode_png({.width = 7, .height = 5, .comment = ""}, made.rgb)))
                .rgb,
            made.rgb)
      << "known by its bytes";

  const Bytes grey = {0, 100, 255, 7};
  const Bytes repeated = {0, 0, 0, 100, 100, 100, 255, 255, 255, 7, 7, 7};
  EXPECT_EQ(read(png_of(2, 2, 8, PNG_COLOR_TYPE_GRAY, grey)).rgb, repeated);
  // Alpha is left out, whatever it is.
  EXPECT_EQ(read(png_of(2, 2, 8, PNG_COLOR_TYPE_GRAY_ALPHA, {0, 0, 100, 9, 255, 255, 7, 0})).rgb,
            repeated);
  EXPECT_EQ(read(png_of(2, 1, 8, PNG_COLOR_TYPE_RGB_ALPHA, {1, 2, 3, 0, 4, 5, 6, 200})).rgb,
            (Bytes{1, 2, 3, 4, 5, 6}));
  const Bytes deep = read(png_of(2, 1, 16, PNG_COLOR_TYPE_RGB,
                                 {10, 10, 200, 200, 0, 0, 255, 255, 77, 77, 128, 128}))
                         .rgb;
  const Bytes shallow = {10, 200, 0, 255, 77, 128};
  ASSERT_EQ(deep.size(), shallow.size());
  for (size_t i = 0; i < deep.size(); ++i) EXPECT_NEAR(deep[i], shallow[i], 1) << i;
  const Bytes deep_grey =
      read(png_of(2, 2, 16, PNG_COLOR_TYPE_GRAY, {0, 0, 100, 100, 255, 255, 7, 7})).rgb;
  for (size_t i = 0; i < repeated.size(); ++i) EXPECT_NEAR(deep_grey[i], repeated[i], 1) << i;
}

TEST_F(PictureTest, AJpegStandsAsItsCameraWasHeld) {
  const Bytes plain = jpeg_of();
  // Where the light half lies once it is upright: right, left, left, right, below, below, above,
  // above, for orientations 1 to 8.
  const std::array<std::array<int, 2>, 8> light = {
      {{24, 8}, {8, 8}, {8, 8}, {24, 8}, {8, 24}, {8, 24}, {8, 8}, {8, 8}}};
  for (uint8_t orientation = 1; orientation <= 8; ++orientation) {
    const Bytes exif = {0xff, 0xe1, 0, 34, 'E', 'x',         'i', 'f', 0, 0,    'M', 'M',
                        0,    42,   0, 0,  0,   8,           0,   1,   1, 0x12, 0,   3,
                        0,    0,    0, 1,  0,   orientation, 0,   0,   0, 0,    0,   0};
    Bytes file = plain;
    file.insert(file.begin() + 2, exif.begin(), exif.end());
    const Picture picture = read_picture(write("a.jpg", file));
    const bool turned = orientation > 4;
    EXPECT_EQ(picture.width, turned ? 16 : 32) << int{orientation};
    EXPECT_EQ(picture.height, turned ? 32 : 16) << int{orientation};
    const auto [x, y] = light[orientation - 1u];
    const int mirror_x = turned ? x : 31 - x, mirror_y = turned ? 31 - y : y;
    const auto at = [&](int px, int py) {
      return picture.rgb[size_t{3} * (py * picture.width + px)];
    };
    EXPECT_NEAR(at(x, y), 200, 3) << int{orientation};
    EXPECT_NEAR(at(mirror_x, mirror_y), 40, 3) << int{orientation};
  }
}

// Less the last column and row, which are of the same blocks: all others stay what they are.
TEST_F(PictureTest, ColoursOfAnOddSizeStandWhereTheyShould) {
  Bytes jpeg = jpeg_of(/*coloured=*/true);
  const Picture even = read_picture(write("a.jpg", jpeg));
  constexpr std::array<uint8_t, 9> kSize = {0xff, 0xc0, 0, 17, 8, 0, 16, 0, 32};
  const auto size = std::search(jpeg.begin(), jpeg.end(), kSize.begin(), kSize.end());
  ASSERT_NE(size, jpeg.end());
  size[6] = 15, size[8] = 31;
  const Picture odd = read_picture(write("a.jpg", jpeg));
  ASSERT_EQ(odd.width, 31);
  ASSERT_EQ(odd.height, 15);
  for (size_t y = 0; y < 15; ++y)
    for (size_t i = 0; i < 3 * 31; ++i)
      ASSERT_EQ(odd.rgb[y * 3 * 31 + i], even.rgb[y * 3 * 32 + i]) << y << ", value " << i;
}

// As of cameras that put a gain map or a preview there.
TEST_F(PictureTest, TheFirstOfTwoJpegsInAFile) {
  const Bytes first = jpeg_of(), second = jpeg_of(/*coloured=*/true);
  Bytes both = first;
  both.insert(both.end(), second.begin(), second.end());
  EXPECT_EQ(read_picture(write("a.jpg", both)).rgb, read_picture(write("b.jpg", first)).rgb);
}

// One of a text is not even unpacked, so nobody sees that its checksum is wrong.
TEST_F(PictureTest, NoChunkOfAPngThatMayBeLeftOutIsRead) {
  const Picture made = pattern(7, 5);
  Bytes png = encode_png({.width = 7, .height = 5, .comment = ""}, made.rgb);
  const Bytes text = {0, 0, 0, 4, 'z', 'T', 'X', 't', 'k', 0, 0, 1, 9, 9, 9, 9};
  png.insert(png.begin() + 33, text.begin(), text.end());
  EXPECT_EQ(read_picture(write("a.png", png)).rgb, made.rgb);
}

TEST_F(PictureTest, RefusesWhatIsNoPicture) {
  const std::string text = "a picture of a cat\n";
  EXPECT_THAT(refused({text.begin(), text.end()}), HasSubstr("is no picture"));
  EXPECT_THAT(refused({}), HasSubstr("is no picture"));
  // Formats of libav that name other files.
  write("b.png", encode_png({.width = 7, .height = 5, .comment = ""}, pattern(7, 5).rgb));
  for (const std::string list : {"ffconcat version 1.0\nfile b.png\n",
                                 "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nb.png\n"})
    EXPECT_THAT(refused({list.begin(), list.end()}), HasSubstr("is no picture"));
  for (const char* missing : {"missing.png", ".", "b-%d.png"})
    EXPECT_THAT(test::error_of([&] { read_picture(folder_ / missing); }), HasSubstr(missing));
}

TEST_F(PictureTest, RefusesWhatIsNotWhole) {
  const Bytes png = encode_png({.width = 40, .height = 30, .comment = ""}, pattern(40, 30).rgb);
  for (const size_t size : {size_t{9}, size_t{33}, png.size() / 2, png.size() - 20})
    refused({png.begin(), png.begin() + static_cast<ptrdiff_t>(size)});
  Bytes flipped = png;
  flipped[png.size() / 2] ^= 0xff;
  refused(flipped);
  const Bytes jpeg = jpeg_of();
  for (const size_t size : {size_t{3}, size_t{50}, jpeg.size() - 12})
    refused({jpeg.begin(), jpeg.begin() + static_cast<ptrdiff_t>(size)}, "a.jpg");
}

// Known from the header, before memory is taken: the data are those of one pixel.
TEST_F(PictureTest, RefusesAbsurdSizes) {
  const Bytes one = png_of(1, 1, 8, PNG_COLOR_TYPE_RGB, {1, 2, 3});
  const auto sized = [&](uint32_t width, uint32_t height) {
    Bytes file = one;
    for (int i = 0; i < 4; ++i) {
      file[16u + i] = static_cast<uint8_t>(width >> (24 - 8 * i));
      file[20u + i] = static_cast<uint8_t>(height >> (24 - 8 * i));
    }
    uint32_t crc = 0xffffffffu;  // of the header's chunk, so that only its sizes are wrong
    for (size_t i = 12; i < 29; ++i) {
      crc ^= file[i];
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320u : 0u);
    }
    for (int i = 0; i < 4; ++i) file[29u + i] = static_cast<uint8_t>(~crc >> (24 - 8 * i));
    return file;
  };
  EXPECT_EQ(sized(1, 1), one);
  for (const auto& [width, height] : {std::pair{100000u, 100000u},
                                      {0x7fffffffu, 1u},
                                      {0u, 0u},
                                      {0xffffffffu, 0xffffffffu},
                                      {8193u, 8193u}})
    EXPECT_THAT(refused(sized(width, height)), HasSubstr("too large"));
  Picture wide = pattern(16385, 1);
  EXPECT_THAT(refused(png_of(16385, 1, 8, PNG_COLOR_TYPE_RGB, wide.rgb)), HasSubstr("16385x1"));
}

TEST(Cover, IsPillowsLanczosCutAroundTheMiddle) {
  const Picture same = pattern(6, 4);
  EXPECT_EQ(cover(same, 6, 4).rgb, same.rgb);
  // Image.resize((6, 4), LANCZOS) of 9 x 6 and ((6, 4), ...) of 3 x 2, crop((1, 0, 5, 4)).
  const Bytes shrunk = {78,  180, 139, 145, 219, 44,  222, 60,  90,  109, 60,  170,
                        181, 139, 46,  163, 86,  148, 91,  91,  194, 70,  172, 183,
                        66,  76,  179, 55,  137, 158, 101, 230, 86,  203, 120, 68,
                        79,  191, 140, 159, 184, 27,  205, 99,  104, 110, 81,  171};
  const Bytes grown = {0,  74,  163, 11, 91,  204, 41,  121, 249, 58,  138, 255,
                       19, 99,  168, 36, 116, 152, 66,  146, 163, 83,  163, 180,
                       52, 132, 175, 69, 149, 85,  99,  179, 49,  116, 196, 68,
                       77, 157, 180, 94, 174, 33,  124, 204, 0,   141, 221, 0};
  for (const auto& [from, expected] :
       {std::pair{pattern(9, 6), &shrunk}, {pattern(3, 2), &grown}}) {
    const Picture made = cover(from, 4, 4);
    ASSERT_EQ(made.rgb.size(), expected->size());
    EXPECT_EQ(made.rgb, *expected);
  }
}
// Image.resize((7, 5), BICUBIC) of 9 x 6, crop((1, 0, 5, 4)), its red.
TEST(ResizeAndCut, IsPillowsBicubic) {
  const Bytes red = {60, 106, 167, 211, 138, 196, 165, 134, 158, 118, 45, 80, 56, 50, 117, 169};
  const Picture made = resize_and_cut(pattern(9, 6), ResizeFilter::bicubic, {7, 5}, {4, 4});
  for (size_t i = 0; i < red.size(); ++i) EXPECT_EQ(made.rgb[3 * i], red[i]) << i;
}
TEST(ResizeAndCut, RefusesToKeepMoreThanThereIs) {
  const Picture from = pattern(9, 6);
  for (const PixelSize kept : {PixelSize{8, 5}, {7, 6}, {0, 5}})
    EXPECT_THROW(resize_and_cut(from, ResizeFilter::bicubic, {7, 5}, kept), Error) << kept.width;
  EXPECT_THROW(resize_and_cut({9, 6, {}}, ResizeFilter::bicubic, {7, 5}, {7, 5}), Error);
  EXPECT_THROW(cover({}, 4, 4), Error);
}

TEST(Cover, TakesAnyProportions) {
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 3000}, {3000, 1}, {17, 31}}) {
    Picture flat{width, height, Bytes(size_t{3} * width * height, 77)};
    const Picture made = cover(flat, 32, 48);
    EXPECT_EQ(made.rgb, Bytes(size_t{3} * 32 * 48, 77)) << width << " x " << height;
  }
}

TEST_F(PictureTest, ContentIsOfTheBytes) {
  const fs::path a = write("a", {1, 2, 3}), b = write("b", {1, 2, 4}), c = write("c", {1, 2, 3});
  EXPECT_EQ(picture_content(a).size(), 16u);
  EXPECT_EQ(picture_content(a), picture_content(c));
  EXPECT_NE(picture_content(a), picture_content(b));
  EXPECT_EQ(picture_content(folder_ / "none"), "");
  EXPECT_EQ(picture_content(folder_), "");
  EXPECT_EQ(picture_content(""), "");
  fs::resize_file(a, (uintmax_t{1} << 30) + 1);  // a hole
  EXPECT_EQ(picture_content(a), "");
  EXPECT_THAT(test::error_of([&] { read_picture(a); }), HasSubstr("at most 1 GiB"));
}

}  // namespace
}  // namespace lacuna
