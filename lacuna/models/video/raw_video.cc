// SPDX-License-Identifier: Apache-2.0
// y4m (lossless up to the RGB to YUV 4:4:4 rounding, for metrics) and PNG frames (lossless).
extern "C" {
#include <libswscale/swscale.h>
}
#include <png.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/models/video/formats.h"

namespace lacuna {
namespace {

class Y4mVideo : public VideoWriter {
 public:
  Y4mVideo(const std::filesystem::path& path, const VideoInfo& info) : file_(path), info_(info) {
    // Without the comment: libav, and so most players, refuses headers of more than 96 bytes.
    file_.write(fmt::format("YUV4MPEG2 W{} H{} F{}:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n",
                            info.width, info.height, info.fps));
    scaler_ = bt709_scaler(info, AV_PIX_FMT_YUV444P, SWS_POINT);
    planes_.resize(size_t{3} * info.width * info.height);
  }
  ~Y4mVideo() override { sws_freeContext(scaler_); }

  void write(std::span<const uint8_t> rgb) override {
    LACUNA_CHECK(rgb.size() == planes_.size(), "output: frame of {} bytes, expected {}", rgb.size(),
                 planes_.size());
    const size_t plane = planes_.size() / 3;
    const uint8_t* source[] = {rgb.data()};
    const int stride[] = {3 * info_.width};
    uint8_t* target[] = {planes_.data(), planes_.data() + plane, planes_.data() + 2 * plane};
    const int target_stride[] = {info_.width, info_.width, info_.width};
    sws_scale(scaler_, source, stride, 0, info_.height, target, target_stride);
    file_.write("FRAME\n");
    file_.write(planes_.data(), planes_.size());
  }

  void finish() override { file_.commit(); }

 private:
  AtomicFile file_;
  VideoInfo info_;
  SwsContext* scaler_ = nullptr;
  std::vector<uint8_t> planes_;
};

std::string frame_path(const std::string& pattern, int frame) {
  const size_t percent = pattern.find('%');
  const size_t d = pattern.find('d', percent);
  const int width = d > percent + 1 ? std::stoi(pattern.substr(percent + 1, d - percent - 1)) : 0;
  return pattern.substr(0, percent) + fmt::format("{:0{}}", frame, width) + pattern.substr(d + 1);
}

void write_png(const VideoInfo& info, std::span<const uint8_t> rgb, std::vector<uint8_t>& bytes) {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop header = png != nullptr ? png_create_info_struct(png) : nullptr;
  LACUNA_CHECK(header != nullptr, "output: out of memory");
  // libpng reports errors by longjmp; writing into memory leaves it nothing to fail on but memory.
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_write_struct(&png, &header);
    fail("output: libpng could not encode a picture of {}x{}", info.width, info.height);
  }
  png_set_write_fn(
      png, &bytes,
      [](png_structp p, png_bytep data, png_size_t size) {
        auto* out = static_cast<std::vector<uint8_t>*>(png_get_io_ptr(p));
        out->insert(out->end(), data, data + size);
      },
      nullptr);
  png_set_IHDR(png, header, info.width, info.height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_text text = {};
  text.compression = PNG_TEXT_COMPRESSION_zTXt;
  text.key = const_cast<char*>("Comment");
  text.text = const_cast<char*>(info.comment.c_str());
  if (!info.comment.empty()) png_set_text(png, header, &text, 1);
  png_write_info(png, header);
  for (int y = 0; y < info.height; ++y) png_write_row(png, rgb.data() + size_t{3} * info.width * y);
  png_write_end(png, header);
  png_destroy_write_struct(&png, &header);
}

class PngFrames : public VideoWriter {
 public:
  PngFrames(const std::filesystem::path& path, const VideoInfo& info)
      : pattern_(png_pattern(path)), info_(info) {}

  void write(std::span<const uint8_t> rgb) override {
    const std::vector<uint8_t> bytes = encode_png(info_, rgb);
    const int frame = static_cast<int>(files_.size()) + 1;
    files_.push_back(std::make_unique<AtomicFile>(frame_path(pattern_, frame)));
    files_.back()->write(bytes.data(), bytes.size());
    files_.back()->flush();
  }

