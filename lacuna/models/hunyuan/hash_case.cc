// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/hash_case.h"

#include <numbers>

#include "lacuna/core/rng.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/hunyuan/dit.h"

namespace lacuna {
namespace {

Tensor unit_hash(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, std::numbers::sqrt3,
            {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

// Element `index` of the first axis, without it.
TensorView element(const Tensor& all, int64_t index) {
  const TensorView& view = all.view();
  const int64_t stride = view.stride[0];
  return make_view(all.as<float>() + index * stride, DType::f32,
                   std::span(view.shape.data() + 1, static_cast<size_t>(view.rank) - 1));
}

}  // namespace

HunyuanConfig golden_hunyuan_config() {
  HunyuanConfig config;
  config.num_layers = config.num_single_layers = 2;
  config.num_refiner_layers = 1;
  config.num_heads = 2;
  config.head_dim = 16;
  config.channels = 4;
  config.text_dim = 32;
  config.pooled_dim = 24;
  config.rope_channels = {4, 6, 6};
  return config;
}

HunyuanHashCase golden_hunyuan_case() {
  HunyuanHashCase hash_case;
  hash_case.config = golden_hunyuan_config();
  hash_case.latent_name = "x:hy";
  hash_case.text_name = "ctx:hy";
  hash_case.pooled_name = "pool:hy";
  hash_case.frames = 3;
  hash_case.height = 8;
  hash_case.width = 12;
  hash_case.text_rows = 16;
  hash_case.valid_rows = {11, 3};
  hash_case.timestep = 500.0;
  hash_case.guidance = 6.0;
  return hash_case;
}

Tensor run_hash_case(Backend& backend, DType compute, const HunyuanHashCase& hash_case,
                     const Policy& policy) {
  const HunyuanConfig& config = hash_case.config;
  const auto source = hash_weights(hash_case.weights, hash_case.storage);
  WeightReader reader(*source);
  const HunyuanTransformer network(config, reader);
  Context ctx{backend, compute};
  const auto times = network.prepare_times(ctx, {&hash_case.timestep, 1}, hash_case.guidance);
  const auto prompts = static_cast<int64_t>(hash_case.valid_rows.size());
  const Tensor x = unit_hash(hash_case.latent_name, {prompts, config.channels, hash_case.frames,
                                                     hash_case.height, hash_case.width});
  const Tensor text =
      unit_hash(hash_case.text_name, {prompts, hash_case.text_rows, config.text_dim});
  const Tensor pooled = unit_hash(hash_case.pooled_name, {prompts, config.pooled_dim});
  Tensor out(DType::f32,
             {prompts, config.channels, hash_case.frames, hash_case.height, hash_case.width});
  for (int64_t i = 0; i < prompts; ++i) {
    Engine engine(backend, policy);
    const auto prompt = network.prepare_prompt(
        ctx, {copy_of(element(text, i).slice(0, hash_case.valid_rows[static_cast<size_t>(i)])),
              copy_of(element(pooled, i))});
    network.forward(
        ctx, engine,
        {.site = Site{}, .x = element(x, i), .times = *times, .time = 0, .prompt = *prompt},
        nullptr, element(out, i));
  }
  return out;
}

}  // namespace lacuna
