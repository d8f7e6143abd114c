// SPDX-License-Identifier: Apache-2.0
// What one pass over a video holds: the last frames seen by each causal convolution and a few
// activation buffers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <unordered_map>

#include "lacuna/backend/backend.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/workspace.h"

namespace lacuna {

// Activations [t, h, w, c] and the stream buffer that holds them (-1: memory of somebody else).
struct Feature {
  TensorView view;
  int buffer = -1;

  int64_t frames() const { return view.shape[0]; }
  int64_t height() const { return view.shape[1]; }
  int64_t width() const { return view.shape[2]; }
  int64_t channels() const { return view.shape[3]; }
};

class Stream {
 public:
  // The backend must outlive the stream; all memory here is the backend's.
  Stream(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype), buffers_(backend) {}

  DType dtype() const { return dtype_; }
  // The first pass holds frame 0 of the video; after the last one nothing needs to be kept.
  bool first() const { return first_; }
  bool last() const { return last_; }
  void begin_pass(bool last) { last_ = last; }
  void finish_pass() { first_ = false; }

  // A feature buffer that is none of `busy` (buffer numbers; -1 is ignored).
  Feature feature(std::initializer_list<int> busy, int64_t t, int64_t h, int64_t w, int64_t c);
  // Scratch memory by name, overwritten by the next call with the same name.
  TensorView scratch(const char* name, std::initializer_list<int64_t> shape);
  // `view` on the host, for reading or writing by host code (Workspace::mirror).
  TensorView mirror(const char* name, const TensorView& view) {
    return buffers_.mirror(name, view);
  }
  void copy(const TensorView& from, const TensorView& to) { backend_.copy(from, to); }
  void fill(const TensorView& view, float value);
  // The frames kept for one layer, [frames, h, w, c]; zeros when first asked for.
  const TensorView& history(const void* layer, int64_t frames, int64_t h, int64_t w, int64_t c);

  int64_t bytes() const { return buffers_.bytes() + history_bytes_; }

 private:
  Backend& backend_;
  DType dtype_;
  bool first_ = true, last_ = false;
  Workspace buffers_;
  std::unordered_map<const void*, Tensor> history_;
  int64_t history_bytes_ = 0;
};

}  // namespace lacuna
