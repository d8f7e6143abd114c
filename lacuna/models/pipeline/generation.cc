// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/generation.h"

#include <algorithm>
#include <chrono>

#include "lacuna/core/atomic_file.h"
#include "lacuna/core/available_memory.h"
#include "lacuna/core/error.h"
#include "lacuna/core/mapped_file.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/engine/explain.h"
#include "lacuna/engine/mask_log.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/presets.h"
#include "lacuna/engine/profile.h"
#include "lacuna/models/pipeline/pictures.h"
#include "lacuna/models/token_share.h"
#include "lacuna/models/video/video_writer.h"

namespace lacuna {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string memory_size(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / 1048576.0;
  return mib < 102.4 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024.0);
}

// "weights 1.32 GiB, decoder 90.5 MiB": what the plan holds. Who only decodes holds nothing else.
std::string memory_parts(const MemoryPlan& plan) {
  std::string parts;
  for (const auto& [name, bytes] : {std::pair{"weights", plan.weights},
                                    {"activations", plan.activations},
                                    {"attention state", plan.attention},
                                    {"encoder", plan.encoder},
                                    {"decoder", plan.decoder}})
    if (bytes > 0)
      parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", name, memory_size(bytes));
  return parts;
}

// Called once the file was loaded: what is read here is no older than what was loaded.
void check_content(const Request& request) {
  if (request.policy_content.empty()) return;
  const std::string now = policy_content(request);
  LACUNA_CHECK(now == request.policy_content,
               "{}: has content {}, this run began with {}; put that file back or start again",
               request.profile.empty() ? request.replay_masks : request.profile, now,
               request.policy_content);
}

void note_profile_without_lora(const Model& model, const Request& request, const NoteHook& note) {
  if (!note || model.loras().empty() || request.profile.empty()) return;
  if (load_profile(request.profile).target.fingerprint ==
      fmt::format("{:016x}", model.fingerprint()))
    note(fmt::format("note: {} was made without the LoRA; what it loses was measured without, too",
                     request.profile));
}

// Gives the engine what it carried when the run stopped; nothing is carried past the last step.
void restore_attention(Engine& engine, Model& model, const Request& request, const WorkShare& share,
                       SamplingState& state) {
  const bool finished = state.next_step == make_sampler(request.sampler)->num_steps();
  if (state.next_step == 0 || finished || !engine.policy().carries()) return;
  LACUNA_CHECK(!state.attention.empty(),
               "resume: {} carries masks from step to step, which the latents file does not hold; "
               "start again",
               request.profile.empty() ? request.attention : request.profile);
  const ProfileTarget target = profile_target(model, request);
  state.attention = share.own(std::move(state.attention));
  engine.restore(state.attention, target.grid, model.text_tokens(request),
                 share.num_heads(target.num_heads));
}

// Values of a token in the network's input, and at most in its output.
int64_t latent_row(const TransformerSizes& sizes) {
  return (sizes.latent_channels + sizes.condition_channels) * sizes.patch.volume();
}

// What several processes cannot do together.
void check_share(const WorkShare& share, Model& model, const Context& ctx, const Request& request,
                 const GenerationHooks& hooks) {
  LACUNA_CHECK(ctx.team == share.forward_team(),
               "parallel: another team for forwards than for the run, expected the run's");
  if (share.alone()) return;
  LACUNA_CHECK(share.forward_ranks() == 1 || model.architecture().sizes().shares_tokens,
               "parallel: {} processes for one forward of {}, which only Wan's networks share; "
               "expected one process, or two with guidance",
               share.forward_ranks(), model.name());
  // Throws where it cannot be: known now, not behind the text encoder.
  TokenShare(model.grid(model.latent_shape(request.width, request.height, request.frames)),
             model.architecture().sizes().num_heads, ctx.team);
  LACUNA_CHECK(ctx.backend.device() == Device::cpu,
               "parallel: backend {} in several processes, expected cpu or ref",
               ctx.backend.name());
  LACUNA_CHECK(!hooks.inputs && !hooks.selections && request.replay_masks.empty(),
               "parallel: recording, saving or replaying attention in several processes, each of "
               "which has some heads; expected one process");
}

int64_t bytes_of(const StateTensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors)
    bytes += storage_bytes(tensor.view().dtype, tensor.numel());
  return bytes;
}

