// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/cuda_backend.h"

#include <gtest/gtest.h>

#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/backend/ref/ref_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/attend_expect.h"

namespace lacuna::test {
namespace {

std::unique_ptr<Backend> emulated() {
  return make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm90, 1));
}

TEST(CudaBackend, Attends) {
  const auto backend = emulated(), ref = make_ref_backend();
  EXPECT_EQ(backend->name(), "cuda");
  EXPECT_EQ(backend->description(), "cuda emulated sm90");
  const AttendCase c(
      {.dtype = DType::bf16, .q_len = 70, .k_len = 90, .block_k = 64, .density = 0.5});
  expect_same(c, c.run(*backend), c.run(*ref));
}

TEST(CudaBackend, HoldsAtMostNineTenthsOfWhatIsFree) {
  const auto backend = emulated();  // 1 GiB is free
  constexpr int64_t kMost = (int64_t{1} << 30) / 10 * 9;
  EXPECT_EQ(backend->memory_use().limit, kMost);
  backend->limit_memory(1000);
  EXPECT_EQ(backend->memory_use().limit, 1000);
  EXPECT_THROW(backend->allocate(1001), Error);
  void* p = backend->allocate(1000);
  EXPECT_EQ(backend->memory_use().held, 1000);
  EXPECT_THROW(backend->allocate(1), Error);
  backend->release(p);
  backend->limit_memory(int64_t{1} << 40);
  EXPECT_EQ(backend->memory_use().limit, kMost);
}

TEST(CudaBackend, RefusalsNameThemselves) {
  const auto backend = emulated();
  const AttendCase c({.dtype = DType::f32, .skip = SkipKind::running_max, .skip_param = 0.1f});
  try {
    c.run(*backend);
    ADD_FAILURE() << "a skip rule in f32 was accepted";
  } catch (const Error& e) {
    EXPECT_STREQ(
        e.what(),
        "attend: skip rule with f32, head_dim 64, sm_scale 0.125 on cuda, expected bf16 or "
        "f16, 64 or 128, above 0");
  }
}

}  // namespace
}  // namespace lacuna::test
