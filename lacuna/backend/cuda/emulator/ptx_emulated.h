// SPDX-License-Identifier: Apache-2.0
// The names of ptx.cuh for a C++ compiler: kernels run from their own source, one fiber per thread.
// Semantics are those of the PTX manual, made as unkind as it allows: copies land late and in
// random order, products run at the wait, accumulators are NaN until then. See block.h for what is
// checked.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "lacuna/backend/cuda/launch.h"

#define LACUNA_DEVICE inline
#define LACUNA_UNROLL
#define LACUNA_UNROLL_BY_2
#define LACUNA_NO_UNROLL

namespace lacuna::cuda {

struct Bf16 {};
struct F16 {};

int thread_id();
int block_id();
int block_id_y();
int grid_blocks();
unsigned char* shared_memory();
uint32_t shared_address(const void* p);

float shuffle_xor(float x, int lanes);
int shuffle_xor(int x, int lanes);
double shuffle_xor(double x, int lanes);
int64_t shuffle_xor(int64_t x, int lanes);
int shuffle(int x, int from);
int broadcast_lane0(int x);
uint32_t ballot(bool yes);
void sync_warp();
void sync_block();
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
bool barrier_all(int id, int threads, bool yes);
inline int32_t atomic_add(int32_t* p, int32_t x) {
  const int32_t old = *p;
  *p += x;
  return old;
}

// Off by what the PTX manual allows, up or down by the bits of the input: 2^-22 of the result, for
// logarithms of 0.5 to 2 of 1. Subnormal inputs and results are zeros.
float exp2_approx(float x);
float log2_approx(float x);
// The number of two, if only one is.
inline float max_of(float a, float b) {
  return std::fmax(a, b);
}
inline float multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float square_root(float x) {
  return std::sqrt(x);
}
inline float minus_infinity() {
  return -std::numeric_limits<float>::infinity();
}
inline uint32_t float_bits(float x) {
  return std::bit_cast<uint32_t>(x);
}
inline int count_bits(uint32_t x) {
  return std::popcount(x);
}
inline int highest_bit(uint32_t x) {
  return 31 - std::countl_zero(x);
}
inline uint32_t reverse_bits(uint32_t x) {
  uint32_t reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline float to_float(uint16_t bits, Bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
float to_float(uint16_t bits, F16);
uint32_t pack_pair(float low, float high, Bf16);
uint32_t pack_pair(float low, float high, F16);

void store_shared(uint32_t address, uint32_t x);
inline void store_global(void* p, uint32_t x) {
  *static_cast<uint32_t*>(p) = x;
}
inline float load_volatile(const float* p) {
  return *p;
}
// Faults the block unless the bytes are device memory, where the launch came through a Device.
void check_global(const void* p, size_t bytes, size_t alignment);
template <class T>
struct Same {
  using Type = T;
};
template <class T>
T read_global(const T* p) {
  check_global(p, sizeof(T), alignof(T));
  return *p;
}
template <class T>
void write_global(T* p, typename Same<T>::Type x) {
  check_global(p, sizeof(T), alignof(T));
  *p = x;
}

void copy_async(uint32_t to, const void* from, int bytes);
void copy_async_commit();
void copy_async_wait_for(int pending);
template <int kPending>
void copy_async_wait() {
  copy_async_wait_for(kPending);
}
void load_matrices(uint32_t (&r)[4], uint32_t address);
void load_matrices_transposed(uint32_t (&r)[4], uint32_t address);
void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Bf16);
void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, F16);

void mbarrier_init(uint64_t* b, uint32_t arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t* b);
void mbarrier_arrive_expect(uint64_t* b, uint32_t bytes);
void mbarrier_wait(uint64_t* b, uint32_t parity);

void set_registers(int registers);
template <int kRegisters>
void registers_raise() {
  set_registers(kRegisters);
}
template <int kRegisters>
void registers_lower() {
  set_registers(kRegisters);
}
inline void tma_prefetch(const TensorMap*) {}
void tma_load(void* to, const TensorMap* map, uint64_t* full, int channel, int token, int head);
void tma_store(const TensorMap* map, const void* from, int channel, int token, int head);
void tma_store_commit();
void tma_store_wait_read();
void fence_proxy_async();

void wgmma_fence();
void wgmma_commit();
void wgmma_wait_for(int pending);
template <int kPending>
void wgmma_wait() {
  wgmma_wait_for(kPending);
}
template <int kCount>
void wgmma_landed(float (&)[kCount]) {}
uint64_t wgmma_descriptor(const void* p, uint32_t leading, uint32_t stride);
inline uint64_t wgmma_behind(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}
void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int accumulate, Bf16);
void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int accumulate, F16);
void wgmma_registers(float (&d)[64], const uint32_t* a, uint64_t b, Bf16);
void wgmma_registers(float (&d)[64], const uint32_t* a, uint64_t b, F16);
void wgmma_registers(float (&d)[32], const uint32_t* a, uint64_t b, Bf16);
void wgmma_registers(float (&d)[32], const uint32_t* a, uint64_t b, F16);

}  // namespace lacuna::cuda
