// SPDX-License-Identifier: Apache-2.0
// Whole modules on the CUDA backend, their activations in device memory, against the upstream
// implementations' numbers: every golden on a GPU where there is one, some on the emulator, which
// needs a second or more for a case.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/core/error.h"
#include "lacuna/models/pipeline/verify.h"

namespace lacuna {
namespace {

std::string only(std::span<const std::string_view> names) {
  nlohmann::ordered_json kept = nlohmann::ordered_json::array();
  for (const GoldenFile& file : shipped_goldens()) {
    const nlohmann::ordered_json all = nlohmann::ordered_json::parse(file.json);
    for (const auto& c : all["cases"])
      if (std::find(names.begin(), names.end(), c["name"].get<std::string>()) != names.end())
        kept.push_back(c);
  }
  EXPECT_EQ(kept.size(), names.size());
  return nlohmann::ordered_json{{"schema", "lacuna-goldens"}, {"version", 1}, {"cases", kept}}
      .dump();
}

void verify_all(std::string_view json, Backend& backend, DType compute, int least) {
  int results = 0;
  verify_goldens(json, "test", backend, compute, [&](const VerifyResult& r) {
    ++results;
    EXPECT_TRUE(r.passed) << r.name << ": " << r.detail;
  });
  EXPECT_GE(results, least);
}

std::unique_ptr<Backend> emulated() {
  return make_cuda_backend(cuda::emulator::make_emulated_device(cuda::Family::sm80, 1));
}

TEST(CudaGoldens, TransformerOnTheEmulator) {
  constexpr std::string_view kNames[] = {"wan-t837"};
  verify_all(only(kNames), *emulated(), DType::f32, 10);
}

TEST(CudaGoldens, TransformerOnTheEmulatorInBf16) {
  constexpr std::string_view kNames[] = {"wan-ti2v"};
  verify_all(only(kNames), *emulated(), DType::bf16, 1);
}

// A condition behind the latent, and keys of pictures beside the text's.
TEST(CudaGoldens, ImageToVideoOnTheEmulator) {
  constexpr std::string_view kNames[] = {"wan-flf2v"};
  for (const DType compute : {DType::f32, DType::bf16})
    verify_all(only(kNames), *emulated(), compute, 1);
}

// Video and text in one sequence, norms by head, summed angles, linears into a part of a row.
TEST(CudaGoldens, JointTransformersOnTheEmulator) {
  constexpr std::string_view kNames[] = {"mochi-one-word", "hunyuan-no-guidance"};
  for (const DType compute : {DType::f32, DType::bf16})
    verify_all(only(kNames), *emulated(), compute, 2);
}

TEST(CudaGoldens, EncodersAndDecodersOnTheEmulator) {
  constexpr std::string_view kNames[] = {"umt5-valid18",
                                         "clip-vision-patch",
                                         "vae21-decode-1frame",
                                         "hunyuan-vae-decode-1frame",
                                         "mochi-vae-decode-1frame",
                                         "taehv-1frame"};
  verify_all(only(kNames), *emulated(), DType::f32, 5);
}

class CudaGoldensOnGpu : public ::testing::TestWithParam<DType> {};

TEST_P(CudaGoldensOnGpu, HoldUpstreamsNumbers) {
  std::unique_ptr<Backend> backend;
  try {
    backend = make_cuda_backend();
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
  for (const GoldenFile& file : shipped_goldens()) verify_all(file.json, *backend, GetParam(), 5);
}

INSTANTIATE_TEST_SUITE_P(On, CudaGoldensOnGpu, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace lacuna
