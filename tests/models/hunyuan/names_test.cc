// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/hunyuan/names.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "lacuna/core/error.h"
#include "tests/models/hunyuan/support.h"
#include "tests/models/recorder.h"
#include "tests/support/error_of.h"
#include "tests/support/guarded_backend.h"

namespace lacuna {
namespace {

using test::error_of;
using test::same_bytes;
using ::testing::HasSubstr;
using testing::Network;

// Tensors by name, in memory.
class MadeFile : public WeightSource {
 public:
  std::map<std::string, Tensor, std::less<>> tensors;
  std::string describe() const override { return "fake.safetensors"; }
  bool has(std::string_view name) const override { return tensors.find(name) != tensors.end(); }
  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors) result.push_back(name);
    return result;
  }
  std::vector<int64_t> shape(std::string_view name) const override {
    const TensorView& view = tensors.find(name)->second;
    return {view.shape.begin(), view.shape.begin() + view.rank};
  }
  TensorView load(std::string_view name, std::span<const int64_t> wanted) override {
    const std::vector<int64_t> stored = shape(name);
    LACUNA_CHECK(std::equal(stored.begin(), stored.end(), wanted.begin(), wanted.end()),
                 "fake.safetensors: {} of another shape", name);
    return tensors.find(name)->second;
  }
};

// What the authors call a tensor, and which part of theirs it is.
struct Place {
  std::string name;
  int64_t part = 0;
};

Place place_of(const std::string& diffusers) {
  // Prefixes first, so that `norm1.` is not taken for `norm1.linear`.
  static const std::vector<std::pair<std::string, Place>> kNames = {
      {"x_embedder.", {"img_in."}},
      {"context_embedder.time_text_embed.timestep_embedder.linear_1.",
       {"txt_in.t_embedder.mlp.0."}},
      {"context_embedder.time_text_embed.timestep_embedder.linear_2.",
       {"txt_in.t_embedder.mlp.2."}},
      {"context_embedder.time_text_embed.text_embedder.", {"txt_in.c_embedder."}},
      {"context_embedder.proj_in.", {"txt_in.input_embedder."}},
      {"time_text_embed.timestep_embedder.linear_1.", {"time_in.mlp.0."}},
      {"time_text_embed.timestep_embedder.linear_2.", {"time_in.mlp.2."}},
      {"time_text_embed.guidance_embedder.linear_1.", {"guidance_in.mlp.0."}},
      {"time_text_embed.guidance_embedder.linear_2.", {"guidance_in.mlp.2."}},
      {"time_text_embed.text_embedder.linear_1.", {"vector_in.in_layer."}},
      {"time_text_embed.text_embedder.linear_2.", {"vector_in.out_layer."}},
      {"norm_out.linear.", {"final_layer.adaLN_modulation.1."}},
      {"proj_out.", {"final_layer.linear."}},
      {"refiner: norm1.", {"norm1."}},
      {"refiner: norm2.", {"norm2."}},
      {"refiner: attn.to_q.", {"self_attn_qkv.", 0}},
      {"refiner: attn.to_k.", {"self_attn_qkv.", 1}},
      {"refiner: attn.to_v.", {"self_attn_qkv.", 2}},
      {"refiner: attn.to_out.0.", {"self_attn_proj."}},
      {"refiner: ff.net.0.proj.", {"mlp.fc1."}},
      {"refiner: ff.net.2.", {"mlp.fc2."}},
      {"refiner: norm_out.linear.", {"adaLN_modulation.1."}},
      {"dual: norm1.linear.", {"img_mod.linear."}},
      {"dual: norm1_context.linear.", {"txt_mod.linear."}},
      {"dual: attn.to_q.", {"img_attn_qkv.", 0}},
      {"dual: attn.to_k.", {"img_attn_qkv.", 1}},
      {"dual: attn.to_v.", {"img_attn_qkv.", 2}},
      {"dual: attn.add_q_proj.", {"txt_attn_qkv.", 0}},
      {"dual: attn.add_k_proj.", {"txt_attn_qkv.", 1}},
      {"dual: attn.add_v_proj.", {"txt_attn_qkv.", 2}},
      {"dual: attn.norm_q.", {"img_attn_q_norm."}},
      {"dual: attn.norm_k.", {"img_attn_k_norm."}},
      {"dual: attn.norm_added_q.", {"txt_attn_q_norm."}},
      {"dual: attn.norm_added_k.", {"txt_attn_k_norm."}},
      {"dual: attn.to_out.0.", {"img_attn_proj."}},
      {"dual: attn.to_add_out.", {"txt_attn_proj."}},
      {"dual: ff.net.0.proj.", {"img_mlp.fc1."}},
      {"dual: ff.net.2.", {"img_mlp.fc2."}},
      {"dual: ff_context.net.0.proj.", {"txt_mlp.fc1."}},
      {"dual: ff_context.net.2.", {"txt_mlp.fc2."}},
      {"single: norm.linear.", {"modulation.linear."}},
      {"single: attn.to_q.", {"linear1.", 0}},
      {"single: attn.to_k.", {"linear1.", 1}},
      {"single: attn.to_v.", {"linear1.", 2}},
      {"single: proj_mlp.", {"linear1.", 3}},
      {"single: attn.norm_q.", {"q_norm."}},
      {"single: attn.norm_k.", {"k_norm."}},
      {"single: proj_out.", {"linear2."}},
  };
  struct Kind {
    const char *diffusers, *mark, *original;
  };
  constexpr Kind kKinds[] = {{"context_embedder.token_refiner.refiner_blocks.",
                              "refiner: ", "txt_in.individual_token_refiner.blocks."},
                             {"transformer_blocks.", "dual: ", "double_blocks."},
                             {"single_transformer_blocks.", "single: ", "single_blocks."}};
  std::string rest = diffusers, before;
  for (const Kind& kind : kKinds) {
    if (!diffusers.starts_with(kind.diffusers)) continue;
    const std::string inner = diffusers.substr(std::strlen(kind.diffusers));
    const size_t dot = inner.find('.') + 1;
    rest = kind.mark + inner.substr(dot);
    before = kind.original + inner.substr(0, dot);
  }
  for (const auto& [name, place] : kNames)
    if (rest.starts_with(name)) return {before + place.name + rest.substr(name.size()), place.part};
  ADD_FAILURE() << diffusers;
  return {};
}

