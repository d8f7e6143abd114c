// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/engine.h"

#include <chrono>
#include <map>
#include <tuple>

#include "lacuna/core/error.h"
#include "lacuna/engine/kernel_call.h"
#include "lacuna/engine/mask_cache.h"
#include "lacuna/engine/refresh.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

// Why a call that ran dense did so.
std::string dense_reason(const Rule& rule) {
  if (!rule.reason.empty()) return rule.reason;
  return rule.plan.method == nullptr ? "plan" : "method";
}

}  // namespace

struct Engine::SiteState {
  const Rule* rule = nullptr;  // of the last sparse call; a dense call in between changes nothing
  VideoGrid grid;
  int64_t text_tokens = 0, num_heads = 0;
  int step = 0;
  std::unique_ptr<State> method;
  RefreshState refresh;
  MaskCache masks;
};

struct Engine::Impl {
  Workspace workspace;
  KernelCall call;
  AttendParams checked;  // the last call for which every rule was tried
  std::map<std::tuple<int, Branch, int>, SiteState> sites;

  explicit Impl(Backend& backend) : call(backend, workspace) {}
  void check_rules(const Policy& policy);
  SiteState& site_state(const SelectArgs& args, const Rule& rule);
  bool refresh(SiteState& state, SelectArgs& args, const Rule& rule);
};

Engine::Engine(Backend& backend, Policy policy)
    : backend_(backend), policy_(std::move(policy)), impl_(std::make_unique<Impl>(backend)) {}
Engine::~Engine() = default;

void Engine::reset() {
  impl_->sites.clear();
}

// Tries the skip rule of every rule on this dtype and shape, so that a run fails at its first call
// and not when the schedule reaches the rule.
void Engine::Impl::check_rules(const Policy& policy) {
  const AttendParams& p = call.params();
  if (checked.num_heads == p.num_heads && checked.head_dim == p.head_dim &&
      checked.dtype == p.dtype && checked.q_len == p.q_len)
    return;
  for (const Rule& rule : policy.rules()) {
    call.set_skip(rule.plan.skip);
    const std::string why = call.unsupported();
    LACUNA_CHECK(why.empty(), "{}", why);
  }
  checked = p;
}

Engine::SiteState& Engine::Impl::site_state(const SelectArgs& args, const Rule& rule) {
  SiteState& state = sites[{args.site.layer, args.site.branch, args.site.expert}];
  const int64_t num_heads = args.q.shape[0];
  const bool same = state.rule == &rule && state.grid == args.grid &&
                    state.text_tokens == args.text_tokens && state.num_heads == num_heads &&
                    state.step <= args.site.step;
  if (!same) {
    state = SiteState{&rule, args.grid, args.text_tokens, num_heads};
    state.method = rule.plan.method->make_state();
  }
  state.step = args.site.step;
  return state;
}

// Selects for the heads that need it, which are args.head_ids then. True when the method only wants
// to look.
bool Engine::Impl::refresh(SiteState& state, SelectArgs& args, const Rule& rule) {
  args.head_ids =
      state.refresh.decide(rule.plan.refresh, args.site, args.q, args.k, args.backend, workspace);
  if (args.head_ids.empty()) return false;
  const std::string_view who = rule.plan.method->name();
  Selection fresh = rule.plan.method->select(args, state.method.get());
  check_selection(fresh, who, static_cast<int64_t>(args.head_ids.size()), args.grid.tokens(),
                  args.text_tokens);
  const bool provisional = fresh.provisional;
  state.masks.merge(std::move(fresh), args.head_ids, state.num_heads, who);
  state.refresh.selected(provisional);
  return provisional;
}

void Engine::attend(const Site& site, const VideoGrid& grid, int64_t text_tokens,
                    const TensorView& q, const TensorView& k, const TensorView& v,
                    const TensorView& out) {
  const auto start = Clock::now();
  LACUNA_CHECK(grid.frames > 0 && grid.height > 0 && grid.width > 0 && text_tokens >= 0,
               "attend: grid {}x{}x{} with {} text tokens, expected a positive grid", grid.frames,
               grid.height, grid.width, text_tokens);
  const int64_t seq_len = grid.tokens() + text_tokens;
  const Rule& rule = policy_.at(site, seq_len);
  if (watch_) watch_(site, grid, text_tokens, q, k, v);
  KernelCall& call = impl_->call;
  call.begin(q, k, v, out, seq_len);
  impl_->check_rules(policy_);
  call.set_skip(rule.plan.skip);
  const std::string why = call.unsupported();
  LACUNA_CHECK(why.empty(), "{}", why);

  TraceEntry entry;
  entry.site = site;
  entry.method = "dense";
  entry.num_heads = static_cast<int32_t>(q.shape[0]);
  SelectArgs args{
      backend_,         impl_->workspace,     site, grid, text_tokens, q, k, v, {}, call.sm_scale(),
      rule.plan.params, rule.plan.fixed.get()};
  SiteState* state = nullptr;
  bool provisional = false;
  const uint64_t* carried = nullptr;
  if (rule.plan.method == nullptr) {
    call.keep_all();
  } else {
    state = &impl_->site_state(args, rule);
    provisional = impl_->refresh(*state, args, rule);
    if (provisional) call.set_skip({});
    entry.method = rule.plan.method->name();
    entry.heads_refreshed = static_cast<int32_t>(args.head_ids.size());
    entry.qk_density = state->masks.density();
    entry.mask_hash = state->masks.hash();
    call.keep(state->masks.selection());
    call.compensate(rule.plan.compensate);
    if (!provisional && rule.plan.refresh.kind == RefreshKind::carry)
      carried = call.ask_skip_bits();
  }
  Observation seen{site, args.head_ids, &args};
  if (!args.head_ids.empty()) call.ask(state->masks.selection(), seen);
  if (state == nullptr || state->masks.dense())
    entry.reason = provisional ? "look" : dense_reason(rule);

  if (!lse_.empty()) call.write_lse(std::exchange(lse_, {}));

  const auto selected = Clock::now();
  call.run();
  const auto attended = Clock::now();
  if (seen.lse != nullptr || seen.block_mass != nullptr || seen.skip_bits != nullptr)
    rule.plan.method->observe(seen, state->method.get());
  if (carried != nullptr) state->masks.drop(carried, grid.tokens());
  entry.select_ms = milliseconds((selected - start) + (Clock::now() - attended));
  entry.attend_ms = milliseconds(attended - selected);
  entry.pv_density = call.pv_density();
  entry.pooled_density = call.pooled_density();
  trace_.add(std::move(entry));
}

}  // namespace lacuna
