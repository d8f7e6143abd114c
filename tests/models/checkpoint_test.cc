// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "lacuna/core/error.h"
#include "lacuna/core/safetensors.h"
#include "tests/core/gguf_builder.h"
#include "tests/support/temp_folder.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

using Names = std::vector<std::string>;
const Names kDitDiffusers = {"blocks.0.attn1.norm_q.weight", "condition_embedder.time_proj.weight"};
const Names kDitOriginal = {"blocks.0.self_attn.norm_q.weight", "head.modulation"};
const Names kVae21 = {"decoder.mid_block.resnets.0.norm1.gamma",
                      "decoder.up_blocks.0.upsamplers.0.resample.1.weight"};
const Names kVae21Original = {"decoder.middle.0.residual.0.gamma",
                              "decoder.upsamples.0.residual.0.gamma"};
const Names kVae22 = {"decoder.mid_block.resnets.0.norm1.gamma",
                      "decoder.up_blocks.0.upsampler.resample.1.weight"};
const Names kVae22Original = {"decoder.middle.0.residual.0.gamma",
                              "decoder.upsamples.0.upsamples.0.residual.0.gamma"};
const Names kTaehv = {"decoder.3.conv.0.weight", "decoder.7.conv.weight", "decoder.22.weight"};
const Names kT5 = {"encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"};
const Names kT5Original = {"blocks.0.attn.q.weight", "token_embedding.weight"};
const Names kT5Gguf = {"enc.blk.0.attn_q.weight", "token_embd.weight"};
const Names kClipVision = {"vision_model.embeddings.class_embedding",
                           "vision_model.pre_layrnorm.weight", "visual_projection.weight"};

class CheckpointTest : public testing::Test {
 protected:
  fs::path weights(const std::string& relative, const Names& names) {
    const fs::path path = root_ / relative;
    fs::create_directories(path.parent_path());
    const Tensor one = Tensor::zeros(DType::f32, {1});
    std::vector<std::pair<std::string, TensorView>> tensors;
    for (const std::string& name : names) tensors.emplace_back(name, one);
    write_safetensors(path, tensors);
    return path;
  }
  fs::path text(const std::string& relative, const std::string& content) {
    const fs::path path = root_ / relative;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << content;
    return path;
  }
  static Checkpoint find(std::vector<fs::path> paths) { return find_checkpoint(paths); }
  static std::string error_of(std::vector<fs::path> paths) {
    try {
      find_checkpoint(paths);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TempFolder temp_;
  const fs::path root_ = temp_.path();
};

TEST_F(CheckpointTest, ReadsADiffusersFolderWithTwoExpertsAndShards) {
  text("model_index.json", R"({"_class_name": "WanPipeline", "boundary_ratio": 0.875})");
  text("scheduler/scheduler_config.json", R"({"flow_shift": 3.0})");
  text("transformer/config.json", R"({"num_layers": 30})");
  const auto one =
      weights("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", {kDitDiffusers[0]});
  const auto two =
      weights("transformer/diffusion_pytorch_model-00002-of-00002.safetensors", {kDitDiffusers[1]});
  text("transformer/diffusion_pytorch_model.safetensors.index.json",
       R"({"metadata": {}, "weight_map": {
         "a": "diffusion_pytorch_model-00002-of-00002.safetensors",
         "b": "diffusion_pytorch_model-00001-of-00002.safetensors",
         "c": "diffusion_pytorch_model-00002-of-00002.safetensors"}})");
  weights("transformer_2/diffusion_pytorch_model.safetensors", kDitDiffusers);
  weights("vae/diffusion_pytorch_model.safetensors", kVae21);
  // A precision variant beside the plain file is not a second part.
  weights("vae/diffusion_pytorch_model.fp16.safetensors", kVae21);
  weights("text_encoder/model.safetensors", kT5);
  text("tokenizer/spiece.model", "x");
  const auto tokenizer = text("tokenizer/tokenizer.json", "{}");

