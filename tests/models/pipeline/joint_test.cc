// SPDX-License-Identifier: Apache-2.0
// Generation with networks whose text is in self-attention: Mochi and HunyuanVideo.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lacuna/core/error.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/networks.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;

// The prompt has more text tokens than the negative one.
Request joint_request(const std::string& preset) {
  Request r;
  r.model = "test";
  r.prompt = "a red fox runs over wet grass at dawn";
  r.negative_prompt = "dull and grey";
  r.width = r.height = 64;
  r.frames = preset == "mochi-tiny" ? 13 : 9;  // 3 x 4 x 4 tokens
  r.sampler.kind = SamplerKind::euler;
  r.sampler.convention =
      preset == "mochi-tiny" ? SigmaConvention::linear_quadratic : SigmaConvention::unit;
  r.sampler.num_steps = 4;
  r.guidance = r.guidance_low = 3.0;
  if (preset != "mochi-tiny") r.embedded_guidance = 6.0;
  return r;
}

class JointTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { backend_ = make_backend("cpu"); }
  GenerationResult make(const Request& r, const std::string& name,
                        const GenerationHooks& hooks = {},
                        std::optional<SamplingState> resume = std::nullopt) {
    const auto model = Model::synthetic(GetParam(), DType::bf16);
    Context ctx{*backend_, DType::bf16};
    ctx.cancel = &cancel_;
    GenerationFiles files;
    files.latents = folder_.path() / name;
    return generate(*model, ctx, r, files, {}, 0, hooks, std::move(resume));
  }
  std::vector<float> latents(const std::string& name) const {
    const LoadedState loaded = load_state(folder_.path() / name);
    const float* data = loaded.state.latents.as<float>();
    return {data, data + loaded.state.latents.numel()};
  }

  const test::TempFolder folder_;
  std::unique_ptr<Backend> backend_;
  std::atomic<bool> cancel_{false};
};

TEST_P(JointTest, GoesOnFromEveryStepWithMasksOfBothTextLengths) {
  for (const auto& [attention, skip] :
       {std::pair("xattention:top_p=0.6,block=8,stride=4,refresh=drift", ""),
        {"sparge:block_q=8,block_k=8,refresh=carry", "running_max:lambda=0.3"},
        {"svg2:q_clusters=4,k_clusters=6", ""}}) {
    SCOPED_TRACE(attention);
    Request r = joint_request(GetParam());
    r.attention = attention, r.skip = skip;
    const GenerationResult whole = make(r, "whole");
    EXPECT_LT(whole.trace.pv_density(), 0.999) << "nothing was dropped, so nothing is carried";
    for (int stop = 1; stop < 4; ++stop) {
      GenerationHooks hooks;
      hooks.step = [&](const StepReport& report) { cancel_ = report.step + 1 == stop; };
      EXPECT_THROW(make(r, "part", hooks), Cancelled);
      cancel_ = false;
      LoadedState loaded = load_state(folder_.path() / "part");
      ASSERT_EQ(loaded.state.next_step, stop);
      make(loaded.request, "part", {}, std::move(loaded.state));
      EXPECT_EQ(latents("part"), latents("whole")) << "from step " << stop;
    }
  }
}

TEST_P(JointTest, EachBranchHasTheTextTokensOfItsPrompt) {
  const Request r = joint_request(GetParam());
  const auto model = Model::synthetic(GetParam(), DType::bf16);
  const TextTokens expected = model->text_tokens(r);
  EXPECT_GT(expected.cond, expected.uncond);
  std::map<Branch, std::set<int64_t>> seen;
  GenerationHooks hooks;
  hooks.inputs = [&](const Site& site, const VideoGrid& grid, int64_t text, const TensorView& q,
                     const TensorView&, const TensorView&) {
    seen[site.branch].insert(text);
    EXPECT_EQ(q.shape[1], grid.tokens() + text);
  };
  make(r, "seen", hooks);
  EXPECT_EQ(seen, (std::map<Branch, std::set<int64_t>>{{Branch::cond, {expected.cond}},
                                                       {Branch::uncond, {expected.uncond}}}));
}

