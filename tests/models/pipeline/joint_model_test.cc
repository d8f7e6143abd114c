// SPDX-License-Identifier: Apache-2.0
// Folders of families whose text takes part in attention.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "lacuna/models/hunyuan/dit.h"
#include "lacuna/models/mochi/dit.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/model.h"
#include "lacuna/models/pipeline/sampling.h"
#include "lacuna/models/text/clip_text.h"
#include "tests/support/error_of.h"
#include "tests/support/noting_weights.h"
#include "tests/support/repository.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Of a Mochi with the text encoder that ships; `index` and `scheduler` are what is beside.
class MochiFolder {
 public:
  explicit MochiFolder(const std::string& index, const std::string& scheduler = "") {
    const std::string config = R"({"_class_name": "MochiTransformer3DModel", "num_layers": 2,
        "num_attention_heads": 1, "attention_head_dim": 16, "pooled_projection_dim": 8,
        "in_channels": 4, "text_embed_dim": 128, "time_embed_dim": 16, "max_sequence_length": 32})";
    NotingWeights source("w:", DType::f32);
    WeightReader reader(source);
    const MochiDit dit(mochi_config_from_json(config, "test"), reader);
    source.save(folder_ / "transformer", config);
    std::ofstream(folder_ / "model_index.json") << index;
    for (const char* part : {"text_encoder", "tokenizer"})
      fs::create_directory_symlink(assets() / "lacuna-shapes" / part, folder_ / part);
    if (scheduler.empty()) return;
    fs::create_directory(folder_ / "scheduler");
    std::ofstream(folder_ / "scheduler" / "scheduler_config.json") << scheduler;
  }
  std::unique_ptr<Model> open() const { return Model::open(std::array{folder_}); }
  const fs::path& path() const { return folder_; }

 private:
  const TempFolder temp_;
  const fs::path folder_ = temp_.path();
};

Request empty_negative() {
  Request r;
  r.prompt = "A big red circle";
  r.guidance = r.guidance_low = 4.5;
  r.sampler = {.kind = SamplerKind::euler, .convention = SigmaConvention::linear_quadratic};
  r.sampler.num_steps = 2;
  r.sampler.shift = 1.0;
  return r;
}

std::vector<float> sampled(Model& model, Context& ctx, const Request& request,
                           const PromptEmbeddings& prompts) {
  Engine engine(ctx.backend, {});
  SamplingState state;
  state.latents = initial_noise(3, 4, 2, 8, 4);
  sample(ctx, engine,
         {[&](int expert) -> const VideoTransformer& { return model.transformer(expert); }, 1,
          model.architecture().sizes(), request, prompts},
         state, nullptr);
  const float* values = state.latents.as<float>();
  return {values, values + state.latents.numel()};
}

TEST(JointModel, AnEmptyPromptOfMochiMayBeNoToken) {
  const MochiFolder plain_folder(R"({"force_zeros_for_empty_prompt": false})");
  const MochiFolder zeros_folder(R"({"force_zeros_for_empty_prompt": true})");
  const auto plain = plain_folder.open(), zeros = zeros_folder.open();
  EXPECT_EQ(plain->text_tokens(""), 1) << "the end token";
  EXPECT_EQ(zeros->text_tokens(""), 0);
  EXPECT_EQ(zeros->text_tokens("red"), plain->text_tokens("red"));

  const auto backend = make_backend("cpu");
  Context ctx{*backend};
  const Request r = empty_negative();
  PromptEmbeddings prompts = embed_prompts(*plain, ctx, r, {});
  const std::vector<float> with_end = sampled(*plain, ctx, r, prompts);
  prompts.negative = {};
  const std::vector<float> without = sampled(*plain, ctx, r, prompts);
  EXPECT_EQ(sampled(*zeros, ctx, r, embed_prompts(*zeros, ctx, r, {})), without);
  EXPECT_NE(with_end, without);
}

TEST(JointModel, TokensThatCouldNotBeCountedStayUnknown) {
  const MochiFolder folder("{}");
  fs::remove(folder.path() / "tokenizer");
  const auto model = folder.open();
  for (int i = 0; i < 2; ++i)
    EXPECT_THAT(error_of([&] { model->text_tokens("red"); }), HasSubstr("no tokenizer")) << i;
}

TEST(JointModel, TheSchedulerSaysTheShift) {
  const auto shift = [](const char* scheduler) {
    return MochiFolder("{}", scheduler).open()->defaults().shift;
  };
  EXPECT_EQ(MochiFolder("{}").open()->defaults().shift, 1.0);
  EXPECT_EQ(shift(R"({"shift": 3, "flow_shift": 5, "invert_sigmas": true})"), 3.0);
  EXPECT_THAT(error_of([&] { shift(R"({"shift": 3})"); }),
              HasSubstr("scheduler_config.json: invert_sigmas false, expected true"));
}

TEST(JointModel, WhatAHunyuanVideoFolderLacksIsNamed) {
  const std::string config = R"({"_class_name": "HunyuanVideoTransformer3DModel",
      "num_attention_heads": 1, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
      "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "mlp_ratio": 2.0,
      "patch_size": 2, "patch_size_t": 1, "qk_norm": "rms_norm", "guidance_embeds": true,
      "text_embed_dim": 32, "pooled_projection_dim": 32, "rope_theta": 256.0,
      "rope_axes_dim": [4, 6, 6]})";
  const TempFolder temp;
  const fs::path folder = temp.path();
  NotingWeights source("w:", DType::f32);
  WeightReader reader(source);
  const HunyuanTransformer dit(hunyuan_config_from_json(config, "test"), reader);
  source.save(folder / "transformer", config);
  std::ofstream(folder / "model_index.json") << "{}";
  const auto refusal = [&] {
    return error_of([&] { Model::open(std::array{folder})->text_tokens("a cat"); });
  };
  EXPECT_THAT(refusal(), AllOf(HasSubstr("no text encoder"), HasSubstr("--text-encoder")));
  fs::create_directory_symlink(assets() / "lacuna-shapes" / "text_encoder",
                               folder / "text_encoder");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("no pooled text encoder"), HasSubstr("--pooled-encoder")));
  NotingWeights pooled("w:", DType::f32);
  const ClipTextEncoder clip(
      {.vocab_size = 20, .dim = 32, .num_heads = 2, .ffn_dim = 48, .num_layers = 1}, pooled,
      "text_model.");
  pooled.save(folder / "text_encoder_2", "{}");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("no tokenizer in"), HasSubstr("text_encoder/")));
  fs::create_directory_symlink(assets() / "lacuna-shapes" / "tokenizer", folder / "tokenizer");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("no tokenizer for"), HasSubstr("tokenizer_2")));
}

}  // namespace
}  // namespace lacuna::test
