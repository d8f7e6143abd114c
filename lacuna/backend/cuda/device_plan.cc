// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/device_plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lacuna::cuda {
namespace {

constexpr const char* kPlanModule = "plan";

// Parameters in the units of the kernel's votes (AttendArgs::threshold).
std::vector<float> thresholds(const AttendParams& p) {
  std::vector<float> out;
  for (int32_t i = 0; p.skip != SkipKind::none && i < p.num_heads; ++i) {
    const float x = p.skip_param[i];
    switch (p.skip) {
      case SkipKind::none:
        break;
      case SkipKind::running_max:
        out.push_back(std::log2(x));
        break;
      case SkipKind::running_lse:
        out.push_back(x * kLog2E);
        break;
      case SkipKind::recall:
        out.push_back(static_cast<float>((1.0 - double{x}) / double{x}));
        break;
    }
  }
  return out;
}

std::vector<float> kappas(const AttendParams& p) {
  if (p.skip == SkipKind::none) return {};
  const auto n = static_cast<size_t>(p.num_heads);
  return p.skip_kappa == nullptr ? std::vector<float>(n, 1.0f)
                                 : std::vector<float>(p.skip_kappa, p.skip_kappa + n);
}

}  // namespace

void Bundle::send(Device& device) {
  if (bytes_ == 0) return;
  memory_.emplace(device, bytes_);
  device.upload(memory_->as<void>(), parts_);
}

DevicePlan::DevicePlan(Device& device, const AttendParams& p, const Plan& plan)
    : device_(device),
      p_(p),
      plan_(plan),
      threshold_values_(thresholds(p)),
      kappa_values_(kappas(p)),
      counter_values_(plan.chunks.size(), 0),
      head_values_(head_ids(p)) {
  const auto heads = static_cast<size_t>(p.num_heads);
  const auto rows = heads * static_cast<size_t>(p.num_q_blocks);
  const auto offsets = [&](const int32_t* values, int32_t blocks) {
    return bundle_.add(
        values, values == nullptr || plan.whole ? 0 : heads * (static_cast<size_t>(blocks) + 1));
  };
  jobs_ = bundle_.add(plan.jobs);
  lists_ = bundle_.add(plan.lists);
  places_ = bundle_.add(plan.places);
  first_half_ = bundle_.add(plan.first_half);
  mask_ = bundle_.add(
      p.mask, p.mask == nullptr ? 0 : rows * static_cast<size_t>(mask_words(p.num_k_blocks)));
  k_offsets_ = offsets(p.k_offsets, p.num_k_blocks);
  q_offsets_ = offsets(p.q_offsets, p.num_q_blocks);
  heads_ = bundle_.add(head_values_);
  counters_ = bundle_.add(counter_values_);
  thresholds_ = bundle_.add(threshold_values_);
  kappas_ = bundle_.add(kappa_values_);
  bundle_.send(device);
  int64_t tiles = 0, out_tiles = 0;
  for (const Plan::Chunk& chunk : plan.chunks) {
    tiles = std::max(tiles, chunk.tiles);
    out_tiles = std::max(out_tiles, chunk.out_tiles);
  }
  const bool rule = p.skip != SkipKind::none, mass = p.block_mass != nullptr;
  tiles_.emplace(device, static_cast<size_t>(tiles) * sizeof(KeyTile));
  kept_.emplace(device, rule ? static_cast<size_t>(out_tiles) * 2 : 0);
  slot_lse_.emplace(device,
                    mass ? static_cast<size_t>(out_tiles) * 4 * kHalfRows * sizeof(float) : 0);
  pairs_.emplace(device, rule ? rows * sizeof(int64_t) : 0);
}

void DevicePlan::make_tiles(size_t chunk) const {
  const Plan::Chunk& c = plan_.chunks[chunk];
  PlanArgs args{};
  args.mask = bundle_.at<uint32_t>(mask_);
  args.words = static_cast<int32_t>(2 * mask_words(p_.num_k_blocks));
  args.q_blocks = p_.num_q_blocks;
  args.k_blocks = {bundle_.at<int32_t>(k_offsets_), plan_.block_k, plan_.k_blocks,
                   static_cast<int32_t>(p_.k_len)};
  args.votes = plan_.votes;
  args.order = p_.order;
  args.order_bits = std::bit_width(static_cast<uint32_t>(std::max(plan_.k_blocks - 1, 1)));
  args.join = plan_.join;
  args.lists = bundle_.at<TileList>(lists_) + c.first_list;
  args.num_lists = static_cast<int32_t>(c.lists);
  args.jobs = bundle_.at<Job>(jobs_);
  args.tiles = tiles_->as<KeyTile>();
  constexpr int64_t kLists = kPlanThreads / 32;  // of a thread block
  device_.launch(
      kPlanModule, "make_lists",
      {.blocks = static_cast<int32_t>((c.lists + kLists - 1) / kLists), .threads = kPlanThreads},
      args);
}

void DevicePlan::fill(AttendArgs& args, size_t chunk) const {
  const Plan::Chunk& c = plan_.chunks[chunk];
  args.num_jobs = static_cast<int32_t>(c.jobs);
  args.jobs = jobs() + c.first_job;
  args.tiles = tiles();
  args.counter = bundle_.at<int32_t>(counters_) + chunk;
  args.threshold = bundle_.at<float>(thresholds_);
  args.kappa = bundle_.at<float>(kappas_);
  args.kept = kept_->as<uint8_t>();
  args.slot_lse = slot_lse_->as<float>();
}

void DevicePlan::fold(size_t chunk, const Outputs& to) const {
  const Plan::Chunk& c = plan_.chunks[chunk];
  FoldArgs args{};
  args.jobs = jobs();
  args.tiles = tiles();
  args.places = bundle_.at<int32_t>(places_);
  args.first_half = bundle_.at<int32_t>(first_half_);
  args.head_ids = bundle_.at<int32_t>(heads_);
  args.q_blocks = {bundle_.at<int32_t>(q_offsets_), p_.block_q, p_.num_q_blocks,
                   static_cast<int32_t>(p_.q_len)};
  args.k_blocks = {bundle_.at<int32_t>(k_offsets_), p_.block_k, p_.num_k_blocks,
                   static_cast<int32_t>(p_.k_len)};
  args.first_call = c.first_call;
  args.kept = kept_->as<uint8_t>();
  args.slot_lse = slot_lse_->as<float>();
  args.lse = to.lse;
  args.skip_bits = reinterpret_cast<uint32_t*>(to.skip_bits);
  args.words = static_cast<int32_t>(2 * mask_words(p_.num_k_blocks));
  args.pairs = pairs_->as<int64_t>();
  args.mass = to.mass;
  if (p_.skip != SkipKind::none)
    device_.launch(kPlanModule, "fold_votes",
                   {.blocks = p_.num_q_blocks,
                    .blocks_y = c.calls,
                    .threads = kFoldThreads,
                    .shared_bytes = kFoldSharedBytes},
                   args);
  if (to.mass != nullptr)
    device_.launch(kPlanModule, "fold_mass",
                   {.blocks = p_.num_q_blocks,
                    .blocks_y = c.calls,
                    .threads = kFoldMassThreads,
                    .shared_bytes = kFoldMassBlocks * static_cast<int32_t>(sizeof(float))},
                   args);
}

void DevicePlan::sum_pairs(int64_t* to) const {
  device_.launch(kPlanModule, "fold_pairs", {.blocks = p_.num_heads, .threads = 32},
                 FoldPairsArgs{pairs_->as<int64_t>(), p_.num_q_blocks, to});
}

}  // namespace lacuna::cuda
