// SPDX-License-Identifier: Apache-2.0
// Shared by the tests of the Mochi transformer.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/rng.h"
#include "lacuna/models/mochi/dit.h"
#include "lacuna/models/mochi/hash_case.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"
#include "tests/support/repository.h"

namespace lacuna::testing {

using test::error_of;

// A case of assets/goldens/joint.json with the numbers that upstream's module gave in f32.
struct Golden {
  MochiHashCase hash_case;
  nlohmann::json expect;
};

inline std::vector<Golden> mochi_goldens() {
  std::ifstream file(test::assets() / "goldens/joint.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  std::vector<Golden> goldens;
  for (const nlohmann::json& item : json.at("cases")) {
    if (item.at("module") != "mochi_dit") continue;
    const nlohmann::json &x = item.at("inputs").at("x"), &text = item.at("inputs").at("context");
    MochiHashCase c;
    c.tag = item.at("name");
    c.config = mochi_config_from_json(item.at("config").dump(), c.tag);
    c.latent_name = x.at("hash");
    c.frames = x.at("shape")[2], c.height = x.at("shape")[3], c.width = x.at("shape")[4];
    c.text_name = text.at("hash");
    c.text_rows = text.at("shape")[1];
    c.valid = text.at("valid_rows").get<std::vector<int64_t>>();
    c.timestep = item.at("inputs").at("timestep");
    goldens.push_back({c, item.at("expect")});
  }
  return goldens;
}

inline void expect_golden(const TensorView& result, const Golden& golden) {
  SCOPED_TRACE(golden.hash_case.tag);
  const auto* y = result.as<float>();
  const int64_t n = result.numel();
  ASSERT_EQ(golden.expect.at("shape").get<std::vector<int64_t>>(),
            std::vector<int64_t>(result.shape.begin(), result.shape.begin() + result.rank));
  double squares = 0.0, probe = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    squares += static_cast<double>(y[i]) * y[i];
    probe += y[i] * hash_uniform("probe:" + golden.hash_case.tag, static_cast<uint64_t>(i));
  }
  const auto count = static_cast<double>(n);
  const double rms = golden.expect.at("rms");
  EXPECT_NEAR(std::sqrt(squares / count), rms, 1e-5 * rms);
  EXPECT_NEAR(probe, golden.expect.at("probe").get<double>(), 2e-5 * rms * std::sqrt(count));
  for (const auto& [index, value] : golden.expect.at("values").items())
    EXPECT_NEAR(y[std::stoll(index)], value.get<double>(),
                2e-5 * (1.0 + std::abs(value.get<double>())))
        << "element " << index;
}

inline std::map<std::string, std::vector<int64_t>> tensors_of(const MochiConfig& config) {
  Recorder recorder;
  WeightReader reader(recorder);
  const MochiDit dit(config, reader);
  return recorder.asked;
}

inline Tensor hash_values(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, std::sqrt(3.0), {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

inline bool equal_bytes(const TensorView& a, const TensorView& b) {
  return a.describe() == b.describe() &&
         std::memcmp(a.data, b.data, static_cast<size_t>(storage_bytes(a.dtype, a.numel()))) == 0;
}

// What a test needs to run the golden network its own way, at 3 x 4 x 6 tokens.
struct Fixture {
  explicit Fixture(Backend& backend, Policy policy = {}, DType compute = DType::f32,
                   DType storage = DType::f32)
      : source(hash_weights("w:", storage)),
        reader(*source),
        dit(golden_mochi_config(), reader),
        ctx{backend, compute},
        engine(backend, std::move(policy)) {
    const double timesteps[] = {300.0, 700.0};
    times = dit.prepare_times(ctx, timesteps, 1.0);
    prompt = prepare(11);
  }
  // The prompt of so many tokens.
  std::unique_ptr<VideoTransformer::Prompt> prepare(int64_t tokens) {
    PromptEmbedding embedding;
    if (tokens > 0) embedding.tokens = hash_values("ctx:test", {tokens, 32});
    return dit.prepare_prompt(ctx, embedding);
  }
  VideoTransformer::Input input() { return {Site{}, x, *times, 1, {}, *prompt}; }
  Tensor run(const LayerPart* part = nullptr) {
    Tensor velocity = Tensor::zeros(DType::f32, {12, 3, 8, 12});
    dit.forward(ctx, engine, input(), part, velocity);
    return velocity;
  }

  std::unique_ptr<WeightSource> source;
  WeightReader reader;
  MochiDit dit;
  Context ctx;
  Engine engine;
  Tensor x = hash_values("x:test", {12, 3, 8, 12});
  std::unique_ptr<VideoTransformer::Times> times;
  std::unique_ptr<VideoTransformer::Prompt> prompt;
};

}  // namespace lacuna::testing
