// SPDX-License-Identifier: Apache-2.0
// MP4 (H.264) and WebM (VP9) through the system's libav*, 4:2:0, BT.709.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <string>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/error.h"
#include "lacuna/models/video/formats.h"

namespace lacuna {
namespace {

void check_av(int code, const char* what, const std::filesystem::path& path) {
  if (code >= 0) return;
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  fail("output: {} {}: {}", what, path.string(), text);
}

// A file for certain: in a plain name what stands before a colon is a protocol to libav.
std::string url_of(const std::filesystem::path& path) {
  return "file:" + path.string();
}

struct Format {
  const char* muxer;
  const char* encoder;
  const char* quality_key;  // constant quality, visually lossless for synthetic content
  const char* quality;
};

Format format_of(const std::filesystem::path& path) {
  if (path.extension() == ".mp4") return {"mp4", "libx264", "crf", "18"};
  return {"webm", "libvpx-vp9", "crf", "24"};
}

class LibavVideo : public VideoWriter {
 public:
  LibavVideo(const std::filesystem::path& path, const VideoInfo& info)
      : file_(path), path_(path), info_(info) {}
  ~LibavVideo() override { close(); }

  // Apart from the constructor, so that the destructor frees what a failure leaves.
  void open() {
    const Format format = format_of(path_);
    const AVCodec* codec = avcodec_find_encoder_by_name(format.encoder);
    LACUNA_CHECK(codec != nullptr, "output: this libavcodec has no {} encoder, needed for {}",
                 format.encoder, path_.extension().string());
    check_av(avformat_alloc_output_context2(&muxer_, nullptr, format.muxer,
                                            url_of(file_.temporary()).c_str()),
             "could not open", path_);
    open_encoder(codec, format);
    open_stream(format);
    allocate_frames();
  }

  void write(std::span<const uint8_t> rgb) override {
    LACUNA_CHECK(rgb.size() == size_t{3} * info_.width * info_.height,
                 "output: frame of {} bytes, expected {}x{}x3", rgb.size(), info_.height,
                 info_.width);
    check_av(av_frame_make_writable(frame_), "could not write", path_);
    const uint8_t* source[] = {rgb.data()};
    const int stride[] = {3 * info_.width};
    sws_scale(scaler_, source, stride, 0, info_.height, frame_->data, frame_->linesize);
    frame_->pts = next_frame_++;
    encode(frame_);
  }

  void finish() override {
    encode(nullptr);
    check_av(av_write_trailer(muxer_), "could not finish", path_);
    check_av(avio_closep(&muxer_->pb), "could not finish", path_);
    close();
    file_.commit();
  }

 private:
  void open_encoder(const AVCodec* codec, const Format& format) {
    encoder_ = avcodec_alloc_context3(codec);
    LACUNA_CHECK(encoder_ != nullptr, "output: out of memory");
    encoder_->width = info_.width;
    encoder_->height = info_.height;
    encoder_->pix_fmt = AV_PIX_FMT_YUV420P;
    encoder_->time_base = {1, info_.fps};
    encoder_->framerate = {info_.fps, 1};
    encoder_->thread_count = 1;
    encoder_->color_range = AVCOL_RANGE_MPEG;
    encoder_->colorspace = AVCOL_SPC_BT709;
    encoder_->color_primaries = AVCOL_PRI_BT709;
    encoder_->color_trc = AVCOL_TRC_BT709;
    av_opt_set(encoder_->priv_data, format.quality_key, format.quality, 0);
    // libx264's macroblock tree (0.164) reads memory that it never wrote where there is AVX-512:
    // the same clip, other bytes. VP9's encoder has no such option.
    av_opt_set(encoder_->priv_data, "mbtree", "0", 0);
    if (muxer_->oformat->flags & AVFMT_GLOBALHEADER) encoder_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    check_av(avcodec_open2(encoder_, codec, nullptr), "could not start the encoder for", path_);
  }

