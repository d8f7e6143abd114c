// SPDX-License-Identifier: Apache-2.0
// Network operations of the reference against formulas written out here.
#include <gtest/gtest.h>

#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/compare.h"
#include "tests/support/rows.h"

namespace lacuna::test {
namespace {

class RefNn : public testing::TestWithParam<DType> {
 protected:
  std::unique_ptr<Backend> backend_ = make_ref_backend();
};

double naive_gelu(double x) {
  return x /
         (1.0 + std::exp(-2.0 * std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

TEST_P(RefNn, LinearWithEveryEpilogue) {
  const Rows x(GetParam(), 5, 19, 3, 1), w(GetParam(), 7, 19, 2, 2);
  const std::vector<float> bias = random_floats(7, 3), gate = random_floats(7, 4);
  const std::vector<double> xs = values(x.view), ws = values(w.view);
  for (Epilogue epilogue :
       {Epilogue::none, Epilogue::gelu_tanh, Epilogue::silu, Epilogue::residual})
    for (bool with_bias : {false, true})
      for (bool with_gate : {false, true}) {
        const DType out_type = epilogue == Epilogue::residual ? DType::f32 : GetParam();
        const Rows out(out_type, 5, 7, 4, 5);
        std::vector<double> expected = values(out.view);
        for (int64_t i = 0; i < 5; ++i)
          for (int64_t j = 0; j < 7; ++j) {
            double y = with_bias ? bias[j] : 0.0;
            for (int64_t c = 0; c < 19; ++c) y += xs[i * 19 + c] * ws[j * 19 + c];
            double& e = expected[i * 7 + j];
            if (epilogue == Epilogue::none) e = y;
            if (epilogue == Epilogue::gelu_tanh) e = naive_gelu(y);
            if (epilogue == Epilogue::silu) e = y / (1.0 + std::exp(-y));
            if (epilogue == Epilogue::residual) e += (with_gate ? gate[j] : 1.0) * y;
          }
        backend_->linear(x.view, w.view, with_bias ? bias.data() : nullptr, epilogue,
                         with_gate ? gate.data() : nullptr, out.view);
        const int64_t shape[] = {5, 7};
        EXPECT_TRUE(close(values(out.view), expected, rounding(out_type), shape,
                          fmt::format("epilogue {}", static_cast<int>(epilogue))));
      }
}

TEST_P(RefNn, LinearRefusesMismatches) {
  const Tensor x = random_tensor(GetParam(), {2, 3}, 1), w = random_tensor(GetParam(), {4, 3}, 2);
  const Tensor wrong = random_tensor(GetParam(), {4, 5}, 2), out(GetParam(), {2, 4});
  EXPECT_THROW(backend_->linear(x, wrong, nullptr, Epilogue::none, nullptr, out), Error);
  EXPECT_THROW(backend_->linear(x, w, nullptr, Epilogue::none, nullptr, x), Error);
  if (GetParam() == DType::bf16) {
    EXPECT_THROW(backend_->linear(x, w, nullptr, Epilogue::residual, nullptr, out), Error);
  }
}

TEST_P(RefNn, LayerNormWithEveryMixOfParameters) {
  const int64_t m = 4, d = 11;
  const Tensor x = random_tensor(DType::f32, {m, d}, 1, 3.0, 5.0), out(GetParam(), {m, d});
  const std::vector<float> weight = random_floats(d, 2), bias = random_floats(d, 3),
                           scale = random_floats(d, 4), shift = random_floats(d, 5);
  for (int mix = 0; mix < 16; ++mix) {
    const auto use = [&](int bit, const std::vector<float>& v) {
      return (mix >> bit) & 1 ? v.data() : nullptr;
    };
    const float *w = use(0, weight), *b = use(1, bias), *s = use(2, scale), *t = use(3, shift);
    std::vector<double> expected(static_cast<size_t>(m * d));
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0.0, squares = 0.0;
      for (int64_t c = 0; c < d; ++c) sum += x.as<float>()[i * d + c];
      for (int64_t c = 0; c < d; ++c) squares += std::pow(x.as<float>()[i * d + c] - sum / d, 2);
      for (int64_t c = 0; c < d; ++c) {
        const double n = (x.as<float>()[i * d + c] - sum / d) / std::sqrt(squares / d + 1e-3f);
        expected[i * d + c] =
            (n * (w ? w[c] : 1) + (b ? b[c] : 0)) * (1 + (s ? double{s[c]} : 0)) + (t ? t[c] : 0);
      }
    }
    backend_->layer_norm(x, w, b, s, t, 1e-3f, out);
    const int64_t shape[] = {m, d};
    EXPECT_TRUE(
        close(values(out), expected, rounding(GetParam()), shape, fmt::format("mix {}", mix)));
  }
}

TEST_P(RefNn, RmsNormInPlace) {
  const int64_t m = 3, d = 10;
  const Tensor x = random_tensor(GetParam(), {m, d}, 1, 2.0);
  const std::vector<float> weight = random_floats(d, 2);
  std::vector<double> expected = values(x);
  for (int64_t i = 0; i < m; ++i) {
    double squares = 0.0;
    for (int64_t c = 0; c < d; ++c) squares += expected[i * d + c] * expected[i * d + c];
    for (int64_t c = 0; c < d; ++c)
      expected[i * d + c] *= weight[c] / std::sqrt(squares / d + 1e-6f);
  }
  backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, nullptr, 1, x);
  const int64_t shape[] = {m, d};
  EXPECT_TRUE(close(values(x), expected, rounding(GetParam()), shape, "rms_norm"));
}

TEST_P(RefNn, RopeTurnsEachAxisByItsPosition) {
  // Grid 2 x 3 x 2, two heads of (2 + 1 + 1) pairs.
  const int64_t frames = 2, height = 3, width = 2, pairs[] = {2, 1, 1};
  const int64_t m = frames * height * width, d = 16;
  std::vector<float> cos[3], sin[3];
  const auto angle = [](int axis, int64_t pos, int64_t i) {
    return 0.3 * (axis + 1) * pos + 0.1 * i;
  };
  const int64_t sizes[] = {frames, height, width};
  for (int axis = 0; axis < 3; ++axis)
    for (int64_t pos = 0; pos < sizes[axis]; ++pos)
      for (int64_t i = 0; i < pairs[axis]; ++i) {
        cos[axis].push_back(static_cast<float>(std::cos(angle(axis, pos, i))));
        sin[axis].push_back(static_cast<float>(std::sin(angle(axis, pos, i))));
      }
  RopeTables rope{frames,
                  height,
                  width,
                  2,
                  1,
                  1,
                  cos[0].data(),
                  sin[0].data(),
                  cos[1].data(),
                  sin[1].data(),
                  cos[2].data(),
                  sin[2].data()};
  const Tensor x = random_tensor(GetParam(), {m, d}, 1), out(GetParam(), {m, d});
  const std::vector<float> ones(static_cast<size_t>(d), 1.0f);
  std::vector<double> plain = values(x), expected(plain.size());
  for (int64_t t = 0; t < m; ++t) {
    double squares = 0.0;
    for (int64_t c = 0; c < d; ++c) squares += plain[t * d + c] * plain[t * d + c];
    const int64_t pos[] = {t / 6, t / 2 % 3, t % 2};
    for (int64_t pair = 0; pair < d / 2; ++pair) {
      const int64_t in_head = pair % 4;
      const int axis = in_head < 2 ? 0 : static_cast<int>(in_head) - 1;
      const double phi = angle(axis, pos[axis], axis == 0 ? in_head : 0);
      const double a = plain[t * d + 2 * pair] / std::sqrt(squares / d),
                   b = plain[t * d + 2 * pair + 1] / std::sqrt(squares / d);
      expected[t * d + 2 * pair] = a * std::cos(phi) - b * std::sin(phi);
      expected[t * d + 2 * pair + 1] = a * std::sin(phi) + b * std::cos(phi);
    }
  }
  backend_->rms_norm(x, ones.data(), 0.0f, NormSpan::row, &rope, 2, out);
  const int64_t shape[] = {m, d};
  EXPECT_TRUE(close(values(out), expected, rounding(GetParam(), 2.0), shape, "rope"));
  rope.width = 3;
  EXPECT_THROW(backend_->rms_norm(x, ones.data(), 0.0f, NormSpan::row, &rope, 2, out), Error);
  rope.width = 2;
  EXPECT_THROW(backend_->rms_norm(x, ones.data(), 0.0f, NormSpan::row, &rope, 4, out), Error);
}

TEST_P(RefNn, GeluMul) {
  const Rows gate(GetParam(), 3, 5, 2, 1), up(GetParam(), 3, 5, 0, 2), out(GetParam(), 3, 5, 3, 3);
  backend_->gated_product(Epilogue::gelu_tanh, gate.view, up.view, out.view);
  std::vector<double> expected = values(gate.view);
  const std::vector<double> ups = values(up.view);
  for (size_t n = 0; n < expected.size(); ++n) expected[n] = naive_gelu(expected[n]) * ups[n];
  const int64_t shape[] = {3, 5};
  EXPECT_TRUE(close(values(out.view), expected, rounding(GetParam()), shape, "gated_product"));
}

TEST_P(RefNn, SiluProduct) {
  const Rows gate(GetParam(), 3, 5, 2, 1), up(GetParam(), 3, 5, 0, 2), out(GetParam(), 3, 5, 3, 3);
  backend_->gated_product(Epilogue::silu, gate.view, up.view, out.view);
  std::vector<double> expected = values(gate.view);
  const std::vector<double> ups = values(up.view);
  for (size_t n = 0; n < expected.size(); ++n)
    expected[n] *= ups[n] / (1.0 + std::exp(-expected[n]));
  const int64_t shape[] = {3, 5};
  EXPECT_TRUE(close(values(out.view), expected, rounding(GetParam()), shape, "silu product"));
}

// Heads 2 x head_dim 4 on a grid of 2 x 1 x 3: angles by hand, one weight for both heads.
TEST_P(RefNn, HeadsTurnBySumsOfTheirOwnAngles) {
  const int64_t m = 6, d = 8;
  const auto angle = [](int axis, int64_t position, int64_t head, int64_t pair) {
    return (axis + 1) * static_cast<double>(position + 1) * (0.2 + 0.5 * head - 0.3 * pair);
  };
  std::vector<float> tables[6];
  const int64_t sizes[] = {2, 1, 3};
  for (int axis = 0; axis < 3; ++axis)
    for (int64_t i = 0; i < sizes[axis] * 4; ++i) {
      const double phi = angle(axis, i / 4, i / 2 % 2, i % 2);
      tables[2 * axis].push_back(static_cast<float>(std::cos(phi)));
      tables[2 * axis + 1].push_back(static_cast<float>(std::sin(phi)));
    }
  const RopeTables rope{.frames = 2,
                        .height = 1,
                        .width = 3,
                        .pairs_frames = 2,
                        .pairs_height = 2,
                        .pairs_width = 2,
                        .cos_frames = tables[0].data(),
                        .sin_frames = tables[1].data(),
                        .cos_height = tables[2].data(),
                        .sin_height = tables[3].data(),
                        .cos_width = tables[4].data(),
                        .sin_width = tables[5].data(),
                        .summed = true};
  const Tensor x = random_tensor(GetParam(), {m, d}, 1), out(GetParam(), {m, d});
  const std::vector<float> weight = random_floats(4, 2);
  const std::vector<double> plain = values(x);
  std::vector<double> expected(plain.size());
  for (int64_t t = 0; t < m; ++t)
    for (int64_t head = 0; head < 2; ++head) {
      const double* from = plain.data() + t * d + head * 4;
      double squares = 0.0;
      for (int c = 0; c < 4; ++c) squares += from[c] * from[c];
      const double inv = 1.0 / std::sqrt(squares / 4 + 1e-3f);
      for (int pair = 0; pair < 2; ++pair) {
        const double phi =
            angle(0, t / 3, head, pair) + angle(1, 0, head, pair) + angle(2, t % 3, head, pair);
        const double a = from[2 * pair] * inv * weight[static_cast<size_t>(2 * pair)];
        const double b = from[2 * pair + 1] * inv * weight[static_cast<size_t>(2 * pair + 1)];
        double* to = expected.data() + t * d + head * 4 + 2 * pair;
        to[0] = a * std::cos(phi) - b * std::sin(phi);
        to[1] = a * std::sin(phi) + b * std::cos(phi);
      }
    }
  backend_->rms_norm(x, weight.data(), 1e-3f, NormSpan::head, &rope, 2, out);
  const int64_t shape[] = {m, d};
  EXPECT_TRUE(close(values(out), expected, rounding(GetParam(), 2.0), shape, "summed rope"));
}

TEST_P(RefNn, GroupNorm) {
  // Two samples of two pixels; groups of two channels: {1, 3, 5, 7} and so on, 8 apart.
  const Tensor x(GetParam(), {2, 2, 4}), out(GetParam(), {2, 2, 4});
  for (int64_t i = 0; i < 16; ++i) put(x, i, static_cast<double>(i));
  const std::vector<float> weight{1.0f, 2.0f, -1.0f, 0.5f}, bias{0.0f, 1.0f, 0.0f, -1.0f};
  backend_->group_norm(x, 2, weight.data(), bias.data(), 0.75f, false, out);
  // Group 0 of sample 0 holds 0, 1, 4, 5: mean 2.5, variance 4.25; with eps 5. All others too.
  const double inv = 1.0 / std::sqrt(5.0), around[] = {-2.5, -1.5, 1.5, 2.5};
  std::vector<double> expected;
  for (int64_t i = 0; i < 16; ++i) {
    const auto channel = static_cast<size_t>(i % 4);
    const double distance = around[i / 4 % 2 * 2 + i % 2];
    expected.push_back(distance * inv * weight[channel] + bias[channel]);
  }
  const int64_t shape[] = {2, 2, 4};
  EXPECT_TRUE(close(values(out), expected, rounding(GetParam()), shape, "group_norm"));
  backend_->group_norm(x, 2, weight.data(), bias.data(), 0.75f, true, out);
  for (double& y : expected) y /= 1.0 + std::exp(-y);
  EXPECT_TRUE(close(values(out), expected, rounding(GetParam()), shape, "with silu"));
}

struct ConvSpec {
  int64_t t, h, w, c_in, c_out, kt, kh, kw;
  ConvParams conv;
  bool bias, residual;
};

TEST_P(RefNn, Conv3d) {
  const ConvSpec specs[] = {
      {3,
       4,
       5,
       3,
       2,
       3,
       3,
       3,
       {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1},
       true,
       true},
      {1, 5, 4, 2, 9, 1, 1, 1, {}, false, false},
      {2,
       6,
       7,
       1,
       2,
       1,
       3,
       3,
       {.stride_h = 2, .stride_w = 2, .pad_bottom = 1, .pad_right = 1},
       true,
       false},
      {5, 2, 2, 4, 3, 3, 1, 1, {.stride_t = 2}, true, false},
      {2, 4, 5, 2, 3, 2, 3, 2, {.pad_top = 2, .pad_left = 1}, true, false},
      {1, 4, 5, 2, 3, 1, 3, 3, {.pad_top = 1, .relu = true}, true, true},
  };
  for (const ConvSpec& s : specs) {
    const Tensor x = random_tensor(GetParam(), {s.t, s.h, s.w, s.c_in}, 1);
    const Tensor w = random_tensor(GetParam(), {s.c_out, s.c_in, s.kt, s.kh, s.kw}, 2);
    const std::vector<float> bias = random_floats(s.c_out, 3);
    const int64_t to = (s.t - s.kt) / s.conv.stride_t + 1;
    const int64_t ho = (s.h + s.conv.pad_top + s.conv.pad_bottom - s.kh) / s.conv.stride_h + 1;
    const int64_t wo = (s.w + s.conv.pad_left + s.conv.pad_right - s.kw) / s.conv.stride_w + 1;
    const Tensor out(GetParam(), {to, ho, wo, s.c_out});
    const Tensor residual = random_tensor(GetParam(), {to, ho, wo, s.c_out}, 4);
    std::vector<double> expected;
    for (int64_t t = 0; t < to; ++t)
      for (int64_t y = 0; y < ho; ++y)
        for (int64_t z = 0; z < wo; ++z)
          for (int64_t o = 0; o < s.c_out; ++o) {
            double sum = s.bias ? bias[o] : 0.0;
            for (int64_t c = 0; c < s.c_in; ++c)
              for (int64_t a = 0; a < s.kt; ++a)
                for (int64_t b = 0; b < s.kh; ++b)
                  for (int64_t e = 0; e < s.kw; ++e) {
                    const int64_t it = t * s.conv.stride_t + a;
                    const int64_t iy = y * s.conv.stride_h + b - s.conv.pad_top;
                    const int64_t iz = z * s.conv.stride_w + e - s.conv.pad_left;
                    if (iy < 0 || iz < 0 || iy >= s.h || iz >= s.w) continue;
                    sum += get(x, ((it * s.h + iy) * s.w + iz) * s.c_in + c) *
                           get(w, (((o * s.c_in + c) * s.kt + a) * s.kh + b) * s.kw + e);
                  }
            if (s.residual) sum += get(residual, static_cast<int64_t>(expected.size()));
            expected.push_back(s.conv.relu ? std::max(sum, 0.0) : sum);
          }
    const TensorView residual_view = residual;
    backend_->conv3d(x, w, s.bias ? bias.data() : nullptr, s.conv,
                     s.residual ? &residual_view : nullptr, out);
    const int64_t shape[] = {to, ho, wo, s.c_out};
    EXPECT_TRUE(close(values(out), expected, rounding(GetParam()), shape, "conv3d"));
    EXPECT_THROW(backend_->conv3d(x, w, nullptr, {.stride_t = 0}, nullptr, out), Error);
  }
}

TEST_P(RefNn, ChannelNorm) {
  const Tensor x = random_tensor(GetParam(), {2, 3, 1, 7}, 1, 4.0), out(GetParam(), {2, 3, 1, 7});
  for (int64_t c = 0; c < 7; ++c) put(x, 7 + c, 0.0);  // a pixel of zeros stays zero
  const std::vector<float> gamma = random_floats(7, 2);
  for (bool silu : {false, true}) {
    std::vector<double> expected = values(x);
    for (size_t at = 0; at < expected.size(); at += 7) {
      double squares = 0.0;
      for (size_t c = 0; c < 7; ++c) squares += expected[at + c] * expected[at + c];
      for (size_t c = 0; c < 7; ++c) {
        double& e = expected[at + c];
        e = e / std::max(std::sqrt(squares), 1e-12) * std::sqrt(7.0) * gamma[c];
        if (silu) e = e / (1.0 + std::exp(-e));
      }
    }
    backend_->channel_norm(x, gamma.data(), silu, out);
    const int64_t shape[] = {2, 3, 1, 7};
    EXPECT_TRUE(close(values(out), expected, rounding(GetParam()), shape, "channel_norm"));
    EXPECT_EQ(get(out, 8), 0.0);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, RefNn, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace lacuna::test
