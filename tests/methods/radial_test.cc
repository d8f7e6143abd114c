// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>

#include "tests/methods/fixtures.h"

namespace lacuna::test {
namespace {

Params radial_params(double block, double decay, bool first_frame) {
  return params_of(find_method("radial"),
                   {{"block", block}, {"decay", decay}, {"first_frame", first_frame ? 1 : 0}});
}

// T = 4 tokens per frame = one block of 4. W = 8; reach 8 / 2^g is 2 for D = 2, 3 and 1 for D
// = 4..7, split 2 and 4. So D = 0, 1, 2, 4 are kept and 3, 5 dropped.
TEST(Radial, SplitsDistantFrames) {
  const Shape shape{{6, 2, 2}};
  EXPECT_EQ(picture(select_static("radial", radial_params(4, 0.2, false), shape).mask),
            (Picture{"###.#.", "####.#", "#####.", ".#####", "#.####", ".#.###"}));
  EXPECT_EQ(picture(select_static("radial", radial_params(4, 0.2, true), shape).mask),
            (Picture{"###.#.", "####.#", "#####.", "######", "#.####", "##.###"}));
}

// T = 16, blocks of 2, W = 32. D = 2: reach 8, width max(2, 8 * 0.5) = 4: tokens 4 apart are kept.
// Block (I, J) of the pair holds distances 2|I - J| - 1 .. + 1, so |I - J| <= 2; at |I - J| = 2
// (distances 3, 4, 5) every column has a kept row, which is 1 of 2 rows > 1/3.
TEST(Radial, BandOfDistantFrames) {
  const BlockMask mask = select_static("radial", radial_params(2, 0.5, false), {{3, 4, 4}}).mask;
  const Picture rows = picture(mask);
  EXPECT_EQ(rows[0].substr(0, 16), "################");
  EXPECT_EQ(rows[0].substr(16), "###.....");
  EXPECT_EQ(rows[3].substr(16), ".#####..");
  EXPECT_EQ(rows[7].substr(16), ".....###");
  EXPECT_EQ(rows[16].substr(0, 8), "###.....");
}

bool keep_token(const Shape& s, double block, double decay, bool first_frame, int64_t r,
                int64_t c) {
  const int64_t t = s.grid.tokens_per_frame();
  const int64_t d = std::abs(r / t - c / t);
  if ((first_frame && c / t == 0) || d <= 1) return true;
  const double reach =
      std::pow(2.0, std::bit_width(uint64_t(t))) / std::pow(2.0, std::bit_width(uint64_t(d)));
  if (reach < block && d % static_cast<int64_t>(std::floor(block / reach)) != 0) return false;
  return std::abs(r % t - c % t) <= std::max(block, reach * decay);
}

// The published rule, token by token, on grids whose frames do not line up with blocks.
TEST(Radial, EqualsTheTokenRuleOnRaggedFrames) {
  for (const Shape& shape :
       {Shape{{7, 3, 5}}, Shape{{5, 5, 7}, 3}, Shape{{9, 1, 3}}, Shape{{3, 8, 9}}})
    for (const double block : {4.0, 8.0, 16.0})
      for (const double decay : {0.2, 0.95, 3.0})
        for (const bool first_frame : {false, true}) {
          const Selection s =
              select_static("radial", radial_params(block, decay, first_frame), shape, {0});
          for (int32_t qb = 0; qb < s.mask.num_q_blocks(); ++qb)
            for (int32_t kb = 0; kb < s.mask.num_k_blocks(); ++kb) {
              const int64_t video = shape.grid.tokens();
              const int64_t r0 = s.q_layout.begin(0, qb), r1 = s.q_layout.end(0, qb);
              const int64_t c0 = s.k_layout.begin(0, kb), c1 = s.k_layout.end(0, kb);
              int dense = 0, non_empty = 0;
              for (int64_t c = c0; c < c1; ++c) {
                int kept = 0;
                for (int64_t r = r0; r < r1; ++r)
                  kept += keep_token(shape, block, decay, first_frame, r, c);
                non_empty += kept > 0;
                dense += kept > (r1 - r0) / 3.0;
              }
              const bool text = r1 > video || c1 > video;
              const bool want = text || qb == kb || (non_empty > 0 && dense > 0.6 * non_empty);
              ASSERT_EQ(s.mask.get(0, qb, kb), want)
                  << shape << " block " << block << " decay " << decay << " at " << qb << "," << kb;
            }
        }
}

TEST(Radial, DecayMayDifferPerHead) {
  Params params = radial_params(8, 0.2, true);
  params.set_per_head("decay", {0.2, 4.0});
  const Selection s = select_static("radial", params, {{9, 8, 16}});
  EXPECT_LT(s.mask.count(0), s.mask.count(1));
  EXPECT_EQ(picture(s.mask, 1),
            picture(select_static("radial", radial_params(8, 4.0, true), {{9, 8, 16}}).mask));
}

}  // namespace
}  // namespace lacuna::test
