// SPDX-License-Identifier: Apache-2.0
#include "bench/attend_suite.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <ctime>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "bench/attend_case.h"
#include "bench/onednn_attend.h"
#include "bench/timing_backend.h"
#include "lacuna/backend/cpu/attend.h"
#include "lacuna/backend/cpu/attend_levels.h"
#include "lacuna/core/error.h"
#include "lacuna/core/threads.h"

namespace lacuna::bench {
namespace {

constexpr int kSampledRows = 32;
constexpr int kMinPairs = 3, kMaxPairs = 31;
constexpr int32_t kBlock = 128;

// Something that is run over and over.
class Timed {
 public:
  explicit Timed(std::function<void()> body) : body_(std::move(body)) {}
  Timed() = default;
  virtual ~Timed() = default;

  // One run in ms.
  virtual double once() {
    const double begin = now_ms();
    body_();
    return now_ms() - begin;
  }
  double warm_ms = 0;  // of a first run, 0 = not yet
  std::vector<double> ms;

 private:
  std::function<void()> body_;
};

// What the flops of a call would take at the arithmetic peak.
class TimedPeak final : public Timed {
 public:
  TimedPeak(PeakUnit unit, double flops) : unit_(unit), flops_(flops) { warm_ms = 10; }
  double once() override { return 1e-6 * flops_ / measure_peak(unit_); }

 private:
  PeakUnit unit_;
  double flops_;
};

// One attention call, with its errors.
class TimedAttend final : public Timed {
 public:
  TimedAttend(AttendData& data, int32_t block, cpu::Isa isa)
      : p(data.params(block)), data_(data), isa_(isa) {
    p.pv_pairs = &pairs_;
  }

  void keep(KeptBlocks kept) {
    kept_ = std::move(kept);
    p.mask = kept_.mask.words();
  }
  void rule(SkipKind kind, float param) {
    p.skip = kind;
    skip_param_ = param;
    p.skip_param = &skip_param_;
  }
  void want_mass() {
    mass_.resize(static_cast<size_t>(p.num_q_blocks) * static_cast<size_t>(p.num_k_blocks));
    p.block_mass = mass_.data();
  }
  double density() const { return p.mask != nullptr ? kept_.density : 1.0; }
  double flops() const { return attend_flops(p, density(), pv_density_); }
  PeakUnit unit() const { return attend_unit(p, isa_); }

  double once() override {
    set_num_threads(threads);
    const double begin = now_ms();
    cpu::attend(p, isa_);
    const double spent = now_ms() - begin;
    set_num_threads(1);
    return spent;
  }
  // First run, with the log-sum-exp. Fills in what the row says of its call, and the errors.
  void check(SuiteRow& row) {
    std::vector<float> lse(static_cast<size_t>(p.q_len));
    p.lse = lse.data();
    warm_ms = once();
    data_.read_back();
    const SampledError error = sampled_error(data_, p, kSampledRows);
    p.lse = nullptr;
    pv_density_ =
        static_cast<double>(pairs_) / (static_cast<double>(p.q_len) * static_cast<double>(p.k_len));
    row.rel_l2 = error.rel_l2;
    row.lse_error = error.lse;
    row.pv_density = pv_density_;
    row.density = density();
    row.kernel = cpu::attend_kernel_name(p, isa_);
    row.seq_len = p.q_len;
    row.num_heads = p.num_heads;
    row.block = p.block_q;
    row.threads = threads;
    row.pattern = p.mask != nullptr ? "random" : "dense";
  }

  AttendParams p;
  int threads = 1;

 private:
  AttendData& data_;
  cpu::Isa isa_;
  KeptBlocks kept_;
  std::vector<float> mass_;
  float skip_param_ = 0;
  int64_t pairs_ = 0;
  double pv_density_ = 0;
};

double thread_cpu_ms() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
}

int allowed_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// The level that a row names, or the one that the backend takes for such a call.
cpu::Isa level_of(const SuiteRow& row) {
  return row.isa.value_or(cpu::active_attend_levels().of(
      row.bf16 ? AttendDType::bf16 : AttendDType::f32, row.head_dim));
}

class Suite {
 public:
  Suite(const SuiteSettings& settings, const CpuPeak& peak, Backend& backend,
        const std::function<void()>& poll)
      : settings_(settings), peak_(peak), backend_(backend), poll_(poll) {}

