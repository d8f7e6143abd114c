// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/lora.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "lacuna/core/convert.h"
#include "lacuna/models/wan/hash_case.h"
#include "tests/models/wan/support.h"
#include "tests/support/temp_folder.h"

namespace lacuna::test {
namespace {

namespace fs = std::filesystem;
using lacuna::testing::tensors_of;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A file of LoRA: tensors of the hash, in one dtype.
class LoraWriter {
 public:
  LoraWriter& add(const std::string& name, const std::vector<int64_t>& shape,
                  DType dtype = DType::f32) {
    Tensor values(DType::f32, shape);
    fill_hash("lora:" + name, 0.0, 0.2, {values.as<float>(), static_cast<size_t>(values.numel())});
    return put(name, converted(values, dtype));
  }
  // Of a dtype that nothing is converted to.
  LoraWriter& zeros(const std::string& name, const std::vector<int64_t>& shape, DType dtype) {
    Tensor values(dtype, shape);
    std::memset(values.view().data, 0, static_cast<size_t>(storage_bytes(dtype, values.numel())));
    return put(name, std::move(values));
  }
  LoraWriter& number(const std::string& name, float value) {
    Tensor scalar(DType::f32, std::span<const int64_t>{});
    scalar.as<float>()[0] = value;
    return put(name, std::move(scalar));
  }
  // Its last element, if the dtype has such a value.
  LoraWriter& last(const std::string& name, float value) {
    Tensor& tensor = tensors_.at(name);
    const Tensor values = converted(tensor, DType::f32);
    values.as<float>()[values.numel() - 1] = value;
    tensor = converted(values, tensor.view().dtype);
    return *this;
  }
  LoraWriter& metadata(const std::string& text) {
    metadata_["lora_adapter_metadata"] = text;
    return *this;
  }
  fs::path write() {
    std::vector<std::pair<std::string, TensorView>> views;
    for (const auto& [name, tensor] : tensors_) views.emplace_back(name, tensor.view());
    const fs::path path = folder_->path() / "style.safetensors";
    write_safetensors(path, views, metadata_);
    return path;
  }
  // The error of reading what was added, without the path.
  std::string error() {
    const fs::path path = write();
    const std::string text = error_of([&] { LoraFile file(path); });
    EXPECT_THAT(text, StartsWith(path.string() + ": "));
    return text.empty() ? text : text.substr(path.string().size() + 2);
  }

