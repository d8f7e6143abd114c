// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/sprite.h"

#include <gtest/gtest.h>
#include <png.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/report/machine_info.h"

namespace lacuna {
namespace {

std::string base64_of(const std::string& text) {
  return base64({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

TEST(Base64, IsThatOfTheStandard) {  // RFC 4648, section 10
  EXPECT_EQ(base64_of(""), "");
  EXPECT_EQ(base64_of("f"), "Zg==");
  EXPECT_EQ(base64_of("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64_of(std::string("\xff\x00\xfe", 3)), "/wD+");
}

// Frame t, pixel (y, x), channel c: every value its own.
Clip ramp(int width, int height, int frames) {
  Clip clip{width, height, 16, {}};
  for (int i = 0; i < frames * height * width * 3; ++i)
    clip.rgb.push_back(static_cast<uint8_t>(i * 7));
  return clip;
}

Clip noise(int width, int height, int frames) {
  Clip clip{width, height, 16, {}};
  for (int i = 0; i < frames * height * width * 3; ++i)
    clip.rgb.push_back(
        static_cast<uint8_t>(128 + 127 * hash_uniform("noise", static_cast<uint64_t>(i))));
  return clip;
}

std::vector<uint8_t> decode_uri(const std::string& uri, int& width, int& height) {
  constexpr std::string_view kPrefix = "data:image/png;base64,";
  EXPECT_TRUE(uri.starts_with(kPrefix));
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<uint8_t> bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : uri.substr(kPrefix.size())) {
    if (c == '=') break;
    bits = bits << 6 | static_cast<uint32_t>(kDigits.find(c));
    if ((count += 6) >= 8) bytes.push_back(static_cast<uint8_t>(bits >> (count -= 8)));
  }
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_TRUE(png_image_begin_read_from_memory(&image, bytes.data(), bytes.size()));
  image.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> rgb(PNG_IMAGE_SIZE(image));
  EXPECT_TRUE(png_image_finish_read(&image, nullptr, rgb.data(), 0, nullptr));
  width = static_cast<int>(image.width), height = static_cast<int>(image.height);
  return rgb;
}

TEST(SpriteSheet, HoldsEveryFrameAtItsPlace) {
  const Clip clip = ramp(5, 3, 7);
  int width = 0, height = 0;
  const std::vector<uint8_t> sheet = decode_uri(sprite_sheet(clip, 4), width, height);
  ASSERT_EQ(width, 20);
  ASSERT_EQ(height, 6);
  for (int t = 0; t < 7; ++t)
    for (int y = 0; y < 3; ++y)
      EXPECT_EQ(
          std::memcmp(&sheet[3 * ((t / 4 * 3 + y) * 20 + t % 4 * 5)], &clip.frame(t)[15 * y], 15),
          0)
          << t << " " << y;
  EXPECT_EQ(sheet[3 * (3 * 20 + 15)], 0);  // the place of an eighth frame
  EXPECT_THROW(sprite_sheet(Clip{4, 4, 16, {}}, 8), Error);
}

TEST(Thinned, AveragesBoxesAndKeepsEveryNthFrame) {
  Clip clip{3, 2, 15, {}};
  for (int t = 0; t < 5; ++t)
    for (const int v : {0, 4, 9, 2, 7, 11})  // two rows of three grey pixels
      for (int c = 0; c < 3; ++c) clip.rgb.push_back(static_cast<uint8_t>(v + 10 * t));
  const Clip small = thinned(clip, 2, 2);
  EXPECT_EQ(small.width, 2);
  EXPECT_EQ(small.height, 1);
  EXPECT_EQ(small.frames(), 3);
  EXPECT_EQ(small.fps, 8);
  EXPECT_EQ(small.frame(0)[0], 3);   // (0 + 4 + 2 + 7) / 4 = 3.25
  EXPECT_EQ(small.frame(0)[3], 10);  // (9 + 11) / 2
  EXPECT_EQ(small.frame(2)[0], 43);
  EXPECT_EQ(thinned(clip, 1, 1).rgb, clip.rgb);
}

TEST(Player, StaysBelowItsSizeAndSaysWhatItLeftOut) {
  const Clip a = noise(64, 48, 12), b = noise(64, 48, 12);
  const std::vector<NamedClip> clips{{"dense", &a}, {"sparse", &b}};
  const auto whole = player_section(clips, 10 << 20);
  EXPECT_EQ(whole["frames"], 12);
  EXPECT_EQ(whole["width"], 64);
  EXPECT_EQ(whole["clips"][1]["name"], "sparse");
  EXPECT_EQ(whole["note"].get<std::string>().find("keep the page small"), std::string::npos);
  const auto less = player_section(clips, 100000);
  EXPECT_EQ(less["width"], 64);
  EXPECT_LT(less["frames"], 12);
  EXPECT_NE(less["note"].get<std::string>().find("keep the page small"), std::string::npos);
  size_t bytes = 0;
  for (const auto& clip : less["clips"]) bytes += clip["image"].get<std::string>().size();
  EXPECT_LE(bytes, 100000u);
  const Clip wide = noise(480, 32, 2);
  const std::vector<NamedClip> one{{"dense", &wide}};
  const auto shrunk = player_section(one, 50000);
  EXPECT_LT(shrunk["width"], 480);
  EXPECT_EQ(shrunk["frames"], 2);
  const std::vector<NamedClip> unequal{{"dense", &a}, {"sparse", &wide}};
  EXPECT_THROW(player_section(unequal, 1000), Error);
  EXPECT_THROW(player_section({}, 1000), Error);
}

TEST(MachineInfo, IsFlatAndComplete) {
  const auto info = machine_info(*make_backend("ref"));
  for (const char* key : {"cpu", "backend", "isa", "version", "date"})
    EXPECT_FALSE(info.at(key).get<std::string>().empty()) << key;
  EXPECT_GE(info["threads"], 1);
  EXPECT_EQ(info["isa"], "double sums");
  EXPECT_EQ(info["date"].get<std::string>().size(), 20u);
  EXPECT_TRUE(command_line().starts_with("test_report")) << command_line();
}

}  // namespace
}  // namespace lacuna
