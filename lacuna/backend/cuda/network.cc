// SPDX-License-Identifier: Apache-2.0
#include "lacuna/backend/cuda/network.h"

#include <algorithm>
#include <optional>

#include "lacuna/backend/cuda/gemm.h"
#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/walk.h"
#include "lacuna/backend/network_check.h"
#include "lacuna/core/copy.h"

namespace lacuna::cuda {
namespace {

constexpr const char* kNetworkModule = "network";

static_assert(static_cast<int>(Activation::gelu_tanh) == static_cast<int>(Epilogue::gelu_tanh) &&
              static_cast<int>(Activation::silu) == static_cast<int>(Epilogue::silu));

// A block per row, which lies in its shared memory.
Grid row_grid(const char* who, const TensorView& x) {
  const int64_t bytes = kRowHeadBytes + (x.shape[1] + 3) / 4 * 16;
  LACUNA_CHECK(bytes <= kMostSharedBytes, "{}: {} channels on cuda, expected at most {}", who,
               x.shape[1], (kMostSharedBytes - kRowHeadBytes) / 4);
  return {.blocks = static_cast<int32_t>(x.shape[0]),
          .threads = kRowThreads,
          .shared_bytes = static_cast<int32_t>(bytes)};
}

// A warp per row of channel_norm, or per head.
Grid warp_grid(const char* who, int64_t warps) {
  constexpr int64_t kWarps = kChannelThreads / 32;
  const int64_t blocks = (warps + kWarps - 1) / kWarps;
  LACUNA_CHECK(blocks < INT32_MAX, "{}: {} rows on cuda, expected below {}", who, warps,
               kWarps * INT32_MAX);
  return {.blocks = static_cast<int32_t>(blocks), .threads = kChannelThreads};
}

// Kernels count rows and channels in 32 bits.
void check_counts(const char* who, const TensorView& x) {
  LACUNA_CHECK(x.shape[0] < INT32_MAX && x.shape[1] < INT32_MAX,
               "{}: {} on cuda, expected below 2^31", who, x.describe());
}

// Rotary tables on the device.
class Tables {
 public:
  Tables(Device& device, const RopeTables& r, int32_t num_heads)
      : heads_(r.summed ? num_heads : 1),
        cos_{{device, r.cos_frames, r.frames * r.pairs_frames * heads_},
             {device, r.cos_height, r.height * r.pairs_height * heads_},
             {device, r.cos_width, r.width * r.pairs_width * heads_}},
        sin_{{device, r.sin_frames, r.frames * r.pairs_frames * heads_},
             {device, r.sin_height, r.height * r.pairs_height * heads_},
             {device, r.sin_width, r.width * r.pairs_width * heads_}} {}
  void set(const RopeTables& r, int32_t head_dim, RmsNormArgs* args) const {
    args->head_dim = head_dim;
    args->summed = r.summed;
    args->height = static_cast<int32_t>(r.height), args->width = static_cast<int32_t>(r.width);
    const int32_t pairs[] = {r.pairs_frames, r.pairs_height, r.pairs_width};
    for (int axis = 0; axis < 3; ++axis) {
      args->pairs[axis] = pairs[axis] * heads_;
      args->cos[axis] = cos_[axis].data(), args->sin[axis] = sin_[axis].data();
    }
  }

