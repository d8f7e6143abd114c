// SPDX-License-Identifier: Apache-2.0
// The attention kernels' own source on the emulator, and the compiled kernels on a GPU where there
// is one, through the same host code, against the reference.
#include "lacuna/backend/cuda/attend.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "lacuna/backend/cuda/driver.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/attend_expect.h"
#include "tests/support/shapes.h"

namespace lacuna::test {
namespace {

using cuda::Device;
using cuda::Family;

enum class Place { emulated_sm80, emulated_sm90, gpu };

std::unique_ptr<Device> make_device(Place place, uint64_t seed) {
  if (place == Place::gpu) return cuda::make_driver_device();
  return cuda::emulator::make_emulated_device(
      place == Place::emulated_sm80 ? Family::sm80 : Family::sm90, seed);
}

class CudaAttend : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    try {
      device_ = make_device(GetParam(), 1);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  AttendResult run(const AttendCase& c, bool with_stats = true) {
    return c.run_with([&](const AttendParams& p) { cuda::attend(*device_, p); }, with_stats);
  }
  void expect_ref(const AttendCase& c) { expect_same(c, run(c), c.run(*ref_)); }
  // On host tensors, which the emulator's attention kernels do not mind.
  void resident(AttendParams p, size_t scratch = cuda::kAttendScratch) {
    const int64_t heads =
        p.head_ids == nullptr
            ? p.num_heads
            : *std::max_element(p.head_ids, p.head_ids + p.num_heads) + int64_t{1};
    const std::vector<float> none(static_cast<size_t>(heads * p.q_len), std::nanf(""));
    const cuda::DeviceMemory lse(*device_, none);
    float* host = std::exchange(p.lse, lse.as<float>());
    cuda::attend_resident(*device_, p, scratch);
    device_->download(host, p.lse, none.size() * sizeof(float));
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Backend> ref_ = make_ref_backend();
};

TEST_P(CudaAttend, SharedShapes) {
  for (AttendSpec spec : attend_shapes()) {
    spec.dtype = DType::bf16;
    // The emulator's time: heads beyond the first add nothing but where subsets are chosen.
    spec.q_len = std::min<int64_t>(spec.q_len, 391);
    spec.k_len = std::min<int64_t>(spec.k_len, 391);
    if (spec.head_ids.empty() && spec.q_len > 150) spec.heads = 1;
    expect_ref(AttendCase(spec));
  }
}

// What all heads leave at once is an eighth of their tensors here: with less room they take turns.
TEST_P(CudaAttend, BlockMassKeepsToTheLimit) {
  if (GetParam() == Place::gpu) GTEST_SKIP() << "the same host code as on the emulator";
  AttendSpec spec{.dtype = DType::bf16, .heads = 2, .q_len = 1024, .k_len = 1024, .head_dim = 64};
  spec.block_q = spec.block_k = 64;
  const AttendCase c(spec);
  const AttendResult free = run(c);
  const int64_t most = device_->use().most;
  device_ = make_device(GetParam(), 1);
  device_->set_limit(static_cast<size_t>(most) - (32 << 10));
  EXPECT_EQ(run(c).block_mass, free.block_mass);
}

// scripts/gpu-check gives fresh inputs on a GPU, where many are cheap.
uint64_t first_seed() {
  const char* given = std::getenv("LACUNA_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
}

TEST_P(CudaAttend, RandomShapes) {
  const uint64_t first = first_seed();
  const uint64_t count = GetParam() == Place::gpu ? 200 : 8;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    AttendSpec spec = random_shape(seed);
    spec.dtype = DType::bf16;
    const AttendCase c(spec);
    const AttendResult expected = c.run(*ref_), bare = run(c, false);
    expect_same(c, run(c), expected);
    const int64_t shape[] = {spec.heads, spec.q_len, spec.head_dim};
    EXPECT_TRUE(close(bare.out, expected.out, attend_out(spec.dtype, lse_peak(expected)), shape,
                      spec.describe() + " without optional outputs"));
  }
}

// Long enough for both stages to go round many times, with unequal jobs.
TEST_P(CudaAttend, ManyTiles) {
  AttendSpec spec{.dtype = DType::bf16, .heads = 2, .q_len = 200, .k_len = 1500, .head_dim = 64};
  spec.block_q = spec.block_k = 64;
  spec.density = 0.6;
  expect_ref(AttendCase(spec));
}

// Blocks of at most 64 keys vote slot by slot, longer ones tile by tile; query blocks of 64 rows
// walk union lists whose orders disagree (coarse_to_fine).
TEST_P(CudaAttend, SkipRulesDropTheSamePieces) {
  int compared = 0, total = 0;
  int64_t skipped = 0;
  // The votes are the same source for both families: one gets the long list.
  for (uint64_t seed = GetParam() == Place::emulated_sm80 ? 4 : 1; seed <= 5; ++seed)
    for (const Rule& rule : skip_rules()) {
      AttendCase c({.dtype = DType::bf16,
                    .heads = 2,
                    .head_ids = {1},
                    .q_len = 150,
                    .k_len = 300,
                    .head_dim = seed % 3 == 0 ? 128 : 64,
                    .block_q = seed < 3 ? 64 : 100,
                    .block_k = seed == 4 ? 200 : (seed == 2 ? 64 : 32),
                    .explicit_blocks = seed == 5,
                    .density = seed == 1 ? 1.0 : 0.8,
                    .visit = VisitOrder::coarse_to_fine,
                    .bias = seed == 3 ? Bias::per_key : Bias::none,
                    .bias_masked = 0.2,
                    .pattern = Pattern::structured,
                    .sharpness = 3.0,
                    .seed = seed});
      ++total;
      const std::optional<AttendResult> expected = stable_reference(c, *ref_, rule);
      if (!expected.has_value()) continue;
      ++compared;
      for (uint64_t word : expected->skip_bits)
        if (word != AttendCase::kUntouchedBits) skipped += word != 0;
      expect_same(c, run(c), *expected);
    }
  EXPECT_GE(compared, total / 2) << "too few cases away from their thresholds";
  EXPECT_GT(skipped, 0);
}

TEST_P(CudaAttend, MaskedPiecesGoButNeverTheFirst) {
  for (SkipKind kind : {SkipKind::running_max, SkipKind::running_lse, SkipKind::recall}) {
    AttendCase c({.dtype = DType::bf16,
                  .heads = 1,
                  .q_len = 70,
                  .k_len = 96,
                  .block_k = 32,
                  .bias = Bias::per_key});
    for (int64_t j = 0; j < 96; ++j)
      if (j / 32 != 1) c.set_bias(j, -std::numeric_limits<float>::infinity());
    c.set_skip(kind, kind == SkipKind::recall        ? 1.0f
                     : kind == SkipKind::running_max ? 0.0f
                                                     : -1e30f);
    const AttendResult r = run(c);
    EXPECT_EQ(r.skip_bits, std::vector<uint64_t>{4}) << static_cast<int>(kind);
    EXPECT_EQ(r.pv_pairs, std::vector<int64_t>{70 * 64}) << static_cast<int>(kind);
    for (float x : r.lse) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST_P(CudaAttend, NanInOneQueryStaysInItsRow) {
  const AttendCase c({.dtype = DType::bf16, .heads = 1, .q_len = 70, .k_len = 70});
  put(c.q(), 9 * c.q().stride[1] + 5, std::nan(""));
  const AttendResult r = run(c);
  for (int64_t i = 0; i < 70; ++i) EXPECT_EQ(std::isnan(r.out[i * 64]), i == 9) << "row " << i;
}

TEST_P(CudaAttend, NoKeysAndNoQueries) {
  const AttendResult none = run(AttendCase({.dtype = DType::bf16, .q_len = 5, .k_len = 0}));
  for (double x : none.out) EXPECT_EQ(x, 0.0);
  for (float x : none.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
  const AttendResult empty = run(AttendCase({.dtype = DType::bf16, .q_len = 0, .k_len = 9}));
  EXPECT_EQ(empty.pv_pairs, std::vector<int64_t>(2, 0));
}

// Strided tensors as they lie, which is what TMA's strides and clipping are for.
TEST_P(CudaAttend, ResidentStridedTensors) {
  if (GetParam() == Place::gpu) GTEST_SKIP() << "the tensors lie in host memory";
  for (Storage storage : {Storage::heads_first, Storage::tokens_first, Storage::padded}) {
    const AttendCase c({.dtype = DType::bf16,
                        .heads = 3,
                        .head_ids = {2, 0},
                        .q_len = 150,
                        .k_len = 210,
                        .block_q = 64,
                        .block_k = 64,
                        .storage = storage,
                        .density = 0.6});
    const AttendResult r = c.run_with([&](const AttendParams& p) { resident(p); });
    expect_same(c, r, c.run(*ref_));
  }
}

// Head by head, because there is room for no more.
TEST_P(CudaAttend, ChunksOfHeads) {
  if (GetParam() == Place::gpu) GTEST_SKIP() << "the tensors lie in host memory";
  for (const double density : {1.0, 0.6})
    for (const SkipKind kind : {SkipKind::none, SkipKind::running_max}) {
      AttendCase c({.dtype = DType::bf16,
                    .heads = 3,
                    .head_ids = {2, 0},
                    .q_len = 100,
                    .k_len = 150,
                    .block_q = 64,
                    .block_k = 64,
                    .density = density,
                    .visit = VisitOrder::coarse_to_fine,
                    .pattern = Pattern::structured,
                    .sharpness = 3.0});
      if (kind != SkipKind::none) c.set_skip(kind, 0.3f);
      const AttendResult all = c.run_with([&](const AttendParams& p) { resident(p); });
      const AttendResult each = c.run_with([&](const AttendParams& p) { resident(p, 1); });
      EXPECT_EQ(each.pv_pairs, all.pv_pairs);
      EXPECT_EQ(each.skip_bits, all.skip_bits);
      const int64_t shape[] = {3, 100, 64};
      EXPECT_TRUE(near_abs(each.out, all.out, 0.0, shape, c.spec().describe()));
      EXPECT_TRUE(near_abs(each.block_mass, all.block_mass, 0.0, "block_mass"));
    }
}

// The order in which threads run and copies land must not show.
TEST_P(CudaAttend, SameBitsForEverySchedule) {
  AttendCase c({.dtype = DType::bf16,
                .q_len = 200,
                .k_len = 330,
                .block_q = 64,
                .block_k = 64,
                .density = 0.7,
                .visit = VisitOrder::coarse_to_fine,
                .pattern = Pattern::structured,
                .sharpness = 3.0});
  for (SkipKind kind : {SkipKind::none, SkipKind::running_max}) {
    c.set_skip(kind, 0.3f);
    const AttendResult first = run(c);
    for (uint64_t seed = 100; seed < 104; ++seed) {
      device_ = make_device(GetParam(), seed);
      const AttendResult r = run(c);
      EXPECT_EQ(std::memcmp(r.out.data(), first.out.data(), r.out.size() * sizeof(double)), 0);
      EXPECT_EQ(r.skip_bits, first.skip_bits);
    }
  }
}

// fp16: inputs that fp16 holds exactly, so that the reference may compute in f32.
TEST_P(CudaAttend, Fp16) {
  for (int32_t dim : {64, 128}) {
    const AttendCase c(
        {.q_len = 130, .k_len = 190, .head_dim = dim, .block_k = 64, .density = 0.7});
    std::vector<uint16_t> half[3];
    int i = 0;
    for (const TensorView* x : {&c.q(), &c.k(), &c.v()}) {
      for_each(*x, [&](int64_t, int64_t at) {
        half[i].push_back(static_cast<uint16_t>(_cvtss_sh(static_cast<float>(get(*x, at)), 0)));
        put(*x, at, _cvtsh_ss(half[i].back()));
      });
      ++i;
    }
    std::vector<uint16_t> out(half[0].size(), 0x7e00);
    AttendResult r = c.run_with([&](AttendParams p) {
      p.dtype = AttendDType::f16;
      p.q = half[0].data(), p.k = half[1].data(), p.v = half[2].data(), p.out = out.data();
      p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = dim;
      p.q_head_stride = p.out_head_stride = 130 * dim;
      p.k_head_stride = p.v_head_stride = 190 * dim;
      cuda::attend(*device_, p);
    });
    for (size_t j = 0; j < out.size(); ++j) r.out[j] = _cvtsh_ss(out[j]);
    const AttendResult expected = c.run(*ref_);
    const int64_t shape[] = {2, 130, dim};
    // fp16 has three bits more than bf16.
    EXPECT_TRUE(close(r.out, expected.out, attend_out(DType::bf16), shape, c.spec().describe()));
    double worst = 0.0;
    for (size_t j = 0; j < out.size(); ++j)
      worst = std::max(worst, std::abs(r.out[j] - expected.out[j]));
    EXPECT_LT(worst, 2e-3) << "more like bf16 than fp16";
    EXPECT_EQ(r.pv_pairs, expected.pv_pairs);
  }
}

INSTANTIATE_TEST_SUITE_P(Places, CudaAttend,
                         testing::Values(Place::emulated_sm80, Place::emulated_sm90, Place::gpu),
                         [](const auto& info) {
                           return info.param == Place::gpu             ? "gpu"
                                  : info.param == Place::emulated_sm90 ? "emulated_sm90"
                                                                       : "emulated_sm80";
                         });

}  // namespace
}  // namespace lacuna::test
