// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/prompt_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

class PromptCacheTest : public ::testing::Test {
 protected:
  static Tensor embedding(int64_t n, int64_t dim, const std::string& name = "e") {
    Tensor out(DType::f32, {n, dim});
    fill_hash(name, 0.0, 1.0, {out.as<float>(), static_cast<size_t>(out.numel())});
    return out;
  }

  static bool same_bits(const Tensor& a, const Tensor& b) {
    return a.numel() == b.numel() &&
           std::memcmp(a.as<float>(), b.as<float>(), static_cast<size_t>(a.numel()) * 4) == 0;
  }

  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path() / "prompts";  // not there yet
};

const std::vector<int32_t> kIds = {5, 7, 1};

TEST_F(PromptCacheTest, ReturnsTheBitsThatWereStored) {
  const PromptCache cache(folder_ / "deep", "enc");
  EXPECT_FALSE(cache.find(kIds, 8));
  const Tensor e = embedding(3, 8);
  EXPECT_TRUE(cache.store(kIds, e));
  const auto found = PromptCache(folder_ / "deep", "enc").find(kIds, 8);
  ASSERT_TRUE(found);
  EXPECT_TRUE(same_bits(*found, e));
  EXPECT_FALSE(cache.find(std::vector<int32_t>{5, 7, 2}, 8));
  EXPECT_FALSE(cache.find(kIds, 4));
  EXPECT_FALSE(PromptCache(folder_ / "deep", "other").find(kIds, 8));
  EXPECT_THROW(cache.store(kIds, embedding(2, 8)), Error);
}

// Entries of other ids or encoders under this name (a hash collision) are misses.
TEST_F(PromptCacheTest, CollisionsAreMisses) {
  const PromptCache cache(folder_, "enc");
  const std::vector<int32_t> other = {9, 9, 1};
  ASSERT_TRUE(cache.store(other, embedding(3, 8)));
  fs::copy_file(cache.entry(other), cache.entry(kIds));
  EXPECT_FALSE(cache.find(kIds, 8));
  const PromptCache foreign(folder_, "foreign");
  ASSERT_TRUE(foreign.store(kIds, embedding(3, 8)));
  fs::copy_file(foreign.entry(kIds), cache.entry(kIds), fs::copy_options::overwrite_existing);
  EXPECT_FALSE(cache.find(kIds, 8));
}

TEST_F(PromptCacheTest, DamagedEntriesAreIgnoredAndReplaced) {
  const PromptCache cache(folder_, "enc");
  const Tensor e = embedding(3, 8);
  ASSERT_TRUE(cache.store(kIds, e));
  std::ifstream in(cache.entry(kIds), std::ios::binary);
  std::stringstream content;
  content << in.rdbuf();
  const std::string good = content.str();
  const auto write = [&](const std::string& bytes) {
    std::ofstream(cache.entry(kIds), std::ios::binary | std::ios::trunc) << bytes;
  };
  for (size_t size = 0; size < good.size(); size += 7) {
    write(good.substr(0, size));
    EXPECT_FALSE(cache.find(kIds, 8)) << size;
  }
  const uint32_t bits = 0x7fc00000;  // NaN, wherever it lands
  int misses = 0;
  for (size_t at = 0; at + 4 <= good.size(); at += 4) {
    std::string damaged = good;
    std::memcpy(damaged.data() + at, &bits, 4);
    write(damaged);
    const auto found = cache.find(kIds, 8);
    misses += found ? 0 : 1;
    if (found) {
      for (int64_t i = 0; i < found->numel(); ++i)
        EXPECT_TRUE(std::isfinite(found->as<float>()[i]));
    }
  }
  EXPECT_GE(misses, 3 * 8 + 3);  // every value and id; headers may survive in their padding
  ASSERT_TRUE(cache.store(kIds, e));
  EXPECT_TRUE(same_bits(*cache.find(kIds, 8), e));
}

TEST_F(PromptCacheTest, AnUnwritableFolderOnlyCostsTheCache) {
  std::ofstream(folder_.string()) << "a file where the folder should be";
  const PromptCache cache(folder_, "enc");
  EXPECT_FALSE(cache.store(kIds, embedding(3, 8)));
  EXPECT_FALSE(cache.find(kIds, 8));
  const PromptCache off("", "enc");
  EXPECT_FALSE(off.store(kIds, embedding(3, 8)));
  EXPECT_FALSE(off.find(kIds, 8));
}

TEST_F(PromptCacheTest, IdentityFollowsContentConfigDtypeAndRounding) {
  fs::create_directories(folder_);
  const auto make = [&](const std::string& name, size_t size, char fill) {
    const fs::path path = folder_ / name;
    std::ofstream(path, std::ios::binary) << std::string(size, fill);
    return path;
  };
  const fs::path a = make("a", 300000, 'x'), b = make("b", 300000, 'x'), c = make("c", 300000, 'y');
  const fs::path d = make("d", 300001, 'x'), empty = make("e", 0, 'x');
  const std::string id = encoder_identity({a}, "", DType::bf16, "cpu");
  EXPECT_EQ(id, encoder_identity({b}, "", DType::bf16, "cpu"));
  EXPECT_NE(id, encoder_identity({c}, "", DType::bf16, "cpu"));
  {
    std::fstream inside(b, std::ios::in | std::ios::out | std::ios::binary);
    inside.seekp(150300).put('y');  // in a sampled block of the middle
  }
  EXPECT_NE(id, encoder_identity({b}, "", DType::bf16, "cpu"));
  EXPECT_NE(id, encoder_identity({d}, "", DType::bf16, "cpu"));
  EXPECT_NE(id, encoder_identity({a, b}, "", DType::bf16, "cpu"));
  EXPECT_NE(id, encoder_identity({a}, "", DType::f32, "cpu"));
  EXPECT_NE(id, encoder_identity({a}, "", DType::bf16, "ref"));
  EXPECT_NE(id, encoder_identity({a}, "", DType::bf16, "cpu avx2"));
  EXPECT_NE(id, encoder_identity({a}, "{}", DType::bf16, "cpu"));
  EXPECT_NO_THROW(encoder_identity({empty}, "", DType::f32, "ref"));
  EXPECT_THROW(encoder_identity({folder_ / "none"}, "", DType::f32, "ref"), Error);
}

}  // namespace
}  // namespace lacuna
