// SPDX-License-Identifier: Apache-2.0
// The baseline: dense attention as a user of oneDNN would write it, on one thread. Per tile of
// queries one matmul (scaled scores against all keys), one softmax over whole rows, one matmul with
// the values. K and V are brought into the layout that oneDNN asks for once per call.
//
// How tiles are chosen: a tile's scores take rows x keys numbers, 4 MiB at 64 x 16,384 in f32. Few
// rows keep them near the core, many use a pass over K and V better; which wins depends on the
// machine. So all of 32 to 512 rows, and for bf16 scores in f32 and in bf16, are timed on the first
// queries of the very call, best of three, and the fastest is the baseline.
#pragma once

#include <cstdint>
#include <dnnl.hpp>
#include <memory>
#include <string>

#include "lacuna/backend/attend_params.h"

namespace lacuna::bench {

class OneDnnAttention {
 public:
  // One head, dense, contiguous rows, a multiple of 64 queries. Writes to params.out while it
  // chooses. Throws Error where oneDNN cannot do the type.
  explicit OneDnnAttention(const AttendParams& params);
  ~OneDnnAttention();

  void run();
  // "oneDNN 2.6.3 brg:avx512_core, 128 queries a tile".
  const std::string& description() const { return description_; }

 private:
  struct Tile;

  void pack(const Tile& tile);
  void run_rows(const Tile& tile, int64_t end);
  double time_of(const Tile& tile);

  AttendParams p_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unique_ptr<Tile> tile_;
  std::string description_;
};

}  // namespace lacuna::bench