 private:
  LoraWriter& put(const std::string& name, Tensor tensor) {
    tensors_.insert_or_assign(name, std::move(tensor));
    return *this;
  }
  std::unique_ptr<TempFolder> folder_ = std::make_unique<TempFolder>();
  std::map<std::string, Tensor> tensors_;
  Metadata metadata_;
};

LoraWriter pair_of(const std::string& down, const std::string& up, int64_t in = 128,
                   int64_t out = 128, int64_t rank = 4) {
  LoraWriter writer;
  writer.add(down, {rank, in}).add(up, {out, rank});
  return writer;
}

TEST(Lora, EveryNamingMeansTheSameTensor) {
  const std::pair<const char*, const char*> namings[] = {
      {"blocks.1.attn1.to_out.0.lora_A.weight", "blocks.1.attn1.to_out.0.lora_B.weight"},
      {"transformer.blocks.1.attn1.to_out.0.lora_A.weight",
       "transformer.blocks.1.attn1.to_out.0.lora_B.weight"},
      {"diffusion_model.blocks.1.attn1.to_out.0.lora_A.default.weight",
       "diffusion_model.blocks.1.attn1.to_out.0.lora_B.default.weight"},
      {"diffusion_model.blocks.1.self_attn.o.lora_down.weight",
       "diffusion_model.blocks.1.self_attn.o.lora_up.weight"},
      {"model.diffusion_model.blocks.1.self_attn.o.lora_A.weight",
       "model.diffusion_model.blocks.1.self_attn.o.lora_B.weight"},
      {"lora_unet_blocks_1_self_attn_o.lora_down.weight",
       "lora_unet_blocks_1_self_attn_o.lora_up.weight"},
      {"lora_unet_blocks_1_attn1_to_out_0.lora_down.weight",
       "lora_unet_blocks_1_attn1_to_out_0.lora_up.weight"},
  };
  for (const auto& [down, up] : namings) {
    const LoraFile file(pair_of(down, up).write());
    ASSERT_EQ(file.changes().size(), 1u) << down;
    const auto& [name, change] = *file.changes().begin();
    EXPECT_EQ(name, "blocks.1.attn1.to_out.0.weight") << down;
    EXPECT_EQ(change.rank(), 4);
    EXPECT_EQ(change.factor, 1.0f);
    EXPECT_EQ(change.diff.data, nullptr);
    file.check(golden_wan_config());
  }
}

TEST(Lora, AlphaIsDividedByTheRank) {
  LoraWriter writer = pair_of("diffusion_model.blocks.0.ffn.2.lora_down.weight",
                              "diffusion_model.blocks.0.ffn.2.lora_up.weight", 320);
  EXPECT_EQ(LoraFile(writer.write()).changes().begin()->second.factor, 1.0f);
  writer.metadata(R"({"transformer.lora_alpha": 8, "transformer.r": 4,
                      "transformer.alpha_pattern": {}, "transformer.use_dora": false})");
  EXPECT_EQ(LoraFile(writer.write()).changes().begin()->second.factor, 2.0f);
  writer.number("diffusion_model.blocks.0.ffn.2.alpha", 2.0f);
  const LoraFile file(writer.write());
  EXPECT_EQ(file.changes().begin()->first, "blocks.0.ffn.net.2.weight");
  EXPECT_EQ(file.changes().begin()->second.factor, 0.5f);
}

TEST(Lora, AlphaIsPartOfTheFingerprintWhereverItStands) {
  LoraWriter writer = pair_of("blocks.0.ffn.2.lora_A.weight", "blocks.0.ffn.2.lora_B.weight", 320);
  const auto with = [&](const char* text) {
    return LoraFile(writer.metadata(text).write()).fingerprint();
  };
  const uint64_t one = with(R"({"lora_alpha": 8})");
  EXPECT_NE(one, with(R"({"lora_alpha": 2})"));
  EXPECT_EQ(one, with(R"({"lora_alpha": 8, "r": 4})"));
}

TEST(Lora, DifferencesAreOfWeightsBiasesAndTables) {
  LoraWriter writer;
  writer.add("diffusion_model.blocks.0.norm3.diff", {128})
      .add("diffusion_model.blocks.0.norm3.diff_b", {128})
      .add("diffusion_model.blocks.0.self_attn.norm_q.diff", {128}, DType::bf16)
      .add("diffusion_model.blocks.0.cross_attn.q.diff_b", {128})
      .add("diffusion_model.blocks.0.diff_m", {1, 6, 128})
      .add("diffusion_model.blocks.1.modulation.diff", {6, 128})
      .add("diffusion_model.head.diff_m", {1, 2, 128}, DType::f16)
      .add("diffusion_model.head.head.diff", {64, 128});
  const LoraFile file(writer.write());
  std::vector<std::string> names;
  for (const auto& [name, change] : file.changes()) {
    names.push_back(name);
    EXPECT_EQ(change.rank(), 0);
    EXPECT_NE(change.diff.data, nullptr);
  }
  EXPECT_EQ(names, (std::vector<std::string>{
                       "blocks.0.attn1.norm_q.weight", "blocks.0.attn2.to_q.bias",
                       "blocks.0.norm2.bias", "blocks.0.norm2.weight", "blocks.0.scale_shift_table",
                       "blocks.1.scale_shift_table", "proj_out.weight", "scale_shift_table"}));
  file.check(golden_wan_config());
}

TEST(Lora, WhatIsNotUnderstoodIsNamed) {
  const auto with = [](const std::string& name) {
    return pair_of("blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight")
        .add(name, {128})
        .error();
  };
  const std::string expected = "; expected LoRA of a Wan transformer";
  EXPECT_EQ(
      with("blocks.0.attn1.to_q.lora_magnitude_vector"),
      "holds blocks.0.attn1.to_q.lora_magnitude_vector, which is a magnitude of DoRA" + expected);
  EXPECT_EQ(with("blocks.0.self_attn.q.dora_scale"),
            "holds blocks.0.self_attn.q.dora_scale, which is a magnitude of DoRA" + expected);
  EXPECT_EQ(with("lora_unet_blocks_0_self_attn_q.hada_w1_a"),
            "holds lora_unet_blocks_0_self_attn_q.hada_w1_a, which is LoHa, not LoRA" + expected);
  EXPECT_EQ(with("blocks.0.self_attn.q.lokr_w1"),
            "holds blocks.0.self_attn.q.lokr_w1, which is LoKr, not LoRA" + expected);
  EXPECT_EQ(with("lora_te1_text_model_encoder.lora_up.weight"),
            "holds lora_te1_text_model_encoder.lora_up.weight, which is a change to a text "
            "encoder" +
                expected);
  const std::string foreign = ", expected LoRA of a Wan transformer";
  for (const char* name :
       {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "blocks.0.attn1.to_q",
        "blocks.0.attn1.to_q.lora_A", "blocks.0.attn1.to_q.lora_B.bias", "blocks.x.ffn.0.diff",
        "base_model.model.blocks.0.attn1.to_q.lora_A.weight", "lora_unet_blocks_0_q.alpha",
        "lora_unet_blocks_0_modulation.diff", "blocks.0.attn1.to_q.weight",
        "blocks.00.attn1.to_q.diff", "blocks.99999999999999999999.attn1.to_q.diff"})
    EXPECT_EQ(with(name), fmt::format("holds {}{}", name, foreign));
}

TEST(Lora, BrokenPairsAreErrors) {
  const std::string down = "blocks.0.attn1.to_q.lora_A.weight";
  const std::string up = "blocks.0.attn1.to_q.lora_B.weight";
  EXPECT_EQ(LoraWriter().add(down, {4, 128}).error(),
            down + " without its other half, expected both matrices of a pair");
  EXPECT_EQ(LoraWriter().add(up, {128, 4}).error(),
            up + " without its other half, expected both matrices of a pair");
  EXPECT_EQ(pair_of(down, up).add(down, {5, 128}).error(),
            up + " and its other half are [128, 4] f32 and [5, 128] f32, expected [out, rank] and "
                 "[rank, in]");
  EXPECT_EQ(pair_of(down, up, 1, 1, 2049).error(), up + " has rank 2049, expected 1 to 2048");
  EXPECT_EQ(pair_of(down, up, 1, 1, 0).error(), up + " has rank 0, expected 1 to 2048");
  EXPECT_EQ(pair_of(down, up).add(down, {128}).error(),
            up + " and its other half are [128, 4] f32 and [128] f32, expected [out, rank] and "
                 "[rank, in]");
  EXPECT_EQ(pair_of(down, up).add("transformer." + up, {128, 4}).error(),
            "transformer." + up +
                " says again what another tensor says of blocks.0.attn1.to_q.weight, expected one "
                "of them");
  EXPECT_EQ(pair_of(down, up).add("blocks.0.norm3.alpha", {1}).error(),
            "an alpha for blocks.0.norm2.weight without a pair, expected both");
  EXPECT_EQ(LoraWriter().error(), "no tensors, expected LoRA");
  LoraWriter doubles = pair_of(down, up);
  EXPECT_EQ(doubles.zeros(up, {128, 4}, DType::f64).error(),
            up + " is [128, 4] f64, expected f32, f16 or bf16");
}

TEST(Lora, AlphasAreFiniteNumbers) {
  const std::string stem = "diffusion_model.blocks.0.self_attn.q";
  const auto pair = [&] { return pair_of(stem + ".lora_down.weight", stem + ".lora_up.weight"); };
  EXPECT_EQ(pair().number(stem + ".alpha", std::numeric_limits<float>::infinity()).error(),
            stem + ".alpha is inf, expected a finite number");
  EXPECT_EQ(pair().number(stem + ".alpha", std::nanf("")).error(),
            stem + ".alpha is nan, expected a finite number");
  EXPECT_EQ(pair().add(stem + ".alpha", {2}).error(),
            stem + ".alpha is [2] f32, expected one number");
  for (const char* text :
       {"[", "1", R"({"lora_alpha": "8"})", R"({"lora_alpha": 1e999})", R"({"lora_alpha": 1e308})",
        R"({"use_dora": true})", R"({"transformer.use_rslora": true})",
        R"({"alpha_pattern": {"blocks.0": 2}})", R"({"a.lora_alpha": 1, "b.lora_alpha": 2})"})
    EXPECT_THAT(pair().metadata(text).error(), HasSubstr("lora_adapter_metadata")) << text;
}

TEST(Lora, ValuesAreFiniteNumbers) {
  const std::string down = "blocks.0.attn1.to_q.lora_A.weight";
  const std::string up = "blocks.0.attn1.to_q.lora_B.weight";
  const std::string diff = "blocks.0.norm2.diff_b";
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto file = [&] {
      LoraWriter writer;
      writer.add(down, {4, 127}, dtype).add(up, {128, 4}, dtype).add(diff, {3}, dtype);
      return writer;
    };
    for (const std::string& name : {down, up, diff}) {
      for (const float value : {kInfinity, -kInfinity, std::nanf("")}) {
        EXPECT_EQ(file().last(name, value).error(),
                  name + " holds infinity or NaN, expected finite numbers");
      }
      for (const float value : {65504.0f, -65504.0f, 6e-8f})
        EXPECT_EQ(error_of([&] { LoraFile read(file().last(name, value).write()); }), "");
    }
  }
}

