// SPDX-License-Identifier: Apache-2.0
#include "bench/suite_row.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace lacuna::bench {
namespace {

using cpu::Isa;

const char* dtype_of(const SuiteRow& row) {
  return row.bf16 ? "bf16" : "f32";
}

SuiteRow& add_row(std::vector<SuiteRow>& rows, const std::string& name, SuiteGroup group, bool bf16,
                  RatioKind kind, double must, double reach) {
  rows.push_back({.name = fmt::format("{} {}", name, bf16 ? "bf16" : "f32"),
                  .group = group,
                  .bf16 = bf16,
                  .kind = kind,
                  .must = must,
                  .reach = reach});
  return rows.back();
}

void add_dense_rows(std::vector<SuiteRow>& rows) {
  struct Dense {
    Isa isa;
    bool bf16;
    int32_t head_dim;
    double must, reach;
  };
  // vdpbf16ps has no bar: it is no faster than f32 where AMX is, and the best level elsewhere.
  for (const Dense& d :
       {Dense{Isa::avx2, false, 128, 0.75, 0.85}, Dense{Isa::avx2, false, 64, 0.75, 0.85},
        Dense{Isa::avx512, false, 128, 0.80, 0.85}, Dense{Isa::avx512, false, 64, 0.75, 0.80},
        Dense{Isa::avx512_bf16, true, 128, 0, 0}, Dense{Isa::amx, true, 128, 0.45, 0.60},
        Dense{Isa::amx, true, 64, 0.30, 0.45}}) {
    SuiteRow& row = add_row(rows, fmt::format("dense d{}", d.head_dim), SuiteGroup::dense, d.bf16,
                            RatioKind::share, d.must, d.reach);
    row.isa = d.isa;
    row.head_dim = d.head_dim;
  }
}

void add_sparse_rows(std::vector<SuiteRow>& rows) {
  struct Sparse {
    double density, f32_must, bf16_must, bf16_reach;
  };
  for (bool bf16 : {false, true})
    for (const Sparse& s : {Sparse{0.5, 0.97, 0.92, 0.97}, Sparse{0.25, 0.95, 0.85, 0.93},
                            Sparse{0.1, 0.93, 0.75, 0.90}, Sparse{0.05, 0.87, 0.65, 0.82}})
      add_row(rows, fmt::format("sparse {}", s.density), SuiteGroup::sparse, bf16,
              RatioKind::efficiency, bf16 ? s.bf16_must : s.f32_must, bf16 ? s.bf16_reach : 0.98)
          .density = s.density;
}

std::string text_of(const SuiteRow& row, double x) {
  switch (row.kind) {
    case RatioKind::speed_up:
      return fmt::format("{:.2f}x", x);
    case RatioKind::efficiency:
      return fmt::format("{:.3f}", x);
    case RatioKind::share:
    case RatioKind::part:
    case RatioKind::extra:
      break;
  }
  return fmt::format("{:.1f}%", 100 * x);
}

std::string bar_text(const SuiteRow& row, double bar) {
  return bar == 0 ? "-" : fmt::format("{}{}", row.lower_is_better() ? "<=" : "", text_of(row, bar));
}

// Six digits are more than any clock gives.
nlohmann::ordered_json number(const std::optional<double>& x) {
  if (!x) return nullptr;
  return std::strtod(fmt::format("{:.6g}", *x).c_str(), nullptr);
}

}  // namespace

std::vector<SuiteRow> suite_rows(Isa best) {
  std::vector<SuiteRow> rows;
  add_dense_rows(rows);
  const auto add = [&](const std::string& name, auto... rest) -> SuiteRow& {
    return add_row(rows, name, rest...);
  };
  add("vs oneDNN", SuiteGroup::onednn, false, RatioKind::speed_up, 1.35, 1.45);
  // The bar is one for AMX: vdpbf16ps leaves oneDNN's softmax a smaller share of the time.
  const bool amx = best == Isa::amx;
  add("vs oneDNN", SuiteGroup::onednn, true, RatioKind::speed_up, amx ? 3.4 : 0, amx ? 4.5 : 0);
  add_sparse_rows(rows);
  SuiteRow& small = add("64-blocks", SuiteGroup::blocks64, true, RatioKind::efficiency, 0.90, 0.97);
  small.isa = Isa::amx;
  small.density = 0.25;
  add("xattention select", SuiteGroup::selection, true, RatioKind::part, 0.05, 0.03);
  for (bool bf16 : {false, true}) {
    add("4x tokens", SuiteGroup::length, bf16, RatioKind::efficiency, 0.95, 1.0);
    add("2 threads", SuiteGroup::threads, bf16, RatioKind::speed_up, 1.9, 1.97);
    add("block mass", SuiteGroup::mass, bf16, RatioKind::extra, 0.35, 0.20);
    for (const char* rule : {"running_max", "running_lse", "recall"}) {
      add(fmt::format("{} at 0 %", rule), SuiteGroup::skip, bf16, RatioKind::extra, 0.04, 0.02);
      add(fmt::format("{} at 80 %", rule), SuiteGroup::skip, bf16, RatioKind::speed_up, 1.45, 1.6);
    }
  }
  for (Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx})
    add("extreme logits", SuiteGroup::extreme, isa >= Isa::avx512_bf16, RatioKind::share, 0, 0)
        .isa = isa;
  return rows;
}

