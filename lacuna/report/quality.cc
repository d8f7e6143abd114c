// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/quality.h"

extern "C" {
#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavutil/frame.h>
#include <libavutil/log.h>
}

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "lacuna/core/error.h"

namespace lacuna {
namespace {

constexpr int kSmallest = 8;  // window of the ssim filter
constexpr double kPeak = 255.0;

void check_av(int code, const char* what) {
  if (code >= 0) return;
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  fail("quality: libavfilter could not {}: {}", what, text);
}

struct FreeFrame {
  void operator()(AVFrame* frame) const { av_frame_free(&frame); }
};
using Frame = std::unique_ptr<AVFrame, FreeFrame>;

struct FreeGraph {
  void operator()(AVFilterGraph* graph) const { avfilter_graph_free(&graph); }
};

// RGB [height, width, 3] as planes G, B, R: a copy, nothing is converted.
Frame planar(std::span<const uint8_t> rgb, int width, int height, int64_t index) {
  Frame frame(av_frame_alloc());
  LACUNA_CHECK(frame != nullptr, "quality: out of memory");
  frame->format = AV_PIX_FMT_GBRP;
  frame->width = width;
  frame->height = height;
  frame->pts = index;
  check_av(av_frame_get_buffer(frame.get(), 0), "allocate a frame");
  constexpr int kPlaneOf[] = {2, 0, 1};
  for (int c = 0; c < 3; ++c) {
    uint8_t* plane = frame->data[kPlaneOf[c]];
    const int stride = frame->linesize[kPlaneOf[c]];
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        plane[y * stride + x] = rgb[size_t{3} * (static_cast<size_t>(y) * width + x) + c];
  }
  return frame;
}

double metadata(const AVFrame& frame, const char* key) {
  const AVDictionaryEntry* entry = av_dict_get(frame.metadata, key, nullptr, 0);
  LACUNA_CHECK(entry != nullptr, "quality: libavfilter reports no {}", key);
  return std::strtod(entry->value, nullptr);  // "inf" for equal frames
}

std::vector<double> luma(std::span<const uint8_t> rgb) {
  std::vector<double> values(rgb.size() / 3);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = 0.2126 * rgb[3 * i] + 0.7152 * rgb[3 * i + 1] + 0.0722 * rgb[3 * i + 2];
  return values;
}

double mean_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

struct FrameComparer::Impl {
  int width, height;
  std::unique_ptr<AVFilterGraph, FreeGraph> graph;
  AVFilterContext *reference = nullptr, *candidate = nullptr, *sink = nullptr;
  int64_t added = 0;
  std::vector<double> reference_luma, candidate_luma;  // of the last frame
  Quality quality;

