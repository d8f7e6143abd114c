// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/image/clip_processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lacuna/core/error.h"
#include "tests/support/error_of.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;

Picture stripes(int width, int height) {
  Picture picture{width, height, {}};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c)
        picture.rgb.push_back(static_cast<uint8_t>(37 * x + 61 * y + 80 * c));
  return picture;
}

// CLIPImageProcessorPil of the same pictures: single values and the sum of all.
TEST(ClipProcessor, IsUpstreams) {
  struct Case {
    int width, height;
    double sum;
    std::vector<std::pair<int64_t, double>> values;
  };
  const Case cases[] = {
      {611,
       333,
       28254.1617,
       {{0, -0.27402619},
        {1, -0.79956949},
        {224, -0.25942776},
        {75264, -0.2813358},
        {150527, 0.69545043}}},
      {101,
       457,
       28072.0773,
       {{0, -1.018546},
        {1, -0.87256163},
        {224, -0.36161673},
        {75264, 0.66415364},
        {150527, -0.20041381}}},
      {9,
       6,
       27074.4556,
       {{0, -1.3689082},
        {1, -1.3543098},
        {224, -1.3543098},
        {75264, 0.30396721},
        {150527, 1.6481948}}},
  };
  for (const Case& c : cases) {
    const Tensor pixels = clip_pixels(stripes(c.width, c.height), {});
    ASSERT_EQ(pixels.numel(), 3 * 224 * 224);
    double sum = 0.0;
    for (int64_t i = 0; i < pixels.numel(); ++i) sum += pixels.as<float>()[i];
    EXPECT_NEAR(sum, c.sum, 0.02) << c.width;
    for (const auto& [at, value] : c.values)
      EXPECT_NEAR(pixels.as<float>()[at], value, 1e-6) << c.width << " at " << at;
  }
}

// 9 x 6 scaled to 7 x 5, of which the middle 4 x 4 begins at row 0, column 1.
TEST(ClipProcessor, TakesSizesAndNumbersOfTheConfig) {
  const ClipProcessorConfig config = clip_processor_config_from_json(
      R"({"size": {"shortest_edge": 5}, "crop_size": {"height": 4, "width": 4},
          "image_mean": [0, 0.5, 1], "image_std": [1, 2, 0.5]})",
      "x");
  const Tensor pixels = clip_pixels(stripes(9, 6), config);
  const std::vector<int> red = {60,  106, 167, 211, 138, 196, 165, 134,
                                158, 118, 45,  80,  56,  50,  117, 169};
  for (size_t i = 0; i < red.size(); ++i)
    EXPECT_NEAR(pixels.as<float>()[i], red[i] / 255.0, 1e-6) << i;
  EXPECT_NEAR(pixels.as<float>()[16], (144 / 255.0 - 0.5) / 2.0, 1e-6);
  EXPECT_NEAR(pixels.as<float>()[47], (53 / 255.0 - 1.0) / 0.5, 1e-6);
}

TEST(ClipProcessor, TakesAnyProportions) {
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 4000}, {4000, 1}, {224, 224}}) {
    const Picture flat{width, height,
                       std::vector<uint8_t>(size_t{3} * static_cast<size_t>(width * height), 255)};
    const Tensor pixels = clip_pixels(flat, {});
    EXPECT_NEAR(pixels.as<float>()[0], (1.0 - 0.48145466) / 0.26862954, 1e-6);
  }
  EXPECT_THROW(clip_pixels({}, {}), Error);
}

TEST(ClipProcessor, ReadsTheConfigOfReleases) {
  const ClipProcessorConfig config = clip_processor_config_from_json(
      R"({"crop_size":{"height":224,"width":224},"do_center_crop":true,"do_convert_rgb":true,
          "do_normalize":true,"do_rescale":true,"do_resize":true,
          "image_mean":[0.48145466,0.4578275,0.40821073],
          "image_processor_type":"CLIPImageProcessor",
          "image_std":[0.26862954,0.26130258,0.27577711],"resample":3,
          "rescale_factor":0.00392156862745098,"size":{"shortest_edge":224}})",
      "preprocessor_config.json");
  const ClipProcessorConfig expected;
  EXPECT_EQ(config.shortest_edge, expected.shortest_edge);
  EXPECT_EQ(config.crop_size, expected.crop_size);
  EXPECT_EQ(config.rescale_factor, expected.rescale_factor);
  EXPECT_EQ(config.mean, expected.mean);
  EXPECT_EQ(config.std, expected.std);
  // OpenAI's, from before sizes were objects.
  EXPECT_EQ(clip_processor_config_from_json(R"({"size":336,"crop_size":336})", "x").crop_size, 336);
}

TEST(ClipProcessor, HostileTextGivesOneErrorThatNamesTheField) {
  const std::tuple<const char*, const char*> cases[] = {
      {R"({"size":-1})", "shortest_edge"},
      {R"({"size":{"height":224,"width":224}})", "shortest_edge"},
      {R"({"size":{"shortest_edge":1e9}})", "shortest_edge"},
      {R"({"size":{"shortest_edge":100000}})", "shortest_edge"},
      {R"({"size":[224]})", "size"},
      {R"({"crop_size":{"height":224}})", "width"},
      {R"({"crop_size":{"height":224,"width":200}})", "square"},
      {R"({"crop_size":336})", "crop_size"},
      {R"({"resample":2})", "resample"},
      {R"({"do_resize":false})", "do_resize"},
      {R"({"do_center_crop":null})", "do_center_crop"},
      {R"({"rescale_factor":0})", "rescale_factor"},
      {R"({"rescale_factor":"1"})", "rescale_factor"},
      {R"({"image_mean":[0.5,0.5]})", "image_mean"},
      {R"({"image_mean":[0.5,0.5,null]})", "image_mean"},
      {R"({"image_mean":[0.5,0.5,1e300]})", "image_mean"},
      {R"({"image_std":[0.5,0.5,0]})", "image_std"},
      {R"({"image_std":{}})", "image_std"},
  };
  for (const auto& [text, field] : cases) {
    const std::string error = test::error_of([&] { clip_processor_config_from_json(text, "x"); });
    EXPECT_THAT(error, HasSubstr(field)) << text;
    EXPECT_THAT(error, testing::StartsWith("x: ")) << text;
  }
  for (const char* text : {"", "[]", "{", "null", "\xff"})
    EXPECT_THROW(clip_processor_config_from_json(text, "x"), Error) << text;
}

}  // namespace
}  // namespace lacuna
