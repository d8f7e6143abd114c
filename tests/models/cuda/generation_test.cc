// SPDX-License-Identifier: Apache-2.0
// Whole generations on the CUDA backend, on the emulator: against the CPU backend, and what crosses
// between host and device.
#include "lacuna/models/pipeline/generation.h"

#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <map>
#include <utility>

#include "lacuna/backend/cuda/cuda_backend.h"
#include "lacuna/backend/cuda/emulator/emulated_device.h"
#include "lacuna/core/error.h"
#include "lacuna/core/metrics.h"
#include "lacuna/core/rng.h"
#include "lacuna/core/safetensors.h"
#include "lacuna/models/video/video_writer.h"
#include "tests/support/compare.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using cuda::Family;
using cuda::emulator::Transfer;

constexpr const char* kHaste =
    "xattention:block=16,stride=4,top_p=0.6,refresh=drift,relative=0,delta=30";

Request request(const std::string& dtype, const std::string& attention = "dense") {
  Request r;
  r.model = "test";
  r.prompt = "A big red circle";
  r.width = 32, r.height = 16;
  r.frames = 3;  // 2 x 4 x 8 tokens
  r.sampler.num_steps = 2;
  r.sampler.shift = 3.0;
  r.guidance = r.guidance_low = 4.0;
  r.boundary = 0.7;
  r.seed = 5;
  r.dtype = dtype;
  r.attention = attention;
  return r;
}

// What a generation left behind.
struct Made {
  Tensor latents;
  std::string video;  // the bytes of a .y4m file
  GenerationResult result;
  std::vector<size_t> transfers;  // noted when each step was done
  std::string note;               // of the memory plan
};

Made make(Backend& backend, Model& model, const Request& r, int64_t max_memory = 0,
          const cuda::emulator::Transfers* noted = nullptr) {
  Made made;
  Context ctx{backend};
  const test::TempFolder folder;
  GenerationFiles files;
  files.video = folder.path() / "clip.y4m";
  files.latents = folder.path() / "latents.safetensors";
  files.keep_latents = true;
  GenerationHooks hooks;
  hooks.note = [&](const std::string& line) { made.note += line; };
  hooks.step = [&](const StepReport&) {
    if (noted != nullptr) made.transfers.push_back(noted->size());
  };
  made.result = generate(model, ctx, r, files, {}, max_memory, hooks);
  made.latents = std::move(load_state(files.latents).state.latents);
  std::ifstream video(files.video, std::ios::binary);
  made.video.assign(std::istreambuf_iterator<char>(video), {});
  return made;
}

// An emulated GPU that tells what crosses.
struct Gpu {
  cuda::emulator::Transfers noted;
  std::unique_ptr<Backend> backend;
  explicit Gpu(Family family = Family::sm90, std::optional<size_t> limit = std::nullopt)
      : backend(make_cuda_backend(cuda::emulator::make_emulated_device(family, 1, true, &noted),
                                  limit)) {}
};

std::unique_ptr<Model> open(const TinyCheckpoint& checkpoint) {
  auto model = Model::open(std::array{checkpoint.folder()});
  if (const fs::path lora = checkpoint.folder() / "lora.safetensors"; fs::exists(lora))
    model->add_lora({lora, 0.7});
  return model;
}

// LoRA that open() gives the model.
void write_lora(const TinyCheckpoint& checkpoint) {
  std::vector<std::pair<std::string, Tensor>> owned;
  for (const std::string stem :
       {"blocks.0.attn1.to_q", "blocks.0.attn2.to_k", "blocks.0.ffn.net.2"}) {
    const int64_t in = stem.ends_with("net.2") ? 192 : 128;
    owned.emplace_back(stem + ".lora_A.weight", Tensor(DType::f32, {4, in}));
    owned.emplace_back(stem + ".lora_B.weight", Tensor(DType::f32, {128, 4}));
  }
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const auto& [name, tensor] : owned) {
    fill_hash(name, 0.0, 0.2, {tensor.as<float>(), static_cast<size_t>(tensor.numel())});
    tensors.emplace_back(name, tensor.view());
  }
  write_safetensors(checkpoint.folder() / "lora.safetensors", tensors);
}

// Distances of pixels in levels of 255: the largest and the mean.
std::pair<int, double> pixels_apart(const Made& a, const Made& b) {
  EXPECT_EQ(a.video.size(), b.video.size());
  int most = 0;
  double sum = 0.0;
  for (size_t i = 0; i < std::min(a.video.size(), b.video.size()); ++i) {
    const int apart = std::abs(static_cast<uint8_t>(a.video[i]) - static_cast<uint8_t>(b.video[i]));
    most = std::max(most, apart);
    sum += apart;
  }
  return {most, sum / static_cast<double>(a.video.size())};
}

