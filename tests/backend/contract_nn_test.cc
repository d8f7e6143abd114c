// SPDX-License-Identifier: Apache-2.0
// Network operations of every backend against the reference.
#include <gtest/gtest.h>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "tests/support/backends.h"
#include "tests/support/compare.h"
#include "tests/support/rows.h"

namespace lacuna::test {
namespace {

using NnContract = BackendTest;

TEST_P(NnContract, Linear) {
  const int64_t shapes[][3] = {{1, 1, 1},     {1, 64, 48},    {5, 33, 17},    {64, 128, 96},
                               {77, 256, 64}, {130, 64, 200}, {16, 1000, 32}, {3, 2, 130}};
  int turn = 0;
  for (const auto& [m, k, n] : shapes)
    for (Epilogue epilogue :
         {Epilogue::none, Epilogue::gelu_tanh, Epilogue::silu, Epilogue::residual})
      for (DType in : {DType::f32, DType::bf16})
        for (DType to : {DType::f32, DType::bf16}) {
          if (epilogue == Epilogue::residual && to == DType::bf16) continue;
          ++turn;
          const int64_t pad = turn % 3 * 8;
          const Rows x(in, m, k, pad, 1), w(in, n, k, turn % 2 * 16, 2), out(to, m, n, pad, 3),
              expected(to, m, n, pad, 3);
          const std::vector<float> bias = random_floats(n, 4, 10.0), gate = random_floats(n, 5);
          const float* b = turn % 4 == 0 ? nullptr : bias.data();
          const float* g = turn % 5 == 0 ? nullptr : gate.data();
          ref_->linear(x.view, w.view, b, epilogue, g, expected.view);
          backend_->linear(x.view, w.view, b, epilogue, g, out.view);
          EXPECT_TRUE(close(out.view, expected.view, network(to),
                            fmt::format("m {} k {} n {} {} -> {} epilogue {} bias {} gate {}", m, k,
                                        n, dtype_name(in), dtype_name(to),
                                        static_cast<int>(epilogue), b != nullptr, g != nullptr)));
          EXPECT_TRUE(out.intact());
        }
}

TEST_P(NnContract, LinearRefusesMismatches) {
  const Tensor x = random_tensor(DType::f32, {2, 3}, 1), w = random_tensor(DType::f32, {4, 3}, 2);
  const Tensor wide = random_tensor(DType::f32, {4, 5}, 2), out(DType::f32, {2, 4});
  const Tensor w_bf16 = random_tensor(DType::bf16, {4, 3}, 2), out_bf16(DType::bf16, {2, 4});
  const auto run = [&](const Tensor& a, const Tensor& b, Epilogue e, const Tensor& c) {
    backend_->linear(a, b, nullptr, e, nullptr, c);
  };
  EXPECT_THROW(run(x, wide, Epilogue::none, out), Error);
  EXPECT_THROW(run(x, w_bf16, Epilogue::none, out), Error);
  EXPECT_THROW(run(x, w, Epilogue::none, x), Error);
  EXPECT_THROW(run(x, w, Epilogue::residual, out_bf16), Error);
  EXPECT_NO_THROW(run(x, w, Epilogue::none, out));
}

TEST_P(NnContract, LayerNorm) {
  for (int64_t d : {1, 5, 64, 100, 1536})
    for (int mix = 0; mix < 16; ++mix)
      for (DType to : {DType::f32, DType::bf16}) {
        const Rows x(DType::f32, 7, d, mix % 3, 1), out(to, 7, d, mix % 2 * 4, 2),
            expected(to, 7, d, mix % 2 * 4, 2);
        for (int64_t i = 0; i < 7; ++i)  // rows of different spread and offset
          for (int64_t c = 0; c < d; ++c) {
            float& value = x.memory.as<float>()[i * x.view.stride[0] + c];
            value = value * static_cast<float>(i) + 3.0f * static_cast<float>(i % 3);
          }
        const std::vector<float> p = random_floats(4 * d, 3);
        const auto use = [&](int bit) { return (mix >> bit) & 1 ? p.data() + bit * d : nullptr; };
        ref_->layer_norm(x.view, use(0), use(1), use(2), use(3), 1e-6f, expected.view);
        backend_->layer_norm(x.view, use(0), use(1), use(2), use(3), 1e-6f, out.view);
        // One channel has no variance: rounding of the mean would be all there is.
        EXPECT_TRUE(
            close(out.view, expected.view, network(to), fmt::format("d {} mix {}", d, mix)));
        EXPECT_TRUE(out.intact());
      }
}

struct Rope {
  std::vector<float> tables[6];
  RopeTables view;
  Rope(int64_t frames, int64_t height, int64_t width, int32_t pf, int32_t ph, int32_t pw) {
    const int64_t sizes[] = {frames, height, width};
    const int32_t pairs[] = {pf, ph, pw};
    for (int axis = 0; axis < 3; ++axis)
      for (int64_t pos = 0; pos < sizes[axis]; ++pos)
        for (int32_t i = 0; i < pairs[axis]; ++i) {
          const double angle =
              pos * std::pow(10000.0, -double{static_cast<double>(i)} / pairs[axis]);
          tables[2 * axis].push_back(static_cast<float>(std::cos(angle)));
          tables[2 * axis + 1].push_back(static_cast<float>(std::sin(angle)));
        }
    view = {frames,
            height,
            width,
            pf,
            ph,
            pw,
            tables[0].data(),
            tables[1].data(),
            tables[2].data(),
            tables[3].data(),
            tables[4].data(),
            tables[5].data()};
  }
};

TEST_P(NnContract, RmsNormAndRope) {
  const Rope ropes[] = {Rope(2, 3, 4, 12, 10, 10), Rope(1, 1, 1, 22, 21, 21),
                        Rope(3, 2, 5, 1, 1, 1), Rope(2, 2, 2, 0, 3, 2)};
  for (const Rope& rope : ropes)
    for (int32_t heads : {1, 2, 3})
      for (DType from : {DType::f32, DType::bf16})
        for (DType to : {DType::f32, DType::bf16})
          for (bool turn : {false, true}) {
            const RopeTables& r = rope.view;
            const int64_t m = r.frames * r.height * r.width;
            const int64_t d =
                int64_t{heads} * 2 * (r.pairs_frames + r.pairs_height + r.pairs_width);
            const Rows x(from, m, d, 8, 1), out(to, m, d, 3, 2), expected(to, m, d, 3, 2);
            const std::vector<float> weight = random_floats(d, 3, 0.5, 1.0);
            const RopeTables* tables = turn ? &r : nullptr;
            ref_->rms_norm(x.view, weight.data(), 1e-6f, NormSpan::row, tables, heads,
                           expected.view);
            backend_->rms_norm(x.view, weight.data(), 1e-6f, NormSpan::row, tables, heads,
                               out.view);
            const std::string context =
                fmt::format("m {} d {} heads {} rope {}", m, d, heads, turn);
            EXPECT_TRUE(close(out.view, expected.view, network(to), context));
            EXPECT_TRUE(out.intact());
            if (from != to) continue;
            backend_->rms_norm(x.view, weight.data(), 1e-6f, NormSpan::row, tables, heads, x.view);
            EXPECT_TRUE(close(x.view, expected.view, network(to), context + " in place"));
          }
}

// Tables of Mochi's kind: an angle of its own for every head and pair of a position.
struct SummedRope {
  std::vector<float> tables[6];
  RopeTables view;
  // f(axis, position, head, pair) is the angle.
  template <typename F>
  SummedRope(int64_t frames, int64_t height, int64_t width, int64_t heads, int32_t pairs,
             const F& f) {
    const int64_t sizes[] = {frames, height, width};
    for (int axis = 0; axis < 3; ++axis)
      for (int64_t i = 0; i < sizes[axis] * heads * pairs; ++i) {
        const double angle = f(axis, i / (heads * pairs), i / pairs % heads, i % pairs);
        tables[2 * axis].push_back(static_cast<float>(std::cos(angle)));
        tables[2 * axis + 1].push_back(static_cast<float>(std::sin(angle)));
      }
    view = {.frames = frames,
            .height = height,
            .width = width,
            .pairs_frames = pairs,
            .pairs_height = pairs,
            .pairs_width = pairs,
            .cos_frames = tables[0].data(),
            .sin_frames = tables[1].data(),
            .cos_height = tables[2].data(),
            .sin_height = tables[3].data(),
            .cos_width = tables[4].data(),
            .sin_width = tables[5].data(),
            .summed = true};
  }
};

TEST_P(NnContract, RmsNormOfHeadsAndSummedAngles) {
  const auto learnt = [](int axis, int64_t position, int64_t head, int64_t pair) {
    return static_cast<double>(position - 1) * (axis + 1) * std::cos(7.0 * head + pair);
  };
  for (int32_t heads : {1, 3})
    for (int32_t pairs : {1, 3, 32, 64, 67})
      for (NormSpan span : {NormSpan::row, NormSpan::head})
        for (int kind = 0; kind < 3; ++kind)  // no rope, split, summed
          for (DType from : {DType::f32, DType::bf16})
            for (DType to : {DType::f32, DType::bf16}) {
              const Rope split(3, 2, 5, pairs - pairs / 3 * 2, pairs / 3, pairs / 3);
              const SummedRope summed(3, 2, 5, heads, pairs, learnt);
              const RopeTables* rope = kind == 0 ? nullptr : kind == 1 ? &split.view : &summed.view;
              const int64_t m = 30, d = int64_t{heads} * 2 * pairs;
              const Rows x(from, m, d, kind * 4, 1), out(to, m, d, 3, 2), expected(to, m, d, 3, 2);
              for (int64_t i = 0; i < m; ++i)  // heads of different size
                for (int64_t c = 0; c < d; ++c) {
                  const int64_t at = i * x.view.stride[0] + c;
                  put(x.view, at, get(x.view, at) * static_cast<double>(1 + c / (2 * pairs)));
                }
              const std::vector<float> weight =
                  random_floats(span == NormSpan::head ? 2 * pairs : d, 3, 0.5, 1.0);
              const auto run = [&](Backend& b, const TensorView& result) {
                b.rms_norm(x.view, weight.data(), 1e-6f, span, rope, heads, result);
              };
              run(*ref_, expected.view);
              run(*backend_, out.view);
              const std::string context = fmt::format("heads {} pairs {} span {} rope {}", heads,
                                                      pairs, static_cast<int>(span), kind);
              EXPECT_TRUE(close(out.view, expected.view, network(to), context));
              EXPECT_TRUE(out.intact());
              if (from != to) continue;
              run(*backend_, x.view);
              EXPECT_TRUE(close(x.view, expected.view, network(to), context + " in place"));
            }
}

TEST_P(NnContract, OneHeadIsARow) {
  const Tensor x = random_tensor(DType::f32, {7, 70}, 1), row(DType::f32, {7, 70}),
               head(DType::f32, {7, 70});
  const std::vector<float> weight = random_floats(70, 2);
  backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, nullptr, 0, row);
  backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::head, nullptr, 1, head);
  EXPECT_TRUE(close(head, row, network(DType::f32), "one head"));
}

