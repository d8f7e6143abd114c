// SPDX-License-Identifier: Apache-2.0
// One attention call as tests describe it: inputs by seed, poisoned strided tensors, layouts, mask,
// bias and skip rule; run() gives every output of a backend.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "lacuna/backend/backend.h"
#include "tests/support/compare.h"
#include "tests/support/poisoned.h"

namespace lacuna::test {

enum class Bias { none, per_key, full };
enum class Pattern {
  noise,       // independent normals
  structured,  // smooth in position, so that near tokens attend to each other, plus some noise
};

struct AttendSpec {
  DType dtype = DType::f32;
  int32_t heads = 2;
  std::vector<int32_t> head_ids;  // empty = all
  int64_t q_len = 128, k_len = 128;
  int32_t head_dim = 64;
  int32_t block_q = 128, block_k = 128;
  bool explicit_blocks = false;  // random offsets with some empty blocks
  Storage storage = Storage::heads_first;
  double density = 1.0;     // 1 = no mask; below, each (query block, key block) with this chance
  bool empty_rows = false;  // some query blocks may keep nothing
  VisitOrder visit = VisitOrder::ascending;
  Bias bias = Bias::none;
  double bias_masked = 0.0;  // share of bias entries that are -inf
  SkipKind skip = SkipKind::none;
  float skip_param = 0.0f, skip_kappa = 1.0f;
  Pattern pattern = Pattern::noise;
  double sharpness = 1.0;  // multiplies q
  uint64_t seed = 1;

  std::string describe() const {
    return fmt::format(
        "{} {} of {} heads q_len {} k_len {} head_dim {} blocks {}x{}{} {} density {} "
        "visit {} "
        "bias {} skip {} param {} kappa {} sharpness {} seed {}",
        dtype_name(dtype), head_ids.empty() ? heads : static_cast<int>(head_ids.size()), heads,
        q_len, k_len, head_dim, block_q, block_k, explicit_blocks ? " explicit" : "",
        storage_name(storage), density, static_cast<int>(visit), static_cast<int>(bias),
        static_cast<int>(skip), skip_param, skip_kappa, sharpness, seed);
  }
};

struct AttendResult {
  std::vector<double> out;  // [heads, q_len, head_dim]; heads not asked for are NaN
  std::vector<float> lse;   // [heads, q_len]
  std::vector<float> block_mass;
  std::vector<uint64_t> skip_bits;
  std::vector<int64_t> pv_pairs;
  bool intact = false;  // nothing was written outside the output view
};

class AttendCase {
 public:
  explicit AttendCase(const AttendSpec& spec)
      : spec_(spec),
        q_(spec.dtype, spec.heads, spec.q_len, spec.head_dim, spec.storage),
        k_(spec.dtype, spec.heads, spec.k_len, spec.head_dim, spec.storage),
        v_(spec.dtype, spec.heads, spec.k_len, spec.head_dim, spec.storage) {
    fill_inputs();
    make_blocks();
    make_mask();
    make_bias();
    const size_t calls = static_cast<size_t>(num_calls());
    skip_params_.assign(calls, spec.skip_param);
    skip_kappas_.assign(calls, spec.skip_kappa);
  }
  AttendCase(const AttendCase&) = delete;
  AttendCase& operator=(const AttendCase&) = delete;

