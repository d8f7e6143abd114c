// SPDX-License-Identifier: Apache-2.0
// Norms, rotary embedding and gated activation: one pass over memory each, rows in parallel.
#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "lacuna/backend/cpu/elements.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/backend/cpu/nn_math.h"
#include "lacuna/backend/network_check.h"
#include "lacuna/core/threads.h"

#define LACUNA_INLINE __attribute__((always_inline))

namespace lacuna::cpu {
namespace {

// Rows of one task: about 64 KiB of f32.
int64_t row_grain(int64_t channels) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(channels, 1));
}

template <typename T>
T* row_of(const TensorView& x, int64_t row) {
  return static_cast<T*>(x.data) + row * x.stride[0];
}

// The affine parameters of the norm and the modulation as one multiply-add.
struct Affine {
  std::vector<float> factor, offset;
};

Affine merge_affine(const float* weight, const float* bias, const float* scale, const float* shift,
                    int64_t d) {
  Affine a{std::vector<float>(static_cast<size_t>(d)), std::vector<float>(static_cast<size_t>(d))};
  for (int64_t c = 0; c < d; ++c) {
    const float s = scale != nullptr ? 1.0f + scale[c] : 1.0f;
    a.factor[c] = weight != nullptr ? weight[c] * s : s;
    a.offset[c] = (bias != nullptr ? bias[c] * s : 0.0f) + (shift != nullptr ? shift[c] : 0.0f);
  }
  return a;
}

template <typename Out>
void layer_norm_row(const float* x, const Affine& affine, float eps, int64_t d, Out* out) {
  const float mean = reduce_lanes(d, [&](int64_t c, int64_t lanes)
                                         LACUNA_INLINE { return load_lanes(x + c, lanes); }) /
                     static_cast<float>(d);
  const __m256 m = _mm256_set1_ps(mean);
  const float variance = reduce_lanes(d,
                                      [&](int64_t c, int64_t lanes) LACUNA_INLINE {
                                        const __m256 v = _mm256_sub_ps(load_lanes(x + c, lanes), m);
                                        return keep_lanes(_mm256_mul_ps(v, v), lanes);
                                      }) /
                         static_cast<float>(d);
  const __m256 inv = _mm256_set1_ps(1.0f / std::sqrt(variance + eps));
  for_lanes(d, [&](int64_t c, int64_t lanes) LACUNA_INLINE {
    const __m256 v = _mm256_mul_ps(_mm256_sub_ps(load_lanes(x + c, lanes), m), inv);
    const __m256 y = _mm256_fmadd_ps(v, load_lanes(affine.factor.data() + c, lanes),
                                     load_lanes(affine.offset.data() + c, lanes));
    store_lanes(out + c, y, lanes);
  });
}

template <typename X>
float sum_of_squares(const X* x, int64_t d) {
  return reduce_lanes(d, [&](int64_t c, int64_t lanes) LACUNA_INLINE {
    const __m256 v = load_lanes(x + c, lanes);
    return _mm256_mul_ps(v, v);
  });
}

// cos and +-sin of one token, spread so that a rotation is x * cos + swapped(x) * sin: for one
// head, or for all where heads turn differently.
class TokenRope {
 public:
  TokenRope(const RopeTables& tables, int64_t head_dim, int64_t channels)
      : tables_(tables),
        head_stride_(tables.summed ? head_dim : 0),
        cos_(static_cast<size_t>(tables.summed ? channels : head_dim)),
        sin_(cos_.size()) {
    if (tables.summed) line_cos_.resize(cos_.size() / 2), line_sin_.resize(cos_.size() / 2);
  }

  void move_to(int64_t token) {
    const RopeTables& t = tables_;
    const int64_t column = token % t.width, line = token / t.width % t.height;
    const int64_t frame = token / (t.width * t.height);
    if (t.summed) return sum_up(frame, line, column);
    if (frame != frame_) spread(t.cos_frames, t.sin_frames, frame, 0, t.pairs_frames);
    if (line != line_) spread(t.cos_height, t.sin_height, line, t.pairs_frames, t.pairs_height);
    spread(t.cos_width, t.sin_width, column, t.pairs_frames + t.pairs_height, t.pairs_width);
    frame_ = frame;
    line_ = line;
  }
  const float* cos(int64_t head) const { return cos_.data() + head * head_stride_; }
  const float* sin(int64_t head) const { return sin_.data() + head * head_stride_; }

