// SPDX-License-Identifier: Apache-2.0
// The reference attention against a softmax written out here, and properties of attention itself.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "tests/support/attend_case.h"
#include "tests/support/shapes.h"

namespace lacuna::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Naive {
  std::vector<double> out, lse, mass;
};

// Which call index computes this tensor head, or -1.
int32_t call_of(const AttendCase& c, int32_t head) {
  for (int32_t i = 0; i < c.num_calls(); ++i)
    if (c.head(i) == head) return i;
  return -1;
}

// Key block of each key, -1 where the mask drops it for this query block.
std::vector<int32_t> kept_block_of_key(const AttendCase& c, int32_t call, int32_t qb) {
  std::vector<int32_t> block(static_cast<size_t>(c.spec().k_len), -1);
  for (int32_t kb = 0; kb < c.k_layout().num_blocks; ++kb)
    if (c.mask().empty() || c.mask().get(call, qb, kb))
      for (int64_t j = c.k_layout().begin(call, kb); j < c.k_layout().end(call, kb); ++j)
        block[j] = kb;
  return block;
}

// Out = sum_j softmax(s)_j v_j, one row at a time.
void naive_row(const AttendCase& c, int32_t head, int64_t i, const std::vector<int32_t>& block,
               double share, Naive& naive, double* mass) {
  const AttendSpec& s = c.spec();
  const auto at = [](const TensorView& x, int64_t h, int64_t t, int64_t d) {
    return get(x, h * x.stride[0] + t * x.stride[1] + d);
  };
  std::vector<double> e(static_cast<size_t>(s.k_len), -kInf);
  double top = -kInf, sum = 0.0;
  for (int64_t j = 0; j < s.k_len; ++j) {
    if (block[j] < 0) continue;
    double x = 0.0;
    for (int64_t d = 0; d < s.head_dim; ++d) x += at(c.q(), head, i, d) * at(c.k(), head, j, d);
    x *= c.sm_scale();
    if (s.bias == Bias::per_key) x += c.bias()[j];
    if (s.bias == Bias::full) x += c.bias()[(head * s.q_len + i) * s.k_len + j];
    e[j] = x;
    top = std::max(top, x);
  }
  for (double& x : e) {
    x = top == -kInf ? 0.0 : std::exp(x - top);
    sum += x;
  }
  double* out = naive.out.data() + (head * s.q_len + i) * s.head_dim;
  std::fill_n(out, s.head_dim, 0.0);
  naive.lse[head * s.q_len + i] = sum > 0.0 ? top + std::log(sum) : -kInf;
  if (sum == 0.0) return;
  for (int64_t j = 0; j < s.k_len; ++j) {
    if (block[j] < 0) continue;
    mass[block[j]] += share * e[j] / sum;
    for (int64_t d = 0; d < s.head_dim; ++d) out[d] += e[j] / sum * at(c.v(), head, j, d);
  }
}

Naive naive_attention(const AttendCase& c) {
  const AttendSpec& s = c.spec();
  const double nan = std::nan("");
  const int32_t nq = c.q_layout().num_blocks, nk = c.k_layout().num_blocks;
  Naive naive{std::vector<double>(static_cast<size_t>(s.heads * s.q_len * s.head_dim), nan),
              std::vector<double>(static_cast<size_t>(s.heads * s.q_len), nan),
              std::vector<double>(static_cast<size_t>(s.heads) * nq * nk, nan)};
  for (int32_t head = 0; head < s.heads; ++head) {
    const int32_t call = call_of(c, head);
    if (call < 0) continue;
    for (int32_t qb = 0; qb < nq; ++qb) {
      double* mass = naive.mass.data() + (int64_t{head} * nq + qb) * nk;
      std::fill_n(mass, nk, 0.0);
      const std::vector<int32_t> block = kept_block_of_key(c, call, qb);
      const int64_t begin = c.q_layout().begin(call, qb), end = c.q_layout().end(call, qb);
      for (int64_t i = begin; i < end; ++i)
        naive_row(c, head, i, block, 1.0 / static_cast<double>(end - begin), naive, mass);
    }
  }
  return naive;
}

