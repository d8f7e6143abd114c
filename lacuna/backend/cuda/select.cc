// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/select.h"

#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/select_args.h"
#include "lacuna/core/error.h"

namespace lacuna::cuda {
namespace {

constexpr const char* kModule = "select";

void check_heads(const char* who, std::span<const int32_t> head_ids, const TensorView& x) {
  for (int32_t h : head_ids)
    LACUNA_CHECK(h >= 0 && h < x.shape[0], "{}: head {}, {} has heads 0 to {}", who, h,
                 x.describe(), x.shape[0] - 1);
}

// [heads, tokens, channels] f32 or bf16, channels contiguous.
void check_tokens(const char* who, const TensorView& x) {
  LACUNA_CHECK(x.rank == 3 && (x.dtype == DType::f32 || x.dtype == DType::bf16) &&
                   (x.stride[2] == 1 || x.shape[2] <= 1),
               "{}: {}, expected [heads, tokens, channels] f32 or bf16, contiguous channels", who,
               x.describe());
}

void check_out(const char* who, const TensorView& out, int64_t a, int64_t b, int64_t c) {
  LACUNA_CHECK(out.rank == 3 && out.dtype == DType::f32 && out.shape[0] == a && out.shape[1] == b &&
                   out.shape[2] == c,
               "{}: out {}, expected [{}, {}, {}] f32", who, out.describe(), a, b, c);
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

}  // namespace

void block_mean(Device& device, const TensorView& x, std::span<const int32_t> head_ids,
                const BlockLayout& layout, const TensorView& out) {
  constexpr const char* kWho = "block_mean";
  check_tokens(kWho, x);
  LACUNA_CHECK(layout.seq_len == x.shape[1], "{}: layout of {} tokens for {}", kWho, layout.seq_len,
               x.describe());
  const auto calls = static_cast<int64_t>(head_ids.size());
  check_out(kWho, out, calls, layout.num_blocks, x.shape[2]);
  check_heads(kWho, head_ids, x);
  if (out.numel() == 0) return;
  const Input in(device, x);
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
  device.launch(kModule, entry("block_mean", x.dtype),
                {.blocks = layout.num_blocks,
                 .blocks_y = static_cast<int32_t>(calls),
                 .threads = kBlockMeanThreads},
                args);
  to.store();
}

}  // namespace lacuna::cuda
