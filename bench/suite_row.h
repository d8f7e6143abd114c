// SPDX-License-Identifier: Apache-2.0
// The rows of the CPU attention suite: what is measured against what, the bars, and how a row
// reads.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lacuna/backend/cpu/isa.h"

namespace lacuna::bench {

// Rows of one group on one dtype, level and head_dim are measured together, in turn.
enum class SuiteGroup : uint8_t {
  dense,      // against the arithmetic peak
  onednn,     // against a tiled oneDNN matmul, softmax, matmul
  length,     // four times the tokens
  threads,    // two against one
  sparse,     // random 128-blocks against dense
  blocks64,   // random 64-blocks against 128-blocks
  selection,  // XAttention scores, top_p and compaction
  mass,       // block mass out of a dense pass
  skip,       // skip rules that drop nothing, and four fifths
  extreme,    // errors only
};

// How a row's time and its baseline's make the ratio; `work` = the row's share of the baseline's
// work.
enum class RatioKind : uint8_t {
  share,       // work * baseline / time, as a percentage
  speed_up,    // the same, "1.35x"
  efficiency,  // the same, "0.97"
  part,        // time / baseline, a percentage; lower is better
  extra,       // time / baseline - 1, a percentage; lower is better
};

struct SuiteRow {
  std::string name;
  SuiteGroup group = SuiteGroup::dense;
  bool bf16 = false;
  std::optional<cpu::Isa> isa;  // the level that the row names; none = the best of the machine
  int32_t head_dim = 128;
  double density = 1.0;  // wanted
  RatioKind kind = RatioKind::share;
  double must = 0, reach = 0;  // of the ratio; 0 = no bar

  // Filled by the run.
  std::string skipped;  // why it was not measured, or empty
  std::string level, kernel, pattern = "dense", baseline;
  int64_t seq_len = 0;
  int32_t num_heads = 1, block = 128, threads = 1, pairs = 0;
  std::optional<double> ms, baseline_ms, gflops, share_of_peak, efficiency, ratio, pv_density;
  std::optional<double> rel_l2, lse_error, baseline_rel_l2;
  std::optional<double> cpu_share;  // CPU time / time of the group's calls: below 1, others ran

  bool lower_is_better() const { return kind == RatioKind::part || kind == RatioKind::extra; }
};

// Every row, in the order in which they run; unmeasured. `best` = level of this machine.
std::vector<SuiteRow> suite_rows(cpu::Isa best);
// Why a machine at level `best` with `cores` cores cannot measure this row, or empty.
std::string suite_row_missing(const SuiteRow& row, cpu::Isa best, int cores);

double median(std::vector<double> values);
// ms and baseline_ms are medians; ratio is the median of the ratios of pairs (same index).
void set_times(SuiteRow& row, std::span<const double> ms, std::span<const double> baseline_ms,
               double work);
// "reach" (better than both bars), "pass" (better than must), "miss", "no bar" or "skipped".
const char* verdict(const SuiteRow& row);

nlohmann::ordered_json to_json(const SuiteRow& row);
std::string suite_table_head();
std::string to_line(const SuiteRow& row);

}  // namespace lacuna::bench
