// SPDX-License-Identifier: Apache-2.0
// All contact of our kernels with the hardware: thin wrappers over PTX instructions. Built without
// nvcc, the same names come from the emulator, so kernels run on the CPU from their own source.
#pragma once

#include "lacuna/backend/cuda/launch.h"

#ifndef __CUDACC__
#include "lacuna/backend/cuda/emulator/ptx_emulated.h"
#else

#define LACUNA_DEVICE __device__ __forceinline__
#define LACUNA_UNROLL _Pragma("unroll")
#define LACUNA_UNROLL_BY_2 _Pragma("unroll 2")
#define LACUNA_NO_UNROLL _Pragma("unroll 1")

namespace lacuna::cuda {

// Element types: tags, since kernels only move and convert elements.
struct Bf16 {};
struct F16 {};

LACUNA_DEVICE int thread_id() {
  return static_cast<int>(threadIdx.x);
}
LACUNA_DEVICE int block_id() {
  return static_cast<int>(blockIdx.x);
}
LACUNA_DEVICE int block_id_y() {
  return static_cast<int>(blockIdx.y);
}
LACUNA_DEVICE int grid_blocks() {
  return static_cast<int>(gridDim.x);
}
LACUNA_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char lacuna_shared[];
  return lacuna_shared;
}
LACUNA_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- warp and block ----------------------------------------------------------------------------
LACUNA_DEVICE float shuffle_xor(float x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
LACUNA_DEVICE int shuffle_xor(int x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
LACUNA_DEVICE double shuffle_xor(double x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
LACUNA_DEVICE int64_t shuffle_xor(int64_t x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}
// What lane `from` says, 0 to 31.
LACUNA_DEVICE int shuffle(int x, int from) {
  return __shfl_sync(0xffffffffu, x, from);
}
LACUNA_DEVICE int broadcast_lane0(int x) {
  return __shfl_sync(0xffffffffu, x, 0);
}
// Bit l = what lane l said.
LACUNA_DEVICE uint32_t ballot(bool yes) {
  return __ballot_sync(0xffffffffu, yes);
}
LACUNA_DEVICE void sync_warp() {
  __syncwarp();
}
LACUNA_DEVICE void sync_block() {
  __syncthreads();
}
LACUNA_DEVICE int32_t atomic_add(int32_t* p, int32_t x) {
  return atomicAdd(p, x);
}
// Named barriers. Barrier 0 is sync_block's.
LACUNA_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
LACUNA_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Barrier that tells every thread whether all of them said yes.
LACUNA_DEVICE bool barrier_all(int id, int threads, bool yes) {
  int all;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\n"
      "barrier.cta.red.and.pred q, %2, %3, p;\nselp.b32 %0, 1, 0, q;\n}"
      : "=r"(all)
      : "r"(static_cast<int>(yes)), "r"(id), "r"(threads)
      : "memory");
  return all != 0;
}

// --- arithmetic --------------------------------------------------------------------------------
LACUNA_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LACUNA_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LACUNA_DEVICE float max_of(float a, float b) {
  return fmaxf(a, b);
}
LACUNA_DEVICE float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
LACUNA_DEVICE float square_root(float x) {
  return sqrtf(x);
}
LACUNA_DEVICE float minus_infinity() {
  return __int_as_float(0xff800000);
}
LACUNA_DEVICE float to_float(uint16_t bits, Bf16) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
LACUNA_DEVICE float to_float(uint16_t bits, F16) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
// Bits of a float as an integer.
LACUNA_DEVICE uint32_t float_bits(float x) {
  return __float_as_uint(x);
}
LACUNA_DEVICE int count_bits(uint32_t x) {
  return __popc(x);
}
// Index of the highest bit that is set; x above 0.
LACUNA_DEVICE int highest_bit(uint32_t x) {
  return 31 - __clz(static_cast<int>(x));
}
LACUNA_DEVICE uint32_t reverse_bits(uint32_t x) {
  return __brev(x);
}
// Two floats rounded to nearest even; `low` is the element at the lower address.
LACUNA_DEVICE uint32_t pack_pair(float low, float high, Bf16) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
LACUNA_DEVICE uint32_t pack_pair(float low, float high, F16) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// --- shared and global memory ------------------------------------------------------------------
LACUNA_DEVICE void store_shared(uint32_t address, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
LACUNA_DEVICE void store_global(void* p, uint32_t x) {
  *static_cast<uint32_t*>(p) = x;
}
// Elements of any plain type; general kernels touch global memory through these two (and
// copy_async), so that the emulator sees what is not device memory.
template <class T>
struct Same {
  using Type = T;
};
template <class T>
LACUNA_DEVICE T read_global(const T* p) {
  return *p;
}
template <class T>
LACUNA_DEVICE void write_global(T* p, typename Same<T>::Type x) {
  *p = x;
}
LACUNA_DEVICE float load_volatile(const float* p) {
  float x;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
  return x;
}

// --- Ampere: asynchronous copies, ldmatrix, mma ------------------------------------------------
// 16 bytes; from `bytes` on they are zeros. bytes = 0 reads nothing.
LACUNA_DEVICE void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
LACUNA_DEVICE void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
LACUNA_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
LACUNA_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
LACUNA_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// d[16 x 8] += a[16 x 16] b[16 x 8]
#define LACUNA_MMA(tag, name)                                                           \
  LACUNA_DEVICE void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, tag) {  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                 \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));       \
  }