// Where attention will run from `first_step` on.
std::vector<Site> planned_sites(Model& model, const Request& request, int first_step) {
  const auto sampler = make_sampler(request.sampler);
  const int num_layers = static_cast<int>(model.architecture().sizes().num_layers);
  std::vector<Site> sites;
  for (int step = first_step; step < sampler->num_steps(); ++step) {
    const int expert = expert_at(model.num_experts(), request, *sampler, step);
    const bool guided = (expert == 1 ? request.guidance_low : request.guidance) != 1.0;
    for (const Branch branch : {Branch::cond, Branch::uncond})
      for (int layer = 0; layer < num_layers && (guided || branch == Branch::cond); ++layer)
        sites.push_back({step, sampler->num_steps(), static_cast<float>(sampler->sigma(step)),
                         layer, num_layers, branch, expert});
  }
  return sites;
}

std::vector<TraceEntry> plan_calls(Model& model, const Request& request, const Policy& policy,
                                   int first_step) {
  const ProfileTarget target = profile_target(model, request);
  return planned_calls(policy, planned_sites(model, request, first_step),
                       target.grid.tokens() + target.text_tokens, target.num_heads);
}

// Makes attention run as the request and the hooks say.
void set_up(Engine& engine, Model& model, const Request& request, const GenerationHooks& hooks,
            int first_step) {
  const TextTokens text = model.text_tokens(request);
  const auto& rules = engine.policy().rules();
  const bool profiled = std::any_of(rules.begin(), rules.end(),
                                    [](const Rule& rule) { return rule.plan.fixed != nullptr; });
  LACUNA_CHECK(text.cond == text.uncond || !request.guided() ||
                   !(hooks.selections || !request.replay_masks.empty() || profiled),
               "masks: {} and {} text tokens with and without the prompt, expected as many in "
               "both; a mask log or a profile of masks holds one number",
               text.cond, text.uncond);
  if (hooks.inputs) engine.watch_inputs(hooks.inputs);
  if (hooks.selections) engine.watch_selections(hooks.selections);
  engine.set_strict(hooks.strict);
  engine.set_timed(hooks.timed);
  if (!request.replay_masks.empty()) {
    const auto log = std::make_shared<const MaskLog>(request.replay_masks);
    log->check(profile_target(model, request), planned_sites(model, request, first_step));
    engine.follow_selections([log](const Site& site) { return log->at(site); });
  } else if (hooks.strict) {
    for (const TraceEntry& call : plan_calls(model, request, engine.policy(), first_step))
      LACUNA_CHECK(call.rule >= 0,
                   "strict: no rule matches step {} layer {}, which would run dense",
                   call.site.step, call.site.layer);
  }
}

// Whoever decides about attention decides about dense sites too.
bool says_attention(const Request& request) {
  return request.attention != "dense" || !(request.skip.empty() || request.skip == "none") ||
         !request.dense_steps.empty() || !request.dense_layers.empty() || request.min_tokens != 0;
}

// Noise with what was encoded of pictures, or what was saved, which must fit.
SamplingState starting_state(const Request& request, const Model::LatentShape& latent,
                             const EncodedPictures& encoded, std::optional<SamplingState> resume) {
  SamplingState state = resume ? std::move(*resume) : first_state(request, latent, encoded);
  const auto& shape = state.latents.view().shape;
  LACUNA_CHECK(shape[0] == latent.channels && shape[1] == latent.frames &&
                   shape[2] == latent.height && shape[3] == latent.width,
               "resume: latents {}, expected [{}, {}, {}, {}]", state.latents.view().describe(),
               latent.channels, latent.frames, latent.height, latent.width);
  return state;
}

uint64_t hash_of(const PromptEmbeddings& prompts) {
  std::string hashes;
  for (const Tensor* values : {&prompts.positive.tokens, &prompts.negative.tokens,
                               &prompts.positive.pooled, &prompts.negative.pooled}) {
    if (values->empty() && values == &prompts.positive.pooled) break;  // a family without
    const std::string_view bytes(
        static_cast<const char*>(values->view().data),
        values->empty() ? 0 : static_cast<size_t>(values->numel()) * sizeof(float));
    hashes += fmt::format("{:016x}", fnv1a64(bytes));
  }
  return fnv1a64(hashes);
}

