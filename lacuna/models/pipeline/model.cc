// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/image/image_encoder.h"
#include "lacuna/models/pipeline/family.h"
#include "lacuna/models/pipeline/model_defaults.h"
#include "lacuna/models/pipeline/networks.h"
#include "lacuna/models/text/hunyuan_encoder.h"
#include "lacuna/models/text/prompt.h"
#include "lacuna/models/text/text_encoder.h"
#include "lacuna/models/vae/taehv_decoder.h"
#include "lacuna/models/vae/wan_decoder.h"
#include "lacuna/models/vae/wan_encoder.h"
#include "lacuna/models/wan/wan_config.h"

namespace lacuna {

// A network with the source its weights live in.
struct Model::Network {
  int expert;
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<VideoTransformer> transformer;
};

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSyntheticExperts[] = {"w:", "w2:"};
constexpr int64_t kSyntheticRows = 257;  // of a picture: ViT-H's

// What a synthetic model takes for the output of an encoder.
Tensor hashed(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor values(DType::f32, shape);
  fill_hash(name, 0.0, 0.3, {values.as<float>(), static_cast<size_t>(values.numel())});
  return values;
}

uint64_t fingerprint_of(WeightSource& source) {
  TensorMap tensors;
  for (const std::string& name : source.names()) tensors.emplace(name, source.raw(name));
  return lacuna::fingerprint_of(tensors);
}

int64_t file_bytes(const std::vector<fs::path>& files) {
  int64_t total = 0;
  for (const fs::path& file : files) total += static_cast<int64_t>(fs::file_size(file));
  return total;
}

void check_encoder(const Checkpoint& checkpoint, const CheckpointPart& encoder,
                   std::string_view name, std::string_view option) {
  LACUNA_CHECK(!encoder.empty(), "model: no {} beside {}; give its file with {}", name,
               list_parts(checkpoint), option);
}

void check_tokenizer(const Checkpoint& checkpoint, std::string_view files) {
  LACUNA_CHECK(!checkpoint.tokenizer.empty(),
               "model: no tokenizer in {} or beside it; add {} to --model",
               checkpoint.text_encoder.files.front().string(), files);
}

TextEncoderFiles encoder_files(const Checkpoint& checkpoint, std::string_view family,
                               const fs::path& cache) {
  check_encoder(checkpoint, checkpoint.text_encoder, "text encoder", "--text-encoder");
  check_tokenizer(checkpoint, "tokenizer.json or spiece.model");
  return {.weights = checkpoint.text_encoder.files,
          .config_json = checkpoint.text_encoder.config_text,
          .tokenizer = checkpoint.tokenizer,
          .cache = cache,
          .byte_fallback = {},
          .clean = family == "wan"};
}

HunyuanEncoderFiles hunyuan_files(const Checkpoint& checkpoint, const fs::path& cache) {
  check_encoder(checkpoint, checkpoint.text_encoder, "text encoder", "--text-encoder");
  check_encoder(checkpoint, checkpoint.pooled_encoder, "pooled text encoder", "--pooled-encoder");
  check_tokenizer(checkpoint, "tokenizer.json");
  // --model adds that of the other encoder.
  LACUNA_CHECK(!checkpoint.pooled_tokenizer.empty(),
               "model: no tokenizer for {}, expected tokenizer.json, or vocab.json with "
               "merges.txt, in tokenizer_2 of a diffusers folder or beside it",
               checkpoint.pooled_encoder.files.front().string());
  return {.llama = checkpoint.text_encoder.files,
          .clip = checkpoint.pooled_encoder.files,
          .llama_config = checkpoint.text_encoder.config_text,
          .clip_config = checkpoint.pooled_encoder.config_text,
          .llama_tokenizer = checkpoint.tokenizer,
          .clip_tokenizer = checkpoint.pooled_tokenizer,
          .cache = cache};
}

// Of a network that takes rows of `dim`.
ImageEncoder image_encoder_of(const Checkpoint& checkpoint, int64_t dim) {
  check_encoder(checkpoint, checkpoint.image_encoder,
                "image encoder (CLIP's, such as clip_vision_h.safetensors)", "--image-encoder");
  ImageEncoder encoder({.weights = checkpoint.image_encoder.files,
                        .config_json = checkpoint.image_encoder.config_text,
                        .processor_json = checkpoint.image_processor_text,
                        .processor_file = checkpoint.image_processor.string()});
  LACUNA_CHECK(encoder.config().dim == dim,
               "image encoder: {} wide, the video transformer expects {}; they do not belong "
               "together",
               encoder.config().dim, dim);
  return encoder;
}

// Of a Wan VAE without a config.
VaeConfig preset_of_file(const CheckpointPart& part) {
  const bool is22 =
      part.tensors == TensorSet::vae22_diffusers || part.tensors == TensorSet::vae22_original;
  return vae_preset(is22 ? "wan2.2" : "wan2.1");
}

// Of a file without a config.
std::unique_ptr<VideoDecoder> decoder_of_file(const CheckpointPart& part, WeightSource& source) {
  const std::string where = part.files.front().string();
  switch (part.tensors) {
    case TensorSet::vae_mochi:
      return make_video_decoder(R"({"_class_name": "AutoencoderKLMochi"})", where, source);
    case TensorSet::vae_hunyuan:
      return make_video_decoder(R"({"_class_name": "AutoencoderKLHunyuanVideo"})", where, source);
    default:
      return std::make_unique<WanDecoder>(preset_of_file(part), source);
  }
}

VaeConfig synthetic_vae(const Family& family, int64_t channels) {
  if (family.vae != "tiny") return vae_preset(family.vae);
  VaeConfig vae = vae_preset("tiny");
  vae.z_dim = channels;
  vae.latents_mean.assign(static_cast<size_t>(vae.z_dim), 0.0f);
  vae.latents_std.assign(static_cast<size_t>(vae.z_dim), 1.0f);
  return vae;
}

}  // namespace