  const Checkpoint c = find({root_});
  EXPECT_EQ(c.layout, CheckpointLayout::diffusers);
  EXPECT_THAT(c.transformer.files, ElementsAre(one, two));
  EXPECT_EQ(c.transformer.tensors, TensorSet::wan_diffusers);
  EXPECT_EQ(c.transformer.config->at("num_layers"), 30);
  EXPECT_EQ(c.transformer.config_text, R"({"num_layers": 30})");
  EXPECT_FALSE(c.transformer_2.empty());
  EXPECT_FALSE(c.transformer_2.config.has_value());
  EXPECT_THAT(c.vae.files, ElementsAre(root_ / "vae/diffusion_pytorch_model.safetensors"));
  EXPECT_EQ(c.text_encoder.tensors, TensorSet::umt5_hugging_face);
  EXPECT_EQ(c.tokenizer, tokenizer);
  EXPECT_EQ(c.model_index->at("boundary_ratio"), 0.875);
  EXPECT_EQ(c.scheduler->at("flow_shift"), 3.0);
  EXPECT_THAT(checkpoint_files(c),
              UnorderedElementsAre(
                  one, two, tokenizer, root_ / "model_index.json",
                  root_ / "scheduler/scheduler_config.json", root_ / "transformer/config.json",
                  root_ / "transformer/diffusion_pytorch_model.safetensors.index.json",
                  root_ / "transformer_2/diffusion_pytorch_model.safetensors",
                  root_ / "vae/diffusion_pytorch_model.safetensors",
                  root_ / "text_encoder/model.safetensors"));
}

TEST_F(CheckpointTest, DiffusersFoldersThatDoNotFitAreRefused) {
  text("model_index.json", "[]");
  EXPECT_THAT(error_of({root_}), HasSubstr("JSON object"));
  text("model_index.json", "{}");
  EXPECT_THAT(error_of({root_}), HasSubstr("no weights"));
  weights("vae/diffusion_pytorch_model.safetensors", kT5);
  EXPECT_THAT(error_of({root_}), AllOf(HasSubstr("vae"), HasSubstr("are of no vae")));
  fs::remove_all(root_ / "vae");
  text("vae/diffusion_pytorch_model.bin", "x");
  EXPECT_THAT(error_of({root_}), HasSubstr("convert it to safetensors"));
  fs::remove_all(root_ / "vae");
  weights("vae/a.safetensors", kVae21);
  weights("vae/b.safetensors", kVae21);
  EXPECT_THAT(error_of({root_}), AllOf(HasSubstr("a.safetensors"), HasSubstr("b.safetensors")));
  fs::remove(root_ / "vae/b.safetensors");
  EXPECT_EQ(find({root_}).vae.tensors, TensorSet::vae21_diffusers);
}

TEST_F(CheckpointTest, ReadsTheAuthorsFolderAndSaysWhatToDoAboutPickles) {
  text("config.json", R"({"dim": 1536})");
  weights("diffusion_pytorch_model.safetensors", kDitOriginal);
  text("Wan2.1_VAE.pth", "PK");
  text("models_t5_umt5-xxl-enc-bf16.pth", "PK");
  EXPECT_THAT(error_of({root_}), AllOf(HasSubstr("Wan2.1_VAE.pth"), HasSubstr("convert")));
  const auto vae = weights("elsewhere/wan_2.1_vae.safetensors", kVae21Original);
  EXPECT_THAT(error_of({root_, vae}), HasSubstr("models_t5"));
  const auto t5 = weights("elsewhere/umt5.safetensors", kT5Original);
  const auto spiece = text("google/umt5-xxl/spiece.model", "x");
  const Checkpoint c = find({root_, vae, t5});
  EXPECT_EQ(c.layout, CheckpointLayout::original);
  EXPECT_EQ(c.transformer.tensors, TensorSet::wan_original);
  EXPECT_EQ(c.transformer.config->at("dim"), 1536);
  EXPECT_EQ(c.vae.tensors, TensorSet::vae21_original);
  EXPECT_FALSE(c.vae.config.has_value());
  EXPECT_EQ(c.text_encoder.tensors, TensorSet::umt5_original);
  EXPECT_EQ(c.tokenizer, spiece);
}