// Two axes that turn nothing leave the third, whichever it is.
TEST_P(NnContract, SummedAnglesOfOneAxisAreSplitOnes) {
  for (int turning = 0; turning < 3; ++turning) {
    const auto pairs = [&](int axis) { return axis == turning ? 6 : 0; };
    const Rope split(3, 4, 2, pairs(0), pairs(1), pairs(2));
    const SummedRope summed(3, 4, 2, 2, 6, [&](int axis, int64_t position, int64_t, int64_t pair) {
      return axis == turning ? position * std::pow(10000.0, -double(pair) / 6) : 0.0;
    });
    const Tensor x = random_tensor(DType::f32, {24, 24}, 1), a(DType::f32, {24, 24}),
                 b(DType::f32, {24, 24});
    const std::vector<float> weight = random_floats(24, 2);
    backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, &split.view, 2, a);
    backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, &summed.view, 2, b);
    EXPECT_EQ(values(a), values(b)) << "axis " << turning;
  }
}

TEST_P(NnContract, RmsNormRefusesWrongTables) {
  const Rope rope(2, 3, 4, 2, 1, 1);
  const Tensor x = random_tensor(DType::f32, {24, 16}, 1),
               fewer = random_tensor(DType::f32, {23, 16}, 1);
  const std::vector<float> weight(16, 1.0f);
  EXPECT_NO_THROW(backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, &rope.view, 2, x));
  EXPECT_THROW(backend_->rms_norm(fewer, weight.data(), 1e-6f, NormSpan::row, &rope.view, 2, fewer),
               Error);
  EXPECT_THROW(backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, &rope.view, 4, x), Error);
}

