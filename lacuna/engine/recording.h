// SPDX-License-Identifier: Apache-2.0
// Q, K and V of chosen attention calls on disk: real inputs for comparing methods without a model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "lacuna/backend/backend.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/core/site.h"
#include "lacuna/core/tensor.h"
#include "lacuna/core/video_grid.h"

namespace lacuna {

// Calls to record; an empty list takes every step, or every layer.
struct RecordFilter {
  std::vector<int> steps, layers;
  bool uncond = false;  // the branch without the prompt, too
  bool matches(const Site& site) const;
};

// Parses `steps=2,10;layers=0-3;branches=both` (branches: cond, the default, or both; parts may be
// left out). Throws Error naming what was given and what is known.
RecordFilter parse_record_sites(std::string_view text);
// Throws Error when a step or layer that is listed is not one of so many, or when no step that is
// chosen is left in a run that goes on at `first_step`.
void check_record_sites(const RecordFilter& filter, int num_steps, int num_layers,
                        int first_step = 0);

// One attention call: q, k, v [num_heads, seq_len, head_dim] of one dtype, f32 or bf16, contiguous,
// raster token order, text tokens last.
struct RecordedCall {
  Site site;
  VideoGrid grid;
  int64_t text_tokens = 0;
  TensorView q, k, v;
};

// Keeps copies in memory until save().
class Recorder {
 public:
  // `backend` has computed what add() gets. Throws Error from add() when the copies would pass
  // max_bytes.
  Recorder(Backend& backend, RecordFilter filter, int64_t max_bytes);
  // Copies the inputs when the filter wants them.
  void add(const Site& site, const VideoGrid& grid, int64_t text_tokens, const TensorView& q,
           const TensorView& k, const TensorView& v);
  size_t size() const { return calls_.size(); }
  // The copies, which live as long as the recorder; the list itself until the next add().
  const std::vector<RecordedCall>& calls() const { return calls_; }
  // Writes the file, complete or not at all. Throws Error when nothing was recorded.
  void save(const std::filesystem::path& path) const;

 private:
  Backend& backend_;
  RecordFilter filter_;
  int64_t bytes_left_;
  std::vector<RecordedCall> calls_;
  std::vector<Tensor> tensors_;
};

// A file of Recorder::save, which may be hostile: throws Error naming file and call on anything
// that is not what RecordedCall says. Format: docs/formats.md.
class Recording {
 public:
  explicit Recording(const std::filesystem::path& path);
  const std::vector<RecordedCall>& calls() const { return calls_; }

 private:
  SafetensorsFile file_;
  std::vector<RecordedCall> calls_;
};

}  // namespace lacuna
