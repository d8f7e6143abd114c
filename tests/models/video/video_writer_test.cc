// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/video_writer.h"

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
}
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>

#include <array>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "lacuna/core/error.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

class VideoTest : public testing::Test {
 protected:
  size_t files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }
  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path();
};

std::vector<uint8_t> frame(int width, int height, int t) {
  std::vector<uint8_t> rgb(size_t{3} * width * height);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      uint8_t* p = &rgb[size_t{3} * (y * width + x)];
      p[0] = static_cast<uint8_t>(4 * x + 8 * t), p[1] = static_cast<uint8_t>(5 * y), p[2] = 90;
    }
  return rgb;
}

void write_clip(const fs::path& path, const VideoInfo& info, int frames) {
  auto writer = open_video(path, info);
  for (int t = 0; t < frames; ++t) writer->write(frame(info.width, info.height, t));
  writer->finish();
}

std::string bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

const VideoInfo kInfo{
    .width = 48, .height = 32, .fps = 16, .comment = "{\"seed\": 7, \"p\": \"50 %\"}"};

TEST_F(VideoTest, EveryFormatKeepsItsComment) {
  for (const char* name : {"a.mp4", "a.webm", "a.png", "f%03d.png"}) {
    write_clip(folder_ / name, kInfo, 3);
    EXPECT_EQ(read_video_comment(folder_ / name), kInfo.comment) << name;
  }
  EXPECT_TRUE(fs::exists(folder_ / "a-0001.png"));
  EXPECT_TRUE(fs::exists(folder_ / "f003.png"));
  EXPECT_EQ(files(), 2u + 6u);
}

// Other programs refuse longer ones.
TEST_F(VideoTest, Y4mHasAHeaderOfAtMost96Bytes) {
  VideoInfo info = kInfo;
  info.width = info.height = 8192, info.fps = 1000;
  info.comment = std::string(500, 'x');
  write_clip(folder_ / "a.y4m", info, 1);
  const std::string file = bytes(folder_ / "a.y4m");
  EXPECT_THAT(file, testing::StartsWith("YUV4MPEG2 W8192 H8192 F1000:1 Ip A1:1 C444 "));
  EXPECT_LE(file.find('\n'), 96u);
  EXPECT_THAT(test::error_of([&] { read_video_comment(folder_ / "a.y4m"); }),
              testing::HasSubstr("y4m files say nothing"));
}

// A disc that moves before a grain, which the encoder's lookahead has something to plan for.
std::vector<uint8_t> moving_disc(int width, int height, int t) {
  std::vector<uint8_t> rgb(size_t{3} * width * height);
  uint32_t state = 1;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      state = state * 1664525u + 1013904223u;
      const auto grain = static_cast<uint8_t>(state >> 28);
      uint8_t* p = &rgb[size_t{3} * (y * width + x)];
      const bool inside = std::hypot(x - 80 + 4 * t, y - 40 - t) < 24;
      p[0] = static_cast<uint8_t>((inside ? 230 : 20) + grain);
      p[1] = static_cast<uint8_t>(20 + grain),
      p[2] = static_cast<uint8_t>((inside ? 20 : 90) + grain);
    }
  return rgb;
}

// libx264's AVX-512 code reads what it never wrote (macroblock tree): what the heap held before
// may not decide the bytes.
TEST_F(VideoTest, BytesDoNotDependOnTheHeap) {
  for (const std::string ending : {".mp4", ".webm"}) {
    const VideoInfo info{.width = 96, .height = 96, .fps = 16, .comment = ""};
    for (const int filling : {1, 85, 170}) {
      mallopt(M_PERTURB, filling);
      auto writer = open_video(folder_ / (std::to_string(filling) + ending), info);
      for (int t = 0; t < 16; ++t) writer->write(moving_disc(info.width, info.height, t));
      writer->finish();
    }
    mallopt(M_PERTURB, 0);
    const std::string first = bytes(folder_ / ("1" + ending));
    EXPECT_TRUE(bytes(folder_ / ("85" + ending)) == first) << ending;
    EXPECT_TRUE(bytes(folder_ / ("170" + ending)) == first) << ending;
  }
}

