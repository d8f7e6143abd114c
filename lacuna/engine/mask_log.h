// SPDX-License-Identifier: Apache-2.0
// The selections of a whole run on disk: to look at, and to run again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "lacuna/core/safetensors.h"
#include "lacuna/core/site.h"
#include "lacuna/engine/json_object.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/site_selection.h"

namespace lacuna {

// Keeps selections in memory until save(), for Engine::watch_selections. A selection is cut into
// parts (masks, token orders, row sources and block offsets of single heads), and equal parts are
// kept once: a reused mask costs a reference.
class MaskRecorder {
 public:
  // `run`: see run_name. add() throws Error when parts would pass max_bytes.
  MaskRecorder(ProfileTarget target, int64_t max_bytes, std::string run = {});
  // Throws Error when the call is not of the target or its site was added before.
  void add(const Site& site, const VideoGrid& grid, int64_t text_tokens,
           const SiteSelection& selection);
  // Writes the file, complete or not at all. Throws Error when nothing was added.
  void save(const std::filesystem::path& path) const;

 private:
  Json keep(std::string_view kind, DType dtype, std::initializer_list<int64_t> shape,
            const void* data);
  Json keep_layout(const BlockLayout& layout);
  Json keep_order(std::string_view kind, const TokenOrder& order);
  Json keep_selection(const Selection& selection);

  ProfileTarget target_;
  int64_t bytes_left_;
  std::string run_;
  std::map<std::string, Tensor> parts_;            // by tensor name
  std::map<std::string, size_t> selection_index_;  // by the selection's JSON
  Json selections_ = Json::array(), calls_ = Json::array();
  std::map<std::tuple<int, int, Branch>, int> sites_;
};

// A file of MaskRecorder::save, which may be hostile.
class MaskLog {
 public:
  struct Call {
    Site site;
    std::string method, reason;  // as the trace of the recorded run
    std::string compensate;      // name of the Compensation
    size_t selection = 0;
  };

  // Throws Error naming the file on anything that is not as docs/formats.md says: a missing part, a
  // part with another hash, type or shape, an order that is no permutation, a site twice.
  explicit MaskLog(const std::filesystem::path& path);

  const ProfileTarget& target() const { return target_; }
  const std::string& run() const { return run_; }            // run_name; empty in older files
  const std::vector<Call>& calls() const { return calls_; }  // in the order they ran
  size_t num_selections() const { return selections_.size(); }
  // Of all heads, not yet checked against its invariants (check_selection). Throws Error when it
  // would need more than 4 GiB.
  Selection selection(size_t index) const;
  // What a call computed, for Engine::follow_selections. Throws Error when the log has no such
  // call.
  SiteSelection at(const Site& site) const;
  // Throws Error unless the log is of the run's model, grid and schedule and has all these calls.
  void check(const ProfileTarget& run, std::span<const Site> sites) const;

 private:
  struct Layout {
    int32_t block = 0;  // 0 = offsets
    std::vector<const TensorView*> offsets;
    int64_t num_blocks(int64_t seq_len) const;
  };
  struct Parts {  // per head
    Layout q, k;
    std::vector<const TensorView*> mask;                       // empty = dense
    std::vector<const TensorView*> q_order, k_order, sources;  // empty, one for all, or per head
    bool wants_lse = false, wants_block_mass = false, wants_skip_bits = false;
  };
  const Call& find(const Site& site) const;
  void check_parts() const;
  void check_part(const std::string& name, const TensorView& view) const;
  std::vector<const TensorView*> read_parts(const JsonObject& object, std::string_view key,
                                            std::string_view kind, bool shared) const;
  Layout read_layout(const JsonObject& object, std::string_view key) const;
  Parts read_selection(const Json& json, const std::string& path) const;
  Call read_call(const Json& json, const std::string& path) const;
  int64_t seq_len() const { return target_.grid.tokens() + target_.text_tokens; }

  SafetensorsFile file_;
  ProfileTarget target_;
  std::string run_;
  std::vector<Parts> selections_;
  std::vector<Call> calls_;
  std::map<std::tuple<int, int, Branch>, size_t> sites_;  // (step, layer, branch) -> call
};

// FNV-1a over dtype, shape and bytes of a contiguous tensor: names the parts of a mask log.
uint64_t part_hash(const TensorView& part);

}  // namespace lacuna
