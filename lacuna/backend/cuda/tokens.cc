// SPDX-License-Identifier: Apache-2.0
// Masks of scores, and rows of tokens: reordering and merging.
#include <string>
#include <vector>

#include "lacuna/backend/cuda/operand.h"
#include "lacuna/backend/cuda/select.h"
#include "lacuna/backend/cuda/select_args.h"
#include "lacuna/backend/select_check.h"

namespace lacuna::cuda {
namespace {

constexpr const char* kTokensModule = "select";

// Fills in the scores and the mask; adds the bits found to it. `check` gets the first score of each
// row that cannot be ranked, or 0.
void choose(Device& device, const TensorView& scores, SelectArgs args,
            void (*check)(float score, int64_t head, int64_t q_block), BlockMask& mask) {
  const int64_t rows = mask.num_heads() * mask.num_q_blocks();
  const Input in(device, scores);
  args.scores = in.as<float>();
  args.head_stride = in.stride(0), args.q_stride = in.stride(1), args.k_stride = in.stride(2);
  args.n = mask.num_k_blocks();
  args.staged = args.n <= kSelectMostStaged;
  args.num_words = static_cast<int32_t>(2 * mask.words_per_row());
  std::vector<uint64_t> words(static_cast<size_t>(rows * mask.words_per_row()));
  std::vector<float> bad(static_cast<size_t>(rows));
  const DeviceMemory device_words(device, words.size() * sizeof(uint64_t));
  const DeviceMemory device_bad(device, bad.size() * sizeof(float));
  args.words = device_words.as<uint32_t>();
  args.bad = device_bad.as<float>();
  device.launch(kTokensModule, "choose_scores",
                {.blocks = mask.num_q_blocks(),
                 .blocks_y = static_cast<int32_t>(mask.num_heads()),
                 .threads = kSelectThreads,
                 .shared_bytes = kSelectCells * static_cast<int32_t>(sizeof(double)) +
                                 (args.staged ? args.n * static_cast<int32_t>(sizeof(float)) : 0)},
                args);
  device.download(bad.data(), device_bad.as<void>(), bad.size() * sizeof(float));
  device.download(words.data(), device_words.as<void>(), words.size() * sizeof(uint64_t));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / mask.num_q_blocks();
    const auto q_block = static_cast<int32_t>(row % mask.num_q_blocks());
    check(bad[static_cast<size_t>(row)], head, q_block);
    const std::span<uint64_t> to = mask.row(head, q_block);
    for (size_t w = 0; w < to.size(); ++w) to[w] |= words[static_cast<size_t>(row) * to.size() + w];
  }
}

void permute(Device& device, const char* who, const TensorView& x, const int32_t* order,
             int64_t order_head_stride, const TensorView& out, bool scatter) {
  check_permute(who, Reach::anywhere, x, order, out, scatter);
  if (out.numel() == 0) return;
  // A gather may take tokens more than once or not at all.
  const int64_t heads = x.shape[0], tokens = out.shape[1];
  const int64_t entries = (heads - 1) * order_head_stride + tokens;
  for (int64_t h = 0; h < (order_head_stride == 0 ? 1 : heads); ++h)
    for (int64_t p = 0; p < tokens; ++p)
      check_token(who, order[h * order_head_stride + p], h, p, x.shape[1]);
  const Input from(device, x);
  InOut to(device, out);  // tokens that the order does not name stay
  const Vector<int32_t> on_device(device, order, entries);
  const int64_t size = storage_bytes(x.dtype, 1);
  // The largest unit that everything is a multiple of.
  const uint64_t all =
      reinterpret_cast<uintptr_t>(from.data()) | reinterpret_cast<uintptr_t>(to.data()) |
      static_cast<uint64_t>(
          (from.stride(0) | from.stride(1) | to.stride(0) | to.stride(1) | x.shape[2]) * size);
  int64_t unit = 16;
  while (all % static_cast<uint64_t>(unit) != 0) unit /= 2;
  PermuteArgs args{};
  args.x = from.data(), args.out = to.data();
  args.x_head_stride = from.stride(0) * size / unit;
  args.x_token_stride = from.stride(1) * size / unit;
  args.out_head_stride = to.stride(0) * size / unit;
  args.out_token_stride = to.stride(1) * size / unit;
  args.order = on_device.data();
  args.order_head_stride = order_head_stride;
  args.tokens = static_cast<int32_t>(tokens);
  args.units = static_cast<int32_t>(x.shape[2] * size / unit);
  args.scatter = scatter;
  device.launch(
      kTokensModule, "permute_" + std::to_string(unit),
      {.blocks = static_cast<int32_t>((tokens * args.units + kPermuteUnits - 1) / kPermuteUnits),
       .blocks_y = static_cast<int32_t>(heads),
       .threads = kPermuteThreads},
      args);
  to.store();
}

}  // namespace

void select_top_p(Device& device, const TensorView& scores, std::span<const float> top_p,
                  BlockMask& mask) {
  check_top_p(Reach::anywhere, scores, top_p, mask);
  if (scores.numel() == 0) return;
  const Vector<float> shares(device, top_p.data(), static_cast<int64_t>(top_p.size()));
  SelectArgs args{};
  args.top_p = shares.data();
  choose(device, scores, args, check_top_p_score, mask);
}

void select_top_k(Device& device, const TensorView& scores, std::span<const int32_t> top_k,
                  BlockMask& mask) {
  check_top_k(Reach::anywhere, scores, top_k, mask);
  if (scores.numel() == 0) return;
  const Vector<int32_t> numbers(device, top_k.data(), static_cast<int64_t>(top_k.size()));
  SelectArgs args{};
  args.top_k = numbers.data();
  choose(device, scores, args, check_top_k_score, mask);
}

void gather_tokens(Device& device, const TensorView& x, const int32_t* order,
                   int64_t order_head_stride, const TensorView& out) {
  permute(device, "gather_tokens", x, order, order_head_stride, out, false);
}

void scatter_tokens(Device& device, const TensorView& x, const int32_t* order,
                    int64_t order_head_stride, const TensorView& out) {
  permute(device, "scatter_tokens", x, order, order_head_stride, out, true);
}

void merge_lse(Device& device, const TensorView& out_a, float* lse_a, const TensorView& out_b,
               const float* lse_b) {
  check_merge(Reach::anywhere, out_a, lse_a, out_b, lse_b);
  if (out_a.numel() == 0) return;
  const int64_t heads = out_a.shape[0], rows = out_a.shape[1];
  InOut a(device, out_a), a_sums(device, make_view(lse_a, DType::f32, {heads, rows}));
  const Input b(device, out_b);
  const Vector<float> b_sums(device, lse_b, heads * rows);
  MergeArgs args{};
  args.a = a.data(), args.b = b.data();
  args.a_head_stride = a.stride(0), args.a_row_stride = a.stride(1);
  args.b_head_stride = b.stride(0), args.b_row_stride = b.stride(1);
  args.lse_a = a_sums.as<float>();
  args.lse_b = b_sums.data();
  args.rows = static_cast<int32_t>(rows);
  args.d = static_cast<int32_t>(out_a.shape[2]);
  constexpr int64_t kRows = kMergeThreads / 32;
  device.launch(kTokensModule, out_a.dtype == DType::f32 ? "merge_f32" : "merge_bf16",
                {.blocks = static_cast<int32_t>((rows + kRows - 1) / kRows),
                 .blocks_y = static_cast<int32_t>(heads),
                 .threads = kMergeThreads},
                args);
  a.store();
  a_sums.store();
}

}  // namespace lacuna::cuda
