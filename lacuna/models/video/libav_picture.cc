// SPDX-License-Identifier: Apache-2.0
// Pictures through the system's libav*.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string_view>

#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/models/video/picture.h"

namespace lacuna {
namespace {

// What libav may take a file for. Playlists and containers are none: some of them name other files.
constexpr const char* kPictureFormats =
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,gif,pgm_pipe,ppm_pipe,pbm_pipe,pam_pipe";
constexpr const char* kBroken =
    "is damaged, cut off, too large or of a kind that this libav does not decode, expected a whole "
    "picture of at most 2^26 pixels";
constexpr int kMaxSide = 16384;
constexpr int64_t kMaxPixels = int64_t{1} << 26;

bool starts_with(std::span<const uint8_t> bytes, std::string_view start) {
  return bytes.size() >= start.size() &&
         std::equal(start.begin(), start.end(), bytes.begin(),
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

// A PNG without what may be left out of it: texts and profiles of a megabyte unpack to gigabytes.
std::vector<uint8_t> needed_chunks(std::span<const uint8_t> png) {
  constexpr size_t kHead = 8, kAroundData = 12;
  std::vector<uint8_t> needed(png.begin(), png.begin() + kHead);
  png = png.subspan(kHead);
  while (png.size() >= kAroundData) {
    const size_t size = kAroundData + (size_t{png[0]} << 24 | png[1] << 16 | png[2] << 8 | png[3]);
    if (size > png.size()) break;
    const bool optional = (png[4] & 0x20) != 0;  // a small letter
    if (!optional)
      needed.insert(needed.end(), png.begin(), png.begin() + static_cast<ptrdiff_t>(size));
    png = png.subspan(size);
  }
  needed.insert(needed.end(), png.begin(), png.end());  // cut off: libav says so
  return needed;
}

class LibavPicture {
 public:
  explicit LibavPicture(const std::filesystem::path& path) : file_(path) {}
  ~LibavPicture() {
    sws_freeContext(scaler_);
    av_frame_free(&frame_);
    av_packet_free(&packet_);
    avcodec_free_context(&decoder_);
    avformat_close_input(&demuxer_);
    if (io_ != nullptr) av_freep(&io_->buffer);
    avio_context_free(&io_);
  }

  Picture read() {
    LACUNA_CHECK(file_.bytes().size() <= kMaxPictureFile, "image: {} has {} bytes, at most 1 GiB",
                 name(), file_.bytes().size());
    bytes_ = file_.bytes();
    if (starts_with(bytes_, "\x89PNG\r\n\x1a\n")) bytes_ = needed_ = needed_chunks(bytes_);
    open();
    decode();
    return upright(to_rgb());
  }

 private:
  std::string name() const { return file_.path().string(); }
  void check(bool good, const char* what) const {
    LACUNA_CHECK(good, "image: {} {}", name(), what);
  }

  static int read_some(void* self, uint8_t* to, int size) {
    auto* picture = static_cast<LibavPicture*>(self);
    const auto rest = picture->bytes_.subspan(picture->at_);
    const size_t count = std::min(rest.size(), static_cast<size_t>(size));
    if (count == 0) return AVERROR_EOF;
    std::memcpy(to, rest.data(), count);
    picture->at_ += count;
    return static_cast<int>(count);
  }

  static int64_t seek(void* self, int64_t offset, int whence) {
    auto* picture = static_cast<LibavPicture*>(self);
    const auto size = static_cast<int64_t>(picture->bytes_.size());
    if (whence == AVSEEK_SIZE) return size;
    const int64_t base = whence == SEEK_SET   ? 0
                         : whence == SEEK_CUR ? static_cast<int64_t>(picture->at_)
                                              : size;
    if (offset < -base || offset > size - base) return AVERROR(EINVAL);
    picture->at_ = static_cast<size_t>(base + offset);
    return base + offset;
  }

  // From memory, so that no name reaches libav: it would read patterns and protocols out of it.
  void open() {
    constexpr int kBuffer = 1 << 16;
    auto* buffer = static_cast<uint8_t*>(av_malloc(kBuffer));
    io_ = avio_alloc_context(buffer, kBuffer, 0, this, read_some, nullptr, seek);
    if (io_ == nullptr) av_free(buffer);
    demuxer_ = avformat_alloc_context();
    packet_ = av_packet_alloc();
    frame_ = av_frame_alloc();
    LACUNA_CHECK(io_ != nullptr && demuxer_ != nullptr && packet_ != nullptr && frame_ != nullptr,
                 "image: out of memory");
    demuxer_->pb = io_;
    AVDictionary* options = nullptr;
    av_dict_set(&options, "format_whitelist", kPictureFormats, 0);
    // Said here, because libav doubts a JPEG behind which another one stands: a gain map, a
    // preview.
    const AVInputFormat* jpeg =
        starts_with(bytes_, "\xff\xd8\xff") ? av_find_input_format("jpeg_pipe") : nullptr;
    const int code = avformat_open_input(&demuxer_, nullptr, jpeg, &options);
    av_dict_free(&options);
    check(code >= 0 && demuxer_->nb_streams == 1,
          "is no picture, expected PNG, JPEG, WebP, BMP, TIFF, GIF or PNM");
    const AVCodecParameters* stream = demuxer_->streams[0]->codecpar;
    const AVCodec* codec = avcodec_find_decoder(stream->codec_id);
    check(codec != nullptr, "is of a kind that this libav does not decode");
    decoder_ = avcodec_alloc_context3(codec);
    LACUNA_CHECK(decoder_ != nullptr, "image: out of memory");
    decoder_->thread_count = 1;
    decoder_->max_pixels = kMaxPixels;
    // Refuses a TIFF with any tag that libav does not know; without it, of one that holds a JPEG,
    // libav would give an empty picture and no error.
    decoder_->err_recognition = AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER | AV_EF_EXPLODE;
    check(avcodec_parameters_to_context(decoder_, stream) >= 0 &&
              avcodec_open2(decoder_, codec, nullptr) >= 0,
          "could not be opened");
  }

  void decode() {
    for (bool ended = false;;) {
      const int got = avcodec_receive_frame(decoder_, frame_);
      if (got >= 0) break;
      check(got == AVERROR(EAGAIN) && !ended, kBroken);
      int code = av_read_frame(demuxer_, packet_);
      ended = code < 0;
      code = avcodec_send_packet(decoder_, ended ? nullptr : packet_);
      av_packet_unref(packet_);
      check(code >= 0, kBroken);
    }
    check((frame_->flags & AV_FRAME_FLAG_CORRUPT) == 0 && frame_->decode_error_flags == 0, kBroken);
    LACUNA_CHECK(frame_->width > 0 && frame_->height > 0 && frame_->width <= kMaxSide &&
                     frame_->height <= kMaxSide &&
                     int64_t{frame_->width} * frame_->height <= kMaxPixels,
                 "image: {} has {}x{} pixels, expected at most {} a side and 2^26 in all", name(),
                 frame_->width, frame_->height, kMaxSide);
  }

  Picture to_rgb() {
    // Whole chroma samples, which a frame's rows have room for: of an odd number of pixels the
    // scaler would stretch them.
    const AVPixFmtDescriptor* format =
        av_pix_fmt_desc_get(static_cast<AVPixelFormat>(frame_->format));
    check(format != nullptr, "has colours that this libav does not convert");
    const int width = FFALIGN(frame_->width, 1 << format->log2_chroma_w);
    const int height = FFALIGN(frame_->height, 1 << format->log2_chroma_h);
    scaler_ = sws_getContext(
        width, height, static_cast<AVPixelFormat>(frame_->format), width, height, AV_PIX_FMT_RGB24,
        SWS_BICUBIC | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_ACCURATE_RND | SWS_BITEXACT,
        nullptr, nullptr, nullptr);
    check(scaler_ != nullptr, "has colours that this libav does not convert");
    int *from_table = nullptr, *to_table = nullptr;
    int from_full = 0, to_full = 0, brightness = 0, contrast = 0, saturation = 0;
    if (sws_getColorspaceDetails(scaler_, &from_table, &from_full, &to_table, &to_full, &brightness,
                                 &contrast, &saturation) >= 0) {
      // What a file does not say is the scaler's: BT.601, full range where the pixel format is.
      // RGB of 16 bits passes through the scaler's Y'CbCr, there and back by one table.
      const bool its_own =
          frame_->colorspace == AVCOL_SPC_UNSPECIFIED || frame_->colorspace == AVCOL_SPC_RGB;
      const int* table = its_own ? from_table : sws_getCoefficients(frame_->colorspace);
      const bool full = from_full != 0 || frame_->color_range == AVCOL_RANGE_JPEG;
      sws_setColorspaceDetails(scaler_, table, full ? 1 : 0, to_table, to_full, brightness,
                               contrast, saturation);
    }
    // Rows of the scaler's own: its vector code writes past the end of a row.
    AVFrame* rgb = av_frame_alloc();
    LACUNA_CHECK(rgb != nullptr, "image: out of memory");
    rgb->format = AV_PIX_FMT_RGB24, rgb->width = width, rgb->height = height;
    const bool converted =
        av_frame_get_buffer(rgb, 0) >= 0 && sws_scale(scaler_, frame_->data, frame_->linesize, 0,
                                                      height, rgb->data, rgb->linesize) == height;
    Picture picture{frame_->width, frame_->height, {}};
    if (converted) {
      const size_t row = size_t{3} * static_cast<size_t>(picture.width);
      picture.rgb.resize(row * static_cast<size_t>(picture.height));
      for (int y = 0; y < picture.height; ++y)
        std::memcpy(picture.rgb.data() + row * static_cast<size_t>(y),
                    rgb->data[0] + static_cast<ptrdiff_t>(y) * rgb->linesize[0], row);
    }
    av_frame_free(&rgb);
    check(converted, "has colours that this libav does not convert");
    return picture;
  }

  // Turned and mirrored as the file says.
  Picture upright(Picture picture) const {
    const AVFrameSideData* side = av_frame_get_side_data(frame_, AV_FRAME_DATA_DISPLAYMATRIX);
    if (side == nullptr || side->size < 9 * sizeof(int32_t)) return picture;
    std::array<int32_t, 9> matrix;
    std::memcpy(matrix.data(), side->data, sizeof matrix);
    const auto sign = [&](size_t i) { return (matrix[i] > 0) - (matrix[i] < 0); };
    // (x, y) goes to (xx x + yx y, xy x + yy y), moved to where all are positive.
    const int xx = sign(0), xy = sign(1), yx = sign(3), yy = sign(4);
    const bool straight = xx != 0 && yy != 0 && xy == 0 && yx == 0;
    const bool crossed = xx == 0 && yy == 0 && xy != 0 && yx != 0;
    if ((!straight && !crossed) || (xx == 1 && yy == 1)) return picture;
    const int width = picture.width, height = picture.height;
    Picture turned{straight ? width : height, straight ? height : width, {}};
    turned.rgb.resize(picture.rgb.size());
    const int left = (xx < 0 ? width - 1 : 0) + (yx < 0 ? height - 1 : 0);
    const int top = (xy < 0 ? width - 1 : 0) + (yy < 0 ? height - 1 : 0);
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const int to_x = left + xx * x + yx * y, to_y = top + xy * x + yy * y;
        const size_t from = size_t{3} * (static_cast<size_t>(y) * width + x);
        const size_t to = size_t{3} * (static_cast<size_t>(to_y) * turned.width + to_x);
        std::copy_n(picture.rgb.begin() + static_cast<ptrdiff_t>(from), 3,
                    turned.rgb.begin() + static_cast<ptrdiff_t>(to));
      }
    return turned;
  }

  MappedFile file_;
  std::vector<uint8_t> needed_;     // of a PNG
  std::span<const uint8_t> bytes_;  // what libav gets to see
  size_t at_ = 0;                   // of them it has read
  AVIOContext* io_ = nullptr;
  AVFormatContext* demuxer_ = nullptr;
  AVCodecContext* decoder_ = nullptr;
  AVPacket* packet_ = nullptr;
  AVFrame* frame_ = nullptr;
  SwsContext* scaler_ = nullptr;
};

}  // namespace

Picture read_picture(const std::filesystem::path& path) {
  av_log_set_level(AV_LOG_QUIET);  // the library never prints; errors come back as Error
  return LibavPicture(path).read();
}

}  // namespace lacuna
