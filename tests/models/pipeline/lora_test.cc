// SPDX-License-Identifier: Apache-2.0
// LoRA in whole generations: against checkpoints that hold the sum, of two experts, and what
// requests and profiles say of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "lacuna/core/convert.h"
#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/engine/profile.h"
#include "lacuna/models/pipeline/generation.h"
#include "tests/core/gguf_builder.h"
#include "tests/support/compare.h"
#include "tests/support/error_of.h"
#include "tests/support/random.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Networks = LoraUse::Networks;

constexpr int64_t kDim = 128, kRank = 4;
constexpr const char* kModules[] = {"blocks.0.attn1.to_q", "blocks.0.attn2.to_v"};

Tensor values_of(const std::string& name, std::initializer_list<int64_t> shape) {
  Tensor tensor(DType::f32, shape);
  fill_hash(name, 0.0, 0.2, {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
  return tensor;
}

// A LoRA of two matrices of the first layer.
fs::path write_lora(const fs::path& folder, const std::string& name) {
  std::vector<std::pair<std::string, Tensor>> owned;
  for (const std::string module : kModules) {
    const std::string stem = "transformer." + module;
    owned.emplace_back(stem + ".lora_A.weight", values_of(name + "A" + module, {kRank, kDim}));
    owned.emplace_back(stem + ".lora_B.weight", values_of(name + "B" + module, {kDim, kRank}));
  }
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [key, tensor] : owned) tensors.emplace_back(key, tensor.view());
  const fs::path path = folder / (name + ".safetensors");
  write_safetensors(path, tensors);
  return path;
}

// The same sum in the weights of a checkpoint in f32.
void merge_lora(const fs::path& part, const fs::path& lora, double scale) {
  const fs::path path = part / "diffusion_pytorch_model.safetensors";
  std::map<std::string, Tensor> sums;
  {
    const SafetensorsFile base(path), file(lora);
    for (const auto& [name, view] : base.tensors()) sums[name] = converted(view, DType::f32);
    for (const std::string module : kModules) {
      const Tensor down =
          converted(file.at("transformer." + module + ".lora_A.weight"), DType::f32);
      const Tensor up = converted(file.at("transformer." + module + ".lora_B.weight"), DType::f32);
      float* sum = sums.at(module + ".weight").as<float>();
      for (int64_t i = 0; i < kDim * kDim; ++i) {
        double y = 0.0;
        for (int64_t r = 0; r < kRank; ++r)
          y += double{up.as<float>()[i / kDim * kRank + r]} *
               double{down.as<float>()[r * kDim + i % kDim]};
        sum[i] = static_cast<float>(double{sum[i]} + scale * y);
      }
    }
  }
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [name, tensor] : sums) tensors.emplace_back(name, tensor.view());
  write_safetensors(path, tensors);
}

Request small_request() {
  Request r;
  r.model = "test";
  r.prompt = "A big red circle";
  r.width = 32, r.height = 16, r.frames = 3;
  r.sampler.num_steps = 2;
  r.sampler.shift = 3.0;
  r.guidance = r.guidance_low = 3.0;
  r.seed = 5;
  r.dtype = "f32";
  return r;
}

Tensor latents_of(Model& model, const Request& r, const std::string& backend_name = "cpu",
                  std::string* notes = nullptr) {
  const auto backend = make_backend(backend_name);
  const TempFolder folder;
  GenerationFiles files;
  files.latents = folder.path() / "latents.safetensors";
  GenerationHooks hooks;
  if (notes != nullptr) hooks.note = [&](const std::string& line) { *notes += line + "\n"; };
  Context ctx{*backend};
  generate(model, ctx, r, files, {}, 0, hooks);
  return std::move(load_state(files.latents).state.latents);
}

std::unique_ptr<Model> open_with(const fs::path& folder, const std::vector<LoraUse>& uses) {
  auto model = Model::open(std::array{folder});
  for (const LoraUse& use : uses) model->add_lora(use);
  return model;
}

TEST(LoraGeneration, IsThatOfTheMergedCheckpoint) {
  const TinyCheckpoint base({.storage = DType::f32}), merged({.storage = DType::f32});
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  merge_lora(merged.folder() / "transformer", style, 0.7);
  for (const char* backend : {"cpu", "ref"})
    for (const char* dtype : {"f32", "bf16"}) {
      Request r = small_request();
      r.dtype = dtype;
      const Tensor expected = latents_of(*open_with(merged.folder(), {}), r, backend);
      const Tensor made = latents_of(*open_with(base.folder(), {{style, 0.7}}), r, backend);
      EXPECT_TRUE(close(made, expected, generation(compute_dtype(r)), backend));
      EXPECT_NE(values(latents_of(*open_with(base.folder(), {}), r, backend)), values(expected));
    }
}

