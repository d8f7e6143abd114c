// SPDX-License-Identifier: Apache-2.0
// The VAEs against numbers that the upstream modules gave in f32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "lacuna/models/vae/hash_case.h"
#include "tests/models/vae/support.h"
#include "tests/support/repository.h"

namespace lacuna {
namespace {

using testing::has_backend;
using Json = nlohmann::json;

std::vector<Json> vae_cases() {
  std::vector<Json> cases;
  for (const char* name : {"wan.json", "joint.json"}) {
    std::ifstream file(test::assets() / "goldens" / name);
    const Json goldens = Json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (goldens.is_discarded()) continue;
    for (const Json& item : goldens["cases"]) {
      if (item["module"] == "vae") cases.push_back(item);
    }
  }
  return cases;
}

struct Param {
  std::string backend;
  Json golden;
};

std::vector<Param> params(std::initializer_list<const char*> backends) {
  std::vector<Param> all;
  for (const char* backend : backends) {
    for (const Json& golden : vae_cases()) all.push_back({backend, golden});
  }
  return all;
}

std::string case_name(const ::testing::TestParamInfo<Param>& info) {
  std::string name = info.param.backend + "_" + info.param.golden["name"].get<std::string>();
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

void PrintTo(const Param& param, std::ostream* out) {
  *out << param.backend << " " << param.golden["name"];
}

class VaeGolden : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    if (!has_backend(GetParam().backend)) GTEST_SKIP() << "no backend " << GetParam().backend;
  }
};

TEST_P(VaeGolden, MatchesUpstream) {
  const auto& [name, golden] = GetParam();
  const auto backend = make_backend(name);
  const VaeHashCase hash_case = parse_vae_hash_case(golden.dump(), "golden");
  const Tensor result = run_vae_hash_case(*backend, DType::f32, hash_case);
  const Json& expect = golden["expect"];
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(result.view().shape[i], expect["shape"][i + 1].get<int64_t>());
  }
  const float* y = result.as<float>();
  double squares = 0.0, probe = 0.0;
  for (int64_t i = 0; i < result.numel(); ++i) {
    squares += static_cast<double>(y[i]) * y[i];
    probe += y[i] * hash_uniform("probe:" + hash_case.tag, static_cast<uint64_t>(i));
  }
  const double n = static_cast<double>(result.numel());
  const double rms = expect["rms"].get<double>();
  EXPECT_NEAR(std::sqrt(squares / n), rms, 1e-5 * rms);
  EXPECT_NEAR(probe, expect["probe"].get<double>(), 2e-5 * rms * std::sqrt(n));
  if (!expect.contains("values")) return;
  for (const auto& [index, value] : expect["values"].items()) {
    const double v = value.get<double>();
    EXPECT_NEAR(y[std::stoll(index)], v, 2e-5 * (1.0 + std::abs(v))) << "element " << index;
  }
}

INSTANTIATE_TEST_SUITE_P(Upstream, VaeGolden, ::testing::ValuesIn(params({"ref", "cpu"})),
                         case_name);

class VaeBf16 : public VaeGolden {};

// bf16 activations and caches on f32 weights, against our own f32 run.
TEST_P(VaeBf16, StaysClose) {
  const auto& [name, golden] = GetParam();
  const auto backend = make_backend(name);
  const VaeHashCase hash_case = parse_vae_hash_case(golden.dump(), "golden");
  const Tensor exact = run_vae_hash_case(*backend, DType::f32, hash_case);
  const Tensor rounded = run_vae_hash_case(*backend, DType::bf16, hash_case);
  const ErrorStats stats = compare(rounded, exact);
  EXPECT_LE(stats.rel_l2, 2e-2);
  EXPECT_GT(stats.rel_l2, 0.0);
  EXPECT_GE(stats.cos_sim, 0.9998);
}

INSTANTIATE_TEST_SUITE_P(Rounding, VaeBf16, ::testing::ValuesIn(params({"cpu"})), case_name);

TEST(VaeGoldenFile, ListsEveryPublishedCase) {
  EXPECT_EQ(vae_cases().size(), 22u);
}

TEST(VaeGoldenFile, RejectsOtherModules) {
  const std::string message =
      testing::error_of([] { parse_vae_hash_case(R"({"module": "wan_dit"})", "x.json"); });
  EXPECT_NE(message.find("expected vae"), std::string::npos) << message;
  for (const char* text : {"{", R"({"module": "vae"})"}) {
    const std::string said = testing::error_of([&] { parse_vae_hash_case(text, "x.json"); });
    EXPECT_NE(said.find("a VAE golden case"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace lacuna
