// SPDX-License-Identifier: Apache-2.0
// Shared by the tests of the HunyuanVideo transformer.
#pragma once

#include <cmath>
#include <memory>
#include <numbers>
#include <string>
#include <utility>

#include "lacuna/backend/backend.h"
#include "lacuna/core/rng.h"
#include "lacuna/engine/engine.h"
#include "lacuna/models/hunyuan/dit.h"
#include "lacuna/models/hunyuan/hash_case.h"
#include "lacuna/models/weights.h"

namespace lacuna::testing {

inline Tensor unit(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, std::numbers::sqrt3,
            {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

inline Policy one_plan(const char* plan) {
  Policy policy;
  if (plan != nullptr) policy.add({{}, parse_plan(plan), {}});
  return policy;
}

// A network with hash weights, a prompt and a latent of 3 x 4 x 6 tokens.
struct Network {
  explicit Network(Backend& backend, DType compute = DType::f32, const char* plan = nullptr,
                   HunyuanConfig model = golden_hunyuan_config(), DType storage = DType::f32,
                   int64_t words = 11)
      : config(model),
        source(hash_weights("w:", storage)),
        reader(*source),
        transformer(HunyuanArchitecture(model).load(reader)),
        constant(backend, transformer->weights()),
        ctx{backend, compute},
        engine(backend, one_plan(plan)),
        x(unit("x:hy", {model.channels, 3, 8, 12})) {
    const double timestep = 500.0;
    times = transformer->prepare_times(ctx, {&timestep, 1}, 6.0);
    prompt = prepare(words);
  }
  std::unique_ptr<VideoTransformer::Prompt> prepare(int64_t words) {
    PromptEmbedding text;
    text.tokens = unit("ctx:hy", {words, config.text_dim});
    text.pooled = unit("pool:hy", {config.pooled_dim});
    return transformer->prepare_prompt(ctx, text);
  }
  VideoTransformer::Input input() const {
    return {.site = Site{.num_steps = 1}, .x = x, .times = *times, .time = 0, .prompt = *prompt};
  }
  Tensor run() {
    Tensor out(DType::f32, {config.channels, 3, 8, 12});
    transformer->forward(ctx, engine, input(), nullptr, out);
    return out;
  }

  HunyuanConfig config;
  std::unique_ptr<WeightSource> source;
  WeightReader reader;
  std::unique_ptr<VideoTransformer> transformer;
  ConstantWeights constant;
  Context ctx;
  Engine engine;
  Tensor x;
  std::unique_ptr<VideoTransformer::Times> times;
  std::unique_ptr<VideoTransformer::Prompt> prompt;
};

}  // namespace lacuna::testing
