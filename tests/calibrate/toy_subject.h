// SPDX-License-Identifier: Apache-2.0
// A network of attention layers small enough for calibration tests.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "lacuna/calibrate/subject.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna::test {

struct ToySizes {
  VideoGrid grid{3, 4, 6};
  int num_layers = 3, num_heads = 2, head_dim = 16, num_steps = 5, num_prompts = 2;
  int channels = 3, branches = 2, second_expert_from = 1 << 30;
};

// Stream x [tokens, width]; layer: x += attention of (x * wq, x * wk, x * wv), elementwise weights.
class ToySubject final : public Subject {
 public:
  explicit ToySubject(Backend& backend, ToySizes sizes = {}) : backend_(backend), sizes_(sizes) {
    target_.model = "toy";
    target_.fingerprint = "0123";
    target_.num_layers = sizes.num_layers;
    target_.num_heads = sizes.num_heads;
    target_.head_dim = sizes.head_dim;
    target_.grid = sizes.grid;
    for (int i = 0; i < sizes.num_steps; ++i)
      target_.sigmas.push_back(1.0 - static_cast<double>(i) / sizes.num_steps);
  }

  Backend& backend() override { return backend_; }
  const ProfileTarget& target() const override { return target_; }
  std::string describe() const override { return "toy " + std::to_string(sizes_.num_prompts); }
  int num_prompts() const override { return sizes_.num_prompts; }
  int num_experts() const override { return sizes_.second_expert_from < sizes_.num_steps ? 2 : 1; }
  int expert(int step) const override { return step >= sizes_.second_expert_from ? 1 : 0; }
  int branches() const override { return sizes_.branches; }
  std::array<int64_t, 4> latent_shape() const override {
    return {sizes_.channels, sizes_.grid.frames, sizes_.grid.height, sizes_.grid.width};
  }
  int64_t width() const { return int64_t{sizes_.num_heads} * sizes_.head_dim; }
  std::array<int64_t, 2> stream_shape() const override { return {tokens(), width()}; }

  void begin(int prompt) override {
    prompt_ = prompt;
    step_ = 0;
    x_ = Tensor(DType::f32, latent_shape());
    fill_hash("toy/" + std::to_string(prompt), 0.0, 1.7, {x_.as<float>(), size_t(x_.numel())});
  }
  NamedTensors state() const override { return {{"x", x_}}; }
  void restore(int prompt, int step, const NamedTensors& state) override {
    begin(prompt);
    step_ = step;
    LACUNA_CHECK(state.size() == 1 && state[0].first == "x", "toy: state of another subject");
    std::memcpy(x_.as<float>(), state[0].second.data, size_t(x_.numel()) * sizeof(float));
  }
  void run(Engine& engine, IndexRange layers, const TensorView& residual,
           const TensorView& velocity) override {
    const int64_t n = tokens(), d = width();
    float* r = residual.as<float>();
    if (layers.begin == 0)
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < d; ++c)
          r[i * d + c] = x_.as<float>()[c % sizes_.channels * n + i] +
                         float(0.3 * hash_uniform("embed", uint64_t(i * d + c)));
    for (int layer = layers.begin; layer < layers.end; ++layer) attend(engine, layer, residual);
    if (layers.end < sizes_.num_layers) return;
    for (int c = 0; c < sizes_.channels; ++c)
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0.0;
        for (int64_t j = 0; j < d; ++j)
          sum += r[i * d + j] * hash_uniform("head", uint64_t(c * d + j));
        velocity.as<float>()[c * n + i] = float(sum / double(d));
      }
  }
  void finish_step(Engine&, const TensorView& velocity) override {
    if (on_step) on_step();
    for (int64_t i = 0; i < x_.numel(); ++i) x_.as<float>()[i] -= 0.1f * velocity.as<float>()[i];
    ++step_;
  }

  int layers_run = 0;
  std::function<void()> on_layer, on_step;  // may throw: a stop

 private:
  int64_t tokens() const { return sizes_.grid.tokens(); }

  void attend(Engine& engine, int layer, const TensorView& residual) {
    ++layers_run;
    if (on_layer) on_layer();
    const int64_t n = tokens(), d = width();
    Tensor parts[4];
    for (int p = 0; p < 4; ++p) {
      parts[p] = Tensor(DType::f32, {n, d});
      const std::string name = "w" + std::to_string(layer) + "qkvo"[p];
      for (int64_t i = 0; i < n * d; ++i)
        parts[p].as<float>()[i] =
            residual.as<float>()[i] * float(1.2 + hash_uniform(name, uint64_t(i % d)));
    }
    const auto heads = [&](const Tensor& rows) {
      TensorView view = rows;
      view.rank = 3;
      view.shape = {sizes_.num_heads, n, sizes_.head_dim};
      view.stride = {sizes_.head_dim, d, 1};
      return view;
    };
    Site site;
    site.step = step_, site.num_steps = sizes_.num_steps, site.sigma = float(target_.sigmas[step_]);
    site.layer = layer, site.num_layers = sizes_.num_layers, site.expert = expert(step_);
    engine.attend(site, sizes_.grid, 0, heads(parts[0]), heads(parts[1]), heads(parts[2]),
                  heads(parts[3]));
    for (int64_t i = 0; i < n * d; ++i)
      residual.as<float>()[i] = 0.7f * residual.as<float>()[i] + 0.5f * parts[3].as<float>()[i];
  }

  Backend& backend_;
  ToySizes sizes_;
  ProfileTarget target_;
  Tensor x_;
  int prompt_ = 0, step_ = 0;
};

}  // namespace lacuna::test