  // Rows of one group, all of which this machine has. `seconds` to spend, roughly.
  void measure(std::span<SuiteRow> rows, double seconds);
  // How much of the time of the last group's timed calls the calling thread had a core.
  double cpu_share() const { return cpu_share_; }

 private:
  CaseShape shape_of(const SuiteRow& row) const {
    return {1, settings_.seq_len, row.head_dim, row.bf16};
  }
  void run_in_turn(const std::vector<Timed*>& calls);
  void finish(SuiteRow& row, TimedAttend& call, const Timed& baseline, double work);

  void dense(SuiteRow& row);
  void onednn(SuiteRow& row);
  void length(SuiteRow& row);
  void threads(SuiteRow& row);
  void sparse(std::span<SuiteRow> rows);
  void blocks64(SuiteRow& row);
  void selection(SuiteRow& row);
  void mass(SuiteRow& row);
  void skip(std::span<SuiteRow> rows);
  void extreme(SuiteRow& row);

  const SuiteSettings& settings_;
  const CpuPeak& peak_;
  Backend& backend_;
  const std::function<void()>& poll_;
  double seconds_ = 0, cpu_share_ = 0;
  cpu::Isa isa_ = cpu::Isa::avx2;  // of the rows at hand
};

void Suite::measure(std::span<SuiteRow> rows, double seconds) {
  seconds_ = seconds;
  SuiteRow& row = rows.front();
  isa_ = level_of(row);
  switch (row.group) {
    case SuiteGroup::dense:
      return dense(row);
    case SuiteGroup::onednn:
      return onednn(row);
    case SuiteGroup::length:
      return length(row);
    case SuiteGroup::threads:
      return threads(row);
    case SuiteGroup::sparse:
      return sparse(rows);
    case SuiteGroup::blocks64:
      return blocks64(row);
    case SuiteGroup::selection:
      return selection(row);
    case SuiteGroup::mass:
      return mass(row);
    case SuiteGroup::skip:
      return skip(rows);
    case SuiteGroup::extreme:
      return extreme(row);
  }
}

void Suite::run_in_turn(const std::vector<Timed*>& calls) {
  double round_ms = 0;
  for (Timed* call : calls) {
    poll_();
    if (call->warm_ms == 0) call->warm_ms = call->once();
    round_ms += call->warm_ms;
  }
  const int rounds = std::clamp(static_cast<int>(1e3 * seconds_ / round_ms), kMinPairs, kMaxPairs);
  const double begin = now_ms(), cpu_begin = thread_cpu_ms();
  for (int round = 0; round < rounds; ++round)
    for (size_t i = 0; i < calls.size(); ++i) {
      poll_();
      Timed* call = calls[round % 2 == 0 ? i : calls.size() - 1 - i];
      call->ms.push_back(call->once());
    }
  cpu_share_ = (thread_cpu_ms() - cpu_begin) / (now_ms() - begin);
}

void Suite::finish(SuiteRow& row, TimedAttend& call, const Timed& baseline, double work) {
  set_times(row, call.ms, baseline.ms, work);
  row.gflops = 1e-6 * call.flops() / *row.ms;
  row.share_of_peak = *row.gflops / (row.threads * peak_.of(call.unit()));
}

void Suite::dense(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend call(data, kBlock, isa_);
  call.check(row);
  TimedPeak peak(call.unit(), call.flops());
  run_in_turn({&call, &peak});
  finish(row, call, peak, 1);
  row.share_of_peak = row.ratio;
  row.baseline = fmt::format("{} peak", peak_name(call.unit()));
}

void Suite::onednn(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend call(data, kBlock, isa_);
  OneDnnAttention other(call.p);
  Timed baseline([&] { other.run(); });
  baseline.warm_ms = baseline.once();
  data.read_back();
  row.baseline_rel_l2 = sampled_error(data, call.p, kSampledRows).rel_l2;
  call.check(row);
  run_in_turn({&call, &baseline});
  finish(row, call, baseline, 1);
  row.baseline = other.description();
}

void Suite::length(SuiteRow& row) {
  CaseShape shape = shape_of(row);
  shape.seq_len = settings_.seq_len / 2;
  AttendData few(shape);
  shape.seq_len = settings_.seq_len * 2;
  AttendData many(shape);
  TimedAttend short_call(few, kBlock, isa_), call(many, kBlock, isa_);
  short_call.check(row);
  call.check(row);
  run_in_turn({&call, &short_call});
  finish(row, call, short_call, 16);
  row.baseline = fmt::format("rate at {} tokens", settings_.seq_len / 2);
}

void Suite::threads(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend one(data, kBlock, isa_), two(data, kBlock, isa_);
  two.threads = 2;
  two.check(row);
  run_in_turn({&two, &one});
  finish(row, two, one, 1);
  row.baseline = "1 thread";
}

void Suite::sparse(std::span<SuiteRow> rows) {
  AttendData data(shape_of(rows[0]));
  TimedAttend dense(data, kBlock, isa_);
  std::vector<std::unique_ptr<TimedAttend>> calls;
  std::vector<Timed*> turn = {&dense};
  for (SuiteRow& row : rows) {
    calls.push_back(std::make_unique<TimedAttend>(data, kBlock, isa_));
    calls.back()->keep(make_kept("random", dense.p.num_k_blocks, 1, row.density));
    calls.back()->check(row);
    turn.push_back(calls.back().get());
  }
  run_in_turn(turn);
  for (size_t i = 0; i < rows.size(); ++i) {
    finish(rows[i], *calls[i], dense, rows[i].density);
    rows[i].efficiency = rows[i].ratio;
    rows[i].baseline = "dense x density";
  }
}

void Suite::blocks64(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend wide(data, kBlock, isa_), narrow(data, 64, isa_);
  wide.keep(make_kept("random", wide.p.num_k_blocks, 1, row.density));
  narrow.keep(make_kept("random", narrow.p.num_k_blocks, 1, row.density));
  narrow.check(row);
  run_in_turn({&narrow, &wide});
  finish(row, narrow, wide, narrow.density() / wide.density());
  row.efficiency = row.ratio;
  row.baseline = "rate with 128-blocks";
}

void Suite::selection(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend dense(data, kBlock, isa_);
  dense.check(row);
  const BlockLayout layout = BlockLayout::uniform(settings_.seq_len, kBlock);
  const int32_t heads[] = {0};
  const float top_p[] = {0.9f};
  const TensorView q =
      make_view(data.q16.data(), DType::bf16, {1, settings_.seq_len, row.head_dim});
  const TensorView k =
      make_view(data.k16.data(), DType::bf16, {1, settings_.seq_len, row.head_dim});
  const Tensor scores(DType::f32, {1, layout.num_blocks, layout.num_blocks});
  Timed select([&] {
    backend_.antidiagonal_scores(q, k, heads, layout, layout, dense.p.sm_scale, 16, false, scores);
    BlockMask mask(1, layout.num_blocks, layout.num_blocks);
    backend_.select_top_p(scores, top_p, mask);
  });
  run_in_turn({&select, &dense});
  set_times(row, select.ms, dense.ms, 1);
  // What was timed is no attention: its rate and errors say nothing.
  row.kernel = "antidiagonal_scores, stride 16";
  row.rel_l2 = row.lse_error = row.pv_density = std::nullopt;
  row.baseline = "dense attention";
}

void Suite::mass(SuiteRow& row) {
  AttendData data(shape_of(row));
  TimedAttend plain(data, kBlock, isa_), call(data, kBlock, isa_);
  call.want_mass();
  call.check(row);
  run_in_turn({&call, &plain});
  finish(row, call, plain, 1);
  row.baseline = "dense without it";
}

void Suite::skip(std::span<SuiteRow> rows) {
  struct Rule {
    std::string_view name;
    SkipKind kind;
    float none, most;  // parameters that drop nothing, and every piece of the lower level
  };
  constexpr Rule kRules[] = {{"running_max", SkipKind::running_max, 1e-30f, 3e-4f},
                             {"running_lse", SkipKind::running_lse, -80.0f, -13.0f},
                             {"recall", SkipKind::recall, 1.0f, 0.99f}};
  CaseShape shape = shape_of(rows[0]);
  shape.logits = Logits::two_level;
  AttendData data(shape);
  TimedAttend plain(data, kBlock, isa_);
  std::vector<std::unique_ptr<TimedAttend>> calls;
  std::vector<Timed*> turn = {&plain};
  for (SuiteRow& row : rows) {
    const auto* rule = std::find_if(std::begin(kRules), std::end(kRules),
                                    [&](const Rule& r) { return row.name.starts_with(r.name); });
    LACUNA_CHECK(rule != std::end(kRules), "suite: row {}, expected the name of a rule", row.name);
    calls.push_back(std::make_unique<TimedAttend>(data, kBlock, isa_));
    calls.back()->rule(rule->kind, row.kind == RatioKind::extra ? rule->none : rule->most);
    calls.back()->check(row);
    turn.push_back(calls.back().get());
  }
  run_in_turn(turn);
  for (size_t i = 0; i < rows.size(); ++i) {
    finish(rows[i], *calls[i], plain, 1);
    rows[i].baseline = "no rule";
  }
}

void Suite::extreme(SuiteRow& row) {
  CaseShape shape = shape_of(row);
  shape.logits = Logits::extreme;
  AttendData data(shape);
  TimedAttend call(data, kBlock, isa_);
  call.check(row);
  row.ms = call.warm_ms;
  row.gflops = 1e-6 * call.flops() / *row.ms;
  row.share_of_peak = *row.gflops / peak_.of(call.unit());
  row.baseline = "one call, for its errors";
}

bool together(const SuiteRow& a, const SuiteRow& b) {
  return a.group == b.group && a.bf16 == b.bf16 && a.isa == b.isa && a.head_dim == b.head_dim;
}

// Why a row cannot be measured, or empty. oneDNN chooses its own level.
std::string missing(const SuiteRow& row, cpu::Isa best, int cores) {
  const bool any = row.isa || row.group == SuiteGroup::onednn;
  return suite_row_missing(row, any ? best : level_of(row), cores);
}

}  // namespace

