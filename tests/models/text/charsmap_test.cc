// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/text/charsmap.h"

#include <gtest/gtest.h>

#include <map>

#include "lacuna/core/error.h"
#include "lacuna/models/text/unicode.h"

namespace lacuna {
namespace {

// A double array written out naively, one block of 256 units per trie node, so that the reader is
// tested against the layout and not against another builder.
class BlobBuilder {
 public:
  BlobBuilder& add(std::string key, std::string value) {
    rules_[std::move(key)] = std::move(value);
    return *this;
  }

  std::string build() {
    nodes_.assign(1, {});
    values_.clear();
    for (const auto& [key, value] : rules_) insert(key, value);
    std::vector<uint32_t> units(nodes_.size() * 256, 0);
    // Node n owns units [256 n, 256 n + 256); a parent points at it with an offset so that
    // unit index ^ offset = 256 n. Unit 0 is the root; label 0 of a block holds the value.
    // Blocks start at 1: block 0 only holds the root.
    units.resize((nodes_.size() + 1) * 256, 0);
    units[0] = offset_bits(0, block(0));
    for (size_t n = 0; n < nodes_.size(); ++n) {
      if (nodes_[n].value >= 0) units[block(n)] = 1u << 31 | static_cast<uint32_t>(nodes_[n].value);
      for (const auto& [label, child] : nodes_[n].children) {
        const size_t index = block(n) ^ label;
        units[index] = label | offset_bits(index, block(child));
        if (nodes_[child].value >= 0) units[index] |= 1u << 8;
      }
    }
    std::string blob;
    const auto put = [&](uint32_t v) {
      for (int shift = 0; shift < 32; shift += 8) blob.push_back(static_cast<char>(v >> shift));
    };
    put(static_cast<uint32_t>(units.size() * 4));
    for (const uint32_t unit : units) put(unit);
    return blob + values_;
  }

 private:
  struct Node {
    std::map<uint8_t, size_t> children;
    int64_t value = -1;
  };

  static size_t block(size_t node) { return (node + 1) * 256; }
  // Offsets that are multiples of 256 use the scaled form: bit 9 set, stored / 256.
  static uint32_t offset_bits(size_t from, size_t to) {
    const size_t offset = from ^ to;
    if (offset % 256 == 0) return static_cast<uint32_t>(offset / 256 << 10 | 1u << 9);
    return static_cast<uint32_t>(offset << 10);
  }

  void insert(const std::string& key, const std::string& value) {
    size_t node = 0;
    for (const char c : key) {
      const auto label = static_cast<uint8_t>(c);
      if (!nodes_[node].children.contains(label)) {
        nodes_[node].children[label] = nodes_.size();
        nodes_.push_back({});
      }
      node = nodes_[node].children[label];
    }
    nodes_[node].value = static_cast<int64_t>(values_.size());
    values_ += value + '\0';
  }

