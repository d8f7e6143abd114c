// SPDX-License-Identifier: Apache-2.0
// Network and selection operations of the CPU backend against naive loops in double, for every
// instruction set level of the machine, and bitwise equality for any thread count.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/backend/cpu/nn.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"

namespace lacuna {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double get(const TensorView& x, int64_t i) {
  return x.dtype == DType::f32 ? static_cast<const float*>(x.data)[i]
                               : float{static_cast<const BFloat16*>(x.data)[i]};
}

void put(const TensorView& x, int64_t i, float value) {
  if (x.dtype == DType::f32) {
    static_cast<float*>(x.data)[i] = value;
  } else {
    static_cast<BFloat16*>(x.data)[i] = BFloat16(value);
  }
}

Tensor filled(DType dtype, std::initializer_list<int64_t> shape, std::string_view name,
              double amplitude = 1.0) {
  Tensor t(dtype, shape);
  std::vector<float> values(static_cast<size_t>(t.numel()));
  fill_hash(name, 0.0, amplitude, values);
  for (int64_t i = 0; i < t.numel(); ++i) put(t, i, values[i]);
  return t;
}

std::vector<float> floats(int64_t n, std::string_view name, double offset = 0.0) {
  std::vector<float> values(static_cast<size_t>(n));
  fill_hash(name, offset, 1.0, values);
  return values;
}

// Rows `gap` elements further apart than they are long; NaN between them.
struct Strided {
  Tensor memory;
  TensorView view;
};

Strided strided(DType dtype, int64_t rows, int64_t columns, int64_t gap, std::string_view name) {
  Strided s{Tensor(dtype, {rows, columns + gap}), {}};
  for (int64_t i = 0; i < s.memory.numel(); ++i) put(s.memory, i, kNan);
  s.view = s.memory.view();
  s.view.shape[1] = columns;
  const std::vector<float> values = floats(rows * columns, name);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      put(s.view, i * s.view.stride[0] + j, values[i * columns + j]);
  return s;
}

// |x - expected| <= f32 limit * scale, plus half a unit of a bf16 result.
void expect_near(const TensorView& x, int64_t i, double expected, double scale,
                 double limit = 2e-6) {
  const double rounding = x.dtype == DType::bf16 ? std::ldexp(std::abs(expected), -8) : 0.0;
  ASSERT_NEAR(get(x, i), expected, limit * scale + rounding + 1e-30) << "element " << i;
}

// Runs `op` on 1, 2 and 3 threads over copies of `out`; the bytes must be equal. `out` keeps them.
void run_any_threads(const Tensor& out, const std::function<void()>& op) {
  const auto size = static_cast<size_t>(storage_bytes(out.view().dtype, out.numel()));
  auto* data = static_cast<char*>(out.view().data);
  const std::vector<char> before(data, data + size);
  std::vector<char> first;
  const int saved = num_threads();
  for (int threads : {1, 2, 3}) {
    set_num_threads(threads);
    std::copy(before.begin(), before.end(), data);
    op();
    if (threads == 1) first.assign(data, data + size);
    EXPECT_EQ(std::memcmp(first.data(), data, size), 0) << threads << " threads differ from 1";
  }
  set_num_threads(saved);
}

// 0.5 x (1 + tanh u) without its cancellation for large negative u.
double gelu(double x) {
  return x / (1.0 + std::exp(-2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double silu(double x) {
  return x / (1.0 + std::exp(-x));
}

class CpuNn : public testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > cpu::active_isa())
      GTEST_SKIP() << "needs " << cpu::isa_name(GetParam()) << ", this run has "
                   << cpu::isa_name(cpu::active_isa());
    backend_ = make_cpu_backend(GetParam());
  }

  void check_linear(int64_t m, int64_t n, int64_t k, DType in, DType to, Epilogue epilogue,
                    bool with_bias, bool with_gate, int64_t gap);
  void check_conv(std::array<int64_t, 4> in, int64_t c_out, std::array<int64_t, 3> kernel,
                  const ConvParams& conv, DType dtype, bool with_bias, bool with_residual);

  std::unique_ptr<Backend> backend_;
};

INSTANTIATE_TEST_SUITE_P(Isa, CpuNn,
                         testing::Values(cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_bf16,
                                         cpu::Isa::amx),
                         [](const auto& info) { return std::string(cpu::isa_name(info.param)); });

void CpuNn::check_linear(int64_t m, int64_t n, int64_t k, DType in, DType to, Epilogue epilogue,
                         bool with_bias, bool with_gate, int64_t gap) {
  SCOPED_TRACE(testing::Message() << m << "x" << n << "x" << k << " " << dtype_name(in) << " to "
                                  << dtype_name(to) << " epilogue " << static_cast<int>(epilogue));
  const Strided x = strided(in, m, k, gap, "x"), w = strided(in, n, k, 2 * gap, "w");
  const Strided out = strided(to, m, n, gap, "out"), old = strided(to, m, n, gap, "out");
  const std::vector<float> bias = floats(n, "bias"), gate = floats(n, "gate");
  run_any_threads(out.memory, [&] {
    backend_->linear(x.view, w.view, with_bias ? bias.data() : nullptr, epilogue,
                     with_gate ? gate.data() : nullptr, out.view);
  });
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double y = with_bias ? bias[j] : 0.0, scale = std::abs(y);
      for (int64_t c = 0; c < k; ++c) {
        const double p =
            get(x.view, i * x.view.stride[0] + c) * get(w.view, j * w.view.stride[0] + c);
        y += p;
        scale += std::abs(p);
      }
      const int64_t at = i * out.view.stride[0] + j;
      if (epilogue == Epilogue::gelu_tanh) y = gelu(y);
      if (epilogue == Epilogue::silu) y = silu(y);
      if (epilogue == Epilogue::residual) y = get(old.view, at) + (with_gate ? gate[j] : 1.0) * y;
      expect_near(out.view, at, y, scale + std::abs(y));
    }
    for (int64_t j = n; j < n + gap; ++j)
      ASSERT_TRUE(std::isnan(get(out.view, i * out.view.stride[0] + j))) << "wrote past a row";
  }
}

