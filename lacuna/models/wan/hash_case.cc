// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/hash_case.h"

#include <numbers>

#include "lacuna/core/rng.h"
#include "lacuna/engine/engine.h"

namespace lacuna {

WanConfig golden_wan_config() {
  WanConfig config;
  config.num_layers = 3;
  config.num_heads = 2;
  config.head_dim = 64;
  config.ffn_dim = 320;
  config.text_dim = 96;
  return config;
}

std::vector<WanHashCase> golden_wan_cases() {
  WanHashCase scalar;
  scalar.tag = "wan-t837";
  scalar.config = golden_wan_config();
  scalar.latent_name = "x:wan";
  scalar.frames = 3;
  scalar.height = 8;
  scalar.width = 12;
  scalar.text_name = "ctx:wan";
  scalar.text_rows = scalar.text_len = 20;
  scalar.times = {{72, 837.0}};
  WanHashCase per_token = scalar;
  per_token.tag = "wan-ti2v";
  per_token.times = {{24, 0.0}, {48, 500.0}};
  return {scalar, per_token};
}

Tensor hash_input(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, std::numbers::sqrt3,
            {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

Tensor run_hash_case(Backend& backend, DType compute, const WanHashCase& hash_case,
                     const WanTap* tap, const Policy& policy) {
  const WanConfig& config = hash_case.config;
  const auto source = hash_weights(hash_case.weights, hash_case.storage);
  WeightReader reader(*source);
  const WanDit dit(config, reader);
  Context ctx{backend, compute};
  Engine engine(backend, policy);

  std::vector<double> timesteps;
  for (const WanHashCase::Range& range : hash_case.times) timesteps.push_back(range.timestep);
  const std::vector<TimeEmbedding> embeddings = dit.embed_times(ctx, timesteps, tap);
  std::vector<TokenTime> times;
  int64_t begin = 0;
  for (size_t i = 0; i < embeddings.size(); ++i) {
    const int64_t end = begin + hash_case.times[i].tokens;
    times.push_back({begin, end, &embeddings[i]});
    begin = end;
  }

  const Tensor context = hash_input(hash_case.text_name, {hash_case.text_rows, config.text_dim});
  PreparedText text = dit.prepare_text(ctx, context, hash_case.text_len, tap);
  if (config.image_dim > 0)
    dit.prepare_image(
        ctx, hash_input(hash_case.image_name, {hash_case.image_rows, config.image_dim}), text, tap);
  const Tensor x = hash_input(hash_case.latent_name, {config.in_channels, hash_case.frames,
                                                      hash_case.height, hash_case.width});
  Tensor out(DType::f32,
             {config.out_channels, hash_case.frames, hash_case.height, hash_case.width});
  dit.forward(ctx, engine, Site{}, x, times, text, out, tap);
  return out;
}

}  // namespace lacuna