std::vector<double> widen(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

void expect_naive(const AttendSpec& spec) {
  const AttendCase c(spec);
  const auto ref = make_ref_backend();
  const AttendResult r = c.run(*ref);
  const Naive naive = naive_attention(c);
  const int64_t out_shape[] = {spec.heads, spec.q_len, spec.head_dim};
  const int64_t lse_shape[] = {spec.heads, spec.q_len};
  const int64_t mass_shape[] = {spec.heads, c.q_layout().num_blocks, c.k_layout().num_blocks};
  EXPECT_TRUE(close(r.out, naive.out, rounding(spec.dtype), out_shape, spec.describe()));
  EXPECT_TRUE(near_abs(widen(r.lse), naive.lse, 4e-6, lse_shape, spec.describe() + " lse"));
  EXPECT_TRUE(
      near_abs(widen(r.block_mass), naive.mass, 1e-7, mass_shape, spec.describe() + " block_mass"));
  EXPECT_TRUE(r.intact) << spec.describe() << ": wrote outside the output";
}

TEST(RefAttend, EqualsNaiveSoftmaxOnSharedShapes) {
  for (AttendSpec spec : attend_shapes()) {
    // The naive loops are slow: long shapes are for the other backends.
    if (spec.q_len * spec.k_len > 40000) continue;
    expect_naive(spec);
    spec.dtype = DType::bf16;
    expect_naive(spec);
  }
}

TEST(RefAttend, EqualsNaiveSoftmaxForOddHeadDims) {
  for (AttendSpec spec : odd_head_dims()) {
    spec.q_len = 70;
    spec.k_len = 40;
    expect_naive(spec);
    spec.dtype = DType::bf16;
    expect_naive(spec);
  }
  expect_naive({.heads = 1, .q_len = 3, .k_len = 5, .head_dim = 1024});
}

// Two keys, logits 0 and ln 3: weights 1/4 and 3/4.
TEST(RefAttend, HandWorkedTwoKeys) {
  const float q[] = {1.0f}, k[] = {0.0f, std::log(3.0f)}, v[] = {4.0f, 8.0f};
  float out = 0.0f, lse = 0.0f, mass[2] = {};
  int64_t pairs = 0;
  AttendParams p;
  p.q = q, p.k = k, p.v = v, p.out = &out;
  p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = 1;
  p.num_heads = 1, p.q_len = 1, p.k_len = 2, p.head_dim = 1, p.sm_scale = 1.0f;
  p.block_q = p.block_k = 1, p.num_q_blocks = 1, p.num_k_blocks = 2;
  p.lse = &lse, p.block_mass = mass, p.pv_pairs = &pairs;
  make_ref_backend()->attend(p);
  EXPECT_FLOAT_EQ(out, 7.0f);
  EXPECT_FLOAT_EQ(lse, std::log(4.0f));
  EXPECT_FLOAT_EQ(mass[0], 0.25f);
  EXPECT_FLOAT_EQ(mass[1], 0.75f);
  EXPECT_EQ(pairs, 2);
}

TEST(RefAttend, FullMaskIsDense) {
  const auto ref = make_ref_backend();
  for (bool explicit_blocks : {false, true}) {
    AttendCase c({.q_len = 200,
                  .k_len = 230,
                  .block_q = 64,
                  .block_k = 32,
                  .explicit_blocks = explicit_blocks});
    const AttendResult dense = c.run(*ref);
    BlockMask mask(c.num_calls(), c.q_layout().num_blocks, c.k_layout().num_blocks);
    mask.fill();
    c.set_mask(mask);
    const AttendResult listed = c.run(*ref);
    EXPECT_EQ(dense.out, listed.out);
    EXPECT_EQ(dense.lse, listed.lse);
    EXPECT_EQ(dense.block_mass, listed.block_mass);
    EXPECT_EQ(dense.pv_pairs, listed.pv_pairs);
    EXPECT_EQ(dense.pv_pairs[0], 200 * 230);
  }
}

TEST(RefAttend, PermutingKeysAndValuesTogetherChangesNothing) {
  const auto ref = make_ref_backend();
  const AttendSpec spec{.q_len = 65, .k_len = 150};
  const AttendCase c(spec);
  const AttendCase permuted(spec);
  Rng rng(9);
  std::vector<int32_t> order(150);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size() - 1; i > 0; --i)
    std::swap(order[i], order[static_cast<size_t>(rng.integer(0, static_cast<int64_t>(i)))]);
  ref->gather_tokens(c.k(), order.data(), 0, permuted.k());
  ref->gather_tokens(c.v(), order.data(), 0, permuted.v());
  const AttendResult a = c.run(*ref), b = permuted.run(*ref);
  const int64_t shape[] = {spec.heads, spec.q_len, spec.head_dim};
  EXPECT_TRUE(close(b.out, a.out, rounding(DType::f32), shape, spec.describe()));
  EXPECT_TRUE(near_abs(b.lse, a.lse, 1e-6, spec.describe()));
}

