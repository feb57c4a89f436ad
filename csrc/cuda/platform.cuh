// Machine-dependent primitives of the kernels: memory accesses, conversions, atomics, clusters. nvcc compiles them for
// GPUs. With tests/support/cuda_shim in its include path, a C++ compiler builds the same source for the CPU, where
// threads are fibers that the tests can inspect (DESIGN section 6.3).
//
// To make that possible, all shared memory is dynamic (SE_SHARED), kernels take one struct, launches go through
// launch.cuh, and PTX appears only in this file.
#pragma once

#include <cstdint>

#include "../enums.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#define SE_DEVICE __device__ __forceinline__
#define SE_DEVICE_CALL static __device__ __noinline__  // a function that is not inlined
#define SE_CONSTANT __grid_constant__ const
#define SE_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#include <cmath>
#include <cstring>

#include "cuda_shim.h"

#define SE_DEVICE inline
#define SE_DEVICE_CALL inline
#define SE_CONSTANT const
#define SE_SHARED(name) unsigned char* const name = (unsigned char*)se_shim::dynamic_shared()
#endif

namespace se_fused::cuda {

constexpr int kThreads = 256;  // per block, in every kernel but cluster_fused
constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// ---- 16-byte accesses. Nothing is read through the read-only cache, because y may be x.
// keep: the data is read again by a later pass. last: it is not read again soon and is evicted from L2 first. shared:
// it is in shared memory.
enum class Use { keep, last, shared };

#ifdef __CUDACC__
template <Use use>
SE_DEVICE uint4 load16(const void* p) {
  const uint4* const q = static_cast<const uint4*>(p);
  if constexpr (use == Use::keep) return __ldcg(q);
  if constexpr (use == Use::last) return __ldcs(q);
  return *q;
}
SE_DEVICE void store16(void* p, uint4 v) { __stcs(static_cast<uint4*>(p), v); }
// Loads a value that another block of this launch wrote; L1 is bypassed, because it may hold an older value.
SE_DEVICE float load_fresh(const float* p) { return __ldcg(p); }
SE_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
SE_DEVICE uint32_t as_bits(float x) { return __float_as_uint(x); }
SE_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
SE_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
SE_DEVICE float half_to_float(uint16_t bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
#else
template <Use use>
uint4 load16(const void* p) {
  return *static_cast<const uint4*>(p);
}
inline void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }
inline float load_fresh(const float* p) { return *p; }
inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline uint32_t pack_bfloat16(float low, float high) {
  const auto round = [](float x) -> uint32_t {
    const uint32_t bits = as_bits(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}
inline uint32_t pack_half(float low, float high) {
  const _Float16 halves[2] = {(_Float16)low, (_Float16)high};
  uint32_t r;
  std::memcpy(&r, halves, 4);
  return r;
}
inline float half_to_float(uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return (float)h;
}
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
#endif

// ---- this thread's and block's number, read again where that is cheaper than to keep them in registers
#ifdef __CUDACC__
SE_DEVICE int reread_thread() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
SE_DEVICE int reread_block() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}
#else
inline int reread_thread() { return (int)threadIdx.x; }
inline int reread_block() { return (int)blockIdx.x; }
#endif

// ---- elements
SE_DEVICE float to_float(float x) { return x; }
SE_DEVICE float to_float(BFloat16 x) { return as_float((uint32_t)x.bits << 16); }
SE_DEVICE float to_float(Half x) { return half_to_float(x.bits); }
SE_DEVICE void put(float* p, float x) { *p = x; }
SE_DEVICE void put(BFloat16* p, float x) { p->bits = (uint16_t)pack_bfloat16(x, 0.f); }
SE_DEVICE void put(Half* p, float x) { p->bits = (uint16_t)pack_half(x, 0.f); }

// Eight neighbouring elements in their memory format: one vector of the kernels. They match exactly one byte of the
// mask, so that no lane needs another lane's bits. Two 128-bit accesses in float32, one in 16 bits.
template <class T>
struct Raw {
  uint4 q[sizeof(T) / 2];
};

template <Use use, class T>
SE_DEVICE Raw<T> load_raw(const T* p) {
  Raw<T> r;
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) / 2; ++i) r.q[i] = load16<use>(reinterpret_cast<const uint4*>(p) + i);
  return r;
}
template <class T>
SE_DEVICE void store_raw(T* p, const Raw<T>& r) {
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) / 2; ++i) store16(reinterpret_cast<uint4*>(p) + i, r.q[i]);
}
SE_DEVICE void unpack(const Raw<float>& r, float (&v)[8]) {
  const uint32_t w[8] = {r.q[0].x, r.q[0].y, r.q[0].z, r.q[0].w, r.q[1].x, r.q[1].y, r.q[1].z, r.q[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = as_float(w[i]);
}
SE_DEVICE void unpack(const Raw<BFloat16>& r, float (&v)[8]) {
  const uint32_t w[4] = {r.q[0].x, r.q[0].y, r.q[0].z, r.q[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) v[2 * i] = as_float(w[i] << 16), v[2 * i + 1] = as_float(w[i] & 0xffff0000u);
}
SE_DEVICE void unpack(const Raw<Half>& r, float (&v)[8]) {
  const uint32_t w[4] = {r.q[0].x, r.q[0].y, r.q[0].z, r.q[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    v[2 * i] = half_to_float((uint16_t)w[i]), v[2 * i + 1] = half_to_float((uint16_t)(w[i] >> 16));
}
SE_DEVICE void pack(const float (&v)[8], Raw<float>& r) {
  r.q[0] = {as_bits(v[0]), as_bits(v[1]), as_bits(v[2]), as_bits(v[3])};
  r.q[1] = {as_bits(v[4]), as_bits(v[5]), as_bits(v[6]), as_bits(v[7])};
}
SE_DEVICE void pack(const float (&v)[8], Raw<BFloat16>& r) {
  r.q[0] = {pack_bfloat16(v[0], v[1]), pack_bfloat16(v[2], v[3]), pack_bfloat16(v[4], v[5]), pack_bfloat16(v[6], v[7])};
}
SE_DEVICE void pack(const float (&v)[8], Raw<Half>& r) {
  r.q[0] = {pack_half(v[0], v[1]), pack_half(v[2], v[3]), pack_half(v[4], v[5]), pack_half(v[6], v[7])};
}

// ---- several phases in one launch. Blocks take tickets in order, and a tile comes after the tiles it depends on. A
// block therefore waits only for blocks that already run, so there is no deadlock however few blocks are resident.
#ifdef __CUDACC__
SE_DEVICE int fetch_add(int* p, int v) { return atomicAdd(p, v); }
SE_DEVICE void add_release(int* p, int v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
SE_DEVICE int fetch_add_acquire_release(int* p, int v) {
  int old;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
SE_DEVICE int load_acquire(const int* p) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
SE_DEVICE void spin() {}
#else
inline int fetch_add(int* p, int v) { return atomicAdd(p, v); }
inline void add_release(int* p, int v) { atomicAdd(p, v); }
inline int fetch_add_acquire_release(int* p, int v) { return atomicAdd(p, v); }
inline int load_acquire(const int* p) { return *p; }
inline void spin() { se_shim::spin(); }
#endif

// ---- thread-block clusters and bulk copies (sm_90 and later)
#ifdef __CUDACC__
using BulkBarrier = uint64_t;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SE_HAS_CLUSTERS 1
SE_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
SE_DEVICE unsigned cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
SE_DEVICE void cluster_arrive() { cooperative_groups::this_cluster().barrier_arrive(); }
// Without memory ordering, for a barrier after which no block reads data written before it.
SE_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
SE_DEVICE void cluster_wait() { cooperative_groups::this_cluster().barrier_wait(); }
template <class T>
SE_DEVICE T* map_shared(T* p, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
}
SE_DEVICE void bulk_init(BulkBarrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // makes it visible to the copy engine as well
}
SE_DEVICE void bulk_expect(BulkBarrier* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
SE_DEVICE void bulk_copy(void* to, const void* from, uint32_t bytes, BulkBarrier* b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(b))
               : "memory");
}
SE_DEVICE void bulk_wait(BulkBarrier* b, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}
#endif
#else
#define SE_HAS_CLUSTERS 1
using se_shim::bulk_copy;
using se_shim::bulk_expect;
using se_shim::bulk_init;
using se_shim::bulk_wait;
using se_shim::BulkBarrier;
using se_shim::cluster_arrive;
inline void cluster_arrive_relaxed() { cluster_arrive(); }
using se_shim::cluster_rank;
using se_shim::cluster_wait;
using se_shim::map_shared;
#endif

}  // namespace se_fused::cuda
