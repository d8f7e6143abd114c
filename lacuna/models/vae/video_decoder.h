// SPDX-License-Identifier: Apache-2.0
// From latents to frames and back, whatever the autoencoder.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "lacuna/core/tensor.h"
#include "lacuna/models/context.h"
#include "lacuna/models/weights.h"

namespace lacuna {

enum class TileMode : uint8_t {
  off,    // whole frames
  blend,  // overlapping tiles decoded on their own and cross-faded: what upstream does, approximate
  exact,  // layers up to the first upsampling on whole frames, the rest in tiles with a halo;
          // equals `off` up to summation order. Refused where norms see whole frames
};

// Sizes in pixels of the decoded frame. blend: tiles of tile_* every stride_*, as upstream (256 and
// 192), multiples of the spatial factor. exact: frames are cut into equal parts of at most tile_*;
// stride_* is not used.
struct Tiling {
  TileMode mode = TileMode::off;
  int64_t tile_height = 256, tile_width = 256;
  int64_t stride_height = 192, stride_width = 192;
};

struct DecodeStats {
  int64_t buffer_bytes = 0;  // largest sum of activations, histories and assembly buffers held
};

struct DecodeOptions {
  // latents are model space: z = latent * std + mean first. False decodes latents as they are.
  bool denormalize = true;
  Tiling tiling;
  // Latent frames computed together by decoders that stream over time. 1 needs least memory; the
  // result does not depend on it beyond summation order.
  int64_t frames_per_pass = 1;
  // Called after each pass with latent frames done and in total, counted once per tile. May throw
  // to stop the decode.
  std::function<void(int64_t done, int64_t total)> progress;
  DecodeStats* stats = nullptr;
};

// Receives frames [t, H, W, 3] f32 in [-1, 1] on the host, in order; the memory is reused after the
// call.
using FrameSink = std::function<void(const TensorView& frames)>;

class VideoDecoder {
 public:
  virtual ~VideoDecoder() = default;
  virtual int64_t latent_channels() const = 0;
  virtual int64_t spatial_factor() const = 0;  // pixels per latent cell and side
  virtual int64_t frames_out(int64_t latent_frames) const = 0;
  // The inverse; throws Error when `frames` cannot be had exactly.
  virtual int64_t latent_frames(int64_t frames) const = 0;
  // What a backend may keep a copy of (ConstantWeights).
  virtual std::span<const TensorView> weights() const = 0;

  // latents [C, T, h, w] f32 contiguous, on the host -> frames_out(T) frames of h*factor x
  // w*factor, handed to `sink` as soon as they are final (with tiling: at the end). Activations are
  // ctx.compute. Throws Error on a wrong shape or tiling.
  virtual void decode(Context& ctx, const TensorView& latents, const DecodeOptions& options,
                      const FrameSink& sink) const = 0;

  virtual bool takes_exact_tiles() const { return true; }  // TileMode::exact

  // Bytes of activations that decode() will hold at most, without weights and the backend's own
  // scratch memory.
  virtual int64_t memory_bytes(int64_t latent_frames, int64_t latent_height, int64_t latent_width,
                               DType compute, const Tiling& tiling) const = 0;
};

struct VideoSize {
  int64_t frames = 0, height = 0, width = 0;  // pixels
};

struct EncodeOptions {
  bool normalize = true;  // (mu - mean) / std, else mu
  // Called after each pass with frames done and in total. May throw to stop the encode.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Writes frames [begin, begin + t) of a video into `frames` [3, t, H, W] f32, in [-1, 1], on the
// host. Asked for all frames once, in order.
using FrameSource = std::function<void(int64_t begin, const TensorView& frames)>;

class VideoEncoder {
 public:
  virtual ~VideoEncoder() = default;
  // Mode of the latent distribution [C, T, h, w] f32 of a video that never lies in memory as a
  // whole. Activations are ctx.compute. Throws Error unless the size fits the factors, Cancelled
  // between passes when ctx.cancel is set.
  virtual Tensor encode_frames(Context& ctx, const VideoSize& size, const FrameSource& source,
                               const EncodeOptions& options = {}) const = 0;
  // The same of video [3, F, H, W] f32 contiguous.
  Tensor encode(Context& ctx, const TensorView& video, bool normalize = true) const;
  // Bytes that encode_frames() will hold at most, without weights and the backend's own scratch
  // memory. Sizes that fit the factors.
  virtual int64_t memory_bytes(const VideoSize& size, DType compute) const = 0;
};

// The whole video [3, F, H, W] f32 in one tensor.
Tensor decode_video(const VideoDecoder& decoder, Context& ctx, const TensorView& latents,
                    const DecodeOptions& options = {});

// The autoencoder that a vae/config.json describes: _class_name AutoencoderKLWan (also when
// absent), LinearVideoAutoencoder or, decoders only, AutoencoderKLMochi,
// AutoencoderKLHunyuanVideo and TAEHV (our name for what has no config of its own). `where` names
// the config in messages. The source must outlive the result. Throws Error on an unknown class, a
// bad config or missing tensors.
std::unique_ptr<VideoDecoder> make_video_decoder(std::string_view config_json,
                                                 std::string_view where, WeightSource& source);
std::unique_ptr<VideoEncoder> make_video_encoder(std::string_view config_json,
                                                 std::string_view where, WeightSource& source);

}  // namespace lacuna