TEST_P(NnContract, GatedProduct) {
  for (int64_t d : {1, 7, 64, 333})
    for (Epilogue activation : {Epilogue::gelu_tanh, Epilogue::silu})
      for (DType dtype : {DType::f32, DType::bf16}) {
        const Rows gate(dtype, 5, d, 0, 1), up(dtype, 5, d, 0, 2), out(dtype, 5, d, 0, 3),
            expected(dtype, 5, d, 0, 3);
        put(gate.view, 0, 60.0);  // far ends of the tanh
        put(gate.view, 4 * d, -60.0);
        ref_->gated_product(activation, gate.view, up.view, expected.view);
        backend_->gated_product(activation, gate.view, up.view, out.view);
        const std::string context = fmt::format("d {} of {}", d, static_cast<int>(activation));
        EXPECT_TRUE(close(out.view, expected.view, network(dtype), context));
        backend_->gated_product(activation, gate.view, up.view, gate.view);
        EXPECT_EQ(values(gate.view), values(out.view)) << context << " in place";
      }
}

TEST_P(NnContract, Conv3d) {
  struct Case {
    int64_t t, h, w, c_in, c_out, kt, kh, kw;
    ConvParams conv;
  };
  const ConvParams same{.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1};
  const Case cases[] = {
      {3, 8, 9, 16, 24, 3, 3, 3, same},
      {1, 5, 4, 3, 5, 1, 1, 1, {}},
      {2, 7, 6, 32, 16, 1, 3, 3, same},
      {2, 8, 8, 8, 8, 1, 3, 3, {.stride_h = 2, .stride_w = 2, .pad_bottom = 1, .pad_right = 1}},
      {5, 3, 3, 16, 32, 3, 1, 1, {.stride_t = 2}},
      {4, 2, 2, 7, 3, 3, 1, 1, {}},
      {3, 1, 1, 2, 1, 3, 3, 3, same},
      {2, 6, 5, 8, 16, 2, 3, 2, {.pad_top = 2, .pad_left = 1}},
      {1, 6, 5, 4, 4, 1, 3, 3, {.stride_w = 2, .pad_bottom = 2, .pad_left = 1}},
      {1, 12, 10, 48, 12, 1, 3, 3, same},
  };
  int turn = 0;
  for (const Case& s : cases)
    for (DType dtype : {DType::f32, DType::bf16})
      for (int mix = 0; mix < 8; ++mix) {
        const Tensor x = random_tensor(dtype, {s.t, s.h, s.w, s.c_in}, ++turn);
        const Tensor w = random_tensor(dtype, {s.c_out, s.c_in, s.kt, s.kh, s.kw}, 2);
        const std::vector<float> bias = random_floats(s.c_out, 3, 5.0);
        const int64_t to = (s.t - s.kt) / s.conv.stride_t + 1;
        const int64_t ho = (s.h + s.conv.pad_top + s.conv.pad_bottom - s.kh) / s.conv.stride_h + 1;
        const int64_t wo = (s.w + s.conv.pad_left + s.conv.pad_right - s.kw) / s.conv.stride_w + 1;
        const Tensor out(dtype, {to, ho, wo, s.c_out}), expected(dtype, {to, ho, wo, s.c_out});
        const Tensor residual = random_tensor(dtype, {to, ho, wo, s.c_out}, 4, 5.0);
        const TensorView residual_view = residual;
        const float* b = mix & 1 ? bias.data() : nullptr;
        const TensorView* r = mix & 2 ? &residual_view : nullptr;
        ConvParams conv = s.conv;
        conv.relu = (mix & 4) != 0;
        ref_->conv3d(x, w, b, conv, r, expected);
        backend_->conv3d(x, w, b, conv, r, out);
        EXPECT_TRUE(
            close(out, expected, network(dtype), fmt::format("case {} mix {}", &s - cases, mix)));
      }
}