TEST_F(CheckpointTest, FindsTheImageEncoderAndItsProcessor) {
  text("model_index.json", "{}");
  const auto dit = weights("transformer/diffusion_pytorch_model.safetensors", kDitDiffusers);
  const auto encoder = weights("image_encoder/model.safetensors", kClipVision);
  const auto config = text("image_encoder/config.json", R"({"hidden_size": 1280})");
  EXPECT_TRUE(find({root_}).image_processor.empty());
  const auto processor = text("image_processor/preprocessor_config.json", R"({"resample": 3})");
  const Checkpoint c = find({root_});
  EXPECT_EQ(c.image_encoder.tensors, TensorSet::clip_vision);
  EXPECT_THAT(c.image_encoder.files, ElementsAre(encoder));
  EXPECT_EQ(c.image_encoder.config->at("hidden_size"), 1280);
  EXPECT_EQ(c.image_processor_text, R"({"resample": 3})");
  EXPECT_THAT(checkpoint_files(c),
              UnorderedElementsAre(root_ / "model_index.json", dit, encoder, config, processor));
  EXPECT_THAT(list_parts(c), HasSubstr("image encoder " + encoder.string()));
  const auto own = weights("clip_vision_h.safetensors", kClipVision);
  EXPECT_THAT(find({root_, own}).image_encoder.files, ElementsAre(own));
  EXPECT_THAT(error_of({encoder, own}), HasSubstr("two image encoder"));
  weights("image_encoder/model.safetensors", kT5);
  EXPECT_THAT(error_of({root_}),
              AllOf(HasSubstr("image_encoder"), HasSubstr("are of no image_encoder")));
}