int64_t reused(const Made& made) {
  int64_t heads = 0;
  for (const TraceEntry& entry : made.result.trace.entries())
    heads += entry.num_heads - entry.heads_refreshed;
  return heads;
}

void expect_as_on_the_cpu(const TinyCheckpoint& checkpoint, const Request& r, Family family) {
  const auto model = open(checkpoint);
  const auto cpu = make_backend("cpu");
  const Made expected = make(*cpu, *model, r);
  Gpu gpu(family);
  const Made made = make(*gpu.backend, *model, r);
  const DType dtype = compute_dtype(r);
  EXPECT_TRUE(close(made.latents, expected.latents, generation(dtype), r.attention));
  const auto [most, mean] = pixels_apart(made, expected);
  EXPECT_LE(most, dtype == DType::f32 ? 1 : 64) << r.attention;
  EXPECT_LE(mean, dtype == DType::f32 ? 0.01 : 2.0) << r.attention;
  EXPECT_GT(made.video.size(), static_cast<size_t>(r.frames * r.width * r.height));
  if (r.attention == "dense") return;
  EXPECT_NEAR(made.result.trace.qk_density(), expected.result.trace.qk_density(), 0.02);
  EXPECT_LT(made.result.trace.qk_density(), 0.9);
  EXPECT_GT(reused(made), 0);
}

TEST(CudaGeneration, F32IsThatOfTheCpu) {
  const TinyCheckpoint checkpoint({.storage = DType::f32, .layers = 1});
  expect_as_on_the_cpu(checkpoint, request("f32", kHaste), Family::sm80);
}

TEST(CudaGeneration, Bf16IsThatOfTheCpu) {
  const TinyCheckpoint checkpoint({.storage = DType::f16, .layers = 1});
  expect_as_on_the_cpu(checkpoint, request("bf16", kHaste), Family::sm80);
}

// Of weights in f16, which a kernel decodes before the sum.
TEST(CudaGeneration, WithLoraItIsThatOfTheCpu) {
  const TinyCheckpoint checkpoint({.storage = DType::f16, .layers = 1});
  write_lora(checkpoint);
  for (const char* dtype : {"f32", "bf16"})
    expect_as_on_the_cpu(checkpoint, request(dtype), Family::sm80);
}

TEST(CudaGeneration, Ti2vIsThatOfTheCpu) {
  const TinyCheckpoint checkpoint({.ti2v = true, .layers = 1});
  Request r = request("bf16");
  r.width = r.height = 32;
  r.sampler.num_steps = 1;
  expect_as_on_the_cpu(checkpoint, r, Family::sm90);
}

TEST(CudaGeneration, APictureIsEncodedAsOnTheCpu) {
  const TinyCheckpoint checkpoint({.ti2v = true, .storage = DType::f32, .layers = 1});
  const TempFolder folder;
  const std::vector<uint8_t> rgb(size_t{3} * 16 * 16, 200);
  const auto png = encode_png({.width = 16, .height = 16, .comment = ""}, rgb);
  Request r = request("f32");
  r.image = (folder.path() / "first.png").string();
  std::ofstream(r.image, std::ios::binary)
      .write(reinterpret_cast<const char*>(png.data()), std::ssize(png));
  r.width = r.height = 16;
  r.sampler.num_steps = 1;
  expect_as_on_the_cpu(checkpoint, r, Family::sm90);
}

// Weights of a model by where they lie on the host.
class Weights {
 public:
  explicit Weights(std::span<const TensorView> weights) {
    for (const TensorView& w : weights)
      ranges_[static_cast<const char*>(w.data)] = {storage_bytes(w.dtype, w.numel()),
                                                   w.rank >= 2 && w.shape[0] > 1};
  }
  // Of a matrix; vectors are small and travel at every use.
  bool matrix_at(const void* p) const {
    const auto next = ranges_.upper_bound(static_cast<const char*>(p));
    if (next == ranges_.begin()) return false;
    const auto& [begin, range] = *std::prev(next);
    return range.is_matrix && static_cast<const char*>(p) < begin + range.bytes;
  }
  int64_t matrix_bytes() const {
    int64_t sum = 0;
    for (const auto& [begin, range] : ranges_) sum += range.is_matrix ? range.bytes : 0;
    return sum;
  }
  // How often each matrix crossed, by its place.
  std::map<const void*, int> crossings(std::span<const Transfer> transfers) const {
    std::map<const void*, int> found;
    for (const Transfer& t : transfers) {
      if (!matrix_at(t.host)) continue;
      EXPECT_EQ(t.kind, Transfer::beside) << "a weight that kernels wait for";
      EXPECT_TRUE(ranges_.contains(static_cast<const char*>(t.host)));
      EXPECT_EQ(static_cast<int64_t>(t.bytes), ranges_.at(static_cast<const char*>(t.host)).bytes);
      ++found[t.host];
    }
    return found;
  }