  const AttendSpec& spec() const { return spec_; }
  const TensorView& q() const { return q_.view(); }
  const TensorView& k() const { return k_.view(); }
  const TensorView& v() const { return v_.view(); }
  int32_t num_calls() const {
    return spec_.head_ids.empty() ? spec_.heads : static_cast<int32_t>(spec_.head_ids.size());
  }
  int32_t head(int32_t call) const { return spec_.head_ids.empty() ? call : spec_.head_ids[call]; }
  const BlockLayout& q_layout() const { return q_layout_; }
  const BlockLayout& k_layout() const { return k_layout_; }
  const BlockMask& mask() const { return mask_; }  // empty when dense
  const std::vector<float>& bias() const { return bias_; }
  void set_bias(int64_t i, float value) { bias_[static_cast<size_t>(i)] = value; }
  float sm_scale() const { return 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)); }

  void set_mask(const BlockMask& mask) { mask_ = mask; }
  void set_skip(SkipKind kind, float param, float kappa = 1.0f) {
    spec_.skip = kind;
    spec_.skip_param = param;
    std::fill(skip_params_.begin(), skip_params_.end(), param);
    std::fill(skip_kappas_.begin(), skip_kappas_.end(), kappa);
  }

  // Everything but the outputs.
  AttendParams params() const {
    AttendParams p;
    p.q = q().data;
    p.k = k().data;
    p.v = v().data;
    p.dtype = spec_.dtype == DType::bf16 ? AttendDType::bf16 : AttendDType::f32;
    p.q_head_stride = q().stride[0], p.q_token_stride = q().stride[1];
    p.k_head_stride = k().stride[0], p.k_token_stride = k().stride[1];
    p.v_head_stride = v().stride[0], p.v_token_stride = v().stride[1];
    p.num_heads = num_calls();
    p.head_ids = spec_.head_ids.empty() ? nullptr : spec_.head_ids.data();
    p.q_len = spec_.q_len, p.k_len = spec_.k_len;
    p.head_dim = spec_.head_dim;
    p.sm_scale = sm_scale();
    if (spec_.bias != Bias::none) {
      p.bias = bias_.data();
      p.bias_q_stride = spec_.bias == Bias::full ? spec_.k_len : 0;
      p.bias_head_stride = spec_.bias == Bias::full ? spec_.q_len * spec_.k_len : 0;
    }
    p.block_q = spec_.block_q, p.block_k = spec_.block_k;
    p.num_q_blocks = q_layout_.num_blocks, p.num_k_blocks = k_layout_.num_blocks;
    if (spec_.explicit_blocks) {
      p.q_offsets = q_layout_.offsets.data();
      p.k_offsets = k_layout_.offsets.data();
    }
    if (!mask_.empty()) p.mask = mask_.words();
    p.order = spec_.visit;
    p.skip = spec_.skip;
    if (p.skip != SkipKind::none) {
      p.skip_param = skip_params_.data();
      p.skip_kappa = skip_kappas_.data();
    }
    return p;
  }

  AttendResult run(Backend& backend, bool with_stats = true) const {
    return run_with([&](const AttendParams& p) { backend.attend(p); }, with_stats);
  }
  template <typename F>
  AttendResult run_with(const F& attend, bool with_stats = true) const {
    const Poisoned out(spec_.dtype, spec_.heads, spec_.q_len, spec_.head_dim, spec_.storage);
    for_each(out.view(), [&](int64_t, int64_t at) { put(out.view(), at, std::nan("")); });
    AttendParams p = params();
    p.out = out.view().data;
    p.out_head_stride = out.view().stride[0], p.out_token_stride = out.view().stride[1];
    AttendResult r;
    const int64_t rows = int64_t{spec_.heads} * q_layout_.num_blocks;
    const float nan = std::nanf("");
    if (with_stats) {
      r.lse.assign(static_cast<size_t>(spec_.heads * spec_.q_len), nan);
      r.block_mass.assign(static_cast<size_t>(rows * k_layout_.num_blocks), nan);
      r.skip_bits.assign(static_cast<size_t>(rows * ((k_layout_.num_blocks + 63) / 64)),
                         kUntouchedBits);
      r.pv_pairs.assign(static_cast<size_t>(num_calls()), -1);
      p.lse = r.lse.data();
      p.block_mass = r.block_mass.data();
      p.skip_bits = r.skip_bits.data();
      p.pv_pairs = r.pv_pairs.data();
    }
    attend(p);
    r.out = values(out.view());
    r.intact = out.intact();
    return r;
  }

  static constexpr uint64_t kUntouchedBits = 0xA5A5A5A5A5A5A5A5ull;

 private:
  void fill_inputs() {
    fill_normal(v_.view(), spec_.seed * 16 + 3);
    if (spec_.pattern == Pattern::noise) {
      fill_normal(q_.view(), spec_.seed * 16 + 1, spec_.sharpness);
      fill_normal(k_.view(), spec_.seed * 16 + 2);
    } else {
      fill_waves(q_.view(), spec_.seed * 16 + 1, spec_.sharpness);
      fill_waves(k_.view(), spec_.seed * 16 + 2, 1.0);
    }
  }

  // Channel pairs turn with position at rates of their own: q.k falls off with distance.
  void fill_waves(const TensorView& x, uint64_t noise_seed, double scale) const {
    Rng rates(spec_.seed), noise(noise_seed);
    const int64_t d = x.shape[2];
    std::vector<double> rate(static_cast<size_t>(d));
    for (double& r : rate) r = rates.uniform(0.0, 40.0);
    for (int64_t h = 0; h < x.shape[0]; ++h)
      for (int64_t t = 0; t < x.shape[1]; ++t)
        for (int64_t c = 0; c < d; ++c) {
          const double angle =
              rate[c / 2] * static_cast<double>(t) / static_cast<double>(x.shape[1]);
          const double wave = c % 2 == 0 ? std::cos(angle) : std::sin(angle);
          put(x, h * x.stride[0] + t * x.stride[1] + c,
              scale * (1.4 * wave + 0.3 * noise.normal()));
        }
  }

  BlockLayout make_layout(int64_t len, int32_t block, Rng& rng) const {
    if (!spec_.explicit_blocks) return BlockLayout::uniform(len, block);
    // About one cut in five repeats the one before: an empty block.
    const int64_t num_blocks = std::max<int64_t>((len + block - 1) / block, 1) + 2;
    std::vector<int32_t> offsets;
    for (int32_t i = 0; i < num_calls(); ++i) {
      std::vector<int32_t> cuts{0};
      for (int64_t b = 1; b < num_blocks; ++b)
        cuts.push_back(rng.chance(0.2) ? cuts.back() : static_cast<int32_t>(rng.integer(0, len)));
      cuts.push_back(static_cast<int32_t>(len));
      std::sort(cuts.begin(), cuts.end());
      offsets.insert(offsets.end(), cuts.begin(), cuts.end());
    }
    return BlockLayout::explicit_offsets(len, num_calls(), offsets);
  }

  void make_blocks() {
    Rng rng(spec_.seed * 16 + 4);
    q_layout_ = make_layout(spec_.q_len, spec_.block_q, rng);
    k_layout_ = make_layout(spec_.k_len, spec_.block_k, rng);
  }

  void make_mask() {
    if (spec_.density >= 1.0) return;
    Rng rng(spec_.seed * 16 + 5);
    BlockMask mask(num_calls(), q_layout_.num_blocks, k_layout_.num_blocks);
    for (int32_t h = 0; h < num_calls(); ++h)
      for (int32_t qb = 0; qb < q_layout_.num_blocks; ++qb) {
        if (spec_.empty_rows && rng.chance(0.25)) continue;
        for (int32_t kb = 0; kb < k_layout_.num_blocks; ++kb)
          if (rng.chance(spec_.density)) mask.set(h, qb, kb);
        if (!spec_.empty_rows && k_layout_.num_blocks > 0)
          mask.set(h, qb, static_cast<int32_t>(rng.integer(0, k_layout_.num_blocks - 1)));
      }
    set_mask(mask);
  }

  void make_bias() {
    if (spec_.bias == Bias::none) return;
    const int64_t n =
        spec_.bias == Bias::full ? spec_.heads * spec_.q_len * spec_.k_len : spec_.k_len;
    bias_ = random_floats(n, spec_.seed * 16 + 6);
    Rng rng(spec_.seed * 16 + 7);
    for (float& b : bias_)
      if (rng.chance(spec_.bias_masked)) b = -std::numeric_limits<float>::infinity();
  }

  AttendSpec spec_;
  Poisoned q_, k_, v_;
  BlockLayout q_layout_, k_layout_;
  BlockMask mask_;
  std::vector<float> bias_, skip_params_, skip_kappas_;
};

}  // namespace lacuna::test