// A run that goes on says so when its prompts read differently: the pooled row counts where there
// is one, and files of families without have the hash that they always had.
TEST_P(JointTest, RemembersEveryPartOfItsPrompts) {
  const Request r = joint_request(GetParam());
  make(r, "made");
  const auto model = Model::synthetic(GetParam(), DType::bf16);
  Context ctx{*backend_, DType::bf16};
  std::string tokens;
  for (const std::string& prompt : {r.prompt, r.negative_prompt}) {
    const PromptEmbedding embedding = model->embed_prompt(ctx, prompt, {});
    const TensorView view = embedding.tokens.view();
    tokens += fmt::format("{:016x}", fnv1a64({static_cast<const char*>(view.data),
                                              static_cast<size_t>(view.numel()) * sizeof(float)}));
  }
  const uint64_t saved = load_state(folder_.path() / "made").state.prompts;
  EXPECT_EQ(saved == fnv1a64(tokens), model->architecture().sizes().pooled_dim == 0);
}

TEST_P(JointTest, ADenseMaskIsDenseForTextToo) {
  Request r = joint_request(GetParam());
  r.dtype = "f32";
  make(r, "dense");
  r.attention = "xattention:top_p=1,block=8,stride=4";
  make(r, "full");
  const std::vector<float> dense = latents("dense"), full = latents("full");
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < dense.size(); ++i) {
    error += (dense[i] - full[i]) * (dense[i] - full[i]);
    size += dense[i] * dense[i];
  }
  EXPECT_LT(std::sqrt(error / size), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Families, JointTest, testing::Values("mochi-tiny", "hunyuanvideo-tiny"));

// Answers with its input, and notes the times that it was asked for.
class Echo final : public VideoTransformer {
 public:
  mutable std::vector<double> times;
  mutable double guidance = -1.0;

  std::span<const TensorView> weights() const override { return {}; }
  std::unique_ptr<Times> prepare_times(Context&, std::span<const double> timesteps,
                                       double scale) const override {
    times.assign(timesteps.begin(), timesteps.end());
    guidance = scale;
    return std::make_unique<Times>();
  }
  std::unique_ptr<Prompt> prepare_prompt(Context&, const PromptEmbedding&) const override {
    return std::make_unique<Prompt>();
  }
  void forward(Context&, Engine&, const Input& input, const LayerPart* part,
               const TensorView& velocity) const override {
    if (part != nullptr && part->end < 2) return;
    std::copy_n(input.x.as<float>(), input.x.numel(), velocity.as<float>());
  }
};

// Velocities of step 0, whole and in two parts, and the latents after it.
std::vector<float> velocity_of(const Echo& network, bool reversed, const Request& request,
                               bool parts) {
  const auto backend = make_backend("ref");
  Context ctx{*backend};
  Engine engine(*backend, {});
  const PromptEmbeddings prompts;
  TransformerSizes sizes;
  sizes.num_layers = 2;
  sizes.reversed_time = reversed;
  const SamplingInputs inputs{[&](int) -> const VideoTransformer& { return network; }, 1, sizes,
                              request, prompts};
  SamplingState state;
  state.latents = initial_noise(1, 1, 4, 2, 2);
  Denoiser denoiser(ctx, inputs, state);
  const Tensor velocity(DType::f32, {1, 4, 2, 2});
  if (parts) {
    for (const auto& [begin, end] : {std::pair(0, 1), {1, 2}}) {
      const LayerPart part{begin, end, {}};
      denoiser.conditional(engine, velocity, &part);
    }
  } else {
    denoiser.conditional(engine, velocity);
  }
  return {velocity.as<float>(), velocity.as<float>() + velocity.numel()};
}

TEST(ReversedTime, RunsFromNoiseAtZeroAndTurnsTheVelocity) {
  Request request;
  request.guidance = request.guidance_low = 1.0;
  request.embedded_guidance = 2.5;
  request.sampler.kind = SamplerKind::euler;
  request.sampler.num_steps = 4;
  const auto sampler = make_sampler(request.sampler);
  const Echo forward, reversed;
  const std::vector<float> plain = velocity_of(forward, false, request, false);
  EXPECT_EQ(forward.guidance, 2.5);
  for (const bool parts : {false, true}) {
    const std::vector<float> turned = velocity_of(reversed, true, request, parts);
    ASSERT_EQ(reversed.times.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(forward.times[static_cast<size_t>(i)], sampler->timestep(i));
      EXPECT_EQ(reversed.times[static_cast<size_t>(i)], 1000.0 * (1.0 - sampler->sigma(i)));
    }
    ASSERT_EQ(turned.size(), plain.size());
    for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(turned[i], -plain[i]);
  }
}

