// SPDX-License-Identifier: Apache-2.0
// Replayed calls on the CUDA backend: no clock may see the recording travel.
#include <gtest/gtest.h>

#include <algorithm>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/calibrate/replay_call.h"
#include "lacuna/core/convert.h"
#include "tests/support/compare.h"
#include "tests/support/local_call.h"

namespace lacuna::test {
namespace {

TEST(CudaReplay, TheRecordingIsThereBeforeTheClockStarts) {
  const LocalCall local;
  const RecordedCall call = local.at({.step = 3, .num_steps = 8});
  const auto cpu = make_backend("cpu");
  cuda::emulator::Transfers transfers;
  const auto gpu = make_cuda_backend(
      cuda::emulator::make_emulated_device(cuda::Family::sm80, 1, true, &transfers));
  const auto bytes = static_cast<size_t>(storage_bytes(call.q.dtype, call.q.numel()));
  for (const char* attention : {"dense", "xattention:block=64,stride=8,top_p=0.6"}) {
    const Plan plan = parse_plan(attention);
    const CallOutcome expected = replay_call(*cpu, call, plan, 2);
    transfers.clear();
    const CallOutcome outcome = replay_call(*gpu, call, plan, 2);
    EXPECT_TRUE(close(outcome.out, expected.out, attend_out(DType::f32, 40.0), attention));
    const auto large = [&](cuda::emulator::Transfer::Kind kind) {
      return std::count_if(transfers.begin(), transfers.end(),
                           [&](const auto& t) { return t.kind == kind && t.bytes >= bytes; });
    };
    // q, k and v once, the result once, however often it ran.
    EXPECT_EQ(large(cuda::emulator::Transfer::in), 3) << attention;
    EXPECT_EQ(large(cuda::emulator::Transfer::out), 1) << attention;
  }
}

}  // namespace
}  // namespace lacuna::test