  void open();
  void drain();
};

void FrameComparer::Impl::open() {
  av_log_set_level(AV_LOG_QUIET);  // the library never prints; errors come back as Error
  graph.reset(avfilter_graph_alloc());
  LACUNA_CHECK(graph != nullptr, "quality: out of memory");
  graph->nb_threads = 1;  // the ssim filter sums per thread
  const std::string source =
      fmt::format("video_size={}x{}:pix_fmt=gbrp:time_base=1/1:pixel_aspect=1/1", width, height);
  const std::string text = fmt::format(
      "buffer@reference={0},split[r1][r2];buffer@candidate={0}[c];"
      "[c][r1]psnr[p];[p][r2]ssim,buffersink@sink",
      source);
  AVFilterInOut *inputs = nullptr, *outputs = nullptr;
  const int code = avfilter_graph_parse2(graph.get(), text.c_str(), &inputs, &outputs);
  avfilter_inout_free(&inputs);
  avfilter_inout_free(&outputs);
  check_av(code, "make the psnr and ssim filters");
  check_av(avfilter_graph_config(graph.get(), nullptr), "connect the psnr and ssim filters");
  reference = avfilter_graph_get_filter(graph.get(), "buffer@reference");
  candidate = avfilter_graph_get_filter(graph.get(), "buffer@candidate");
  sink = avfilter_graph_get_filter(graph.get(), "buffersink@sink");
  LACUNA_CHECK(reference != nullptr && candidate != nullptr && sink != nullptr,
               "quality: libavfilter lost a filter");
}

// Takes what is ready: the filters may hold a frame back until they see the next.
void FrameComparer::Impl::drain() {
  for (;;) {
    const Frame frame(av_frame_alloc());
    LACUNA_CHECK(frame != nullptr, "quality: out of memory");
    const int code = av_buffersink_get_frame(sink, frame.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    check_av(code, "compare frames");
    quality.frame_psnr.push_back(metadata(*frame, "lavfi.psnr.psnr_avg"));
    quality.frame_ssim.push_back(metadata(*frame, "lavfi.ssim.All"));
  }
}

FrameComparer::FrameComparer(int width, int height) : impl_(new Impl{width, height}) {
  LACUNA_CHECK(width >= kSmallest && height >= kSmallest,
               "quality: frames of {}x{} pixels, expected at least {}x{}", width, height, kSmallest,
               kSmallest);
  impl_->open();
}
FrameComparer::~FrameComparer() = default;

void FrameComparer::add(std::span<const uint8_t> reference, std::span<const uint8_t> candidate) {
  Impl& s = *impl_;
  const size_t expected = size_t{3} * s.width * s.height;
  LACUNA_CHECK(reference.size() == expected && candidate.size() == expected,
               "quality: frames of {} and {} bytes, expected {}x{}x3", reference.size(),
               candidate.size(), s.height, s.width);
  const Frame a = planar(reference, s.width, s.height, s.added);
  const Frame b = planar(candidate, s.width, s.height, s.added);
  check_av(av_buffersrc_add_frame(s.reference, a.get()), "take a frame");
  check_av(av_buffersrc_add_frame(s.candidate, b.get()), "take a frame");
  s.drain();

  std::vector<double> reference_luma = luma(reference), candidate_luma = luma(candidate);
  if (s.added > 0)
    s.quality.frame_flicker.push_back(mean_difference(candidate_luma, s.candidate_luma) -
                                      mean_difference(reference_luma, s.reference_luma));
  s.reference_luma = std::move(reference_luma);
  s.candidate_luma = std::move(candidate_luma);
  ++s.added;
}

Quality FrameComparer::finish() {
  Impl& s = *impl_;
  LACUNA_CHECK(s.added > 0, "quality: no frames to compare");
  check_av(av_buffersrc_add_frame(s.reference, nullptr), "finish");
  check_av(av_buffersrc_add_frame(s.candidate, nullptr), "finish");
  s.drain();
  Quality& q = s.quality;
  LACUNA_CHECK(static_cast<int64_t>(q.frame_psnr.size()) == s.added,
               "quality: {} frames compared, expected {}", q.frame_psnr.size(), s.added);
  // From the PSNR: its text has more digits of a small error than that of the error itself.
  double error = 0.0;
  for (const double psnr : q.frame_psnr) error += kPeak * kPeak * std::pow(10.0, -psnr / 10.0);
  q.psnr = 10.0 * std::log10(kPeak * kPeak / (error / static_cast<double>(s.added)));
  q.ssim = mean(q.frame_ssim);
  q.flicker = q.frame_flicker.empty() ? 0.0 : mean(q.frame_flicker);
  return std::move(q);
}

Quality compare_frames(const Clip& reference, const Clip& candidate) {
  LACUNA_CHECK(reference.width == candidate.width && reference.height == candidate.height &&
                   reference.rgb.size() == candidate.rgb.size(),
               "quality: {} frames of {}x{} against {} of {}x{}, expected equal sizes",
               candidate.frames(), candidate.width, candidate.height, reference.frames(),
               reference.width, reference.height);
  FrameComparer comparer(reference.width, reference.height);
  for (int t = 0; t < reference.frames(); ++t) comparer.add(reference.frame(t), candidate.frame(t));
  return comparer.finish();
}

}  // namespace lacuna
