// SPDX-License-Identifier: Apache-2.0
#include "lacuna/report/comparison.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <set>

#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/threads.h"
#include "lacuna/core/token_order.h"
#include "lacuna/methods/selection.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/pictures.h"

namespace lacuna {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCheckedSteps = 2;
constexpr int32_t kFloorBlock = 128;  // that of dense attention

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Dense attention that meets the keys in another order: a full mask over keys along a Hilbert
// curve. The same mathematics, sums rounded in another order.
Policy reordered_dense(const VideoGrid& grid, const TextTokens& text, int64_t num_heads) {
  Policy policy;
  for (const Branch branch : {Branch::cond, Branch::uncond}) {
    auto selection = std::make_shared<Selection>();
    selection->q_layout = selection->k_layout =
        BlockLayout::uniform(grid.tokens() + text.of(branch), kFloorBlock);
    selection->k_order = hilbert_order(grid);
    append_text(selection->k_order, text.of(branch));
    const int32_t blocks = selection->q_layout.num_blocks;
    selection->mask = BlockMask(num_heads, blocks, blocks);
    selection->mask.fill();
    Rule rule;
    rule.match.branch = branch;
    rule.plan.method = &find_method("fixed");
    rule.plan.refresh.kind = RefreshKind::never;
    rule.plan.fixed = std::move(selection);
    policy.add(std::move(rule));
  }
  return policy;
}

// Sets the number of threads back.
class WithThreads {
 public:
  explicit WithThreads(int n) : before_(num_threads()) { set_num_threads(n); }
  ~WithThreads() { set_num_threads(before_); }
  WithThreads(const WithThreads&) = delete;
  WithThreads& operator=(const WithThreads&) = delete;

 private:
  int before_;
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() && std::memcmp(a.as<float>(), b.as<float>(),
                                               static_cast<size_t>(a.numel()) * sizeof(float)) == 0;
}

void fill_costs(const Trace& trace, int num_layers, int num_steps, CompareMeasurement& m) {
  m.attend_ms = trace.attend_ms() / num_steps;
  m.select_ms = trace.select_ms() / num_steps;
  m.qk_density = trace.qk_density();
  m.pv_density = trace.pv_density();
  m.layers.resize(static_cast<size_t>(num_layers));
  m.density.assign(static_cast<size_t>(num_layers),
                   std::vector<double>(static_cast<size_t>(num_steps)));
  auto calls = m.density;
  for (const TraceEntry& entry : trace.entries()) {
    const auto layer = static_cast<size_t>(entry.site.layer);
    const auto step = static_cast<size_t>(entry.site.step);
    m.layers[layer].select_ms += entry.select_ms / num_steps;
    m.layers[layer].attend_ms += entry.attend_ms / num_steps;
    m.density[layer][step] += entry.pv_density;
    ++calls[layer][step];
  }
  for (size_t l = 0; l < m.density.size(); ++l)
    for (size_t s = 0; s < m.density[l].size(); ++s) m.density[l][s] /= std::max(1.0, calls[l][s]);
}

class Comparer {
 public:
  Comparer(Model& model, Context& ctx, const CompareTask& task, const CompareHooks& hooks)
      : model_(model),
        ctx_(ctx),
        task_(task),
        hooks_(hooks),
        latent_(model.latent_shape(task.request.width, task.request.height, task.request.frames)) {
    ctx_.compute = compute_dtype(task.request);
    pictures_ = read_pictures(model, task.request, /*resumed=*/false);
    plan();
    check_room();
  }

  Comparison run();

 private:
  // How a subject of result_ runs.
  struct Runner {
    Policy policy;
    Context* ctx;
    bool reordered = false;  // policy is that of the first prompt: others have other text tokens
  };
  struct Sampled {
    Tensor latents;
    CompareMeasurement measurement;
  };

