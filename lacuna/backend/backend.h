// SPDX-License-Identifier: Apache-2.0
// How things are computed. One class per device; every op is first written in backend/ref, plainly,
// and other backends are tested against it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/backend/attend_params.h"
#include "lacuna/core/block_mask.h"
#include "lacuna/core/copy.h"
#include "lacuna/core/memory.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// What linear() does with y = x w^T + bias before storing it.
enum class Epilogue : uint8_t {
  none,
  gelu_tanh,
  silu,
  residual,  // out += gate * y (gate null = 1); out must be f32
};

// What rms_norm() takes its mean over.
enum class NormSpan : uint8_t {
  row,   // all channels; weight [d]
  head,  // those of each head; weight [head_dim], shared by the heads
};

// 3-D rotary tables for one video grid, f32. Rotates adjacent channel pairs.
// Split (Wan, HunyuanVideo): [grid axis, pairs] each, head_dim = 2 * (sum of pairs); channels are
// laid out [frames | height | width] inside a head, and each pair turns by its own axis.
// Summed (Mochi): every axis has pairs = head_dim / 2 and tables [grid axis, num_heads, pairs];
// pair p of head h turns by the sum of the three axes' angles, as the product of three complex
// numbers cos + i sin.
struct RopeTables {
  int64_t frames = 0, height = 0, width = 0;
  int32_t pairs_frames = 0, pairs_height = 0, pairs_width = 0;
  const float* cos_frames = nullptr;  // [frames, pairs_frames]
  const float* sin_frames = nullptr;
  const float* cos_height = nullptr;  // [height, pairs_height]
  const float* sin_height = nullptr;
  const float* cos_width = nullptr;  // [width, pairs_width]
  const float* sin_width = nullptr;
  bool summed = false;
};

// Channels-last 3-D convolution, dilation 1. Temporal padding is the caller's (causal history).
struct ConvParams {
  int32_t stride_t = 1, stride_h = 1, stride_w = 1;
  int32_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  bool relu = false;  // of the result, with bias and residual: what is below 0 becomes 0
};

// Where things lie. Backend memory is what allocate() gives. A TensorView argument of any op may
// lie in host or backend memory (its `device` says which), and so may the pointers inside
// AttendParams. All other pointers (bias, gate, gamma, rope tables, orders, ...), spans and masks
// are host memory, read during the call. Outputs in host memory are complete on return, outputs in
// backend memory for the next op.
class Backend : public Memory {
 public:
  virtual std::string_view name() const = 0;    // "ref", "cpu", "cuda"
  virtual std::string description() const = 0;  // "cpu avx512_bf16, 2 threads"
  // What decides the last bits of results, for who keeps them: the name and the level in use. Not
  // description(), which also says what decides none, such as threads.
  virtual std::string rounding() const { return std::string(name()); }
  // Why this call cannot run here, or empty. attend() throws Error with the same text.
  virtual std::string unsupported(const AttendParams& params) const = 0;

  // --- memory --------------------------------------------------------------------------------
  // The defaults serve backends that compute in host memory, as do device(), allocate() and
  // release() of Memory.
  //
  // to = from, element by element: views of one shape, rank <= 5, any strides (stride 0 in `from`
  // repeats), each in host or backend memory, not overlapping. f32 <-> bf16 convert (round to
  // nearest even), and so do all dtypes that convert() reads, contiguous, to contiguous f32 or
  // bf16; otherwise equal dtypes. A copy of a view to itself does nothing.
  virtual void copy(const TensorView& from, const TensorView& to) { copy_elements(from, to); }
  // These bytes of host memory do not change until forget(): a backend may keep a copy of them.
  virtual void constant(const void* /*begin*/, size_t /*bytes*/) {}
  virtual void forget(const void* /*begin*/) {}
  // Of memory of its own, in bytes: what it may hold, holds and held at most, and what crossed
  // between it and the host. Zeros for a backend that computes in host memory.
  struct MemoryUse {
    int64_t limit = 0, held = 0, most = 0;
    int64_t to_backend = 0, to_host = 0;
  };
  virtual MemoryUse memory_use() const { return {}; }
  // Holds at most so many bytes from now on: copies of what is constant make room and come again
  // when they are used. What needs more throws Error.
  virtual void limit_memory(int64_t /*bytes*/) {}
  // Returns when all that was asked so far has been done. For clocks: ops on a device's own memory
  // may return before that.
  virtual void finish() {}