 private:
  struct Range {
    int64_t bytes;
    bool is_matrix;
  };
  std::map<const char*, Range> ranges_;
};

// Sampling alone, step by step; its transformer, or the last of two, is still there afterwards.
struct Sampled {
  Gpu gpu;
  std::unique_ptr<Model> model;
  std::optional<Weights> weights;
  std::vector<size_t> steps;  // transfers noted when each began, and at the end
  std::vector<int64_t> held;  // bytes on the device when each was done
  Tensor latents;
  Backend::MemoryUse use;

  Sampled(const TinyCheckpoint& checkpoint, const Request& r, std::optional<size_t> limit)
      : gpu(Family::sm90, limit), model(open(checkpoint)) {
    Context ctx{*gpu.backend, compute_dtype(r)};
    Engine engine(*gpu.backend, request_policy(*model, r));
    const auto shape = model->latent_shape(r.width, r.height, r.frames);
    const PromptEmbeddings prompts = embed_prompts(*model, ctx, r, {});
    SamplingState state;
    state.latents = initial_noise(r.seed, shape.channels, shape.frames, shape.height, shape.width);
    const SamplingInputs inputs{[&](int expert) -> const VideoTransformer& {
                                  const VideoTransformer& dit = model->transformer(expert);
                                  weights.emplace(dit.weights());
                                  return dit;
                                },
                                model->num_experts(), model->architecture().sizes(), r, prompts};
    steps = {gpu.noted.size()};
    sample(ctx, engine, inputs, state, [&](const StepReport&) {
      steps.push_back(gpu.noted.size());
      held.push_back(gpu.backend->memory_use().held);
    });
    latents = std::move(state.latents);
    use = gpu.backend->memory_use();
  }
  std::span<const Transfer> step(size_t i) const {
    return std::span(gpu.noted).subspan(steps[i], steps[i + 1] - steps[i]);
  }
};

struct Crossed {
  int64_t in = 0, out = 0;
  size_t largest_in = 0, largest_out = 0;
};
Crossed besides(const Weights& weights, std::span<const Transfer> transfers) {
  Crossed c;
  for (const Transfer& t : transfers) {
    if (weights.matrix_at(t.host)) continue;
    const bool out = t.kind == Transfer::out;
    (out ? c.out : c.in) += static_cast<int64_t>(t.bytes);
    size_t& largest = out ? c.largest_out : c.largest_in;
    largest = std::max(largest, t.bytes);
  }
  return c;
}

// Patches of the latents cross once each way per forward. All else together is less than one
// activation: biases, modulation, rotary tables, block lists, masks.
void expect_only_latents(const Sampled& run, size_t step) {
  constexpr int64_t kTokens = 4 * 8 * 8, kForwards = 2, kChannels = 4;
  constexpr int64_t kRows = kTokens * 4 * 4;  // 4 values of a patch and channel
  constexpr int64_t kActivation = kTokens * 128 * 2;
  const Crossed c = besides(*run.weights, run.step(step));
  EXPECT_LT(c.in - kForwards * kRows * kChannels, kForwards * kActivation) << "step " << step;
  EXPECT_LT(c.out - kForwards * kRows * kChannels, kForwards * kActivation / 4) << "step " << step;
  EXPECT_LT(c.largest_in, static_cast<size_t>(kActivation)) << "step " << step;
  EXPECT_LT(c.largest_out, static_cast<size_t>(kActivation)) << "step " << step;
}

TEST(CudaGeneration, ActivationsStayAndWeightsTravelOnce) {
  const TinyCheckpoint checkpoint({.layers = 1});
  Request r = request("bf16", kHaste);
  r.height = 32;
  r.frames = 7;
  const Sampled run(checkpoint, r, std::nullopt);
  int64_t bytes = 0;
  for (const Transfer& t : run.step(0))
    if (run.weights->matrix_at(t.host)) bytes += static_cast<int64_t>(t.bytes);
  EXPECT_EQ(bytes, run.weights->matrix_bytes());
  for (const auto& [weight, times] :
       run.weights->crossings(std::span(run.gpu.noted).subspan(run.steps.front())))
    EXPECT_EQ(times, 1);
  for (size_t step = 0; step < 2; ++step) expect_only_latents(run, step);
}

