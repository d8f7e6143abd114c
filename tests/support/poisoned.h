// SPDX-License-Identifier: Apache-2.0
// Strided tensors in memory whose every other byte is NaN: a read outside the view shows up as NaN
// in the result, a write outside it shows up in intact().
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/support/random.h"

namespace lacuna::test {

enum class Storage {
  heads_first,   // [heads, tokens, channels], contiguous
  tokens_first,  // [tokens, heads, channels]: what a linear layer writes
  padded,        // heads first, rows 8 channels apart, heads one token apart
  odd,           // tokens first, rows an odd number of elements apart: nothing is aligned
};

inline const char* storage_name(Storage storage) {
  switch (storage) {
    case Storage::heads_first:
      return "heads_first";
    case Storage::tokens_first:
      return "tokens_first";
    case Storage::padded:
      return "padded";
    case Storage::odd:
      return "odd";
  }
  return "?";
}

// A view [heads, tokens, channels] of f32 or bf16.
class Poisoned {
 public:
  Poisoned(DType dtype, int64_t heads, int64_t tokens, int64_t channels, Storage storage) {
    int64_t token_stride = channels, head_stride = tokens * channels;
    if (storage == Storage::tokens_first || storage == Storage::odd) {
      const int64_t pad = storage == Storage::odd ? (channels % 2 == 0 ? 5 : 4) : 0;
      head_stride = channels;
      token_stride = heads * channels + pad;
    } else if (storage == Storage::padded) {
      token_stride = channels + 8;
      head_stride = (tokens + 1) * token_stride;
    }
    const int64_t margin = storage == Storage::odd ? 67 : 64;
    const int64_t size = storage_bytes(dtype, 1);
    const int64_t span =
        std::max<int64_t>(heads, 1) * std::max<int64_t>(tokens, 1) * (channels + 8) +
        (heads + 1) * (channels + 8) * 2;
    bytes_.assign(static_cast<size_t>((span + 2 * margin) * size), 0xFF);
    view_ = make_view(bytes_.data() + margin * size, dtype, {heads, tokens, channels});
    view_.stride = {head_stride, token_stride, 1};
  }
  Poisoned(const Poisoned&) = delete;
  Poisoned& operator=(const Poisoned&) = delete;

  const TensorView& view() const { return view_; }

  // True when no byte outside the view was written.
  bool intact() const {
    std::vector<unsigned char> inside(bytes_.size(), 0);
    const int64_t size = storage_bytes(view_.dtype, 1);
    const int64_t start = static_cast<unsigned char*>(view_.data) - bytes_.data();
    for_each(view_, [&](int64_t, int64_t at) {
      std::memset(inside.data() + start + at * size, 1, static_cast<size_t>(size));
    });
    for (size_t i = 0; i < bytes_.size(); ++i)
      if (!inside[i] && bytes_[i] != 0xFF) return false;
    return true;
  }

 private:
  std::vector<unsigned char> bytes_;
  TensorView view_;
};

}  // namespace lacuna::test
