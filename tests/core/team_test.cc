// SPDX-License-Identifier: Apache-2.0
#include "lacuna/core/team.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/thread_team.h"

namespace lacuna {
namespace {

using ::testing::ElementsAre;

TEST(Team, SharesAreEvenAndWhole) {
  EXPECT_THAT(even_shares(7, 3), ElementsAre(0, 2, 4, 7));
  EXPECT_THAT(even_shares(4, 4), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(even_shares(2, 3), ElementsAre(0, 0, 1, 2));
}

TEST(Team, TextsOfAnyLengthReachEveryone) {
  in_team(3, [](Team& team) {
    const std::string own(static_cast<size_t>(5 * team.rank()),
                          static_cast<char>('a' + team.rank()));
    EXPECT_THAT(all_gather(team, own), ElementsAre("", "bbbbb", "cccccccccc"));
    std::string text = team.rank() == 2 ? "said" : "older and longer";
    broadcast(team, text, 2);
    EXPECT_EQ(text, "said");
    broadcast(team, text = team.rank() == 0 ? "" : text, 0);
    EXPECT_EQ(text, "");
  });
}

TEST(Team, PartsKeepTheOrderOfRanks) {
  in_team(4, [](Team& team) {
    const auto part = team.split(team.rank() % 2);
    EXPECT_EQ(part->size(), 2);
    EXPECT_EQ(part->rank(), team.rank() / 2);
    std::string first = std::to_string(team.rank());
    broadcast(*part, first, 0);
    EXPECT_EQ(first, std::to_string(team.rank() % 2));
  });
}

TEST(Team, ValuesOfHeadsComeInTheirOrder) {
  EXPECT_THAT(HeadShare{}.gather(std::vector<double>{3.0, 1.0}), ElementsAre(3.0, 1.0));
  in_team(2, [](Team& team) {
    const std::vector<double> own = team.rank() == 0 ? std::vector{1.0} : std::vector{2.0, 3.0};
    EXPECT_THAT((HeadShare{&team, team.rank()}.gather(own)), ElementsAre(1.0, 2.0, 3.0));
  });
}

TEST(Team, OneThatFailsEndsTheOthers) {
  EXPECT_THROW(in_team(2,
                       [](Team& team) {
                         if (team.rank() == 0) fail("gone");
                         std::string text;
                         broadcast(team, text, 0);
                       }),
               Error);
}

}  // namespace
}  // namespace lacuna