void run_attend_suite(const SuiteSettings& settings, const CpuPeak& peak, Backend& backend,
                      const SuiteEvents& events) {
  LACUNA_CHECK(settings.seq_len >= 256 && settings.seq_len % 256 == 0,
               "bench attend: {} tokens, expected a multiple of 256", settings.seq_len);
  const cpu::Isa best = cpu::active_isa();
  const int cores = allowed_cores();
  std::vector<SuiteRow> rows = suite_rows(best);
  std::vector<std::span<SuiteRow>> groups;
  for (size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    while (end < rows.size() && together(rows[begin], rows[end])) ++end;
    groups.emplace_back(&rows[begin], end - begin);
  }
  const auto total =
      static_cast<int>(std::count_if(groups.begin(), groups.end(), [&](const auto& group) {
        return missing(group[0], best, cores).empty();
      }));
  int done = 0;
  const double end_ms = now_ms() + 1e3 * settings.seconds;
  set_num_threads(1);
  Suite suite(settings, peak, backend, events.poll);
  for (const std::span<SuiteRow>& group : groups) {
    const std::string why = missing(group[0], best, cores);
    for (SuiteRow& row : group) {
      row.level = isa_name(level_of(row));
      row.seq_len = settings.seq_len;
      row.skipped = why;
    }
    if (why.empty()) {
      events.next(done, total, group[0]);
      const double left = std::max(0.0, 1e-3 * (end_ms - now_ms()));
      suite.measure(group, left / (total - done));
      ++done;
      if (group[0].pairs > 0)
        for (SuiteRow& row : group) row.cpu_share = suite.cpu_share();
    }
    for (const SuiteRow& row : group) events.row(row);
  }
}

}  // namespace lacuna::bench