TEST(Lora, FilesThatAreNoSafetensorsAreErrors) {
  const TempFolder folder;
  const fs::path path = folder.path() / "x.safetensors";
  EXPECT_THAT(error_of([&] { LoraFile file(path); }), HasSubstr(path.string()));
  for (const std::string& bytes :
       {std::string(), std::string("PK\3\4 pickled"), std::string(8, '\xff')}) {
    std::ofstream(path, std::ios::binary) << bytes;
    EXPECT_THAT(error_of([&] { LoraFile file(path); }), HasSubstr(path.string()));
    EXPECT_FALSE(is_lora_file(path));
  }
}

TEST(Lora, FitsOnlyTheSizesItIsOf) {
  const WanConfig config = golden_wan_config();
  const auto error = [&](auto&& writer) {
    const fs::path path = writer.write();
    const LoraFile file(path);
    const std::string text = error_of([&] { file.check(config); });
    EXPECT_THAT(text, StartsWith(path.string() + ": "));
    return text.substr(path.string().size() + 2);
  };
  EXPECT_EQ(
      error(pair_of("blocks.3.attn1.to_q.lora_A.weight", "blocks.3.attn1.to_q.lora_B.weight")),
      "holds blocks.3.attn1.to_q.lora_B.weight, which a network of 3 layers does not have; "
      "the LoRA is of another");
  EXPECT_EQ(error(pair_of("blocks.2.attn1.to_q.lora_A.weight", "blocks.2.attn1.to_q.lora_B.weight",
                          5120, 5120)),
            "blocks.2.attn1.to_q.lora_B.weight changes a [5120, 5120], expected the network's "
            "[128, 128]");
  EXPECT_EQ(error(LoraWriter().add("blocks.0.norm3.diff", {64})),
            "blocks.0.norm3.diff changes a [64], expected the network's [128]");
  EXPECT_EQ(error(LoraWriter().add("blocks.0.modulation.diff", {1, 1, 6, 128})),
            "blocks.0.modulation.diff changes a [1, 1, 6, 128], expected the network's "
            "[1, 6, 128]");
  EXPECT_THAT(error(LoraWriter().add("blocks.0.self_attn.norm_q.diff_b", {128})),
              EndsWith("the LoRA is of another"));
}

