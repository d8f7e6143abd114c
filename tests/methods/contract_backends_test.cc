// SPDX-License-Identifier: Apache-2.0
// Every method on every backend against the reference.
#include "tests/methods/contract.h"
#include "tests/support/backends.h"

namespace lacuna::test {
namespace {

using MethodBackends = BackendTest;

// Estimates may differ in the last bit between backends, so near ties a block may flip.
TEST_P(MethodBackends, SelectTheSameBlocks) {
  const std::vector<Shape> all(std::begin(kShapes), std::end(kShapes)),
      small = {{{3, 8, 9}, 21, 1}};
  for (const Method* method : all_methods())
    for (const Shape& shape : GetParam().name == "emulated" ? small : all) {
      SCOPED_TRACE(testing::Message() << method->name() << " " << shape);
      const Input in = make_input(shape);
      const Selection masks = checkers(shape);
      const Params params = small_blocks(*method);
      const Selection want = select(*method, params, in, *ref_, {}, &masks);
      const Selection got = select(*method, params, in, *backend_, {}, &masks);
      ASSERT_EQ(got.mask.empty(), want.mask.empty());
      int64_t differ = 0, total = 0;
      for (int64_t h = 0; h < want.mask.num_heads(); ++h)
        for (int32_t qb = 0; qb < want.mask.num_q_blocks(); ++qb)
          for (int32_t kb = 0; kb < want.mask.num_k_blocks(); ++kb, ++total)
            differ += want.mask.get(h, qb, kb) != got.mask.get(h, qb, kb);
      EXPECT_LE(differ, total / 500) << "of " << total;
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, MethodBackends, testing::ValuesIn(backends_under_test()),
                         choice_name);

}  // namespace
}  // namespace lacuna::test
