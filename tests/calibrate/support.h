// SPDX-License-Identifier: Apache-2.0
// A folder per test, and calibrations that are stopped and resumed.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "lacuna/calibrate/calibration.h"
#include "tests/calibrate/toy_subject.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {

namespace fs = std::filesystem;

// One for each test.
inline fs::path temporary_folder() {
  static const testing::TestInfo* last = nullptr;
  static std::optional<TempFolder> folder;
  const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
  if (last != info) folder.emplace();
  last = info;
  return folder->path();
}

inline std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Stop {};

// Profile and measurements of `run` once without a stop and once stopped in every 7th layer and at
// every second end of a step, each time by another subject. The bytes must be equal; returns the
// calibration.
inline Calibration expect_same_after_stops(
    const std::function<Calibration(Subject&, const fs::path& progress)>& run, ToySizes sizes = {},
    const char* backend_name = "ref") {
  const std::unique_ptr<Backend> backend = make_backend(backend_name);
  const fs::path folder = temporary_folder();
  const CalibrationFiles whole{folder / "whole" / "c.profile.json"};
  const CalibrationFiles parts{folder / "parts" / "c.profile.json"};
  fs::create_directories(folder / "whole");
  fs::create_directories(folder / "parts");
  ToySubject subject(*backend, sizes);
  Calibration made = run(subject, whole.progress());
  save_calibration(made, whole);
  EXPECT_FALSE(fs::exists(whole.progress()));
  int stops = 0;
  for (bool done = false; !done;) {
    ToySubject part(*backend, sizes);
    int steps = 0;
    part.on_layer = [&] {
      if (part.layers_run == 7 + stops % 40) throw Stop();
    };
    part.on_step = [&] {
      if (++steps == 2 && stops % 2 == 0) throw Stop();
    };
    try {
      save_calibration(run(part, parts.progress()), parts);
      done = true;
    } catch (const Stop&) {
      EXPECT_TRUE(fs::exists(parts.progress()));
      if (++stops > 1000) return made;
    }
  }
  EXPECT_GT(stops, 2);
  EXPECT_LT(stops, 1000);
  EXPECT_EQ(bytes_of(whole.measurements()), bytes_of(parts.measurements()));
  EXPECT_EQ(bytes_of(whole.profile), bytes_of(parts.profile));
  const fs::path masks = "c.profile.safetensors";
  EXPECT_EQ(bytes_of(folder / "whole" / masks), bytes_of(folder / "parts" / masks));
  EXPECT_FALSE(fs::exists(parts.progress()));
  return made;
}

}  // namespace lacuna::test