// Two uses of half are one whole: sums of f32 that differ in their last bits only.
TEST(LoraGeneration, UsesAddUp) {
  const TinyCheckpoint base({.storage = DType::f32});
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  const Request r = small_request();
  const auto twice = open_with(base.folder(), {{style, 0.5}, {style, 0.5}});
  const auto once = open_with(base.folder(), {{style, 1.0}});
  EXPECT_TRUE(close(latents_of(*twice, r), latents_of(*once, r), generation(DType::f32), "twice"));
  EXPECT_NE(twice->lora_content(), once->lora_content());
}

TEST(LoraGeneration, EachExpertHasItsOwn) {
  const TinyCheckpoint base({.experts = 2, .storage = DType::f32, .layers = 1});
  const TempFolder folder;
  const fs::path a = write_lora(folder.path(), "a"), b = write_lora(folder.path(), "b");
  const auto merged = [&](const char* part, const fs::path& lora, const Request& r) {
    const TinyCheckpoint checkpoint({.experts = 2, .storage = DType::f32, .layers = 1});
    merge_lora(checkpoint.folder() / part, lora, 1.0);
    return latents_of(*open_with(checkpoint.folder(), {}), r);
  };
  const auto pair =
      open_with(base.folder(), {{a, 1.0, Networks::high_noise}, {b, 1.0, Networks::low_noise}});
  const auto both = open_with(base.folder(), {{a, 1.0}});
  for (const bool high : {true, false}) {
    Request r = small_request();
    r.boundary = high ? 0.0 : 2.0;  // all steps to one of the two
    const char* part = high ? "transformer" : "transformer_2";
    const Limits limits = generation(DType::f32);
    EXPECT_TRUE(close(latents_of(*pair, r), merged(part, high ? a : b, r), limits, part));
    EXPECT_TRUE(close(latents_of(*both, r), merged(part, a, r), limits, part));
  }
}

// Numbers that q8_0 holds: codes of 1/512.
Tensor on_the_grid(const TensorView& view) {
  Tensor tensor = converted(view, DType::f32);
  float* x = tensor.as<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i)
    x[i] = static_cast<float>(std::clamp(std::lround(x[i] * 512.0f), -127L, 127L)) / 512.0f;
  return tensor;
}

bool is_q8(const TensorView& view) {
  return view.rank == 2 && view.shape[1] % 32 == 0;
}

void add_to_gguf(const std::string& name, const Tensor& tensor, GgufBuilder& gguf) {
  const TensorView& view = tensor.view();
  std::vector<uint64_t> dims(view.shape.rbegin() + (kMaxRank - view.rank), view.shape.rend());
  if (dims.size() == 5) {  // four at most: [out * in, t, h, w]
    dims[3] *= dims[4];
    dims.pop_back();
  }
  const auto* x = tensor.as<float>();
  std::string data;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    if (!is_q8(view)) {
      data += GgufBuilder::raw(x[i]);
      continue;
    }
    if (i % 32 == 0) data += GgufBuilder::raw(uint16_t{0x1800});  // 1/512 in f16
    data += GgufBuilder::raw(static_cast<int8_t>(std::lround(x[i] * 512.0f)));
  }
  constexpr uint32_t kF32 = 0, kQ8 = 8;
  gguf.tensor(name, is_q8(view) ? kQ8 : kF32, dims, data);
}

// A matrix in blocks is decoded, changed and rounded at each use.
TEST(LoraGeneration, AQuantizedCheckpointTakesIt) {
  const TinyCheckpoint checkpoint({.storage = DType::f32, .layers = 1});
  const fs::path part = checkpoint.folder() / "transformer";
  const fs::path stored = part / "diffusion_pytorch_model.safetensors";
  std::map<std::string, Tensor> decoded;
  {
    const SafetensorsFile file(stored);
    for (const auto& [name, view] : file.tensors())
      decoded[name] = is_q8(view) ? on_the_grid(view) : converted(view, DType::f32);
  }
  GgufBuilder gguf;
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [name, tensor] : decoded) {
    add_to_gguf(name, tensor, gguf);
    tensors.emplace_back(name, tensor.view());
  }
  write_safetensors(stored, tensors);
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  const Request r = small_request();
  const Tensor expected = latents_of(*open_with(checkpoint.folder(), {{style, 1.0}}), r);
  fs::remove(stored);
  gguf.write(part / "model.gguf");
  EXPECT_EQ(values(latents_of(*open_with(checkpoint.folder(), {{style, 1.0}}), r)),
            values(expected));
}

TEST(LoraModel, RefusesWhatDoesNotFit) {
  const TinyCheckpoint base({.layers = 1});
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  const auto model = Model::open(std::array{base.folder()});
  const auto error = [&](const LoraUse& use) { return error_of([&] { model->add_lora(use); }); };
  EXPECT_THAT(error({style, 101.0}), HasSubstr("101 times, expected a number from -100 to 100"));
  EXPECT_THAT(error({style, std::nan("")}), HasSubstr("expected a number"));
  EXPECT_THAT(error({style, 1.0, Networks::low_noise}),
              HasSubstr("for one of two experts, Wan (custom) has one network"));
  EXPECT_THAT(error({folder.path() / "missing", 1.0}), HasSubstr("missing"));
  EXPECT_TRUE(model->loras().empty());
  EXPECT_EQ(model->title(), "Wan (custom)");
  const auto large = Model::synthetic("wan2.1-1.3b", DType::bf16);
  EXPECT_THAT(error_of([&] {
                large->add_lora({style, 1.0});
              }),
              HasSubstr("changes a [128, 128], expected the network's [1536, 1536]"));
  model->add_lora({style, 0.5});
  EXPECT_EQ(model->title(), fmt::format("Wan (custom) with LoRA {}:0.5", style.string()));
  EXPECT_EQ(model->files().back(), style);
}