// Half of the weights have room: those stay, the others come once per forward, through memory that
// never passes the limit, and nothing else changes.
TEST(CudaGeneration, WeightsWithoutRoomComeOncePerForward) {
  const TinyCheckpoint checkpoint({});
  Request r = request("bf16");
  r.guidance = r.guidance_low = 1.0;
  r.sampler.num_steps = 4;
  const Sampled whole(checkpoint, r, std::nullopt);
  const int64_t limit = whole.use.most - whole.weights->matrix_bytes() / 2;
  const Sampled part(checkpoint, r, static_cast<size_t>(limit));
  EXPECT_EQ(values(part.latents), values(whole.latents));
  EXPECT_LE(part.use.most, limit);
  EXPECT_GT(part.use.most, limit * 9 / 10);
  // The first steps find the room that all else needs; from then on the same weights stay.
  const auto before = part.weights->crossings(part.step(2));
  const auto crossings = part.weights->crossings(part.step(3));
  EXPECT_FALSE(crossings.empty());
  EXPECT_LT(crossings.size(), 18u) << "which are all that a forward uses";
  for (const auto& [weight, times] : crossings) EXPECT_EQ(times, 1);
  EXPECT_EQ(crossings, before);
}

TEST(CudaGeneration, TheExpertThatIsDoneMakesRoom) {
  const TinyCheckpoint checkpoint({.experts = 2, .layers = 1});
  Request r = request("bf16");
  r.guidance = r.guidance_low = 1.0;
  r.sampler.num_steps = 4;
  r.boundary = 0.8;
  const auto model = open(checkpoint);
  const auto cpu = make_backend("cpu");
  const Made expected = make(*cpu, *model, r);
  std::vector<int> experts;
  for (const TraceEntry& e : expected.result.trace.entries())
    if (e.site.branch == Branch::cond) experts.push_back(e.site.expert);
  ASSERT_EQ(experts, std::vector<int>({0, 0, 1, 1}));
  const Sampled both(checkpoint, r, std::nullopt);
  EXPECT_TRUE(close(both.latents, expected.latents, generation(DType::bf16), "experts"));
  // The second comes in its first forward, beside kernels and once; nothing of the first is left.
  EXPECT_TRUE(both.weights->crossings(both.step(1)).empty());
  const auto crossings = both.weights->crossings(both.step(2));
  EXPECT_GT(crossings.size(), 14u);
  for (const auto& [weight, times] : crossings) EXPECT_EQ(times, 1);
  EXPECT_TRUE(both.weights->crossings(both.step(3)).empty());
  EXPECT_EQ(both.held[2], both.held[1]);
}

// The base, and both halves of each pair: each crosses once, sums are made on the device.
TEST(CudaGeneration, LoraStaysOnTheDevice) {
  const TinyCheckpoint checkpoint({.layers = 1});
  write_lora(checkpoint);
  const Sampled sampled(checkpoint, request("bf16"), std::nullopt);
  for (const auto& [weight, times] : sampled.weights->crossings(sampled.step(0)))
    EXPECT_EQ(times, 1);
  EXPECT_TRUE(sampled.weights->crossings(sampled.step(1)).empty());
}

class KeepsToTheMemory : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(CudaGeneration, KeepsToTheMemory, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "WithLora" : "Plain"; });

TEST_P(KeepsToTheMemory, ThatMayBeUsed) {
  const TinyCheckpoint checkpoint({.layers = 3});
  if (GetParam()) write_lora(checkpoint);
  const auto model = open(checkpoint);
  Request r = request("bf16");
  r.guidance = r.guidance_low = 1.0;
  r.sampler.num_steps = 1;
  Gpu gpu;
  const Made whole = make(*gpu.backend, *model, r);
  EXPECT_NE(whole.note.find("on the device"), std::string::npos) << whole.note;
  EXPECT_EQ(whole.note.find("come again"), std::string::npos) << whole.note;
  EXPECT_GT(whole.result.memory.most, 0);
  EXPECT_GT(whole.result.memory.to_backend, model->transformer_bytes() / 2);
  // As little as the plan allows.
  int64_t least = 0;
  for (int64_t most = whole.result.memory.most; least < most;) {
    const int64_t tried = (least + most) / 2;
    Gpu planned(Family::sm90, static_cast<size_t>(tried));
    try {
      check_memory(plan_memory(*model, r, {}, false), *planned.backend, 0, {});
      most = tried;
    } catch (const Error&) {
      least = tried + 1;
    }
  }
  Gpu small;
  const Made made = make(*small.backend, *model, r, least);
  EXPECT_NE(made.note.find("come again"), std::string::npos) << made.note;
  EXPECT_LE(made.result.memory.most, least);
  EXPECT_EQ(values(made.latents), values(whole.latents));
  EXPECT_EQ(made.video, whole.video);
  try {
    make(*small.backend, *model, r, least - 1);
    ADD_FAILURE() << "began with too little memory";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).rfind("memory: needs about ", 0), 0u) << e.what();
    EXPECT_NE(std::string(e.what()).find("may be used"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lacuna::test