TEST_P(NnContract, Conv3dRefusesWrongShapes) {
  const Tensor x = random_tensor(DType::f32, {3, 4, 4, 2}, 1);
  const Tensor w = random_tensor(DType::f32, {2, 2, 3, 3, 3}, 2);
  const Tensor wrong_w = random_tensor(DType::f32, {2, 3, 3, 3, 3}, 2);
  const Tensor out(DType::f32, {1, 2, 2, 2}), wrong_out(DType::f32, {1, 4, 4, 2});
  EXPECT_NO_THROW(backend_->conv3d(x, w, nullptr, {}, nullptr, out));
  EXPECT_THROW(backend_->conv3d(x, w, nullptr, {}, nullptr, wrong_out), Error);
  EXPECT_THROW(backend_->conv3d(x, wrong_w, nullptr, {}, nullptr, out), Error);
  EXPECT_THROW(backend_->conv3d(x, w, nullptr, {.stride_h = 0}, nullptr, out), Error);
}

TEST_P(NnContract, ChannelNorm) {
  for (int64_t c : {1, 3, 16, 96, 384})
    for (bool silu : {false, true})
      for (DType dtype : {DType::f32, DType::bf16}) {
        const Tensor x = random_tensor(dtype, {2, 3, 5, c}, 1, 4.0);
        for (int64_t i = 0; i < c; ++i) put(x, 2 * c + i, 0.0);
        const Tensor out(dtype, {2, 3, 5, c}), expected(dtype, {2, 3, 5, c});
        const std::vector<float> gamma = random_floats(c, 2, 0.3, 1.0);
        ref_->channel_norm(x, gamma.data(), silu, expected);
        backend_->channel_norm(x, gamma.data(), silu, out);
        EXPECT_TRUE(close(out, expected, network(dtype), fmt::format("c {} silu {}", c, silu)));
        backend_->channel_norm(x, gamma.data(), silu, x);
        EXPECT_EQ(values(x), values(out)) << "in place";
      }
}

