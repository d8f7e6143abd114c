// SPDX-License-Identifier: Apache-2.0
// Sparse VideoGen2 (SVG2, arXiv 2505.18875, section 4): semantic-aware permutation.
//
// Order: k-means of the queries and, apart from them, of the keys of each head (squared Euclidean,
// run_kmeans); tokens of one cluster lie together and form one block. Score, with query centroid
// cq_i, key centroid ck_j and n_j tokens in key cluster j:
//   p_ij = n_j exp(sm_scale cq_i.ck_j) / sum_m n_m exp(sm_scale cq_i.ck_m)
// Select: per query cluster the fewest key clusters whose p reaches top_p, and at least the
// int(min_kc_ratio * k_clusters) highest. Centroids start as tokens drawn with replacement, move
// for at most first_iterations steps in the first selection of a head and for `iterations` in later
// ones, from where they were (the centroid cache). As in the published code: labels are those
// against the centroids before the last move; an empty cluster keeps its centroid, weighs nothing
// and may be among those the floor keeps; iteration stops when no centroid would move by 1e-4.
//
// Cluster counts scale with the video: the published 300 query and 1000 key clusters belong to
// 75600 tokens (Wan 720p), that is 252 and 75.6 tokens per cluster. 0 keeps these averages for any
// token count n, round(n / 252) and round(n / 75.6), at least 1: one k-means step then costs 0.86 %
// of dense attention, whatever n. Other published counts are explicit: 200 / 1000 (Wan 480p,
// HunyuanVideo 480p), 400 / 1000 (HunyuanVideo 720p), 100 / 500 (paper).
//
// Deviations: draws come from a fixed sequence per head, and a head's iteration stops by its own
// centroids (published: random; all heads of a call stop together), so that a selection depends
// neither on chance nor on which heads are asked. The cache belongs to one branch (published:
// the guidance branches share it). At p_ij summing to top_p exactly one cluster less is kept; with
// top_p = 1 all are. Order inside a cluster is raster order (published: any). Text tokens follow
// the clusters as one block that sees and is seen by all. No clustering in dense steps.
#include <algorithm>
#include <cmath>
#include <limits>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/methods/kmeans.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr double kPublishedTokens = 75600, kPublishedQuery = 300, kPublishedKey = 1000;

constexpr ParamSpec kSvg2Specs[] = {
    {"top_p", 0.9, 0.001, 1.0, false, "share of estimated mass each query cluster keeps"},
    {"min_kc_ratio", 0.1, 0, 1, false, "share of key clusters kept at least"},
    {"q_clusters", 0, 0, 16384, true, "query clusters; 0 = one per 252 tokens"},
    {"k_clusters", 0, 0, 16384, true, "key clusters; 0 = one per 75.6 tokens"},
    {"first_iterations", 50, 1, 1000, true, "k-means steps in a head's first selection"},
    {"iterations", 2, 1, 1000, true, "k-means steps in later selections"},
};

// The centroid cache, on the host: per head [clusters, head_dim], empty before the head's first
// selection.
struct Centroids final : State {
  std::vector<Tensor> q, k;
  void transfer(const StateIo& io, int64_t num_heads, int64_t /*seq_len*/) override {
    for (const auto& [side, name] : {std::pair{&q, "q"}, std::pair{&k, "k"}}) {
      side->resize(static_cast<size_t>(num_heads));
      for (size_t h = 0; h < side->size(); ++h) io.in(name).tensor(std::to_string(h), (*side)[h]);
    }
  }
};

// One side of the attention map.
struct Side {
  const TensorView& x;
  std::string_view draws;
  int64_t clusters;
  std::vector<Tensor>& cache;
  BlockLayout& layout;
  TokenOrder& order;
};

int64_t cluster_count(const Params& params, std::string_view name, double published,
                      int64_t tokens) {
  const int64_t given = params.get_int(name);
  if (given > 0) return given;
  return std::max<int64_t>(
      1, std::llround(static_cast<double>(tokens) * published / kPublishedTokens));
}

