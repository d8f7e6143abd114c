// SPDX-License-Identifier: Apache-2.0
// Image-to-video through channels of a condition and image keys, on small checkpoints of the kinds
// of Wan 2.2's A14B and Wan 2.1's I2V and FLF2V.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <fstream>
#include <limits>

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

// Two frames of the video in latent frames 1 and 2, by hand: 9 frames are 1, 4 and 4.
TEST(ConditionMask, TellsWhichFramesAreKnown) {
  Tensor mask(DType::f32, {4, 3, 1, 2});
  const auto values = [&] {
    return std::vector<float>(mask.as<float>(), mask.as<float>() + mask.numel());
  };
  // [channel][frame][cell]
  fill_mask(false, mask);
  EXPECT_EQ(values(), (std::vector<float>{1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0,  //
                                          1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0}));
  fill_mask(true, mask);
  EXPECT_EQ(values(), (std::vector<float>{1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0,  //
                                          1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1}));
}

class ConditionTest : public testing::Test {
 protected:
  void SetUp() override {
    backend_ = make_backend("cpu");
    write_picture("a.png", 1);
    write_picture("b.png", 3);
  }

  fs::path write_picture(const std::string& name, int kind) const {
    std::vector<uint8_t> rgb;
    for (int i = 0; i < 3 * 40 * 40; ++i)
      rgb.push_back(static_cast<uint8_t>(kind * i * 7 + i / 40));
    const auto png = encode_png({.width = 40, .height = 40, .comment = ""}, rgb);
    std::ofstream(folder_ / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(png.data()), std::ssize(png));
    return folder_ / name;
  }
  Request request(bool last = false, const std::string& dtype = "f32") const {
    Request r;
    r.model = "test";
    r.prompt = "A big red circle";
    r.image = (folder_ / "a.png").string();
    r.image_content = picture_content(r.image);
    if (last) r.last_image = (folder_ / "b.png").string();
    r.last_image_content = picture_content(r.last_image);
    r.width = 32, r.height = 16;
    r.frames = 9;  // 3 x 2 x 4 tokens
    r.sampler.num_steps = 3;
    r.sampler.shift = 3.0;
    r.guidance = r.guidance_low = 4.0;
    r.boundary = 0.8;
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
  SamplingState make(Model& model, const Request& r, const std::string& name,
                     const GenerationHooks& hooks = {},
                     std::optional<SamplingState> resume = std::nullopt) {
    Context ctx{*backend_};
    ctx.cancel = &cancel_;
    generate(model, ctx, r, files(name), {}, 0, hooks, std::move(resume));
    return std::move(load_state(folder_ / (name + ".st")).state);
  }
  std::string bytes(const std::string& name) const {
    std::ifstream in(folder_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const TempFolder temp_;
  const fs::path folder_ = temp_.path();
  std::unique_ptr<Backend> backend_;
  std::atomic<bool> cancel_{false};
};

TEST_F(ConditionTest, IsTheMaskAndTheEncodedVideoOfGreyFrames) {
  const TinyCheckpoint checkpoint({.experts = 2, .i2v = true});
  const auto model = Model::open(std::array{checkpoint.folder()});
  EXPECT_EQ(model->architecture().sizes().latent_channels, 4);
  EXPECT_EQ(model->architecture().sizes().condition_channels, 8);
  for (const bool last : {false, true}) {
    const SamplingState state = make(*model, request(last), "a");
    Tensor expected(DType::f32, {8, 3, 4, 8});
    fill_mask(last, expected.view().slice(0, 4));
    const Tensor video = Tensor::zeros(DType::f32, {3, 9, 16, 32});
    const auto place = [&](const char* file, int64_t at) {
      const Picture picture = cover(read_picture(folder_ / file), 32, 16);
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t i = 0; i < 16 * 32; ++i)
          video.as<float>()[(c * 9 + at) * 16 * 32 + i] =
              picture.rgb[static_cast<size_t>(3 * i + c)] / 127.5f - 1.0f;
    };
    place("a.png", 0);
    if (last) place("b.png", 8);
    Context ctx{*backend_};
    const Tensor latents = model->encoder().encode(ctx, video);
    std::copy_n(latents.as<float>(), latents.numel(), expected.as<float>() + 4 * 3 * 4 * 8);
    EXPECT_LE(compare(state.condition, expected).max_abs, 1e-5);
    EXPECT_TRUE(state.image.empty());
    EXPECT_FALSE(same_bytes(first_frame_of(state.latents), first_frame_of(latents)));
  }
}

// One Euler step by hand: the condition is behind the latent in both branches.
TEST_F(ConditionTest, IsSeenInBothBranchesOfEveryStep) {
  const TinyCheckpoint checkpoint({.i2v = true});
  const auto model = Model::open(std::array{checkpoint.folder()});
  Request r = request();
  r.sampler.kind = SamplerKind::euler;
  r.sampler.num_steps = 1;
  const SamplingState state = make(*model, r, "one");
  const auto& s = state.latents.view().shape;
  Context ctx{*backend_};
  const PromptEmbeddings prompts = embed_prompts(*model, ctx, r, {});
  const auto& network = dynamic_cast<const WanDit&>(model->transformer(0));
  const auto sampler = make_sampler(r.sampler);
  const auto times = network.embed_times(ctx, std::array{double{sampler->timestep(0)}});
  const Tensor noise = initial_noise(r.seed, s[0], s[1], s[2], s[3]);
  Tensor x(DType::f32, {12, s[1], s[2], s[3]});
  std::copy_n(noise.as<float>(), noise.numel(), x.as<float>());
  std::copy_n(state.condition.as<float>(), state.condition.numel(), x.as<float>() + noise.numel());
  Engine engine(*backend_, {});
  Tensor velocity[2];
  for (const bool positive : {true, false}) {
    Tensor& v = velocity[positive ? 0 : 1];
    v = Tensor(DType::f32, {s[0], s[1], s[2], s[3]});
    Site site;
    site.num_steps = 1;
    site.sigma = static_cast<float>(sampler->sigma(0));
    site.branch = positive ? Branch::cond : Branch::uncond;
    const auto text = network.prepare_text(
        ctx, (positive ? prompts.positive : prompts.negative).tokens, network.config().text_len);
    network.forward(ctx, engine, site, x, times[0], text, v);
  }
  for (int64_t i = 0; i < noise.numel(); ++i) {
    const float u = velocity[1].as<float>()[i];
    noise.as<float>()[i] -=
        static_cast<float>(sampler->sigma(0)) * (u + 4.0f * (velocity[0].as<float>()[i] - u));
  }
  EXPECT_LE(compare(state.latents, noise).rel_l2, 1e-6);
}

TEST_F(ConditionTest, SameBytesForAnyThreadsAndMemory) {
  const TinyCheckpoint checkpoint({.experts = 2, .i2v = true});
  const auto model = Model::open(std::array{checkpoint.folder()});
  const Request r = request(true, "bf16");
  make(*model, r, "a");
  const int threads = num_threads();
  set_num_threads(threads == 1 ? 2 : 1);
  make(*model, r, "b");
  set_num_threads(threads);
  backend_ = std::make_unique<GuardedBackend>(std::move(backend_));
  make(*model, r, "c");
  for (const char* name : {"b", "c"}) {
    EXPECT_EQ(bytes(std::string(name) + ".st"), bytes("a.st")) << name;
    EXPECT_EQ(bytes(std::string(name) + ".y4m"), bytes("a.y4m")) << name;
  }
}

TEST_F(ConditionTest, ResumesBitForBitWithoutPicturesAndEncoder) {
  const TinyCheckpoint checkpoint({.experts = 2, .i2v = true});
  auto model = Model::open(std::array{checkpoint.folder()});
  make(*model, request(true), "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 0; };
  EXPECT_THROW(make(*model, request(true), "part", hooks), Cancelled);
  cancel_ = false;
  const auto resume = [&] {
    LoadedState loaded = load_state(folder_ / "part.st");
    EXPECT_EQ(loaded.state.next_step, 1);
    make(*model, loaded.request, "part", {}, std::move(loaded.state));
  };
  write_picture("b.png", 2);
  EXPECT_THAT(error_of(resume), AllOf(HasSubstr("b.png has content "), HasSubstr("began with")));
  fs::remove(folder_ / "a.png"), fs::remove(folder_ / "b.png");
  const TinyCheckpoint decoder_only({.experts = 2, .i2v = true, .encoder = false});
  model = Model::open(std::array{decoder_only.folder()});
  resume();
  EXPECT_EQ(bytes("part.st"), bytes("whole.st"));
  EXPECT_EQ(bytes("part.y4m"), bytes("whole.y4m"));
}

// The rows of an image encoder are in the file as well.
TEST_F(ConditionTest, ResumesBitForBitWithTheRowsOfPictures) {
  const auto model = Model::synthetic("tiny-i2v", DType::f32);
  const Request r = request();
  const SamplingState whole = make(*model, r, "whole");
  GenerationHooks hooks;
  hooks.step = [&](const StepReport& report) { cancel_ = report.step == 1; };
  EXPECT_THROW(make(*model, r, "part", hooks), Cancelled);
  cancel_ = false;
  fs::remove(folder_ / "a.png");
  LoadedState loaded = load_state(folder_ / "part.st");
  EXPECT_EQ(loaded.state.next_step, 2);
  make(*model, loaded.request, "part", {}, std::move(loaded.state));
  EXPECT_EQ(bytes("part.st"), bytes("whole.st"));
  // And they are looked at.
  LoadedState other = load_state(folder_ / "whole.st");
  other.state.next_step = 0;
  other.state.sampler.clear();
  other.state.latents = initial_noise(r.seed, 16, 3, 2, 4);
  std::fill_n(other.state.image.as<float>(), other.state.image.numel(), 0.0f);
  EXPECT_GT(
      compare(make(*model, r, "other", {}, std::move(other.state)).latents, whole.latents).rel_l2,
      1e-3);
}

TEST_F(ConditionTest, AStateWithoutItIsRefused) {
  const TinyCheckpoint checkpoint({.i2v = true});
  const auto model = Model::open(std::array{checkpoint.folder()});
  for (const bool other : {false, true}) {
    SamplingState state = make(*model, request(), "a");
    state.next_step = 0;
    state.sampler.clear();
    state.condition = other ? Tensor::zeros(DType::f32, {8, 3, 4, 9}) : Tensor();
    EXPECT_THAT(error_of([&] { make(*model, request(), "b", {}, std::move(state)); }),
                HasSubstr("expected [8, 3, 4, 8]"));
  }
}

// Decoded, NaN would be a picture; in a condition it would show only after a whole step.
TEST_F(ConditionTest, AFileWithInfinityOrNanIsRefused) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto refusal = [&](float latent, float condition, float row, float sampled) {
    SamplingState state;
    state.latents = Tensor::zeros(DType::f32, {4, 3, 4, 8});
    state.condition = Tensor::zeros(DType::f32, {8, 3, 4, 8});
    state.image = Tensor::zeros(DType::f32, {257, 48});
    state.sampler.emplace_back("x0", Tensor::zeros(DType::f32, {384}));
    state.latents.as<float>()[383] = latent;
    state.condition.as<float>()[767] = condition;
    state.image.as<float>()[0] = row;
    state.sampler[0].second.as<float>()[1] = sampled;
    save_state(folder_ / "not finite", request(), state);
    return error_of([&] { load_state(folder_ / "not finite"); });
  };
  EXPECT_EQ(refusal(1, 1, 1, 1), "");
  const auto says = [](const std::string& name) {
    return HasSubstr("not finite " + name + " holds infinity or NaN, expected finite numbers");
  };
  EXPECT_THAT(refusal(nan, 1, 1, 1), says("latents"));
  EXPECT_THAT(refusal(1, -infinity, 1, 1), says("condition"));
  EXPECT_THAT(refusal(1, 1, infinity, 1), says("image"));
  EXPECT_THAT(refusal(1, 1, 1, nan), says("sampler.x0"));
}

TEST_F(ConditionTest, RefusesPicturesThatTheModelDoesNotTake) {
  const auto refused = [&](const TinyKind& kind, const Request& r) {
    const TinyCheckpoint checkpoint(kind);
    const auto model = Model::open(std::array{checkpoint.folder()});
    return error_of([&] { make(*model, r, "a"); });
  };
  Request none = request();
  none.image = none.image_content = "";
  EXPECT_EQ(refused({.i2v = true, .layers = 1}, none),
            "image: none, Wan (custom) makes videos of a picture; expected one (--image)");
  none.last_image = request(true).last_image;
  EXPECT_THAT(refused({.i2v = true, .layers = 1}, none), HasSubstr("image: none"));
  EXPECT_THAT(refused({.layers = 1}, request()), HasSubstr("makes videos of text only"));
  EXPECT_THAT(refused({.ti2v = true, .layers = 1}, request(true)),
              HasSubstr("takes a first picture only"));
  EXPECT_THAT(refused({.i2v = true, .image_dim = 48, .layers = 1}, request(true)),
              HasSubstr("takes a first picture only"));
  EXPECT_THAT(
      refused({.i2v = true, .image_dim = 48, .image_positions = 14, .layers = 1}, request()),
      HasSubstr("last image: none, Wan (custom) makes videos between two pictures"));
  Request one_frame = request(true);
  one_frame.frames = 1;
  EXPECT_THAT(refused({.i2v = true, .layers = 1}, one_frame), HasSubstr("1 frame"));
  EXPECT_FALSE(fs::exists(folder_ / "a.st"));
}

TEST_F(ConditionTest, ThePlanCountsTheEncoderOfAWholeVideo) {
  const TinyCheckpoint checkpoint({.i2v = true});
  const auto model = Model::open(std::array{checkpoint.folder()});
  Request r = request();
  r.width = r.height = 256;
  const int64_t needs = model->encoder().memory_bytes({9, 256, 256}, DType::f32);
  EXPECT_GT(needs, model->encoder().memory_bytes({1, 256, 256}, DType::f32));
  EXPECT_EQ(needs, model->encoder().memory_bytes({81, 256, 256}, DType::f32));
  EXPECT_EQ(encoded_pictures_bytes(*model, r), needs);
  GenerationHooks hooks;
  hooks.plan_only = true;
  std::string line;
  hooks.note = [&](const std::string& note) { line = note; };
  Context ctx{*backend_};
  generate(*model, ctx, r, files("a"), {}, 0, hooks);
  EXPECT_THAT(line, HasSubstr(fmt::format("encoder {:.1f} MiB", needs / 1048576.0)));
}

TEST_F(ConditionTest, SyntheticModelsTakePictures) {
  const auto model = Model::synthetic("tiny-i2v", DType::bf16);
  EXPECT_EQ(model->pictures().least, 1);
  EXPECT_EQ(model->pictures().most, 1);
  std::vector<std::pair<int64_t, int64_t>> encoded;
  GenerationHooks hooks;
  hooks.encode = [&](int64_t done, int64_t total) { encoded.emplace_back(done, total); };
  const SamplingState state = make(*model, request(), "a", hooks);
  EXPECT_EQ(state.condition.view().shape[0], 20);
  EXPECT_EQ(state.image.view().shape[1], 64);
  EXPECT_EQ(encoded.back(), std::pair(int64_t{9}, int64_t{9}));
  write_picture("a.png", 2);
  EXPECT_FALSE(same_bytes(make(*model, request(), "b").image, state.image));
  for (const auto& [name, least, most] : {std::tuple{"wan2.2-i2v-a14b", 1, 2},
                                          {"wan2.1-i2v-14b", 1, 1},
                                          {"wan2.1-flf2v-14b", 2, 2}}) {
    const auto large = Model::synthetic(name, DType::bf16);
    EXPECT_EQ(large->pictures().least, least) << name;
    EXPECT_EQ(large->pictures().most, most) << name;
    EXPECT_EQ(large->num_experts(), name == std::string_view("wan2.2-i2v-a14b") ? 2 : 1);
  }
  const FamilyDefaults d = Model::synthetic("wan2.2-i2v-a14b", DType::bf16)->defaults();
  EXPECT_EQ(d.steps, 40);
  EXPECT_EQ(std::tuple(d.shift, d.guidance, d.guidance_low, d.boundary),
            std::tuple(5.0, 3.5, 3.5, 0.9));
  EXPECT_EQ(Model::synthetic("wan2.1-flf2v-14b", DType::bf16)->defaults().shift_at(832, 480), 16.0);
  const FamilyDefaults one = Model::synthetic("wan2.1-i2v-14b", DType::bf16)->defaults();
  EXPECT_EQ(one.shift_at(1280, 720), 5.0);
  EXPECT_EQ(one.shift_at(480, 832), 3.0);
}

}  // namespace
}  // namespace lacuna::test