LACUNA_MMA(Bf16, "bf16")
LACUNA_MMA(F16, "f16")
#undef LACUNA_MMA

// --- Hopper: mbarrier --------------------------------------------------------------------------
// A phase completes when its arrivals and its expected bytes are all in. wait(parity) returns when
// the phase of that parity has completed; acquire pairs with the release of every arrival.
LACUNA_DEVICE void mbarrier_init(uint64_t* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
               : "memory");
}
// Makes the initialisation visible to the async proxy, before anyone hands the barrier to TMA.
LACUNA_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
LACUNA_DEVICE void mbarrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(b))
               : "memory");
}
LACUNA_DEVICE void mbarrier_arrive_expect(uint64_t* b, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
      "r"(bytes)
      : "memory");
}
LACUNA_DEVICE void mbarrier_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN_%=:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE_%=;\nbra AGAIN_%=;\nDONE_%=:\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// --- Hopper: registers, TMA --------------------------------------------------------------------
template <int kRegisters>
LACUNA_DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
LACUNA_DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
LACUNA_DEVICE void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}
LACUNA_DEVICE void tma_load(void* to, const TensorMap* map, uint64_t* full, int channel, int token,
                            int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(full)), "r"(channel), "r"(token),
      "r"(head)
      : "memory");
}
LACUNA_DEVICE void tma_store(const TensorMap* map, const void* from, int channel, int token,
                             int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4}], [%1];" ::"l"(reinterpret_cast<uint64_t>(map)),
      "r"(shared_address(from)), "r"(channel), "r"(token), "r"(head)
      : "memory");
}
LACUNA_DEVICE void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until shared memory of all committed stores has been read.
LACUNA_DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Orders this thread's plain accesses to shared memory before later ones of TMA and wgmma.
LACUNA_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Hopper: wgmma -----------------------------------------------------------------------------
LACUNA_DEVICE void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
LACUNA_DEVICE void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
LACUNA_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads of accumulators above the wait before this: the asm of the
// wait does not name them. No instruction.
template <int kCount>
LACUNA_DEVICE void wgmma_landed(float (&d)[kCount]) {
  LACUNA_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// Operand descriptor for the 128-byte swizzle (type 1 in bits 62 and 63); distances in bytes. The
// base offset (bits 49 to 51) is 0: tiles start at multiples of 1,024 bytes, where the swizzle
// pattern starts.
LACUNA_DEVICE uint64_t wgmma_descriptor(const void* p, uint32_t leading, uint32_t stride) {
  const uint64_t address = (shared_address(p) & 0x3ffff) >> 4;
  return address | (static_cast<uint64_t>(leading >> 4) << 16) |
         (static_cast<uint64_t>(stride >> 4) << 32) | (uint64_t{1} << 62);
}

// The operand that lies `bytes` behind. Two descriptors made anew are twelve instructions in front
// of their product, two of these are four.
LACUNA_DEVICE uint64_t wgmma_behind(uint64_t descriptor, uint32_t bytes) {
  return (descriptor >> 32 << 32) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

#define LACUNA_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LACUNA_F16(d, i) \
  LACUNA_F4(d, i), LACUNA_F4(d, i + 4), LACUNA_F4(d, i + 8), LACUNA_F4(d, i + 12)
#define LACUNA_LIST32                                                                       \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31}"
#define LACUNA_LIST64                                                                        \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"  \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
  "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
// shared: d[64 x 128] (+)= A B, A [64 x 16] and B [128 x 16] both K-major in shared memory.
// registers: d[64 x N] (+)= A B, A from registers, B [16 x N] with N contiguous (transposed).
#define LACUNA_WGMMA(tag, name)                                                                 \
  LACUNA_DEVICE void wgmma_shared(float(&d)[64], uint64_t a, uint64_t b, int accumulate, tag) { \
    asm volatile(                                                                               \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                            \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " " LACUNA_LIST64          \
        ", %64, %65, p, 1, 1, 0, 0;\n}"                                                         \
        : LACUNA_F16(d, 0), LACUNA_F16(d, 16), LACUNA_F16(d, 32), LACUNA_F16(d, 48)             \
        : "l"(a), "l"(b), "r"(accumulate));                                                     \
  }                                                                                             \
  LACUNA_DEVICE void wgmma_registers(float(&d)[64], const uint32_t* a, uint64_t b, tag) {       \
    asm volatile(                                                                               \
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                              \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " " LACUNA_LIST64          \
        ", {%64,%65,%66,%67}, %68, p, 1, 1, 1;\n}"                                              \
        : LACUNA_F16(d, 0), LACUNA_F16(d, 16), LACUNA_F16(d, 32), LACUNA_F16(d, 48)             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                  \
  }                                                                                             \
  LACUNA_DEVICE void wgmma_registers(float(&d)[32], const uint32_t* a, uint64_t b, tag) {       \
    asm volatile(                                                                               \
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                              \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " " LACUNA_LIST32           \
        ", {%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}"                                              \
        : LACUNA_F16(d, 0), LACUNA_F16(d, 16)                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                  \
  }
LACUNA_WGMMA(Bf16, "bf16")
LACUNA_WGMMA(F16, "f16")
#undef LACUNA_WGMMA
#undef LACUNA_LIST64
#undef LACUNA_LIST32
#undef LACUNA_F16
#undef LACUNA_F4

}  // namespace lacuna::cuda
#endif  // __CUDACC__