TEST_F(CheckpointTest, ThePickledImageEncoderIsRefusedWithWhatToTakeInstead) {
  weights("repo/diffusion_pytorch_model.safetensors", kDitOriginal);
  const auto pickle = text("repo/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "PK");
  for (const auto& paths : {std::vector<fs::path>{root_ / "repo"}, {pickle}})
    EXPECT_THAT(error_of(paths),
                AllOf(HasSubstr(pickle.string()), HasSubstr("clip_vision_h.safetensors"),
                      HasSubstr("--image-encoder"), testing::Not(HasSubstr("\n"))));
  const auto own = weights("clip_vision_h.safetensors", kClipVision);
  EXPECT_THAT(find({root_ / "repo", own}).image_encoder.files, ElementsAre(own));
}

TEST_F(CheckpointTest, ReadsTheTwoExpertFoldersOfA14B) {
  for (const char* name : {"high_noise_model", "low_noise_model"}) {
    text(std::string(name) + "/config.json", std::string(R"({"name": ")") + name + "\"}");
    weights(std::string(name) + "/diffusion_pytorch_model-00001-of-00002.safetensors",
            {kDitOriginal[0]});
    weights(std::string(name) + "/diffusion_pytorch_model-00002-of-00002.safetensors",
            {kDitOriginal[1]});
  }
  const Checkpoint c = find({root_});
  EXPECT_EQ(c.transformer.config->at("name"), "high_noise_model");
  EXPECT_EQ(c.transformer_2.config->at("name"), "low_noise_model");
  EXPECT_EQ(c.transformer_2.files.size(), 2u);
  fs::remove(root_ / "low_noise_model/diffusion_pytorch_model-00001-of-00002.safetensors");
  EXPECT_THAT(error_of({root_}), HasSubstr("1 of 2 shards"));
}

TEST_F(CheckpointTest, SingleFilesAreToldApartByTheirTensors) {
  const auto high = weights("a_HIGH_noise.safetensors", kDitOriginal);
  const auto low = weights("b_low_noise.safetensors", kDitOriginal);
  const auto vae = weights("vae.safetensors", kVae22Original);
  GgufBuilder builder;
  for (const std::string& name : kT5Gguf) builder.tensor(name, 0, {1}, std::string(4, '\0'));
  builder.strings("tokenizer.ggml.tokens", {"<pad>"});
  const auto t5 = builder.write(root_ / "t5.gguf");
  for (const auto& order : {std::vector<fs::path>{high, vae, low, t5}, {t5, low, high, vae}}) {
    const Checkpoint c = find(order);
    EXPECT_EQ(c.layout, CheckpointLayout::files);
    EXPECT_THAT(c.transformer.files, ElementsAre(high));
    EXPECT_THAT(c.transformer_2.files, ElementsAre(low));
    EXPECT_EQ(c.vae.tensors, TensorSet::vae22_original);
    EXPECT_EQ(c.text_encoder.tensors, TensorSet::umt5_gguf);
    EXPECT_EQ(c.tokenizer, t5) << "embedded";
  }
  const auto explicit_tokenizer = text("my.model", "x");
  EXPECT_EQ(find({high, t5, explicit_tokenizer}).tokenizer, explicit_tokenizer);
  // Without a hint in the names the first is the high-noise network.
  const auto x = weights("x.safetensors", kDitDiffusers),
             y = weights("y.safetensors", kDitOriginal);
  EXPECT_THAT(find({y, x}).transformer.files, ElementsAre(y));
  EXPECT_THAT(error_of({x, y, high}), HasSubstr("3 transformers"));
  EXPECT_THAT(error_of({vae, weights("vae2.safetensors", kVae21)}), HasSubstr("two VAE"));
  EXPECT_THAT(error_of({weights("other.safetensors", {"a"})}), HasSubstr("holds no transformer"));
}

TEST_F(CheckpointTest, AFileReplacesThePartOfAFolder) {
  text("model_index.json", "{}");
  weights("transformer/diffusion_pytorch_model.safetensors", kDitDiffusers);
  weights("transformer_2/diffusion_pytorch_model.safetensors", kDitDiffusers);
  const auto own = weights("own.safetensors", kDitOriginal);
  const Checkpoint c = find({own, root_});
  EXPECT_THAT(c.transformer.files, ElementsAre(own));
  EXPECT_TRUE(c.transformer_2.empty());
}

// It decodes, the VAE still encodes; and only where it was asked for.
TEST_F(CheckpointTest, ATinyDecoderStandsBesideTheVae) {
  const auto transformer = weights("wan.safetensors", kDitOriginal);
  const auto vae = weights("Wan2.1_VAE.safetensors", kVae21Original);
  const auto tiny = weights("taew2_1.safetensors", kTaehv);
  Checkpoint c = find({transformer, tiny, vae});
  EXPECT_THAT(c.vae.files, ElementsAre(vae));
  EXPECT_THAT(c.tiny_decoder.files, ElementsAre(tiny));
  EXPECT_THAT(checkpoint_files(c), UnorderedElementsAre(transformer, vae, tiny));
  EXPECT_THAT(list_parts(c), HasSubstr("tiny decoder " + tiny.string()));
  EXPECT_TRUE(find({transformer, tiny}).vae.empty());
  c = find({root_});
  EXPECT_THAT(c.vae.files, ElementsAre(vae));
  EXPECT_TRUE(c.tiny_decoder.empty()) << "it only lies there";
  EXPECT_THAT(find({root_, tiny}).tiny_decoder.files, ElementsAre(tiny));
  EXPECT_THAT(error_of({transformer, tiny, weights("taehv.safetensors", kTaehv)}),
              HasSubstr("two tiny decoder candidates"));
  EXPECT_THAT(error_of({transformer, text("taew2_1.pth", "")}),
              HasSubstr("s.save_file(torch.load("));
  text("folder/model_index.json", "{}");
  weights("folder/vae/diffusion_pytorch_model.safetensors", kTaehv);
  EXPECT_THAT(error_of({root_ / "folder"}), HasSubstr("are of no vae"));
}

TEST_F(CheckpointTest, IndexesOfPicklesDoNotHideTheSafetensors) {
  text("model_index.json", "{}");
  const auto dit =
      weights("transformer/diffusion_pytorch_model-00001-of-00001.safetensors", kDitDiffusers);
  text("transformer/diffusion_pytorch_model.safetensors.index.json",
       R"({"weight_map": {"x": "diffusion_pytorch_model-00001-of-00001.safetensors"}})");
  text("transformer/diffusion_pytorch_model.bin.index.json",
       R"({"weight_map": {"x": "diffusion_pytorch_model-00001-of-00001.bin"}})");
  EXPECT_THAT(find({root_}).transformer.files, ElementsAre(dit));
  // Where there is nothing else, the pickle is what the message is about.
  text("text_encoder/pytorch_model.bin.index.json",
       R"({"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}})");
  text("text_encoder/pytorch_model-00001-of-00001.bin", "PK");
  EXPECT_THAT(error_of({root_}), HasSubstr("convert it to safetensors"));
}

