// SPDX-License-Identifier: Apache-2.0
// Reading mask logs, which may be hostile: every part is hashed and bounded before it is used.
#include <algorithm>
#include <cstring>

#include "lacuna/core/error.h"
#include "lacuna/engine/mask_log.h"
#include "lacuna/engine/profile_format.h"

namespace lacuna {

namespace {

constexpr int kMaskLogVersion = 1;
constexpr size_t kMaxList = size_t{1} << 24;
constexpr int64_t kMaxSelectionBytes = int64_t{4} << 30;  // small parts may be named often

std::vector<int32_t> integers(const TensorView& part) {
  std::vector<int32_t> values(static_cast<size_t>(part.numel()));
  std::memcpy(values.data(), part.data, values.size() * sizeof(int32_t));
  return values;
}

TokenOrder assemble(const std::vector<const TensorView*>& parts, int64_t seq_len) {
  if (parts.empty()) return {};
  TokenOrder order{seq_len, static_cast<int64_t>(parts.size()), {}};
  for (const TensorView* part : parts) {
    const std::vector<int32_t> row = integers(*part);
    order.order.insert(order.order.end(), row.begin(), row.end());
  }
  return order;
}

int64_t bytes_of(const std::vector<const TensorView*>& parts) {
  int64_t bytes = 0;
  for (const TensorView* part : parts) bytes += storage_bytes(part->dtype, part->numel());
  return bytes;
}

}  // namespace

uint64_t part_hash(const TensorView& part) {
  uint64_t h = 0xcbf29ce484222325ull;
  const auto mix = [&h](const uint8_t* bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) h = (h ^ bytes[i]) * 0x100000001b3ull;
  };
  const auto* dtype = reinterpret_cast<const uint8_t*>(dtype_name(part.dtype).data());
  mix(dtype, static_cast<int64_t>(dtype_name(part.dtype).size()));
  mix(reinterpret_cast<const uint8_t*>(part.shape.data()),
      part.rank * static_cast<int64_t>(sizeof(int64_t)));
  mix(static_cast<const uint8_t*>(part.data), storage_bytes(part.dtype, part.numel()));
  return h;
}

MaskLog::MaskLog(const std::filesystem::path& path) : file_(path) {
  const std::string who = path.string();
  const auto text = file_.metadata().find("lacuna_masks");
  LACUNA_CHECK(text != file_.metadata().end(),
               "{}: not a mask log; make one with lacuna generate --save-masks", who);
  const Json json = parse_json(text->second, who);
  LACUNA_CHECK(json.is_object() && json.contains("version"), "{}: a mask log without version", who);
  const int64_t version = json_integer(json["version"], who + ":version", 0, INT32_MAX);
  LACUNA_CHECK(version == kMaskLogVersion, "{}: mask log version {}, expected {}", who, version,
               kMaskLogVersion);
  const JsonObject top(json, who,
                       {"version", "run", "model", "grid", "sigmas", "selections", "calls"}, ':');
  if (top.has("run")) run_ = mask_hash_text(parse_mask_hash(top.text("run", 16), top.path("run")));
  target_ = read_target(top);
  check_parts();
  const Json& selections = top.array("selections", kMaxList);
  for (size_t i = 0; i < selections.size(); ++i)
    selections_.push_back(read_selection(selections[i], fmt::format("{}:selections[{}]", who, i)));
  const Json& calls = top.array("calls", kMaxList);
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string where = fmt::format("{}:calls[{}]", who, i);
    calls_.push_back(read_call(calls[i], where));
    const Site& site = calls_.back().site;
    LACUNA_CHECK(sites_.try_emplace({site.step, site.layer, site.branch}, i).second,
                 "{}: step {} layer {} {} a second time", where, site.step, site.layer,
                 branch_name(site.branch));
  }
}

void MaskLog::check_parts() const {
  for (const auto& [name, view] : file_.tensors()) check_part(name, view);
}