// attend(A) merged with attend(B) = attend(A + B) for a mask and its complement.
TEST(RefAttend, MergingDisjointMasksIsTheUnion) {
  const auto ref = make_ref_backend();
  for (DType dtype : {DType::f32, DType::bf16}) {
    AttendCase c({.dtype = dtype,
                  .q_len = 129,
                  .k_len = 200,
                  .block_q = 32,
                  .block_k = 32,
                  .density = 0.4,
                  .empty_rows = true});
    BlockMask rest(2, c.q_layout().num_blocks, c.k_layout().num_blocks);
    for (int32_t h = 0; h < 2; ++h)
      for (int32_t qb = 0; qb < rest.num_q_blocks(); ++qb)
        for (int32_t kb = 0; kb < rest.num_k_blocks(); ++kb)
          if (!c.mask().get(h, qb, kb)) rest.set(h, qb, kb);
    const AttendResult a = c.run(*ref);
    c.set_mask(rest);
    const AttendResult b = c.run(*ref);
    rest.fill();
    c.set_mask(rest);
    const AttendResult both = c.run(*ref);
    Tensor out_a(dtype, {2, 129, 64}), out_b(dtype, {2, 129, 64});
    for (size_t n = 0; n < a.out.size(); ++n) {
      put(out_a, static_cast<int64_t>(n), a.out[n]);
      put(out_b, static_cast<int64_t>(n), b.out[n]);
    }
    std::vector<float> lse = a.lse;
    ref->merge_lse(out_a, lse.data(), out_b, b.lse.data());
    const std::string context = c.spec().describe();
    const int64_t shape[] = {2, 129, 64};
    EXPECT_TRUE(close(values(out_a), both.out, rounding(dtype, 2.0), shape, context));
    EXPECT_TRUE(near_abs(lse, both.lse, 2e-6, context));
  }
}

TEST(RefAttend, RowsWithoutKeysGiveZeroAndMinusInfinity) {
  const auto ref = make_ref_backend();
  // By an empty block list.
  AttendCase c({.heads = 1, .q_len = 100, .k_len = 100, .block_q = 50, .block_k = 50});
  BlockMask mask(1, 2, 2);
  mask.set(0, 0, 1);
  c.set_mask(mask);
  const AttendResult r = c.run(*ref);
  for (int64_t i = 50; i < 100; ++i) {
    EXPECT_EQ(r.lse[i], -kInf);
    EXPECT_EQ(r.out[i * 64 + 3], 0.0);
  }
  EXPECT_TRUE(std::isfinite(r.lse[49]));
  EXPECT_EQ(r.block_mass, (std::vector<float>{0.0f, r.block_mass[1], 0.0f, 0.0f}));
  EXPECT_NEAR(r.block_mass[1], 1.0f, 1e-6);
  EXPECT_EQ(r.pv_pairs[0], 50 * 50);
  // By a bias of -inf everywhere, and by no keys at all.
  for (const AttendSpec& spec :
       {AttendSpec{.q_len = 5, .k_len = 7, .bias = Bias::per_key, .bias_masked = 1.1},
        AttendSpec{.q_len = 5, .k_len = 0}}) {
    const AttendResult none = AttendCase(spec).run(*ref);
    for (double x : none.out) EXPECT_EQ(x, 0.0);
    for (float x : none.lse) EXPECT_EQ(x, -kInf);
  }
}

