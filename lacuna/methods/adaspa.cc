// SPDX-License-Identifier: Apache-2.0
// AdaSpa (arXiv 2502.21079, sections 4.2 to 4.4): exact block mass, searched once or twice a run.
//
// Order: raster. Score: W[p][q] = sum of softmax(Q K^T / sqrt(d)) over block pair (p, q), exact.
//   First search (Algorithm 1): one dense call gives the output, each row's log-sum-exp and W. The
//   selection is provisional: the mask built from W is used from the next step on.
//   Later searches (Algorithm 2): W = sum exp(z_ij - lse_i) with the lse of the *first* search
//   (Backend::block_mass), and the new mask is used in the same step.
// Select: the k = round(budget n) heaviest key blocks of each row of n. Budgets come in three tiers
// around `density` = 1 - s: with r_up[h] the mass that head h keeps at density / 2, the heads with
// r_up >= min_recall, best first and at most half of all, get density / 2; as many of the other
// heads, those that keep least at 3 density / 2, get 3 density / 2; the rest keep density. So the
// mean is density. Text blocks, and the first frame's if asked, come on top of the budget.
// Refresh: at given steps, or any other rule. Published: searches at steps 10 and 30 of 50 counted
// from 1, so dense steps 0-8 and refresh=at_steps,at=9+29, with the tenth dense step as the look.
//
// Paper and code (vendored in FlagScale) differ; we follow the code for the tiers (the paper tests
// recall at s, against 0.8, and leaves open what happens when more than half the heads pass) and
// the paper for the first search step (the code throws its dense output away and runs the sparse
// kernel). The code can keep 1 % of blocks at random and the paper knows no first-frame sink: the
// former is left out, the latter off by default. The printed log in Algorithms 1 and 2 is an exp.
//
// Deviations: keys that only pad take no mass (the code lets zero keys add exp(0) each). A row's
// mass is its mean, so the short last block counts by its rows in recall, as in the code. When only
// some heads are searched again (drift refresh), the others keep the recall of their last search
// and tiers are decided over all heads. A search step right after the first one takes the mask of
// the first instead of searching twice.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

constexpr ParamSpec kAdaSpaSpecs[] = {
    {"density", 0.2, 0.001, 1.0, false, "share of key blocks each row keeps, mean over heads"},
    {"block", 64, 4, 1024, true, "tokens per block"},
    {"tiers", 1, 0, 1, true, "1 gives easy heads density/2 and as many hard ones 3/2 density"},
    {"min_recall", 0.9, 0.0, 1.0, false, "mass a head must keep at density/2 to count as easy"},
    {"first_frame", 0, 0, 1, true, "1 keeps all rows and keys of the first frame"},
};

enum Tier : int { kUp, kMid, kDown, kNumTiers };
constexpr double kTierShare[kNumTiers] = {0.5, 1.0, 1.5};

struct AdaSpaState final : State {
  std::vector<float> lse;                      // [num_heads, q_len], of the first search
  std::vector<double> recall_up, recall_down;  // [num_heads], of a head's last search
  BlockMask found;                             // [num_heads]: by the first search, not yet taken
  bool searched() const { return !lse.empty(); }
  void transfer(const StateIo& io, int64_t num_heads, int64_t seq_len) override {
    io.values("lse", lse);
    io.values("recall_up", recall_up);
    io.values("recall_down", recall_down);
    lacuna::transfer(io.in("found"), found);
    const auto heads = static_cast<size_t>(searched() ? num_heads : 0);
    LACUNA_CHECK(
        lse.size() == heads * static_cast<size_t>(seq_len) && recall_up.size() == heads &&
            recall_down.size() == heads && (found.empty() || found.num_heads() == num_heads),
        "adaspa: state of {} sums, {} and {} recalls, {} masks, expected those of {} heads",
        lse.size(), recall_up.size(), recall_down.size(), found.num_heads(), num_heads);
  }
};