TEST_P(CpuNn, LinearShapesAndTypes) {
  constexpr int64_t kShapes[][3] = {{1, 1, 1},     {1, 300, 96},   {3, 7, 5},      {64, 96, 33},
                                    {65, 130, 64}, {257, 515, 72}, {520, 200, 40}, {545, 1, 17}};
  for (const auto& [m, n, k] : kShapes)
    for (DType in : {DType::f32, DType::bf16})
      for (DType to : {DType::f32, DType::bf16})
        check_linear(m, n, k, in, to, Epilogue::none, m % 2 == 1, false, m % 3);
}

TEST_P(CpuNn, LinearEpilogues) {
  for (int64_t m : {5, 70, 530})
    for (DType in : {DType::f32, DType::bf16}) {
      for (Epilogue e : {Epilogue::gelu_tanh, Epilogue::silu})
        for (DType to : {DType::f32, DType::bf16})
          check_linear(m, 72, 24, in, to, e, true, false, 3);
      for (bool gate : {false, true})
        for (bool bias : {false, true})
          check_linear(m, 72, 24, in, DType::f32, Epilogue::residual, bias, gate, 1);
    }
}

// Many tiles, long sums: where a split of the sum over threads would show.
TEST_P(CpuNn, LinearBitwiseForAnyThreadCount) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 64, 9000},
                                  {16, 128, 4096},
                                  {600, 640, 1536},
                                  {256, 1536, 512}}) {
      const Tensor x = filled(dtype, {m, k}, "x"), w = filled(dtype, {n, k}, "w");
      const Tensor out(DType::f32, {m, n});
      std::memset(out.view().data, 0, static_cast<size_t>(m * n * 4));
      run_any_threads(out, [&] { backend_->linear(x, w, nullptr, Epilogue::none, nullptr, out); });
      double y = 0.0, scale = 0.0;
      for (int64_t c = 0; c < k; ++c) {
        y += get(x, (m - 1) * k + c) * get(w, (n - 1) * k + c);
        scale += std::abs(get(x, (m - 1) * k + c) * get(w, (n - 1) * k + c));
      }
      expect_near(out, m * n - 1, y, scale);
    }
}

