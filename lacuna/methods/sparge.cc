// SPDX-License-Identifier: Apache-2.0
// SpargeAttn (arXiv 2502.18137), stage 1: scores of block means, with a guard for blocks that their
// mean does not stand for.
//
//   s_ij = sm_scale mean(Q_i) . mean(K_j), softmax over j, without key blocks that fail the guard
//   guard: the mean cosine of all pairs of tokens of a block, a token with itself included, must be
//          above `similarity`; keys have their mean over all tokens taken off first (smooth-K).
//          Rows and columns of blocks that fail are computed.
//   top_k > 0: the floor(top_k * key blocks) highest scores of a row, at least 1
//   top_k = 0: the highest scores while their sum stays at or below top_cdf, at least 1; the block
//              that crosses is dropped (paper and code; it is not top_p for that reason)
// The mean cosine is |mean of unit tokens|^2, so it is never negative and a negative bound, the
// published default, switches the guard off.
//
// Stage 2 is the skip rule running_max with lambda = 2^-pvthreshd: the code skips exp, row sum and
// P V of a block when max over its rows of (block max - running max) <= -pvthreshd in log2 units,
// so 50 (the default) drops nothing, 20 is lambda = 1e-6 and 5 is lambda = 0.03. What is not the
// same: the code votes over a whole query block (128 rows, 64 on sm90) and here 64 rows vote; it
// always computes the last listed block and here only the first; it visits keys in rising order and
// here the own block comes first; equality skips there. The paper keeps the skipped mass in the
// denominator, the code and running_max do not.
//
// Deviations: a short last block takes part with the tokens it has (in the code its similarity is
// 0 / 0, so it is always computed); of equal scores the lower block wins (torch.sort promises no
// order); no INT8 or FP8 (that is the kernel's business); text rows and columns are kept.
// `hilbert` is the paper's permutation, which the public wrappers leave out.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/core/bf16.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kSpargeSpecs[] = {
    {"top_k", 0.5, 0.0, 1.0, false, "share of key blocks each query block keeps; 0 = see top_cdf"},
    {"top_cdf", 0.98, 0.001, 1.0, false, "with top_k=0: estimated mass kept at most"},
    {"similarity", -0.1, -1.0, 1.0, false, "computes blocks of lower mean cosine; below 0 = off"},
    {"block_q", 128, 1, 1024, true, "tokens per query block"},
    {"block_k", 64, 1, 1024, true, "tokens per key block"},
    {"sink", 0, 0, 1, true, "1 keeps key block 0"},
    {"hilbert", 0, 0, 1, true, "1 puts tokens along a 3-D Hilbert curve"},
};

// The tokens of one head as the matrix that network operations take.
TensorView rows_of(const TensorView& x) {
  TensorView rows = x;
  rows.rank = 2;
  rows.shape = {x.shape[1], x.shape[2]};
  rows.stride = {x.stride[1], x.stride[2]};
  return rows;
}

// One head's blocks: their means, and which the means stand for.
struct Pooled {
  TensorView mean;            // [blocks, head_dim] f32, on the host
  std::vector<char> similar;  // [blocks]
};

class Pooling {
 public:
  Pooling(const SelectArgs& args, const TokenOrder& order) : args_(args), order_(order) {}

  Pooled queries(int32_t head, const BlockLayout& layout) {
    return pool("sparge.q", args_.q, head, layout, false);
  }
  Pooled keys(int32_t head, const BlockLayout& layout) {
    return pool("sparge.k", args_.k, head, layout, true);
  }