// Mass of `row` = (head, query block) that `mask` keeps.
double kept_mass(const BlockMask& mask, int64_t head, int32_t qb, const float* row) {
  double sum = 0.0;
  for (int32_t kb = 0; kb < mask.num_k_blocks(); ++kb)
    if (mask.get(head, qb, kb)) sum += row[kb];
  return sum;
}

class AdaSpa final : public Method {
 public:
  std::string_view name() const override { return "adaspa"; }
  std::string_view summary() const override {
    return "Exact block mass with cached LSE, top-k per query block (AdaSpa, arXiv 2502.21079)";
  }
  std::span<const ParamSpec> specs() const override { return kAdaSpaSpecs; }
  std::string_view density_parameter(const Params& /*params*/) const override { return "density"; }
  bool looks() const override { return true; }
  bool weighs_heads(const Params& params) const override { return params.get_int("tiers") != 0; }
  std::unique_ptr<State> make_state() const override { return std::make_unique<AdaSpaState>(); }
  // `found` is the mask in force, until it is taken.
  int64_t held_bytes(const HoldArgs& args) const override {
    return Method::held_bytes(args) +
           args.sizes.num_heads * (args.sizes.seq_len() * static_cast<int64_t>(sizeof(float)) +
                                   2 * static_cast<int64_t>(sizeof(double)));
  }
  int64_t state_bytes(const HoldArgs& args) const override { return held_bytes(args); }

  void check(const Params& params) const override {
    for (const ParamSpec& spec : kAdaSpaSpecs)
      LACUNA_CHECK(spec.name == "density" || !params.per_head(spec.name),
                   "adaspa: {} per head, expected one value for all heads", spec.name);
    if (params.get_int("tiers") == 0) return;
    for (const double density : params.values("density"))
      LACUNA_CHECK(density * kTierShare[kDown] <= 1.0,
                   "adaspa: density {}, expected at most 2/3 with tiers=1", density);
  }

  Selection select(const SelectArgs& args, State* state) const override {
    check(args.params);
    auto& memory = static_cast<AdaSpaState&>(*state);
    Selection selection;
    selection.q_layout = selection.k_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block")));
    if (!memory.searched()) {
      selection.wants_lse = selection.wants_block_mass = selection.provisional = true;
      return selection;
    }
    if (!memory.found.empty()) {
      selection.mask = std::move(memory.found);
      memory.found = {};
      if (selection.mask.num_heads() == static_cast<int64_t>(args.head_ids.size()))
        return selection;
      return pick_heads(selection, args.head_ids);
    }
    const auto heads = static_cast<int64_t>(args.head_ids.size());
    const int64_t n = selection.q_layout.num_blocks;
    const TensorView mass = args.workspace.host("adaspa.mass", DType::f32, {heads, n, n});
    args.backend.block_mass(args.q, args.k, memory.lse.data(), args.head_ids, selection.q_layout,
                            selection.k_layout, args.sm_scale, mass);
    selection.mask = keep(args, selection.q_layout, mass, memory);
    keep_text(selection, args.grid.tokens());
    return selection;
  }

  void observe(const Observation& seen, State* state) const override {
    auto& memory = static_cast<AdaSpaState&>(*state);
    const SelectArgs& args = *seen.args;
    const int64_t heads = args.q.shape[0];
    LACUNA_CHECK(static_cast<int64_t>(seen.head_ids.size()) == heads,
                 "adaspa: first search of {} heads, expected all {}", seen.head_ids.size(), heads);
    memory.lse.assign(seen.lse, seen.lse + heads * args.seq_len());
    memory.recall_up.assign(static_cast<size_t>(heads), 0.0);
    memory.recall_down = memory.recall_up;
    Selection found;
    found.q_layout = found.k_layout =
        BlockLayout::uniform(args.seq_len(), static_cast<int32_t>(args.params.get_int("block")));
    const int64_t n = found.q_layout.num_blocks;
    const TensorView mass =
        make_view(const_cast<float*>(seen.block_mass), DType::f32, {heads, n, n});
    found.mask = keep(args, found.q_layout, mass, memory);
    keep_text(found, args.grid.tokens());
    memory.found = std::move(found.mask);
  }