// oneDNN falls back to plain loops without a word; ask for the kernels' names.
TEST_P(CpuNn, NoReferenceKernels) {
  cpu::OneDnn dnn(GetParam());
  const std::vector<float> gate = floats(72, "gate"), bias = floats(72, "bias");
  const ConvParams same{.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1};
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t m : {1, 72, 256, 513})
      for (int64_t gap : {0, 8}) {
        const Strided x = strided(dtype, m, 48, gap, "x"), w = strided(dtype, 72, 48, gap, "w");
        const Strided out = strided(DType::f32, m, 72, gap, "out");
        for (Epilogue e : {Epilogue::none, Epilogue::silu, Epilogue::residual})
          cpu::linear(dnn, x.view, w.view, bias.data(), e, gate.data(), out.view);
      }
    for (int64_t c : {3, 16, 96}) {
      const Tensor x = filled(dtype, {3, 9, 12, c}, "x"), out(dtype, {1, 9, 12, c});
      const Tensor w = filled(dtype, {c, c, 3, 3, 3}, "w"),
                   residual = filled(dtype, {1, 9, 12, c}, "r");
      cpu::conv3d(dnn, x, w, bias.data(), same, &residual.view(), out);
    }
  }
  EXPECT_GE(dnn.implementations().size(), 10u);
  for (const std::string& name : dnn.implementations())
    EXPECT_FALSE(name.starts_with("ref")) << name;
}

TEST_P(CpuNn, LinearRejects) {
  const Tensor x(DType::f32, {2, 3}), w(DType::f32, {4, 3}), out(DType::f32, {2, 4});
  const Tensor half(DType::bf16, {4, 3}), out_half(DType::bf16, {2, 4}), wrong(DType::f32, {2, 5});
  const auto call = [&](const TensorView& weights, Epilogue e, const TensorView& to) {
    backend_->linear(x, weights, nullptr, e, nullptr, to);
  };
  EXPECT_THROW(call(half, Epilogue::none, out), Error);
  EXPECT_THROW(call(w, Epilogue::none, wrong), Error);
  EXPECT_THROW(call(w, Epilogue::residual, out_half), Error);
  TensorView overlapping = out;
  overlapping.stride[0] = 2;
  EXPECT_THROW(call(w, Epilogue::none, overlapping), Error);
}

void CpuNn::check_conv(std::array<int64_t, 4> in, int64_t c_out, std::array<int64_t, 3> kernel,
                       const ConvParams& conv, DType dtype, bool with_bias, bool with_residual) {
  const auto [t, h, w, c_in] = in;
  const auto [kt, kh, kw] = kernel;
  SCOPED_TRACE(testing::Message() << t << "x" << h << "x" << w << "x" << c_in << " -> " << c_out
                                  << " kernel " << kt << "x" << kh << "x" << kw << " "
                                  << dtype_name(dtype));
  const int64_t ot = (t - kt) / conv.stride_t + 1;
  const int64_t oh = (h + conv.pad_top + conv.pad_bottom - kh) / conv.stride_h + 1;
  const int64_t ow = (w + conv.pad_left + conv.pad_right - kw) / conv.stride_w + 1;
  const Tensor x = filled(dtype, {t, h, w, c_in}, "x");
  const Tensor weights = filled(dtype, {c_out, c_in, kt, kh, kw}, "w");
  const Tensor residual = filled(dtype, {ot, oh, ow, c_out}, "residual");
  const Tensor out = filled(dtype, {ot, oh, ow, c_out}, "out");
  const std::vector<float> bias = floats(c_out, "bias");
  run_any_threads(out, [&] {
    backend_->conv3d(x, weights, with_bias ? bias.data() : nullptr, conv,
                     with_residual ? &residual.view() : nullptr, out);
  });
  for (int64_t i = 0; i < out.numel(); ++i) {
    const int64_t o = i % c_out, z = i / c_out % ow, y = i / (c_out * ow) % oh;
    const int64_t f = i / (c_out * ow * oh);
    double sum = with_bias ? bias[o] : 0.0, scale = std::abs(sum);
    for (int64_t tap = 0; tap < kt * kh * kw; ++tap) {
      const int64_t it = f * conv.stride_t + tap / (kh * kw);
      const int64_t iy = y * conv.stride_h + tap / kw % kh - conv.pad_top;
      const int64_t iz = z * conv.stride_w + tap % kw - conv.pad_left;
      if (iy < 0 || iy >= h || iz < 0 || iz >= w) continue;
      for (int64_t c = 0; c < c_in; ++c) {
        const double p = get(x, ((it * h + iy) * w + iz) * c_in + c) *
                         get(weights, (o * c_in + c) * kt * kh * kw + tap);
        sum += p;
        scale += std::abs(p);
      }
    }
    if (with_residual) sum += get(residual, i);
    expect_near(out, i, sum, scale + std::abs(sum));
  }
}

