// SPDX-License-Identifier: Apache-2.0
// Which level's kernel is taken, from made-up rates: this machine's own levels matter only where a
// test says so.
#include "lacuna/backend/cpu/attend_levels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/threads.h"
#include "tests/support/temp_folder.h"

namespace lacuna::cpu {
namespace {

namespace fs = std::filesystem;
constexpr auto kF32 = AttendDType::f32, kBf16 = AttendDType::bf16;

// Sapphire Rapids' rates, in spirit: vdpbf16ps at half the f32 rate.
LevelRates sapphire_rapids() {
  return {{{Isa::avx2, 100}, {Isa::avx512, 200}},
          {{Isa::avx2, 100}, {Isa::avx512, 200}, {Isa::avx512_bf16, 110}, {Isa::amx, 1000}}};
}

Isa choose(std::vector<LevelRate> f32) {
  const Isa widest = f32.empty() ? Isa::amx : f32.back().isa;
  return AttendLevels{widest, {std::move(f32), {}}}.of(kF32, 128);
}

TEST(AttendLevels, TheWidestLevelLosesOnlyByMoreThanTheMargin) {
  EXPECT_EQ(choose({{Isa::avx2, 100}, {Isa::avx512, 200}}), Isa::avx512);
  EXPECT_EQ(choose({{Isa::avx2, 100}, {Isa::avx512, 100}}), Isa::avx512);
  EXPECT_EQ(choose({{Isa::avx2, 100}, {Isa::avx512, 91}}), Isa::avx512);
  EXPECT_EQ(choose({{Isa::avx2, 100}, {Isa::avx512, 89}}), Isa::avx2);
  EXPECT_EQ(choose({{Isa::avx2, 100}}), Isa::avx2);
  EXPECT_EQ(choose({}), Isa::amx);  // nothing was measured
}

TEST(AttendLevels, Bf16TakesTheFastestThatCanServeTheRows) {
  AttendLevels levels{Isa::amx, sapphire_rapids()};
  EXPECT_EQ(levels.of(kF32, 128), Isa::avx512);
  EXPECT_EQ(levels.of(kBf16, 128), Isa::amx);
  // Rows that tiles cannot take are widened: vdpbf16ps would be slower.
  EXPECT_EQ(levels.of(kBf16, 80), Isa::avx512);
  EXPECT_EQ(levels.of(kBf16, 7), Isa::avx512);
  // Without AMX, and on a processor whose vdpbf16ps pays.
  levels.widest = Isa::avx512_bf16;
  levels.rates.bf16.pop_back();
  EXPECT_EQ(levels.of(kBf16, 128), Isa::avx512);
  levels.rates.bf16.back().gflops = 390;
  EXPECT_EQ(levels.of(kBf16, 128), Isa::avx512_bf16);
  EXPECT_EQ(levels.of(kBf16, 7), Isa::avx512);
}

TEST(AttendLevels, TextNamesWhatIsNotAtTheMachinesLevel) {
  EXPECT_EQ((AttendLevels{Isa::avx2}.text()), "avx2");
  EXPECT_EQ((AttendLevels{Isa::amx}.text()), "amx");
  AttendLevels levels{Isa::amx, sapphire_rapids()};
  EXPECT_EQ(levels.text(), "amx");  // f32 has no kernel of its own there
  levels.widest = Isa::avx512_bf16;
  levels.rates.bf16.pop_back();
  EXPECT_EQ(levels.text(), "avx512_bf16 (attention: f32 avx512, bf16 avx512)");
}

// A timer that counts its calls and never looks at the machine.
struct MadeUpTimer {
  std::map<std::pair<AttendDType, Isa>, int> calls;
  double seconds = 1e-3;