 private:
  // Row-wise top-k of `mass` [heads of the call, blocks, blocks] under each head's tier, and the
  // first frame if asked.
  BlockMask keep(const SelectArgs& args, const BlockLayout& layout, const TensorView& mass,
                 AdaSpaState& memory) const {
    const auto heads = static_cast<int64_t>(args.head_ids.size());
    const int32_t n = layout.num_blocks;
    const auto top_k = [&](Tier tier) {
      std::vector<int32_t> counts;
      for (const int32_t h : args.head_ids)
        counts.push_back(static_cast<int32_t>(
            std::nearbyint(kTierShare[tier] * args.params.get("density", h) * n)));
      BlockMask mask(heads, n, n);
      args.backend.select_top_k(mass, counts, mask);
      return mask;
    };
    BlockMask kept = top_k(kMid);
    if (args.params.get_int("tiers") != 0) {
      const BlockMask up = top_k(kUp), down = top_k(kDown);
      for (int64_t i = 0; i < heads; ++i) {
        memory.recall_up[args.head_ids[i]] = recall(up, i, layout, mass);
        memory.recall_down[args.head_ids[i]] = recall(down, i, layout, mass);
      }
      const std::vector<Tier> tiers =
          tiers_of(args.share.gather(memory.recall_up), args.share.gather(memory.recall_down),
                   args.params.get("min_recall"));
      for (int64_t i = 0; i < heads; ++i) {
        const Tier tier = tiers[static_cast<size_t>(args.share.first + args.head_ids[i])];
        if (tier != kMid) kept.copy_head(i, tier == kUp ? up : down, i);
      }
    }
    if (args.params.get_int("first_frame") != 0) {
      const auto end =
          static_cast<int32_t>((args.grid.tokens_per_frame() + layout.block - 1) / layout.block);
      kept.keep_k_blocks(0, end);
      kept.keep_q_blocks(0, end);
    }
    return kept;
  }

  // Kept share of the mass of `mask`'s head i; 0 when mass overflowed under a stale lse.
  static double recall(const BlockMask& mask, int64_t i, const BlockLayout& layout,
                       const TensorView& mass) {
    const int32_t n = layout.num_blocks;
    std::vector<double> kept(static_cast<size_t>(n)), all(static_cast<size_t>(n));
    parallel_tasks(n, [&](int64_t task, int) {
      const auto qb = static_cast<int32_t>(task);
      const float* row = mass.as<float>() + (i * n + qb) * n;
      const auto rows = static_cast<double>(layout.size(i, qb));
      kept[qb] = rows * kept_mass(mask, i, qb, row);
      all[qb] = rows * std::accumulate(row, row + n, 0.0);
    });
    const double share = std::accumulate(kept.begin(), kept.end(), 0.0) /
                         std::accumulate(all.begin(), all.end(), 0.0);
    return std::isfinite(share) ? share : 0.0;
  }

  // Of all heads.
  static std::vector<Tier> tiers_of(const std::vector<double>& recall_up,
                                    const std::vector<double>& recall_down, double min_recall) {
    const size_t heads = recall_up.size();
    std::vector<Tier> tiers(heads, kMid);
    std::vector<size_t> easy, rest;
    for (size_t h = 0; h < heads; ++h)
      if (recall_up[h] >= min_recall) easy.push_back(h);
    std::stable_sort(easy.begin(), easy.end(),
                     [&](size_t a, size_t b) { return recall_up[a] > recall_up[b]; });
    easy.resize(std::min(easy.size(), heads / 2));
    for (const size_t h : easy) tiers[h] = kUp;
    for (size_t h = 0; h < heads; ++h)
      if (tiers[h] == kMid) rest.push_back(h);
    std::stable_sort(rest.begin(), rest.end(),
                     [&](size_t a, size_t b) { return recall_down[a] < recall_down[b]; });
    for (size_t i = 0; i < easy.size(); ++i) tiers[rest[i]] = kDown;
    return tiers;
  }
};

}  // namespace

const Method& adaspa_method() {
  static const AdaSpa method;
  return method;
}

}  // namespace lacuna