void MaskLog::check_part(const std::string& name, const TensorView& view) const {
  const std::string who = fmt::format("{}: part {}", file_.path().string(), name.substr(0, 80));
  const size_t dash = name.find('-');
  const std::string kind = name.substr(0, dash);
  LACUNA_CHECK(dash != name.npos &&
                   (kind == "mask" || kind == "order" || kind == "source" || kind == "offsets"),
               "{}: expected mask-, order-, source- or offsets-HASH", who);
  const bool mask = kind == "mask";
  LACUNA_CHECK(view.dtype == (mask ? DType::i64 : DType::i32) && view.rank == (mask ? 2 : 1),
               "{}: {}, expected [blocks, words] i64 or [tokens] i32", who, view.describe());
  const uint64_t hash = parse_mask_hash(name.substr(dash + 1), who);
  LACUNA_CHECK(part_hash(view) == hash, "{}: has hash {}", who, mask_hash_text(part_hash(view)));
  if (mask) return;
  if (kind == "offsets") {
    LACUNA_CHECK(view.numel() >= 2 && view.numel() <= INT32_MAX, "{}: {} offsets", who,
                 view.numel());
    BlockLayout::explicit_offsets(seq_len(), 1, integers(view));
    return;
  }
  LACUNA_CHECK(view.numel() == seq_len(), "{}: {} tokens, expected {}", who, view.numel(),
               seq_len());
  if (kind == "order") TokenOrder{seq_len(), 1, integers(view)}.validate();
}

std::vector<const TensorView*> MaskLog::read_parts(const JsonObject& object, std::string_view key,
                                                   std::string_view kind, bool shared) const {
  std::vector<const TensorView*> parts;
  const Json& list = object.array(key, static_cast<size_t>(target_.num_heads));
  LACUNA_CHECK(static_cast<int>(list.size()) == target_.num_heads || (shared && list.size() == 1),
               "{}: {} parts, expected one for each of {} heads", object.path(key), list.size(),
               target_.num_heads);
  for (const Json& hash : list) {
    LACUNA_CHECK(hash.is_string(), "{}: expected an array of hashes", object.path(key));
    const std::string name = fmt::format("{}-{}", kind, hash.get_ref<const std::string&>());
    const auto found = file_.tensors().find(name);
    LACUNA_CHECK(found != file_.tensors().end(), "{}: part {} is not in the file", object.path(key),
                 name.substr(0, 80));
    parts.push_back(&found->second);
  }
  return parts;
}

int64_t MaskLog::Layout::num_blocks(int64_t seq_len) const {
  return block > 0 ? (seq_len + block - 1) / block : offsets.front()->numel() - 1;
}

MaskLog::Layout MaskLog::read_layout(const JsonObject& object, std::string_view key) const {
  const JsonObject json(object.at(key), object.path(key), {"block", "offsets"});
  Layout layout;
  if (!json.has("offsets")) {
    layout.block = static_cast<int32_t>(json.integer("block", 1, kMaxIndex));
    return layout;
  }
  LACUNA_CHECK(!json.has("block"), "{}: block and offsets, expected one", object.path(key));
  layout.offsets = read_parts(json, "offsets", "offsets", false);
  for (const TensorView* part : layout.offsets)
    LACUNA_CHECK(part->numel() == layout.offsets.front()->numel(),
                 "{}: {} offsets for some heads, {} for others", object.path(key), part->numel(),
                 layout.offsets.front()->numel());
  return layout;
}