  LevelTimer timer() {
    return [this](AttendDType dtype, Isa isa) {
      const int call = calls[{dtype, isa}]++;
      if (call == 0) return 100 * seconds;  // cold
      return seconds * (call == 3 ? 1.0 : 1.5) / (1 + static_cast<int>(isa));
    };
  }
  int total() const {
    int sum = 0;
    for (const auto& [level, n] : calls) sum += n;
    return sum;
  }
};

TEST(AttendLevels, MeasuresTheBestWarmCallOfEveryLevelWithItsOwnKernel) {
  MadeUpTimer made_up;
  const LevelRates rates = measure_levels(Isa::amx, made_up.timer());
  const double flops = 4.0 * kLevelTokens * kLevelTokens * kLevelHeadDim;
  ASSERT_EQ(rates.f32.size(), 2u);
  ASSERT_EQ(rates.bf16.size(), 4u);
  for (const LevelRate& rate : rates.bf16)
    EXPECT_NEAR(rate.gflops, 1e-6 * flops * (1 + static_cast<int>(rate.isa)), 1e-6 * flops * 1e-9);
  EXPECT_EQ(made_up.calls.size(), 6u);
  for (const auto& [level, n] : made_up.calls) EXPECT_LE(n, 9);

  // Slow calls are few, and one without time does not divide by zero.
  MadeUpTimer slow{{}, 10.0};
  measure_levels(Isa::avx512, slow.timer());
  EXPECT_EQ(slow.calls.size(), 4u);
  EXPECT_LE(slow.total(), 4 * 3);
  EXPECT_GT(measure_levels(Isa::avx512, [](AttendDType, Isa) { return 0.0; }).f32[0].gflops, 0);
}

TEST(AttendLevels, TheRealTimerTimesACallAndLeavesTheThreadsAlone) {
  const int threads = num_threads();
  set_num_threads(3);
  const LevelTimer timer = make_level_timer();
  for (const AttendDType dtype : {kF32, kBf16}) {
    const double seconds = timer(dtype, Isa::avx2);
    EXPECT_GT(seconds, 1e-5);
    EXPECT_LT(seconds, 10.0);
  }
  EXPECT_EQ(num_threads(), 3);
  set_num_threads(threads);
}

class LevelCache : public testing::Test {
 protected:
  LevelSearch search(Isa widest = Isa::amx) {
    return {widest, false, folder_ / "deep", "processor", made_up_.timer()};
  }
  // The one file in the cache.
  fs::path file() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder_ / "deep"))
      files.push_back(entry.path());
    EXPECT_EQ(files.size(), 1u);
    return files.empty() ? fs::path() : files[0];
  }
  static std::string text_of(const fs::path& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  // Whose rates a file holds.
  static std::string machine_of(const fs::path& path) {
    return nlohmann::json::parse(text_of(path)).at("machine");
  }
  static void write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  }

  const test::TempFolder temp_;
  const fs::path folder_ = temp_.path() / "cache";  // not there yet
  MadeUpTimer made_up_;
};

TEST_F(LevelCache, MeasuresOnceAndThenChoosesAlike) {
  const AttendLevels first = find_levels(search());
  EXPECT_EQ(first.source, "measured now");
  EXPECT_EQ(first.of(kBf16, 128), Isa::amx);
  const int calls = made_up_.total();
  EXPECT_GT(calls, 0);
  made_up_.seconds = 123;  // another measurement would give other rates
  const AttendLevels second = find_levels(search());
  EXPECT_EQ(second.source, "measured before");
  EXPECT_EQ(second.rates, first.rates);
  EXPECT_EQ(made_up_.total(), calls);
  // Another processor has its own entry, and a lower level does not take this one's.
  LevelSearch other = search();
  other.identity = "another";
  EXPECT_EQ(find_levels(other).source, "measured now");
  EXPECT_EQ(find_levels(search()).rates, first.rates);
}

