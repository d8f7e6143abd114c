// SPDX-License-Identifier: Apache-2.0
// What a checkpoint's folder says about itself.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "lacuna/models/pipeline/model.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<Model> open(const TinyCheckpoint& checkpoint) {
  return Model::open(std::array{checkpoint.folder()});
}

TEST(OpenModel, ThePipelineBeatsTheFamily) {
  const TinyCheckpoint checkpoint({.experts = 2, .layers = 1});
  const fs::path& folder = checkpoint.folder();
  const auto family = open(checkpoint);
  EXPECT_EQ(family->defaults().boundary, 0.875);
  EXPECT_EQ(family->defaults().shift, 5.0);
  EXPECT_EQ(family->sampler_kind(), SamplerKind::unipc);
  EXPECT_EQ(family->sigma_convention(), SigmaConvention::diffusers);
  std::ofstream(folder / "model_index.json")
      << R"({"_class_name": "WanPipeline", "boundary_ratio": 0.9})";
  fs::create_directory(folder / "scheduler");
  const auto scheduled = [&](const char* text) {
    std::ofstream(folder / "scheduler" / "scheduler_config.json") << text;
    return open(checkpoint);
  };
  const auto euler = scheduled(R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7})");
  EXPECT_EQ(euler->defaults().boundary, 0.9);
  EXPECT_EQ(euler->defaults().shift, 7.0);
  EXPECT_EQ(euler->sampler_kind(), SamplerKind::euler);
  const auto unipc = scheduled(R"({"_class_name": "UniPCMultistepScheduler", "flow_shift": 3})");
  EXPECT_EQ(unipc->defaults().shift, 3.0);
  EXPECT_EQ(unipc->sampler_kind(), SamplerKind::unipc);
}

TEST(OpenModel, HeadsThatNothingTellsAreSaidToBeAssumed) {
  const TinyCheckpoint checkpoint({.layers = 1});
  EXPECT_EQ(open(checkpoint)->assumption(), "");
  fs::remove(checkpoint.folder() / "transformer" / "config.json");
  const auto model = open(checkpoint);
  EXPECT_EQ(model->architecture().sizes().num_heads, 1) << "two of 64 in truth";
  EXPECT_NE(model->assumption().find("128 channels wide"), std::string::npos);
  EXPECT_EQ(Model::synthetic("tiny", DType::f32)->assumption(), "");
}

// Changes the first byte behind a safetensors header.
void change(const fs::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header = 0;
  file.read(reinterpret_cast<char*>(&header), sizeof header);
  const auto at = static_cast<std::streamoff>(sizeof header + header);
  file.seekg(at);
  const int byte = file.get();
  file.seekp(at);
  file.put(static_cast<char>(byte ^ 1));
  ASSERT_TRUE(file.good());
}

TEST(OpenModel, TheIdentityIsOfBothNetworks) {
  const TinyCheckpoint checkpoint({.experts = 2, .layers = 1});
  std::string before = open(checkpoint)->identity();
  EXPECT_EQ(open(checkpoint)->identity(), before);
  for (const char* part : {"transformer", "transformer_2"}) {
    change(checkpoint.folder() / part / "diffusion_pytorch_model.safetensors");
    const std::string after = open(checkpoint)->identity();
    EXPECT_NE(after, before) << part;
    before = after;
  }
}

}  // namespace
}  // namespace lacuna::test