std::string lora_word(const LoraUse& use) {
  return fmt::format("{}:{}", use.file.string(), use.scale);
}

Model::~Model() = default;

std::unique_ptr<Model> Model::open(std::span<const fs::path> paths) {
  std::unique_ptr<Model> model(new Model());
  model->checkpoint_ = find_checkpoint(paths);
  const CheckpointPart& part = model->checkpoint_.transformer;
  LACUNA_CHECK(!part.empty(), "model: no diffusion transformer beside {}",
               list_parts(model->checkpoint_));
  const auto source = open_network(part);
  model->architecture_ = read_architecture(part, *source);
  model->num_experts_ = model->checkpoint_.transformer_2.empty() ? 1 : 2;
  model->fingerprint_ = fingerprint_of(*source);
  model->added_bytes_ = source->added_bytes();
  if (model->num_experts_ == 2) {  // profiles and latents are of both
    const CheckpointPart& low = model->checkpoint_.transformer_2;
    const auto second = open_network(low);
    check_experts(part, *source, low, *second);
    model->fingerprint_ =
        fnv1a64(fmt::format("{:016x} {:016x}", model->fingerprint_, fingerprint_of(*second)));
    model->added_bytes_ = std::max(model->added_bytes_, second->added_bytes());
  }
  const Family& family = model->take_family_defaults();
  model->name_ = family.name;
  const TransformerSizes sizes = model->architecture_->sizes();
  // The releases are known by their sizes; of others no tensor tells how wide a head is.
  if (!part.config && !family.released)
    model->assumption_ = fmt::format(
        "note: {} comes without a config.json; heads are taken to be {} channels wide, as in every "
        "released Wan, which makes {}",
        part.files.front().string(), sizes.head_dim, sizes.num_heads);
  model->read_pipeline_settings();
  return model;
}