TEST(EmbeddedGuidance, ZeroIsAScaleAndNoneIsNone) {
  Request request;
  EXPECT_EQ(request.to_json().find("embedded_guidance"), std::string::npos);
  EXPECT_EQ(Request::from_json(request.to_json()).embedded_guidance, std::nullopt);
  request.embedded_guidance = 0.0;
  EXPECT_EQ(Request::from_json(request.to_json()).embedded_guidance, 0.0);
  EXPECT_EQ(Model::synthetic("mochi-tiny", DType::bf16)->defaults().embedded_guidance,
            std::nullopt);
  EXPECT_EQ(Model::synthetic("hunyuanvideo-tiny", DType::bf16)->defaults().embedded_guidance, 6.0);
}

// Every tensor that a config reads, empty: names and config decide here.
CheckpointPart part_of(const fs::path& folder, TensorSet set, const std::string& config,
                       const std::vector<std::string>& names) {
  const Tensor one(DType::f32, {1});
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const std::string& name : names) tensors.emplace_back(name, one);
  CheckpointPart part;
  part.tensors = set;
  part.files = {folder / "diffusion_pytorch_model.safetensors"};
  write_safetensors(part.files.front(), tensors, {});
  part.config_file = folder / "config.json";
  part.config_text = config;
  part.config = parse_config_json(config, "config");
  return part;
}

TEST(JointNetworks, AConfigOfFewerLayersThanThereAreIsRefused) {
  const test::TempFolder folder;
  const auto architecture = [&](TensorSet set, const std::string& config,
                                const std::vector<std::string>& names) {
    const CheckpointPart part = part_of(folder.path(), set, config, names);
    const auto source = open_network(part);
    return read_architecture(part, *source);
  };
  const std::string mochi =
      R"({"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64,
          "pooled_projection_dim": 48, "in_channels": 12, "text_embed_dim": 64,
          "time_embed_dim": 64})";
  const std::vector<std::string> two = {"transformer_blocks.0.attn1.to_q.weight",
                                        "transformer_blocks.1.attn1.to_q.weight"};
  EXPECT_EQ(architecture(TensorSet::mochi_diffusers, mochi, two)->sizes().num_layers, 2);
  EXPECT_THAT(test::error_of([&] {
                architecture(TensorSet::mochi_diffusers, mochi,
                             {two[0], two[1], "transformer_blocks.2.attn1.to_q.weight"});
              }),
              testing::HasSubstr("`num_layers` is 2, expected all layers of"));
  const std::string hunyuan =
      R"({"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1,
          "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 4,
          "out_channels": 4, "pooled_projection_dim": 48, "text_embed_dim": 64,
          "rope_axes_dim": [16, 24, 24]})";
  // By these the naming is told.
  const std::vector<std::string> first = {"transformer_blocks.0.attn.add_q_proj.weight",
                                          "context_embedder.proj_in.weight"};
  EXPECT_EQ(architecture(TensorSet::hunyuan_diffusers, hunyuan, first)->sizes().num_layers, 2);
  for (const auto& [field, name] :
       {std::pair("`num_layers` is 1", "transformer_blocks.1.attn.to_q.weight"),
        {"`num_single_layers` is 1", "single_transformer_blocks.1.attn.to_q.weight"},
        {"`num_refiner_layers` is 1",
         "context_embedder.token_refiner.refiner_blocks.1.attn.to_q.weight"}})
    EXPECT_THAT(test::error_of([&] {
                  architecture(TensorSet::hunyuan_diffusers, hunyuan, {first[0], first[1], name});
                }),
                testing::HasSubstr(field));
}

}  // namespace
}  // namespace lacuna
