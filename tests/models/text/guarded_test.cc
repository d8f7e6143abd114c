// SPDX-License-Identifier: Apache-2.0
// The text encoder with its activations in memory that the host cannot touch.
#include <gtest/gtest.h>

#include "lacuna/models/text/umt5.h"
#include "tests/support/guarded_backend.h"

namespace lacuna::test {
namespace {

class GuardedUmt5 : public ::testing::TestWithParam<const char*> {};

TEST_P(GuardedUmt5, EncodesToTheSameBytes) {
  const std::vector<int32_t> ids{5, 90, 17, 3, 61, 1};
  Umt5Config config = umt5_preset("tiny");
  for (const DType storage : {DType::f32, DType::bf16})
    for (const DType compute : {DType::f32, DType::bf16}) {
      const auto source = hash_weights("w:", storage);
      config.shared_bias = storage == compute;  // T5
      const Umt5Encoder encoder(config, *source, detect_umt5_names(*source));
      const auto encode = [&](Backend& backend) {
        const ConstantWeights constant(backend, encoder.weights());
        Context ctx{backend, compute};
        return encoder.encode(ctx, ids);
      };
      GuardedBackend guarded(make_backend(GetParam()));
      const Tensor out = encode(guarded);
      EXPECT_TRUE(same_bytes(out, encode(*make_backend(GetParam()))));
      EXPECT_EQ(guarded.allocations(), 0u);
      EXPECT_FALSE(guarded.broken_promise);
    }
}

INSTANTIATE_TEST_SUITE_P(On, GuardedUmt5, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lacuna::test
