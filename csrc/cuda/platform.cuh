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
template <Use use>
SE_DEVICE void store16(void* p, uint4 v) {
  if constexpr (use == Use::last)
    __stcs(static_cast<uint4*>(p), v);
  else
    *static_cast<uint4*>(p) = v;
}
// Loads a value that another block of this launch wrote; L1 is bypassed, because it may hold an older value.
SE_DEVICE float load_fresh(const float* p) { return __ldcg(p); }
SE_DEVICE BFloat16 load_fresh(const BFloat16* p) { return {__ldcg(&p->bits)}; }
SE_DEVICE Half load_fresh(const Half* p) { return {__ldcg(&p->bits)}; }
SE_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// threadIdx.x, read anew: what is computed from it in one phase of a kernel does not occupy registers in the others.
SE_DEVICE int thread_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
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
// 2^x within 2 ulp and 1 / x within 1 ulp, both with subnormal numbers flushed to zero (PTX ISA, "ex2" and "rcp"). Each
// is one instruction of the special function unit. Infinity, zero and NaN give what the exact functions give.
SE_DEVICE float exp2_approx(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
SE_DEVICE float rcp_approx(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
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
template <Use use>
inline void store16(void* p, uint4 v) {
  *static_cast<uint4*>(p) = v;
}
template <class T>
T load_fresh(const T* p) {
  return *p;
}
inline int thread_here() { return (int)threadIdx.x; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
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
using se_shim::exp2_approx;
using se_shim::rcp_approx;
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
template <Use use = Use::last, class T>
SE_DEVICE void store_raw(T* p, const Raw<T>& r) {
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) / 2; ++i) store16<use>(reinterpret_cast<uint4*>(p) + i, r.q[i]);
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

// ---- programmatic dependent launches and prefetches (sm_90 and later; before, these functions do nothing)
//
// The launches of one call form a chain (torch_host.h). Each but the first may begin while its predecessor still runs,
// so that its launch latency and what needs no earlier result pass in the meantime.
//
// dependency_wait waits until all earlier launches of the chain have ended and their results are visible. Before it a
// kernel may read what no launch of the chain writes: parameters, weights, x and the residual. These are complete,
// because the chain's first launch began after everything before it in the stream had ended. Before it a kernel writes
// nothing to global memory: y may be x. Every thread of a kernel that is not the first calls it, so that a launch ends
// after all launches before it, and waiting for one predecessor is enough.
//
// allow_dependents lets the next launch begin once every block has called it or has ended. Kernels call it first: when
// the last block has begun, the next launch can take only what no block of this one needs. A block that waits cannot
// block its predecessor, all of whose blocks are resident or done.
#ifdef __CUDACC__
SE_DEVICE void dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
SE_DEVICE void allow_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Fetches memory into L2. Both operands are multiples of 16 bytes.
SE_DEVICE void bulk_prefetch(const void* from, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(bytes));
#endif
}
#else
using se_shim::allow_dependents;
using se_shim::bulk_prefetch;
using se_shim::dependency_wait;
#endif

// ---- thread-block clusters and bulk copies (sm_90 and later)
#ifdef __CUDACC__
using BulkBarrier = uint64_t;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SE_HAS_CLUSTERS 1
SE_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
SE_DEVICE uint32_t remote_address(const void* p, unsigned rank) {
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(shared_address(p)), "r"(rank));
  return r;
}
SE_DEVICE unsigned cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
// Relaxed: the arrival orders no memory accesses. An arrival with release is a fence for the whole device in machine
// code (MEMBAR.ALL.GPU), as is every other release at cluster scope.
SE_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
SE_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
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
// Writes four floats to `to` in the shared memory of the block `rank` of the cluster, and counts 16 bytes on its `b`.
// Both pointers are to this block's shared memory and are translated. Asynchronous; nothing else of this thread is
// ordered by it.
SE_DEVICE void push(float* to, float4 v, unsigned rank, BulkBarrier* b) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   remote_address(to, rank)),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(remote_address(b, rank))
               : "memory");
}
// Waits until all bytes that `b` expects have been pushed, and acquires them: st.async completes its bytes with release
// at cluster scope (PTX ISA, "st.async"), so the wait acquires at cluster scope too.
SE_DEVICE void push_wait(BulkBarrier* b, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
          shared_address(b)),
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
using se_shim::cluster_rank;
using se_shim::cluster_wait;
using se_shim::push;
inline void cluster_arrive_relaxed() { se_shim::cluster_arrive(); }
inline void push_wait(BulkBarrier* b, int parity) { bulk_wait(b, parity); }
#endif

}  // namespace se_fused::cuda