TEST_F(VideoTest, EveryEndingIsOneThatMayBeOpened) {
  for (const char* name : {"a.mp4", "a.webm", "a.y4m", "a.png", "f%03d.png"}) {
    EXPECT_TRUE(is_video_name(name)) << name;
    EXPECT_NO_THROW(open_video(folder_ / name, kInfo)) << name;
  }
  for (const char* name : {"a.avi", "a.mp4.part", "mp4", "a", ""})
    EXPECT_FALSE(is_video_name(name)) << name;
  EXPECT_EQ(video_endings(), ".mp4, .webm, .y4m or .png");
}

TEST(PngFrames, TellTheirNames) {
  for (const char* name : {"x/a-0001.png", "x/a-0999.png", "x/a-12345.png"})
    EXPECT_TRUE(is_png_frame("x/a.png", name)) << name;
  for (const char* name :
       {"x/a.png", "x/a-001.png", "x/a-01234.png", "x/a-0001.jpg", "x/b-0001.png", "a-0001.png",
        "y/a-0001.png", "x/a-00x1.png", "x/a-.png", "x/0001", "x/", ""})
    EXPECT_FALSE(is_png_frame("x/a.png", name)) << name;
  EXPECT_TRUE(is_png_frame("f%dx.png", "f17x.png"));
  EXPECT_FALSE(is_png_frame("f%dx.png", "f07x.png"));
  EXPECT_FALSE(is_png_frame("f%dx.png", "f17xx.png"));
  EXPECT_TRUE(is_png_frame("%02d.png", "07.png"));
  EXPECT_TRUE(is_png_frame("1%/a.png", "1%/a-0001.png"));
  EXPECT_FALSE(is_png_frame("x/a.mp4", "x/a-0001.mp4"));
  EXPECT_EQ(png_frame("x/a.png", 12344), "x/a-12345.png");
}