// The golden network as its authors would write it to a file.
std::unique_ptr<MadeFile> original_file() {
  testing::Recorder recorder;
  WeightReader reader(recorder);
  const HunyuanTransformer network(golden_hunyuan_config(), reader);
  std::map<std::string, std::map<int64_t, Tensor>> parts;
  const auto values = hash_weights("w:", DType::f32);
  for (const auto& [name, shape] : recorder.asked) {
    const Place place = place_of(name);
    Tensor part = copy_of(values->load(name, shape));
    if (name.starts_with("norm_out.")) {  // they keep shift before scale
      const int64_t half = part.numel() / 2;
      std::rotate(part.as<float>(), part.as<float>() + half, part.as<float>() + 2 * half);
    }
    parts[place.name].emplace(place.part, std::move(part));
  }
  auto file = std::make_unique<MadeFile>();
  for (const auto& [name, stack] : parts) {
    TensorView shape = stack.at(0).view();
    for (const auto& [index, part] : stack)
      if (index > 0) shape.shape[0] += part.view().shape[0];
    Tensor all(DType::f32, std::span(shape.shape.data(), static_cast<size_t>(shape.rank)));
    float* to = all.as<float>();
    for (const auto& [index, part] : stack) to = std::copy_n(part.as<float>(), part.numel(), to);
    file->tensors.emplace(name, std::move(all));
  }
  return file;
}

Tensor run(WeightSource& source) {
  const auto backend = make_backend("ref");
  Network model(*backend);
  WeightReader reader(source);
  model.transformer = HunyuanArchitecture(model.config).load(reader);
  const double timestep = 500.0;
  model.times = model.transformer->prepare_times(model.ctx, {&timestep, 1}, 6.0);
  model.prompt = model.prepare(11);
  return model.run();
}