 private:
  // (cos + i sin) of frame and line, kept for the line, then of the column.
  void sum_up(int64_t frame, int64_t line, int64_t column) {
    const RopeTables& t = tables_;
    const auto pairs = static_cast<int64_t>(line_cos_.size());
    if (frame != frame_ || line != line_) {
      multiply(t.cos_frames + frame * pairs, t.sin_frames + frame * pairs,
               t.cos_height + line * pairs, t.sin_height + line * pairs,
               [&](int64_t i, int64_t lanes, __m256 c, __m256 s) LACUNA_INLINE {
                 store_lanes(line_cos_.data() + i, c, lanes);
                 store_lanes(line_sin_.data() + i, s, lanes);
               });
      frame_ = frame;
      line_ = line;
    }
    const __m256 signs = _mm256_setr_ps(-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f);
    multiply(line_cos_.data(), line_sin_.data(), t.cos_width + column * pairs,
             t.sin_width + column * pairs,
             [&](int64_t i, int64_t lanes, __m256 c, __m256 s) LACUNA_INLINE {
               store_twice(cos_.data() + 2 * i, c, lanes, _mm256_setzero_ps());
               store_twice(sin_.data() + 2 * i, s, lanes, signs);
             });
  }

  // Products of the complex numbers (cos, sin) of two positions, one for each pair of the row.
  template <typename Store>
  void multiply(const float* cos_a, const float* sin_a, const float* cos_b, const float* sin_b,
                const Store& store) const {
    for_lanes(static_cast<int64_t>(line_cos_.size()), [&](int64_t i, int64_t lanes) LACUNA_INLINE {
      const __m256 ca = load_lanes(cos_a + i, lanes), sa = load_lanes(sin_a + i, lanes);
      const __m256 cb = load_lanes(cos_b + i, lanes), sb = load_lanes(sin_b + i, lanes);
      store(i, lanes, _mm256_fmsub_ps(ca, cb, _mm256_mul_ps(sa, sb)),
            _mm256_fmadd_ps(sa, cb, _mm256_mul_ps(ca, sb)));
    });
  }

  // x[0], x[0], x[1], x[1], ... with signs flipped where `signs` has -0.
  static void store_twice(float* p, __m256 x, int64_t lanes, __m256 signs) {
    const __m256i first = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const __m256i last = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    store_lanes(p, _mm256_xor_ps(_mm256_permutevar8x32_ps(x, first), signs), 2 * lanes);
    if (lanes > 4)
      store_lanes(p + 8, _mm256_xor_ps(_mm256_permutevar8x32_ps(x, last), signs), 2 * lanes - 8);
  }

  void spread(const float* cos, const float* sin, int64_t position, int64_t first, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float c = cos[position * pairs + i], s = sin[position * pairs + i];
      cos_[2 * (first + i)] = cos_[2 * (first + i) + 1] = c;
      sin_[2 * (first + i)] = -s;
      sin_[2 * (first + i) + 1] = s;
    }
  }

  const RopeTables& tables_;
  const int64_t head_stride_;
  std::vector<float> cos_, sin_;
  std::vector<float> line_cos_, line_sin_;  // summed: of the frame and line at hand, by pair
  int64_t frame_ = -1, line_ = -1;
};

template <typename X, typename Out>
void scale_row(const X* x, const float* weight, float factor, int64_t d, Out* out) {
  const __m256 f = _mm256_set1_ps(factor);
  for_lanes(d, [&](int64_t c, int64_t lanes) LACUNA_INLINE {
    const __m256 v = _mm256_mul_ps(load_lanes(x + c, lanes), f);
    store_lanes(out + c, _mm256_mul_ps(v, load_lanes(weight + c, lanes)), lanes);
  });
}

// One head.
template <typename X, typename Out>
void scale_rotate_head(const X* x, const float* weight, float factor, const float* cos,
                       const float* sin, int64_t head_dim, Out* out) {
  const __m256 f = _mm256_set1_ps(factor);
  for_lanes(head_dim, [&](int64_t c, int64_t lanes) LACUNA_INLINE {
    const __m256 v =
        _mm256_mul_ps(_mm256_mul_ps(load_lanes(x + c, lanes), f), load_lanes(weight + c, lanes));
    const __m256 swapped = _mm256_permute_ps(v, 0xb1);
    const __m256 y = _mm256_fmadd_ps(v, load_lanes(cos + c, lanes),
                                     _mm256_mul_ps(swapped, load_lanes(sin + c, lanes)));
    store_lanes(out + c, y, lanes);
  });
}

template <typename X>
float rms_factor(const X* x, int64_t n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
}

