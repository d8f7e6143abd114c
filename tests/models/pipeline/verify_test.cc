// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/pipeline/verify.h"

#include <gmock/gmock.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "lacuna/backend/cpu/cpu_backend.h"
#include "lacuna/core/error.h"
#include "tests/support/error_of.h"
#include "tests/support/repository.h"
#include "tests/support/tile_unit.h"

namespace lacuna {
namespace {

using Json = nlohmann::ordered_json;
using test::error_of;
using ::testing::HasSubstr;

std::vector<VerifyResult> run_on(Backend& backend, const std::string& json, DType compute) {
  std::vector<VerifyResult> results;
  verify_goldens(json, "test", backend, compute,
                 [&](const VerifyResult& r) { results.push_back(r); });
  return results;
}

std::vector<VerifyResult> run(const std::string& json, std::string_view backend,
                              DType compute = DType::f32) {
  return run_on(*make_backend(backend), json, compute);
}

// Holds every shipped golden number; how many there are.
size_t expect_shipped(Backend& backend, DType compute, const std::string& where) {
  size_t count = 0;
  for (const GoldenFile& file : shipped_goldens()) {
    const auto results = run_on(backend, std::string(file.json), compute);
    EXPECT_FALSE(results.empty()) << file.name;
    count += results.size();
    for (const VerifyResult& r : results)
      EXPECT_TRUE(r.passed) << r.name << " on " << where << ": " << r.detail;
  }
  return count;
}

// Every shipped golden number on both rungs of the ladder.
TEST(Verify, RefReproducesUpstream) {
  EXPECT_GE(expect_shipped(*make_backend("ref"), DType::f32, "ref"), 41u);
}

TEST(Verify, CpuReproducesUpstream) {
  expect_shipped(*make_backend("cpu"), DType::f32, "cpu");
}

TEST(Verify, CpuInBf16StaysNearF32) {
  expect_shipped(*make_backend("cpu"), DType::bf16, "cpu");
}

// Attention on tiles; matrix products are oneDNN's, which knows what the processor really has.
TEST(Verify, TilesInBf16StayNearF32) {
  const cpu::Isa has = test::with_tile_unit(cpu::machine_isa());
  if (has < cpu::Isa::amx) GTEST_SKIP() << "this machine lacks AVX512-BF16";
  const auto tiles = make_cpu_backend(cpu::Isa::amx, has);
  expect_shipped(*tiles, DType::bf16, std::string(test::amx_name()));
}

std::string joint_goldens() {
  std::ifstream file(test::assets() / "goldens/joint.json");
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Verify, MochiSamplesMustAgree) {
  Json file = Json::parse(joint_goldens());
  Json& inputs = file["cases"][0]["inputs"];
  ASSERT_EQ(file["cases"][0]["module"], "mochi_dit");
  inputs["context"]["valid_rows"] = {11};
  EXPECT_THAT(error_of([&] { run(file.dump(), "cpu"); }), HasSubstr("1 valid_rows"));
  inputs["context"]["valid_rows"] = {11, 17};
  EXPECT_THAT(error_of([&] { run(file.dump(), "cpu"); }), HasSubstr("17 valid text rows"));
  inputs["context"]["valid_rows"] = {11, -1};
  EXPECT_THAT(error_of([&] { run(file.dump(), "cpu"); }), HasSubstr("-1 valid text rows"));
  inputs["x"]["shape"] = {2, 12, 3, 8, 1 << 26};
  EXPECT_THAT(error_of([&] { run(file.dump(), "cpu"); }), HasSubstr("more than"));
}

Json sampler_case() {
  return Json::parse(R"({"schema": "lacuna-goldens", "version": 1, "cases": [
    {"name": "n1", "module": "sampler",
     "config": {"kind": "unipc", "convention": "diffusers", "num_steps": 1, "shift": 5},
     "inputs": {"x": {"hash": "x:sched", "shape": [16]}},
     "expect": {"shape": [16], "sum": -3.160825, "values": {"0": -0.1733517}}}]})");
}

TEST(Verify, NoticesAWrongNumber) {
  Json file = sampler_case();
  EXPECT_TRUE(run(file.dump(), "ref").front().passed);
  file["cases"][0]["expect"]["values"]["0"] = -0.1734517;
  const auto results = run(file.dump(), "ref");
  EXPECT_FALSE(results.front().passed);
  EXPECT_GT(results.front().worst, 1.0);
  EXPECT_NE(results.front().detail.find("y[0]"), std::string::npos);
}

TEST(Verify, RefusesHostileFiles) {
  EXPECT_THROW(run("", "ref"), Error);
  EXPECT_THROW(run("[]", "ref"), Error);
  EXPECT_THROW(run(R"({"schema": "lacuna-goldens", "version": 2, "cases": []})", "ref"), Error);
  const auto broken = [](auto change) {
    Json file = sampler_case();
    change(file["cases"][0]);
    return file.dump();
  };
  EXPECT_THROW(run(broken([](Json& c) { c["module"] = "nothing"; }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c.erase("inputs"); }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c["inputs"]["x"]["shape"] = {1ll << 40}; }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c["inputs"]["x"]["shape"] = {1, -3}; }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c["expect"]["values"] = {{"99", 0.0}}; }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c["expect"] = {{"shape", {16}}}; }), "ref"), Error);
  EXPECT_THROW(run(broken([](Json& c) { c["config"]["num_steps"] = 1e9; }), "ref"), Error);
}

}  // namespace
}  // namespace lacuna