// From here on the state runs under these prompts. Others than in the steps that are done are no
// error: another instruction set gives other last bits.
void take_prompts(const PromptEmbeddings& prompts, const Request& request, const NoteHook& note,
                  SamplingState& state) {
  if (state.next_step == make_sampler(request.sampler)->num_steps()) return;  // only decoded
  const uint64_t hash = hash_of(prompts);
  if (note && state.next_step > 0 && state.prompts != 0 && state.prompts != hash)
    note(
        "note: the prompts read differently than when the run began (another text encoder, "
        "tokenizer or machine); the video will differ from that of an uninterrupted run");
  state.prompts = hash;
}

// Samples to the end. The latents file holds the last finished step then, and where sampling ends
// in an exception.
void sample_into_file(Context& ctx, Engine& engine, const SamplingInputs& inputs,
                      const GenerationFiles& files, const GenerationHooks& hooks, bool resumed,
                      SamplingState& state) {
  const int first_step = state.next_step;
  const auto save = [&] {
    if (!inputs.share->is_root()) return;
    save_state(files.latents, inputs.request, state);
    if (hooks.saved) hooks.saved(state.next_step);
  };
  auto saved = Clock::now();
  const auto on_step = [&](const StepReport& report) {
    // Processes that are stopped together have no time left to save.
    if (!inputs.share->alone() || seconds_since(saved) >= files.save_every) {
      save();
      saved = Clock::now();
    }
    if (hooks.step) hooks.step(report);
  };
  try {
    sample(ctx, engine, inputs, state, on_step);
  } catch (const Cancelled&) {
    // Noise is made again in no time; what an older run left there is not.
    std::error_code ignored;
    if (resumed || state.next_step > 0 || !std::filesystem::exists(files.latents, ignored)) save();
    throw;
  } catch (...) {
    try {
      if (state.next_step > first_step) save();
    } catch (
        const std::exception&) {  // such as the full disk that ended the run: one error is told
    }
    throw;
  }
  save();
}

}  // namespace

DType compute_dtype(const Request& request) {
  if (request.dtype == "f32") return DType::f32;
  if (request.dtype == "bf16") return DType::bf16;
  fail("dtype: {}, expected f32 or bf16", request.dtype);
}

ProfileTarget profile_target(Model& model, const Request& request) {
  const Architecture& network = model.architecture();
  const TransformerSizes sizes = network.sizes();
  ProfileTarget target;
  target.model = model.name();
  target.fingerprint = fmt::format("{:016x}", model.fingerprint());
  if (!model.loras().empty()) {
    target.base = target.fingerprint;
    target.fingerprint = fmt::format("{:016x}", fnv1a64(target.base + " " + model.lora_content()));
  }
  target.num_layers = static_cast<int>(sizes.num_layers);
  target.num_heads = static_cast<int>(sizes.num_heads);
  target.head_dim = static_cast<int>(sizes.head_dim);
  target.text_tokens = model.text_tokens(request).cond;
  target.grid = model.grid(model.latent_shape(request.width, request.height, request.frames));
  const auto sampler = make_sampler(request.sampler);
  for (int i = 0; i < sampler->num_steps(); ++i) target.sigmas.push_back(sampler->sigma(i));
  return target;
}

Policy request_policy(Model& model, const Request& request) {
  if (!request.replay_masks.empty()) {
    LACUNA_CHECK(!says_attention(request) && request.profile.empty(),
                 "replay-masks: {} decides about attention; leave out --attention, --skip, "
                 "--profile, --dense-steps, --dense-layers and --min-tokens",
                 request.replay_masks);
    return {};
  }
  if (!request.profile.empty()) {
    LACUNA_CHECK(!says_attention(request),
                 "profile: {} decides about attention; leave out --attention, --skip, "
                 "--dense-steps, --dense-layers and --min-tokens",
                 request.profile);
    const Profile profile = load_profile(request.profile);
    check_profile(profile, profile_target(model, request));
    return profile.policy();
  }
  // Of the sampler: with a list of timesteps request.sampler.num_steps says nothing.
  const auto sampler = make_sampler(request.sampler);
  const int num_steps = sampler->num_steps();
  std::vector<double> sigmas;
  for (int i = 0; i < num_steps; ++i) sigmas.push_back(sampler->sigma(i));
  const PolicyWords words =
      expand_words({request.attention, request.skip, request.dense_steps, request.dense_layers},
                   num_steps, static_cast<int>(model.architecture().sizes().num_layers), sigmas);
  return make_policy(parse_plan(words.attention), parse_skip(words.skip), words.dense_steps,
                     words.dense_layers, request.min_tokens, num_steps);
}

