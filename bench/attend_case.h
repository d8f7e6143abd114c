// SPDX-License-Identifier: Apache-2.0
// One attention call for timing: made-up inputs, masks of kept blocks, and the error of its output
// on sampled rows against double.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/cpu_peak.h"
#include "lacuna/backend/attend_params.h"
#include "lacuna/backend/cpu/isa.h"
#include "lacuna/core/bf16.h"
#include "lacuna/core/block_mask.h"

namespace lacuna::bench {

enum class Logits : uint8_t {
  gaussian,   // q, k, v standard normal: logits too
  extreme,    // logits of standard deviation 40: the softmax is next to one-hot
  two_level,  // keys in pieces of kVoteKeys, of which the first of every five lies 16 above the
              // rest
};

struct CaseShape {
  int64_t heads = 1, seq_len = 16384, head_dim = 128;
  bool bf16 = false;
  Logits logits = Logits::gaussian;
};

// q, k, v and out, [heads, seq_len, head_dim] contiguous. Of bf16 cases the f32 vectors hold the
// same numbers, rounded.
struct AttendData {
  CaseShape shape;
  std::vector<float> q, k, v, out;
  std::vector<BFloat16> q16, k16, v16, out16;

  explicit AttendData(const CaseShape& shape);
  // Dense, in blocks of `block`. Points into this object.
  AttendParams params(int32_t block);
  // out16 -> out.
  void read_back();
};

// Kept blocks of every row, and the share that they are of all.
struct KeptBlocks {
  BlockMask mask;
  double density = 0;
};

// kind: random, window or frames. The block on the diagonal always stays.
KeptBlocks make_kept(const std::string& kind, int32_t blocks, int64_t heads, double density);

struct SampledError {
  double rel_l2 = 0;  // of out
  double lse = 0;     // largest absolute error; 0 when params.lse is null
};

// `rows` rows spread over the first head, against softmax in double over the kept keys, whatever
// a skip rule dropped. Call data.read_back() first.
SampledError sampled_error(const AttendData& data, const AttendParams& params, int rows);

// Floating-point operations of a call: Q K^T on `density` of all pairs, P V on `pv_density`.
double attend_flops(const AttendParams& params, double density, double pv_density);
// The unit whose arithmetic the kernel of this call does.
PeakUnit attend_unit(const AttendParams& params, cpu::Isa isa);

}  // namespace lacuna::bench
