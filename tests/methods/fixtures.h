// SPDX-License-Identifier: Apache-2.0
// Inputs with the structure of video attention, and one-line selection, for method and engine
// tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/workspace.h"
#include "lacuna/methods/method.h"
#include "tests/support/error_of.h"

namespace lacuna::test {

struct Shape {
  VideoGrid grid;
  int64_t text_tokens = 0;
  int64_t num_heads = 2;
  int64_t head_dim = 32;
  int64_t seq_len() const { return grid.tokens() + text_tokens; }
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.grid.frames << "x" << s.grid.height << "x" << s.grid.width << "+" << s.text_tokens
             << " tokens, " << s.num_heads << " heads";
}

struct Input {
  Shape shape;
  Tensor q, k, v, out;
};

// q and k see the same plane waves over the grid, so near tokens attend to each other, plus noise;
// each head has its own wave lengths. Text tokens are noise. A pure function of its arguments.
inline Input make_input(const Shape& shape, const std::string& seed = "input", double noise = 0.3) {
  const int64_t h = shape.num_heads, n = shape.seq_len(), d = shape.head_dim;
  Input in{shape, Tensor(DType::f32, {h, n, d}), Tensor(DType::f32, {h, n, d}),
           Tensor(DType::f32, {h, n, d}), Tensor::zeros(DType::f32, {h, n, d})};
  const auto fill = [&](const char* name, const Tensor& x, double amplitude) {
    float* at = x.as<float>();
    uint64_t i = 0;
    for (int64_t head = 0; head < h; ++head)
      for (int64_t token = 0; token < n; ++token)
        for (int64_t c = 0; c < d; ++c, ++i) {
          double value = noise * hash_uniform(seed + name, i);
          if (token < shape.grid.tokens()) {
            const auto wave = static_cast<uint64_t>((head * d + c) * 4);
            const int64_t column = token % shape.grid.width;
            const int64_t row = token / shape.grid.width % shape.grid.height;
            const int64_t frame = token / shape.grid.tokens_per_frame();
            value += amplitude * std::cos(3.0 * hash_uniform(seed, wave) +
                                          0.5 * hash_uniform(seed, wave + 1) * column +
                                          0.5 * hash_uniform(seed, wave + 2) * row +
                                          0.5 * hash_uniform(seed, wave + 3) * frame);
          }
          at[i] = static_cast<float>(value);
        }
  };
  fill("q", in.q, 1.0);
  fill("k", in.k, 1.5);
  fill("v", in.v, 1.0);
  return in;
}

// Weights per head and block. q = (sqrt(d), 0, ...) everywhere and k = (ln w_b, 0, ...) in block b,
// so every scaled logit of block b is ln w_b and its mass is w_b / sum(w).
using Weights = std::vector<std::vector<double>>;
inline Input weighted_blocks(const Weights& weights, int64_t block) {
  Shape shape{{1, 1, block * static_cast<int64_t>(weights[0].size())}};
  shape.num_heads = static_cast<int64_t>(weights.size());
  Input in = make_input(shape);
  const int64_t n = shape.seq_len(), d = shape.head_dim;
  std::fill_n(in.q.as<float>(), in.q.numel(), 0.0f);
  std::fill_n(in.k.as<float>(), in.k.numel(), 0.0f);
  for (int64_t h = 0; h < shape.num_heads; ++h)
    for (int64_t t = 0; t < n; ++t) {
      in.q.as<float>()[(h * n + t) * d] = std::sqrt(static_cast<float>(d));
      in.k.as<float>()[(h * n + t) * d] = static_cast<float>(std::log(weights[h][t / block]));
    }
  return in;
}

inline std::vector<int32_t> all_heads(int64_t num_heads) {
  std::vector<int32_t> heads(static_cast<size_t>(num_heads));
  std::iota(heads.begin(), heads.end(), 0);
  return heads;
}

inline Params params_of(const Method& method,
                        std::initializer_list<std::pair<const char*, double>> values = {}) {
  Params params(method.specs());
  for (const auto& [name, value] : values) params.set(name, value);
  return params;
}

// One method at one site over several steps. Looks are served as the engine serves them: a dense
// call of all heads, shown to the method, and the selection of the next call.
class Steps {
 public:
  Steps(const Method& method, Params params, Backend& backend, const Selection* fixed = nullptr)
      : method_(method), params_(std::move(params)), backend_(backend), fixed_(fixed) {}