 private:
  Pooled pool(const std::string& name, const TensorView& x, int32_t head, const BlockLayout& layout,
              bool smooth) {
    const TensorView tokens = ordered(x.slice(head, head + 1));
    const auto means = [&](const std::string& key, const TensorView& of, const BlockLayout& cut) {
      const TensorView out =
          args_.workspace.host(key, DType::f32, {1, cut.num_blocks, of.shape[2]});
      args_.backend.block_mean(of, kFirst, cut, out);
      return out;
    };
    Pooled pooled{rows_of(means(name + "_mean", tokens, layout)),
                  std::vector<char>(static_cast<size_t>(layout.num_blocks), 1)};
    const double bound = args_.params.get("similarity", head);
    if (bound < 0.0) return pooled;

    TensorView centred = tokens;
    if (smooth) centred = minus_mean(tokens, mean_of(pooled.mean, layout, name + "_all"));
    const int64_t head_dim = tokens.shape[2];
    const TensorView unit =
        args_.workspace.get("sparge.unit", DType::f32, {1, tokens.shape[1], head_dim});
    // rms_norm leaves rows of length sqrt(head_dim).
    const std::vector<float> weight(static_cast<size_t>(head_dim),
                                    1.0f / std::sqrt(static_cast<float>(head_dim)));
    args_.backend.rms_norm(rows_of(centred), weight.data(), kTiny, NormSpan::row, nullptr, 1,
                           rows_of(unit));
    const TensorView unit_mean = means("sparge.unit_mean", unit, layout);
    for (int32_t b = 0; b < layout.num_blocks; ++b) {
      const float* m = unit_mean.as<float>() + b * head_dim;
      pooled.similar[b] = std::inner_product(m, m + head_dim, m, 0.0) > bound;
    }
    return pooled;
  }

  // Of all tokens, out of the means of blocks: one block of all would be one thread block on a GPU.
  TensorView mean_of(const TensorView& block_means, const BlockLayout& layout,
                     const std::string& key) {
    const int64_t d = block_means.shape[1];
    const TensorView all = args_.workspace.host(key, DType::f32, {1, 1, d});
    for (int64_t c = 0; c < d; ++c) {
      double sum = 0.0;
      for (int32_t b = 0; b < layout.num_blocks; ++b)
        sum += double{block_means.as<float>()[b * d + c]} * static_cast<double>(layout.size(0, b));
      all.as<float>()[c] = static_cast<float>(sum / static_cast<double>(layout.seq_len));
    }
    return all;
  }

  TensorView ordered(const TensorView& x) {
    if (order_.empty()) return x;
    const TensorView moved =
        args_.workspace.get("sparge.tokens", x.dtype, {1, x.shape[1], x.shape[2]});
    args_.backend.gather_tokens(x, order_.order.data(), 0, moved);
    return moved;
  }

  // x - mean as x I - mean: network operations have no other way to add a row to every row.
  TensorView minus_mean(const TensorView& x, const TensorView& mean) {
    const int64_t d = x.shape[2];
    const TensorView identity = args_.workspace.host("sparge.identity", x.dtype, {d, d});
    for (int64_t i = 0; i < d * d; ++i) {
      const float value = i % (d + 1) == 0 ? 1.0f : 0.0f;
      if (x.dtype == DType::f32) {
        identity.as<float>()[i] = value;
      } else {
        identity.as<BFloat16>()[i] = BFloat16(value);
      }
    }
    std::vector<float> bias(mean.as<float>(), mean.as<float>() + d);
    for (float& value : bias) value = -value;
    const TensorView out = args_.workspace.get("sparge.centred", DType::f32, {1, x.shape[1], d});
    args_.backend.linear(rows_of(x), identity, bias.data(), Epilogue::none, nullptr, rows_of(out));
    return out;
  }

  static constexpr int32_t kFirst[] = {0};
  static constexpr float kTiny = 1e-30f;  // a token of zeros stays zeros

  const SelectArgs& args_;
  const TokenOrder& order_;
};

// How one head turns scores into blocks.
struct Choice {
  double top_k, top_cdf, sm_scale;

  int64_t count(const std::vector<double>& weight, const std::vector<int32_t>& order,
                double total) const {
    const auto blocks = static_cast<int64_t>(order.size());
    int64_t count = 0;
    if (top_k > 0.0) {
      // In float, as published: 0.3 of 10 blocks are 3.
      count = static_cast<int64_t>(static_cast<float>(top_k) * static_cast<float>(blocks));
    } else if (top_cdf >= 1.0) {
      count = blocks;
    } else {
      double sum = 0.0;
      while (count < blocks && (sum += weight[order[count]]) <= top_cdf * total) ++count;
    }
    return std::max<int64_t>(count, 1);
  }