std::string suite_row_missing(const SuiteRow& row, Isa best, int cores) {
  if (row.isa && *row.isa > best)
    return fmt::format("needs {}, this machine runs at {}", isa_name(*row.isa), isa_name(best));
  const bool native_bf16 = best >= Isa::avx512_bf16;
  if (row.bf16 && !native_bf16) {
    if (row.group == SuiteGroup::onednn)
      return fmt::format("oneDNN has no bf16 matmul at {}", isa_name(best));
    // In these two the input's type matters beyond the kernel: packing, and the product of scores.
    if (row.group != SuiteGroup::sparse && row.group != SuiteGroup::selection)
      return fmt::format("bf16 is widened to f32 at {}: the kernel of the f32 row", isa_name(best));
  }
  if (row.group == SuiteGroup::threads && cores < 2) return "needs two cores, this machine has one";
  return {};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

void set_times(SuiteRow& row, std::span<const double> ms, std::span<const double> baseline_ms,
               double work) {
  std::vector<double> ratios;
  for (size_t i = 0; i < ms.size(); ++i) {
    const double cost = ms[i] / baseline_ms[i];
    ratios.push_back(row.kind == RatioKind::part    ? cost
                     : row.kind == RatioKind::extra ? cost - 1
                                                    : work / cost);
  }
  row.pairs = static_cast<int32_t>(ms.size());
  row.ms = median({ms.begin(), ms.end()});
  row.baseline_ms = median({baseline_ms.begin(), baseline_ms.end()});
  row.ratio = median(std::move(ratios));
}

const char* verdict(const SuiteRow& row) {
  if (!row.skipped.empty()) return "skipped";
  if (row.must == 0 || !row.ratio) return "no bar";
  const auto meets = [&](double bar) {
    return row.lower_is_better() ? *row.ratio <= bar : *row.ratio >= bar;
  };
  return meets(row.reach) ? "reach" : meets(row.must) ? "pass" : "miss";
}

nlohmann::ordered_json to_json(const SuiteRow& row) {
  const auto bar = [](double x) { return x == 0 ? std::nullopt : std::optional<double>(x); };
  nlohmann::ordered_json j;
  j["name"] = row.name;
  j["isa"] = row.level;
  j["kernel"] = row.kernel;
  j["dtype"] = dtype_of(row);
  j["seq_len"] = row.seq_len;
  j["num_heads"] = row.num_heads;
  j["head_dim"] = row.head_dim;
  j["threads"] = row.threads;
  j["block"] = row.block;
  j["pattern"] = row.pattern;
  j["density"] = number(row.density);
  j["pv_density"] = number(row.pv_density);
  j["ms"] = number(row.ms);
  j["gflops"] = number(row.gflops);
  j["share_of_peak"] = number(row.share_of_peak);
  j["efficiency"] = number(row.efficiency);
  j["baseline"] = row.baseline;
  j["baseline_ms"] = number(row.baseline_ms);
  j["ratio"] = number(row.ratio);
  j["pairs"] = row.pairs;
  j["better"] = row.lower_is_better() ? "lower" : "higher";
  j["must"] = number(bar(row.must));
  j["reach"] = number(bar(row.reach));
  j["verdict"] = verdict(row);
  j["rel_l2"] = number(row.rel_l2);
  j["lse_error"] = number(row.lse_error);
  j["cpu_share"] = number(row.cpu_share);
  j["baseline_rel_l2"] = number(row.baseline_rel_l2);
  if (!row.skipped.empty()) j["skipped"] = row.skipped;
  return j;
}

std::string suite_table_head() {
  return fmt::format("{:<24} {:<11} {:>4} {:>10} {:>8} {:>8} {:>8} {:<7} {:>8} {:>8}  {}", "name",
                     "isa", "d", "ms", "ratio", "must", "reach", "verdict", "rel L2", "lse",
                     "against");
}

std::string to_line(const SuiteRow& row) {
  const auto error = [](const std::optional<double>& x) {
    return x ? fmt::format("{:.1e}", *x) : std::string("-");
  };
  const std::string start = fmt::format("{:<24} {:<11} {:>4}", row.name, row.level, row.head_dim);
  if (!row.skipped.empty()) return fmt::format("{} skipped: {}", start, row.skipped);
  return fmt::format("{} {:>10.2f} {:>8} {:>8} {:>8} {:<7} {:>8} {:>8}  {}", start,
                     row.ms.value_or(0), row.ratio ? text_of(row, *row.ratio) : "-",
                     bar_text(row, row.must), bar_text(row, row.reach), verdict(row),
                     error(row.rel_l2), error(row.lse_error), row.baseline);
}

}  // namespace lacuna::bench