  void plan();
  void check_room() const;
  void add(const std::string& name, CompareRole role, Policy policy, Context* ctx);
  Policy reordered_policy(const Request& request) {
    return reordered_dense(model_.grid(latent_), model_.text_tokens(request),
                           model_.architecture().sizes().num_heads);
  }
  int num_steps() const { return task_.request.sampler.num_steps; }
  Request request_of(const std::string& prompt, int seed) const;
  SamplingInputs inputs_of(const Request& request, const PromptEmbeddings& prompts);
  Tensor first_steps(const Request& request, const PromptEmbeddings& prompts, int steps);
  void warm_up(const Request& request, const PromptEmbeddings& prompts);
  Sampled sample_one(size_t subject, const Request& request, const PromptEmbeddings& prompts,
                     const std::string& what);
  void run_pair(int index, const Request& request, const PromptEmbeddings& prompts);
  void decode_pair(bool first, const Request& request, std::vector<Sampled>& sampled);
  void advance(const std::string& what);

  Model& model_;
  Context& ctx_;
  const CompareTask& task_;
  const CompareHooks& hooks_;
  Model::LatentShape latent_;
  RequestPictures pictures_;
  EncodedPictures encoded_;
  std::unique_ptr<Context> other_;  // of the other backend
  std::vector<Runner> runners_;     // beside result_.subjects
  Comparison result_;
  int64_t done_ = 0;
};

void Comparer::add(const std::string& name, CompareRole role, Policy policy, Context* ctx) {
  runners_.push_back({std::move(policy), ctx});
  result_.subjects.push_back({name, role, {}, {}});
}

void Comparer::plan() {
  LACUNA_CHECK(!task_.prompts.empty(), "compare: no prompt");
  LACUNA_CHECK(task_.seeds >= 1, "compare: {} seeds, expected 1 or more", task_.seeds);
  LACUNA_CHECK(!task_.candidates.empty(), "compare: no candidate, expected a method or preset");
  result_.tokens = model_.grid(latent_).tokens();
  add("dense", CompareRole::dense, request_policy(model_, task_.request), &ctx_);
  std::set<std::string> names{"dense"};
  for (const CompareCandidate& candidate : task_.candidates) {
    LACUNA_CHECK(names.insert(candidate.name).second,
                 "compare: two are called '{}', expected different names (dense is always there)",
                 candidate.name);
    Request request = request_of(task_.prompts.front(), 0);
    const Request& words = candidate.request;
    request.attention = words.attention;
    request.skip = words.skip;
    request.profile = words.profile;
    request.dense_steps = words.dense_steps;
    request.dense_layers = words.dense_layers;
    request.min_tokens = words.min_tokens;
    add(candidate.name, CompareRole::candidate, request_policy(model_, request), &ctx_);
  }
  if (!task_.floor) return;
  add("dense, keys in another order", CompareRole::floor,
      reordered_policy(request_of(task_.prompts.front(), 0)), &ctx_);
  runners_.back().reordered = true;
  if (task_.other_backend == nullptr) return;
  other_.reset(new Context{*task_.other_backend, ctx_.compute, ctx_.cancel});
  add("dense, " + task_.other_backend->description(), CompareRole::floor, runners_[0].policy,
      other_.get());
}

// Frames and latents of one pair are held beside what a generation needs, and the transformer stays
// while frames are decoded.
void Comparer::check_room() const {
  const Request r = request_of(task_.prompts.front(), 0);
  const bool moves_tokens = std::any_of(runners_.begin(), runners_.end(), [](const Runner& runner) {
    return runner.policy.moves_tokens();
  });
  MemoryPlan plan = plan_memory(model_, r, task_.tiling, moves_tokens);
  for (const Runner& runner : runners_)  // one at a time
    plan.attention = std::max(plan.attention, attention_bytes(model_, r, runner.policy));
  if (!pictures_.empty()) plan.encoder = encoded_pictures_bytes(model_, r);
  const auto subjects = static_cast<int64_t>(runners_.size());
  const int64_t clip = int64_t{3} * r.width * r.height * r.frames;
  const int64_t latents =
      4 * latent_.channels * latent_.frames * latent_.height * latent_.width * subjects;
  if (other_) plan.activations *= 2;
  plan.activations += latents;
  plan.decoder += plan.weights + latents + clip * (task_.keep_clips ? subjects : 1);
  check_memory(plan, ctx_.backend, 0, hooks_.note);
}

Request Comparer::request_of(const std::string& prompt, int seed) const {
  Request request = task_.request;
  request.prompt = prompt;
  request.seed += static_cast<uint64_t>(seed);
  return request;
}

SamplingInputs Comparer::inputs_of(const Request& request, const PromptEmbeddings& prompts) {
  return {[this](int expert) -> const VideoTransformer& { return model_.transformer(expert); },
          model_.num_experts(), model_.architecture().sizes(), request, prompts};
}

void Comparer::advance(const std::string& what) {
  const auto pairs = static_cast<int64_t>(task_.prompts.size()) * task_.seeds;
  const int64_t total = pairs * static_cast<int64_t>(runners_.size()) * (num_steps() + 1);
  if (hooks_.progress) hooks_.progress(++done_, total, what);
}

// Dense latents after so many steps.
Tensor Comparer::first_steps(const Request& request, const PromptEmbeddings& prompts, int steps) {
  Engine engine(ctx_.backend, runners_[0].policy);
  SamplingState state = first_state(request, latent_, encoded_);
  const SamplingInputs inputs = inputs_of(request, prompts);
  Denoiser denoiser(ctx_, inputs, state);
  const Tensor velocity(DType::f32,
                        {latent_.channels, latent_.frames, latent_.height, latent_.width});
  for (int i = 0; i < steps; ++i) {
    denoiser.conditional(engine, velocity);
    denoiser.finish(engine, velocity);
  }
  return std::move(state.latents);
}

// The first step of a process reads weights and builds kernels; whoever came first would pay.
void Comparer::warm_up(const Request& request, const PromptEmbeddings& prompts) {
  if (!task_.floor) {
    first_steps(request, prompts, 1);
    return;
  }
  ThreadCheck check{std::min(kCheckedSteps, num_steps()), num_threads(), 0, false};
  check.other_threads = check.threads == 1 ? 2 : check.threads / 2;
  Tensor other;
  {
    const WithThreads threads(check.other_threads);
    other = first_steps(request, prompts, check.steps);
  }
  check.identical = same_bytes(first_steps(request, prompts, check.steps), other);
  result_.threads = check;
}

Comparer::Sampled Comparer::sample_one(size_t subject, const Request& request,
                                       const PromptEmbeddings& prompts, const std::string& what) {
  const Runner& runner = runners_[subject];
  Engine engine(runner.ctx->backend, runner.reordered ? reordered_policy(request) : runner.policy);
  engine.set_timed(true);
  SamplingState state = first_state(request, latent_, encoded_);
  const SamplingInputs inputs = inputs_of(request, prompts);
  CompareMeasurement m;
  const auto start = Clock::now();
  sample(*runner.ctx, engine, inputs, state, [&](const StepReport& report) {
    m.step_ms += 1000.0 * report.seconds / num_steps();
    advance(what);
  });
  m.sample_seconds = seconds_since(start);
  fill_costs(engine.trace(), static_cast<int>(model_.architecture().sizes().num_layers),
             num_steps(), m);
  return {std::move(state.latents), std::move(m)};
}

void Comparer::decode_pair(bool first, const Request& request, std::vector<Sampled>& sampled) {
  const bool keep = first && task_.keep_clips;
  const auto decode = [&](size_t subject, const auto& frame) {
    decode_frames(model_, ctx_, request, sampled[subject].latents, task_.tiling, {}, frame);
    advance("decoding " + result_.subjects[subject].name);
  };
  Clip dense{request.width, request.height, request.fps, {}};
  dense.rgb.reserve(dense.frame_bytes() * static_cast<size_t>(request.frames));
  decode(0, [&](std::span<const uint8_t> rgb) { dense.append(rgb); });
  for (size_t i = 1; i < sampled.size(); ++i) {
    CompareSubject& subject = result_.subjects[i];
    if (keep) subject.clip = Clip{dense.width, dense.height, dense.fps, {}};
    FrameComparer comparer(dense.width, dense.height);
    int t = 0;
    decode(i, [&](std::span<const uint8_t> rgb) {
      comparer.add(dense.frame(t++), rgb);
      if (keep) subject.clip.append(rgb);
    });
    sampled[i].measurement.quality = comparer.finish();
  }
  if (keep) result_.subjects[0].clip = std::move(dense);
}

void Comparer::run_pair(int index, const Request& request, const PromptEmbeddings& prompts) {
  const size_t count = runners_.size();
  std::vector<Sampled> sampled(count);
  for (size_t turn = 0; turn < count; ++turn) {
    const size_t i = index % 2 == 0 ? turn : count - 1 - turn;
    const std::string what = fmt::format("seed {}: {}", request.seed, result_.subjects[i].name);
    sampled[i] = sample_one(i, request, prompts, what);
  }
  ctx_.workspace.release();
  if (other_) other_->workspace.release();
  const CompareMeasurement& dense = sampled[0].measurement;
  for (Sampled& s : sampled) {
    s.measurement.latents_error = compare(s.latents, sampled[0].latents).rel_l2;
    s.measurement.speedup = dense.sample_seconds / s.measurement.sample_seconds;
    s.measurement.selection_share = s.measurement.select_ms / dense.attend_ms;
  }
  decode_pair(index == 0, request, sampled);
  ctx_.workspace.release();
  for (size_t i = 0; i < count; ++i)
    result_.subjects[i].runs.push_back(std::move(sampled[i].measurement));
}

Comparison Comparer::run() {
  encoded_ = encode_pictures(model_, ctx_, task_.request, pictures_, {});
  std::vector<PromptEmbeddings> embedded;
  for (const std::string& prompt : task_.prompts)
    embedded.push_back(embed_prompts(model_, ctx_, request_of(prompt, 0), task_.prompt_cache));
  ctx_.workspace.release();
  warm_up(request_of(task_.prompts.front(), 0), embedded.front());
  int index = 0;
  for (size_t p = 0; p < task_.prompts.size(); ++p)
    for (int seed = 0; seed < task_.seeds; ++seed)
      run_pair(index++, request_of(task_.prompts[p], seed), embedded[p]);
  return std::move(result_);
}

}  // namespace

Comparison compare_attention(Model& model, Context& ctx, const CompareTask& task,
                             const CompareHooks& hooks) {
  return Comparer(model, ctx, task, hooks).run();
}

Spread spread_of(const std::vector<double>& values) {
  Spread spread;
  double sum = 0.0;
  spread.low = std::numeric_limits<double>::infinity();
  spread.high = -spread.low;
  for (const double v : values) {
    if (!std::isfinite(v)) {
      ++spread.infinite;
      continue;
    }
    ++spread.count;
    sum += v;
    spread.low = std::min(spread.low, v);
    spread.high = std::max(spread.high, v);
  }
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (spread.count == 0) {
    spread.mean = spread.deviation = spread.low = spread.high = kNone;
    return spread;
  }
  spread.mean = sum / spread.count;
  double squares = 0.0;
  for (const double v : values)
    if (std::isfinite(v)) squares += (v - spread.mean) * (v - spread.mean);
  spread.deviation = spread.count > 1 ? std::sqrt(squares / (spread.count - 1)) : kNone;
  return spread;
}

}  // namespace lacuna
