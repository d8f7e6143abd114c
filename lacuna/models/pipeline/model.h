// SPDX-License-Identifier: Apache-2.0
// A checkpoint with its parts: what it is, and the parts loaded when they are needed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/models/checkpoint.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/transformer.h"
#include "lacuna/models/vae/video_decoder.h"
#include "lacuna/models/video/picture.h"
#include "lacuna/models/wan/lora.h"

namespace lacuna {

// A LoRA that is in use.
struct LoraUse {
  enum class Networks : uint8_t { all, high_noise, low_noise };
  std::filesystem::path file;
  double scale = 1.0;
  Networks networks = Networks::all;
};

// FILE:SCALE, as the command line and Request have it.
std::string lora_word(const LoraUse& use);

struct Family;

class Model {
 public:
  // A diffusers folder, an original repository folder, or single files. Reads configs
  // and headers only. Throws Error saying what is missing or not supported, and when two experts do
  // not have the same sizes and tensors.
  static std::unique_ptr<Model> open(std::span<const std::filesystem::path> paths);
  // Hash weights at the sizes of a preset: "wan2.1-1.3b", ..., "tiny". Prompts are hashed too. The
  // picture means nothing; time and memory are real. `storage` f32 or bf16.
  static std::unique_ptr<Model> synthetic(std::string_view preset, DType storage);
  ~Model();

  // Changes the transformers from here on; several add up. Throws Error on a file that LoraFile
  // refuses or that is of another network, a scale that is not a finite number from -100 to 100,
  // and one expert of a model that has no two.
  void add_lora(const LoraUse& use);
  const std::vector<LoraUse>& loras() const { return lora_uses_; }
  // Hash of the changes and their scales; empty without.
  const std::string& lora_content() const { return lora_content_; }

  // Every file it is read from, now or later (checkpoint_files); none of a synthetic one.
  std::vector<std::filesystem::path> files() const;
  const std::string& name() const { return name_; }  // "Wan2.1 T2V 1.3B", "synthetic tiny", ...
  std::string title() const;                         // the name, with the LoRA in use
  // What its files do not say and was assumed, one line for people; mostly empty.
  const std::string& assumption() const { return assumption_; }
  bool is_synthetic() const { return !synthetic_.empty(); }
  // Of tensor names, shapes and sampled bytes, without LoRA.
  uint64_t fingerprint() const { return fingerprint_; }
  std::string identity() const;  // name and fingerprint, as Request::model holds them
  const FamilyDefaults& defaults() const { return defaults_; }
  const Architecture& architecture() const { return *architecture_; }
  int num_experts() const { return num_experts_; }
  SigmaConvention sigma_convention() const { return convention_; }
  SamplerKind sampler_kind() const { return sampler_; }
  // The file of what decodes instead of the VAE, a TAEHV; empty without.
  std::filesystem::path tiny_decoder() const;
  // How many pictures its videos are made of, a first and then a last one. Networks with condition
  // channels need one; two are taken without an image encoder, and needed where the network has
  // learnt positions for the rows of two. Others take a first one where model_index.json says
  // expand_timesteps, else the family, whose tokens are then of one latent frame.
  struct PictureCount {
    int least = 0, most = 0;
  };
  PictureCount pictures() const;
  int64_t transformer_bytes() const;  // as stored, one expert
  // The same as held: 8-bit floats with a scale grow when they are loaded.
  int64_t held_transformer_bytes() const { return transformer_bytes() + added_bytes_; }
  // Of made-up weights that are in memory now; weights of files are the page cache's.
  int64_t made_bytes() const;
  // What LoRA adds to that: held beside it, scratch of a forward, and on the way to an op. The more
  // of two experts.
  struct LoraBytes {
    int64_t held = 0, scratch = 0, passing = 0;
  };
  LoraBytes lora_bytes() const;

  // Rows of a prompt behind the video tokens in self-attention: 0 where the prompt is seen by
  // cross-attention. Reads the tokenizer, not the encoder.
  int64_t text_tokens(const std::string& prompt);
  TextTokens text_tokens(const Request& request);

  // Pixels and frames -> latent [channels, frames, height, width] shape. Throws Error naming the
  // nearest sizes that fit.
  struct LatentShape {
    int64_t channels, frames, height, width;
  };
  LatentShape latent_shape(int width, int height, int frames);
  VideoGrid grid(const LatentShape& latent) const {
    return architecture_->grid(latent.frames, latent.height, latent.width);
  }

  // The network of an expert; drops the other one, so that only one is mapped at a time.
  const VideoTransformer& transformer(int expert);
  void release_transformer();
  const VideoDecoder& decoder();
  const VideoEncoder& encoder();
  // Cleans and tokenises the prompt, runs the text encoder at its length, drops the encoder's
  // scratch. `cache` = folder of finished embeddings, empty for none. No tokens for an empty prompt
  // where model_index.json says force_zeros_for_empty_prompt (Mochi).
  PromptEmbedding embed_prompt(Context& ctx, const std::string& prompt,
                               const std::filesystem::path& cache);

  // Whether pictures can be embedded: CLIP's vision encoder is a part of this checkpoint, or made
  // up for a synthetic network that takes its rows (TransformerSizes::image_dim).
  bool has_image_encoder() const;
  // Scratch and rows of embed_pictures() for this many pictures, weights aside, in bytes; 0 for a
  // network that takes none. Opens no weights, and throws Error where embed_pictures() would.
  int64_t image_encoder_bytes(int64_t pictures) const;
  // What the network sees of whole pictures, as read: penultimate hidden states of CLIP's vision
  // encoder, one picture after another, [pictures * rows, image_dim] f32 on the host (257 rows of
  // 1280 for ViT-H). In f32 whatever ctx.compute is, as upstream encodes. Weights are closed and
  // scratch is dropped before it returns. Throws Error without an encoder, or when it is of another
  // width than the network expects.
  Tensor embed_pictures(Context& ctx, std::span<const Picture> pictures);

 private:
  Model() = default;
  const Family& take_family_defaults();
  WeightSource& vae_weights();  // Throws Error where there is no VAE
  int64_t count_tokens(const std::string& prompt) const;
  void read_pipeline_settings();
  std::vector<ScaledLora> loras_of(int expert) const;

  std::string name_, synthetic_, assumption_;
  DType storage_ = DType::bf16;
  uint64_t fingerprint_ = 0;
  int64_t added_bytes_ = 0;
  std::vector<LoraUse> lora_uses_;
  std::vector<std::shared_ptr<const LoraFile>> lora_files_;  // of each use
  std::string lora_content_;
  Checkpoint checkpoint_;
  FamilyDefaults defaults_{};
  std::unique_ptr<const Architecture> architecture_;
  std::map<std::string, int64_t> text_tokens_;  // of prompts that were asked for
  int num_experts_ = 1;
  SigmaConvention convention_ = SigmaConvention::diffusers;
  SamplerKind sampler_ = SamplerKind::unipc;
  bool takes_image_ = false;
  // Mochi's "force_zeros_for_empty_prompt": an empty prompt is padding alone, which is masked, so
  // no token of it takes part.
  bool drops_empty_prompt_ = false;

  struct Network;
  std::unique_ptr<Network> network_;
  std::unique_ptr<WeightSource> vae_source_, tiny_source_;
  std::unique_ptr<VideoDecoder> decoder_;
  std::unique_ptr<VideoEncoder> encoder_;
};

}  // namespace lacuna
