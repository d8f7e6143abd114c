// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/wan/names.h"

#include <gmock/gmock.h>

#include <set>

#include "lacuna/models/wan/hash_case.h"
#include "tests/models/wan/support.h"

namespace lacuna {
namespace {

using testing::error_of;
using testing::FakeFile;
using ::testing::HasSubstr;
using testing::make_file;
using testing::tensors_of;

TEST(WanNames, EveryTensorTranslatesThereAndBack) {
  std::set<std::string> originals;
  const auto tensors = tensors_of(golden_wan_config());
  for (const auto& [name, shape] : tensors) {
    const std::string original = wan_to_original(name);
    EXPECT_FALSE(original.empty()) << name;
    EXPECT_EQ(wan_to_diffusers(original), name);
    originals.insert(original);
  }
  EXPECT_EQ(tensors.size(), 96u);
  EXPECT_EQ(originals.size(), 96u);  // one to one
}

TEST(WanNames, ThoseOfImageKeysToo) {
  WanConfig config = golden_wan_config();
  config.in_channels = 36, config.image_dim = 80, config.image_positions = 14;
  for (const auto& [name, shape] : tensors_of(config)) {
    EXPECT_EQ(wan_to_diffusers(wan_to_original(name)), name);
    EXPECT_EQ(wan_shape(config, name), shape) << name;
  }
  const std::string embedder = "condition_embedder.image_embedder.";
  EXPECT_EQ(wan_to_original(embedder + "ff.net.2.bias"), "img_emb.proj.3.bias");
  EXPECT_EQ(wan_to_original(embedder + "norm2.weight"), "img_emb.proj.4.weight");
  EXPECT_EQ(wan_to_original(embedder + "pos_embed"), "img_emb.emb_pos");
  EXPECT_EQ(wan_to_original("blocks.3.attn2.add_v_proj.weight"),
            "blocks.3.cross_attn.v_img.weight");
  EXPECT_EQ(wan_to_diffusers("blocks.3.cross_attn.norm_k_img.weight"),
            "blocks.3.attn2.norm_added_k.weight");
  EXPECT_EQ(wan_module_of_flat("img_emb_proj_1"), embedder + "ff.net.0.proj");
  EXPECT_EQ(wan_module_of_flat("blocks_3_cross_attn_k_img"), "blocks.3.attn2.add_k_proj");
  // A network without them has no such shapes.
  for (const std::string& name :
       {embedder + "norm1.bias", embedder + "pos_embed", embedder + "ff.net.2.weight",
        std::string("blocks.0.attn2.add_k_proj.bias"),
        std::string("blocks.0.attn2.norm_added_k.weight")})
    EXPECT_TRUE(wan_shape(golden_wan_config(), name).empty()) << name;
}

TEST(WanNames, SpotChecks) {
  // The affine norm before cross-attention is norm2 here and norm3 there.
  EXPECT_EQ(wan_to_original("blocks.7.norm2.bias"), "blocks.7.norm3.bias");
  EXPECT_EQ(wan_to_diffusers("blocks.7.norm2.bias"), "");
  EXPECT_EQ(wan_to_original("scale_shift_table"), "head.modulation");
  EXPECT_EQ(wan_to_original("blocks.12.scale_shift_table"), "blocks.12.modulation");
  EXPECT_EQ(wan_to_original("blocks.0.attn2.to_out.0.weight"), "blocks.0.cross_attn.o.weight");
  EXPECT_EQ(wan_to_diffusers("blocks.3.ffn.2.weight"), "blocks.3.ffn.net.2.weight");
  EXPECT_EQ(wan_to_diffusers("text_embedding.2.bias"),
            "condition_embedder.text_embedder.linear_2.bias");
}

TEST(WanNames, ForeignNamesAreEmpty) {
  for (const char* name :
       {"", "blocks.", "blocks..norm2.bias", "blocks.x.norm2.bias", "blocks.1", "blocks.1.",
        "blocks.07.attn1.to_q.weight", "blocks.-0.norm2.bias",
        "blocks.99999999999999999999.attn1.to_q.weight", "blocks.1.attn1.to_q.lora_A",
        "scale_shift_table.weight", "encoder.weight", "patch_embedding."}) {
    EXPECT_EQ(wan_to_original(name), "") << name;
  }
  EXPECT_THAT(error_of([] { wan_rename({})("encoder.weight"); }), HasSubstr("encoder.weight"));
}

TEST(WanNames, ShapesAreThoseThatTheNetworkAsksFor) {
  WanConfig config = golden_wan_config();
  config.freq_dim = 64;
  config.patch_t = 2;
  for (const auto& [name, shape] : tensors_of(config))
    EXPECT_EQ(wan_shape(config, name), shape) << name;
  for (const char* name :
       {"", "blocks.3.norm2.bias", "blocks.0.attn1.norm_q.bias", "blocks.0.self_attn.q.weight",
        "blocks.99999999999999999999.norm2.bias", "blocks.99999999999999999999.attn1.to_q.weight",
        "blocks.00.attn1.to_q.weight", "blocks.-1.norm2.bias", "head.modulation"})
    EXPECT_TRUE(wan_shape(config, name).empty()) << name;
}

TEST(WanNames, FlatNamesAreModules) {
  EXPECT_EQ(wan_module_of_flat("blocks_12_self_attn_q"), "blocks.12.attn1.to_q");
  EXPECT_EQ(wan_module_of_flat("blocks_0_attn2_to_out_0"), "blocks.0.attn2.to_out.0");
  EXPECT_EQ(wan_module_of_flat("blocks_3_ffn_2"), "blocks.3.ffn.net.2");
  EXPECT_EQ(wan_module_of_flat("blocks_3_norm3"), "blocks.3.norm2");
  EXPECT_EQ(wan_module_of_flat("head_head"), "proj_out");
  EXPECT_EQ(wan_module_of_flat("time_projection_1"), "condition_embedder.time_proj");
  for (const char* flat : {"", "blocks_", "blocks_1", "blocks_1_", "blocks_x_ffn_2",
                           "blocks_-0_ffn_2", "blocks_00_ffn_2", "blocks_1_q",
                           "blocks_1_modulation", "blocks.1.ffn.2", "head_modulation"})
    EXPECT_EQ(wan_module_of_flat(flat), "") << flat;
}

TEST(WanNames, DetectsSchemeAndPrefix) {
  for (const char* prefix : {"", "model.", "model.diffusion_model.", "diffusion_model."}) {
    for (const WanNaming naming : {WanNaming::diffusers, WanNaming::original}) {
      const FakeFile file = make_file(golden_wan_config(), {naming, prefix});
      const WanNames found = detect_wan_names(file);
      EXPECT_EQ(found.naming, naming);
      EXPECT_EQ(found.prefix, prefix);
    }
  }
  FakeFile other;
  other.shapes["encoder.weight"] = {1};
  const std::string message = error_of([&] { detect_wan_names(other); });
  EXPECT_THAT(message, HasSubstr("fake.safetensors"));
  EXPECT_THAT(message, HasSubstr("self_attn.norm_q"));
}

}  // namespace
}  // namespace lacuna