const Family& Model::take_family_defaults() {
  const Family& family = identify_family(*architecture_, num_experts_);
  takes_image_ = family.takes_image;
  defaults_ = family.defaults;
  if (architecture_->family() == "wan") defaults_.negative_prompt = wan_negative_prompt();
  if (architecture_->family() == "hunyuan") convention_ = SigmaConvention::unit;
  if (architecture_->family() == "mochi") convention_ = SigmaConvention::linear_quadratic;
  if (architecture_->family() != "wan") sampler_ = SamplerKind::euler;
  if (!architecture_->sizes().embedded_guidance) defaults_.embedded_guidance.reset();
  return family;
}

// What model_index.json and scheduler_config.json say beats the family's habits.
void Model::read_pipeline_settings() {
  if (checkpoint_.layout == CheckpointLayout::original && convention_ == SigmaConvention::diffusers)
    convention_ = SigmaConvention::wan;
  if (const auto& index = checkpoint_.model_index) {
    const auto wishes = index->find("lacuna_defaults");
    if (wishes != index->end()) {
      read_model_defaults(*wishes, (checkpoint_.root / "model_index.json").string(), defaults_,
                          name_);
    }
    const auto boundary = index->find("boundary_ratio");
    if (boundary != index->end() && boundary->is_number()) {
      defaults_.boundary = boundary->get<double>();
    }
    const auto expand = index->find("expand_timesteps");
    if (expand != index->end() && expand->is_boolean()) takes_image_ = expand->get<bool>();
    const auto zeros = index->find("force_zeros_for_empty_prompt");
    if (zeros != index->end() && zeros->is_boolean() && architecture_->family() == "mochi")
      drops_empty_prompt_ = zeros->get<bool>();
  }
  const auto& scheduler = checkpoint_.scheduler;
  if (scheduler && architecture_->family() != "wan") {
    const fs::path file = checkpoint_.root / "scheduler" / "scheduler_config.json";
    defaults_.shift =
        read_flow_shift(*scheduler, file.string(), architecture_->sizes().reversed_time);
  } else if (scheduler) {
    for (const char* key : {"flow_shift", "shift"}) {
      const auto shift = scheduler->find(key);
      if (shift == scheduler->end() || !shift->is_number()) continue;
      defaults_.shift = shift->get<double>();
      defaults_.small_shift.reset();
    }
    const auto name = scheduler->find("_class_name");
    if (name != scheduler->end() && *name == "FlowMatchEulerDiscreteScheduler") {
      sampler_ = SamplerKind::euler;
    }
  }
}

std::unique_ptr<Model> Model::synthetic(std::string_view preset, DType storage) {
  std::unique_ptr<Model> model(new Model());
  model->synthetic_ = preset;
  model->storage_ = storage;
  model->architecture_ = preset_architecture(preset);
  model->num_experts_ = preset.ends_with("-a14b") ? 2 : 1;
  model->take_family_defaults();
  model->name_ = fmt::format("synthetic {}", preset);
  model->fingerprint_ = fnv1a64(model->name_);
  return model;
}

Model::PictureCount Model::pictures() const {
  const TransformerSizes sizes = architecture_->sizes();
  if (sizes.condition_channels == 0) return {0, takes_image_ && sizes.patch.t == 1 ? 1 : 0};
  if (sizes.image_dim == 0) return {1, 2};
  return sizes.image_rows > 0 ? PictureCount{2, 2} : PictureCount{1, 1};
}

std::string Model::identity() const {
  return fmt::format("{} {:016x}", name_, fingerprint_);
}

std::vector<fs::path> Model::files() const {
  std::vector<fs::path> files = checkpoint_files(checkpoint_);
  for (const LoraUse& use : lora_uses_) files.push_back(use.file);
  return files;
}

