// SPDX-License-Identifier: Apache-2.0
#include "lacuna/engine/engine.h"

#include <chrono>
#include <map>
#include <numeric>
#include <tuple>

#include "lacuna/core/error.h"
#include "lacuna/engine/kernel_call.h"
#include "lacuna/engine/mask_cache.h"
#include "lacuna/engine/profile_format.h"
#include "lacuna/engine/refresh.h"
#include "lacuna/methods/selection.h"

namespace lacuna {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

}  // namespace

struct Engine::SiteState {
  const Rule* rule = nullptr;  // of the last sparse call; a dense call in between changes nothing
  VideoGrid grid;
  int64_t text_tokens = 0, num_heads = 0;
  int step = 0;
  std::unique_ptr<State> method;
  RefreshState refresh;
  MaskCache masks;  // empty where the rule selects anew in every call

  void transfer(const StateIo& io, const Policy& policy);
};

// What one call computes.
struct Engine::Choice {
  SiteState* state = nullptr;  // of the rule's method; null without one
  MaskCache* masks = nullptr;  // null = dense, without a selection
  bool provisional = false;
  bool asks = false;  // the kernel reports what the selection wants
  Compensation compensate = Compensation::none;
};

struct Engine::Impl {
  Workspace workspace;
  KernelCall call;
  AttendParams checked;  // the last call for which every rule was tried
  std::map<std::tuple<int, Branch, int>, SiteState> sites;
  MaskCache momentary;  // the selection of this call alone: a source's, or one made every step

  explicit Impl(Backend& backend) : workspace(backend), call(backend, workspace) {}
  void check_rules(const Policy& policy);
  SiteState& site_state(const SelectArgs& args, const Rule& rule);
  bool refresh(SiteState& state, MaskCache& masks, SelectArgs& args, const Rule& rule);
  Choice choose(SelectArgs& args, const Rule& rule, TraceEntry& entry);
  Choice follow(const SelectArgs& args, SiteSelection given, TraceEntry& entry);
};

Engine::Engine(Backend& backend, Policy policy)
    : backend_(backend), policy_(std::move(policy)), impl_(std::make_unique<Impl>(backend)) {}
Engine::~Engine() = default;

void Engine::reset() {
  impl_->sites.clear();
  impl_->momentary = {};
  impl_->workspace.release();
}

// Grid, text and heads are the caller's to set before a restore.
void Engine::SiteState::transfer(const StateIo& io, const Policy& policy) {
  int64_t index = rule != nullptr ? policy.index(*rule) : 0, at = step;
  io.number("rule", index, 0, static_cast<int64_t>(policy.rules().size()) - 1);
  io.number("step", at, 0, INT32_MAX);
  if (io.reading()) {
    rule = &policy.rules()[static_cast<size_t>(index)];
    LACUNA_CHECK(rule->plan.method != nullptr, "state: a site of rule {}, which is dense", index);
    step = static_cast<int>(at);
    method = rule->plan.method->make_state();
  }
  refresh.transfer(io.in("refresh"), num_heads);
  if (!selects_anew(rule->plan))
    masks.transfer(io.in("masks"), num_heads, grid.tokens(), text_tokens);
  if (method != nullptr) method->transfer(io.in("method"), num_heads, grid.tokens() + text_tokens);
}

void Engine::save(StateTensors& to) const {
  to.clear();
  const StateIo io = StateIo::writer(to);
  std::vector<int32_t> sites;
  for (auto& [key, site] : impl_->sites) {
    const auto [layer, branch, expert] = key;
    const std::string name = std::to_string(sites.size() / 3);
    sites.insert(sites.end(), {layer, static_cast<int32_t>(branch), expert});
    site.transfer(io.in(name), policy_);
  }
  io.values("sites", sites);
}