  Selection select(const Input& in, std::vector<int32_t> heads = {}) {
    const std::vector<int32_t> all = all_heads(in.shape.num_heads);
    const float sm_scale = 1.0f / std::sqrt(static_cast<float>(in.shape.head_dim));
    SelectArgs args{backend_, workspace_, Site{}, in.shape.grid, in.shape.text_tokens,
                    in.q,     in.k,       in.v,   all,           sm_scale,
                    params_,  fixed_};
    if (!heads.empty()) args.head_ids = heads;
    Selection selection = method_.select(args, state_.get());
    if (!selection.provisional) return selection;
    ++looks;
    args.head_ids = all;
    look(args, selection);
    if (!heads.empty()) args.head_ids = heads;
    return method_.select(args, state_.get());
  }

  State* state() { return state_.get(); }

  int looks = 0;
  std::vector<float> mass, lse;  // of the last look

 private:
  void look(const SelectArgs& args, const Selection& selection) {
    const int64_t heads = args.q.shape[0], n = args.seq_len(), d = args.q.shape[2];
    const int64_t blocks = selection.q_layout.num_blocks;
    std::vector<float> out(static_cast<size_t>(heads * n * d));
    mass.resize(static_cast<size_t>(heads * blocks * blocks));
    lse.resize(static_cast<size_t>(heads * n));
    AttendParams p;
    p.q = args.q.data, p.k = args.k.data, p.v = args.v.data, p.out = out.data();
    p.q_head_stride = p.k_head_stride = p.v_head_stride = p.out_head_stride = n * d;
    p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = d;
    p.num_heads = static_cast<int32_t>(heads);
    p.q_len = p.k_len = n;
    p.head_dim = static_cast<int32_t>(d);
    p.sm_scale = args.sm_scale;
    p.block_q = p.block_k = selection.q_layout.block;
    p.num_q_blocks = p.num_k_blocks = static_cast<int32_t>(blocks);
    p.lse = lse.data(), p.block_mass = mass.data();
    backend_.attend(p);
    Observation seen{args.site, args.head_ids, &args};
    seen.lse = lse.data();
    seen.block_mass = mass.data();
    method_.observe(seen, state_.get());
  }

  const Method& method_;
  const Params params_;
  Backend& backend_;
  const Selection* fixed_;
  Workspace workspace_{backend_};
  const std::unique_ptr<State> state_ = method_.make_state();
};

inline Selection select(const Method& method, const Params& params, const Input& in,
                        Backend& backend, std::vector<int32_t> heads = {},
                        const Selection* fixed = nullptr) {
  return Steps(method, params, backend, fixed).select(in, std::move(heads));
}

// Selection without data: for methods whose mask follows from the grid.
inline Selection select_static(const char* name, const Params& params, const Shape& shape,
                               std::vector<int32_t> heads = {}) {
  const std::unique_ptr<Backend> backend = make_backend("ref");
  return select(find_method(name), params, make_input(shape), *backend, std::move(heads));
}

// One string per query block: '#' kept, '.' dropped.
inline std::vector<std::string> picture(const BlockMask& mask, int64_t head = 0) {
  std::vector<std::string> rows;
  for (int32_t qb = 0; qb < mask.num_q_blocks(); ++qb) {
    rows.emplace_back();
    for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb)
      rows.back() += mask.get(head, qb, kb) ? '#' : '.';
  }
  return rows;
}

using Picture = std::vector<std::string>;

}  // namespace lacuna::test
