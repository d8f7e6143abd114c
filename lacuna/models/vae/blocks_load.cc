// SPDX-License-Identifier: Apache-2.0
// Loading of the layers in blocks.h.
#include <algorithm>

#include "lacuna/core/error.h"
#include "lacuna/models/vae/blocks.h"

namespace lacuna {

// For output parity 0 the two cells are {-1}, {0, +1}; for parity 1 they are {-1, 0}, {+1}.
Tensor phase_weight(const Tensor& weight, int row_parity, int column_parity) {
  const int64_t filters = weight.view().shape[0] * weight.view().shape[1];
  Tensor out = Tensor::zeros(DType::f32, {weight.view().shape[0], weight.view().shape[1], 1, 2, 2});
  const auto cell = [](int tap, int parity) { return tap < (parity == 0 ? 1 : 2) ? 0 : 1; };
  for (int64_t f = 0; f < filters; ++f) {
    const float* taps = weight.as<float>() + f * 9;
    float* sums = out.as<float>() + f * 4;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        sums[cell(i, row_parity) * 2 + cell(j, column_parity)] += taps[i * 3 + j];
      }
    }
  }
  return out;
}

ConvParams phase_padding(int row_parity, int column_parity) {
  ConvParams params;
  params.pad_top = 1 - row_parity;
  params.pad_bottom = row_parity;
  params.pad_left = 1 - column_parity;
  params.pad_right = column_parity;
  return params;
}

namespace {

// Channels that DupUp3D reads for row and column offsets dy, dx: output channel c
// with frame offset a is the repeated input channel (c * cell + a * 4 + dy * 2 + dx) / repeats.
DupChannels dup_channels(int64_t c_in, int64_t c_out, int64_t factor_t, int dy, int dx) {
  const int64_t cell = factor_t * 4, repeats = c_out * cell / c_in;
  LACUNA_CHECK(repeats > 0 && (cell % repeats == 0 || repeats % cell == 0),
               "vae: up block of {} to {} channels repeats each {} times, expected a divisor or a "
               "multiple of {}",
               c_in, c_out, repeats, cell);
  DupChannels channels;
  for (int64_t a = 0; a < factor_t; ++a) channels.offset.push_back((a * 4 + dy * 2 + dx) / repeats);
  channels.step = std::max<int64_t>(cell / repeats, 1);
  channels.repeats = std::max<int64_t>(repeats / cell, 1);
  return channels;
}

}  // namespace

Conv load_conv(WeightReader& reader, const std::string& name, int64_t c_out, int64_t c_in,
               int64_t kt, int64_t k) {
  Conv conv;
  conv.weight = reader.stored(name + ".weight", {c_out, c_in, kt, k, k});
  conv.bias = reader.f32(name + ".bias", {c_out});
  const auto pad = static_cast<int32_t>(k / 2);
  conv.params.pad_top = conv.params.pad_bottom = conv.params.pad_left = conv.params.pad_right = pad;
  return conv;
}

CausalConv load_causal_conv(WeightReader& reader, const std::string& name, int64_t c_out,
                            int64_t c_in, int64_t kt, int64_t k) {
  return {load_conv(reader, name, c_out, c_in, kt, k), kt - 1};
}

Tensor load_gamma(WeightReader& reader, const std::string& name, int64_t c) {
  return reader.f32(name + ".gamma", {c, 1, 1, 1});
}

ResBlock load_res_block(WeightReader& reader, const std::string& name, int64_t c_in,
                        int64_t c_out) {
  ResBlock block;
  block.gamma1 = load_gamma(reader, name + ".norm1", c_in);
  block.conv1 = load_causal_conv(reader, name + ".conv1", c_out, c_in, 3, 3);
  block.gamma2 = load_gamma(reader, name + ".norm2", c_out);
  block.conv2 = load_causal_conv(reader, name + ".conv2", c_out, c_out, 3, 3);
  if (c_in != c_out) block.shortcut = load_conv(reader, name + ".conv_shortcut", c_out, c_in, 1, 1);
  return block;
}

MidBlock load_mid_block(WeightReader& reader, const std::string& name, int64_t c) {
  MidBlock mid;
  mid.before = load_res_block(reader, name + ".resnets.0", c, c);
  mid.after = load_res_block(reader, name + ".resnets.1", c, c);
  const std::string attention = name + ".attentions.0";
  mid.attention.gamma = reader.f32(attention + ".norm.gamma", {c, 1, 1});
  const TensorView qkv = reader.stored(attention + ".to_qkv.weight", {3 * c, c, 1, 1});
  mid.attention.qkv.weight = qkv.reshape({3 * c, c});
  mid.attention.qkv.bias = reader.f32(attention + ".to_qkv.bias", {3 * c});
  mid.attention.proj.weight =
      reader.stored(attention + ".proj.weight", {c, c, 1, 1}).reshape({c, c, 1, 1, 1});
  mid.attention.proj.bias = reader.f32(attention + ".proj.bias", {c});
  return mid;
}

Upsample load_upsample(WeightReader& reader, const std::string& name, int64_t c, int64_t c_out,
                       bool temporal, int64_t dup_in) {
  Upsample up;
  if (temporal) up.time = load_causal_conv(reader, name + ".time_conv", 2 * c, c, 3, 1);
  const Tensor weight = reader.passing_f32(name + ".resample.1.weight", {c_out, c, 3, 3});
  up.bias = reader.f32(name + ".resample.1.bias", {c_out});
  for (int i = 0; i < 4; ++i) {
    up.phases[i] = phase_weight(weight, i / 2, i % 2);
    if (dup_in > 0)
      up.dup_channels[i] = dup_channels(dup_in, c_out, temporal ? 2 : 1, i / 2, i % 2);
  }
  return up;
}

Downsample load_downsample(WeightReader& reader, const std::string& name, int64_t c,
                           bool temporal) {
  Downsample down;
  down.conv.weight =
      reader.stored(name + ".resample.1.weight", {c, c, 3, 3}).reshape({c, c, 1, 3, 3});
  down.conv.bias = reader.f32(name + ".resample.1.bias", {c});
  down.conv.params.stride_h = down.conv.params.stride_w = 2;
  down.conv.params.pad_bottom = down.conv.params.pad_right = 1;
  if (temporal) {
    down.time = load_causal_conv(reader, name + ".time_conv", c, c, 3, 1);
    down.time->history = 1;
    down.time->conv.params.stride_t = 2;
  }
  return down;
}

}  // namespace lacuna