std::string Model::title() const {
  std::string title = name_;
  for (size_t i = 0; i < lora_uses_.size(); ++i)
    title += fmt::format("{} {}", i == 0 ? " with LoRA" : ",", lora_word(lora_uses_[i]));
  return title;
}

void Model::add_lora(const LoraUse& use) {
  LACUNA_CHECK(std::isfinite(use.scale) && std::abs(use.scale) <= 100.0,
               "lora: {} {} times, expected a number from -100 to 100", use.file.string(),
               use.scale);
  LACUNA_CHECK(use.networks == LoraUse::Networks::all || num_experts_ == 2,
               "lora: {} for one of two experts, {} has one network", use.file.string(), name_);
  auto file = std::make_shared<const LoraFile>(use.file);
  const auto* wan = dynamic_cast<const WanArchitecture*>(architecture_.get());
  LACUNA_CHECK(wan != nullptr, "lora: {} for {}, expected a Wan network", use.file.string(), name_);
  file->check(wan->config());
  lora_content_ = fmt::format(
      "{:016x}", fnv1a64(fmt::format("{} {:016x} {} {}", lora_content_, file->fingerprint(),
                                     use.scale, static_cast<int>(use.networks))));
  lora_files_.push_back(std::move(file));
  lora_uses_.push_back(use);
}

std::vector<ScaledLora> Model::loras_of(int expert) const {
  std::vector<ScaledLora> loras;
  const auto other = expert == 0 ? LoraUse::Networks::low_noise : LoraUse::Networks::high_noise;
  for (size_t i = 0; i < lora_uses_.size(); ++i)
    if (lora_uses_[i].networks != other) loras.push_back({lora_files_[i], lora_uses_[i].scale});
  return loras;
}

Model::LoraBytes Model::lora_bytes() const {
  LoraBytes most;
  for (int expert = 0; expert < num_experts_; ++expert) {
    LoraBytes bytes;
    for (const ScaledLora& lora : loras_of(expert)) {
      const LoraFile::PairBytes largest = lora.file->largest_pair();
      bytes.held += lora.file->held_bytes();
      bytes.scratch += largest.scratch;
      bytes.passing += 2 * largest.pair;
    }
    most.held = std::max(most.held, bytes.held);
    most.scratch = std::max(most.scratch, bytes.scratch);
    most.passing = std::max(most.passing, bytes.passing);
  }
  return most;
}

int64_t Model::transformer_bytes() const {
  if (is_synthetic()) return storage_bytes(storage_, architecture_->num_parameters());
  return file_bytes(checkpoint_.transformer.files);
}

int64_t Model::made_bytes() const {
  return is_synthetic() && network_ != nullptr ? transformer_bytes() : 0;
}

Model::LatentShape Model::latent_shape(int width, int height, int frames) {
  const VideoDecoder& vae = decoder();
  const TransformerSizes sizes = architecture_->sizes();
  const int64_t step_h = vae.spatial_factor() * sizes.patch.h;
  const int64_t step_w = vae.spatial_factor() * sizes.patch.w;
  constexpr int kMaxSide = 8192, kMaxFrames = 4096;
  LACUNA_CHECK(width > 0 && height > 0 && width <= kMaxSide && height <= kMaxSide,
               "size: {}x{}, expected 1 to {} pixels each way", width, height, kMaxSide);
  LACUNA_CHECK(frames > 0 && frames <= kMaxFrames, "frames: {}, expected 1 to {}", frames,
               kMaxFrames);
  // First: a decoder of another model has other sizes, which would be blamed on the request.
  LACUNA_CHECK(vae.latent_channels() == sizes.latent_channels,
               "model: the decoder has {} latent channels, the transformer {}; they do not belong "
               "together",
               vae.latent_channels(), sizes.latent_channels);
  LACUNA_CHECK(width % step_w == 0 && height % step_h == 0,
               "size: {}x{}, expected multiples of {} x {}, such as {}x{}", width, height, step_w,
               step_h, std::max(width / step_w, int64_t{1}) * step_w,
               std::max(height / step_h, int64_t{1}) * step_h);
  const LatentShape shape{vae.latent_channels(), vae.latent_frames(frames),
                          height / vae.spatial_factor(), width / vae.spatial_factor()};
  LACUNA_CHECK(shape.frames % sizes.patch.t == 0,
               "frames: {} make {} latent frames, expected a multiple of {} of those", frames,
               shape.frames, sizes.patch.t);
  grid(shape);  // rotary limits
  return shape;
}

