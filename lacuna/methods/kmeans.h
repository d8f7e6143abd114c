// SPDX-License-Identifier: Apache-2.0
// k-means over the tokens of one head, on Backend ops.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "lacuna/backend/backend.h"
#include "lacuna/core/workspace.h"

namespace lacuna {

// Fills centroids [clusters, head_dim] with tokens of x [1, tokens, head_dim] (same dtype) drawn
// with replacement: draws first, first + 1, ... of the fixed sequence `name`.
void draw_centroids(Backend& backend, const TensorView& x, std::string_view name, uint64_t first,
                    const TensorView& centroids);

// Up to max_iterations (at least 1) steps of Lloyd's algorithm: assign every token to its nearest
// centroid, move every centroid to the mean of its tokens; one without tokens stays. Stops before
// moving when no centroid would move by kCentroidTolerance. Returns the number of assignments.
//   x          [1, tokens, head_dim] f32|bf16, strided
//   centroids  [clusters, head_dim] of x's dtype, contiguous, on the host: in and out
//   order      [tokens] out: tokens by cluster, ascending inside a cluster
//   offsets    [clusters + 1] out: where each cluster begins in `order`, as last assigned
inline constexpr double kCentroidTolerance = 1e-4;
int run_kmeans(Backend& backend, Workspace& workspace, const TensorView& x, int max_iterations,
               const TensorView& centroids, std::span<int32_t> order, std::span<int32_t> offsets);

}  // namespace lacuna
