// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/sampling.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/pipeline/pictures.h"
#include "lacuna/models/pipeline/work_share.h"

namespace lacuna {
namespace {

std::span<float> values(const TensorView& t) {
  return {t.as<float>(), static_cast<size_t>(t.numel())};
}

Tensor copy_of(std::span<const float> source) {
  return copy_of(make_view(const_cast<float*>(source.data()), DType::f32,
                           {static_cast<int64_t>(source.size())}));
}

// What one expert needs for a whole schedule; rebuilt when the expert changes.
struct ExpertState {
  int expert = -1;
  const VideoTransformer* network = nullptr;
  std::optional<ConstantWeights> constant;
  std::unique_ptr<VideoTransformer::Times> times;  // per step, then that of timestep 0
  // Of the branches that this process runs.
  std::unique_ptr<VideoTransformer::Prompt> positive;
  std::unique_ptr<VideoTransformer::Prompt> negative;  // null without guidance
};

bool runs(const SamplingInputs& inputs, Branch branch) {
  return inputs.share == nullptr || inputs.share->runs(branch);
}

// Whether frame 0 is a picture, encoded.
bool keeps_first_frame(const SamplingInputs& inputs) {
  return inputs.sizes.condition_channels == 0 && !inputs.request.image.empty();
}

// Throws Error unless the state has what the network takes beside latents and prompts.
void check_condition(const TransformerSizes& sizes, const SamplingState& state) {
  const auto& latents = state.latents.view().shape;
  const TensorView &condition = state.condition, &image = state.image;
  const bool none = sizes.condition_channels == 0 && condition.empty();
  const bool fits =
      condition.rank == 4 && condition.shape[0] == sizes.condition_channels &&
      std::equal(latents.begin() + 1, latents.begin() + 4, condition.shape.begin() + 1);
  LACUNA_CHECK(none || fits, "latents: condition {}, expected [{}, {}, {}, {}]",
               condition.describe(), sizes.condition_channels, latents[1], latents[2], latents[3]);
  LACUNA_CHECK(
      sizes.image_dim == 0 ? image.empty() : image.rank == 2 && image.shape[1] == sizes.image_dim,
      "latents: image rows {}, expected rows of {}", image.describe(), sizes.image_dim);
}

// With the rows of the pictures, which are the same in both branches.
std::unique_ptr<VideoTransformer::Prompt> prepare_prompt(Context& ctx,
                                                         const VideoTransformer& network,
                                                         const PromptEmbedding& prompt,
                                                         const SamplingState& state) {
  if (state.image.empty()) return network.prepare_prompt(ctx, prompt);
  return network.prepare_prompt(ctx, {copy_of(prompt.tokens), {}, copy_of(state.image)});
}

ExpertState prepare_expert(Context& ctx, const SamplingInputs& inputs, const Sampler& sampler,
                           const SamplingState& from, int expert) {
  ExpertState state;
  state.expert = expert;
  state.network = &inputs.transformer(expert);
  state.constant.emplace(ctx.backend, state.network->weights());
  const bool reversed = inputs.sizes.reversed_time;
  std::vector<double> timesteps;
  for (int step = 0; step < sampler.num_steps(); ++step)
    timesteps.push_back(reversed ? 1000.0 * (1.0 - sampler.sigma(step)) : sampler.timestep(step));
  if (keeps_first_frame(inputs)) timesteps.push_back(0.0);
  state.times =
      state.network->prepare_times(ctx, timesteps, inputs.request.embedded_guidance.value_or(0.0));
  if (runs(inputs, Branch::cond))
    state.positive = prepare_prompt(ctx, *state.network, inputs.prompts.positive, from);
  if (inputs.request.guided() && runs(inputs, Branch::uncond))
    state.negative = prepare_prompt(ctx, *state.network, inputs.prompts.negative, from);
  return state;
}

void snapshot(const Sampler& sampler, const Engine& engine, const TensorView& x, int next_step,
              const WorkShare* share, SamplingState& state) {
  state.next_step = 0;  // until it is whole: memory may end here, and half a state is not saved
  std::memcpy(state.latents.as<float>(), x.data, static_cast<size_t>(x.numel()) * sizeof(float));
  state.sampler.clear();
  for (const Sampler::NamedState& s : sampler.state()) {
    state.sampler.emplace_back(s.name, copy_of(s.values));
  }
  state.attention.clear();
  if (engine.policy().carries() && next_step < sampler.num_steps()) {
    engine.save(state.attention);
    if (share != nullptr) share->gather(state.attention);
  }
  state.next_step = next_step;
}

std::unique_ptr<Sampler> restored_sampler(const Request& request, const SamplingState& state) {
  SamplerConfig config = request.sampler;
  config.seed = request.seed;
  auto sampler = make_sampler(config);
  std::vector<Sampler::NamedState> named;
  for (const auto& [name, tensor] : state.sampler) {
    LACUNA_CHECK(tensor.numel() == state.latents.numel(),
                 "latents file: sampler state {} of {} values, expected {}", name, tensor.numel(),
                 state.latents.numel());
    named.push_back({name, values(tensor)});
  }
  sampler->set_state(state.next_step, named);
  return sampler;
}

}  // namespace

int expert_at(int num_experts, const Request& request, const Sampler& sampler, int step) {
  return num_experts == 2 && sampler.timestep(step) < 1000.0 * request.boundary ? 1 : 0;
}

Tensor initial_noise(uint64_t seed, int64_t channels, int64_t frames, int64_t height,
                     int64_t width) {
  Tensor noise(DType::f32, {channels, frames, height, width});
  torch_randn(seed, values(noise));
  return noise;
}

struct Denoiser::Impl {
  Context& ctx;
  const SamplingInputs& inputs;
  SamplingState& state;
  std::unique_ptr<Sampler> sampler;
  Tensor input;  // of the network: x, then the condition
  TensorView x;
  Tensor unguided;
  Tensor first;  // frame 0 where it is a picture, else empty
  ExpertState expert;