std::string policy_content(const Request& request) {
  const std::string& path = request.profile.empty() ? request.replay_masks : request.profile;
  std::error_code none;
  if (path.empty() || !std::filesystem::is_regular_file(path, none)) return {};
  if (request.profile.empty()) {
    const SafetensorsFile log(path);
    const auto text = log.metadata().find("lacuna_masks");
    return text == log.metadata().end() ? "" : fmt::format("{:016x}", fnv1a64(text->second));
  }
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  return fmt::format("{:016x}", fnv1a64(text));
}

PromptEmbeddings embed_prompts(Model& model, Context& ctx, const Request& request,
                               const std::filesystem::path& cache) {
  PromptEmbeddings prompts;
  prompts.positive = model.embed_prompt(ctx, request.prompt, cache);
  if (request.guided()) {
    prompts.negative = model.embed_prompt(ctx, request.negative_prompt, cache);
  }
  return prompts;
}

MemoryPlan plan_memory(Model& model, const Request& request, const Tiling& tiling,
                       bool moves_tokens, int ranks) {
  const auto latent = model.latent_shape(request.width, request.height, request.frames);
  const Architecture& network = model.architecture();
  const TransformerSizes sizes = network.sizes();
  const DType compute = compute_dtype(request);
  const double stored = static_cast<double>(model.held_transformer_bytes()) /
                        static_cast<double>(network.num_parameters());  // bytes of a parameter
  const PassingWeights passing = network.passing_weights(compute, stored, !model.loras().empty());
  MemoryPlan plan;
  const Model::LoraBytes lora = model.lora_bytes();
  plan.weights = model.held_transformer_bytes() + lora.held;
  const int64_t all_tokens = model.grid(latent).tokens();
  const int64_t tokens = (all_tokens + ranks - 1) / ranks;
  plan.activations =
      network.activation_bytes(tokens, compute) +
      TokenShare::scratch_bytes(all_tokens, sizes.dim(), latent_row(sizes), ranks, compute) +
      network.prompt_bytes(compute) * (request.guided() ? 2 : 1) + passing.converted + lora.scratch;
  // In the state and behind the latent.
  plan.activations += storage_bytes(
      DType::f32, 2 * sizes.condition_channels * latent.frames * latent.height * latent.width);
  if (moves_tokens)
    plan.activations += storage_bytes(compute, 4 * sizes.stream_rows(tokens) * sizes.dim());
  plan.decoder =
      model.decoder().memory_bytes(latent.frames, latent.height, latent.width, compute, tiling);
  plan.passing = passing.stored + lora.passing;
  plan.f32 = compute == DType::f32;
  if (tiling.mode == TileMode::off)
    plan.tiles = model.decoder().takes_exact_tiles() ? "exact" : "blend";
  return plan;
}

int64_t attention_bytes(Model& model, const Request& request, const Policy& policy,
                        const WorkShare& share) {
  const Architecture& network = model.architecture();
  const TransformerSizes sizes = network.sizes();
  const VideoGrid grid =
      model.grid(model.latent_shape(request.width, request.height, request.frames));
  std::vector<Site> sites = planned_sites(model, request, 0);
  std::erase_if(sites, [&](const Site& site) { return !share.runs(site.branch); });
  return policy.held_bytes(sites,
                           {grid, model.text_tokens(request).cond, share.num_heads(sizes.num_heads),
                            sizes.head_dim, compute_dtype(request)});
}

namespace {

// What would help most, in this order.
std::string memory_advice(const MemoryPlan& plan, int64_t limit) {
  std::string advice;
  if (plan.f32) advice += "--dtype bf16, ";
  if (plan.decoder > limit && !plan.tiles.empty())
    advice += fmt::format("--vae-tile {}, ", plan.tiles);
  if (plan.weights > limit / 2) advice += "a checkpoint of fewer bits (GGUF), ";
  return advice + "a smaller size or fewer frames";
}

// Within the limit of a backend with memory of its own; ops there take some for themselves.
void check_own_memory(const MemoryPlan& plan, int64_t limit, const NoteHook& note) {
  // What attention and products may take of a device: a sixteenth of its memory each, at most
  // 1024 and 256 MiB.
  constexpr int64_t kMostScratch = int64_t{1280} << 20;
  const int64_t room = limit - std::min(limit / 8, kMostScratch);
  const int64_t again = std::max(int64_t{0}, plan.weights + plan.activations - room);
  if (note) {
    std::string line = fmt::format("memory: {}; peak {} of {} on the device", memory_parts(plan),
                                   memory_size(plan.peak()), memory_size(limit));
    if (again > 0 && plan.least() <= room)
      line += fmt::format("; about {} of weights come again in every forward",
                          memory_size(std::min(again + plan.passing, plan.weights)));
    note(line);
  }
  MemoryPlan resident = plan;
  resident.weights = 0;  // which come one by one
  LACUNA_CHECK(plan.least() <= room,
               "memory: needs about {} on the device with weights that come one by one "
               "({}), {} may be used; try {}",
               memory_size(plan.least() + limit - room), memory_parts(resident), memory_size(limit),
               memory_advice(resident, room));
}

}  // namespace

