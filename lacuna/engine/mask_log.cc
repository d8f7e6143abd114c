// SPDX-License-Identifier: Apache-2.0
// Writing mask logs, and running them. Reading is in mask_log_load.cc.
#include "lacuna/engine/mask_log.h"

#include <cstring>

#include "lacuna/core/error.h"
#include "lacuna/engine/profile_format.h"

namespace lacuna {

namespace {

std::string site_text(const Site& site) {
  return fmt::format("step {} layer {} {}", site.step, site.layer, branch_name(site.branch));
}

}  // namespace

MaskRecorder::MaskRecorder(ProfileTarget target, int64_t max_bytes, std::string run)
    : target_(std::move(target)), bytes_left_(max_bytes), run_(std::move(run)) {}

Json MaskRecorder::keep(std::string_view kind, DType dtype, std::initializer_list<int64_t> shape,
                        const void* data) {
  const TensorView view = make_view(const_cast<void*>(data), dtype, shape);
  std::string hash = mask_hash_text(part_hash(view));
  const auto [part, fresh] = parts_.try_emplace(fmt::format("{}-{}", kind, hash));
  if (fresh) {
    const int64_t bytes = storage_bytes(dtype, view.numel());
    bytes_left_ -= bytes;
    LACUNA_CHECK(bytes_left_ >= 0, "masks: those of this run need more memory than there is");
    part->second = Tensor(dtype, shape);
    std::memcpy(part->second.view().data, data, static_cast<size_t>(bytes));
  }
  return hash;
}

Json MaskRecorder::keep_layout(const BlockLayout& layout) {
  if (layout.offsets.empty()) return {{"block", layout.block}};
  Json heads = Json::array();
  const int64_t per_head = layout.num_blocks + 1;
  for (size_t at = 0; at < layout.offsets.size(); at += static_cast<size_t>(per_head))
    heads.push_back(keep("offsets", DType::i32, {per_head}, layout.offsets.data() + at));
  return {{"offsets", heads}};
}

Json MaskRecorder::keep_order(std::string_view kind, const TokenOrder& order) {
  Json heads = Json::array();
  for (int64_t h = 0; h < order.num_heads; ++h)
    heads.push_back(keep(kind, DType::i32, {order.seq_len}, order.head(h)));
  return heads;
}

Json MaskRecorder::keep_selection(const Selection& s) {
  Json json;
  json["q"] = keep_layout(s.q_layout);
  json["k"] = keep_layout(s.k_layout);
  if (!s.mask.empty()) {
    Json heads = Json::array();
    for (int64_t h = 0; h < s.mask.num_heads(); ++h)
      heads.push_back(keep("mask", DType::i64, {s.mask.num_q_blocks(), s.mask.words_per_row()},
                           s.mask.row(h, 0).data()));
    json["mask"] = heads;
  }
  if (!s.q_order.empty()) json["q_order"] = keep_order("order", s.q_order);
  if (!s.k_order.empty()) json["k_order"] = keep_order("order", s.k_order);
  if (!s.row_source.empty()) json["row_source"] = keep_order("source", s.row_source);
  Json wants = Json::array();
  if (s.wants_lse) wants.push_back("lse");
  if (s.wants_block_mass) wants.push_back("block_mass");
  if (s.wants_skip_bits) wants.push_back("skip_bits");
  if (!wants.empty()) json["wants"] = wants;
  return json;
}

void MaskRecorder::add(const Site& site, const VideoGrid& grid, int64_t text_tokens,
                       const SiteSelection& seen) {
  LACUNA_CHECK(grid == target_.grid && text_tokens == target_.text_tokens &&
                   site.step < target_.num_steps() && site.layer < target_.num_layers,
               "masks: {} with {} tokens, expected a call of {} steps, {} layers, {} tokens",
               site_text(site), grid.tokens() + text_tokens, target_.num_steps(),
               target_.num_layers, target_.grid.tokens() + target_.text_tokens);
  LACUNA_CHECK(sites_.try_emplace({site.step, site.layer, site.branch}, site.expert).second,
               "masks: {} ran twice", site_text(site));
  Json selection = keep_selection(seen.selection);
  const auto [known, fresh] =
      selection_index_.try_emplace(selection.dump(), selection_index_.size());
  if (fresh) selections_.push_back(std::move(selection));
  calls_.push_back({{"step", site.step},
                    {"layer", site.layer},
                    {"branch", branch_name(site.branch)},
                    {"expert", site.expert},
                    {"method", seen.method},
                    {"reason", seen.reason},
                    {"compensate", compensation_info(seen.compensate).name},
                    {"selection", known->second}});
}

void MaskRecorder::save(const std::filesystem::path& path) const {
  LACUNA_CHECK(!calls_.empty(), "masks: no attention call ran");
  Json json = {{"version", 1}};
  if (!run_.empty()) json["run"] = run_;
  add_target(target_, json);
  json["selections"] = selections_;
  json["calls"] = calls_;
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [name, tensor] : parts_) tensors.emplace_back(name, tensor);
  write_safetensors(path, tensors, {{"lacuna_masks", dump_json(json)}});
}

const MaskLog::Call& MaskLog::find(const Site& site) const {
  const auto found = sites_.find({site.step, site.layer, site.branch});
  LACUNA_CHECK(found != sites_.end() && calls_[found->second].site.expert == site.expert,
               "masks: {} has no call at {} of expert {}", file_.path().string(), site_text(site),
               site.expert);
  return calls_[found->second];
}

SiteSelection MaskLog::at(const Site& site) const {
  const Call& call = find(site);
  return {selection(call.selection), find_compensation(call.compensate).kind, call.method,
          call.reason};
}

void MaskLog::check(const ProfileTarget& run, std::span<const Site> sites) const {
  check_target(target_, run, "masks");
  for (const Site& site : sites) find_compensation(find(site).compensate);
}

}  // namespace lacuna
