// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/stream.h"

#include <algorithm>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"

namespace lacuna {

Feature Stream::feature(std::initializer_list<int> busy, int64_t t, int64_t h, int64_t w,
                        int64_t c) {
  static constexpr const char* kNames[] = {"feature 0", "feature 1", "feature 2", "feature 3"};
  for (int i = 0; i < 4; ++i) {
    if (std::find(busy.begin(), busy.end(), i) != busy.end()) continue;
    return {buffers_.get(kNames[i], dtype_, {t, h, w, c}), i};
  }
  fail("vae: {} feature buffers busy, expected at most 3", busy.size());
}

TensorView Stream::scratch(const char* name, std::initializer_list<int64_t> shape) {
  return buffers_.get(name, dtype_, shape);
}

void Stream::fill(const TensorView& view, float value) {
  BFloat16 rounded(value);
  TensorView from = view;
  from.data = view.dtype == DType::bf16 ? static_cast<void*>(&rounded) : &value;
  from.device = Device::cpu;
  from.stride.fill(0);
  backend_.copy(from, view);
}

const TensorView& Stream::history(const void* layer, int64_t frames, int64_t h, int64_t w,
                                  int64_t c) {
  Tensor& kept = history_[layer];
  if (kept.empty()) {
    kept = Tensor(dtype_, {frames, h, w, c}, backend_);
    fill(kept, 0.0f);
    history_bytes_ += storage_bytes(dtype_, kept.numel());
  }
  const TensorView& view = kept.view();
  LACUNA_CHECK(
      view.shape[0] == frames && view.shape[1] == h && view.shape[2] == w && view.shape[3] == c,
      "vae: frame {} x {} x {} after history {}, expected one size per stream", h, w, c,
      view.describe());
  return view;
}

}  // namespace lacuna