void Engine::restore(const StateTensors& from, const VideoGrid& grid, const TextTokens& text,
                     int64_t num_heads) {
  reset();  // what this engine knew is of another run, whatever `from` turns out to be
  const StateIo io = StateIo::reader(from);
  std::vector<int32_t> sites;
  io.values("sites", sites);
  LACUNA_CHECK(sites.size() % 3 == 0, "state: {} numbers of sites, expected threes", sites.size());
  std::map<std::tuple<int, Branch, int>, SiteState> restored;
  for (size_t i = 0; i + 2 < sites.size(); i += 3) {
    LACUNA_CHECK(sites[i + 1] >= 0 && sites[i + 1] <= static_cast<int32_t>(Branch::uncond),
                 "state: branch {}, expected 0 or 1", sites[i + 1]);
    SiteState site{nullptr, grid, text.of(static_cast<Branch>(sites[i + 1])), num_heads};
    site.transfer(io.in(std::to_string(i / 3)), policy_);
    restored[{sites[i], static_cast<Branch>(sites[i + 1]), sites[i + 2]}] = std::move(site);
  }
  impl_->sites = std::move(restored);
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
bool Engine::Impl::refresh(SiteState& state, MaskCache& masks, SelectArgs& args, const Rule& rule) {
  args.head_ids = state.refresh.decide(rule.plan.refresh, args.site, args.q, args.k, args.backend,
                                       workspace, args.share);
  if (args.head_ids.empty()) return false;
  const std::string_view who = rule.plan.method->name();
  Selection fresh = rule.plan.method->select(args, state.method.get());
  check_selection(fresh, who, static_cast<int64_t>(args.head_ids.size()), args.grid.tokens(),
                  args.text_tokens);
  const bool provisional = fresh.provisional;
  masks.merge(std::move(fresh), args.head_ids, state.num_heads, who);
  state.refresh.selected(provisional);
  return provisional;
}

// What the policy says.
Engine::Choice Engine::Impl::choose(SelectArgs& args, const Rule& rule, TraceEntry& entry) {
  Choice choice;
  if (rule.plan.method == nullptr) {
    entry.reason = dense_reason(rule);
    return choice;
  }
  choice.state = &site_state(args, rule);
  choice.masks = selects_anew(rule.plan) ? &momentary : &choice.state->masks;
  choice.provisional = refresh(*choice.state, *choice.masks, args, rule);
  choice.asks = !args.head_ids.empty();
  choice.compensate = rule.plan.compensate;
  if (choice.provisional) call.set_skip({});
  entry.method = rule.plan.method->name();
  entry.heads_refreshed = static_cast<int32_t>(args.head_ids.size());
  if (choice.masks->dense()) entry.reason = choice.provisional ? "look" : dense_reason(rule);
  return choice;
}

// What a source says.
Engine::Choice Engine::Impl::follow(const SelectArgs& args, SiteSelection given,
                                    TraceEntry& entry) {
  entry.method = "replay";
  const int64_t num_heads = args.q.shape[0];
  check_selection(given.selection, entry.method, num_heads, args.seq_len(), 0);
  if (given.selection.mask.empty()) entry.reason = std::move(given.reason);
  std::vector<int32_t> all(static_cast<size_t>(num_heads));
  std::iota(all.begin(), all.end(), 0);
  momentary.merge(std::move(given.selection), all, num_heads, entry.method);
  return {nullptr, &momentary, false, true, given.compensate};
}

// Throws Error when no rule asked for a dense call.
void Engine::check_asked(const Rule& rule, const Choice& choice, const TraceEntry& entry) const {
  const bool gave_none = choice.state != nullptr && choice.masks->dense() && !choice.provisional &&
                         !rule.plan.method->static_mask();
  LACUNA_CHECK(entry.rule >= 0 && !gave_none,
               "strict: step {} layer {} {} runs dense ({}: {}), which no rule asked for",
               entry.site.step, entry.site.layer, branch_name(entry.site.branch), entry.method,
               entry.reason);
}

// Shows what a call computed: `dropped` as AttendParams::skip_bits, or null.
void Engine::show(const SelectArgs& args, const Choice& choice, const TraceEntry& entry,
                  const uint64_t* dropped) const {
  SiteSelection seen{{}, choice.compensate, entry.method, entry.reason};
  Selection& s = seen.selection;
  if (choice.masks != nullptr) {
    s = choice.masks->selection();
  } else {
    s.q_layout = s.k_layout = BlockLayout::uniform(args.seq_len(), impl_->call.params().block_q);
  }
  s.provisional = false;
  if (!choice.asks) s.wants_lse = s.wants_block_mass = s.wants_skip_bits = false;
  if (dropped != nullptr) drop_blocks(s, args.q.shape[0], dropped);
  watch_selections_(args.site, args.grid, args.text_tokens, seen);
}

void Engine::attend(const Site& site, const VideoGrid& grid, int64_t text_tokens,
                    const TensorView& q, const TensorView& k, const TensorView& v,
                    const TensorView& out) {
  LACUNA_CHECK(grid.frames > 0 && grid.height > 0 && grid.width > 0 && text_tokens >= 0,
               "attend: grid {}x{}x{} with {} text tokens, expected a positive grid", grid.frames,
               grid.height, grid.width, text_tokens);
  const int64_t seq_len = grid.tokens() + text_tokens;
  const std::span<float> lse = std::exchange(lse_, {});  // of this call, also if it throws
  const Rule& rule = policy_.at(site, seq_len);
  if (watch_) watch_(site, grid, text_tokens, q, k, v);
  const auto now = [this] {
    if (timed_) backend_.finish();
    return Clock::now();
  };
  const auto start = now();  // what a watcher does, such as recording, is no selection
  KernelCall& call = impl_->call;
  call.begin(q, k, v, out, seq_len);
  impl_->check_rules(policy_);
  call.set_skip(source_ ? SkipRule{} : rule.plan.skip);
  const std::string why = call.unsupported();
  LACUNA_CHECK(why.empty(), "{}", why);

  TraceEntry entry;
  entry.site = site;
  entry.method = "dense";
  entry.num_heads = static_cast<int32_t>(q.shape[0]);
  if (!source_) entry.rule = policy_.index(rule);
  SelectArgs args{backend_,
                  impl_->workspace,
                  site,
                  grid,
                  text_tokens,
                  q,
                  k,
                  v,
                  {},
                  call.sm_scale(),
                  rule.plan.params,
                  rule.plan.fixed.get(),
                  share_};
  const Choice choice =
      source_ ? impl_->follow(args, source_(site), entry) : impl_->choose(args, rule, entry);
  if (strict_ && !source_) check_asked(rule, choice, entry);
  if (choice.masks != nullptr) {
    entry.qk_density = choice.masks->density();
    entry.mask_hash = choice.masks->hash();
    call.keep(choice.masks->selection());
    call.compensate(choice.compensate);
  }
  const bool carries = choice.state != nullptr && !choice.provisional &&
                       rule.plan.refresh.kind == RefreshKind::carry;
  const bool shows_drops = watch_selections_ && call.params().skip != SkipKind::none;
  if (shows_drops) check_votes(call.params());
  const uint64_t* drops = carries || shows_drops ? call.ask_skip_bits() : nullptr;
  Observation seen{site, args.head_ids, &args};
  if (choice.asks) call.ask(choice.masks->selection(), seen);
  if (!lse.empty()) call.write_lse(lse);

  const auto selected = now();
  call.run();
  const auto attended = now();
  if (watch_selections_) show(args, choice, entry, shows_drops ? drops : nullptr);
  const auto shown = now();
  if (choice.state != nullptr &&
      (seen.lse != nullptr || seen.block_mass != nullptr || seen.skip_bits != nullptr))
    rule.plan.method->observe(seen, choice.state->method.get());
  if (carries) choice.masks->drop(drops, grid.tokens());
  entry.select_ms = milliseconds((selected - start) + (now() - shown));
  entry.attend_ms = milliseconds(attended - selected);
  entry.pv_density = call.pv_density();
  entry.pooled_density = call.pooled_density();
  trace_.add(std::move(entry));
}

}  // namespace lacuna