TEST_F(VideoTest, LongCommentsAreKept) {
  VideoInfo info = kInfo;
  for (const auto& [name, letter] : {std::pair("a.png", '\xff'), std::pair("a.mp4", 'x')}) {
    info.comment = std::string(100'000, letter);
    write_clip(folder_ / name, info, 1);
    EXPECT_EQ(read_video_comment(folder_ / name), info.comment) << name;
  }
}

TEST_F(VideoTest, NamesMayHoldColons) {
  write_clip(folder_ / "take:2.mp4", kInfo, 2);
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  write_clip("take:3.mp4", kInfo, 2);
  EXPECT_EQ(read_video_comment("take:3.mp4"), kInfo.comment);
  fs::current_path(before);
  EXPECT_EQ(files(), 2u);
}

TEST_F(VideoTest, RefusesWhatItCouldNotReplace) {
  for (const char* name : {"a.mp4", "a.webm", "a.y4m", "a-0001.png"})
    fs::create_directory(folder_ / name);
  for (const char* name : {"a.mp4", "a.webm", "a.y4m", "a.png"})
    EXPECT_THROW(open_video(folder_ / name, kInfo), Error) << name;
  EXPECT_EQ(files(), 4u);
}

TEST_F(VideoTest, SameFramesSameBytes) {
  for (const char* ending : {".mp4", ".webm", ".y4m"}) {
    const fs::path a = folder_ / (std::string("a") + ending),
                   b = folder_ / (std::string("b") + ending);
    write_clip(a, kInfo, 4);
    write_clip(b, kInfo, 4);
    EXPECT_EQ(bytes(a), bytes(b)) << ending;
    EXPECT_GT(bytes(a).size(), 300u);
  }
}

TEST_F(VideoTest, Y4mHoldsEveryFrame) {
  write_clip(folder_ / "a.y4m", kInfo, 5);
  const std::string all = bytes(folder_ / "a.y4m");
  EXPECT_EQ(all.size(), all.find('\n') + 1 + 5 * (6 + 3 * 48 * 32));
}

struct Plain {
  std::array<uint8_t, 3> rgb;
  std::array<int, 3> ycbcr;
};
// BT.709 in limited range: with R', G', B' from 0 to 1, Y = 16 + 219 Y',
// Cb = 128 + 224 (B' - Y') / 1.8556, Cr = 128 + 224 (R' - Y') / 1.5748.
constexpr Plain kPlain[] = {{{255, 0, 0}, {63, 102, 240}},
                            {{0, 255, 0}, {173, 42, 26}},
                            {{0, 0, 255}, {32, 240, 118}},
                            {{255, 255, 255}, {235, 128, 128}},
                            {{0, 0, 0}, {16, 128, 128}}};

// One flat frame of each colour.
void write_plain(const fs::path& path, const VideoInfo& info) {
  auto writer = open_video(path, info);
  for (const Plain& plain : kPlain) {
    std::vector<uint8_t> rgb;
    for (int i = 0; i < info.width * info.height; ++i)
      rgb.insert(rgb.end(), plain.rgb.begin(), plain.rgb.end());
    writer->write(rgb);
  }
  writer->finish();
}

struct Decoded {
  double fps = 0.0;
  std::vector<std::array<int, 3>> middle;  // Y, Cb, Cr of the middle pixel of every frame
};

// Frames of a 4:2:0 file; none of what cannot be read.
Decoded decoded(const fs::path& path) {
  Decoded out;
  AVFormatContext* demuxer = nullptr;
  const std::string url = "file:" + path.string();
  if (avformat_open_input(&demuxer, url.c_str(), nullptr, nullptr) < 0) return out;
  avformat_find_stream_info(demuxer, nullptr);
  const AVCodec* codec = nullptr;
  const int stream = av_find_best_stream(demuxer, AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0);
  if (stream >= 0) {
    out.fps = av_q2d(demuxer->streams[stream]->avg_frame_rate);
    AVCodecContext* decoder = avcodec_alloc_context3(codec);
    avcodec_parameters_to_context(decoder, demuxer->streams[stream]->codecpar);
    avcodec_open2(decoder, codec, nullptr);
    AVPacket* packet = av_packet_alloc();
    AVFrame* frame = av_frame_alloc();
    const auto receive = [&] {
      while (avcodec_receive_frame(decoder, frame) >= 0) {
        const auto at = [&](int plane, int y, int x) {
          return int{frame->data[plane][y * frame->linesize[plane] + x]};
        };
        const int y = frame->height / 2, x = frame->width / 2;
        out.middle.push_back({at(0, y, x), at(1, y / 2, x / 2), at(2, y / 2, x / 2)});
      }
    };
    while (av_read_frame(demuxer, packet) >= 0) {
      if (packet->stream_index == stream && avcodec_send_packet(decoder, packet) >= 0) receive();
      av_packet_unref(packet);
    }
    avcodec_send_packet(decoder, nullptr);
    receive();
    av_frame_free(&frame);
    av_packet_free(&packet);
    avcodec_free_context(&decoder);
  }
  avformat_close_input(&demuxer);
  return out;
}

TEST_F(VideoTest, Y4mHoldsTheColoursInOrder) {
  VideoInfo info = kInfo;
  info.fps = 12;
  write_plain(folder_ / "a.y4m", info);
  const std::string all = bytes(folder_ / "a.y4m");
  const size_t start = all.find('\n') + 1, plane = size_t{48} * 32;
  EXPECT_NE(all.substr(0, start).find(" W48 H32 F12:1 "), std::string::npos);
  ASSERT_EQ(all.size(), start + 5 * (6 + 3 * plane));
  for (size_t t = 0; t < 5; ++t)
    for (size_t p = 0; p < 3; ++p)
      for (const size_t i : {size_t{0}, plane - 1})
        EXPECT_NEAR(static_cast<uint8_t>(all[start + t * (6 + 3 * plane) + 6 + p * plane + i]),
                    kPlain[t].ycbcr[p], 1)
            << "frame " << t << " plane " << p;
}

TEST_F(VideoTest, CompressedFilesHoldEveryFrameAndColour) {
  VideoInfo info = kInfo;
  info.fps = 12;
  for (const char* name : {"a.mp4", "a.webm"}) {
    SCOPED_TRACE(name);
    write_plain(folder_ / name, info);
    const Decoded clip = decoded(folder_ / name);
    EXPECT_NEAR(clip.fps, 12.0, 0.5);
    ASSERT_EQ(clip.middle.size(), 5u);
    for (size_t t = 0; t < 5; ++t)
      for (size_t p = 0; p < 3; ++p)
        EXPECT_NEAR(clip.middle[t][p], kPlain[t].ycbcr[p], 4) << "frame " << t << " part " << p;
  }
}

// A file size limit makes writes fail the way a full disk does (core/atomic_file_test.cc). Noise,
// so that there is more to write.
TEST_F(VideoTest, AFullDiskIsAnErrorAndLeavesNothing) {
  const VideoInfo info{.width = 64, .height = 48};
  std::vector<uint8_t> noise(size_t{3} * 64 * 48);
  uint32_t state = 1;
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = old;
  small.rlim_cur = 4000;
  for (const char* name : {"a.mp4", "a.webm"}) {
    bool refused = false;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    try {
      auto writer = open_video(folder_ / name, info);
      for (int t = 0; t < 6; ++t) {
        for (uint8_t& value : noise) {
          state = state * 1664525u + 1013904223u;
          value = static_cast<uint8_t>(state >> 24);
        }
        writer->write(noise);
      }
      writer->finish();
    } catch (const Error&) {
      refused = true;
    }
    ::setrlimit(RLIMIT_FSIZE, &old);
    EXPECT_TRUE(refused) << name;
    EXPECT_EQ(files(), 0u) << name;
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST_F(VideoTest, AbandonedWritersLeaveNothing) {
  for (const char* name : {"a.mp4", "a.webm", "a.y4m", "a.png"}) {
    auto writer = open_video(folder_ / name, kInfo);
    writer->write(frame(48, 32, 0));
  }
  EXPECT_EQ(files(), 0u);
}

TEST_F(VideoTest, RejectsBadRequests) {
  EXPECT_THROW(open_video(folder_ / "a.avi", kInfo), Error);
  EXPECT_THROW(open_video(folder_ / "none" / "a.mp4", kInfo), Error);
  EXPECT_THROW(open_video(folder_ / "%s.png", kInfo), Error);
  EXPECT_THROW(open_video(folder_ / "%04d-%04d.png", kInfo), Error);
  VideoInfo odd = kInfo;
  odd.width = 47;
  EXPECT_THROW(open_video(folder_ / "a.mp4", odd), Error);
  VideoInfo absurd = kInfo;
  absurd.height = 1 << 20;
  EXPECT_THROW(open_video(folder_ / "a.y4m", absurd), Error);
  auto writer = open_video(folder_ / "a.mp4", kInfo);
  EXPECT_THROW(writer->write(frame(48, 30, 0)), Error);
  std::ofstream(folder_ / "x.mp4") << "not a video";
  EXPECT_THROW(read_video_comment(folder_ / "x.mp4"), Error);
  EXPECT_THROW(read_video_comment(folder_ / "missing.png"), Error);
}

TEST(ToRgb8, TruncatesClampsAndSurvivesNan) {
  const std::vector<float> in{-1.0f, 1.0f, 0.0f, 3.0f, -7.0f, std::nanf("")};
  std::vector<uint8_t> out(6);
  to_rgb8(in, out);
  EXPECT_EQ(out, (std::vector<uint8_t>{0, 255, 127, 255, 0, 0}));
}

}  // namespace
}  // namespace lacuna