  int step() const { return state.next_step; }
  Site site(Branch branch) const {
    Site site;
    site.step = step();
    site.num_steps = sampler->num_steps();
    site.sigma = sampler->sigma(step());
    site.branch = branch;
    site.expert = expert.expert;
    return site;
  }
  // One forward on x, or some layers of it.
  void forward(Engine& engine, Branch branch, const VideoTransformer::Prompt& prompt,
               const LayerPart* part, const TensorView& velocity) {
    const auto now = static_cast<size_t>(step());
    VideoTransformer::Input given{site(branch), input, *expert.times, now, {}, prompt};
    // Frame 0 is a picture without noise: its tokens are at timestep 0, which is the last of times.
    if (!first.empty()) given.first_frame_time = static_cast<size_t>(sampler->num_steps());
    expert.network->forward(ctx, engine, given, part, velocity);
    if (inputs.sizes.reversed_time && (part == nullptr || part->end == inputs.sizes.num_layers))
      for (float& value : values(velocity)) value = -value;
  }
};

Denoiser::Denoiser(Context& ctx, const SamplingInputs& inputs, SamplingState& state)
    : impl_(new Impl{ctx, inputs, state, restored_sampler(inputs.request, state)}) {
  const auto& shape = state.latents.view().shape;
  const int64_t behind = inputs.sizes.condition_channels;
  check_condition(inputs.sizes, state);
  impl_->input = Tensor(DType::f32, {shape[0] + behind, shape[1], shape[2], shape[3]});
  impl_->x = impl_->input.view().slice(0, shape[0]);
  impl_->unguided = Tensor(DType::f32, {shape[0], shape[1], shape[2], shape[3]});
  const auto copy = [](const Tensor& from, const TensorView& to) {
    std::memcpy(to.as<float>(), from.as<float>(),
                static_cast<size_t>(from.numel()) * sizeof(float));
  };
  copy(state.latents, impl_->x);
  if (behind > 0) copy(state.condition, impl_->input.view().slice(shape[0], shape[0] + behind));
  if (keeps_first_frame(inputs)) impl_->first = first_frame_of(impl_->x);
}
Denoiser::~Denoiser() = default;

int Denoiser::num_steps() const {
  return impl_->sampler->num_steps();
}

int Denoiser::expert(int step) const {
  const SamplingInputs& inputs = impl_->inputs;
  return expert_at(inputs.num_experts, inputs.request, *impl_->sampler, step);
}

void Denoiser::conditional(Engine& engine, const TensorView& velocity, const LayerPart* part) {
  Impl& s = *impl_;
  const int wanted = expert(s.step());
  if (s.expert.expert != wanted) {
    s.expert = {};  // the old embeddings and promises go before the other network comes
    s.expert = prepare_expert(s.ctx, s.inputs, *s.sampler, s.state, wanted);
  }
  if (runs(s.inputs, Branch::cond))
    s.forward(engine, Branch::cond, *s.expert.positive, part, velocity);
}

void Denoiser::finish(Engine& engine, const TensorView& velocity) {
  Impl& s = *impl_;
  const int step = s.step();
  const Request& request = s.inputs.request;
  const double guidance = s.expert.expert == 1 ? request.guidance_low : request.guidance;
  const bool guided = guidance != 1.0;
  if (guided && runs(s.inputs, Branch::uncond))
    s.forward(engine, Branch::uncond, *s.expert.negative, nullptr, s.unguided);
  if (s.inputs.share != nullptr)
    s.inputs.share->exchange(velocity, guided ? &s.unguided.view() : nullptr);
  if (guided) {
    const float g = static_cast<float>(guidance);
    float* v = velocity.as<float>();
    const float* u = s.unguided.as<float>();
    for (int64_t i = 0; i < s.x.numel(); ++i) v[i] = u[i] + g * (v[i] - u[i]);
  }
  s.sampler->step(step, values(velocity), values(s.x));
  if (!s.first.empty()) put_first_frame(s.first, s.x);
  for (float value : values(s.x)) {
    LACUNA_CHECK(std::isfinite(value),
                 "sampling: not a finite number after step {}; try --dtype f32 or a lower shift",
                 step);
  }
  snapshot(*s.sampler, engine, s.x, step + 1, s.inputs.share, s.state);
}

void sample(Context& ctx, Engine& engine, const SamplingInputs& inputs, SamplingState& state,
            const std::function<void(const StepReport&)>& on_step) {
  using Clock = std::chrono::steady_clock;
  Denoiser denoiser(ctx, inputs, state);
  const auto& shape = state.latents.view().shape;
  const Tensor velocity(DType::f32, {shape[0], shape[1], shape[2], shape[3]});
  while (state.next_step < denoiser.num_steps()) {
    const auto start = Clock::now();
    const int step = state.next_step;
    const size_t calls = engine.trace().entries().size();
    denoiser.conditional(engine, velocity);
    denoiser.finish(engine, velocity);
    if (inputs.share != nullptr) inputs.share->share_trace(engine.trace(), calls);
    if (on_step) {
      on_step({step, denoiser.num_steps(),
               std::chrono::duration<double>(Clock::now() - start).count(),
               engine.trace().qk_density(step), engine.trace().pv_density(step)});
    }
  }
}

namespace {

constexpr std::string_view kFormatKey = "lacuna.format";
constexpr std::string_view kFormat = "latents-1";

const std::string& metadata_value(const SafetensorsFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  LACUNA_CHECK(found != file.metadata().end(),
               "latents file: {} has no {}, expected one written by lacuna generate",
               file.path().string(), key);
  return found->second;
}

Tensor owned_f32(const SafetensorsFile& file, const std::string& name, int rank) {
  const TensorView& view = file.at(name);
  LACUNA_CHECK(view.dtype == DType::f32 && view.rank == rank && view.numel() > 0,
               "latents file: {} {} is {}, expected rank {} f32", file.path().string(), name,
               view.describe(), rank);
  Tensor t(DType::f32, std::span<const int64_t>(view.shape.data(), static_cast<size_t>(rank)));
  std::memcpy(t.view().data, view.data, static_cast<size_t>(view.numel()) * sizeof(float));
  const auto all = values(t);
  LACUNA_CHECK(std::all_of(all.begin(), all.end(), [](float v) { return std::isfinite(v); }),
               "latents file: {} {} holds infinity or NaN, expected finite numbers",
               file.path().string(), name);
  return t;
}

}  // namespace

void save_state(const std::filesystem::path& path, const Request& request,
                const SamplingState& state) {
  std::vector<std::pair<std::string, TensorView>> tensors{{"latents", state.latents}};
  if (!state.condition.empty()) tensors.emplace_back("condition", state.condition);
  if (!state.image.empty()) tensors.emplace_back("image", state.image);
  for (const auto& [name, tensor] : state.sampler) tensors.emplace_back("sampler." + name, tensor);
  for (const auto& [name, tensor] : state.attention)
    tensors.emplace_back("attention." + name, tensor);
  write_safetensors(path, tensors,
                    {{std::string(kFormatKey), std::string(kFormat)},
                     {"request", request.to_json()},
                     {"next_step", std::to_string(state.next_step)},
                     {"prompts", fmt::format("{:016x}", state.prompts)}});
}

bool is_latents_file(const std::filesystem::path& path) {
  try {
    return SafetensorsFile(path).metadata().contains(kFormatKey);
  } catch (const Error&) {
    return false;
  }
}

LoadedState load_state(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const std::string& format = metadata_value(file, kFormatKey);
  LACUNA_CHECK(format == kFormat, "latents file: {} has format {}, expected {}", path.string(),
               format, kFormat);
  LoadedState loaded;
  loaded.request = Request::from_json(metadata_value(file, "request"), path.string() + " request");
  const std::string& next = metadata_value(file, "next_step");
  const auto [end, error] =
      std::from_chars(next.data(), next.data() + next.size(), loaded.state.next_step);
  LACUNA_CHECK(error == std::errc() && end == next.data() + next.size() &&
                   loaded.state.next_step >= 0 &&
                   loaded.state.next_step <= loaded.request.sampler.num_steps,
               "latents file: {} stopped at step {} of {}", path.string(), next,
               loaded.request.sampler.num_steps);
  // Younger than the first latents files.
  if (const auto found = file.metadata().find("prompts"); found != file.metadata().end()) {
    const std::string& digits = found->second;
    const auto [last, wrong] =
        std::from_chars(digits.data(), digits.data() + digits.size(), loaded.state.prompts, 16);
    LACUNA_CHECK(digits.size() == 16 && wrong == std::errc() && last == digits.data() + 16,
                 "latents file: {} has prompts {}, expected 16 hex digits", path.string(), digits);
  }
  loaded.state.latents = owned_f32(file, "latents", 4);
  if (file.tensors().contains("condition"))
    loaded.state.condition = owned_f32(file, "condition", 4);
  if (file.tensors().contains("image")) loaded.state.image = owned_f32(file, "image", 2);
  constexpr std::string_view kSampler = "sampler.", kAttention = "attention.";
  for (const auto& [name, view] : file.tensors()) {
    if (name.starts_with(kSampler))
      loaded.state.sampler.emplace_back(name.substr(kSampler.size()), owned_f32(file, name, 1));
    if (name.starts_with(kAttention))
      loaded.state.attention.emplace(name.substr(kAttention.size()), copy_of(view));
  }
  return loaded;
}

}  // namespace lacuna
