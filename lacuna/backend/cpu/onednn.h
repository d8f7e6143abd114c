// SPDX-License-Identifier: Apache-2.0
// oneDNN primitives, made for one thread and kept. The callers cut their work into tiles whose
// shape does not depend on the thread count and run one primitive per tile; so results are bitwise
// equal for any number of threads, which oneDNN's own threading does not promise: its blocking and
// its split of sums depend on the thread count.
#pragma once

#include <array>
#include <cstdint>
#include <dnnl.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/backend/cpu/isa.h"
#include "lacuna/core/workspace.h"

namespace lacuna::cpu {

// What a plan computes: dst [m, n] = epilogue(src [m, k] weights^T + bias), weights [n, k]. Rows of
// src, dst and unpacked weights lie end to end: with any other stride oneDNN 2.6 leaves its fast
// kernel, and with a gate it falls back to its reference loops (300 ms for 72 x 1536 x 8960).
struct GemmSpec {
  int64_t m = 0, n = 0, k = 0;
  DType src = DType::f32, dst = DType::f32;  // weights are of src's type
  bool pack = false;                         // bring the weights into oneDNN's blocked layout first
  bool bias = false, gate = false;           // f32 [n]
  Epilogue epilogue = Epilogue::none;        // residual adds to dst of either type
};

// The primitives of one GemmSpec. A second row count (`tail_m`, 0 = none) shares the packed
// weights.
class GemmPlan {
 public:
  GemmPlan(const dnnl::engine& engine, const GemmSpec& spec, int64_t tail_m);

  // Whether the packed layout differs from the plain one.
  bool packs() const { return packs_; }
  int64_t weights_bytes() const { return static_cast<int64_t>(weights_.get_size()); }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  std::string implementation() const { return implementation_; }

  // Runs on all threads.
  void pack(const void* plain, void* packed) const;
  // rows: spec.m or tail_m. bias and gate null unless in the spec. scratch: scratch_bytes().
  void run(int64_t rows, const void* src, const void* weights, const float* bias, const float* gate,
           void* dst, void* scratch) const;

 private:
  struct Variant {
    int64_t rows = 0;
    dnnl::matmul primitive;
    dnnl::memory::desc src, dst;
  };
  Variant make(const GemmSpec& spec, int64_t rows, bool any_layout);

  dnnl::engine engine_;
  dnnl::memory::desc plain_, weights_, vector_;
  bool packs_ = false;
  std::array<Variant, 2> variants_;
  int64_t scratch_bytes_ = 0;
  std::string implementation_;
};

// A convolution [1, t, h, w, c_in] -> [1, t', h', w', c_out], channels last, no temporal padding.
struct ConvSpec {
  int64_t c_in = 0, c_out = 0;
  int64_t kt = 1, kh = 1, kw = 1;
  int64_t t = 1, h = 1, w = 1;              // input
  int64_t out_t = 1, out_h = 1, out_w = 1;  // output
  int64_t stride_t = 1, stride_h = 1, stride_w = 1;
  int64_t pad_left = 0;  // right padding follows from out_w; none above and below
  DType dtype = DType::f32;
  DType dst = DType::f32;
  bool bias = false;        // f32 [c_out]
  bool accumulate = false;  // add to dst
  bool relu = false;        // of what is stored
};

class ConvPlan {
 public:
  ConvPlan(const dnnl::engine& engine, const ConvSpec& spec);

  int64_t weights_bytes() const { return static_cast<int64_t>(weights_.get_size()); }
  int64_t scratch_bytes() const { return scratch_bytes_; }
  std::string implementation() const { return implementation_; }

  // plain: [c_out, c_in, kt, kh, kw] for f32, [c_out, kt, kh, kw, c_in] for bf16 (oneDNN's own
  // reorder of the former is eight times slower there). Runs on all threads.
  void pack(const void* plain, void* packed) const;
  void run(const void* src, const void* weights, const float* bias, void* dst, void* scratch) const;

 private:
  dnnl::engine engine_;
  dnnl::memory::desc plain_, weights_, vector_, src_, dst_;
  dnnl::convolution_forward primitive_;
  int64_t scratch_bytes_ = 0;
  std::string implementation_;
};

// Engine, kept plans and scratch memory of one backend object; one call at a time.
class OneDnn {
 public:
  // Lowers oneDNN's process-wide level to active_isa(). Throws Error when that comes too late: some
  // other code in this process made a primitive first.
  explicit OneDnn(Isa isa);

  bool native_bf16() const { return isa_ >= Isa::avx512_bf16; }
  // Whether Epilogue::residual with a gate has a fast kernel.
  bool fast_gate() const { return isa_ >= Isa::avx512 && active_isa() >= Isa::avx512; }

  // Made on first use.
  std::shared_ptr<const GemmPlan> gemm(const GemmSpec& spec, int64_t tail_m);
  std::shared_ptr<const ConvPlan> conv(const ConvSpec& spec);

  // oneDNN's names of the kernels behind the kept plans; "ref..." means slow loops.
  std::vector<std::string> implementations() const;

  // 64-byte aligned memory, kept under a name; contents undefined.
  char* scratch(std::string_view name, int64_t bytes);

 private:
  using Key = std::array<int64_t, 20>;
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };

  Isa isa_;
  dnnl::engine engine_;
  std::unordered_map<Key, std::shared_ptr<const GemmPlan>, KeyHash> gemms_;
  std::unordered_map<Key, std::shared_ptr<const ConvPlan>, KeyHash> convs_;
  Workspace workspace_;
};

}  // namespace lacuna::cpu
