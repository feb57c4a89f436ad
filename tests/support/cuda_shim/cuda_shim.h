// Runs CUDA kernels on the CPU, for tests only: g++ compiles the kernels' source, and every CUDA thread is a fiber.
// Blocks run in waves: one cluster, or the whole grid (resident). The threads of a wave run in turn, each until it has
// to wait: from the first to the last or, reversed (SE_SHIM_REVERSE=1), from the last to the first. A kernel that is
// right in one order only lacks a barrier. An error ends the process with a line that names the place. Memory ordering
// is not modelled.
//
// The launches of a chain run when its last one is launched. Each begins before its predecessor, as programmatic
// launches do at the earliest: the first wave of its blocks runs up to dependency_wait(), and then the whole
// predecessor. What a kernel reads before it waits is therefore never its predecessor's result.
#pragma once

#include <malloc.h>
#include <ucontext.h>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define threadIdx (::se_shim::current->thread)
#define blockIdx (::se_shim::current->block->index)
#define blockDim (::se_shim::grid->block_dim)
#define gridDim (::se_shim::grid->grid_dim)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace se_shim {
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 << 10;
extern "C" void __sanitizer_start_switch_fiber(void**, const void*, size_t);
extern "C" void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
#else
constexpr size_t kStackBytes = 64 << 10;
inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif
#if defined(__x86_64__) && !defined(SE_SHIM_UCONTEXT)
using Context = void**;  // the stack pointer
// swapcontext makes a system call; ret would be mispredicted. noipa: callers must not infer which registers survive.
__attribute__((naked, noipa)) inline void switch_stacks(Context*, const Context*) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp, (%rdi);"
      "mov (%rsi), %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; pop %rcx; jmp *%rcx");
}
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void* const frame[8] = {0, 0, 0, 0, 0, 0, reinterpret_cast<void*>(entry), 0};  // popped by switch_stacks
  context = static_cast<void**>(std::memcpy(stack + kStackBytes - sizeof frame, frame, sizeof frame));
}
#else
using Context = ucontext_t;
inline void switch_stacks(Context* from, const Context* to) { swapcontext(from, to); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, entry, 0);
}
#endif
struct Barrier {
  unsigned alive = 0, arrived = 0, generation = 0;  // threads
  unsigned update() { return arrived == alive ? arrived = 0, generation++ : generation; }
};
struct Block {
  dim3 index;
  Block* first;  // of the cluster; it has the cluster's barrier
  Barrier barrier, cluster_barrier;
  std::shared_ptr<void> shared;  // of the exact size, so that AddressSanitizer detects its end
  bool allows = false;           // a thread called allow_dependents
};
struct Grid {
  std::string name;
  std::function<void()> kernel;
  dim3 grid_dim, block_dim;
  size_t shared_bytes, block_threads, cluster_blocks;
  bool resident;
  bool programmatic, followed;  // it begins before the launch before it; another launch of its chain follows
  unsigned ready = 1;           // 0 until the predecessor has run
};
struct Fiber {
  alignas(16) char stack[kStackBytes];  // the members below keep stacks out of the same cache sets
  const void* bottom = stack;           // this and the next two are for AddressSanitizer; it also sets the host's
  size_t size = kStackBytes;
  void* fake_stack = nullptr;
  Context context;
  Block* block;
  dim3 thread;
  std::unique_ptr<Fiber>* warp;  // its fibers; the first one stores the alive and waiting lanes
  unsigned lane, seen, cluster_generation, alive, waiting;
  unsigned mask, source, answered;  // of the warp collective in which the thread waits; so are value and answer
  uint64_t value, answer;
  const char* where;        // the function in which it waits
  const unsigned* watched;  // it continues when this differs from `seen`
  bool done, in_cluster_barrier;
  bool waited;  // it called dependency_wait
};
using BulkBarrier = uint64_t;  // kBulkMagic
struct Bulk {
  int arrivals, pending, phase;
  int64_t bytes;  // expected, but not yet copied
  std::vector<std::function<void()>> copies;
};
constexpr uint64_t kStackEnd = 0x5ac4e4d0f57ac4e4, kBulkMagic = 0xb01cba221e5ca1e5;
constexpr unsigned kBallot = ~0u, kIdle = 4 << 20;  // it is a deadlock after so many resumed threads without progress
inline Fiber host, *current;
inline std::vector<std::unique_ptr<Fiber>> fibers;  // pooled: each runs one kernel after another
inline std::vector<Block> blocks;                   // of the wave, like the barriers
inline std::map<const BulkBarrier*, Bulk> bulks;
inline Grid* grid;                                              // the launch that runs
inline std::vector<Grid> chain;                                 // launches that have not begun
inline std::vector<std::vector<std::unique_ptr<Fiber>>> pools;  // further fibers, for predecessors of a paused launch
inline std::vector<std::string> names;
// If not null, it takes launches over: none is run here.
using TakeOver = void (*)(const char* name, const void* kernel, const size_t sizes[4], const void* args, size_t bytes);
inline TakeOver take_over;
inline int launch_count, programmatic_count;
inline bool reversed = std::getenv("SE_SHIM_REVERSE") && *std::getenv("SE_SHIM_REVERSE") == '1', moved;
inline void report(const Fiber& f, const char* what, auto... args) {
  const dim3 b = f.block->index, t = f.thread;
  fprintf(stderr, "cuda_shim: %s block %u,%u,%u thread %u,%u,%u: ", grid->name.data(), b.x, b.y, b.z, t.x, t.y, t.z);
  fprintf(stderr, what, args..., 0), fputs("\n", stderr);  // 0: g++ warns of a format without arguments
}
inline void require(bool good, const char* what, auto... args) {
  if (!good) report(*current, what, args...), std::abort();
}
inline void switch_to(Fiber& from, Fiber& to) {
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
  switch_stacks(&from.context, &to.context);
  __sanitizer_finish_switch_fiber(from.fake_stack, &to.bottom, &to.size);
}
inline void wait_while(const unsigned& word, unsigned seen, const char* where) {
  current->where = where, current->watched = &word, current->seen = seen, moved = true;
  if (word == seen) switch_to(*current, host);
}
// ---- warps. complete: sets the answers if all lanes of the mask that have not exited wait for them.
inline void complete(std::unique_ptr<Fiber>* warp, unsigned mask) {
  const unsigned lanes = mask & warp[0]->alive;
  if ((warp[0]->waiting & lanes) != lanes) return;
  unsigned here = 0, ballot = 0;
  for (unsigned i = 0; i < 32; ++i)
    if (lanes >> i & 1) here |= unsigned(warp[i]->mask == mask) << i, ballot |= unsigned(warp[i]->value != 0) << i;
  if (here != lanes) return;
  warp[0]->waiting &= ~lanes;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    Fiber& f = *(current = warp[std::countr_zero(rest)].get());
    require(f.source == kBallot || lanes >> f.source & 1, "%s reads lane %u, %s mask 0x%08x", f.where, f.source,
            mask >> f.source % 32 & 1 ? "which has exited," : "not in its", mask);
    f.answer = f.source == kBallot ? ballot : warp[f.source]->value, f.answered = 1;
  }
}
inline uint64_t collective(const char* op, unsigned mask, uint64_t value, unsigned source = kBallot) {
  Fiber& f = *current;
  require(mask >> f.lane & 1, "%s by lane %u, not in its mask 0x%08x", op, f.lane, mask);
  for (unsigned rest = (*f.warp)->waiting & mask, each = 0; rest && !each; rest &= rest - 1) {
    const Fiber& other = *f.warp[std::countr_zero(rest)];
    each = other.mask >> f.lane & 1;  // the other waits for this lane: both must be in the same collective
    require(!each || (other.mask == mask && !std::strcmp(other.where, op)),
            "%s, mask 0x%08x, while lane %u is at %s, mask 0x%08x", op, mask, other.lane, other.where, other.mask);
  }
  f.where = op, f.mask = mask, f.value = value, f.source = source, f.answered = 0;
  (*f.warp)->waiting |= 1u << f.lane, complete(f.warp, mask), current = &f;
  wait_while(f.answered, 0, op);
  return f.answer;
}
inline auto shuffle(const char* op, unsigned mask, auto v, unsigned source, int width) {
  using Bits = std::conditional_t<sizeof v == 4, uint32_t, uint64_t>;
  require(width > 0 && width <= 32 && std::has_single_bit(unsigned(width)), "%s with width %d", op, width);
  if (source > (current->lane | (width - 1))) source = current->lane;  // beyond the lane's group: the lane itself
  return std::bit_cast<decltype(v)>(Bits(collective(op, mask, std::bit_cast<Bits>(v), source)));
}
// ---- blocks and grids
inline char* dynamic_shared() { return static_cast<char*>(current->block->shared.get()); }
inline bool in_shared(const void* p, size_t bytes) {
  const size_t offset = uintptr_t(p) - uintptr_t(dynamic_shared());
  return offset < grid->shared_bytes && bytes <= grid->shared_bytes - offset;
}
inline void end_thread(Fiber& f) {
  Block& b = *f.block;
  Barrier& cluster = b.first->cluster_barrier;
  require(!std::memcmp(f.stack, &kStackEnd, sizeof kStackEnd), "stack overflow");
  f.done = moved = true, (*f.warp)->alive &= ~(1u << f.lane);
  for (unsigned rest = (*f.warp)->waiting; rest; rest &= rest - 1)
    complete(f.warp, f.warp[std::countr_zero(rest)]->mask);
  current = &f;
  cluster.arrived -= f.in_cluster_barrier && f.cluster_generation == cluster.generation;
  --b.barrier.alive, b.barrier.update(), --cluster.alive, cluster.update();
  require(f.waited || !grid->programmatic, "a thread ends without dependency_wait");
  if (b.barrier.alive) return;
  require(b.allows || !grid->followed, "a block ends without allow_dependents, so the next launch cannot begin early");
  for (const auto& [barrier, bulk] : bulks)
    require(!in_shared(barrier, 8) || bulk.copies.empty(), "the block ends without a wait for its bulk copy");
  // 0xff, in case another block still reads it
  std::memset(dynamic_shared(), 0xff, grid->shared_bytes), b.shared.reset();
}
inline void fiber_main() {
  __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.size);
  for (;; switch_to(*current, host)) grid->kernel(), end_thread(*current);
}
inline dim3 unflatten(size_t i, dim3 d) { return dim3(i % d.x, i / d.x % d.y, i / d.x / d.y); }
inline void run_chain();
// Runs the predecessors of the current launch, whose first wave is paused.
inline void run_predecessors() {
  auto paused = std::make_tuple(std::move(fibers), std::move(blocks), std::move(bulks), grid);
  fibers.clear();
  if (!pools.empty()) fibers = std::move(pools.back()), pools.pop_back();
  run_chain();
  pools.push_back(std::move(fibers));
  std::tie(fibers, blocks, bulks, grid) = std::move(paused);
  grid->ready = 1, moved = true;
}
inline void run_wave(size_t begin, size_t count) {
  const size_t all = count * grid->block_threads;
  bulks.clear(), blocks.clear(), blocks.resize(count);
  while (fibers.size() < all) {
    Fiber& f = *fibers.emplace_back(std::make_unique_for_overwrite<Fiber>());
    std::memcpy(f.stack, &kStackEnd, sizeof kStackEnd), prepare(f.context, f.stack, fiber_main);
  }
  for (size_t i = 0; i < all; ++i) {
    const size_t block = i / grid->block_threads, thread = i % grid->block_threads;
    Block& b = blocks[block];
    Fiber& f = *fibers[i];
    if (thread == 0) {
      b.index = unflatten(begin + block, grid->grid_dim), b.first = &b - block % grid->cluster_blocks;
      b.shared.reset(std::memset(memalign(128, grid->shared_bytes), 0xff, grid->shared_bytes), std::free);
    }
    f.block = &b, f.thread = unflatten(thread, grid->block_dim), f.lane = thread % 32, f.warp = &fibers[i - f.lane];
    f.alive = f.waiting = 0, f.watched = nullptr, f.done = f.in_cluster_barrier = f.waited = false;
    (*f.warp)->alive |= 1u << f.lane, ++b.barrier.alive, ++b.first->cluster_barrier.alive;
  }
  for (size_t live = all, idle = 0, ran; live; idle = moved ? 0 : idle + ran) {
    ran = moved = false;
    for (size_t i = 0; i < all; ++i) {
      Fiber& f = *(current = fibers[reversed ? all - 1 - i : i].get());
      if (f.done || (f.watched && *f.watched == f.seen)) continue;
      moved |= f.watched != nullptr, ++ran, f.watched = nullptr;
      switch_to(host, f);
      live -= f.done;
    }
    if (ran && idle < kIdle) continue;
    if (!ran && !grid->ready) {
      run_predecessors();
      continue;
    }
    const char* said = "";
    for (size_t i = 0, lines = 0; i < all && lines < 16; ++i)
      if (const Fiber& f = *fibers[i]; !f.done && std::strcmp(said, f.where))
        report(f, "deadlock: waiting for ever in %s", said = f.where), ++lines;
    std::abort();
  }
}
// The largest shared memory per block with which clusters of more than 8 blocks can be placed. Tests set it.
inline size_t large_cluster_bytes = 232448;
inline bool can_place(size_t cluster, size_t bytes) { return cluster <= 8 || bytes <= large_cluster_bytes; }
inline uint64_t volume(dim3 d) { return uint64_t(d.x) * d.y * d.z; }
inline const char* refusal(const Grid& g) {
  const uint64_t count = volume(g.grid_dim), threads = volume(g.block_dim);
  const dim3 grid_dim = g.grid_dim, block_dim = g.block_dim;
  if (threads < 1 || threads > 1024 || block_dim.z > 64) return "a block has 1 to 1024 threads, 64 along z";
  if (count < 1 || grid_dim.x > INT32_MAX || grid_dim.y > 65535 || grid_dim.z > 65535) return "grid size out of range";
  if (g.shared_bytes > 232448) return "more shared memory than a block can have";
  if (!can_place(g.cluster_blocks, g.shared_bytes)) return "the device cannot place such a cluster";
  if (g.cluster_blocks - 1 > 15 || grid_dim.x % g.cluster_blocks)
    return "a cluster has 1 to 16 blocks and divides grid.x";
  if (g.resident && count * threads > 65536) return "the grid is too large to be resident here";
  return nullptr;
}
// Runs the last launch of the chain, and in the middle of it the others.
inline void run_chain() {
  if (chain.empty()) return;
  Grid last = std::move(chain.back());
  chain.pop_back(), grid = &last, last.ready = chain.empty();
  const size_t count = volume(last.grid_dim), wave = last.resident ? count : last.cluster_blocks;
  for (size_t i = 0; i < count; i += wave) run_wave(reversed ? count - wave - i : i, wave);
}
// ---- functions for hosts. launch: null, or the reason why CUDA would refuse.
inline void set_reverse(bool reverse) { reversed = reverse; }
inline int launches() { return launch_count; }
inline std::vector<std::string>& launch_names() { return names; }
template <class Args>
const char* launch(const char* name, void (*f)(Args), dim3 grid_dim, dim3 block_dim, size_t shared, unsigned cluster,
                   bool resident, const Args& args, bool programmatic = false, bool followed = false) {
  if (take_over) {
    const size_t sizes[] = {grid_dim.x, block_dim.x, shared, cluster};
    take_over(name, reinterpret_cast<const void*>(f), sizes, &args, sizeof args);
    return nullptr;
  }
  Grid g{name,     [f, args] { f(args); }, grid_dim, block_dim, shared, volume(block_dim), cluster,
         resident, programmatic,           followed};
  if (const char* const why = refusal(g)) return chain.clear(), why;
  ++launch_count, programmatic_count += programmatic, names.emplace_back(name);
  if (!programmatic) run_chain();
  chain.push_back(std::move(g));
  if (!followed) run_chain();
  return nullptr;
}
// ---- functions for kernels
inline void allow_dependents() { current->block->allows = true; }
inline void dependency_wait() {
  current->waited = true;
  if (!grid->ready) wait_while(grid->ready, 0, "dependency_wait");
}
// A prefetch into L2 has no effect here; its operands are checked as those of cp.async.bulk.prefetch.
inline void bulk_prefetch(const void* from, uint32_t bytes) {
  require((uintptr_t(from) | bytes) % 16 == 0, "bulk_prefetch of %u bytes: not 16-byte aligned", bytes);
  for (uint32_t i = 0; i < bytes; i += 16) (void)*(static_cast<const volatile char*>(from) + i);
}
inline void spin(const char* where = "a spin-wait") { current->where = where, switch_to(*current, host); }
inline unsigned cluster_size() { return grid->cluster_blocks; }
inline unsigned cluster_rank() { return current->block - current->block->first; }
inline void cluster_arrive() {
  Barrier& barrier = current->block->first->cluster_barrier;
  require(!std::exchange(current->in_cluster_barrier, true), "cluster_arrive twice without cluster_wait");
  ++barrier.arrived, current->cluster_generation = barrier.update(), moved = true;
}
inline void cluster_wait() {
  require(std::exchange(current->in_cluster_barrier, false), "cluster_wait without cluster_arrive");
  wait_while(current->block->first->cluster_barrier.generation, current->cluster_generation, "cluster_wait");
}
inline auto* map_shared(auto* p, unsigned rank) {
  require(in_shared(p, 1) && rank < grid->cluster_blocks, "map_shared of %p, or rank %u, is out of bounds", p, rank);
  const Block& to = current->block->first[rank];
  require(&to == current->block || to.barrier.alive == grid->block_threads,
          "map_shared: threads of rank %u have exited", rank);
  return (decltype(p))((uintptr_t)to.shared.get() + ((uintptr_t)p - (uintptr_t)dynamic_shared()));
}
// cp.async.bulk with an mbarrier. Copies are made as late as allowed, when a thread waits for their phase. Until then
// the destination holds 0xff, so that neither early data nor the previous stage's data can be read there.
inline Bulk& find(const BulkBarrier* b) {
  require(in_shared(b, 8) && bulks.count(b) && *b == kBulkMagic, "no bulk barrier of this block, or overwritten");
  return moved = true, bulks[b];
}
inline void bulk_init(BulkBarrier* b, int arrivals) {
  require(in_shared(b, 8) && uintptr_t(b) % 8 == 0, "bulk_init misaligned or outside of the block's shared memory");
  *b = kBulkMagic, bulks[b] = {arrivals, arrivals, 0, 0, {}};
}
inline void bulk_expect(BulkBarrier* barrier, uint32_t bytes) {
  Bulk& b = find(barrier);
  require(b.pending > 0, "bulk_expect for the next phase before a wait for this one");
  b.bytes += bytes, --b.pending;
}
inline void bulk_copy(void* to, const void* from, uint32_t bytes, BulkBarrier* barrier) {
  Bulk& b = find(barrier);
  require((uintptr_t(to) | uintptr_t(from) | bytes) % 16 == 0, "bulk_copy of %u bytes: not 16-byte aligned", bytes);
  require(in_shared(to, bytes), "bulk_copy of %u bytes to outside of the block's shared memory", bytes);
  std::memset(to, 0xff, bytes);
  b.copies.push_back([=, &b] { std::memcpy(to, from, bytes), b.bytes -= bytes; });
}
inline void bulk_wait(BulkBarrier* barrier, int parity) {
  for (Bulk& b = find(barrier); b.phase % 2 == parity; spin("bulk_wait")) {
    if (b.pending) continue;
    for (const auto& copy : std::exchange(b.copies, {})) copy();
    require(b.bytes >= 0, "bulk copies of %lld bytes more than expected", -(long long)b.bytes);
    if (b.bytes == 0) b.pending = b.arrivals, ++b.phase, moved = true;
  }
}
// st.async: the store takes effect when a thread of the other block waits for it.
inline void push(float* to, float4 v, unsigned rank, BulkBarrier* barrier) {
  require(uintptr_t(to) % 16 == 0 && in_shared(to, 16), "push misaligned or outside of the block's shared memory");
  require(!current->in_cluster_barrier, "push before cluster_wait: the other block may not have started");
  float* const target = map_shared(to, rank);
  const BulkBarrier* const there = map_shared(barrier, rank);
  require(bulks.count(there) && *there == kBulkMagic, "push to rank %u, which has no bulk barrier there", rank);
  Bulk& b = bulks[there];
  require(b.phase == 0 || b.bytes > 0, "push of more bytes than rank %u expects", rank);
  std::memset(target, 0xff, 16), moved = true;
  b.copies.push_back([=, &b] { std::memcpy(target, &v, 16), b.bytes -= 16; });
}
}  // namespace se_shim