// Clusters the video tokens of every asked head; text is one more block at the end.
void partition(const SelectArgs& args, const Side& side) {
  const auto num_heads = static_cast<int64_t>(args.head_ids.size());
  const int64_t video = args.grid.tokens(), blocks = side.clusters + (args.text_tokens > 0 ? 1 : 0);
  side.order = {video, num_heads, std::vector<int32_t>(static_cast<size_t>(num_heads * video))};
  std::vector<int32_t> offsets(static_cast<size_t>(num_heads * (blocks + 1)));
  side.cache.resize(static_cast<size_t>(args.q.shape[0]));
  for (int64_t i = 0; i < num_heads; ++i) {
    const int32_t head = args.head_ids[i];
    TensorView x = side.x.slice(head, head + 1);
    x.shape[1] = video;
    Tensor& centroids = side.cache[head];
    std::string_view limit = "iterations";
    if (centroids.empty()) {
      centroids = Tensor(x.dtype, {side.clusters, x.shape[2]});
      draw_centroids(args.backend, x, side.draws,
                     static_cast<uint64_t>((args.share.first + head) * side.clusters), centroids);
      limit = "first_iterations";
    }
    const TensorView& held = centroids.view();
    LACUNA_CHECK(held.rank == 2 && held.dtype == x.dtype && held.shape[0] == side.clusters &&
                     held.shape[1] == x.shape[2],
                 "svg2: centroids {}, expected [{}, {}] {}", held.describe(), side.clusters,
                 x.shape[2], dtype_name(x.dtype));
    const std::span row = std::span(offsets).subspan(i * (blocks + 1), blocks + 1);
    run_kmeans(args.backend, args.workspace, x, static_cast<int>(args.params.get_int(limit)),
               centroids, std::span(side.order.order).subspan(i * video, video),
               row.first(side.clusters + 1));
    row.back() = static_cast<int32_t>(args.seq_len());
  }
  append_text(side.order, args.text_tokens);
  side.layout = BlockLayout::explicit_offsets(args.seq_len(), num_heads, std::move(offsets));
}

// exp(sm_scale z) times cluster size over one row of dot products. The maximum is that of clusters
// with tokens, so that one of them weighs at least 1.
void weigh_row(std::span<float> row, const BlockLayout& layout, int64_t head, float sm_scale) {
  float top = -std::numeric_limits<float>::infinity();
  for (size_t j = 0; j < row.size(); ++j)
    if (layout.size(head, static_cast<int32_t>(j)) > 0) top = std::max(top, row[j]);
  for (size_t j = 0; j < row.size(); ++j) {
    const auto size = static_cast<float>(layout.size(head, static_cast<int32_t>(j)));
    row[j] = size > 0 ? size * std::exp(sm_scale * (row[j] - top)) : 0.0f;
  }
}

// Unnormalised p of every pair of clusters, [heads, query blocks, key blocks]; 0 where text is.
TensorView cluster_mass(const SelectArgs& args, const Centroids& cache, const Selection& s) {
  const auto num_heads = static_cast<int64_t>(args.head_ids.size());
  const int64_t rows = s.q_layout.num_blocks, columns = s.k_layout.num_blocks;
  const TensorView mass = args.workspace.host("svg2.mass", DType::f32, {num_heads, rows, columns});
  std::fill_n(mass.as<float>(), mass.numel(), 0.0f);
  for (int64_t i = 0; i < num_heads; ++i) {
    const Tensor &q = cache.q[args.head_ids[i]], &k = cache.k[args.head_ids[i]];
    TensorView out = mass.slice(i, i + 1).reshape({rows, columns});
    out.shape = {q.view().shape[0], k.view().shape[0]};
    args.backend.linear(q, k, nullptr, Epilogue::none, nullptr, out);
    parallel_tasks(out.shape[0], [&](int64_t row, int) {
      weigh_row({out.as<float>() + row * columns, static_cast<size_t>(out.shape[1])}, s.k_layout, i,
                args.sm_scale);
    });
  }
  return mass;
}

