// SPDX-License-Identifier: Apache-2.0
// Videos that begin with a picture, on a small checkpoint of the kind of Wan 2.2's 5B.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <fstream>

#include "lacuna/core/metrics.h"
#include "lacuna/core/threads.h"
#include "lacuna/models/pipeline/generation.h"
#include "lacuna/models/pipeline/pictures.h"
#include "lacuna/models/video/video_writer.h"
#include "lacuna/models/wan/dit.h"
#include "tests/support/error_of.h"
#include "tests/support/guarded_backend.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class FirstFrameTest : public testing::Test {
 protected:
  void SetUp() override {
    threads_ = num_threads();
    backend_ = make_backend("cpu");
    write_picture("a.png", 1);
  }
  void TearDown() override { set_num_threads(threads_); }

  // Of 40 x 40 pixels: what covers 32 x 16 is scaled and cut.
  fs::path write_picture(const std::string& name, int kind) const {
    std::vector<uint8_t> rgb;
    for (int i = 0; i < 3 * 40 * 40; ++i)
      rgb.push_back(static_cast<uint8_t>(kind * i * 7 + i / 40));
    const auto png = encode_png({.width = 40, .height = 40, .comment = ""}, rgb);
    std::ofstream(folder_ / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), std::ssize(png));
    return folder_ / name;
  }
  Request request(const std::string& dtype = "f32") const {
    Request r;
    r.model = "test";
    r.prompt = "A big red circle";
    r.image = (folder_ / "a.png").string();
    r.image_content = picture_content(r.image);
    r.width = 32, r.height = 16;
    r.frames = 5;  // 3 x 2 x 4 tokens
    r.sampler.num_steps = 3;
    r.sampler.shift = 3.0;
    r.guidance = r.guidance_low = 4.0;
    r.seed = 5;
    r.dtype = dtype;
    return r;
  }
  GenerationFiles files(const std::string& name) const {
    GenerationFiles f;
    f.video = folder_ / (name + ".y4m");
    f.latents = folder_ / (name + ".st");
    f.keep_latents = true;
    return f;
  }
  Tensor make(const Request& r, const std::string& name, const GenerationHooks& hooks = {},
              std::optional<SamplingState> resume = std::nullopt, int64_t max_memory = 0) {
    Context ctx{*backend_};
    ctx.cancel = &cancel_;
    generate(*model_, ctx, r, files(name), {}, max_memory, hooks, std::move(resume));
    return std::move(load_state(folder_ / (name + ".st")).state.latents);
  }
  Tensor encoded(const Request& r) {
    Context ctx{*backend_};
    return std::move(
        encode_pictures(*model_, ctx, r, read_pictures(*model_, r, false), {}).first_frame);
  }
  std::string bytes(const std::string& name) const {
    std::ifstream in(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const TempFolder temp_;
  const fs::path folder_ = temp_.path();
  const TinyCheckpoint checkpoint_{{.ti2v = true}};
  std::unique_ptr<Model> model_ = Model::open(std::array{checkpoint_.folder()});
  int threads_ = 1;
  std::unique_ptr<Backend> backend_;
  std::atomic<bool> cancel_{false};
};

TEST_F(FirstFrameTest, IsTheEncodersOutputToTheLastBit) {
  Request text = request();
  text.image = text.image_content = "";
  const Tensor without = make(text, "text");
  for (const char* dtype : {"f32", "bf16"}) {
    const Tensor latents = make(request(dtype), dtype);
    EXPECT_TRUE(same_bytes(first_frame_of(latents), encoded(request(dtype)))) << dtype;
    EXPECT_FALSE(same_bytes(first_frame_of(without), first_frame_of(latents)));
    EXPECT_GT(compare(latents, without).rel_l2, 0.01);
    EXPECT_EQ(bytes(std::string(dtype) + ".y4m").size(), bytes("text.y4m").size());
  }
  Request other = request();
  other.image = write_picture("b.png", 3).string();
  other.image_content = "";
  EXPECT_FALSE(same_bytes(make(other, "other"), make(request(), "same")));
}

// The other frames as well: one Euler step by hand.
TEST_F(FirstFrameTest, ItsTokensAreAtTimestepZeroInBothBranches) {
  Request r = request();
  r.sampler.kind = SamplerKind::euler;
  r.sampler.num_steps = 1;
  const Tensor latents = make(r, "one");
  const auto& s = latents.view().shape;
  Context ctx{*backend_};
  const PromptEmbeddings prompts = embed_prompts(*model_, ctx, r, {});
  const auto& network = dynamic_cast<const WanDit&>(model_->transformer(0));
  const auto sampler = make_sampler(r.sampler);
  const auto times =
      network.embed_times(ctx, std::array{0.0, static_cast<double>(sampler->timestep(0))});
  const TokenTime ranges[] = {{0, 8, &times[0]}, {8, 24, &times[1]}};
  Tensor x = initial_noise(r.seed, s[0], s[1], s[2], s[3]);
  put_first_frame(encoded(r), x);
  Engine engine(*backend_, {});
  Site site;
  site.num_steps = 1;
  site.sigma = static_cast<float>(sampler->sigma(0));
  Tensor velocity[2];
  for (const Branch branch : {Branch::cond, Branch::uncond}) {
    const bool positive = branch == Branch::cond;
    Tensor& v = velocity[positive ? 0 : 1];
    v = Tensor(DType::f32, {s[0], s[1], s[2], s[3]});
    site.branch = branch;
    const auto text = network.prepare_text(
        ctx, (positive ? prompts.positive : prompts.negative).tokens, network.config().text_len);
    network.forward(ctx, engine, site, x, ranges, text, v);
  }
  const auto delta = static_cast<float>(-sampler->sigma(0));
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float u = velocity[1].as<float>()[i];
    x.as<float>()[i] += delta * (u + 4.0f * (velocity[0].as<float>()[i] - u));
  }
  put_first_frame(encoded(r), x);
  EXPECT_LE(compare(latents, x).rel_l2, 1e-6);
}