void check_memory(const MemoryPlan& whole, const Backend& backend, int64_t max_memory,
                  const NoteHook& note) {
  const bool on_host = backend.device() == Device::cpu;
  MemoryPlan plan = whole;
  if (!on_host) plan.attention = 0;
  if (const int64_t limit = backend.memory_use().limit; limit > 0)
    return check_own_memory(plan, limit, note);
  // A device without a limit says itself when it has no more.
  int64_t available = on_host ? available_memory() : 0;
  if (available > 0) available += plan.loaded;
  if (note) {
    note(fmt::format("memory: {}; peak {} {}", memory_parts(plan), memory_size(plan.peak()),
                     on_host ? "of " + memory_size(available) + " available" : "on the device"));
  }
  int64_t limit = max_memory;
  if (available > 0) limit = limit > 0 ? std::min(limit, available) : available;
  LACUNA_CHECK(limit == 0 || plan.peak() <= limit, "memory: needs about {}, {} may be used; try {}",
               memory_size(plan.peak()), memory_size(limit), memory_advice(plan, limit));
}

namespace {

// The plan of generate(), of all its processes on this machine. `policy` is of the heads here.
MemoryPlan memory_of_run(Model& model, const Context& ctx, const Request& request,
                         const GenerationFiles& files, const Tiling& tiling, const Policy& policy,
                         const WorkShare& share, bool encodes,
                         const std::optional<SamplingState>& resume) {
  const bool replays = !request.replay_masks.empty();  // of whatever the log holds
  const int ranks = share.forward_ranks();
  MemoryPlan memory = plan_memory(model, request, tiling, replays || policy.moves_tokens(), ranks);
  if (replays || policy.compensates()) {
    const TransformerSizes sizes = model.architecture().sizes();
    const auto latent = model.latent_shape(request.width, request.height, request.frames);
    memory.activations += storage_bytes(
        ctx.compute, sizes.stream_rows(model.grid(latent).tokens()) * sizes.dim() / ranks);
  }
  memory.attention = attention_bytes(model, request, policy, share);
  memory.loaded = model.made_bytes() + (resume ? bytes_of(resume->attention) : 0);
  if (encodes) memory.encoder = encoded_pictures_bytes(model, request);
  if (files.video.empty()) memory.decoder = 0;
  const int processes = share.local_ranks();
  memory.activations *= processes;
  memory.attention *= processes;
  memory.loaded *= processes;
  // Files are in memory once for all of them; what is made of them, or made up, is each one's.
  const int64_t files_bytes = model.is_synthetic() ? 0 : model.transformer_bytes();
  memory.weights = files_bytes + processes * (memory.weights - files_bytes);
  return memory;
}

// An unwritable output is better known now than after an hour.
void check_writable(const Request& request, const GenerationFiles& files) {
  if (!files.video.empty())
    open_video(files.video, {.width = request.width, .height = request.height, .fps = request.fps});
  const AtomicFile writable(files.latents);
}

}  // namespace