// A contiguous tensor with NaN in front and behind.
struct Island {
  Tensor memory;
  TensorView view;
  Island(DType dtype, std::initializer_list<int64_t> shape, int64_t margin)
      : memory(dtype, {2 * margin + Tensor(dtype, shape).numel()}) {
    for (int64_t i = 0; i < memory.numel(); ++i) put(memory, i, std::nan(""));
    auto* begin = static_cast<char*>(memory.view().data) + storage_bytes(dtype, margin);
    view = make_view(begin, dtype, shape);
  }
  bool intact(int64_t margin) const {
    for (int64_t i = 0; i < margin; ++i)
      if (!std::isnan(get(memory, i)) || !std::isnan(get(memory, memory.numel() - 1 - i)))
        return false;
    return true;
  }
};

TEST_P(NnContract, GroupNorm) {
  struct Case {
    int64_t n, m, c;
    int32_t groups;
    double scale, offset;
  };
  // Ragged channels, groups of one channel, one group, one pixel, several chunks of rows, rows
  // wider than a block of threads, a mean far larger than the spread.
  const Case cases[] = {{1, 1, 32, 32, 1.0, 0.0},    {2, 5, 6, 2, 4.0, 1.0},
                        {3, 77, 7, 7, 1.0, 0.0},     {1, 130, 9, 1, 1.0, -2.0},
                        {2, 1500, 64, 32, 3.0, 0.5}, {1, 40, 1030, 10, 1.0, 0.0},
                        {1, 2900, 36, 4, 20.0, 1e3}, {1, 6000, 16, 4, 0.01, 100.0}};
  for (const Case& s : cases)
    for (bool silu : {false, true})
      for (DType dtype : {DType::f32, DType::bf16})
        for (int64_t margin : {3, 16}) {
          const Island x(dtype, {s.n, s.m, s.c}, margin), out(dtype, {s.n, s.m, s.c}, margin);
          const Tensor expected(dtype, {s.n, s.m, s.c});
          fill_normal(x.view, 1, s.scale, s.offset);
          const std::vector<float> weight = random_floats(s.c, 2, 0.5, 1.0);
          const std::vector<float> bias = random_floats(s.c, 3);
          const auto run = [&](Backend& b, const TensorView& to) {
            b.group_norm(x.view, s.groups, weight.data(), bias.data(), 1e-6f, silu, to);
          };
          run(*ref_, expected);
          run(*backend_, out.view);
          const std::string context =
              fmt::format("n {} m {} c {} silu {} margin {}", s.n, s.m, s.c, silu, margin);
          EXPECT_TRUE(close(out.view, expected, network(dtype), context));
          EXPECT_TRUE(out.intact(margin));
          run(*backend_, x.view);
          EXPECT_EQ(values(x.view), values(out.view)) << context << " in place";
          EXPECT_TRUE(x.intact(margin));
        }
}