const VideoTransformer& Model::transformer(int expert) {
  if (network_ != nullptr && network_->expert == expert) return *network_->transformer;
  network_.reset();  // before the other one comes: only one is resident
  auto network = std::make_unique<Network>();
  network->expert = expert;
  std::function<std::string(std::string_view)> rename;
  if (is_synthetic()) {
    network->source = hash_weights(std::string(kSyntheticExperts[expert]), storage_);
  } else {
    const CheckpointPart& part = expert == 0 ? checkpoint_.transformer : checkpoint_.transformer_2;
    network->source = open_network(part);
    rename = network_rename(part.tensors, *network->source);
  }
  network->source = with_loras(std::move(network->source), loras_of(expert), rename);
  WeightReader reader(*network->source, rename);
  network->transformer = architecture_->load(reader);
  network_ = std::move(network);
  return *network_->transformer;
}

void Model::release_transformer() {
  network_.reset();
}

fs::path Model::tiny_decoder() const {
  return checkpoint_.tiny_decoder.empty() ? fs::path() : checkpoint_.tiny_decoder.files.front();
}

WeightSource& Model::vae_weights() {
  if (vae_source_ != nullptr) return *vae_source_;
  if (is_synthetic()) {
    vae_source_ = hash_weights("w:", storage_);
  } else {
    LACUNA_CHECK(!checkpoint_.vae.empty(), "model: no VAE beside {}; give its file with --vae",
                 list_parts(checkpoint_));
    vae_source_ = open_weights(checkpoint_.vae.files);
  }
  return *vae_source_;
}

const VideoDecoder& Model::decoder() {
  if (decoder_ != nullptr) return *decoder_;
  const CheckpointPart& part = checkpoint_.vae;
  const Family& family = identify_family(*architecture_, num_experts_);
  if (const fs::path tiny = tiny_decoder(); !tiny.empty()) {
    tiny_source_ = open_weights(checkpoint_.tiny_decoder.files);
    decoder_ = std::make_unique<TaehvDecoder>(infer_taehv_config(*tiny_source_, tiny.string()),
                                              *tiny_source_);
  } else if (is_synthetic() && family.vae.starts_with('{')) {
    decoder_ = make_video_decoder(family.vae, name_, vae_weights());
  } else if (is_synthetic()) {
    decoder_ = std::make_unique<WanDecoder>(
        synthetic_vae(family, architecture_->sizes().latent_channels), vae_weights());
  } else if (part.config) {
    decoder_ = make_video_decoder(part.config_text, part.config_file.string(), vae_weights());
  } else {
    WeightSource& source = vae_weights();  // first: it says what is missing
    decoder_ = decoder_of_file(part, source);
  }
  return *decoder_;
}

const VideoEncoder& Model::encoder() {
  if (encoder_ != nullptr) return *encoder_;
  WeightSource& source = vae_weights();
  const CheckpointPart& part = checkpoint_.vae;
  if (is_synthetic()) {
    encoder_ =
        std::make_unique<WanEncoder>(synthetic_vae(identify_family(*architecture_, num_experts_),
                                                   architecture_->sizes().latent_channels),
                                     source);
  } else if (part.config) {
    encoder_ = make_video_encoder(part.config_text, part.config_file.string(), source);
  } else {
    encoder_ = std::make_unique<WanEncoder>(preset_of_file(part), source);
  }
  return *encoder_;
}

