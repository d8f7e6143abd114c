// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/quality.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

constexpr int kWidth = 52, kHeight = 38, kFrames = 4;

double noise(const std::string& name, int t, int i) {
  return hash_uniform(name + std::to_string(t), static_cast<uint64_t>(i));
}

// A moving gradient with a square.
Clip scene() {
  Clip clip{kWidth, kHeight, 16, {}};
  for (int t = 0; t < kFrames; ++t)
    for (int y = 0; y < kHeight; ++y)
      for (int x = 0; x < kWidth; ++x)
        for (int c = 0; c < 3; ++c) {
          const bool inside = x > 8 + 3 * t && x < 26 + 3 * t && y > 10 && y < 24;
          const double wave = 40 * std::sin(0.3 * x + 0.2 * y * (c + 1));
          clip.rgb.push_back(static_cast<uint8_t>(inside ? 200 - 30 * c : 90 + wave + 2 * t));
        }
  return clip;
}

// Ten ways to be worse.
Clip distorted(int kind) {
  Clip clip = scene();
  const Clip original = clip;
  for (int t = 0; t < kFrames; ++t)
    for (size_t i = 0; i < clip.frame_bytes(); ++i) {
      const size_t at = static_cast<size_t>(t) * clip.frame_bytes() + i;
      const int n = static_cast<int>(i);
      double v = clip.rgb[at];
      switch (kind) {
        case 0:
          v += n == 100 && t == 1 ? 1 : 0;
          break;  // one value by one level
        case 1:
          v += 1;
          break;  // all by one level
        case 2:
          v += 4 * noise("a", t, n);
          break;  // weak noise
        case 3:
          v += 60 * noise("b", t, n);
          break;  // strong noise
        case 4:
          v = 0.8 * v + 20;
          break;  // contrast
        case 5:
          v += n % 3 == 0 ? 25 : 0;
          break;  // one channel
        case 6:
          v += (t % 2) * 12;
          break;  // flicker
        case 7:
          v = n >= 9 ? original.rgb[at - 9] : v;
          break;  // shifted by three pixels
        case 8:
          v = 255 - v;
          break;  // negative
        default:
          v = t == 2 ? 0 : v;
          break;  // one black frame
      }
      clip.rgb[at] = static_cast<uint8_t>(std::clamp(v, 0.0, 255.0));
    }
  return clip;
}

