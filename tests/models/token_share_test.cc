// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/token_share.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/error_of.h"
#include "tests/support/thread_team.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;

const VideoGrid kGrid{3, 4, 5};

// Angles of one token: 2 pairs of frames, 1 of height, 1 of width.
std::vector<float> angles(const RopeTables& t, int64_t row) {
  const int64_t w = row % t.width, h = row / t.width % t.height, f = row / (t.width * t.height);
  std::vector<float> all;
  for (int32_t k = 0; k < t.pairs_frames; ++k) all.push_back(t.sin_frames[f * t.pairs_frames + k]);
  for (int32_t k = 0; k < t.pairs_height; ++k) all.push_back(t.cos_height[h * t.pairs_height + k]);
  for (int32_t k = 0; k < t.pairs_width; ++k) all.push_back(t.sin_width[w * t.pairs_width + k]);
  return all;
}

TEST(TokenShare, BoxesGiveEveryRowItsPlace) {
  const AxisRope rope({4, 2, 2}, 16, 10000.0);
  const RopeTables whole = rope.tables(kGrid);
  for (int ranks = 1; ranks <= 12; ++ranks) {
    std::vector<int> seen(static_cast<size_t>(kGrid.tokens()));
    std::mutex mutex;
    in_team(ranks, [&](Team& team) {
      const TokenShare share(kGrid, 12, &team);
      const auto boxes = share.boxes(rope);
      EXPECT_LE(boxes.size(), 3u);
      int64_t row = 0;
      const std::lock_guard lock(mutex);
      for (const auto& box : boxes) {
        EXPECT_EQ(box.begin, row);
        EXPECT_EQ(box.end - box.begin, box.rope.frames * box.rope.height * box.rope.width);
        for (; row < box.end; ++row) {
          EXPECT_EQ(angles(box.rope, row - box.begin), angles(whole, share.begin() + row))
              << "row " << row << " of rank " << team.rank() << " of " << ranks;
          ++seen[static_cast<size_t>(share.begin() + row)];
        }
      }
      EXPECT_EQ(row, share.tokens());
    });
    EXPECT_EQ(seen, std::vector<int>(seen.size(), 1)) << ranks << " ranks";
  }
}

TEST(TokenShare, RowsBecomeHeadsAndRowsAgain) {
  constexpr int64_t kHeads = 5, kHeadDim = 4;
  const auto value = [](int64_t token, int64_t channel) {
    return static_cast<float>(100 * token + channel);
  };
  for (const int ranks : {1, 2, 3, 5}) {
    in_team(ranks, [&](Team& team) {
      const auto backend = make_backend("ref");
      Context ctx{*backend};
      const TokenShare share(kGrid, kHeads, &team);
      const int64_t width = kHeads * kHeadDim;
      const Tensor rows(DType::f32, {share.tokens(), width});
      for (int64_t i = 0; i < rows.numel(); ++i)
        rows.as<float>()[i] = value(share.begin() + i / width, i % width);
      const TensorView heads = share.to_heads(ctx, rows, "heads");
      ASSERT_EQ(
          heads.describe(),
          make_view(nullptr, DType::f32, {kGrid.tokens(), share.heads() * kHeadDim}).describe());
      const int64_t first = even_shares(kHeads, ranks)[static_cast<size_t>(team.rank())] * kHeadDim;
      for (int64_t i = 0; i < heads.numel(); ++i)
        ASSERT_EQ(heads.as<float>()[i], value(i / heads.shape[1], first + i % heads.shape[1]));
      const Tensor back(DType::f32, {share.tokens(), width});
      share.to_tokens(ctx, heads, back);
      EXPECT_EQ(std::memcmp(back.as<float>(), rows.as<float>(),
                            static_cast<size_t>(rows.numel()) * sizeof(float)),
                0);
      const Tensor all(DType::f32, {kGrid.tokens(), width});
      std::memcpy(all.as<float>() + share.begin() * width, rows.as<float>(),
                  static_cast<size_t>(rows.numel()) * sizeof(float));
      share.gather(all);
      for (int64_t i = 0; i < all.numel(); ++i)
        ASSERT_EQ(all.as<float>()[i], value(i / width, i % width));
    });
  }
}

TEST(TokenShare, MoreProcessesThanHeadsOrLinesAreRefused) {
  EXPECT_THAT(test::error_of([] { in_team(3, [](Team& team) { TokenShare(kGrid, 2, &team); }); }),
              HasSubstr("3 processes for 2 heads and 12 lines"));
  EXPECT_THAT(test::error_of([] {
                in_team(3, [](Team& team) { TokenShare({1, 2, 9}, 8, &team); });
              }),
              HasSubstr("3 processes for 8 heads and 2 lines"));
}

}  // namespace
}  // namespace lacuna