TEST_P(CpuNn, Conv3d) {
  const ConvParams same{.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1};
  const ConvParams half{.stride_h = 2, .stride_w = 2, .pad_bottom = 1, .pad_right = 1};
  for (DType dtype : {DType::f32, DType::bf16}) {
    check_conv({4, 9, 11, 16}, 24, {3, 3, 3}, same, dtype, true, false);
    check_conv({3, 53, 6, 8}, 5, {3, 3, 3}, same, dtype, true, true);
    check_conv({3, 5, 40, 3}, 32, {3, 3, 3}, same, dtype, false, false);
    check_conv({2, 31, 17, 12}, 16, {1, 3, 3}, half, dtype, true, true);
    check_conv({5, 6, 7, 16}, 16, {3, 1, 1}, {.stride_t = 2}, dtype, true, false);
    check_conv({2, 60, 5, 7}, 9, {1, 1, 1}, {}, dtype, true, true);
    check_conv({2, 6, 5, 7}, 9, {1, 1, 1}, {.stride_h = 2, .pad_left = 2}, dtype, false, true);
    check_conv({1, 1, 1, 1}, 1, {1, 1, 1}, {}, dtype, false, false);
    check_conv({2, 4, 70, 32}, 3, {2, 4, 5}, {.pad_top = 3, .pad_left = 2}, dtype, true, false);
  }
}

TEST_P(CpuNn, ConvRejects) {
  const Tensor x(DType::f32, {1, 4, 4, 2}), w(DType::f32, {3, 2, 1, 3, 3});
  const Tensor out(DType::f32, {1, 2, 2, 3}), wrong(DType::f32, {1, 3, 2, 3});
  EXPECT_THROW(backend_->conv3d(x, w, nullptr, {}, nullptr, wrong), Error);
  EXPECT_THROW(backend_->conv3d(x, w, nullptr, {.stride_h = 0}, nullptr, out), Error);
  EXPECT_THROW(backend_->conv3d(x, w, nullptr, {}, &wrong.view(), out), Error);
  EXPECT_THROW(backend_->conv3d(out, w, nullptr, {}, nullptr, out), Error);
}

TEST_P(CpuNn, LayerNorm) {
  for (int64_t d : {1, 7, 64, 200})
    for (DType to : {DType::f32, DType::bf16})
      for (int parts = 0; parts < 16; ++parts) {
        const int64_t m = 37;
        const Strided x = strided(DType::f32, m, d, 5, "x"), out = strided(to, m, d, 2, "out");
        const std::vector<float> w = floats(d, "w"), b = floats(d, "b"), s = floats(d, "s"),
                                 f = floats(d, "f");
        const bool with_w = parts & 1, with_b = parts & 2, with_s = parts & 4, with_f = parts & 8;
        run_any_threads(out.memory, [&] {
          backend_->layer_norm(x.view, with_w ? w.data() : nullptr, with_b ? b.data() : nullptr,
                               with_s ? s.data() : nullptr, with_f ? f.data() : nullptr, 1e-6f,
                               out.view);
        });
        for (int64_t i = 0; i < m; ++i) {
          double mean = 0.0, variance = 0.0;
          for (int64_t c = 0; c < d; ++c) mean += get(x.view, i * x.view.stride[0] + c) / d;
          for (int64_t c = 0; c < d; ++c)
            variance += std::pow(get(x.view, i * x.view.stride[0] + c) - mean, 2) / d;
          const double inv = 1.0 / std::sqrt(variance + 1e-6);
          for (int64_t c = 0; c < d; ++c) {
            double y = (get(x.view, i * x.view.stride[0] + c) - mean) * inv;
            if (with_w) y *= w[c];
            if (with_b) y += b[c];
            if (with_s) y *= 1.0 + s[c];
            if (with_f) y += f[c];
            expect_near(out.view, i * out.view.stride[0] + c, y, 6.0);
          }
        }
      }
}

struct Rope {
  std::vector<float> tables[6];
  RopeTables view;
};

Rope make_rope(int64_t frames, int64_t height, int64_t width, int32_t pf, int32_t ph, int32_t pw) {
  Rope r;
  const int64_t sizes[] = {frames * pf, frames * pf, height * ph,
                           height * ph, width * pw,  width * pw};
  for (int i = 0; i < 6; ++i) r.tables[i] = floats(sizes[i], "rope" + std::to_string(i));
  r.view = {frames,
            height,
            width,
            pf,
            ph,
            pw,
            r.tables[0].data(),
            r.tables[1].data(),
            r.tables[2].data(),
            r.tables[3].data(),
            r.tables[4].data(),
            r.tables[5].data()};
  return r;
}

