// SPDX-License-Identifier: Apache-2.0
#include "lacuna/models/vae/decode_run.h"

#include <utility>
#include <vector>

#include "lacuna/core/error.h"

namespace lacuna {

DecodeRun::DecodeRun(const TensorView& given, int64_t channels, std::span<const float> model_mean,
                     std::span<const float> model_std, const DecodeOptions& how,
                     const FrameSink& to)
    : latents(given), options(how), sink(to) {
  LACUNA_CHECK(latents.rank == 4 && latents.dtype == DType::f32 && latents.contiguous() &&
                   latents.shape[0] == channels && latents.numel() > 0,
               "vae decode: latents {}, expected contiguous [{}, T, h, w] f32", latents.describe(),
               channels);
  LACUNA_CHECK(options.frames_per_pass >= 1, "vae decode: {} frames per pass, expected 1 or more",
               options.frames_per_pass);
  if (options.denormalize) {
    LACUNA_CHECK(!model_std.empty(), "vae decode: model without latent statistics, {}",
                 "expected latents_mean and latents_std in its config");
    mean = model_mean;
    std_dev = model_std;
  }
  if (options.stats != nullptr) *options.stats = {};
}

void DecodeRun::finish_pass(const Stream& stream, int64_t latent_frames) {
  if (options.stats != nullptr) {
    options.stats->buffer_bytes =
        std::max(options.stats->buffer_bytes, assembly_bytes + stream.bytes());
  }
  if (latent_frames == 0) return;
  done += latent_frames;
  if (options.progress) options.progress(done, total);
}

Tensor DecodeRun::assembly(DType dtype, std::initializer_list<int64_t> shape, Memory& memory) {
  Tensor tensor(dtype, shape, memory);
  assembly_bytes += storage_bytes(dtype, tensor.numel());
  return tensor;
}

void DecodeRun::release(Tensor& tensor) {
  if (!tensor.empty()) assembly_bytes -= storage_bytes(tensor.view().dtype, tensor.numel());
  tensor = Tensor();
}

void DecodeRun::emit(const TensorView& raw, int64_t patch) const {
  constexpr int64_t kFrames = 4;
  Workspace buffer;
  for (int64_t begin = 0; begin < raw.shape[0]; begin += kFrames) {
    const TensorView part = raw.slice(begin, std::min(raw.shape[0], begin + kFrames));
    const TensorView out = buffer.get(
        "frames", DType::f32, {part.shape[0], part.shape[1] * patch, part.shape[2] * patch, 3});
    unpatchify(part, patch, out);
    sink(out);
  }
}

void blend_tiles(Backend& backend, DecodeRun& run, const BlendPlan& plan, int64_t scale,
                 const TileDecoder& decode_tile, const TensorView& raw) {
  const int64_t h = run.latents.shape[2], w = run.latents.shape[3];
  const int64_t rows = plan.rows(h), columns = plan.columns(w);
  std::vector<Tensor> above(static_cast<size_t>(columns)), row(static_cast<size_t>(columns));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      Region part{i * plan.stride_height, j * plan.stride_width, 0, 0};
      part.height = std::min(plan.tile_height, h - part.top);
      part.width = std::min(plan.tile_width, w - part.left);
      const Region map{0, 0, part.height * scale, part.width * scale};
      const auto column = static_cast<size_t>(j);
      Tensor& tile = row[column];
      tile = run.assembly(DType::f32, {raw.shape[0], map.height, map.width, raw.shape[3]});
      decode_tile(part, tile);
      if (i > 0) blend_rows(above[column], tile, plan.blend_height);
      if (j > 0) blend_columns(row[column - 1], tile, plan.blend_width);
      const int64_t top = part.top * scale, left = part.left * scale;
      const Region kept{0, 0, std::min({plan.out_stride_height, map.height, h * scale - top}),
                        std::min({plan.out_stride_width, map.width, w * scale - left})};
      paste_region(backend, tile, kept, 0, top, left, raw);
    }
    for (Tensor& old : above) run.release(old);
    std::swap(above, row);
  }
  for (Tensor& old : above) run.release(old);
}

}  // namespace lacuna