MaskLog::Parts MaskLog::read_selection(const Json& json, const std::string& path) const {
  const JsonObject object(json, path,
                          {"q", "k", "mask", "q_order", "k_order", "row_source", "wants"});
  Parts parts;
  parts.q = read_layout(object, "q");
  parts.k = read_layout(object, "k");
  if (object.has("mask")) {
    parts.mask = read_parts(object, "mask", "mask", false);
    const int64_t rows = parts.q.num_blocks(seq_len());
    const int64_t words = (parts.k.num_blocks(seq_len()) + 63) / 64;
    for (const TensorView* part : parts.mask)
      LACUNA_CHECK(part->shape[0] == rows && part->shape[1] == words, "{}: {}, expected [{}, {}]",
                   object.path("mask"), part->describe(), rows, words);
  }
  if (object.has("q_order")) parts.q_order = read_parts(object, "q_order", "order", true);
  if (object.has("k_order")) parts.k_order = read_parts(object, "k_order", "order", true);
  if (object.has("row_source")) parts.sources = read_parts(object, "row_source", "source", true);
  if (object.has("wants"))
    for (const Json& want : object.array("wants", 3)) {
      const std::string name = want.is_string() ? want.get<std::string>() : "";
      LACUNA_CHECK(name == "lse" || name == "block_mass" || name == "skip_bits",
                   "{}: '{}', expected lse, block_mass or skip_bits", object.path("wants"), name);
      (name == "lse"          ? parts.wants_lse
       : name == "block_mass" ? parts.wants_block_mass
                              : parts.wants_skip_bits) = true;
    }
  return parts;
}

MaskLog::Call MaskLog::read_call(const Json& json, const std::string& path) const {
  const JsonObject o(
      json, path,
      {"step", "layer", "branch", "expert", "method", "reason", "compensate", "selection"});
  Call call;
  call.site.num_steps = target_.num_steps();
  call.site.num_layers = target_.num_layers;
  call.site.step = static_cast<int>(o.integer("step", 0, target_.num_steps() - 1));
  call.site.sigma = static_cast<float>(target_.sigmas[static_cast<size_t>(call.site.step)]);
  call.site.layer = static_cast<int>(o.integer("layer", 0, target_.num_layers - 1));
  call.site.branch = read_branch(o);
  call.site.expert = static_cast<int>(o.integer("expert", 0, 1));
  call.method = o.text("method", 64);
  call.reason = o.text("reason", 256);
  call.compensate = o.text("compensate", 64);
  call.selection =
      static_cast<size_t>(o.integer("selection", 0, static_cast<int64_t>(selections_.size()) - 1));
  return call;
}

Selection MaskLog::selection(size_t index) const {
  const Parts& parts = selections_.at(index);
  const int64_t bytes = bytes_of(parts.q.offsets) + bytes_of(parts.k.offsets) +
                        bytes_of(parts.mask) + bytes_of(parts.q_order) + bytes_of(parts.k_order) +
                        bytes_of(parts.sources);
  LACUNA_CHECK(bytes <= kMaxSelectionBytes, "{}: selection {} has {} bytes, expected at most {}",
               file_.path().string(), index, bytes, kMaxSelectionBytes);
  const auto layout = [&](const Layout& from) {
    if (from.block > 0) return BlockLayout::uniform(seq_len(), from.block);
    std::vector<int32_t> offsets;
    for (const TensorView* part : from.offsets) {
      const std::vector<int32_t> row = integers(*part);
      offsets.insert(offsets.end(), row.begin(), row.end());
    }
    return BlockLayout::explicit_offsets(seq_len(), target_.num_heads, std::move(offsets));
  };
  Selection s;
  s.q_layout = layout(parts.q);
  s.k_layout = layout(parts.k);
  s.q_order = assemble(parts.q_order, seq_len());
  s.k_order = assemble(parts.k_order, seq_len());
  s.row_source = assemble(parts.sources, seq_len());
  s.wants_lse = parts.wants_lse;
  s.wants_block_mass = parts.wants_block_mass;
  s.wants_skip_bits = parts.wants_skip_bits;
  if (parts.mask.empty()) return s;
  s.mask = BlockMask(target_.num_heads, s.q_layout.num_blocks, s.k_layout.num_blocks);
  for (int64_t h = 0; h < target_.num_heads; ++h) {
    const TensorView& part = *parts.mask[static_cast<size_t>(h)];
    if (part.numel() > 0)
      std::memcpy(s.mask.row(h, 0).data(), part.data,
                  static_cast<size_t>(storage_bytes(part.dtype, part.numel())));
  }
  return s;
}

}  // namespace lacuna
