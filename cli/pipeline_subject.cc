// SPDX-License-Identifier: Apache-2.0
#include "cli/pipeline_subject.h"

#include "lacuna/core/error.h"
#include "lacuna/engine/json_object.h"

namespace lacuna::cli {
namespace {

constexpr std::string_view kSamplerPrefix = "sampler.";

// Masks are of as many text tokens as the prompts have, not the request, which has none.
ProfileTarget target_of(Model& model, Request request, const std::vector<std::string>& prompts) {
  if (!prompts.empty()) request.prompt = prompts.front();
  return profile_target(model, request);
}

}  // namespace

PipelineSubject::PipelineSubject(Model& model, Context& ctx, const Request& request,
                                 const std::vector<std::string>& prompts,
                                 const std::filesystem::path& prompt_cache)
    : model_(model),
      ctx_(ctx),
      request_(request),
      prompts_(prompts),
      target_(target_of(model, request, prompts)),
      latent_(model.latent_shape(request.width, request.height, request.frames)) {
  ctx_.compute = compute_dtype(request);
  const RequestPictures pictures = read_pictures(model, request, /*resumed=*/false);
  LACUNA_CHECK(pictures.empty() || model.architecture().sizes().condition_channels > 0,
               "image: {} is looked at layer by layer, which takes no first picture; leave it out",
               model.name());
  for (const std::string& prompt : prompts_) {
    Request one = request;
    one.prompt = prompt;
    embedded_.push_back(embed_prompts(model, ctx, one, prompt_cache));
  }
  pictures_ = encode_pictures(model, ctx, request, pictures, {});
  ctx_.workspace.release();
  begin(0);
  for (int step = 0; step < denoiser_->num_steps(); ++step)
    experts_.push_back(denoiser_->expert(step));
}

std::string PipelineSubject::describe() const {
  Request request = request_;  // lora_content says what they are, wherever the files lie
  request.lora = request.lora_high = request.lora_low = {};
  Json json = Json::parse(request.to_json());
  json["prompts"] = prompts_;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);  // prompts are any bytes
}

void PipelineSubject::start(int prompt) {
  request_of_prompt_ = request_;  // renoise draws from the seed at every step
  request_of_prompt_.seed += static_cast<uint64_t>(prompt);
  state_ = first_state(request_of_prompt_, latent_, pictures_);
  denoiser_.reset();
  inputs_.reset(new SamplingInputs{
      [this](int expert) -> const VideoTransformer& { return model_.transformer(expert); },
      model_.num_experts(), model_.architecture().sizes(), request_of_prompt_,
      embedded_[static_cast<size_t>(prompt)]});
}

void PipelineSubject::begin(int prompt) {
  start(prompt);
  denoiser_ = std::make_unique<Denoiser>(ctx_, *inputs_, state_);
}

NamedTensors PipelineSubject::state() const {
  NamedTensors tensors{{"latents", state_.latents}};
  for (const auto& [name, tensor] : state_.sampler)
    tensors.emplace_back(std::string(kSamplerPrefix) + name, tensor);
  return tensors;
}

void PipelineSubject::restore(int prompt, int step, const NamedTensors& state) {
  start(prompt);
  state_.next_step = step;
  for (const auto& [name, tensor] : state) {
    if (name == "latents") {
      LACUNA_CHECK(tensor.dtype == DType::f32 && tensor.shape == state_.latents.view().shape,
                   "calibration: latents {}, expected {}", tensor.describe(),
                   state_.latents.view().describe());
      state_.latents = copy_of(tensor);
    } else {
      LACUNA_CHECK(name.starts_with(kSamplerPrefix) && tensor.dtype == DType::f32,
                   "calibration: state {} {}, expected f32 of the sampler", name,
                   tensor.describe());
      state_.sampler.emplace_back(name.substr(kSamplerPrefix.size()), copy_of(tensor));
    }
  }
  denoiser_ = std::make_unique<Denoiser>(ctx_, *inputs_, state_);
}

void PipelineSubject::run(Engine& engine, IndexRange layers, const TensorView& residual,
                          const TensorView& velocity) {
  const LayerPart part{layers.begin, layers.end, residual};
  denoiser_->conditional(engine, velocity, &part);
}

void PipelineSubject::finish_step(Engine& engine, const TensorView& velocity) {
  denoiser_->finish(engine, velocity);
}

}  // namespace lacuna::cli
