// SPDX-License-Identifier: Apache-2.0
// Matrix instructions of an emulated block: ldmatrix, mma.sync, wgmma, and the element types.
#include <fmt/format.h>
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "lacuna/backend/cuda/emulator/block.h"
#include "lacuna/backend/cuda/emulator/ptx_emulated.h"
#include "lacuna/core/bf16.h"

namespace lacuna::cuda {
namespace emulator {
namespace {

constexpr uint32_t kPoison = 0x7fa0dead;  // a NaN nobody computes

float to_float(uint16_t bits, bool half) {
  if (half) return _cvtsh_ss(bits);
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// 2^-22 up or down, the same for the same input.
float allowed_error(float x) {
  return (std::bit_cast<uint32_t>(x) * 0x9e3779b1u) >> 31 != 0 ? 0x1p-22f : -0x1p-22f;
}

// To f32 towards zero: the manual leaves the rounding of sums open, and tensor cores cut.
float cut(double x) {
  const auto y = static_cast<float>(x);
  return std::abs(double{y}) > std::abs(x) ? std::bit_cast<float>(std::bit_cast<uint32_t>(y) - 1)
                                           : y;
}

// wgmma operand: 128-byte swizzle, distances from the descriptor (PTX manual, matrix descriptor).
struct Operand {
  uint32_t start, leading, stride;
  bool transposed;  // N-major: 64 columns to an atom, rows are k

  Operand(uint64_t descriptor, bool transposed_)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        leading(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4),
        transposed(transposed_) {
    if (descriptor >> 62 != 1) block().fault("wgmma descriptor: not the 128-byte swizzle");
    if ((descriptor >> 49 & 7) != 0) block().fault("wgmma descriptor: base offset not 0");
    // K-major operands step through the atom in 32 bytes; otherwise they start on a pattern.
    if (start % (transposed_ ? 1024 : 32) != 0 || start % 1024 >= kRowBytes)
      block().fault(fmt::format("wgmma operand at {}: off the swizzle pattern", start));
  }
  // i: row of A or column of B.
  uint32_t address(int i, int k) const {
    const auto ui = static_cast<uint32_t>(i), uk = static_cast<uint32_t>(k);
    const uint32_t offset =
        transposed ? (ui / 64) * leading + (uk / 8) * stride + (uk % 8) * kRowBytes + (ui % 64) * 2
                   : (ui / 8) * stride + (ui % 8) * kRowBytes + uk * 2;
    return start + offset;
  }
  float at(int i, int k, bool half) const {
    uint16_t bits;
    std::memcpy(&bits, block().shared() + swizzle_128b(address(i, k)), 2);
    return to_float(bits, half);
  }
  // One address in each row of shared memory that the operand of `count` rows touches.
  void rows(int count, std::vector<uint32_t>* out) const {
    if (transposed) {
      for (int i = 0; i < count; i += 64)
        for (int k = 0; k < 16; ++k) out->push_back(address(i, k));
    } else {
      for (int i = 0; i < count; ++i) out->push_back(address(i, 0));
    }
    for (uint32_t a : *out)
      if (a >= kSharedBytes) block().fault("wgmma operand outside shared memory");
  }
};

Product make_product(int n, bool half, bool accumulate, uint64_t a, bool a_in_registers,
                     uint64_t b) {
  Product p;
  p.n = n;
  p.half = half;
  p.accumulate = accumulate;
  p.a_in_registers = a_in_registers;
  p.a = a;
  p.b = b;
  if (!a_in_registers) Operand(a, false).rows(64, &p.rows);
  Operand(b, a_in_registers).rows(n, &p.rows);
  for (uint32_t row : p.rows) {
    block().check_readable(row, "wgmma", true);
    ++block().row(row).readers;
  }
  return p;
}

// The thread's accumulator for `d`, taken out of the kernel's hands if it was not in flight.
void take_accumulator(float* d, int count, int64_t product) {
  Thread& me = block().me();
  for (Accumulator& acc : me.accumulators)
    if (acc.registers == d) {
      acc.last_product = product;
      return;
    }
  if (!me.fenced) block().fault("wgmma on registers without wgmma.fence since the last wait");
  me.accumulators.push_back({d, std::vector<float>(d, d + count), product});
  for (int i = 0; i < count; ++i) d[i] = std::bit_cast<float>(kPoison);
}

void issue(float* d, int n, bool half, bool accumulate, uint64_t a, const uint32_t* a_registers,
           uint64_t b) {
  Thread& me = block().me();
  WarpGroup& group = block().my_warp_group();
  const int64_t index = me.products++;
  const auto at = static_cast<size_t>(index - group.first_product);
  if (at == group.products.size())
    group.products.push_back(make_product(n, half, accumulate, a, a_registers != nullptr, b));
  Product& p = group.products[at];
  if (p.n != n || p.a != a || p.b != b || p.accumulate != accumulate)
    block().fault("wgmma: warps of a warpgroup differ");
  block().check_readable(p.rows.front(), "wgmma", true);
  block().check_readable(p.rows.back(), "wgmma", true);
  const int t = block().current % 128;
  take_accumulator(d, n / 2, index);
  p.d[t] = d;
  p.a_registers[t] = a_registers;
  if (a_registers != nullptr) {
    p.a_hash[t] = hash_bytes(a_registers, 16);
    const auto known = std::find_if(me.a_registers.begin(), me.a_registers.end(),
                                    [&](const Registers& r) { return r.at == a_registers; });
    if (known == me.a_registers.end()) {
      me.a_registers.push_back({a_registers, p.a_hash[t]});
    } else if (known->hash_at_fence != p.a_hash[t]) {
      block().fault("wgmma: A registers written after wgmma.fence");
    }
  }
  ++p.issued;
}

void read_operands(const Product& p, float (&a)[64][16], float (&b)[16][128]) {
  if (p.a_in_registers) {
    for (int r = 0; r < 64; ++r)
      for (int k = 0; k < 16; ++k) {
        const int t = (r / 16) * 32 + (r % 8) * 4 + (k % 8) / 2;
        const uint32_t pair = p.a_registers[t][(k / 8) * 2 + (r % 16) / 8];
        a[r][k] = to_float(static_cast<uint16_t>(pair >> (16 * (k & 1))), p.half);
      }
  } else {
    const Operand operand(p.a, false);
    for (int r = 0; r < 64; ++r)
      for (int k = 0; k < 16; ++k) a[r][k] = operand.at(r, k, p.half);
  }
  const Operand operand(p.b, p.a_in_registers);
  for (int c = 0; c < p.n; ++c)
    for (int k = 0; k < 16; ++k) b[k][c] = operand.at(c, k, p.half);
}

Accumulator& accumulator_of(Thread& thread, const float* registers) {
  return *std::find_if(thread.accumulators.begin(), thread.accumulators.end(),
                       [&](const Accumulator& a) { return a.registers == registers; });
}

void execute(const Product& p, int first_thread) {
  if (p.issued != 128) block().fault("wgmma: not all warps of the warpgroup issued it");
  for (int t = 0; p.a_in_registers && t < 128; ++t)
    if (hash_bytes(p.a_registers[t], 16) != p.a_hash[t])
      block().fault("wgmma: A registers written while in flight");
  for (uint32_t row : p.rows) {
    block().check_readable(row, "wgmma", true);
    --block().row(row).readers;
  }
  static float a[64][16], b[16][128];
  read_operands(p, a, b);
  float* value[128];
  for (int t = 0; t < 128; ++t)
    value[t] =
        accumulator_of(block().threads[static_cast<size_t>(first_thread + t)], p.d[t]).value.data();
  for (int r = 0; r < 64; ++r) {
    float sum[128] = {};
    for (int k = 0; k < 16; ++k)
      for (int c = 0; c < p.n; ++c) sum[c] += a[r][k] * b[k][c];
    for (int c = 0; c < p.n; ++c) {
      float& d = value[(r / 16) * 32 + (r % 8) * 4 + (c % 8) / 2]
                      [(c / 8) * 4 + ((r % 16) / 8) * 2 + (c & 1)];
      d = cut(p.accumulate ? double{d} + double{sum[c]} : double{sum[c]});
    }
  }
}

// Gives accumulators whose products are done back to the kernel.
void give_back(Thread& thread, int64_t done) {
  auto& list = thread.accumulators;
  for (size_t i = 0; i < list.size();) {
    Accumulator& acc = list[i];
    if (acc.last_product >= done) {
      ++i;
      continue;
    }
    for (size_t j = 0; j < acc.value.size(); ++j) {
      if (std::bit_cast<uint32_t>(acc.registers[j]) != kPoison)
        block().fault("wgmma: accumulator written while in flight");
      acc.registers[j] = acc.value[j];
    }
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
  }
  thread.fenced = false;
}

void finish_groups(int pending) {
  WarpGroup& group = block().my_warp_group();
  const int first = block().current / 128 * 128;
  const std::vector<int64_t> ends = block().threads[static_cast<size_t>(first)].group_ends;
  for (int t = 0; t < 128; ++t) {
    const Thread& thread = block().threads[static_cast<size_t>(first + t)];
    if (thread.group_ends != ends) block().fault("wgmma: warps committed different groups");
  }
  const auto finished = static_cast<int64_t>(ends.size()) - pending;
  if (finished <= 0) return;
  const int64_t done = ends[static_cast<size_t>(finished - 1)];
  for (; group.first_product < done; ++group.first_product) {
    execute(group.products.front(), first);
    group.products.pop_front();
  }
  for (int t = 0; t < 128; ++t) {
    Thread& thread = block().threads[static_cast<size_t>(first + t)];
    thread.group_ends.erase(thread.group_ends.begin(), thread.group_ends.begin() + finished);
    give_back(thread, done);
  }
}

void transpose_matrix(const uint16_t (&in)[8][8], uint16_t (&out)[8][8]) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) out[j][i] = in[i][j];
}

// ldmatrix.x4: lane 8 m + i points to row i of matrix m; lane l receives elements 2 (l % 4) and the
// next of row l / 4 of each.
void load_four(uint32_t (&r)[4], uint32_t address, bool transposed) {
  Block& b = block();
  if (address % 16 != 0 || address + 16 > kSharedBytes)
    b.fault(fmt::format("ldmatrix at {}", address));
  b.check_readable(address, "ldmatrix", false);
  Warp& warp = b.my_warp();
  warp.in[0][b.lane()] = b.shared() + address;
  warp.out[b.lane()] = &r[0];
  b.meet_warp(transposed ? 103 : 102, [&warp, transposed] {
    for (int m = 0; m < 4; ++m) {
      uint16_t rows[8][8], turned[8][8];
      for (int i = 0; i < 8; ++i) std::memcpy(rows[i], warp.in[0][8 * m + i], 16);
      transpose_matrix(rows, turned);
      for (int l = 0; l < 32; ++l)
        std::memcpy(static_cast<uint32_t*>(warp.out[l]) + m,
                    (transposed ? turned : rows)[l / 4] + 2 * (l % 4), 4);
    }
  });
}

float half_of(uint32_t pair, int i, bool half) {
  return to_float(static_cast<uint16_t>(pair >> (16 * i)), half);
}

void mma_16x8x16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, bool half) {
  Block& block_ = block();
  Warp& warp = block_.my_warp();
  const uint32_t b[2] = {b0, b1};
  warp.in[0][block_.lane()] = a;
  warp.in[1][block_.lane()] = b;
  warp.out[block_.lane()] = d;
  block_.meet_warp(104, [&warp, half] {
    float left[16][16], right[16][8], sum[16][8] = {};
    for (int l = 0; l < 32; ++l) {
      const auto* pa = static_cast<const uint32_t*>(warp.in[0][l]);
      const auto* pb = static_cast<const uint32_t*>(warp.in[1][l]);
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < 2; ++e)
          left[l / 4 + 8 * (i & 1)][8 * (i >> 1) + 2 * (l % 4) + e] = half_of(pa[i], e, half);
      for (int i = 0; i < 2; ++i)
        for (int e = 0; e < 2; ++e) right[8 * i + 2 * (l % 4) + e][l / 4] = half_of(pb[i], e, half);
    }
    for (int r = 0; r < 16; ++r)
      for (int k = 0; k < 16; ++k)
        for (int c = 0; c < 8; ++c) sum[r][c] += left[r][k] * right[k][c];
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        float& d0 = static_cast<float*>(warp.out[l])[i];
        d0 = cut(double{d0} + double{sum[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)]});
      }
  });
}

}  // namespace
}  // namespace emulator

