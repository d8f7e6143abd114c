// SPDX-License-Identifier: Apache-2.0
// Loading of the layers in group_blocks.h.
#include <algorithm>

#include "lacuna/models/layers.h"
#include "lacuna/models/vae/group_blocks.h"

namespace lacuna {
namespace {

// Which of the cells that a parity of an axis reads a tap falls on. Rows and columns: parity 0
// reads {-1}, {0, +1}, parity 1 {-1, 0}, {+1}. Frames, which see the past: of -2, -1 and 0, parity
// 0 (the first copy of a frame) reads {-2, -1}, {0}, parity 1 {-2}, {-1, 0}.
int64_t side_cell(int64_t tap, int64_t parity) {
  return tap < 1 + parity ? 0 : 1;
}
int64_t time_cell(int64_t tap, int64_t parity) {
  return tap < 2 - parity ? 0 : 1;
}

// weight [c_out, c, 3, 3, 3] -> [c_out, c, 2 or 3, 2, 2].
Tensor summed_taps(const Tensor& weight, bool temporal, int64_t dt, int64_t dy, int64_t dx) {
  const auto& shape = weight.view().shape;
  const int64_t kt = temporal ? 2 : 3;
  Tensor out = Tensor::zeros(DType::f32, {shape[0], shape[1], kt, 2, 2});
  for (int64_t f = 0; f < shape[0] * shape[1]; ++f) {
    const float* taps = weight.as<float>() + f * 27;
    float* sums = out.as<float>() + f * kt * 4;
    for (int64_t k = 0; k < 27; ++k) {
      const int64_t cell = temporal ? time_cell(k / 9, dt) : k / 9;
      sums[(cell * 2 + side_cell(k / 3 % 3, dy)) * 2 + side_cell(k % 3, dx)] += taps[k];
    }
  }
  return out;
}

}  // namespace

GroupNorm load_group_norm(WeightReader& reader, const std::string& name, int64_t c,
                          const GroupNormKind& kind) {
  return {kind, reader.f32(name + ".weight", {c}), reader.f32(name + ".bias", {c})};
}

ReplicateConv load_replicate_conv(WeightReader& reader, const std::string& name, int64_t c_out,
                                  int64_t c_in) {
  return {reader.stored(name + ".conv.weight", {c_out, c_in, 3, 3, 3}),
          reader.f32(name + ".conv.bias", {c_out})};
}

GroupResBlock load_group_res_block(WeightReader& reader, const std::string& name, int64_t c_in,
                                   int64_t c_out, const GroupNormKind& kind,
                                   const std::string& norm_layer) {
  GroupResBlock block;
  block.norm1 = load_group_norm(reader, name + ".norm1" + norm_layer, c_in, kind);
  block.conv1 = load_replicate_conv(reader, name + ".conv1", c_out, c_in);
  block.norm2 = load_group_norm(reader, name + ".norm2" + norm_layer, c_out, kind);
  block.conv2 = load_replicate_conv(reader, name + ".conv2", c_out, c_out);
  if (c_in != c_out) {
    block.shortcut = load_conv(reader, name + ".conv_shortcut.conv", c_out, c_in, 1, 1);
  }
  return block;
}

FrameCausalAttention load_frame_causal_attention(WeightReader& reader, const std::string& name,
                                                 int64_t c, const GroupNormKind& kind) {
  FrameCausalAttention attention;
  attention.norm = load_group_norm(reader, name + ".group_norm", c, kind);
  attention.q = read_linear(reader, name + ".to_q", c, c);
  attention.k = read_linear(reader, name + ".to_k", c, c);
  attention.v = read_linear(reader, name + ".to_v", c, c);
  attention.proj.weight = reader.stored(name + ".to_out.0.weight", {c, c}).reshape({c, c, 1, 1, 1});
  attention.proj.bias = reader.f32(name + ".to_out.0.bias", {c});
  return attention;
}

ReplicateUpsample load_replicate_upsample(WeightReader& reader, const std::string& name, int64_t c,
                                          bool temporal) {
  ReplicateUpsample up;
  up.temporal = temporal;
  const Tensor weight = reader.passing_f32(name + ".conv.weight", {c, c, 3, 3, 3});
  up.bias = reader.f32(name + ".conv.bias", {c});
  for (int64_t phase = 0; phase < (temporal ? 8 : 4); ++phase) {
    up.phases.push_back(summed_taps(weight, temporal, phase / 4, phase / 2 % 2, phase % 2));
  }
  return up;
}

DepthToSpace load_depth_to_space(WeightReader& reader, const std::string& name, int64_t c_out,
                                 int64_t c, int64_t frames, int64_t side) {
  DepthToSpace up;
  up.frames = frames;
  up.side = side;
  const int64_t cell = frames * side * side;
  const Tensor weight = reader.passing_f32(name + ".weight", {c_out * cell, c});
  const Tensor bias = reader.passing_f32(name + ".bias", {c_out * cell});
  // Stored channel o * cell + i is channel o of place i.
  for (int64_t i = 0; i < cell; ++i) {
    Tensor rows(DType::f32, {c_out, c}), offsets(DType::f32, {c_out});
    for (int64_t o = 0; o < c_out; ++o) {
      std::copy_n(weight.as<float>() + (o * cell + i) * c, c, rows.as<float>() + o * c);
      offsets.as<float>()[o] = bias.as<float>()[o * cell + i];
    }
    up.weights.push_back(std::move(rows));
    up.biases.push_back(std::move(offsets));
  }
  return up;
}

}  // namespace lacuna