  std::map<std::string, std::string> rules_;
  std::vector<Node> nodes_;
  std::string values_;
};

TEST(Charsmap, FindsLongestAndShortestKey) {
  const Charsmap map(BlobBuilder().add("a", "1").add("abc", "3").add("x", "").build(), "t");
  EXPECT_EQ(map.longest("abcd")->replacement, "3");
  EXPECT_EQ(map.longest("abcd")->length, 3u);
  EXPECT_EQ(map.longest("abd")->length, 1u);
  EXPECT_EQ(map.shortest("abcd")->replacement, "1");
  EXPECT_EQ(map.longest("x")->replacement, "");
  EXPECT_FALSE(map.longest("b"));
  EXPECT_FALSE(map.longest(""));
  EXPECT_FALSE(map.longest(std::string_view("\0a", 2)));
}

// Why both readings exist: see charsmap.h. e + circumflex + acute, in UTF-8 5 bytes.
TEST(Charsmap, GraphemesLoseWhatTheLongestKeyKeeps) {
  const std::string e_circ = "e\xcc\x82", acute = "\xcc\x81";
  const Charsmap map(
      BlobBuilder().add(e_circ, "<E>").add(e_circ + acute, "<EA>").add("z", "<Z>").build(), "t");
  EXPECT_EQ(map.longest(e_circ + acute)->replacement, "<EA>");
  EXPECT_EQ(map.normalize_graphemes("b" + e_circ + acute + "c", 100), "b<E>c");
  EXPECT_EQ(map.normalize_graphemes("z" + acute, 100), "<Z>");
  // Six bytes and more go character by character.
  EXPECT_EQ(map.normalize_graphemes("z" + acute + acute + acute, 100),
            "<Z>" + acute + acute + acute);
  EXPECT_EQ(map.normalize_graphemes("q" + acute, 100), "q" + acute);
}

TEST(Charsmap, OneClusterMayNotOutgrowTheLimit) {
  const std::string acute = "\xcc\x81";
  const Charsmap map(BlobBuilder().add(acute, std::string(50, 'x')).build(), "t");
  EXPECT_EQ(map.normalize_graphemes("e" + acute + acute, 101).size(), 101u);
  EXPECT_THROW(map.normalize_graphemes("e" + acute + acute + acute, 101), Error);
}

TEST(Charsmap, EmptyIsTheIdentity) {
  EXPECT_TRUE(Charsmap("", "t").identity());
  EXPECT_EQ(Charsmap().normalize_graphemes("any\xc3\xa9", 100), "any\xc3\xa9");
}

TEST(Charsmap, RefusesBadHeaders) {
  const std::string good = BlobBuilder().add("a", "1").build();
  EXPECT_NO_THROW(Charsmap(good, "t"));
  EXPECT_THROW(Charsmap("abc", "t"), Error);
  EXPECT_THROW(Charsmap(std::string_view(good).substr(0, 20), "t"), Error);
  EXPECT_THROW(Charsmap(good.substr(0, good.size() - 1), "t"), Error);  // no NUL at the end
  EXPECT_THROW(Charsmap("\xff\xff\xff\xff" + good.substr(4), "t"), Error);
  EXPECT_THROW(Charsmap(std::string_view("\x03\0\0\0abcd\0", 9), "t"), Error);
  std::string malformed = good;
  malformed[malformed.size() - 2] = '\xff';
  EXPECT_THROW(Charsmap(malformed, "t"), Error);
}

// A trie and values that point anywhere must end in an Error or an answer, never outside memory
// (the sanitizer build is what this is for).
TEST(Charsmap, CorruptTriesAreHarmless) {
  const std::string good = BlobBuilder().add("a", "1").add("abc", "3").add("\xc3\xa9", "e").build();
  uint64_t state = 1;
  const auto random = [&state](uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % n;
  };
  int errors = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string blob = good;
    for (uint64_t i = 0; i <= random(6); ++i) {
      // Mostly inside the units that hold something.
      size_t at = 4 + random(good.size() - 5);
      for (int tries = 0; tries < 400 && blob[at] == 0; ++tries) at = 4 + random(good.size() - 5);
      blob[at] = static_cast<char>(random(256));
    }
    try {
      const Charsmap map(blob, "t");
      for (const char* text : {"abcabc", "\xc3\xa9\xc3\xa9", "aaaa", "zz"}) {
        map.longest(text);
        map.normalize_graphemes(text, 1000);
      }
    } catch (const Error&) {
      ++errors;
    }
  }
  EXPECT_GT(errors, 10);
}

TEST(Unicode, GraphemesOfShortClusters) {
  EXPECT_EQ(grapheme_length("ab"), 1u);
  EXPECT_EQ(grapheme_length("e\xcc\x82\xcc\x81x"), 5u);  // two combining marks
  EXPECT_EQ(grapheme_length("\r\nx"), 2u);
  EXPECT_EQ(grapheme_length("\n\xcc\x81"), 1u);            // nothing joins a control
  EXPECT_EQ(grapheme_length("\xe2\x80\x8b\xcc\x81"), 3u);  // U+200B is one
  EXPECT_EQ(grapheme_length("\xc2\xa9\xef\xb8\x8f"), 5u);  // variation selector
}

}  // namespace
}  // namespace lacuna