TEST_F(CheckpointTest, ShardsGivenOneByOneOrByIndexBelongTogether) {
  const auto a = weights("m-00001-of-00002.safetensors", {kDitOriginal[0]});
  const auto b = weights("m-00002-of-00002.safetensors", {kDitOriginal[1]});
  EXPECT_THAT(find({b, a}).transformer.files, testing::UnorderedElementsAre(a, b));
  EXPECT_THAT(error_of({a}), HasSubstr("1 of 2 shards"));
  const auto index = text("m.safetensors.index.json", R"({"weight_map": {
    "x": "m-00001-of-00002.safetensors", "y": "m-00002-of-00002.safetensors"}})");
  EXPECT_THAT(find({index}).transformer.files, ElementsAre(a, b));
  fs::remove(b);
  EXPECT_THAT(error_of({index}), HasSubstr("m-00002-of-00002.safetensors is missing"));
}

TEST_F(CheckpointTest, NetworksThisLibraryDoesNotComputeAreRefusedByName) {
  const auto with = [&](const std::string& extra) {
    Names names = kDitDiffusers;
    names.push_back(extra);
    return error_of({weights("dit.safetensors", names)});
  };
  EXPECT_THAT(with("blocks.0.attn1.to_gate_compress.weight"), HasSubstr("VSA"));
  EXPECT_THAT(with("blocks.0.self_attn.attn_op.proj_l.weight"), HasSubstr("SLA"));
  EXPECT_EQ(with("blocks.0.attn2.add_k_proj.weight"), "accepted");
  EXPECT_EQ(with("condition_embedder.image_embedder.norm1.weight"), "accepted");
  EXPECT_THAT(with("vace_patch_embedding.weight"), HasSubstr("VACE"));
  EXPECT_THAT(with("vace_blocks.0.after_proj.weight"), HasSubstr("VACE"));
  EXPECT_THAT(with("casual_audio_encoder.weights"), HasSubstr("S2V"));
  EXPECT_THAT(with("audio_injector.injector.0.q.weight"), HasSubstr("S2V"));
  EXPECT_THAT(with("audio_proj.proj1.weight"), HasSubstr("HuMo"));
  EXPECT_THAT(with("face_adapter.fuser_blocks.0.linear1_q.weight"), HasSubstr("Animate"));
  EXPECT_THAT(with("pose_patch_embedding.weight"), HasSubstr("Animate"));
  EXPECT_THAT(with("patch_embedding_pose.weight"), HasSubstr("SCAIL"));
  EXPECT_THAT(with("patch_embedding_mask.weight"), HasSubstr("SCAIL"));
  EXPECT_THAT(with("patch_embedding_global.weight"), HasSubstr("WanDancer"));
  EXPECT_THAT(with("control_adapter.conv.weight"), HasSubstr("camera"));
  EXPECT_THAT(with("ref_conv.weight"), HasSubstr("Fun-Control"));
  EXPECT_THAT(with("fps_embedding.weight"), HasSubstr("SkyReels-V2"));
  EXPECT_THAT(with("blocks.0.cam_encoder.weight"), HasSubstr("ReCamMaster"));
  EXPECT_THAT(with("blocks.0.self_attn.q.lora_A.weight"), HasSubstr("LoRA"));
  EXPECT_THAT(with("blocks.0.self_attn.q.lora_down.weight"), HasSubstr("LoRA"));
  EXPECT_EQ(with("blocks.0.attn2.norm_added_q.weight"), "accepted");
  // Some are made of image-to-video networks: the name says the most.
  Names animate = kDitOriginal;
  animate.push_back("blocks.0.cross_attn.k_img.weight");
  animate.push_back("pose_patch_embedding.weight");
  EXPECT_THAT(error_of({weights("dit.safetensors", animate)}),
              AllOf(HasSubstr("pose_patch_embedding"), HasSubstr("an Animate network")));
}