// Rows of the embedding of a prompt.
int64_t Model::count_tokens(const std::string& prompt) const {
  const int64_t most = architecture_->sizes().text_len;
  if (drops_empty_prompt_ && prompt.empty()) return 0;
  if (is_synthetic()) {
    // As many as a tokenizer would roughly give: about four for three words.
    const std::string text = clean_prompt(prompt);
    const auto words = std::count(text.begin(), text.end(), ' ') + 1;
    return std::min<int64_t>(words * 4 / 3 + 1, most - 1);
  }
  if (architecture_->family() == "hunyuan")
    return HunyuanTextEncoder(hunyuan_files(checkpoint_, {})).count_tokens(prompt);
  const TextEncoder encoder(encoder_files(checkpoint_, architecture_->family(), {}));
  return static_cast<int64_t>(encoder.tokens(prompt, most).size());
}

int64_t Model::text_tokens(const std::string& prompt) {
  if (!architecture_->sizes().joint_text) return 0;
  const auto known = text_tokens_.find(prompt);
  if (known != text_tokens_.end()) return known->second;
  const int64_t tokens = count_tokens(prompt);
  text_tokens_.emplace(prompt, tokens);
  return tokens;
}

TextTokens Model::text_tokens(const Request& request) {
  const int64_t cond = text_tokens(request.prompt);
  return {cond, request.guided() ? text_tokens(request.negative_prompt) : cond};
}

PromptEmbedding Model::embed_prompt(Context& ctx, const std::string& prompt,
                                    const fs::path& cache) {
  const TransformerSizes sizes = architecture_->sizes();
  if (drops_empty_prompt_ && prompt.empty()) return {};
  if (is_synthetic()) {
    const std::string text = clean_prompt(prompt);
    PromptEmbedding made{hashed("prompt:" + text, {count_tokens(prompt), sizes.text_dim}), {}};
    if (sizes.pooled_dim > 0) made.pooled = hashed("pooled:" + text, {sizes.pooled_dim});
    return made;
  }
  if (architecture_->family() == "hunyuan")
    return HunyuanTextEncoder(hunyuan_files(checkpoint_, cache)).embed(ctx, prompt, sizes);
  const TextEncoder encoder(encoder_files(checkpoint_, architecture_->family(), cache));
  return {encoder.embed(ctx, prompt, sizes.text_dim, sizes.text_len), {}};
}

bool Model::has_image_encoder() const {
  return is_synthetic() ? architecture_->sizes().image_dim > 0 : !checkpoint_.image_encoder.empty();
}

int64_t Model::image_encoder_bytes(int64_t pictures) const {
  const int64_t dim = architecture_->sizes().image_dim;
  if (dim == 0 || pictures == 0) return 0;
  if (is_synthetic()) return storage_bytes(DType::f32, pictures * kSyntheticRows * dim);
  const ImageEncoder encoder = image_encoder_of(checkpoint_, dim);
  return clip_vision_bytes(encoder.config(), DType::f32) +
         storage_bytes(DType::f32, pictures * encoder.config().rows() * dim);
}

Tensor Model::embed_pictures(Context& ctx, std::span<const Picture> pictures) {
  const int64_t dim = architecture_->sizes().image_dim;
  LACUNA_CHECK(dim > 0, "image: {} takes no rows of an image encoder", name_);
  if (is_synthetic()) {
    std::string name = "pictures:";
    for (const Picture& picture : pictures)
      name += fmt::format("{:016x}", fnv1a64({reinterpret_cast<const char*>(picture.rgb.data()),
                                              picture.rgb.size()}));
    return hashed(name, {static_cast<int64_t>(pictures.size()) * kSyntheticRows, dim});
  }
  const ImageEncoder encoder = image_encoder_of(checkpoint_, dim);
  Context own(ctx.backend, DType::f32, ctx.cancel);
  return encoder.embed(own, pictures);
}

}  // namespace lacuna