TEST(Lora, OnlyAFileOfLoraAloneIsOne) {
  EXPECT_TRUE(is_lora_file(pair_of("a.lora_A.weight", "a.lora_B.weight").write()));
  EXPECT_TRUE(is_lora_file(LoraWriter().add("x.hada_w1_a", {1}).write()));
  EXPECT_TRUE(is_lora_file(LoraWriter().add("diffusion_model.blocks.0.norm3.diff_b", {1}).write()));
  EXPECT_FALSE(is_lora_file(LoraWriter().add("blocks.0.norm3.weight", {1}).write()));
  EXPECT_FALSE(is_lora_file(pair_of("a.lora_A.weight", "a.lora_B.weight")
                                .add("blocks.0.self_attn.norm_q.weight", {1})
                                .write()));
  EXPECT_FALSE(is_lora_file("/nowhere"));
}

// The network of every change, made whole beforehand in f64, must give the same velocity.
class Merged : public WeightSource {
 public:
  Merged(const std::vector<ScaledLora>& loras, DType storage)
      : base_(hash_weights("w:", storage)), loras_(loras) {}
  std::string describe() const override { return "merged"; }
  bool has(std::string_view) const override { return true; }
  std::vector<std::string> names() const override { return {}; }
  std::vector<int64_t> shape(std::string_view) const override { return {}; }
  TensorView load(std::string_view name, std::span<const int64_t> shape) override {
    Tensor& sum = made_[std::string(name)];
    if (!sum.empty()) return sum;
    sum = converted(base_->load(name, shape), DType::f32);
    for (const ScaledLora& lora : loras_) {
      const auto found = lora.file->changes().find(name);
      if (found == lora.file->changes().end()) continue;
      const LoraFile::Change& change = found->second;
      const int64_t k = sum.numel() / shape[0], r = change.rank();
      const Tensor up = r > 0 ? converted(change.up, DType::f32) : Tensor();
      const Tensor down = r > 0 ? converted(change.down, DType::f32) : Tensor();
      const Tensor diff =
          change.diff.data != nullptr ? converted(change.diff, DType::f32) : Tensor();
      for (int64_t i = 0; i < sum.numel(); ++i) {
        double y = diff.empty() ? 0.0 : double{diff.as<float>()[i]};
        for (int64_t c = 0; c < r; ++c)
          y += double{change.factor} * double{up.as<float>()[i / k * r + c]} *
               double{down.as<float>()[c * k + i % k]};
        sum.as<float>()[i] = static_cast<float>(double{sum.as<float>()[i]} + lora.scale * y);
      }
    }
    return sum;
  }