 private:
  int32_t heads_;  // that have tables of their own
  Vector<float> cos_[3], sin_[3];
};

// Elementwise, of checked views.
void pairwise(Device& device, const char* who, const TensorView& a, const TensorView& b,
              const TensorView& out) {
  if (out.numel() == 0) return;
  const Input first(device, a), second(device, b);
  Output to(device, out);
  const auto placed = [](const TensorView& view, const Operand& operand) {
    TensorView on_device = view;
    on_device.data = operand.data();
    for (int i = 0; i < view.rank; ++i) on_device.stride[i] = operand.stride(i);
    return on_device;
  };
  const Loops loops({placed(a, first), placed(b, second), placed(out, to)});
  PairArgs args{};
  args.bf16 = is_bf16(out);
  args.vector = loops.whole_quads();
  const int64_t bytes = storage_bytes(out.dtype, 1);
  loops.launch(4, [&](const Walk& walk, const int64_t(&at)[kWalkViews]) {
    args.walk = walk;
    args.a = first.as<char>() + at[0] * bytes;
    args.b = second.as<char>() + at[1] * bytes;
    args.out = to.as<char>() + at[2] * bytes;
    device.launch(kNetworkModule, who, {.blocks = walk_blocks(walk.total), .threads = kWalkThreads},
                  args);
  });
  to.store();
}

}  // namespace

void linear(Device& device, Resident& weights, const TensorView& x, const TensorView& w,
            const float* bias, Epilogue epilogue, const float* gate, const TensorView& out) {
  check_linear(Reach::anywhere, x, w, epilogue, out);
  for (const TensorView* t : {&x, &w}) check_counts("linear", *t);
  const bool residual = epilogue == Epilogue::residual;
  if (out.numel() == 0) return;
  const int64_t n = w.shape[0];
  const Input in(device, x);
  const Resident::Weight weight = weights.get(w);
  const Vector<float> biases(device, bias, n), gates(device, residual ? gate : nullptr, n);
  // Only a residual reads what is there.
  std::optional<InOut> sum;
  std::optional<Output> plain;
  const Operand& to =
      residual ? static_cast<const Operand&>(sum.emplace(device, out)) : plain.emplace(device, out);
  Gemm g{};
  g.x = in.data(), g.x_stride = in.stride(0);
  g.w = weight.data(), g.w_stride = w.stride[0];
  g.out = to.data(), g.out_stride = to.stride(0);
  if (residual) g.base = to.data(), g.base_stride = to.stride(0);
  g.bias = biases.data(), g.gate = gates.data();
  g.m = static_cast<int32_t>(x.shape[0]);
  g.n = static_cast<int32_t>(n);
  g.k = static_cast<int32_t>(x.shape[1]);
  g.bf16 = is_bf16(x), g.out_bf16 = is_bf16(out);
  g.activation = residual ? Activation::none : static_cast<Activation>(epilogue);
  gemm(device, g, scratch_bytes(device, kGemmPartBytes));
  if (sum) sum->store();
  if (plain) plain->store();
}

void layer_norm(Device& device, const TensorView& x, const float* weight, const float* bias,
                const float* scale, const float* shift, float eps, const TensorView& out) {
  check_layer_norm(Reach::anywhere, x, out);
  check_counts("layer_norm", x);
  if (out.numel() == 0) return;
  const int64_t d = x.shape[1];
  const Input in(device, x);
  Output to(device, out);
  const Vector<float> weights(device, weight, d), biases(device, bias, d), scales(device, scale, d),
      shifts(device, shift, d);
  LayerNormArgs args{};
  args.x = in.as<float>(), args.x_stride = in.stride(0);
  args.out = to.data(), args.out_stride = to.stride(0);
  args.weight = weights.data(), args.bias = biases.data();
  args.scale = scales.data(), args.shift = shifts.data();
  args.eps = eps;
  args.d = static_cast<int32_t>(d);
  args.out_bf16 = is_bf16(out);
  args.vector = whole_quads(in.data(), false, in.stride(0)) &&
                whole_quads(to.data(), args.out_bf16, to.stride(0));
  device.launch(kNetworkModule, "layer_norm", row_grid("layer_norm", x), args);
  to.store();
}

void rms_norm(Device& device, const TensorView& x, const float* weight, float eps, NormSpan span,
              const RopeTables* rope, int32_t num_heads, const TensorView& out) {
  check_rms_norm(Reach::anywhere, x, weight, span, rope, num_heads, out);
  check_counts("rms_norm", x);
  if (out.numel() == 0) return;
  const Input in(device, x);
  Output to(device, out);
  const bool by_head = span == NormSpan::head;
  const int64_t spanned = by_head ? x.shape[1] / num_heads : x.shape[1];
  const Vector<float> weights(device, weight, spanned);
  RmsNormArgs args{};
  args.x = in.data(), args.x_stride = in.stride(0);
  args.out = to.data(), args.out_stride = to.stride(0);
  args.weight = weights.data();
  args.eps = eps;
  args.d = static_cast<int32_t>(x.shape[1]);
  args.rows = static_cast<int32_t>(x.shape[0]), args.span = static_cast<int32_t>(spanned);
  args.bf16 = is_bf16(x), args.out_bf16 = is_bf16(out);
  args.vector = whole_quads(in.data(), args.bf16, in.stride(0)) &&
                whole_quads(to.data(), args.out_bf16, to.stride(0)) &&
                (!by_head || spanned % 4 == 0);
  std::optional<Tables> tables;
  if (rope != nullptr)
    tables.emplace(device, *rope, num_heads)
        .set(*rope, static_cast<int32_t>(x.shape[1] / num_heads), &args);
  const char* kernel = by_head ? "rms_norm_heads" : args.summed ? "rms_norm_summed" : "rms_norm";
  const Grid grid =
      by_head ? warp_grid("rms_norm", x.shape[0] * int64_t{num_heads}) : row_grid("rms_norm", x);
  device.launch(kNetworkModule, kernel, grid, args);
  to.store();
}

void gated_product(Device& device, Epilogue activation, const TensorView& gate,
                   const TensorView& up, const TensorView& out) {
  check_gated_product(Reach::anywhere, activation, gate, up, out);
  pairwise(device, activation == Epilogue::silu ? "silu_mul" : "gelu_mul", gate, up, out);
}

void add(Device& device, const TensorView& a, const TensorView& b, const TensorView& out) {
  check_add(a, b, out);
  pairwise(device, "add", a, b, out);
}

void channel_norm(Device& device, const TensorView& x, const float* gamma, bool silu,
                  const TensorView& out) {
  check_channel_norm(Reach::anywhere, x, gamma, out);
  if (x.numel() == 0) return;
  const int64_t c = x.shape[x.rank - 1];
  const Input in(device, x);
  Output to(device, out);
  const Vector<float> gammas(device, gamma, c);
  ChannelNormArgs args{};
  args.x = in.data(), args.out = to.data(), args.gamma = gammas.data();
  args.rows = x.numel() / c;
  args.c = static_cast<int32_t>(c);
  args.bf16 = is_bf16(x);
  args.silu = silu;
  args.vector = whole_quads(in.data(), args.bf16, c) && whole_quads(to.data(), args.bf16, c);
  device.launch(kNetworkModule, "channel_norm", warp_grid("channel_norm", args.rows), args);
  to.store();
}

void group_norm(Device& device, const TensorView& x, int32_t num_groups, const float* weight,
                const float* bias, float eps, bool silu, const TensorView& out,
                int64_t most_chunks) {
  check_group_norm(Reach::anywhere, x, num_groups, weight, bias, out);
  if (x.numel() == 0) return;
  const int64_t n = x.shape[0], m = x.shape[1], c = x.shape[2], quads = (c + 3) / 4;
  const Input in(device, x);
  Output to(device, out);
  const Vector<float> weights(device, weight, c), biases(device, bias, c);
  GroupNormArgs args{};
  args.x = in.data(), args.out = to.data();
  args.weight = weights.data(), args.bias = biases.data();
  args.m = m, args.groups = num_groups, args.eps = eps;
  args.bf16 = is_bf16(x), args.silu = silu;
  args.vector = whole_quads(in.data(), args.bf16, c) && whole_quads(to.data(), args.bf16, c);
  const int64_t lanes = std::max<int64_t>(1, kGroupThreads / quads);
  const int64_t shared = lanes * quads * 4 * kGroupSumsBytes;
  LACUNA_CHECK(shared <= kMostSharedBytes, "group_norm: {} channels on cuda, expected at most {}",
               c, kMostSharedBytes / kGroupSumsBytes);
  args.c = static_cast<int32_t>(c), args.c_stride = static_cast<int32_t>(quads * 4);
  args.lanes = static_cast<int32_t>(lanes);
  // By shape alone, so that sums have one order.
  const int64_t run = lanes * kGroupRun;
  const int64_t chunk_rows = (m / run / most_chunks + 1) * run;
  const int64_t chunks = (m + chunk_rows - 1) / chunk_rows;
  LACUNA_CHECK(chunk_rows < INT32_MAX && n * chunks < INT32_MAX && n * num_groups < INT32_MAX,
               "group_norm: {} on cuda, expected fewer rows", x.describe());
  args.chunk_rows = static_cast<int32_t>(chunk_rows), args.chunks = static_cast<int32_t>(chunks);
  const DeviceMemory sums(device, static_cast<size_t>(n * num_groups * chunks * kGroupSumsBytes));
  const DeviceMemory coefficients(device, static_cast<size_t>(n * 3 * args.c_stride) * 4);
  args.sums = sums.as<void>(), args.coefficients = coefficients.as<float>();
  const Grid by_chunk{.blocks = static_cast<int32_t>(n * chunks),
                      .threads = kGroupThreads,
                      .shared_bytes = static_cast<int32_t>(shared)};
  device.launch(kNetworkModule, "group_sums", by_chunk, args);
  device.launch(kNetworkModule, "group_coefficients",
                {.blocks = static_cast<int32_t>(n * num_groups),
                 .threads = kGroupThreads,
                 .shared_bytes = kGroupThreads * kGroupSumsBytes},
                args);
  device.launch(kNetworkModule, "group_apply",
                {.blocks = by_chunk.blocks, .threads = kGroupThreads}, args);
  to.store();
}

}  // namespace lacuna::cuda