GenerationResult generate(Model& model, Context& ctx, const Request& request,
                          const GenerationFiles& files, const Tiling& tiling, int64_t max_memory,
                          const GenerationHooks& hooks, std::optional<SamplingState> resume) {
  const auto latent = model.latent_shape(request.width, request.height, request.frames);
  ctx.compute = compute_dtype(request);
  const WorkShare alone;
  const WorkShare& share = hooks.share != nullptr ? *hooks.share : alone;
  check_share(share, model, ctx, request, hooks);
  const Policy policy = request_policy(model, request);
  const int64_t num_heads = model.architecture().sizes().num_heads;
  Engine engine(ctx.backend, share.policy(policy, num_heads));
  engine.set_share(share.heads(num_heads));
  const int first_step = resume ? resume->next_step : 0;
  set_up(engine, model, request, hooks, first_step);
  check_content(request);
  note_profile_without_lora(model, request, hooks.note);
  const RequestPictures pictures = read_pictures(model, request, resume.has_value());
  if (max_memory > 0) ctx.backend.limit_memory(max_memory);
  check_memory(memory_of_run(model, ctx, request, files, tiling, engine.policy(), share,
                             !pictures.empty(), resume),
               ctx.backend, max_memory, hooks.note);
  if (resume) restore_attention(engine, model, request, share, *resume);
  if (share.is_root()) check_writable(request, files);

  GenerationResult result;
  result.tokens = model.grid(latent).tokens();
  for (const Rule& rule : policy.rules()) result.rules.push_back(describe(rule));
  if (hooks.plan_only) {
    for (TraceEntry& call : plan_calls(model, request, policy, first_step))
      result.trace.add(std::move(call));
    return result;
  }
  auto start = Clock::now();
  PromptEmbeddings prompts;
  if (share.is_root()) prompts = embed_prompts(model, ctx, request, files.prompt_cache);
  share.broadcast({&prompts.positive.tokens, &prompts.positive.pooled, &prompts.negative.tokens,
                   &prompts.negative.pooled});
  ctx.workspace.release();
  result.text_seconds = seconds_since(start);

  EncodedPictures encoded;
  if (share.is_root()) encoded = encode_pictures(model, ctx, request, pictures, hooks.encode);
  share.broadcast({&encoded.first_frame, &encoded.condition, &encoded.image});

  const bool resumed = resume.has_value();
  SamplingState state = starting_state(request, latent, encoded, std::move(resume));
  take_prompts(prompts, request, hooks.note, state);
  start = Clock::now();
  const SamplingInputs inputs{
      [&](int expert) -> const VideoTransformer& { return model.transformer(expert); },
      model.num_experts(),
      model.architecture().sizes(),
      request,
      prompts,
      &share};
  sample_into_file(ctx, engine, inputs, files, hooks, resumed, state);
  result.sample_seconds = seconds_since(start);
  result.trace = std::move(engine.trace());

  if (!files.video.empty() && share.is_root()) {
    // The decoder needs the room.
    engine.reset();
    ctx.workspace.release();
    model.release_transformer();
    start = Clock::now();
    decode_to_file(model, ctx, request, state.latents, files.video, tiling, hooks);
    result.decode_seconds = seconds_since(start);
    std::error_code ignored;
    if (!files.keep_latents) std::filesystem::remove(files.latents, ignored);
  }
  result.memory = ctx.backend.memory_use();
  return result;
}

void decode_frames(Model& model, Context& ctx, const Request& request, const TensorView& latents,
                   const Tiling& tiling,
                   const std::function<void(int64_t done, int64_t total)>& progress,
                   const std::function<void(std::span<const uint8_t> rgb)>& frame) {
  ctx.compute = compute_dtype(request);
  DecodeOptions options;
  options.tiling = tiling;
  options.progress = [&](int64_t done, int64_t total) {
    ctx.check_cancel();
    if (progress) progress(done, total);
  };
  std::vector<uint8_t> rgb;
  const ConstantWeights constant(ctx.backend, model.decoder().weights());
  model.decoder().decode(ctx, latents, options, [&](const TensorView& frames) {
    const float* data = frames.as<float>();
    rgb.resize(static_cast<size_t>(frames.numel() / frames.shape[0]));
    for (int64_t t = 0; t < frames.shape[0]; ++t) {
      to_rgb8({data + static_cast<size_t>(t) * rgb.size(), rgb.size()}, rgb);
      frame(rgb);
    }
  });
}

void decode_to_file(Model& model, Context& ctx, const Request& request, const TensorView& latents,
                    const std::filesystem::path& video, const Tiling& tiling,
                    const GenerationHooks& hooks) {
  const int64_t factor = model.decoder().spatial_factor();
  const VideoInfo info{.width = static_cast<int>(latents.shape[3] * factor),
                       .height = static_cast<int>(latents.shape[2] * factor),
                       .fps = request.fps,
                       .comment = request.to_json()};
  auto writer = open_video(video, info);
  decode_frames(model, ctx, request, latents, tiling, hooks.decode,
                [&](std::span<const uint8_t> rgb) { writer->write(rgb); });
  writer->finish();
}

}  // namespace lacuna
