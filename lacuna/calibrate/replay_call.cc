// SPDX-License-Identifier: Apache-2.0
#include "lacuna/calibrate/replay_call.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lacuna/engine/engine.h"

namespace lacuna {

namespace {

constexpr int kSettled = 2;  // calls until a method with a memory does what it does later

// The mask is made from this call's q and k alone, every time or once.
bool forgets(const Plan& plan) {
  if (plan.method == nullptr) return true;
  const bool by_itself =
      plan.refresh.kind == RefreshKind::every_step || plan.refresh.kind == RefreshKind::never;
  return by_itself && plan.method->make_state() == nullptr;
}

struct Times {
  std::vector<double> select, attend;
};

// The call with its tensors where the backend computes, so that no clock sees them travel; on the
// host those of the recording.
class PlacedCall {
 public:
  PlacedCall(Backend& backend, const RecordedCall& recorded) : call(recorded) {
    for (TensorView* x : {&call.q, &call.k, &call.v}) {
      if (x->device == backend.device()) continue;
      const Tensor& placed =
          tensors_.emplace_back(x->dtype, std::span(x->shape.data(), 3), backend);
      backend.copy(*x, placed);
      *x = placed;
    }
    out = Tensor(call.q.dtype, std::span(call.q.shape.data(), 3), backend);
  }

  RecordedCall call;
  Tensor out;

 private:
  std::vector<Tensor> tensors_;
};

// `steps` calls by one engine; the times of all but the first `warm`.
void run_engine(Backend& backend, const PlacedCall& placed, const Plan& plan, int warm, int steps,
                const std::function<void()>& between, CallOutcome& outcome, Times& times) {
  const RecordedCall& call = placed.call;
  Policy policy;
  Rule rule;
  rule.plan = plan;
  policy.add(std::move(rule));
  Engine engine(backend, std::move(policy));
  engine.set_timed(true);
  Site site = call.site;
  site.num_steps += steps;
  for (int i = 0; i < steps; ++i, ++site.step) {
    if (between) between();
    if (i + 1 == steps) engine.write_lse(outcome.lse);
    engine.attend(site, call.grid, call.text_tokens, call.q, call.k, call.v, placed.out);
  }
  const auto& entries = engine.trace().entries();
  double last_select = 0.0;
  bool selected = false;
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool timed = static_cast<int>(i) >= warm;
    if (timed) times.attend.push_back(entries[i].attend_ms);
    if (entries[i].heads_refreshed == 0) continue;
    last_select = entries[i].select_ms;
    if (timed) times.select.push_back(last_select);
    selected = selected || timed;
  }
  if (!selected) times.select.push_back(last_select);
  outcome.qk_density = entries.back().qk_density;
  outcome.pv_density = entries.back().pv_density;
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

CallOutcome replay_call(Backend& backend, const RecordedCall& call, const Plan& plan, int repeats,
                        const std::function<void()>& between) {
  const int64_t heads = call.q.shape[0], tokens = call.q.shape[1];
  PlacedCall placed(backend, call);
  CallOutcome outcome;
  outcome.lse.resize(static_cast<size_t>(heads * tokens));
  Times times;
  const int wanted = std::max(repeats, 1);
  if (forgets(plan)) {
    const int warm = repeats > 0 ? 1 : 0;
    run_engine(backend, placed, plan, warm, warm + wanted, between, outcome, times);
  } else {
    for (int i = 0; i < wanted; ++i)
      run_engine(backend, placed, plan, kSettled, kSettled + 1, between, outcome, times);
  }
  if (backend.device() == Device::cpu) {
    outcome.out = std::move(placed.out);
  } else {
    outcome.out = Tensor(call.q.dtype, {heads, tokens, call.q.shape[2]});
    backend.copy(placed.out, outcome.out);
  }
  outcome.select_ms = median(std::move(times.select));
  outcome.attend_ms = median(std::move(times.attend));
  return outcome;
}

std::optional<double> selected_density(Backend& backend, const RecordedCall& call,
                                       const Plan& plan) {
  const RefreshKind refresh = plan.refresh.kind;
  if (plan.method == nullptr || plan.skip.kind != SkipKind::none ||
      (refresh != RefreshKind::every_step && refresh != RefreshKind::never))
    return {};
  const std::unique_ptr<State> state = plan.method->make_state();
  const int selections = state == nullptr || refresh == RefreshKind::never ? 1 : kSettled + 1;
  std::vector<int32_t> heads(static_cast<size_t>(call.q.shape[0]));
  std::iota(heads.begin(), heads.end(), 0);
  Workspace workspace(backend);
  Site site = call.site;
  site.num_steps += selections;
  double density = 1.0;
  for (int i = 0; i < selections; ++i, ++site.step) {
    const SelectArgs args{backend,
                          workspace,
                          site,
                          call.grid,
                          call.text_tokens,
                          call.q,
                          call.k,
                          call.v,
                          heads,
                          1.0f / std::sqrt(static_cast<float>(call.q.shape[2])),
                          plan.params,
                          plan.fixed.get()};
    const Selection made = plan.method->select(args, state.get());
    if (made.provisional || made.wants_lse || made.wants_block_mass || made.wants_skip_bits)
      return {};
    density = made.mask.empty() ? 1.0 : made.mask.density(made.q_layout, made.k_layout);
  }
  return density;
}

}  // namespace lacuna