TEST_F(CheckpointTest, OneFileForTwoPartsIsNamedWithWhatItHolds) {
  const fs::path dit = weights("dit.safetensors", kDitOriginal);
  EXPECT_THAT(error_of({dit, dit}), HasSubstr("dit.safetensors: given twice, holds a transformer"));
  EXPECT_THAT(error_of({dit, root_ / "." / "dit.safetensors"}), HasSubstr("given twice"));
  const fs::path t5 = weights("t5.safetensors", kT5);
  EXPECT_EQ(list_parts(find({dit, t5})),
            "transformer " + dit.string() + ", text encoder " + t5.string());
}

TEST_F(CheckpointTest, LinksToMissingFilesAreNamed) {
  text("model_index.json", "{}");
  fs::create_directories(root_ / "transformer");
  const fs::path link = root_ / "transformer/diffusion_pytorch_model.safetensors";
  fs::create_symlink("../../blobs/gone", link);
  const auto named =
      AllOf(HasSubstr(link.string() + ": a link to a missing file"), HasSubstr("../../blobs/gone"));
  EXPECT_THAT(error_of({root_}), named);
  EXPECT_THAT(error_of({root_ / "transformer"}), named);
  EXPECT_THAT(error_of({link}), named);
  text("transformer/x.safetensors.index.json",
       R"({"weight_map": {"t": "diffusion_pytorch_model.safetensors"}})");
  EXPECT_THAT(error_of({root_}), named);
}

// Settings that a broken download lacks would be taken for settings that were never there.
TEST_F(CheckpointTest, SettingsThatCannotBeReadAreNamed) {
  text("model_index.json", "{}");
  weights("transformer/diffusion_pytorch_model.safetensors", kDitDiffusers);
  weights("text_encoder/model.safetensors", kT5);
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
  for (const char* name : {"transformer/config.json", "text_encoder/config.json",
                           "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"}) {
    const fs::path file = text(name, "{}");
    EXPECT_EQ(error_of({root_}), "accepted") << name;
    fs::remove(file);
    fs::create_symlink("gone", file);
    EXPECT_THAT(error_of({root_}), HasSubstr(file.string() + ": a link to a missing file, gone"));
    fs::remove(file);
    if (file.filename() == "tokenizer.json") continue;  // read when a prompt is
    text(name, pointer);
    EXPECT_THAT(error_of({root_}), HasSubstr(file.string() + ": a Git LFS pointer of"));
    fs::remove(file);
  }
  fs::create_symlink("gone", root_ / "tokenizer/tokenizer.json");
  const fs::path other = text("tokenizer/spiece.model", "x");
  EXPECT_EQ(find({root_}).tokenizer, other) << "one is enough";
}

// A precision that was pruned does not stand in the way of the one that is there.
TEST_F(CheckpointTest, LinksToMissingFilesBesideWeightsAreLeftOut) {
  weights("dit.safetensors", kDitOriginal);
  fs::create_symlink("gone", root_ / "dit_fp8.safetensors");
  EXPECT_EQ(error_of({root_}), "accepted");
  fs::create_symlink("gone", root_ / "wan_vae.safetensors");
  EXPECT_THAT(error_of({root_}), HasSubstr("wan_vae.safetensors: a link to a missing file"));
}