TEST_F(FirstFrameTest, RefusesAVideoOfThePictureAlone) {
  Request r = request();
  r.frames = 1;
  EXPECT_EQ(error_of([&] { make(r, "one"); }),
            "image: a video of 1 frames, expected more; the first is the picture itself");
  r.image = r.image_content = "";
  EXPECT_NO_THROW(make(r, "one"));
}

TEST_F(FirstFrameTest, SameBytesForAnyThreadsAndMemory) {
  const Request r = request("bf16");
  make(r, "a");
  set_num_threads(threads_ == 1 ? 2 : 1);
  make(r, "b");
  backend_ = std::make_unique<GuardedBackend>(std::move(backend_));
  make(r, "c");
  for (const char* name : {"b", "c"}) {
    EXPECT_EQ(bytes(std::string(name) + ".st"), bytes("a.st")) << name;
    EXPECT_EQ(bytes(std::string(name) + ".y4m"), bytes("a.y4m")) << name;
  }
}

TEST_F(FirstFrameTest, ResumesBitForBitWithThatPictureOnly) {
  const Request r = request();
  make(r, "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 0; };
  const auto resume = [&] {
    LoadedState loaded = load_state(folder_ / "part.st");
    EXPECT_EQ(loaded.state.next_step, 1);
    make(loaded.request, "part", {}, std::move(loaded.state));
  };
  EXPECT_THROW(make(r, "part", hooks), Cancelled);
  cancel_ = false;
  const std::string stopped = bytes("part.st");
  write_picture("a.png", 2);
  EXPECT_THAT(error_of(resume),
              AllOf(HasSubstr("a.png has content "), HasSubstr("began with " + r.image_content)));
  write_picture("a.png", 1);
  resume();
  EXPECT_EQ(bytes("part.st"), bytes("whole.st"));
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
  // The latents hold what was encoded.
  std::ofstream(folder_ / "part.st", std::ios::binary) << stopped;
  fs::remove(folder_ / "a.png");
  const TinyCheckpoint decoder_only({.ti2v = true, .encoder = false});
  model_ = Model::open(std::array{decoder_only.folder()});
  resume();
  EXPECT_EQ(bytes("part.st"), bytes("whole.st"));
}

TEST_F(FirstFrameTest, SparseAttentionSeesTokensInRasterOrder) {
  Request r = request();
  r.attention = "xattention:block=16,stride=4,top_p=0.3,first_frame=1";
  const Tensor latents = make(r, "sparse");
  EXPECT_TRUE(same_bytes(first_frame_of(latents), encoded(r)));
}

TEST_F(FirstFrameTest, OnlyModelsThatSayItTakeAPicture) {
  EXPECT_EQ(model_->pictures().most, 1);
  EXPECT_EQ(Model::synthetic("wan2.2-ti2v-5b", DType::bf16)->pictures().most, 1);
  for (const char* name : {"tiny", "wan2.1-1.3b", "wan2.2-a14b"})
    EXPECT_EQ(Model::synthetic(name, DType::bf16)->pictures().most, 0) << name;
  const TinyCheckpoint text({.layers = 1});
  const auto model = Model::open(std::array{text.folder()});
  EXPECT_EQ(model->pictures().most, 0);
  Context ctx{*backend_};
  EXPECT_EQ(error_of([&] { generate(*model, ctx, request(), files("t"), {}, 0, {}); }),
            "image: Wan (custom) makes videos of text only, expected a model that takes a first "
            "picture (Wan2.2 TI2V-5B, I2V-A14B, Wan2.1 I2V-14B, FLF2V-14B)");
  std::ofstream(text.folder() / "model_index.json")
      << R"({"_class_name": "WanPipeline", "expand_timesteps": true})";
  EXPECT_EQ(Model::open(std::array{text.folder()})->pictures().most, 1);
}

TEST_F(FirstFrameTest, RefusesABadPictureBeforeStepZero) {
  Request r = request();
  r.image = (folder_ / "none.png").string();
  GenerationHooks hooks;
  hooks.plan_only = true;
  EXPECT_THAT(error_of([&] { make(r, "a", hooks); }), HasSubstr("none.png"));
  std::ofstream(folder_ / "words.png") << "a red ball";
  r.image = (folder_ / "words.png").string();
  EXPECT_THAT(error_of([&] { make(r, "a", hooks); }), HasSubstr("words.png is no picture"));
  EXPECT_FALSE(fs::exists(folder_ / "a.st"));
}

TEST_F(FirstFrameTest, ThePlanCountsTheEncoder) {
  MemoryPlan plan;
  plan.weights = plan.activations = plan.decoder = plan.passing = 1;
  plan.encoder = 7;
  EXPECT_EQ(plan.peak(), plan.encoder);
  EXPECT_EQ(plan.least(), plan.encoder);

  Request r = request();
  r.width = r.height = 512;
  r.frames = 5;
  const int64_t needs = model_->encoder().memory_bytes({1, 512, 512}, DType::f32);
  EXPECT_GT(needs, 512 * 512 * 4);
  GenerationHooks hooks;
  hooks.plan_only = true;
  std::string line;
  hooks.note = [&](const std::string& note) { line = note; };
  const auto plan_run = [&] {
    Context ctx{*backend_};
    generate(*model_, ctx, r, files("a"), {}, 0, hooks);
  };
  plan_run();
  EXPECT_THAT(line, HasSubstr(fmt::format("encoder {:.1f} MiB", needs / 1048576.0)));
  r.image = r.image_content = "";
  plan_run();
  EXPECT_EQ(line.find("encoder"), std::string::npos);
}

}  // namespace
}  // namespace lacuna::test