TEST_P(CpuNn, RmsNormAndRope) {
  const int64_t m = 2 * 3 * 5;
  for (const auto& [heads, pf, ph, pw] :
       {std::array<int, 4>{3, 4, 2, 2}, {2, 1, 2, 2}, {1, 22, 21, 21}, {2, 3, 0, 0}}) {
    const int64_t head_dim = 2 * (pf + ph + pw), d = heads * head_dim;
    const Rope rope = make_rope(2, 3, 5, pf, ph, pw);
    const std::vector<float> w = floats(d, "w", 1.5);
    for (DType in : {DType::f32, DType::bf16})
      for (DType to : {DType::f32, DType::bf16})
        for (bool rotate : {false, true}) {
          const Strided x = strided(in, m, d, 3, "x"), out = strided(to, m, d, 1, "out");
          run_any_threads(out.memory, [&] {
            backend_->rms_norm(x.view, w.data(), 1e-6f, NormSpan::row,
                               rotate ? &rope.view : nullptr, heads, out.view);
          });
          for (int64_t i = 0; i < m; ++i) {
            std::vector<double> row(static_cast<size_t>(d));
            double sum = 0.0;
            for (int64_t c = 0; c < d; ++c)
              sum += std::pow(get(x.view, i * x.view.stride[0] + c), 2);
            for (int64_t c = 0; c < d; ++c)
              row[c] = get(x.view, i * x.view.stride[0] + c) / std::sqrt(sum / d + 1e-6) * w[c];
            for (int64_t c = 0; c < d && rotate; c += 2) {
              const int64_t p = c % head_dim / 2;
              const int axis = p < pf ? 0 : p < pf + ph ? 1 : 2;
              const int64_t position = axis == 0 ? i / 15 : axis == 1 ? i / 5 % 3 : i % 5;
              const int64_t pairs = axis == 0 ? pf : axis == 1 ? ph : pw;
              const int64_t at = position * pairs + p - (axis == 0 ? 0 : axis == 1 ? pf : pf + ph);
              const double cos = rope.tables[2 * axis][at], sin = rope.tables[2 * axis + 1][at];
              const double a = row[c], b = row[c + 1];
              row[c] = a * cos - b * sin;
              row[c + 1] = a * sin + b * cos;
            }
            for (int64_t c = 0; c < d; ++c)
              expect_near(out.view, i * out.view.stride[0] + c, row[c], 3.0);
          }
        }
  }
}

TEST_P(CpuNn, RmsNormInPlaceEqualsOutOfPlace) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = filled(dtype, {30, 44}, "x"), y = filled(dtype, {30, 44}, "x");
    const Tensor out(dtype, {30, 44});
    const Rope rope = make_rope(2, 3, 5, 5, 3, 3);
    const std::vector<float> w = floats(44, "w");
    backend_->rms_norm(x, w.data(), 1e-5f, NormSpan::row, &rope.view, 2, out);
    backend_->rms_norm(y, w.data(), 1e-5f, NormSpan::row, &rope.view, 2, y);
    EXPECT_EQ(std::memcmp(out.view().data, y.view().data,
                          static_cast<size_t>(storage_bytes(dtype, 30 * 44))),
              0);
    EXPECT_THROW(backend_->rms_norm(x, w.data(), 1e-5f, NormSpan::row, &rope.view, 4, out), Error);
  }
}

TEST_P(CpuNn, GatedProductOverTheWholeRange) {
  for (Epilogue activation : {Epilogue::gelu_tanh, Epilogue::silu})
    for (DType dtype : {DType::f32, DType::bf16}) {
      const int64_t m = 41, d = 253;
      const Strided gate = strided(dtype, m, d, 4, "gate"), up = strided(dtype, m, d, 1, "up");
      const Strided out = strided(dtype, m, d, 9, "out");
      for (int64_t i = 0; i < m * d; ++i)  // -30 .. 30
        put(gate.view, i / d * gate.view.stride[0] + i % d, 60.0f * i / (m * d) - 30.0f);
      run_any_threads(out.memory,
                      [&] { backend_->gated_product(activation, gate.view, up.view, out.view); });
      for (int64_t i = 0; i < m * d; ++i) {
        const double g = get(gate.view, i / d * gate.view.stride[0] + i % d);
        const double u = get(up.view, i / d * up.view.stride[0] + i % d);
        // In the far tail gelu falls below e^-87, where the kernel may answer 0.
        const double y = (activation == Epilogue::silu ? silu(g) : gelu(g)) * u;
        expect_near(out.view, i / d * out.view.stride[0] + i % d, y,
                    std::abs(y) * (1.0 + std::abs(g * g)) + 1e-20);
      }
    }
}