class Svg2 final : public Method {
 public:
  std::string_view name() const override { return "svg2"; }
  std::string_view summary() const override {
    return "k-means clusters as blocks, top-p over cluster pairs (SVG2, arXiv 2505.18875)";
  }
  std::span<const ParamSpec> specs() const override { return kSvg2Specs; }
  std::string_view density_parameter(const Params& /*params*/) const override { return "top_p"; }
  bool moves_tokens(const Params& /*params*/) const override { return true; }
  std::unique_ptr<State> make_state() const override { return std::make_unique<Centroids>(); }
  int64_t held_bytes(const HoldArgs& args) const override {
    const SiteSizes& s = args.sizes;
    const int64_t video = s.grid.tokens(), text = s.text_tokens > 0 ? 1 : 0;
    const int64_t q = cluster_count(args.params, "q_clusters", kPublishedQuery, video);
    const int64_t k = cluster_count(args.params, "k_clusters", kPublishedKey, video);
    const int64_t offsets = (q + text + 1 + k + text + 1) * static_cast<int64_t>(sizeof(int32_t));
    return mask_bytes(s.num_heads, q + text, k + text) + 2 * order_bytes(s.num_heads, s.seq_len()) +
           s.num_heads * offsets + state_bytes(args);
  }
  int64_t state_bytes(const HoldArgs& args) const override {
    const SiteSizes& s = args.sizes;
    const int64_t video = s.grid.tokens();
    const int64_t clusters = cluster_count(args.params, "q_clusters", kPublishedQuery, video) +
                             cluster_count(args.params, "k_clusters", kPublishedKey, video);
    return s.num_heads * storage_bytes(s.dtype, clusters * s.head_dim);
  }

  void check(const Params& params) const override {
    for (const ParamSpec& spec : kSvg2Specs)
      LACUNA_CHECK(
          spec.name == "top_p" || spec.name == "min_kc_ratio" || !params.per_head(spec.name),
          "svg2: {} per head, expected one value for all heads", spec.name);
  }

  Selection select(const SelectArgs& args, State* state) const override {
    check(args.params);
    LACUNA_CHECK(state != nullptr, "svg2: no state, expected that of make_state()");
    auto& cache = static_cast<Centroids&>(*state);
    const int64_t video = args.grid.tokens();
    const int64_t q_clusters = cluster_count(args.params, "q_clusters", kPublishedQuery, video);
    const int64_t k_clusters = cluster_count(args.params, "k_clusters", kPublishedKey, video);
    Selection s;
    partition(args, {args.q, "svg2.q", q_clusters, cache.q, s.q_layout, s.q_order});
    partition(args, {args.k, "svg2.k", k_clusters, cache.k, s.k_layout, s.k_order});

    std::vector<float> top_p;
    std::vector<int32_t> at_least;
    for (int32_t head : args.head_ids) {
      top_p.push_back(static_cast<float>(args.params.get("top_p", head)));
      const double ratio = top_p.back() < 1.0f ? args.params.get("min_kc_ratio", head) : 1.0;
      at_least.push_back(static_cast<int32_t>(ratio * static_cast<double>(k_clusters)));
    }
    const TensorView mass = cluster_mass(args, cache, s);
    s.mask = BlockMask(static_cast<int64_t>(args.head_ids.size()), s.q_layout.num_blocks,
                       s.k_layout.num_blocks);
    args.backend.select_top_p(mass, top_p, s.mask);
    args.backend.select_top_k(mass, at_least, s.mask);
    keep_text(s, video);
    return s;
  }
};

}  // namespace

const Method& svg2_method() {
  static const Svg2 method;
  return method;
}

}  // namespace lacuna
