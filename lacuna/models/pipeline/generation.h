// SPDX-License-Identifier: Apache-2.0
// One generation from prompt to file: plan, encode, sample, save latents, decode, write.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/engine/engine.h"
#include "lacuna/engine/policy.h"
#include "lacuna/engine/profile.h"
#include "lacuna/engine/trace.h"
#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/pipeline/work_share.h"

namespace lacuna {

// `f32` or `bf16` of the request; throws Error on anything else.
DType compute_dtype(const Request& request);
// What a profile must have been made for to be used with this model and request.
ProfileTarget profile_target(Model& model, const Request& request);
// Both prompts of a request through the text encoder; `cache` as in Model::embed_prompt.
PromptEmbeddings embed_prompts(Model& model, Context& ctx, const Request& request,
                               const std::filesystem::path& cache);

// The attention policy that a request's words or profile name. Throws Error when they are not
// understood, do not fit together or were made for another model or schedule.
Policy request_policy(Model& model, const Request& request);
// For Request::policy_content: FNV-1a 64 of the profile's JSON or of the mask log's, which name
// their masks by hash. Empty without either, or where there is no such file: whoever loads it says
// so.
std::string policy_content(const Request& request);

struct GenerationFiles {
  std::filesystem::path video;         // empty: stop after the latents
  std::filesystem::path latents;       // state, saved while sampling and before decoding
  bool keep_latents = false;           // false: removed once the video is finished
  std::filesystem::path prompt_cache;  // folder; empty = none
  // Seconds between saves while sampling: a long step must not be lost to a kill, a short one is
  // not worth the write.
  double save_every = 5.0;
};

using NoteHook = std::function<void(const std::string& line)>;

struct GenerationHooks {
  NoteHook note;  // what a person may want to know, one line
  std::function<void(const StepReport&)> step;
  std::function<void(int steps)> saved;  // the latents file now holds what these steps made
  std::function<void(int64_t done, int64_t total)> encode;  // frames, of the request's pictures
  std::function<void(int64_t done, int64_t total)> decode;
  Engine::InputsHook inputs;          // of every self-attention
  Engine::SelectionsHook selections;  // of every self-attention
  // Dense calls that no rule asked for are errors, before step 0 where they can be known.
  bool strict = false;
  bool timed = false;  // see Engine::set_timed
  // Stop where step 0 would begin; the result's trace is what the policy asks for.
  bool plan_only = false;
  const WorkShare* share = nullptr;  // of several processes; the context's team is that of forwards
};

// Bytes that a generation will hold at its largest, by part.
struct MemoryPlan {
  int64_t weights = 0;      // one expert as stored (memory-mapped pages)
  int64_t activations = 0;  // of one forward, with the prompts' keys and values
  int64_t attention = 0;    // on the host: what attention holds from step to step
  int64_t loaded = 0;       // of all, what is in memory already
  int64_t encoder = 0;      // activations of video and image encoder, for the request's pictures
  int64_t decoder = 0;      // activations of the video decoder
  int64_t passing = 0;      // weights that pass one by one where not all have room
  bool f32 = false;         // activations
  // --vae-tile that would need less; empty where the decoder is tiled already.
  std::string_view tiles{};
  // The parts of the autoencoder run when nothing else is held.
  int64_t peak() const { return std::max({weights + activations + attention, encoder, decoder}); }
  // On a device.
  int64_t least() const {
    return std::max({std::min(weights, passing) + activations, encoder, decoder});
  }
};

// `moves_tokens`: attention may put tokens in another order, so that it holds q, k, v and out
// twice. Of each of `ranks` processes that share a forward. Without MemoryPlan::attention, which is
// attention_bytes(), and MemoryPlan::encoder, of which a run that goes on has no need.
MemoryPlan plan_memory(Model& model, const Request& request, const Tiling& tiling,
                       bool moves_tokens, int ranks = 1);
// Bytes of masks, token orders and method states under `policy`, of all layers, guidance branches
// and experts, with the copy that a stopped run goes on from. Of one process of `share`, whose
// heads the policy is of.
int64_t attention_bytes(Model& model, const Request& request, const Policy& policy,
                        const WorkShare& share = WorkShare());
// Throws Error when the plan needs more than what is available or than max_memory (0 = no own
// limit). Where the backend has memory of its own, the plan is of that, within the backend's limit,
// without MemoryPlan::attention, and weights need not have room all at once. `note`, if any, gets
// one line with the plan.
void check_memory(const MemoryPlan& whole, const Backend& backend, int64_t max_memory,
                  const NoteHook& note);

struct GenerationResult {
  double text_seconds = 0, sample_seconds = 0, decode_seconds = 0;
  int64_t tokens = 0;
  Trace trace;
  std::vector<std::string> rules;  // of the policy in words; TraceEntry::rule counts them
  Backend::MemoryUse memory;       // of a backend with memory of its own
};

// Validates everything that can be known before step 0: sizes, policy, memory (against
// min(available, max_memory); 0 = no own limit), output folder and ending. Then runs. A backend
// with memory of its own keeps to max_memory, from here on. `resume` goes on from a saved state
// instead of noise, under the policy it began with (a profile or mask log must still have the
// request's policy_content), and notes prompts that the text encoder now reads differently. When
// sampling throws, Cancelled or another, the latents file holds the last finished step; before the
// first one an older file is left as it was.
//
// Where hooks.share is set its processes make the video together: all of them call with the same
// arguments; the root alone reads prompts, writes (after every step) and decodes. Refused then:
// networks that cannot share a forward where one is to be shared, a backend with memory of its own,
// hooks that see attention, masks of a log.
GenerationResult generate(Model& model, Context& ctx, const Request& request,
                          const GenerationFiles& files, const Tiling& tiling, int64_t max_memory,
                          const GenerationHooks& hooks,
                          std::optional<SamplingState> resume = std::nullopt);

// Decodes latents into frames [height, width, 3] u8, handed over one by one; the memory is reused
// after the call. `progress` may be null. Throws Cancelled between passes when ctx.cancel is set.
void decode_frames(Model& model, Context& ctx, const Request& request, const TensorView& latents,
                   const Tiling& tiling,
                   const std::function<void(int64_t done, int64_t total)>& progress,
                   const std::function<void(std::span<const uint8_t> rgb)>& frame);
// Decodes finished (or, for a preview, unfinished) latents into files.video.
void decode_to_file(Model& model, Context& ctx, const Request& request, const TensorView& latents,
                    const std::filesystem::path& video, const Tiling& tiling,
                    const GenerationHooks& hooks);

}  // namespace lacuna