  // scores [similar.size()] of one query block; sets the bits of its row.
  void keep(const float* scores, const std::vector<char>& similar, BlockMask& mask, int64_t head,
            int32_t qb) const {
    const auto blocks = static_cast<int32_t>(similar.size());
    double highest = -HUGE_VAL;
    for (int32_t j = 0; j < blocks; ++j) {
      LACUNA_CHECK(std::isfinite(scores[j]), "sparge: score {}, expected finite q and k",
                   scores[j]);
      if (similar[j]) highest = std::max(highest, sm_scale * scores[j]);
    }
    std::vector<double> weight(similar.size());
    double total = 0.0;
    for (int32_t j = 0; j < blocks; ++j) {
      if (!similar[j]) continue;
      weight[j] = std::exp(sm_scale * scores[j] - highest);
      total += weight[j];
    }
    std::vector<int32_t> order(similar.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return weight[a] > weight[b]; });
    const int64_t kept = count(weight, order, total);
    for (int64_t i = 0; i < kept; ++i) mask.set(head, qb, order[i]);
    for (int32_t j = 0; j < blocks; ++j)
      if (!similar[j]) mask.set(head, qb, j);
  }
};

class Sparge final : public Method {
 public:
  std::string_view name() const override { return "sparge"; }
  std::string_view summary() const override {
    return "Scores of block means, guarded by self-similarity (SpargeAttn, arXiv 2502.18137)";
  }
  std::span<const ParamSpec> specs() const override { return kSpargeSpecs; }
  std::string_view density_parameter(const Params& params) const override {
    return params.get("top_k") > 0.0 ? "top_k" : "top_cdf";
  }
  bool moves_tokens(const Params& params) const override { return params.get_int("hilbert") != 0; }
  int64_t held_bytes(const HoldArgs& args) const override {
    return Method::held_bytes(args) +
           (moves_tokens(args.params) ? 2 * order_bytes(1, args.sizes.seq_len()) : 0);
  }

  void check(const Params& params) const override {
    for (const char* name : {"block_q", "block_k", "sink", "hilbert"})
      LACUNA_CHECK(!params.per_head(name), "sparge: {} per head, expected one value for all heads",
                   name);
  }

  Selection select(const SelectArgs& args, State* /*state*/) const override {
    check(args.params);
    Selection selection;
    selection.q_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block_q")));
    selection.k_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block_k")));
    if (args.params.get_int("hilbert") != 0) {
      selection.q_order = hilbert_order(args.grid);
      append_text(selection.q_order, args.text_tokens);
      selection.k_order = selection.q_order;
    }
    const int32_t q_blocks = selection.q_layout.num_blocks;
    const int32_t k_blocks = selection.k_layout.num_blocks;
    selection.mask = BlockMask(static_cast<int64_t>(args.head_ids.size()), q_blocks, k_blocks);
    Pooling pooling(args, selection.q_order);
    const TensorView scores =
        args.workspace.host("sparge.scores", DType::f32, {q_blocks, k_blocks});
    for (size_t i = 0; i < args.head_ids.size(); ++i) {
      const int32_t head = args.head_ids[i];
      const Pooled q = pooling.queries(head, selection.q_layout);
      const Pooled k = pooling.keys(head, selection.k_layout);
      args.backend.linear(q.mean, k.mean, nullptr, Epilogue::none, nullptr, scores);
      const Choice choice{args.params.get("top_k", head), args.params.get("top_cdf", head),
                          args.sm_scale};
      parallel_tasks(q_blocks, [&](int64_t row, int) {
        const auto qb = static_cast<int32_t>(row);
        choice.keep(scores.as<float>() + row * k_blocks, k.similar, selection.mask,
                    static_cast<int64_t>(i), qb);
        if (!q.similar[row])
          for (int32_t j = 0; j < k_blocks; ++j) selection.mask.set(static_cast<int64_t>(i), qb, j);
      });
    }
    if (args.params.get_int("sink") != 0) selection.mask.keep_k_blocks(0, 1);
    keep_text(selection, args.grid.tokens());
    return selection;
  }
};

}  // namespace

const Method& sparge_method() {
  static const Sparge method;
  return method;
}

}  // namespace lacuna
