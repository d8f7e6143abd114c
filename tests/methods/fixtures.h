// SPDX-License-Identifier: Apache-2.0
// Inputs with the structure of video attention, and one-line selection, for method and engine
// tests.
#pragma once

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

inline Selection select(const Method& method, const Params& params, const Input& in,
                        Backend& backend, std::vector<int32_t> heads = {},
                        const Selection* fixed = nullptr) {
  if (heads.empty()) heads = all_heads(in.shape.num_heads);
  Workspace workspace;
  const float sm_scale = 1.0f / std::sqrt(static_cast<float>(in.shape.head_dim));
  const SelectArgs args{backend, workspace, Site{}, in.shape.grid, in.shape.text_tokens,
                        in.q,    in.k,      in.v,   heads,         sm_scale,
                        params,  fixed};
  const std::unique_ptr<State> state = method.make_state();
  return method.select(args, state.get());
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

// Text of the Error that `body` throws; "" when it throws none.
template <typename Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace lacuna::test