inline void __syncthreads() {
  se_shim::Barrier& barrier = se_shim::current->block->barrier;
  ++barrier.arrived, se_shim::wait_while(barrier.generation, barrier.update(), "__syncthreads");
}
inline void __syncwarp(unsigned mask = ~0u) { se_shim::collective("__syncwarp", mask, 0); }
inline unsigned __ballot_sync(unsigned mask, int p) { return se_shim::collective("__ballot_sync", mask, p != 0); }
inline int __any_sync(unsigned mask, int p) { return se_shim::collective("__any_sync", mask, p != 0) != 0; }
inline auto __shfl_sync(unsigned mask, auto v, int source, int width = 32) {
  return se_shim::shuffle("__shfl_sync", mask, v, (se_shim::current->lane & -width) | (source & (width - 1)), width);
}
inline auto __shfl_xor_sync(unsigned mask, auto v, int lane_mask, int width = 32) {
  return se_shim::shuffle("__shfl_xor_sync", mask, v, se_shim::current->lane ^ (lane_mask & 31), width);
}
inline auto __shfl_down_sync(unsigned mask, auto v, unsigned delta, int width = 32) {
  return se_shim::shuffle("__shfl_down_sync", mask, v, se_shim::current->lane + (delta & 31), width);
}
// ---- approximate functions, as bad as a GPU's may be: 2 ulp (2^x) and 1 ulp (1 / x) from the correctly rounded result,
// above or below by a hash of the argument. Subnormal arguments and results become zero.
namespace se_shim {
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }
inline float moved_by(float x, int ulps, float argument) {
  if (x == 0 || !std::isfinite(x)) return x;
  const bool up = std::bit_cast<uint32_t>(argument) * 0x9e3779b9u >> 31;
  for (int i = 0; i < ulps; ++i) x = std::nextafter(x, up ? HUGE_VALF : -HUGE_VALF);
  return flushed(x);
}
inline float exp2_approx(float x) { return moved_by(flushed(float(std::exp2(double(flushed(x))))), 2, x); }
inline float rcp_approx(float x) { return moved_by(flushed(float(1 / double(flushed(x)))), 1, x); }
}  // namespace se_shim
inline void __threadfence() {}
inline int atomicAdd(int* p, int v) { return se_shim::moved |= v != 0, std::exchange(*p, int(unsigned(*p) + v)); }
inline unsigned atomicOr(unsigned* p, unsigned v) { return se_shim::moved |= v & ~*p, std::exchange(*p, *p | v); }
