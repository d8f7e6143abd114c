// SPDX-License-Identifier: Apache-2.0
// The selection in force at one site, for all heads.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "lacuna/methods/method.h"

namespace lacuna {

// Takes blocks out of the mask of all `num_heads` heads, which is filled first where there is none:
// bits as AttendParams::skip_bits.
void drop_blocks(Selection& selection, int64_t num_heads, const uint64_t* skip_bits);

class MaskCache {
 public:
  // Puts rows of `fresh` in as heads `head_ids`; the first time these must be all heads. `who`
  // names the method in errors. Throws Error, leaving the cache as it was, when blocks of a subset
  // differ from those of the other heads, or only one of the two is dense.
  void merge(Selection fresh, std::span<const int32_t> head_ids, int64_t num_heads,
             std::string_view who);

  // Takes blocks out, of all heads: bits as AttendParams::skip_bits. Text, past `video_tokens`,
  // stays. No row may lose its last block: the skip rules keep the first of each.
  void drop(const uint64_t* skip_bits, int64_t video_tokens);

  // Saves or restores all of it.
  void transfer(const StateIo& io, int64_t num_heads, int64_t video_tokens, int64_t text_tokens);

  bool empty() const { return num_heads_ == 0; }
  bool dense() const { return selection_.mask.empty(); }
  const Selection& selection() const { return selection_; }
  double density() const;                  // listed pairs / all, mean over heads
  uint64_t hash() const { return hash_; }  // of the mask; 0 = dense

 private:
  void measure(std::span<const int32_t> head_ids);
  void measure_all();

  int64_t num_heads_ = 0;
  Selection selection_;
  std::vector<double> density_;  // [num_heads]
  uint64_t hash_ = 0;
};

}  // namespace lacuna