  void finish() override {
    for (auto& file : files_) file->commit();
  }

 private:
  std::string pattern_;
  VideoInfo info_;
  std::vector<std::unique_ptr<AtomicFile>> files_;
};

}  // namespace

std::vector<uint8_t> encode_png(const VideoInfo& info, std::span<const uint8_t> rgb) {
  LACUNA_CHECK(
      info.width > 0 && info.height > 0 && rgb.size() == size_t{3} * info.width * info.height,
      "output: frame of {} bytes, expected {}x{}x3", rgb.size(), info.height, info.width);
  std::vector<uint8_t> bytes;
  write_png(info, rgb, bytes);
  return bytes;
}

std::unique_ptr<VideoWriter> open_y4m_video(const std::filesystem::path& path,
                                            const VideoInfo& info) {
  return std::make_unique<Y4mVideo>(path, info);
}

std::unique_ptr<VideoWriter> open_png_frames(const std::filesystem::path& path,
                                             const VideoInfo& info) {
  { const AtomicFile writable(png_frame(path, 0)); }
  return std::make_unique<PngFrames>(path, info);
}

std::filesystem::path png_frame(const std::filesystem::path& path, int frame) {
  return frame_path(png_pattern(path), frame + 1);
}

bool is_png_frame(const std::filesystem::path& path, const std::filesystem::path& file) {
  if (path.extension() != ".png" || path.parent_path() != file.parent_path()) return false;
  const std::string pattern = png_pattern(path.filename()), name = file.filename().string();
  const size_t percent = pattern.find('%'), tail = pattern.size() - pattern.find('d', percent) - 1;
  const size_t fewest = frame_path(pattern, 0).size() - percent - tail;  // digits
  if (name.size() < percent + fewest + tail) return false;
  const std::string digits = name.substr(percent, name.size() - percent - tail);
  return name.starts_with(pattern.substr(0, percent)) &&
         name.ends_with(pattern.substr(pattern.size() - tail)) &&
         digits.find_first_not_of("0123456789") == std::string::npos &&
         (digits.size() == fewest || digits.front() != '0');
}

std::string png_pattern(const std::filesystem::path& path) {
  std::string text = path.string();
  const size_t percent = text.find('%');
  if (percent == std::string::npos) {
    return text.substr(0, text.size() - path.extension().string().size()) + "-%04d.png";
  }
  size_t end = percent + 1;
  while (end < text.size() && isdigit(static_cast<unsigned char>(text[end]))) ++end;
  LACUNA_CHECK(end < text.size() && text[end] == 'd' && end - percent <= 3 &&
                   text.find('%', end) == std::string::npos,
               "output: {}, expected one frame number such as %04d", text);
  return text;
}

std::string read_y4m_comment(const std::filesystem::path& path) {
  fail(
      "video: {}: y4m files say nothing of how they were made; other formats, latents files and "
      "manifests do",
      path.string());
}

std::string read_png_comment(const std::filesystem::path& path) {
  const std::filesystem::path file = std::filesystem::exists(path) ? path : png_frame(path, 0);
  FILE* in = std::fopen(file.c_str(), "rb");
  LACUNA_CHECK(in != nullptr, "video: could not open {}", file.string());
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop header = png != nullptr ? png_create_info_struct(png) : nullptr;
  std::string comment;
  // The message is built outside: nothing with a destructor may live across the longjmp.
  const bool failed = header == nullptr || setjmp(png_jmpbuf(png)) != 0;
  if (!failed) {
    png_init_io(png, in);
    png_read_info(png, header);
    png_textp texts = nullptr;
    int count = 0;
    png_get_text(png, header, &texts, &count);
    for (int i = 0; i < count; ++i)
      if (std::string_view(texts[i].key) == "Comment") comment = texts[i].text;
  }
  png_destroy_read_struct(&png, &header, nullptr);
  std::fclose(in);
  LACUNA_CHECK(!failed, "video: {} is not a readable PNG file", file.string());
  return comment;
}

}  // namespace lacuna