  void open_stream(const Format& format) {
    stream_ = avformat_new_stream(muxer_, nullptr);
    LACUNA_CHECK(stream_ != nullptr, "output: out of memory");
    stream_->time_base = encoder_->time_base;
    stream_->avg_frame_rate = encoder_->framerate;
    check_av(avcodec_parameters_from_context(stream_->codecpar, encoder_), "could not open", path_);
    av_dict_set(&muxer_->metadata, "comment", info_.comment.c_str(), 0);
    muxer_->flags |= AVFMT_FLAG_BITEXACT;  // no library version or random id in the file
    check_av(avio_open(&muxer_->pb, url_of(file_.temporary()).c_str(), AVIO_FLAG_WRITE),
             "could not open", path_);
    AVDictionary* options = nullptr;
    if (std::string_view(format.muxer) == "mp4") av_dict_set(&options, "movflags", "+faststart", 0);
    const int code = avformat_write_header(muxer_, &options);
    av_dict_free(&options);
    check_av(code, "could not write", path_);
  }

  void allocate_frames() {
    frame_ = av_frame_alloc();
    packet_ = av_packet_alloc();
    LACUNA_CHECK(frame_ != nullptr && packet_ != nullptr, "output: out of memory");
    frame_->format = encoder_->pix_fmt;
    frame_->width = info_.width;
    frame_->height = info_.height;
    check_av(av_frame_get_buffer(frame_, 0), "could not allocate a frame for", path_);
    scaler_ = bt709_scaler(info_, AV_PIX_FMT_YUV420P, SWS_AREA);
  }

  void encode(const AVFrame* frame) {
    check_av(avcodec_send_frame(encoder_, frame), "could not encode", path_);
    for (;;) {
      const int code = avcodec_receive_packet(encoder_, packet_);
      if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
      check_av(code, "could not encode", path_);
      av_packet_rescale_ts(packet_, encoder_->time_base, stream_->time_base);
      packet_->stream_index = stream_->index;
      check_av(av_interleaved_write_frame(muxer_, packet_), "could not write", path_);
      // The muxer buffers: a full disk shows in the I/O context, not in the return value.
      check_av(muxer_->pb->error, "could not write", path_);
    }
  }

  void close() {
    sws_freeContext(scaler_);
    scaler_ = nullptr;
    av_frame_free(&frame_);
    av_packet_free(&packet_);
    avcodec_free_context(&encoder_);
    if (muxer_ != nullptr && muxer_->pb != nullptr) avio_closep(&muxer_->pb);
    avformat_free_context(muxer_);
    muxer_ = nullptr;
  }

  AtomicFile file_;
  std::filesystem::path path_;
  VideoInfo info_;
  AVFormatContext* muxer_ = nullptr;
  AVCodecContext* encoder_ = nullptr;
  AVStream* stream_ = nullptr;
  AVFrame* frame_ = nullptr;
  AVPacket* packet_ = nullptr;
  SwsContext* scaler_ = nullptr;
  int64_t next_frame_ = 0;
};

}  // namespace

SwsContext* bt709_scaler(const VideoInfo& info, int pixel_format, int filter) {
  SwsContext* scaler =
      sws_getContext(info.width, info.height, AV_PIX_FMT_RGB24, info.width, info.height,
                     static_cast<AVPixelFormat>(pixel_format),
                     filter | SWS_ACCURATE_RND | SWS_BITEXACT, nullptr, nullptr, nullptr);
  LACUNA_CHECK(scaler != nullptr, "output: libswscale cannot convert {}x{} RGB frames", info.width,
               info.height);
  const int* bt709 = sws_getCoefficients(SWS_CS_ITU709);
  sws_setColorspaceDetails(scaler, bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16);
  return scaler;
}

std::unique_ptr<VideoWriter> open_libav_video(const std::filesystem::path& path,
                                              const VideoInfo& info) {
  av_log_set_level(AV_LOG_QUIET);  // the library never prints; errors come back as Error
  auto video = std::make_unique<LibavVideo>(path, info);
  video->open();
  return video;
}

std::string read_libav_comment(const std::filesystem::path& path) {
  av_log_set_level(AV_LOG_QUIET);
  AVFormatContext* demuxer = nullptr;
  check_av(avformat_open_input(&demuxer, url_of(path).c_str(), nullptr, nullptr), "could not read",
           path);
  const AVDictionaryEntry* entry = av_dict_get(demuxer->metadata, "comment", nullptr, 0);
  std::string comment = entry != nullptr ? entry->value : "";
  avformat_close_input(&demuxer);
  return comment;
}

}  // namespace lacuna