TEST(LoraModel, ThePlanCountsIt) {
  const TinyCheckpoint base({.storage = DType::f32, .layers = 1});
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  const Request r = small_request();
  const auto plain = open_with(base.folder(), {}), with = open_with(base.folder(), {{style, 1.0}});
  const MemoryPlan before = plan_memory(*plain, r, {}, false);
  const MemoryPlan after = plan_memory(*with, r, {}, false);
  // The file, and its `down` matrices once more.
  const int64_t down = 2 * kRank * kDim * 4;
  EXPECT_EQ(after.weights - before.weights, static_cast<int64_t>(fs::file_size(style)) + down);
  // Sums, an `up` in f32, and the matrices that are no longer used as they are stored.
  const auto& network = dynamic_cast<const WanArchitecture&>(with->architecture());
  const WanConfig& config = network.config();
  EXPECT_EQ(after.activations - before.activations,
            kDim * kDim * 4 + kRank * kDim * 4 +
                passing_weights(config, DType::f32, 4.0, true).converted);
  EXPECT_EQ(passing_weights(config, DType::f32, 4.0, false).converted, 0);
}

TEST(LoraModel, WhatItChangesIsPartOfTheTarget) {
  const TinyCheckpoint base({.layers = 1});
  const TempFolder folder;
  const fs::path a = write_lora(folder.path(), "a"), b = write_lora(folder.path(), "b");
  const Request r = small_request();
  const auto target = [&](const std::vector<LoraUse>& uses) {
    return profile_target(*open_with(base.folder(), uses), r);
  };
  const ProfileTarget plain = target({}), with = target({{a, 1.0}});
  EXPECT_TRUE(plain.base.empty());
  EXPECT_EQ(with.base, plain.fingerprint);
  EXPECT_NE(with.fingerprint, plain.fingerprint);
  EXPECT_EQ(with.fingerprint, target({{a, 1.0}}).fingerprint);
  EXPECT_NE(with.fingerprint, target({{a, 0.5}}).fingerprint);
  EXPECT_NE(with.fingerprint, target({{b, 1.0}}).fingerprint);
  EXPECT_NE(with.fingerprint, target({{a, 1.0}, {b, 1.0}}).fingerprint);
  // Of the base a profile serves, of another LoRA not.
  Profile profile;
  profile.target = plain;
  EXPECT_EQ(error_of([&] { check_profile(profile, with); }), "");
  profile.target = with;
  EXPECT_EQ(error_of([&] { check_profile(profile, with); }), "");
  EXPECT_THAT(error_of([&] { check_profile(profile, plain); }), HasSubstr("made for weights"));
  EXPECT_THAT(error_of([&] {
                check_profile(profile, target({{b, 1.0}}));
              }),
              HasSubstr("made for weights"));
}

TEST(LoraModel, AProfileOfTheBaseIsNoted) {
  const TinyCheckpoint base({.layers = 1});
  const TempFolder folder;
  const fs::path style = write_lora(folder.path(), "style");
  Request r = small_request();
  const auto plain = open_with(base.folder(), {}), with = open_with(base.folder(), {{style, 1.0}});
  Profile profile;
  profile.target = profile_target(*plain, r);
  profile.rules.emplace_back();
  const fs::path path = folder.path() / "p.json";
  save_profile(profile, path);
  r.profile = path.string();
  std::string notes;
  latents_of(*with, r, "cpu", &notes);
  EXPECT_THAT(notes, HasSubstr("p.json was made without the LoRA"));
  notes.clear();
  latents_of(*plain, r, "cpu", &notes);
  EXPECT_THAT(notes, ::testing::Not(HasSubstr("LoRA")));
}

TEST(LoraRequest, TravelsOnlyWhereThereIsOne) {
  Request r = small_request();
  EXPECT_EQ(r.to_json().find("lora"), std::string::npos);
  r.lora = {"a.safetensors:1", "b:0.5"};
  r.lora_low = {"c:2"};
  r.lora_content = "0123456789abcdef";
  const Request read = Request::from_json(r.to_json());
  EXPECT_EQ(read.lora, r.lora);
  EXPECT_TRUE(read.lora_high.empty());
  EXPECT_EQ(read.lora_low, r.lora_low);
  EXPECT_EQ(read.lora_content, r.lora_content);
  EXPECT_EQ(read.to_json(), r.to_json());
}

}  // namespace
}  // namespace lacuna::test