using emulator::block;

float exp2_approx(float x) {
  if (std::fpclassify(x) == FP_SUBNORMAL || x == 0.0f) return 1.0f;
  const float y = std::exp2(x) * (1.0f + emulator::allowed_error(x));
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}
float log2_approx(float x) {
  if (std::fpclassify(x) == FP_SUBNORMAL) x = std::copysign(0.0f, x);
  const float y = std::log2(x), error = emulator::allowed_error(x);
  return x > 0.5f && x < 2.0f ? y + error : y * (1.0f + error);
}

float to_float(uint16_t bits, F16) {
  return emulator::to_float(bits, true);
}
uint32_t pack_pair(float low, float high, Bf16) {
  return BFloat16(low).bits | static_cast<uint32_t>(BFloat16(high).bits) << 16;
}
uint32_t pack_pair(float low, float high, F16) {
  return static_cast<uint32_t>(_cvtss_sh(low, _MM_FROUND_TO_NEAREST_INT)) |
         static_cast<uint32_t>(_cvtss_sh(high, _MM_FROUND_TO_NEAREST_INT)) << 16;
}

void load_matrices(uint32_t (&r)[4], uint32_t address) {
  emulator::load_four(r, address, false);
}
void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  emulator::load_four(r, address, true);
}
void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Bf16) {
  emulator::mma_16x8x16(d, a, b0, b1, false);
}
void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, F16) {
  emulator::mma_16x8x16(d, a, b0, b1, true);
}

