// SPDX-License-Identifier: Apache-2.0
// Which level's attention kernel serves which rows. The widest is not always the fastest:
// vdpbf16ps runs at twice the f32 rate on Zen 4 and at half of it on Sapphire Rapids. So every
// level that the machine has is timed once, and the rates are kept in the user's cache folder:
// another run chooses alike, which is what "same seed, same bytes" needs.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lacuna/backend/attend_params.h"
#include "lacuna/backend/cpu/isa.h"

namespace lacuna::cpu {

struct LevelRate {
  Isa isa;
  double gflops;
  bool operator==(const LevelRate&) const = default;
};

// Of levels with a kernel of their own, narrow to wide.
struct LevelRates {
  std::vector<LevelRate> f32, bf16;
  bool operator==(const LevelRates&) const = default;
};

// Whether this level computes such rows in another way than the level below it.
bool has_attend_kernel(Isa isa, AttendDType dtype, int32_t head_dim);

struct AttendLevels {
  Isa widest = Isa::avx2;
  LevelRates rates;           // empty: nothing to choose, or LACUNA_ISA chose
  std::string_view source{};  // where the rates are from, in words

  // The widest level with a kernel for such rows that is at most 10 % slower than the fastest, so
  // that noise decides nothing; `widest` where nothing was measured.
  Isa of(AttendDType dtype, int32_t head_dim) const;
  // "avx512_bf16", and where attention is not at that level "amx (attention: f32 avx512, bf16
  // avx512)".
  std::string text() const;
};

// Wall time in seconds of one dense call of kLevelTokens tokens, head_dim kLevelHeadDim, one head,
// on one thread.
using LevelTimer = std::function<double(AttendDType dtype, Isa isa)>;
inline constexpr int64_t kLevelTokens = 768;
inline constexpr int32_t kLevelHeadDim = 128;
LevelTimer make_level_timer();

// Best of a few calls for each level up to `widest`, after one that warms up; some 25 ms a level.
LevelRates measure_levels(Isa widest, const LevelTimer& timer);

// What was measured for `identity` before; nothing if the file is missing, damaged, of another
// machine or version, or lacks a level. Never throws for what it finds.
std::optional<LevelRates> read_levels(const std::filesystem::path& file, std::string_view identity,
                                      Isa widest);
// False when it cannot be written.
bool write_levels(const std::filesystem::path& file, std::string_view identity,
                  const LevelRates& rates);

struct LevelSearch {
  Isa widest = Isa::avx2;        // of the machine, or what LACUNA_ISA asks for
  bool forced = false;           // by LACUNA_ISA
  std::filesystem::path folder;  // of the cache; empty = none
  std::string identity;          // of the machine
  LevelTimer timer;
};
// Measures only where more than one level could serve and the folder does not know. A folder that
// cannot be written is no error: the next process measures again.
AttendLevels find_levels(const LevelSearch& search);

// Of this machine and process; found once.
const AttendLevels& active_attend_levels();

}  // namespace lacuna::cpu