double mean_squared_error(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

double psnr_of(double error) {
  return 20 * std::log10(255) - 10 * std::log10(error);
}

// Wang et al. 2004 over 8 x 8 windows every 4 pixels, variances of a sample, mean of the channels.
double ssim_of(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  double sum = 0;
  int windows = 0;
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y + 8 <= kHeight / 4 * 4; y += 4)
      for (int x = 0; x + 8 <= kWidth / 4 * 4; x += 4, ++windows) {
        double ma = 0, mb = 0, va = 0, vb = 0, cov = 0;
        const auto each = [&](auto use) {
          for (int dy = 0; dy < 8; ++dy)
            for (int dx = 0; dx < 8; ++dx) {
              const size_t i = static_cast<size_t>(3 * ((y + dy) * kWidth + x + dx) + c);
              use(a[i], b[i]);
            }
        };
        each([&](double p, double q) { ma += p / 64, mb += q / 64; });
        each([&](double p, double q) {
          va += (p - ma) * (p - ma) / 63, vb += (q - mb) * (q - mb) / 63;
          cov += (p - ma) * (q - mb) / 63;
        });
        const double c1 = 0.01 * 0.01 * 255 * 255, c2 = 0.03 * 0.03 * 255 * 255;
        sum += (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
      }
  return sum / windows;
}

class DistortedTest : public testing::TestWithParam<int> {};

TEST_P(DistortedTest, AgreesWithTheFormulas) {
  const Clip reference = scene(), candidate = distorted(GetParam());
  const Quality quality = compare_frames(reference, candidate);
  ASSERT_EQ(quality.frame_psnr.size(), size_t{kFrames});
  double error = 0, ssim = 0;
  for (int t = 0; t < kFrames; ++t) {
    const double mse = mean_squared_error(reference.frame(t), candidate.frame(t));
    error += mse / kFrames;
    if (mse == 0) {
      EXPECT_TRUE(std::isinf(quality.frame_psnr[t])) << t;
      EXPECT_EQ(quality.frame_ssim[t], 1.0) << t;
    } else {
      EXPECT_NEAR(quality.frame_psnr[t], psnr_of(mse), 0.01) << t;
    }
    const double expected = ssim_of(reference.frame(t), candidate.frame(t));
    EXPECT_NEAR(quality.frame_ssim[t], expected, 1e-4) << t;
    ssim += expected / kFrames;
  }
  EXPECT_NEAR(quality.psnr, psnr_of(error), 0.01);
  EXPECT_NEAR(quality.ssim, ssim, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(Ten, DistortedTest, testing::Range(0, 10));

// The number behind `key` in every line.
std::vector<double> column(const std::filesystem::path& file, const std::string& key) {
  std::ifstream in(file);
  std::vector<double> values;
  for (std::string line; std::getline(in, line);) {
    const size_t at = line.find(key);
    if (at != std::string::npos) values.push_back(std::strtod(&line[at + key.size()], nullptr));
  }
  return values;
}

TEST(Quality, AgreesWithTheCommandLineOfFfmpeg) {
  if (std::system("ffmpeg -version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no ffmpeg here";
  const test::TempFolder temp;
  const std::string folder = temp.path();
  Clip reference{kWidth, kHeight, 16, {}}, candidate = reference;
  for (int kind = 0; kind < 10; ++kind) {
    reference.append(scene().rgb);
    candidate.append(distorted(kind).rgb);
  }
  const auto write = [&](const char* name, const Clip& clip) {
    std::ofstream(folder + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(clip.rgb.data()),
               static_cast<std::streamsize>(clip.rgb.size()));
  };
  write("/a", reference);
  write("/b", candidate);
  const std::string input = " -f rawvideo -pix_fmt rgb24 -s 52x38 -i ";
  const std::string command =
      "cd " + folder + " && ffmpeg -loglevel error" + input + "a" + input +
      "b -lavfi '[0]format=gbrp,split[a][c];[1]format=gbrp,split[b][d];"
      "[b][a]psnr=stats_file=psnr,nullsink;[d][c]ssim=stats_file=ssim' -f null -";
  const int status = std::system(command.c_str());
  const std::vector<double> psnr = column(folder + "/psnr", "psnr_avg:");
  const std::vector<double> ssim = column(folder + "/ssim", "All:");
  ASSERT_EQ(status, 0);
  const Quality quality = compare_frames(reference, candidate);
  ASSERT_EQ(psnr.size(), quality.frame_psnr.size());
  ASSERT_EQ(ssim.size(), quality.frame_ssim.size());
  for (size_t t = 0; t < psnr.size(); ++t) {
    if (std::isinf(psnr[t])) {
      EXPECT_TRUE(std::isinf(quality.frame_psnr[t])) << t;
    } else {
      EXPECT_NEAR(quality.frame_psnr[t], psnr[t], 0.01) << t;
    }
    EXPECT_NEAR(quality.frame_ssim[t], ssim[t], 1e-4) << t;
  }
}

TEST(Quality, IdenticalClips) {
  const Quality quality = compare_frames(scene(), scene());
  EXPECT_TRUE(std::isinf(quality.psnr));
  EXPECT_EQ(quality.ssim, 1.0);
  EXPECT_EQ(quality.flicker, 0.0);
}

TEST(Quality, FlickerIsTheExcessOfChangeInLuma) {
  // The reference stands still; the candidate's red steps by 0, 10, 10: luma by 2.126 levels.
  Clip reference{8, 8, 16, std::vector<uint8_t>(3 * 64 * 4, 100)}, candidate = reference;
  for (int t = 0; t < 4; ++t)
    for (int i = 0; i < 64; ++i)
      candidate.rgb[static_cast<size_t>(3 * (t * 64 + i))] = t == 2 ? 110 : 100;
  const Quality quality = compare_frames(reference, candidate);
  ASSERT_EQ(quality.frame_flicker.size(), 3u);
  EXPECT_NEAR(quality.frame_flicker[0], 0.0, 1e-12);
  EXPECT_NEAR(quality.frame_flicker[1], 2.126, 1e-9);
  EXPECT_NEAR(quality.flicker, 2 * 2.126 / 3, 1e-9);
  // The other way about, the candidate is the calmer one.
  EXPECT_NEAR(compare_frames(candidate, reference).flicker, -2 * 2.126 / 3, 1e-9);
}

TEST(Quality, RefusesWhatCannotBeCompared) {
  const Clip small{4, 4, 16, std::vector<uint8_t>(48)}, none{16, 16, 16, {}};
  EXPECT_THROW(compare_frames(small, small), Error);
  EXPECT_THROW(compare_frames(none, none), Error);
  EXPECT_THROW(compare_frames(scene(), none), Error);
}

}  // namespace
}  // namespace lacuna
