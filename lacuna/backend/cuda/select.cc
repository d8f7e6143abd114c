// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/select.h"

#include <algorithm>
#include <string>

#include "lacuna/backend/compat_padding.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/select_args.h"
#include "lacuna/backend/select_check.h"
#include "lacuna/core/round.h"

namespace lacuna::cuda {
namespace {

constexpr const char* kSelectModule = "select";

// Kernels count tokens in 32 bits.
void check_tokens(const char* who, const TensorView& x) {
  LACUNA_CHECK(x.shape[1] < (1 << 30), "{}: {} on cuda, expected below 2^30 tokens", who,
               x.describe());
}

std::string entry(const char* name, DType dtype) {
  return std::string(name) + (dtype == DType::f32 ? "_f32" : "_bf16");
}

// A layout whose offsets lie on the device.
class Layout {
 public:
  Layout(Device& device, const BlockLayout& layout)
      : offsets_(device, layout.offsets.empty() ? nullptr : layout.offsets.data(),
                 static_cast<int64_t>(layout.offsets.size())),
        args_{offsets_.data(), layout.block, layout.num_blocks,
              static_cast<int32_t>(layout.seq_len)} {}
  const BlockArgs& args() const { return args_; }

 private:
  Vector<int32_t> offsets_;
  BlockArgs args_;
};

// The rows of a product: `group` tokens each.
RowsArgs rows_of(const Operand& x, const TensorView& view, int32_t group = 1,
                 TokenOrder order = TokenOrder::forward) {
  const int64_t piece = 16 / storage_bytes(view.dtype, 1);
  const bool vector = reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 && x.stride(0) % piece == 0 &&
                      x.stride(1) % piece == 0 && view.shape[2] % piece == 0;
  return {x.data(),
          x.stride(0),
          x.stride(1),
          static_cast<int32_t>(view.shape[1]),
          static_cast<int32_t>(view.shape[2]),
          group,
          order,
          vector};
}

template <typename Args>
void set_out(Args& args, const Output& out) {
  args.out = out.as<float>();
  args.out_head_stride = out.stride(0);
  args.out_q_stride = out.stride(1);
  args.out_k_stride = out.stride(2);
}

Grid product_grid(int64_t blocks, int64_t blocks_y = 1) {
  return {.blocks = static_cast<int32_t>(blocks),
          .blocks_y = static_cast<int32_t>(blocks_y),
          .threads = kProductThreads,
          .shared_bytes = kProductSharedBytes};
}

}  // namespace

void block_mean(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                const BlockLayout& layout, const TensorView& out) {
  check_block_mean(Reach::anywhere, x, head_ids, layout, out);
  check_tokens("block_mean", x);
  const auto calls = static_cast<int64_t>(head_ids.size());
  if (out.numel() == 0) return;
  const Input in(device, x, head_ids);
  Output to(device, out);
  const Vector<int32_t> heads(device, head_ids.data(), calls);
  const Layout blocks(device, layout);
  BlockMeanArgs args{};
  args.x = in.data();
  args.x_head_stride = in.stride(0), args.x_token_stride = in.stride(1);
  args.head_ids = heads.data();
  args.blocks = blocks.args();
  args.d = static_cast<int32_t>(x.shape[2]);
  args.out = to.as<float>();
  args.out_head_stride = to.stride(0), args.out_block_stride = to.stride(1);
  args.out_channel_stride = to.stride(2);
  device.launch(kSelectModule, entry("block_mean", x.dtype),
                {.blocks = layout.num_blocks,
                 .blocks_y = static_cast<int32_t>(calls),
                 .threads = kBlockMeanThreads},
                args);
  to.store();
}

void antidiagonal_scores(Device& device, const TensorView& q, const TensorView& k,
                         std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                         const BlockLayout& k_layout, float sm_scale, int32_t stride, bool compat,
                         const TensorView& out) {
  check_antidiagonal(Reach::anywhere, q, k, head_ids, q_layout, k_layout, stride, out);
  for (const TensorView* x : {&q, &k}) check_tokens("antidiagonal_scores", *x);
  if (out.numel() == 0) return;
  const auto calls = static_cast<int64_t>(head_ids.size());
  const Input in_q(device, q, head_ids), in_k(device, k, head_ids);
  Output to(device, out);
  const Vector<int32_t> heads(device, head_ids.data(), calls);
  AntidiagonalArgs args{};
  args.q = rows_of(in_q, q, stride, compat ? TokenOrder::backward_padded : TokenOrder::backward);
  args.k = rows_of(in_k, k, stride);
  args.head_ids = heads.data();
  args.q_groups = static_cast<int32_t>(ceil_div(q.shape[1], stride));
  args.k_groups = static_cast<int32_t>(ceil_div(k.shape[1], stride));
  args.q_per_block = q_layout.block / stride, args.k_per_block = k_layout.block / stride;
  args.q_blocks = q_layout.num_blocks, args.k_blocks = k_layout.num_blocks;
  args.blocks_per_item = std::max(1, kProductRows / args.q_per_block);
  args.items = static_cast<int32_t>(ceil_div(args.q_blocks, args.blocks_per_item));
  args.calls = static_cast<int32_t>(calls);
  args.scale_log2 = sm_scale * kLog2E;
  args.compat = compat;
  if (compat) {
    const CompatPadding padding = compat_padding(k.shape[1], stride, k_layout.block);
    args.num_zero = static_cast<float>(padding.groups);
    args.zero_in_last = static_cast<float>(padding.in_last_block);
  }
  set_out(args, to);
  // As many as run at once, two to a multiprocessor: each has its own scratch.
  const int64_t blocks =
      std::min<int64_t>(calls * args.items, 2 * int64_t{device.multiprocessors()});
  const DeviceMemory parts(
      device, static_cast<size_t>(blocks * args.k_blocks * kProductRows) * sizeof(float));
  args.parts = parts.as<float>();
  device.launch(kSelectModule, entry("antidiagonal", q.dtype), product_grid(blocks), args);
  to.store();
}

void block_mass(Device& device, const TensorView& q, const TensorView& k, const float* lse,
                std::span<const int32_t> head_ids, const BlockLayout& q_layout,
                const BlockLayout& k_layout, float sm_scale, const TensorView& out) {
  check_block_mass(Reach::anywhere, q, k, lse, head_ids, q_layout, k_layout, out);
  for (const TensorView* x : {&q, &k}) check_tokens("block_mass", *x);
  if (out.numel() == 0) return;
  const auto calls = static_cast<int64_t>(head_ids.size());
  const Input in_q(device, q, head_ids), in_k(device, k, head_ids);
  Output to(device, out);
  const Vector<int32_t> heads(device, head_ids.data(), calls);
  const Vector<float> sums(device, lse, q.shape[0] * q.shape[1]);
  const Layout q_blocks(device, q_layout), k_blocks(device, k_layout);
  BlockMassArgs args{};
  args.q = rows_of(in_q, q);
  args.k = rows_of(in_k, k);
  args.head_ids = heads.data();
  args.q_blocks = q_blocks.args(), args.k_blocks = k_blocks.args();
  const bool several = q_layout.offsets.empty() && q_layout.block <= kProductRows;
  args.blocks_per_item = several ? kProductRows / q_layout.block : 1;
  args.scale_log2 = sm_scale * kLog2E;
  args.lse = sums.data();
  set_out(args, to);
  device.launch(kSelectModule, entry("block_mass", q.dtype),
                product_grid(ceil_div(q_layout.num_blocks, args.blocks_per_item), calls), args);
  to.store();
}

void nearest_centroids(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                       const TensorView& centroids, const TensorView& labels) {
  check_nearest(Reach::anywhere, x, head_ids, centroids, labels);
  check_tokens("nearest_centroids", x);
  const auto calls = static_cast<int64_t>(head_ids.size());
  if (labels.numel() == 0) return;
  const Input in(device, x, head_ids), points(device, centroids);
  Output to(device, labels);
  const Vector<int32_t> heads(device, head_ids.data(), calls);
  NearestArgs args{};
  args.x = rows_of(in, x);
  args.centroids = rows_of(points, centroids);
  args.head_ids = heads.data();
  args.count = static_cast<int32_t>(centroids.shape[1]);
  const DeviceMemory norms(device, static_cast<size_t>(calls * args.count) * sizeof(float));
  args.norms = norms.as<float>();
  args.labels = to.as<int32_t>();
  device.launch(kSelectModule, entry("half_norms", x.dtype),
                {.blocks = static_cast<int32_t>(ceil_div(args.count, kNormThreads / 32)),
                 .blocks_y = static_cast<int32_t>(calls),
                 .threads = kNormThreads},
                args);
  device.launch(kSelectModule, entry("nearest", x.dtype),
                product_grid(ceil_div(x.shape[1], kProductRows), calls), args);
  to.store();
}

}  // namespace lacuna::cuda
