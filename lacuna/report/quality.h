// SPDX-License-Identifier: Apache-2.0
// How far frames are from reference frames of the same noise: PSNR, SSIM, temporal flicker.
//
// All three look at 8-bit RGB. PSNR and SSIM are those of libavfilter's psnr and ssim filters on
// planar RGB (gbrp): squared errors and similarities are averaged over the three planes alike. SSIM
// is the filter's: windows of 8 x 8 pixels every 4, so frames are at least 8 x 8.
//
// Temporal flicker is the mean absolute difference of neighbouring frames, as VBench measures it
// (arXiv 2311.17982, "temporal flickering"), of BT.709 luma in 8-bit levels; what is reported is
// the candidate's minus the reference's, so that motion, which both share, drops out. Above 0 the
// candidate flickers more, below 0 it moves less.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lacuna/report/clip.h"

namespace lacuna {

struct Quality {
  // Per frame. PSNR in dB, infinite where a frame equals its reference.
  std::vector<double> frame_psnr, frame_ssim;
  std::vector<double> frame_flicker;  // from frame t to t + 1: one less
  // Of the mean squared error over all frames, not the mean of the frames' PSNR; infinite when
  // every frame is identical.
  double psnr = 0.0;
  double ssim = 1.0;     // mean over frames
  double flicker = 0.0;  // mean over transitions; 0 for a single frame
};

// Takes frames one by one, so that only one of the two clips need be in memory.
class FrameComparer {
 public:
  // Throws Error when frames are smaller than 8 x 8.
  FrameComparer(int width, int height);
  ~FrameComparer();
  FrameComparer(const FrameComparer&) = delete;
  FrameComparer& operator=(const FrameComparer&) = delete;
  // [height, width, 3] u8 each.
  void add(std::span<const uint8_t> reference, std::span<const uint8_t> candidate);
  // Call once. Throws Error when no frame was added.
  Quality finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Throws Error unless both have the same size and number of frames.
Quality compare_frames(const Clip& reference, const Clip& candidate);

}  // namespace lacuna