 private:
  std::unique_ptr<WeightSource> base_;
  std::vector<ScaledLora> loras_;
  std::map<std::string, Tensor, std::less<>> made_;
};

Tensor velocity(Backend& backend, DType compute, WeightSource& source,
                const WanConfig& config = golden_wan_config()) {
  WeightReader reader(source);
  const WanDit dit(config, reader);
  const ConstantWeights constant(backend, dit.weights());
  Context ctx{backend, compute};
  Engine engine(backend, Policy{});
  const double t[] = {700.0};
  const auto times = dit.embed_times(ctx, t);
  PreparedText text = dit.prepare_text(ctx, hash_input("context", {20, config.text_dim}), 64);
  if (config.image_dim > 0)
    dit.prepare_image(ctx, hash_input("image", {5, config.image_dim}), text);
  Tensor out(DType::f32, {config.out_channels, 3, 8, 12});
  dit.forward(ctx, engine, Site{.num_steps = 1}, hash_input("x", {config.in_channels, 3, 8, 12}),
              times[0], text, out);
  return out;
}

double distance(const Tensor& a, const Tensor& b) {
  double apart = 0.0, size = 0.0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double d = double{a.as<float>()[i]} - double{b.as<float>()[i]};
    apart += d * d;
    size += double{b.as<float>()[i]} * double{b.as<float>()[i]};
  }
  return std::sqrt(apart / size);
}

