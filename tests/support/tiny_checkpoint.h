// SPDX-License-Identifier: Apache-2.0
// A small checkpoint with made-up weights on disk, in the diffusers layout: every part of a whole
// generation, for tests that need one to be fast.
#pragma once

#include <fmt/ranges.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"
#include "lacuna/models/wan/dit.h"
#include "tests/support/noting_weights.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {

struct TinyKind {
  int experts = 1;
  bool ti2v = false;  // channels and autoencoder of the kind of Wan 2.2's 5B
  bool i2v = false;   // channels of a condition
  int64_t image_dim = 0, image_positions = 0;  // with `i2v`: of image keys
  bool encoder = true;                         // of the autoencoder of either
  DType storage = DType::bf16;                 // of matrices
  int64_t layers = 2;
};

// Two heads of 64, 8 pixels to a token side with `ti2v`, else 4; the text encoder that ships.
class TinyCheckpoint {
 public:
  explicit TinyCheckpoint(const TinyKind& kind) {
    namespace fs = std::filesystem;
    const VaeConfig vae = vae_config(kind);
    write(folder_ / "model_index.json",
          fmt::format(R"({{"_class_name": "WanPipeline", "expand_timesteps": {}}})", kind.ti2v));
    for (const char* part : {"text_encoder", "tokenizer"})
      fs::create_directory_symlink(assets() / "lacuna-shapes" / part, folder_ / part);
    const WanConfig config = wan_config(kind, vae.z_dim);
    for (int expert = 0; expert < kind.experts; ++expert) {
      NotingWeights source(expert == 0 ? "w:" : "w2:", kind.storage);
      WeightReader reader(source);
      const WanDit dit(config, reader);
      source.save(folder_ / (expert == 0 ? "transformer" : "transformer_2"), wan_json(config));
    }
    NotingWeights source("w:", DType::f32);
    const WanDecoder decoder(vae, source);
    if ((kind.ti2v || kind.i2v) && kind.encoder) const WanEncoder encoder(vae, source);
    source.save(folder_ / "vae", vae_json(vae));
  }

  const std::filesystem::path& folder() const { return folder_; }

 private:
  static VaeConfig vae_config(const TinyKind& kind) {
    VaeConfig vae;
    vae.base_dim = vae.decoder_base_dim = 4;
    vae.z_dim = kind.ti2v ? 12 : 4;
    vae.dim_mult.assign(kind.i2v ? 3 : 2, 1);  // a mask's channels are frames: time by four
    vae.num_res_blocks = 1;
    vae.temporal_downsample.assign(kind.i2v ? 2 : 1, 1);
    vae.is_residual = kind.ti2v;
    vae.patch_size = kind.ti2v ? 2 : 1;
    vae.latents_mean.assign(static_cast<size_t>(vae.z_dim), 0.1f);
    vae.latents_std.assign(static_cast<size_t>(vae.z_dim), 1.5f);
    return vae;
  }
  static WanConfig wan_config(const TinyKind& kind, int64_t channels) {
    WanConfig config;
    config.num_layers = kind.layers;
    config.num_heads = 2;
    config.head_dim = 64;
    config.in_channels = config.out_channels = channels;
    if (kind.i2v) config.in_channels = 2 * channels + kMaskChannels;
    config.image_dim = kind.image_dim;
    config.image_positions = kind.image_positions;
    config.ffn_dim = 192;
    config.text_dim = 128;
    config.text_len = 32;
    config.freq_dim = 32;
    return config;
  }
  static std::string wan_json(const WanConfig& c) {
    return fmt::format(
        R"({{"_class_name": "WanTransformer3DModel", "num_layers": {}, "num_attention_heads": {},
        "attention_head_dim": {}, "in_channels": {}, "out_channels": {}, "ffn_dim": {},
        "text_dim": {}, "text_len": {}, "freq_dim": {}, "patch_size": [1, 2, 2], {}
        "cross_attn_norm": true, "qk_norm": "rms_norm_across_heads", "eps": 1e-6}})",
        c.num_layers, c.num_heads, c.head_dim, c.in_channels, c.out_channels, c.ffn_dim, c.text_dim,
        c.text_len, c.freq_dim, image_json(c));
  }
  static std::string image_json(const WanConfig& c) {
    if (c.image_dim == 0) return "";
    const std::string rows =
        c.image_positions > 0 ? fmt::format("{}", c.image_positions) : std::string("null");
    return fmt::format(R"("image_dim": {}, "added_kv_proj_dim": {}, "pos_embed_seq_len": {},)",
                       c.image_dim, c.dim(), rows);
  }
  static std::string vae_json(const VaeConfig& c) {
    return fmt::format(
        R"({{"_class_name": "AutoencoderKLWan", "base_dim": {}, "z_dim": {}, "dim_mult": [{}],
        "num_res_blocks": 1, "temperal_downsample": [{}], "is_residual": {}, "patch_size": {},
        "in_channels": {}, "out_channels": {}, "latents_mean": [{}], "latents_std": [{}]}})",
        c.base_dim, c.z_dim, fmt::join(c.dim_mult, ", "),
        c.num_levels() == 3 ? "true, true" : "true", c.is_residual, c.patch_size,
        c.pixel_channels(), c.pixel_channels(), fmt::join(c.latents_mean, ", "),
        fmt::join(c.latents_std, ", "));
  }

  static void write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path) << text;
  }

  const TempFolder temp_;
  const std::filesystem::path folder_ = temp_.path();
};

}  // namespace lacuna::test