void wgmma_fence() {
  emulator::Thread& me = block().me();
  me.fenced = true;
  for (emulator::Registers& r : me.a_registers) r.hash_at_fence = emulator::hash_bytes(r.at, 16);
}
void wgmma_commit() {
  emulator::Thread& me = block().me();
  me.group_ends.push_back(me.products);
}
void wgmma_wait_for(int pending) {
  block().meet_warp_group([pending] { emulator::finish_groups(pending); });
}
uint64_t wgmma_descriptor(const void* p, uint32_t leading, uint32_t stride) {
  const uint64_t address = (shared_address(p) & 0x3ffff) >> 4;
  return address | (static_cast<uint64_t>(leading >> 4) << 16) |
         (static_cast<uint64_t>(stride >> 4) << 32) | (uint64_t{1} << 62);
}
void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int accumulate, Bf16) {
  emulator::issue(d, 128, false, accumulate != 0, a, nullptr, b);
}
void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int accumulate, F16) {
  emulator::issue(d, 128, true, accumulate != 0, a, nullptr, b);
}
void wgmma_registers(float (&d)[64], const uint32_t* a, uint64_t b, Bf16) {
  emulator::issue(d, 128, false, true, 0, a, b);
}
void wgmma_registers(float (&d)[64], const uint32_t* a, uint64_t b, F16) {
  emulator::issue(d, 128, true, true, 0, a, b);
}
void wgmma_registers(float (&d)[32], const uint32_t* a, uint64_t b, Bf16) {
  emulator::issue(d, 64, false, true, 0, a, b);
}
void wgmma_registers(float (&d)[32], const uint32_t* a, uint64_t b, F16) {
  emulator::issue(d, 64, true, true, 0, a, b);
}

}  // namespace lacuna::cuda
