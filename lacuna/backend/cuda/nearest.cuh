// SPDX-License-Identifier: Apache-2.0
// Nearest centroid of every token (Backend::nearest_centroids): the largest x.c - |c|^2 / 2, kept
// as a running maximum over tiles of centroids. No distance is stored.
#pragma once

#include "lacuna/backend/cuda/product.cuh"

namespace lacuna::cuda {

// Half the squared length of each centroid, one warp each.
template <class T>
LACUNA_DEVICE void half_norms(const NearestArgs& p) {
  const int centroid = block_id() * (kNormThreads / 32) + (thread_id() >> 5);
  const int64_t call = block_id_y();
  if (centroid >= p.count) return;
  const int64_t at = call * p.centroids.head_stride + centroid * p.centroids.token_stride;
  float sum = 0.0f;
  LACUNA_NO_UNROLL
  for (int c = thread_id() & 31; c < p.centroids.d; c += 32) {
    const float x = load_element<T>(p.centroids.data, at + c);
    sum = multiply_add(x, x, sum);
  }
  sum = warp_sum(sum);
  if ((thread_id() & 31) == 0) write_global(p.norms + call * p.count + centroid, 0.5f * sum);
}

// A thread looks after one row and half of each tile's columns.
template <class T>
LACUNA_DEVICE void nearest(const NearestArgs& p) {
  constexpr int kHalf = kProductColumns / 2;
  const int call = block_id_y(), first = block_id() * kProductRows;
  Product<T> product(p.x, read_global(p.head_ids + call), p.centroids, call);
  const int row = thread_id() % kProductRows, half = thread_id() / kProductRows;
  const float* norms = p.norms + static_cast<int64_t>(call) * p.count;
  const float* tile = Product<T>::tile() + row * kTileStride + half * kHalf;
  float best = minus_infinity();
  int label = 0;
  LACUNA_NO_UNROLL
  for (int centroid = 0; centroid < p.count; centroid += kProductColumns) {
    product.run(first, centroid);
    const int begin = centroid + half * kHalf, columns = min_of(kHalf, p.count - begin);
    LACUNA_NO_UNROLL
    for (int c = 0; c < columns; ++c) {
      const float score = tile[c] - read_global(norms + begin + c);
      if (score > best) best = score, label = begin + c;  // of equals the first
    }
  }
  float* scores = Product<T>::extra();
  int* labels = reinterpret_cast<int*>(scores + 2 * kProductRows);
  scores[thread_id()] = best;
  labels[thread_id()] = label;
  sync_block();
  if (half != 0 || first + row >= p.x.tokens) return;
  const float other = scores[row + kProductRows];
  const int other_label = labels[row + kProductRows];
  if (other > best || (other == best && other_label < label)) label = other_label;
  write_global(p.labels + static_cast<int64_t>(call) * p.x.tokens + first + row, label);
}

}  // namespace lacuna::cuda
