// SPDX-License-Identifier: Apache-2.0
// Sparse attention against dense: the same noise, prompt by prompt and seed by seed, with the noise
// floor of dense attention against itself.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lacuna/models/context.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/request.h"
#include "lacuna/report/clip.h"
#include "lacuna/report/quality.h"

namespace lacuna {

// A policy of attention under the name it is reported by.
struct CompareCandidate {
  std::string name;
  Request request;  // only the words about attention are read
};

struct CompareTask {
  Request request;  // of dense attention; prompt and seed are set for each run
  std::vector<std::string> prompts;
  int seeds = 1;  // request.seed, request.seed + 1, ...
  std::vector<CompareCandidate> candidates;
  // Dense against dense: keys visited in another order, `other_backend` if there is one, and
  // whether another number of threads gives the same bytes.
  bool floor = true;
  Backend* other_backend = nullptr;
  Tiling tiling;
  std::filesystem::path prompt_cache;  // folder; empty = none
  bool keep_clips = false;             // of the first prompt and seed, for pictures
};

// One generation. Times are of sampling; text and decoding are the same for all.
struct CompareMeasurement {
  Quality quality;           // against dense of the same noise; empty for dense
  double latents_error = 0;  // |latents - dense| / |dense|
  double sample_seconds = 0, step_ms = 0;
  double attend_ms = 0, select_ms = 0;  // per step, all layers
  double qk_density = 1, pv_density = 1;
  double speedup = 1;          // of sampling, against dense of the same noise
  double selection_share = 0;  // selection time / attention time of dense
  struct LayerTime {
    double select_ms = 0, attend_ms = 0;  // per step
  };
  std::vector<LayerTime> layers;
  std::vector<std::vector<double>> density;  // [layer][step], P V, mean over branches
};

enum class CompareRole : uint8_t { dense, candidate, floor };

struct CompareSubject {
  std::string name;
  CompareRole role;
  std::vector<CompareMeasurement> runs;  // by prompt, then seed
  Clip clip;                             // of the first prompt and seed, if clips are kept
};

// First steps of the first prompt and seed again with another number of threads.
struct ThreadCheck {
  int steps, threads, other_threads;
  bool identical;
};

struct Comparison {
  std::vector<CompareSubject> subjects;  // dense first, then candidates, then the floor
  std::optional<ThreadCheck> threads;
  int64_t tokens = 0;
};

struct CompareHooks {
  std::function<void(const std::string& line)> note;
  // Units of work done, of `total`: the steps of all runs and one for each decode.
  std::function<void(int64_t done, int64_t total, const std::string& what)> progress;
};

// Runs it all. Order: a few steps that warm everything up, then for each prompt and seed all
// subjects, dense first; for every second of them in the opposite order, so that a machine that
// grows warm or busy favours nobody. Latents and frames depend on the task only, not on the order.
//
// Throws Error before any work when there is no prompt, seed or candidate, when two names are equal
// or a policy, size or the memory does not do; Cancelled when ctx.cancel is set.
Comparison compare_attention(Model& model, Context& ctx, const CompareTask& task,
                             const CompareHooks& hooks = {});

// Mean and spread of a number over the runs; infinite ones are counted apart.
struct Spread {
  double mean = 0, deviation = 0;  // deviation of a sample; NaN below two values
  double low = 0, high = 0;
  int count = 0, infinite = 0;
};
// All NaN when no value is finite.
Spread spread_of(const std::vector<double>& values);

}  // namespace lacuna
