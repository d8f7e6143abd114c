// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cpu/attend_levels.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>

#include "lacuna/backend/cpu/attend.h"
#include "lacuna/core/atomic_file.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/cache_folder.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/threads.h"

namespace lacuna::cpu {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr double kMargin = 0.9;  // of the fastest level's rate
// Names what a rate means: the timed case above and what is kept of it.
constexpr std::string_view kFormat = "lacuna attention levels 1";
constexpr int kCalls = 8;
constexpr double kSecondsPerLevel = 0.02;
constexpr std::uintmax_t kMaxFileBytes = 1 << 16;

std::vector<Isa> levels_of(AttendDType dtype, Isa widest) {
  std::vector<Isa> levels;
  for (Isa isa : {Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx})
    if (isa <= widest && has_attend_kernel(isa, dtype, kLevelHeadDim)) levels.push_back(isa);
  return levels;
}

std::vector<LevelRate> measure(AttendDType dtype, Isa widest, const LevelTimer& timer) {
  constexpr double kTokens = kLevelTokens;
  std::vector<LevelRate> rates;
  for (const Isa isa : levels_of(dtype, widest)) {
    timer(dtype, isa);
    double best = timer(dtype, isa), spent = best;
    for (int call = 2; call < kCalls && spent < kSecondsPerLevel; ++call) {
      const double seconds = timer(dtype, isa);
      best = std::min(best, seconds);
      spent += seconds;
    }
    rates.push_back({isa, 1e-9 * 4 * kTokens * kTokens * kLevelHeadDim / std::max(best, 1e-9)});
  }
  return rates;
}

Json to_json(const std::vector<LevelRate>& rates) {
  Json json;
  for (const LevelRate& rate : rates) json[std::string(isa_name(rate.isa))] = rate.gflops;
  return json;
}

// Exactly the levels that this machine has, with rates that can be.
std::optional<std::vector<LevelRate>> from_json(const Json& json, AttendDType dtype, Isa widest) {
  std::vector<LevelRate> rates;
  for (const Isa isa : levels_of(dtype, widest)) {
    const double gflops = json.at(std::string(isa_name(isa))).get<double>();
    if (!std::isfinite(gflops) || gflops <= 0) return std::nullopt;
    rates.push_back({isa, gflops});
  }
  if (rates.size() != json.size()) return std::nullopt;
  return rates;
}

// The thread count is the process's: other work must not see the change.
class OneThread {
 public:
  OneThread() : saved_(num_threads()) { set_num_threads(1); }
  ~OneThread() { set_num_threads(saved_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int saved_;
};

// AMX runs faster on zeros than on numbers, so the tokens are numbers.
struct LevelCall {
  static constexpr size_t kTensor = size_t{kLevelTokens} * kLevelHeadDim;
  std::vector<float> x = std::vector<float>(4 * kTensor);  // q, k, v, out
  std::vector<BFloat16> x16;

  LevelCall() {
    fill_hash("attention levels", 0.0, 1.7, x);
    for (const float value : x) x16.emplace_back(value);
  }

  double run(AttendDType dtype, Isa isa) {
    const bool bf16 = dtype == AttendDType::bf16;
    const auto tensor = [&](size_t i) {
      return bf16 ? static_cast<void*>(x16.data() + i * kTensor) : x.data() + i * kTensor;
    };
    AttendParams p;
    p.dtype = dtype;
    p.q = tensor(0), p.k = tensor(1), p.v = tensor(2), p.out = tensor(3);
    p.q_token_stride = p.k_token_stride = p.v_token_stride = p.out_token_stride = kLevelHeadDim;
    p.num_heads = 1;
    p.q_len = p.k_len = kLevelTokens;
    p.head_dim = kLevelHeadDim;
    p.sm_scale = 1.0f / std::sqrt(static_cast<float>(kLevelHeadDim));
    p.num_q_blocks = p.num_k_blocks = static_cast<int32_t>(kLevelTokens / p.block_k);
    const OneThread alone;
    const auto begin = std::chrono::steady_clock::now();
    attend(p, isa);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
};

}  // namespace

bool has_attend_kernel(Isa isa, AttendDType dtype, int32_t head_dim) {
  if (isa == Isa::avx2) return true;
  const Isa below = static_cast<Isa>(static_cast<uint8_t>(isa) - 1);
  return &attend_kernel(dtype, head_dim, isa) != &attend_kernel(dtype, head_dim, below);
}

Isa AttendLevels::of(AttendDType dtype, int32_t head_dim) const {
  const std::vector<LevelRate>& list = dtype == AttendDType::f32 ? rates.f32 : rates.bf16;
  double best = 0;
  for (const LevelRate& rate : list)
    if (has_attend_kernel(rate.isa, dtype, head_dim)) best = std::max(best, rate.gflops);
  Isa chosen = widest;
  for (const LevelRate& rate : list)
    if (has_attend_kernel(rate.isa, dtype, head_dim) && rate.gflops >= kMargin * best)
      chosen = rate.isa;
  return chosen;
}

std::string AttendLevels::text() const {
  const Isa f32 = of(AttendDType::f32, kLevelHeadDim), bf16 = of(AttendDType::bf16, kLevelHeadDim);
  // No f32 kernel is wider than AVX-512.
  if (std::min(f32, Isa::avx512) == std::min(widest, Isa::avx512) && bf16 == widest)
    return std::string(isa_name(widest));
  return fmt::format("{} (attention: f32 {}, bf16 {})", isa_name(widest), isa_name(f32),
                     isa_name(bf16));
}

LevelTimer make_level_timer() {
  // Made at the first call: most processes never measure.
  return [call = std::make_shared<std::optional<LevelCall>>()](AttendDType dtype, Isa isa) {
    if (!*call) call->emplace();
    return (*call)->run(dtype, isa);
  };
}

LevelRates measure_levels(Isa widest, const LevelTimer& timer) {
  return {measure(AttendDType::f32, widest, timer), measure(AttendDType::bf16, widest, timer)};
}

std::optional<LevelRates> read_levels(const fs::path& file, std::string_view identity, Isa widest) {
  try {
    // A regular file of a sane size: reading a pipe in its place would not end.
    if (!fs::is_regular_file(file) || fs::file_size(file) > kMaxFileBytes) return std::nullopt;
    std::ifstream in(file, std::ios::binary);
    const Json json = Json::parse(in);
    if (json.at("format") != kFormat || json.at("machine") != identity) return std::nullopt;
    auto f32 = from_json(json.at("gflops").at("f32"), AttendDType::f32, widest);
    auto bf16 = from_json(json.at("gflops").at("bf16"), AttendDType::bf16, widest);
    if (!f32 || !bf16) return std::nullopt;
    return LevelRates{*std::move(f32), *std::move(bf16)};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

bool write_levels(const fs::path& file, std::string_view identity, const LevelRates& rates) {
  try {
    fs::create_directories(file.parent_path());
    AtomicFile out(file);
    out.write(Json{{"format", kFormat},
                   {"machine", identity},
                   {"gflops", {{"f32", to_json(rates.f32)}, {"bf16", to_json(rates.bf16)}}}}
                  .dump(1) +
              "\n");
    out.commit();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

AttendLevels find_levels(const LevelSearch& search) {
  if (search.forced) return {search.widest, {}, "LACUNA_ISA"};
  if (search.widest == Isa::avx2) return {search.widest, {}, "the only level"};
  const std::string identity = fmt::format("{}, lacuna {}", search.identity, LACUNA_VERSION);
  const fs::path file = search.folder.empty()
                            ? fs::path()
                            : search.folder / fmt::format("levels-{:016x}.json", fnv1a64(identity));
  if (auto known = read_levels(file, identity, search.widest))
    return {search.widest, *std::move(known), "measured before"};
  LevelRates rates = measure_levels(search.widest, search.timer);
  // Two first runs at once should agree: the one that finished first is right.
  if (auto known = read_levels(file, identity, search.widest))
    return {search.widest, *std::move(known), "measured before"};
  if (!file.empty()) write_levels(file, identity, rates);
  return {search.widest, std::move(rates), "measured now"};
}

const AttendLevels& active_attend_levels() {
  static const AttendLevels levels = find_levels(
      {active_isa(), isa_is_forced(), cache_folder(), machine_identity(), make_level_timer()});
  return levels;
}

}  // namespace lacuna::cpu