TEST_P(CpuNn, ChannelNorm) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t c : {1, 3, 16, 97})
      for (bool with_silu : {false, true}) {
        const Tensor x = filled(dtype, {2, 3, 50, c}, "x", 3.0), out(dtype, {2, 3, 50, c});
        std::memset(out.view().data, 0, static_cast<size_t>(storage_bytes(dtype, out.numel())));
        for (int64_t j = 0; j < c; ++j) put(x, j, 0.0f);  // one pixel of zeros
        const std::vector<float> gamma = floats(c, "gamma", 1.0);
        run_any_threads(out, [&] { backend_->channel_norm(x, gamma.data(), with_silu, out); });
        for (int64_t i = 0; i < x.numel(); ++i) {
          double sum = 0.0;
          for (int64_t j = 0; j < c; ++j) sum += std::pow(get(x, i / c * c + j), 2);
          double y =
              get(x, i) / std::max(std::sqrt(sum), 1e-12) * std::sqrt(double(c)) * gamma[i % c];
          expect_near(out, i, with_silu ? silu(y) : y, std::abs(y) * (1.0 + std::abs(y)));
        }
      }
}

// Naive sums, and the same bytes on any number of threads: several chunks, the last one short.
TEST_P(CpuNn, GroupNorm) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [n, m, c, groups] :
         {std::array<int64_t, 4>{2, 9001, 24, 3}, {1, 130, 515, 5}, {3, 50, 4, 4}}) {
      const Tensor x = filled(dtype, {n, m, c}, "x", 3.0), out(dtype, {n, m, c});
      std::memset(out.view().data, 0, static_cast<size_t>(storage_bytes(dtype, out.numel())));
      const std::vector<float> weight = floats(c, "weight", 1.0), bias = floats(c, "bias");
      run_any_threads(out, [&, groups = groups] {
        backend_->group_norm(x, static_cast<int32_t>(groups), weight.data(), bias.data(), 1e-5f,
                             true, out);
      });
      const int64_t width = c / groups;
      for (int64_t group = 0; group < n * groups; ++group) {
        const int64_t begin = group / groups * m * c + group % groups * width;
        const auto at = [&, c = c](int64_t i) { return begin + i / width * c + i % width; };
        double mean = 0.0, variance = 0.0;
        for (int64_t i = 0; i < m * width; ++i) mean += get(x, at(i));
        mean /= static_cast<double>(m * width);
        for (int64_t i = 0; i < m * width; ++i) variance += std::pow(get(x, at(i)) - mean, 2);
        variance /= static_cast<double>(m * width);
        for (int64_t i = 0; i < m * width; ++i) {
          const int64_t channel = at(i) % c;
          const double scaled =
              (get(x, at(i)) - mean) / std::sqrt(variance + 1e-5) * weight[channel];
          const double y = scaled + bias[channel];
          const double size = std::abs(scaled) + std::abs(double{bias[channel]});
          expect_near(out, at(i), silu(y), size * (1.0 + std::abs(y)));
        }
      }
    }
}

TEST_P(CpuNn, BlockMean) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Tensor x = filled(dtype, {203, 3, 72}, "x");
    TensorView heads_first = x;  // token-major memory seen as [heads, seq_len, head_dim]
    heads_first.shape = {3, 203, 72};
    heads_first.stride = {72, 3 * 72, 1};
    const std::vector<int32_t> ids = {2, 0};
    for (bool ragged : {false, true}) {
      const BlockLayout layout =
          ragged ? BlockLayout::explicit_offsets(203, 2, {0, 5, 5, 200, 203, 0, 0, 1, 150, 203})
                 : BlockLayout::uniform(203, 64);
      const Tensor out(DType::f32, {2, layout.num_blocks, 72});
      std::memset(out.view().data, 0, static_cast<size_t>(out.numel() * 4));
      run_any_threads(out, [&] { backend_->block_mean(heads_first, ids, layout, out); });
      for (int64_t i = 0; i < out.numel(); ++i) {
        const int64_t c = i % 72, h = i / 72 / layout.num_blocks;
        const auto b = static_cast<int32_t>(i / 72 % layout.num_blocks);
        double sum = 0.0;
        for (int64_t t = layout.begin(h, b); t < layout.end(h, b); ++t)
          sum += get(x, (t * 3 + ids[h]) * 72 + c);
        expect_near(out, i, sum / std::max<int64_t>(layout.size(h, b), 1), 1.0);
      }
    }
  }
}

}  // namespace
}  // namespace lacuna