template <typename X, typename Out>
void rms_norm_rows(const TensorView& x, const float* weight, float eps, NormSpan span,
                   const RopeTables* rope, int64_t num_heads, const TensorView& out) {
  const int64_t d = x.shape[1];
  const bool by_head = span == NormSpan::head;
  const int64_t head_dim = by_head || rope != nullptr ? d / num_heads : d;
  // The angles of a line take as long to sum up as those of a token, and serve all of its tokens.
  const int64_t grain = rope != nullptr && rope->summed ? 8 * row_grain(d) : row_grain(d);
  parallel_ranges(x.shape[0], grain, [&](int64_t begin, int64_t end) {
    std::optional<TokenRope> token;
    if (rope != nullptr) token.emplace(*rope, head_dim, d);
    for (int64_t i = begin; i < end; ++i) {
      const X* from = row_of<X>(x, i);
      Out* to = row_of<Out>(out, i);
      float factor = by_head ? 0.0f : rms_factor(from, d, eps);
      if (token) token->move_to(i);
      for (int64_t head = 0, c = 0; c < d; ++head, c += head_dim) {
        if (by_head) factor = rms_factor(from + c, head_dim, eps);
        const float* w = by_head ? weight : weight + c;
        if (token) {
          scale_rotate_head(from + c, w, factor, token->cos(head), token->sin(head), head_dim,
                            to + c);
        } else {
          scale_row(from + c, w, factor, head_dim, to + c);
        }
      }
    }
  });
}

// Rows of a tensor of any rank whose channels are contiguous; index over all other dimensions.
struct AnyRows {
  const TensorView& x;

  int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int i = x.rank - 2; i >= 0; --i) {
      at += row % x.shape[i] * x.stride[i];
      row /= x.shape[i];
    }
    return at;
  }
};

template <typename T>
void channel_norm_row(const T* x, const float* gamma, bool silu, int64_t c, T* out) {
  const float norm = std::max(std::sqrt(sum_of_squares(x, c)), 1e-12f);
  const __m256 f = _mm256_set1_ps(std::sqrt(static_cast<float>(c)) / norm);
  const auto scaled = [&](int64_t i, int64_t lanes) LACUNA_INLINE {
    return _mm256_mul_ps(_mm256_mul_ps(load_lanes(x + i, lanes), f), load_lanes(gamma + i, lanes));
  };
  if (silu) {
    for_lanes(c, [&](int64_t i, int64_t lanes)
                     LACUNA_INLINE { store_lanes(out + i, silu8(scaled(i, lanes)), lanes); });
  } else {
    for_lanes(c, [&](int64_t i, int64_t lanes)
                     LACUNA_INLINE { store_lanes(out + i, scaled(i, lanes), lanes); });
  }
}

}  // namespace

void layer_norm(const TensorView& x, const float* weight, const float* bias, const float* scale,
                const float* shift, float eps, const TensorView& out) {
  check_layer_norm(Reach::host, x, out);
  const int64_t d = x.shape[1];
  if (x.numel() == 0) return;
  const Affine affine = merge_affine(weight, bias, scale, shift, d);
  with_type(out.dtype, [&](auto* type) {
    using Out = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(x.shape[0], row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        layer_norm_row(row_of<float>(x, i), affine, eps, d, row_of<Out>(out, i));
    });
  });
}

void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out) {
  check_rms_norm(Reach::host, x, weight, span, rope, num_heads, out);
  if (x.numel() == 0) return;
  with_type(x.dtype, [&](auto* x_type) {
    with_type(out.dtype, [&](auto* out_type) {
      rms_norm_rows<std::remove_pointer_t<decltype(x_type)>,
                    std::remove_pointer_t<decltype(out_type)>>(x, weight, eps, span, rope,
                                                               num_heads, out);
    });
  });
}

void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                   const TensorView& out) {
  check_gated_product(Reach::host, activation, gate, up, out);
  for (const TensorView* t : {&gate, &up, &out}) check_channels("gated_product", *t);
  if (gate.numel() == 0) return;
  const int64_t d = gate.shape[gate.rank - 1];
  with_type(gate.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(gate.numel() / d, row_grain(d), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* g = static_cast<const T*>(gate.data) + AnyRows{gate}.offset(row);
        const T* u = static_cast<const T*>(up.data) + AnyRows{up}.offset(row);
        T* o = static_cast<T*>(out.data) + AnyRows{out}.offset(row);
        const auto multiply = [&](auto activate) LACUNA_INLINE {
          for_lanes(d, [&](int64_t c, int64_t lanes) LACUNA_INLINE {
            const __m256 y = activate(load_lanes(g + c, lanes));
            store_lanes(o + c, _mm256_mul_ps(y, load_lanes(u + c, lanes)), lanes);
          });
        };
        if (activation == Epilogue::silu) {
          multiply([](__m256 v) LACUNA_INLINE { return silu8(v); });
        } else {
          multiply([](__m256 v) LACUNA_INLINE { return gelu_tanh8(v); });
        }
      }
    });
  });
}

void channel_norm(const TensorView& x, const float* gamma, bool silu, const TensorView& out) {
  check_channel_norm(Reach::host, x, gamma, out);
  if (x.numel() == 0) return;
  const int64_t c = x.shape[x.rank - 1];
  with_type(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_ranges(x.numel() / c, row_grain(c), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        channel_norm_row(static_cast<const T*>(x.data) + i * c, gamma, silu, c,
                         static_cast<T*>(out.data) + i * c);
    });
  });
}

}  // namespace lacuna::cpu