TEST(RefAttend, NanInOneQueryStaysInItsRow) {
  const auto ref = make_ref_backend();
  const AttendCase c({.heads = 1, .q_len = 70, .k_len = 70});
  put(c.q(), 66 * c.q().stride[1] + 5, std::nan(""));
  const AttendResult r = c.run(*ref);
  for (int64_t i = 0; i < 70; ++i) {
    EXPECT_EQ(std::isnan(r.out[i * 64]), i == 66) << i;
    EXPECT_EQ(std::isnan(r.lse[i]), i == 66) << i;
  }
}

TEST(RefAttend, BlockMassRowsSumToOne) {
  const auto ref = make_ref_backend();
  const AttendCase c({.q_len = 200,
                      .k_len = 391,
                      .block_q = 64,
                      .block_k = 48,
                      .density = 0.5,
                      .pattern = Pattern::structured});
  const AttendResult r = c.run(*ref);
  const int32_t nk = c.k_layout().num_blocks;
  for (size_t row = 0; row < r.block_mass.size() / nk; ++row) {
    const float* mass = r.block_mass.data() + row * nk;
    EXPECT_NEAR(std::accumulate(mass, mass + nk, 0.0), 1.0, 1e-6) << "row " << row;
  }
}

// Fewest blocks of exact mass reaching p: what they hold is at least p, seen through lse.
TEST(RefAttend, TopPOnExactMassReachesItsRecall) {
  const auto ref = make_ref_backend();
  for (Pattern pattern : {Pattern::noise, Pattern::structured})
    for (float p : {0.3f, 0.8f, 0.95f, 1.0f}) {
      AttendCase c({.q_len = 256,
                    .k_len = 300,
                    .block_q = 32,
                    .block_k = 16,
                    .pattern = pattern,
                    .sharpness = 2.0});
      const AttendResult dense = c.run(*ref);
      const int32_t nq = c.q_layout().num_blocks, nk = c.k_layout().num_blocks;
      BlockMask mask(2, nq, nk);
      std::vector<float> mass = dense.block_mass;
      ref->select_top_p(make_view(mass.data(), DType::f32, {2, nq, nk}), std::vector<float>{p, p},
                        mask);
      mask.validate();
      c.set_mask(mask);
      const AttendResult sparse = c.run(*ref);
      for (int64_t h = 0; h < 2; ++h)
        for (int32_t qb = 0; qb < nq; ++qb) {
          double kept = 0.0;
          for (int32_t i = 0; i < 32; ++i) {
            const int64_t row = h * 256 + qb * 32 + i;
            kept += std::exp(double{sparse.lse[row]} - dense.lse[row]) / 32;
          }
          EXPECT_GE(kept, p - 2e-6) << "head " << h << " query block " << qb;
        }
      if (p < 0.5f) {
        EXPECT_LT(sparse.pv_pairs[0], dense.pv_pairs[0]);
      }
    }
}

TEST(RefAttend, SameBitsForAnyThreadCount) {
  const auto ref = make_ref_backend();
  const AttendCase c({.dtype = DType::bf16,
                      .heads = 3,
                      .q_len = 200,
                      .k_len = 200,
                      .block_q = 64,
                      .block_k = 32,
                      .density = 0.5,
                      .skip = SkipKind::running_max,
                      .skip_param = 0.3f});
  const int before = num_threads();
  set_num_threads(1);
  const AttendResult one = c.run(*ref);
  set_num_threads(2);
  const AttendResult two = c.run(*ref);
  set_num_threads(before);
  EXPECT_EQ(one.out, two.out);
  EXPECT_EQ(one.lse, two.lse);
  EXPECT_EQ(one.block_mass, two.block_mass);
  EXPECT_EQ(one.skip_bits, two.skip_bits);
  EXPECT_EQ(one.pv_pairs, two.pv_pairs);
}

