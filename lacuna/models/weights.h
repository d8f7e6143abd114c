// SPDX-License-Identifier: Apache-2.0
// Named tensors of a model, wherever they come from: files (memory-mapped) or the hash.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/core/safetensors.h"
#include "lacuna/core/tensor.h"

namespace lacuna {

// A tensor as stored; its elements count `scale` times.
struct ScaledView {
  TensorView stored;
  float scale = 1.0f;
};

// What LoRA adds to a matrix [n, k]: up down^T, with its scale in `down`.
struct LowRank {
  TensorView up;    // [n, r] f32, f16 or bf16, at any address
  TensorView down;  // [k, r] f32
};

// A matrix as stored, and what is added to it where it is used.
struct Matrix {
  TensorView stored;
  std::vector<LowRank> added;
};

// Where tensors come from. Views stay valid as long as the source lives and are aligned to their
// element, so plain dtypes may be read through typed pointers; never write through them.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual std::string describe() const = 0;  // for messages: file name or "hash w:"
  virtual bool has(std::string_view name) const = 0;
  virtual std::vector<std::string> names() const = 0;  // empty for the hash
  // The tensor as stored. The hash source makes it for the asked shape; file sources check the
  // shape and throw Error naming file, tensor, given and expected shape.
  virtual TensorView load(std::string_view name, std::span<const int64_t> shape) = 0;
  // The same, but an 8-bit float that has a scale stays as it is and comes with it: no copy is
  // made.
  virtual ScaledView load_unscaled(std::string_view name, std::span<const int64_t> shape) {
    return {load(name, shape), 1.0f};
  }
  // The same where the user adds the updates of low rank (Linear): no copy of the matrix is made.
  virtual Matrix load_matrix(std::string_view name, std::span<const int64_t> shape) {
    return {load(name, shape), {}};
  }
  // Shape as stored, rank 0 when unknown (hash).
  virtual std::vector<int64_t> shape(std::string_view name) const = 0;
  // The tensor's bytes as they lie in the file, at any address and without a scale: makes no copy,
  // so a look at every tensor of a large file costs nothing.
  virtual TensorView raw(std::string_view name) { return load(name, shape(name)); }
  // Bytes of memory that all tensors loaded take beyond those in the files.
  virtual int64_t added_bytes() const { return 0; }
};

// Hash weights (docs/formats.md, "Hash"): `prefix` is "w:" (second expert "w2:").
// storage f32 or bf16.
std::unique_ptr<WeightSource> hash_weights(std::string prefix, DType storage);

// One source over several safetensors and GGUF files (told apart by content), memory-mapped. A
// prefix that every name of a file shares (`model.diffusion_model.`, `diffusion_model.` or
// `model.`) is dropped. An 8-bit float X.weight with a scalar X.scale_weight or X.weight_scale is
// handed out as their product in bf16, or by load_unscaled() as the two. Both accept a stored shape
// that differs only by leading ones or by a first dimension that is the product of the first two
// wanted ones (how some GGUF files keep 3-D convolutions). Throws Error naming the file for
// unreadable files, pickles (.pth), int8 "comfy_quant" checkpoints and a tensor or scale that
// stands in two files.
std::unique_ptr<WeightSource> open_weights(const std::vector<std::filesystem::path>& files);

// Of names, shapes and the first bytes of every tensor.
uint64_t fingerprint_of(const TensorMap& tensors);

// Reads named tensors with model-side names, collects everything missing, then complains once.
class WeightReader {
 public:
  // `rename` maps a model-side (diffusers) name to the name in the source.
  explicit WeightReader(WeightSource& source,
                        std::function<std::string(std::string_view)> rename = {});
  bool has(std::string_view name) const;
  // Converted to f32 and owned; for norms, biases, tables. A missing tensor is noted and zeros
  // return; above 2^24 elements it is complained about at once.
  Tensor f32(std::string_view name, std::initializer_list<int64_t> shape);
  // The same for what the model only computes with while it loads.
  Tensor passing_f32(std::string_view name, std::initializer_list<int64_t> shape);
  // As stored (memory-mapped where possible): for matrices and convolutions.
  TensorView stored(std::string_view name, std::initializer_list<int64_t> shape);
  // The same where the user applies the scale of 8-bit floats (WeightSource::load_unscaled).
  ScaledView unscaled(std::string_view name, std::initializer_list<int64_t> shape);
  // The same for a Linear, with what LoRA adds to it.
  Matrix matrix(std::string_view name, std::initializer_list<int64_t> shape);
  // Throws Error listing every missing tensor, if any.
  void finish(std::string_view model) const;
  // What f32(), stored(), unscaled() and matrix() gave: memory that does not change as long as
  // model and source live.
  const std::vector<TensorView>& kept() const { return kept_; }

 private:
  // The name in the source; empty, and noted, when it lacks the tensor.
  std::string present(std::string_view name);
  TensorView find(std::string_view name, std::initializer_list<int64_t> shape);

  WeightSource& source_;
  std::function<std::string(std::string_view)> rename_;
  std::vector<std::string> missing_;
  std::vector<TensorView> kept_;
};

}  // namespace lacuna