TEST_F(LevelCache, NothingIsMeasuredOrWrittenWithoutAChoice) {
  const AttendLevels one = find_levels(search(Isa::avx2));
  EXPECT_EQ(one.of(kF32, 128), Isa::avx2);
  EXPECT_EQ(one.of(kBf16, 128), Isa::avx2);
  LevelSearch forced = search();
  forced.forced = true;
  EXPECT_EQ(find_levels(forced).of(kBf16, 128), Isa::amx);
  EXPECT_EQ(find_levels(forced).source, "LACUNA_ISA");
  EXPECT_EQ(made_up_.total(), 0);
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(LevelCache, LacunaIsaWinsOverWhatIsStored) {
  find_levels(search());
  write_levels(file(), machine_of(file()), sapphire_rapids());
  EXPECT_EQ(find_levels(search()).of(kBf16, 80), Isa::avx512);
  LevelSearch forced = search();
  forced.forced = true;
  EXPECT_EQ(find_levels(forced).of(kBf16, 80), Isa::amx);  // attend() falls to vdpbf16ps there
}

TEST_F(LevelCache, DamagedAndForeignFilesAreMadeAnew) {
  const LevelRates rates = find_levels(search()).rates;
  const fs::path entry = file();
  const std::string good = text_of(entry);
  const auto swap = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const std::vector<std::string> bad = {
      "",
      good.substr(0, good.size() / 2),
      std::string(100, '\0'),
      "null",
      "[]",
      std::string(30000, '['),
      swap("levels 1", "levels 0"),
      swap("processor", "foreign processor"),
      swap("processor, lacuna ", "processor, lacuna 9"),
      swap("\"avx512\"", "\"avx5120\""),
      swap("\"amx\"", "\"sse2\": 1, \"amx\""),
      swap("\"avx2\": ", "\"avx2\": -"),
      swap("\"avx2\": ", "\"avx2\": 1e999, \"x\": "),
      swap("\"avx2\": ", "\"avx2\": \"fast\", \"x\": "),
      swap("\"f32\": {", "\"f32\": [], \"f16\": {"),
      good + std::string(1 << 17, ' '),
  };
  for (const std::string& text : bad) {
    write(entry, text);
    made_up_.calls.clear();  // another cold call, and the same rates again
    EXPECT_EQ(find_levels(search()).source, "measured now") << text.substr(0, 300);
    EXPECT_EQ(find_levels(search()).source, "measured before") << text.substr(0, 300);
  }
  EXPECT_EQ(text_of(entry), good);
  // Where a level appeared (a kernel that hands out tiles now), the old rates say too little.
  EXPECT_EQ(read_levels(entry, machine_of(entry), Isa::amx), rates);
  EXPECT_FALSE(read_levels(entry, machine_of(entry), Isa::avx512_bf16));
}

TEST_F(LevelCache, AFolderThatCannotBeWrittenIsNoError) {
  fs::create_directories(folder_);
  write(folder_ / "deep", "a file where the folder should be");
  for (int run = 0; run < 2; ++run) EXPECT_EQ(find_levels(search()).source, "measured now");
  LevelSearch homeless = search();
  homeless.folder.clear();
  EXPECT_EQ(find_levels(homeless).source, "measured now");
  EXPECT_FALSE(write_levels("/proc/lacuna/levels.json", "processor", sapphire_rapids()));
  // Something else under the entry's name is left alone.
  fs::remove(folder_ / "deep");
  find_levels(search());
  const fs::path entry = file();
  fs::remove(entry);
  fs::create_directories(entry / "not empty");
  EXPECT_EQ(find_levels(search()).source, "measured now");
  EXPECT_TRUE(fs::exists(entry / "not empty"));
}

TEST(AttendLevels, ThisMachineRunsAtALevelThatItHas) {
  const AttendLevels& levels = active_attend_levels();
  EXPECT_EQ(levels.widest, active_isa());
  for (const AttendDType dtype : {kF32, kBf16})
    for (int32_t head_dim : {1, 64, 80, 128}) EXPECT_LE(levels.of(dtype, head_dim), active_isa());
  EXPECT_THAT(make_cpu_backend()->description(), testing::StartsWith("cpu " + levels.text()));
  EXPECT_EQ(make_cpu_backend()->rounding(), "cpu " + levels.text());
  EXPECT_EQ(make_cpu_backend(Isa::avx2)->rounding(), "cpu avx2");
  EXPECT_THAT(machine_identity(), testing::EndsWith(std::string(isa_name(machine_isa()))));
}

}  // namespace
}  // namespace lacuna::cpu