TEST(HunyuanNames, BothNamingSchemesGiveTheSameBytes) {
  const auto hash = hash_weights("w:", DType::f32);
  const Tensor expected = run(*hash);
  const auto original = with_hunyuan_names(original_file());
  EXPECT_TRUE(same_bytes(run(*original), expected));
  EXPECT_EQ(original->added_bytes(), 4 * 64 * 33);  // norm_out.linear alone
}

TEST(HunyuanNames, KnowEveryTensorAndItsShape) {
  testing::Recorder recorder;
  WeightReader reader(recorder);
  const HunyuanTransformer network(golden_hunyuan_config(), reader);
  const auto original = with_hunyuan_names(original_file());
  std::set<std::string> asked;
  for (const auto& [name, shape] : recorder.asked) {
    asked.insert(name);
    ASSERT_TRUE(original->has(name)) << name;
    EXPECT_EQ(original->shape(name), shape) << name;
    EXPECT_EQ(original->raw(name).numel(), original->load(name, shape).numel());
  }
  const std::vector<std::string> names = original->names();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), asked);
}

// Blocks of quantised files lie along rows, so rows are still views.
TEST(HunyuanNames, PartsOfQuantisedMatricesAreTheirBytes) {
  auto file = original_file();
  Tensor& stack = file->tensors["double_blocks.1.txt_attn_qkv.weight"];
  stack = Tensor(DType::q8_0, {96, 32});
  const auto* stored = static_cast<const char*>(stack.view().data);
  const auto original = with_hunyuan_names(std::move(file));
  const int64_t shape[] = {32, 32};
  const TensorView part = original->load("transformer_blocks.1.attn.add_v_proj.weight", shape);
  EXPECT_EQ(part.dtype, DType::q8_0);
  EXPECT_TRUE(part.contiguous());
  EXPECT_EQ(static_cast<const char*>(part.data) - stored, storage_bytes(DType::q8_0, 64 * 32));
}

TEST(HunyuanNames, RefuseOtherFiles) {
  EXPECT_THAT(error_of([] { with_hunyuan_names(std::make_unique<MadeFile>()); }),
              HasSubstr("img_attn_qkv"));
  auto low = original_file();
  low->tensors["single_blocks.0.linear1.bias"] = Tensor::zeros(DType::f32, {96});
  EXPECT_THAT(error_of([&] { with_hunyuan_names(std::move(low)); }),
              HasSubstr("single_blocks.0.linear1.bias has 96 rows"));
  auto alone = original_file();
  alone->tensors.erase("double_blocks.1.txt_attn_qkv.weight");
  EXPECT_THAT(error_of([&] { with_hunyuan_names(std::move(alone)); }),
              HasSubstr("double_blocks.1.txt_attn_qkv.bias"));
  const auto original = with_hunyuan_names(original_file());
  const int64_t wrong[] = {96, 32}, right[] = {32, 32};
  EXPECT_EQ(original->load("transformer_blocks.0.attn.to_k.weight", right).shape[0], 32);
  EXPECT_THAT(error_of([&] { original->load("transformer_blocks.0.attn.to_k.weight", wrong); }),
              HasSubstr("32 rows"));
}

TEST(HunyuanNames, ShapesTellTheSizes) {
  // Values do not matter: nothing is loaded.
  testing::Recorder recorder;
  WeightReader reader(recorder);
  HunyuanConfig config = golden_hunyuan_config();
  config.num_heads = 1;
  config.head_dim = 128;
  config.rope_channels = {16, 56, 56};
  config.num_single_layers = 3;
  config.guidance_embeds = false;
  config.mlp_ratio = 2.5;
  const HunyuanTransformer network(config, reader);
  MadeFile file;
  for (const auto& [name, shape] : recorder.asked)
    file.tensors.emplace(name, Tensor(DType::bf16, shape));
  EXPECT_EQ(infer_hunyuan_config(file), config);
  file.tensors.erase("proj_out.weight");
  EXPECT_THAT(error_of([&] { infer_hunyuan_config(file); }), HasSubstr("proj_out.weight"));
  const auto narrow = with_hunyuan_names(original_file());
  EXPECT_THAT(error_of([&] { infer_hunyuan_config(*narrow); }), HasSubstr("heads of 16"));
}

}  // namespace
}  // namespace lacuna