TEST(RefAttend, RefusesWrongCallsByName) {
  const auto ref = make_ref_backend();
  const AttendCase c({.q_len = 100, .k_len = 100});
  const auto expect_refused = [&](auto change, const char* word) {
    AttendParams p = c.params();
    std::vector<float> out(2 * 100 * 64);
    p.out = out.data(), p.out_head_stride = 6400, p.out_token_stride = 64;
    ASSERT_EQ(ref->unsupported(p), "");
    change(p);
    const std::string why = ref->unsupported(p);
    EXPECT_NE(why.find(word), std::string::npos) << "said: " << why;
    try {
      ref->attend(p);
      ADD_FAILURE() << word << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.what(), why);
    }
  };
  expect_refused([](AttendParams& p) { p.head_dim = 1025; }, "head_dim 1025");
  expect_refused([](AttendParams& p) { p.head_dim = 0; }, "head_dim 0");
  expect_refused([](AttendParams& p) { p.k = nullptr; }, "null");
  expect_refused([](AttendParams& p) { p.num_k_blocks = 3; }, "num_k_blocks 3");
  expect_refused([](AttendParams& p) { p.block_q = 0; }, "block_q 0");
  expect_refused([](AttendParams& p) { p.sm_scale = std::nanf(""); }, "sm_scale");
  expect_refused([](AttendParams& p) { p.skip = SkipKind::recall; }, "skip_param");
  static const float kTooMuch[] = {1.5f, 1.5f};
  expect_refused(
      [](AttendParams& p) {
        p.skip = SkipKind::recall;
        p.skip_param = kTooMuch;
      },
      "recall 1.5");
  // Of the second call index: the first is right.
  const float nan = std::nanf("");
  const float good[] = {1.0f, 1.0f}, negative[] = {1.0f, -1.0f}, zero[] = {1.0f, 0.0f},
              no_number[] = {1.0f, nan};
  const auto refuse_skip = [&](SkipKind kind, const float* param, const float* kappa,
                               const char* word) {
    expect_refused(
        [&](AttendParams& p) { p.skip = kind, p.skip_param = param, p.skip_kappa = kappa; }, word);
  };
  refuse_skip(SkipKind::running_max, negative, nullptr, "running_max -1 of call index 1");
  refuse_skip(SkipKind::running_max, no_number, nullptr, "running_max nan of call index 1");
  refuse_skip(SkipKind::running_lse, no_number, nullptr, "running_lse nan of call index 1");
  refuse_skip(SkipKind::recall, zero, nullptr, "recall 0 of call index 1");
  refuse_skip(SkipKind::recall, no_number, nullptr, "recall nan of call index 1");
  for (const float* kappa : {zero, negative, no_number})
    refuse_skip(SkipKind::recall, good, kappa, "skip_kappa");
  static const int32_t kFalling[] = {0, 60, 100, 0, 101, 100};
  expect_refused(
      [](AttendParams& p) {
        p.q_offsets = kFalling;
        p.num_q_blocks = 2;
      },
      "q_offsets of call index 1");
}

TEST(RefAttend, RefusesBitsPastTheLastKeyBlockOfAnyRow) {
  const auto ref = make_ref_backend();
  const AttendCase c({.heads = 2, .q_len = 100, .k_len = 70, .block_q = 50, .block_k = 1});
  AttendParams p = c.params();
  std::vector<float> out(2 * 100 * 64);
  p.out = out.data(), p.out_head_stride = 6400, p.out_token_stride = 64;
  for (int row = 0; row < 4; ++row) {
    std::vector<uint64_t> mask(4 * 2, 1);  // two words a row: 64 key blocks and 6
    uint64_t* words = mask.data() + 2 * row;
    p.mask = mask.data();
    words[0] = ~uint64_t{0}, words[1] = 63;
    EXPECT_EQ(ref->unsupported(p), "") << row;
    words[1] = 64;
    EXPECT_EQ(ref->unsupported(p),
              fmt::format("attend: mask of call index {} query block {} has bits past key block "
                          "69, expected none",
                          row / 2, row % 2));
    EXPECT_THROW(ref->attend(p), Error);
  }
}

}  // namespace
}  // namespace lacuna::test