TEST_P(NnContract, GroupNormOfSamplesIsThatOfEach) {
  const int64_t m = 700, c = 24;
  const Tensor x = random_tensor(DType::f32, {3, m, c}, 1, 2.0, 1.0), out(DType::f32, {3, m, c}),
               one(DType::f32, {1, m, c});
  const std::vector<float> p = random_floats(2 * c, 2);
  backend_->group_norm(x, 3, p.data(), p.data() + c, 1e-5f, true, out);
  const std::vector<double> all = values(out);
  for (int64_t n = 0; n < 3; ++n) {
    const TensorView sample = make_view(x.as<float>() + n * m * c, DType::f32, {1, m, c});
    backend_->group_norm(sample, 3, p.data(), p.data() + c, 1e-5f, true, one);
    EXPECT_EQ(values(one),
              std::vector<double>(all.begin() + n * m * c, all.begin() + (n + 1) * m * c));
  }
}

TEST_P(NnContract, GroupNormOfAConstantIsItsBias) {
  const Tensor x(DType::f32, {1, 900, 12}), out(DType::f32, {1, 900, 12});
  for (int64_t i = 0; i < x.numel(); ++i) put(x, i, i % 12 < 6 ? 1000.1 : -0.3);
  const std::vector<float> weight = random_floats(12, 1), bias = random_floats(12, 2);
  backend_->group_norm(x, 2, weight.data(), bias.data(), 1e-6f, false, out);
  for (int64_t i = 0; i < x.numel(); ++i)
    ASSERT_EQ(get(out, i), double{bias[static_cast<size_t>(i % 12)]}) << "element " << i;
}

// One value far out in front of the rest: where sums of distances to the first value begin badly.
TEST_P(NnContract, GroupNormOfAnOutlier) {
  for (double far : {1e3, -1e6}) {
    const Tensor x = random_tensor(DType::f32, {1, 3000, 8}, 1), out(DType::f32, {1, 3000, 8}),
                 expected(DType::f32, {1, 3000, 8});
    put(x, 0, far);
    const std::vector<float> weight = random_floats(8, 1), bias = random_floats(8, 2);
    ref_->group_norm(x, 2, weight.data(), bias.data(), 1e-6f, false, expected);
    backend_->group_norm(x, 2, weight.data(), bias.data(), 1e-6f, false, out);
    EXPECT_TRUE(close(out, expected, network(DType::f32), fmt::format("outlier {}", far)));
  }
}

TEST_P(NnContract, SameBitsForOneAndTwoThreads) {
  const int before = num_threads();
  std::vector<std::vector<double>> results;
  for (int threads : {1, 2}) {
    set_num_threads(threads);
    std::vector<double> all;
    const auto add = [&](const Tensor& t) {
      const std::vector<double> v = values(t);
      all.insert(all.end(), v.begin(), v.end());
    };
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Tensor x = random_tensor(dtype, {300, 200}, 1), w = random_tensor(dtype, {170, 200}, 2);
      const Tensor y(dtype, {300, 170});
      backend_->linear(x, w, nullptr, Epilogue::gelu_tanh, nullptr, y);
      add(y);
      const Tensor image = random_tensor(dtype, {3, 20, 18, 16}, 3);
      const Tensor kernel = random_tensor(dtype, {24, 16, 3, 3, 3}, 4);
      const Tensor conv(dtype, {1, 20, 18, 24});
      backend_->conv3d(image, kernel, nullptr,
                       {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1}, nullptr,
                       conv);
      add(conv);
      const std::vector<float> weight = random_floats(200, 5);
      const Tensor normed(dtype, {300, 200});
      backend_->rms_norm(x, weight.data(), 1e-6f, NormSpan::row, nullptr, 1, normed);
      add(normed);
      const Tensor map = random_tensor(dtype, {2, 5000, 40}, 6), group(dtype, {2, 5000, 40});
      backend_->group_norm(map, 8, weight.data(), weight.data() + 40, 1e-6f, true, group);
      add(group);
    }
    results.push_back(all);
  }
  set_num_threads(before);
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(Backends, NnContract, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
