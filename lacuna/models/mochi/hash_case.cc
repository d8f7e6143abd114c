// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/mochi/hash_case.h"

#include <cstring>
#include <numbers>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/mochi/dit.h"

namespace lacuna {
namespace {

// Sample `index` of the tensor `name`, whose samples have this shape.
Tensor hash_sample(const std::string& name, size_t index, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  const auto values = static_cast<size_t>(tensor.numel());
  fill_hash(name, 0.0, std::numbers::sqrt3, {tensor.as<float>(), values}, index * values);
  return tensor;
}

}  // namespace

MochiConfig golden_mochi_config() {
  MochiConfig config;
  config.num_layers = 3;
  config.num_heads = 2;
  config.head_dim = 16;
  config.text_width = 24;
  config.text_dim = 32;
  config.text_len = 16;
  config.freq_dim = 64;
  return config;
}

Tensor run_hash_case(Backend& backend, DType compute, const MochiHashCase& hash_case,
                     const Policy& policy) {
  const MochiConfig& config = hash_case.config;
  const int64_t frames = hash_case.frames, height = hash_case.height, width = hash_case.width;
  const auto source = hash_weights(hash_case.weights, hash_case.storage);
  WeightReader reader(*source);
  const MochiDit dit(config, reader);
  Context ctx{backend, compute};
  const auto times = dit.prepare_times(ctx, {&hash_case.timestep, 1}, 1.0);
  const auto samples = static_cast<int64_t>(hash_case.valid.size());
  Tensor result(DType::f32, {samples, config.out_channels, frames, height, width});
  for (size_t i = 0; i < hash_case.valid.size(); ++i) {
    const int64_t valid = hash_case.valid[i];
    LACUNA_CHECK(valid >= 0 && valid <= hash_case.text_rows,
                 "mochi: {} valid text rows of {}, expected 0 to all", valid, hash_case.text_rows);
    const Tensor text = hash_sample(hash_case.text_name, i, {hash_case.text_rows, config.text_dim});
    PromptEmbedding embedding;
    if (valid > 0) embedding.tokens = copy_of(text.view().slice(0, valid));
    const auto prompt = dit.prepare_prompt(ctx, embedding);
    const Tensor x =
        hash_sample(hash_case.latent_name, i, {config.in_channels, frames, height, width});
    Engine engine(backend, policy);
    const auto sample = static_cast<int64_t>(i);
    dit.forward(ctx, engine, {Site{}, x, *times, 0, {}, *prompt}, nullptr,
                result.view()
                    .slice(sample, sample + 1)
                    .reshape({config.out_channels, frames, height, width}));
  }
  return result;
}

}  // namespace lacuna