TEST_F(CheckpointTest, ADiffusersFolderWithoutItsIndexIsNamed) {
  weights("transformer/diffusion_pytorch_model.safetensors", kDitDiffusers);
  weights("vae/diffusion_pytorch_model.safetensors", kVae21);
  EXPECT_THAT(error_of({root_}), HasSubstr("no model_index.json"));
  EXPECT_EQ(error_of({root_ / "transformer"}), "accepted");
}

TEST_F(CheckpointTest, OtherPathsAreRefusedByName) {
  EXPECT_THAT(error_of({}), HasSubstr("no path"));
  EXPECT_THAT(error_of({root_}), HasSubstr("no weights"));
  EXPECT_THAT(error_of({root_ / "none"}), HasSubstr("no such file"));
  EXPECT_THAT(error_of({text("notes.txt", "x")}), HasSubstr("expected *.safetensors"));
  EXPECT_THAT(error_of({text("x.pth", "PK")}), HasSubstr("convert"));
  fs::create_directories(root_ / "second");
  weights("vae.safetensors", kVae21);
  EXPECT_THAT(error_of({root_, root_ / "second"}), HasSubstr("a second folder"));
}

TEST(ClassifyTensors, KnowsEveryNaming) {
  EXPECT_EQ(classify_tensors(kDitDiffusers), TensorSet::wan_diffusers);
  EXPECT_EQ(classify_tensors(kDitOriginal), TensorSet::wan_original);
  EXPECT_EQ(classify_tensors(kVae21), TensorSet::vae21_diffusers);
  EXPECT_EQ(classify_tensors(kVae21Original), TensorSet::vae21_original);
  EXPECT_EQ(classify_tensors(kVae22), TensorSet::vae22_diffusers);
  EXPECT_EQ(classify_tensors(kVae22Original), TensorSet::vae22_original);
  EXPECT_EQ(classify_tensors(kTaehv), TensorSet::taehv);
  // TAESD, of pictures: what would be a matrix over time is a block.
  EXPECT_EQ(classify_tensors(Names{"decoder.1.weight", "decoder.3.conv.0.weight",
                                   "decoder.7.weight", "decoder.18.weight"}),
            TensorSet::unknown);
  EXPECT_EQ(classify_tensors(kT5), TensorSet::umt5_hugging_face);
  EXPECT_EQ(classify_tensors(kT5Original), TensorSet::umt5_original);
  EXPECT_EQ(classify_tensors(kT5Gguf), TensorSet::umt5_gguf);
  EXPECT_EQ(classify_tensors(Names{"basis", "mean", "scale"}), TensorSet::linear_vae);
  EXPECT_EQ(classify_tensors(kClipVision), TensorSet::clip_vision);
  EXPECT_EQ(classify_tensors(Names{}), TensorSet::unknown);
}

TEST(ShardFiles, OnlyPlainNamesAreFollowed) {
  EXPECT_THAT(shard_files(R"({"weight_map":{"a":"y.safetensors","b":"x.safetensors",
                              "c":"y.safetensors"}})",
                          "i"),
              ElementsAre("x.safetensors", "y.safetensors"));
  for (const char* name :
       {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\\\x.safetensors",
        ".safetensors", "x.bin", "", "x\\u0000/y.safetensors"}) {
    const std::string json = std::string(R"({"weight_map":{"a":")") + name + "\"}}";
    EXPECT_THROW(shard_files(json, "i"), Error) << name;
  }
  for (const char* json : {"", "{", "[]", "{}", R"({"weight_map":{}})", R"({"weight_map":[]})",
                           R"({"weight_map":{"a":1}})"}) {
    EXPECT_THROW(shard_files(json, "i"), Error) << json;
  }
  EXPECT_THROW(parse_config_json(std::string(1000, '['), "deep"), Error);
  EXPECT_THROW(parse_config_json(std::string(2'000'000, '['), "deep"), Error);
}

}  // namespace
}  // namespace lacuna
