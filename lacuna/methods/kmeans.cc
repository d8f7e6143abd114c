// SPDX-License-Identifier: Apache-2.0
#include "lacuna/methods/kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"

namespace lacuna {

namespace {

// Counting sort of tokens by label: stable, so tokens of a cluster keep their raster order.
void sort_by_label(std::span<const int32_t> labels, std::span<int32_t> order,
                   std::span<int32_t> offsets) {
  std::fill(offsets.begin(), offsets.end(), 0);
  for (int32_t label : labels) ++offsets[label + 1];
  for (size_t c = 1; c < offsets.size(); ++c) offsets[c] += offsets[c - 1];
  std::vector<int32_t> next(offsets.begin(), offsets.end() - 1);
  for (size_t t = 0; t < labels.size(); ++t)
    order[static_cast<size_t>(next[labels[t]]++)] = static_cast<int32_t>(t);
}

// Means [clusters, head_dim] f32 in T, with the old centroid where a cluster is empty -> next.
// Returns the longest move.
template <typename T>
double round_means(const float* means, std::span<const int32_t> offsets, int64_t head_dim,
                   const T* old, T* next) {
  double longest = 0.0;
  for (size_t c = 0; c + 1 < offsets.size(); ++c, means += head_dim, old += head_dim) {
    if (offsets[c] == offsets[c + 1]) {
      next = std::copy_n(old, head_dim, next);
      continue;
    }
    double square = 0.0;
    for (int64_t n = 0; n < head_dim; ++n) {
      *next = T(means[n]);
      const double move = double{static_cast<float>(*next++)} - static_cast<float>(old[n]);
      square += move * move;
    }
    longest = std::max(longest, square);
  }
  return std::sqrt(longest);
}

}  // namespace

void draw_centroids(Backend& backend, const TensorView& x, std::string_view name, uint64_t first,
                    const TensorView& centroids) {
  const int64_t tokens = x.shape[1], clusters = centroids.shape[0];
  std::vector<int32_t> drawn;
  for (int64_t c = 0; c < clusters; ++c) {
    const double share = 0.5 + 0.5 * hash_uniform(name, first + static_cast<uint64_t>(c));
    const auto token = static_cast<int64_t>(share * static_cast<double>(tokens));
    drawn.push_back(static_cast<int32_t>(std::min(tokens - 1, token)));
  }
  backend.gather_tokens(x, drawn.data(), 0, centroids.reshape({1, clusters, x.shape[2]}));
}

int run_kmeans(Backend& backend, Workspace& workspace, const TensorView& x, int max_iterations,
               const TensorView& centroids, std::span<int32_t> order, std::span<int32_t> offsets) {
  const int64_t tokens = x.shape[1], head_dim = x.shape[2], clusters = centroids.shape[0];
  LACUNA_CHECK(max_iterations >= 1 && static_cast<int64_t>(order.size()) == tokens &&
                   static_cast<int64_t>(offsets.size()) == clusters + 1,
               "kmeans: {} iterations, order of {}, {} offsets, expected 1 or more, {}, {}",
               max_iterations, order.size(), offsets.size(), tokens, clusters + 1);
  const int32_t head = 0;
  // Labels are sorted and centroids moved on the host: both are small beside the tokens.
  const TensorView labels = workspace.host("kmeans.labels", DType::i32, {1, tokens});
  const TensorView sorted = workspace.get("kmeans.sorted", x.dtype, {1, tokens, head_dim});
  const TensorView means = workspace.host("kmeans.means", DType::f32, {1, clusters, head_dim});
  const TensorView next = workspace.host("kmeans.next", x.dtype, {clusters, head_dim});
  for (int iteration = 1;; ++iteration) {
    backend.nearest_centroids(x, {&head, 1}, centroids.reshape({1, clusters, head_dim}), labels);
    sort_by_label({labels.as<int32_t>(), static_cast<size_t>(tokens)}, order, offsets);
    backend.gather_tokens(x, order.data(), 0, sorted);
    backend.block_mean(sorted, {&head, 1},
                       BlockLayout::explicit_offsets(tokens, 1, {offsets.begin(), offsets.end()}),
                       means);
    const double move = x.dtype == DType::f32
                            ? round_means(means.as<float>(), offsets, head_dim,
                                          centroids.as<float>(), next.as<float>())
                            : round_means(means.as<float>(), offsets, head_dim,
                                          centroids.as<BFloat16>(), next.as<BFloat16>());
    if (move < kCentroidTolerance) return iteration;
    std::memcpy(centroids.data, next.data,
                static_cast<size_t>(storage_bytes(x.dtype, clusters * head_dim)));
    if (iteration == max_iterations) return iteration;
  }
}

}  // namespace lacuna