TEST(Lora, GivesTheVelocityOfTheMergedNetwork) {
  LoraWriter style;
  style.add("patch_embedding.lora_A.weight", {2, 16, 1, 2, 2})
      .add("patch_embedding.lora_B.weight", {128, 2, 1, 1, 1})
      .add("head.head.diff", {64, 128})
      .add("head.diff_m", {1, 2, 128})
      .add("time_embedding.0.lora_A.weight", {3, 256})
      .add("time_embedding.0.lora_B.weight", {128, 3})
      .add("text_embedding.2.diff_b", {128});
  for (const char* block : {"0", "2"}) {
    const std::string stem = fmt::format("blocks.{}.", block);
    for (const char* module : {"self_attn.q", "cross_attn.v", "cross_attn.o"})
      style.add(stem + module + ".lora_A.weight", {4, 128}, DType::bf16)
          .add(stem + module + ".lora_B.weight", {128, 4}, DType::f16);
    style.add(stem + "ffn.0.lora_A.weight", {4, 128})
        .add(stem + "ffn.0.lora_B.weight", {320, 4})
        .add(stem + "ffn.2.diff", {128, 320})
        .add(stem + "ffn.2.lora_A.weight", {1, 320})
        .add(stem + "ffn.2.lora_B.weight", {128, 1})
        .add(stem + "self_attn.norm_k.diff", {128})
        .add(stem + "diff_m", {1, 6, 128});
  }
  LoraWriter more =
      pair_of("blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight");
  more.number("blocks.0.attn1.to_q.alpha", 2.0f);
  const std::vector<ScaledLora> loras = {{std::make_shared<LoraFile>(style.write()), 0.8},
                                         {std::make_shared<LoraFile>(more.write()), -1.5}};
  for (const ScaledLora& lora : loras) lora.file->check(golden_wan_config());
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = make_backend(name);
    for (const DType storage : {DType::f32, DType::bf16}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        const auto changed = with_loras(hash_weights("w:", storage), loras, {});
        const auto plain = hash_weights("w:", storage);
        Merged merged(loras, storage);
        const Tensor expected = velocity(*backend, compute, merged);
        const double apart = distance(velocity(*backend, compute, *changed), expected);
        // Where two f32 sums lie on both sides of a tie, bf16 weights are a spacing apart.
        EXPECT_LT(apart, compute == DType::f32 ? 1e-6 : 2e-3) << name;
        EXPECT_GT(distance(velocity(*backend, compute, *plain), expected), 0.05) << name;
      }
    }
  }
}

// In the names of the original code, and flat ones, as trainers write them.
TEST(Lora, ChangesWhatPicturesGoThrough) {
  WanConfig config = golden_wan_config();
  config.in_channels = 36, config.image_dim = 80;
  LoraWriter writer;
  writer.add("diffusion_model.blocks.1.cross_attn.k_img.lora_down.weight", {4, 128})
      .add("diffusion_model.blocks.1.cross_attn.k_img.lora_up.weight", {128, 4})
      .add("diffusion_model.blocks.2.cross_attn.v_img.diff_b", {128})
      .add("diffusion_model.blocks.0.cross_attn.norm_k_img.diff", {128})
      .add("diffusion_model.img_emb.proj.0.diff", {80})
      .add("diffusion_model.img_emb.proj.1.lora_down.weight", {2, 80})
      .add("diffusion_model.img_emb.proj.1.lora_up.weight", {80, 2})
      .add("lora_unet_img_emb_proj_3.lora_down.weight", {3, 80})
      .add("lora_unet_img_emb_proj_3.lora_up.weight", {128, 3});
  const ScaledLora lora{std::make_shared<LoraFile>(writer.write()), 0.7};
  lora.file->check(config);
  const auto backend = make_backend("cpu");
  const auto changed = with_loras(hash_weights("w:", DType::f32), {lora}, {});
  const auto plain = hash_weights("w:", DType::f32);
  Merged merged({lora}, DType::f32);
  const Tensor expected = velocity(*backend, DType::f32, merged, config);
  EXPECT_LT(distance(velocity(*backend, DType::f32, *changed, config), expected), 1e-6);
  EXPECT_GT(distance(velocity(*backend, DType::f32, *plain, config), expected), 0.01);
  EXPECT_THAT(error_of([&] { lora.file->check(golden_wan_config()); }),
              ::testing::HasSubstr("which a network of 3 layers does not have"));
}

// Of the base without pictures: all but what takes the latent.
TEST(Lora, OfTheTextNetworkServesThatOfPictures) {
  WanConfig config = golden_wan_config();
  config.in_channels = 36, config.image_dim = 80;
  LoraFile(
      pair_of("blocks.0.attn1.to_q.lora_A.weight", "blocks.0.attn1.to_q.lora_B.weight").write())
      .check(config);
  const LoraFile patches(LoraWriter().add("patch_embedding.diff", {128, 16, 1, 2, 2}).write());
  EXPECT_THAT(
      error_of([&] { patches.check(config); }),
      ::testing::HasSubstr("changes a [128, 16, 1, 2, 2], expected the network's [128, 36"));
}

TEST(Lora, WithoutAFileTheSourceIsTheBase) {
  auto base = hash_weights("w:", DType::f32);
  const WeightSource* same = base.get();
  EXPECT_EQ(with_loras(std::move(base), {}, {}).get(), same);
}

}  // namespace
}  // namespace lacuna::test