  // --- attention -----------------------------------------------------------------------------
  // out = softmax(sm_scale q k^T + bias) v over the kept blocks; see attend_params.h.
  // A query row that keeps no key gets out = 0, lse = -inf.
  virtual void attend(const AttendParams& params) = 0;
  // Merges two partial attentions over disjoint keys, in place into a:
  // out_a [heads, q_len, head_dim] with lse_a [heads, q_len] f32 contiguous; same for b.
  virtual void merge_lse(const TensorView& out_a, float* lse_a, const TensorView& out_b,
                         const float* lse_b) = 0;

  // --- selection -----------------------------------------------------------------------------
  // Mean of the tokens of each block: x [heads, seq_len, head_dim] f32|bf16, strided ->
  // out [head_ids.size(), num_blocks, head_dim] f32. Empty blocks give 0. Explicit offsets are by
  // call index (position in head_ids).
  virtual void block_mean(const TensorView& x, std::span<const int32_t> head_ids,
                          const BlockLayout& layout, const TensorView& out) = 0;
  // XAttention antidiagonal block scores (arXiv 2503.16428, Alg. 1): q, k
  // [heads, seq_len, head_dim] of one dtype -> out [head_ids.size(), num_q_blocks,
  // num_k_blocks] f32, rows sum to 1. layout must be uniform with block a multiple of stride. A
  // short last group of queries is reversed within its own tokens, so two groups always share
  // min(sizes) pairs, and logits divide by that. Out = mean over the query groups of the block.
  // `compat` keeps the published padding (same section 2.3, items 2-4): zero tokens fill the
  // groups, padding keys take mass, and what falls on blocks of padding alone is cut off, so rows
  // may sum to less than 1.
  virtual void antidiagonal_scores(const TensorView& q, const TensorView& k,
                                   std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                                   const BlockLayout& k_layout, float sm_scale, int32_t stride,
                                   bool compat, const TensorView& out) = 0;
  // Softmax mass of each block pair under a normaliser that is given (AdaSpa's cached search, arXiv
  // 2502.21079): q, k [heads, seq_len, head_dim] f32|bf16, lse
  // [heads, q_len] natural log by tensor head -> out [head_ids.size(), num_q_blocks, num_k_blocks]
  // f32 = mean over the block's query rows of sum_j exp(sm_scale q.k_j - lse). With the lse of this
  // q and k it equals AttendParams::block_mass of a dense call; rows then sum to 1. Needs no v.
  // Explicit offsets are by call index.
  virtual void block_mass(const TensorView& q, const TensorView& k, const float* lse,
                          std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                          const BlockLayout& k_layout, float sm_scale, const TensorView& out) = 0;
  // Nearest centroid of every token, the assignment step of k-means (SVG2, arXiv 2505.18875):
  // x [heads, seq_len, head_dim] f32|bf16, strided, and
  // centroids [head_ids.size(), num_centroids, head_dim] of x's dtype, contiguous -> labels
  // [head_ids.size(), seq_len] i32 contiguous. Squared Euclidean distance; ties keep the lower
  // centroid. A token with NaN or infinity gets any centroid.
  virtual void nearest_centroids(const TensorView& x, std::span<const int32_t> head_ids,
                                 const TensorView& centroids, const TensorView& labels) = 0;
  // Fewest key blocks per row, at least 1, whose score mass reaches top_p[head] (the crossing block
  // is kept, ties keep the lower block). scores [heads, num_q_blocks, num_k_blocks] f32, finite and
  // 0 or more (else Error), any row sum; bits are OR-ed into mask rows of the same head index.
  virtual void select_top_p(const TensorView& scores, std::span<const float> top_p,
                            BlockMask& mask) = 0;
  // The top_k[head] highest scores of each row, at least 1; ties keep the lower block.
  virtual void select_top_k(const TensorView& scores, std::span<const int32_t> top_k,
                            BlockMask& mask) = 0;
  // out[h, p, :] = x[h, order[p], :] (gather) or out[h, order[p], :] = x[h, p, :] (scatter).
  // x, out [heads, seq_len, head_dim] strided, same dtype; order [seq_len] per head or shared. A
  // gather may take tokens more than once or not at all: x and out may differ in length, order has
  // that of out.
  virtual void gather_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                             const TensorView& out) = 0;
  virtual void scatter_tokens(const TensorView& x, const int32_t* order, int64_t order_head_stride,
                              const TensorView& out) = 0;

  // --- network -------------------------------------------------------------------------------
  // x [m, k] f32|bf16, w [n, k] of x's dtype, bias [n] f32 or null, gate [n] f32 or null,
  // out [m, n] f32|bf16. Rows may be strided; channels are contiguous. f32 accumulation.
  virtual void linear(const TensorView& x, const TensorView& w, const float* bias,
                      Epilogue epilogue, const float* gate, const TensorView& out) = 0;
  // out = (LN(x) * weight + bias) * (1 + scale) + shift; weight, bias, scale, shift [d] f32 or
  // null. x [m, d] f32; out [m, d] f32|bf16.
  virtual void layer_norm(const TensorView& x, const float* weight, const float* bias,
                          const float* scale, const float* shift, float eps,
                          const TensorView& out) = 0;
  // out = x * rsqrt(mean(x^2) + eps) * weight over the row or each head, then rope per head if not
  // null (m must be its grid's tokens). x [m, d] f32|bf16, out [m, d] f32|bf16; may be in place.
  // num_heads is read for heads and rope only.
  virtual void rms_norm(const TensorView& x, const float* weight, float eps, NormSpan span,
                        const RopeTables* rope, int32_t num_heads, const TensorView& out) = 0;
  // out = a + b, elementwise: views of one shape and dtype, f32|bf16, rank <= 5, any strides
  // (stride 0 in a and b repeats). Sums are f32; out may be a or b.
  virtual void add(const TensorView& a, const TensorView& b, const TensorView& out) {
    add_elements(a, b, out);
  }
  // out = activation(gate) * up, elementwise, of gelu_tanh or silu; equal shapes and dtypes. out
  // may be gate or up.
  virtual void gated_product(Epilogue activation, const TensorView& gate, const TensorView& up,
                             const TensorView& out) = 0;
  // x [t, h, w, c_in] f32|bf16 contiguous, w [c_out, c_in, kt, kh, kw] of x's dtype, bias [c_out]
  // f32 or null, residual of out's shape and dtype, contiguous, or null (added last) ->
  // out [t', h', w', c_out], x's dtype.
  virtual void conv3d(const TensorView& x, const TensorView& w, const float* bias,
                      const ConvParams& conv, const TensorView* residual,
                      const TensorView& out) = 0;
  // Wan VAE norm: x / max(|x|, 1e-12) * sqrt(c) * gamma over the last dimension, then SiLU if
  // asked. x, out [..., c] contiguous, same dtype; gamma [c] f32. May be in place.
  virtual void channel_norm(const TensorView& x, const float* gamma, bool silu,
                            const TensorView& out) = 0;
  // Each sample n and group of c / num_groups neighbouring channels over its m * c / num_groups
  // values: (x - mean) * rsqrt(variance + eps) * weight + bias, variance biased; then SiLU if
  // asked. x, out [n, m, c] f32|bf16 contiguous, same dtype; weight, bias [c] f32. May be in place.
  // Exact to a few roundings at any m and mean: sums are f64, or f32 in short runs.
  virtual void group_norm(const TensorView& x, int32_t num_groups, const float* weight,
                          const float* bias, float eps, bool silu, const TensorView& out) = 0;
};

// Backends in order of preference. Throws Error listing the names when `name` is unknown or, with
// the reason, when it cannot run on this machine. Empty name = LACUNA_BACKEND or the first that
// runs.
std::unique_ptr<Backend> make_backend(std::string_view name = {});
std::span<const std::string_view> backend_names();

}  // namespace lacuna
