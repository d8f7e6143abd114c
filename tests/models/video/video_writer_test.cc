// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/video/video_writer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "lacuna/core/error.h"
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
  for (const char* name : {"a.mp4", "a.webm", "a.y4m", "a.png", "f%03d.png"}) {
    write_clip(folder_ / name, kInfo, 3);
    EXPECT_EQ(read_video_comment(folder_ / name), kInfo.comment) << name;
  }
  EXPECT_TRUE(fs::exists(folder_ / "a-0001.png"));
  EXPECT_TRUE(fs::exists(folder_ / "f003.png"));
  EXPECT_EQ(files(), 3u + 6u);
}

TEST_F(VideoTest, LongCommentsAreKept) {
  VideoInfo info = kInfo;
  info.comment = std::string(100'000, '\xff');  // three bytes each in y4m
  write_clip(folder_ / "a.y4m", info, 1);
  EXPECT_EQ(read_video_comment(folder_ / "a.y4m"), info.comment);
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
