// Test of the shim.
//   selftest ok      run correct kernels in both orders
//   selftest faults  check that every faulty kernel is caught, each in its own process
//   selftest NAME    run one faulty kernel and show its message
//   selftest cost    measure barriers, shuffles and empty threads
// Each kernel takes one struct of pointers. `check` reports the line of a failure, and the process then exits with 1.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "cuda_shim.h"

static int failures = 0;
static void check_line(bool good, const char* what, int line) {
  if (!good) std::printf("selftest.cpp:%d: %s\n", line, what), ++failures;
}
#define check(condition) check_line(condition, #condition, __LINE__)

struct Args {
  float* x;
  float* y;
  int* counts;
  int n;
};
using se_shim::BulkBarrier;
using Kernel = void (*)(Args);

static float* shared_floats() { return reinterpret_cast<float*>(se_shim::dynamic_shared()); }
static bool run(Kernel kernel, dim3 grid, dim3 block, const Args& args, size_t shared = 0, unsigned cluster = 1,
                bool resident = false) {
  const char* const error = se_shim::launch("selftest", kernel, grid, block, shared, cluster, resident, args);
  if (error) std::printf("refused: %s\n", error);
  return !error;
}

// ---- correct kernels
__global__ static void __launch_bounds__(1024) indices(const Args a) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int at = block * int(blockDim.x * blockDim.y * blockDim.z) + thread;
  if (at < a.n) atomicAdd(&a.counts[at], 1);
  if (a.x) a.x[0] = float(at);  // the last thread's value remains
}
static void test_indices() {
  for (const dim3 block : {dim3(1), dim3(5, 3, 2), dim3(16, 64), dim3(33)})
    for (const bool resident : {false, true}) {
      const dim3 grid(3, 2, 2);
      const int n = 12 * int(block.x * block.y * block.z);
      std::vector<int> counts(n);
      check(run(indices, grid, block, {nullptr, nullptr, counts.data(), n}, 0, 1, resident));
      check(counts == std::vector<int>(n, 1));
    }
  float last = -1;
  check(run(indices, 4, 8, {&last, nullptr, nullptr, 0}));
  check(last == (se_shim::reversed ? 0.f : 31.f));
}

__global__ static void collectives(const Args a) {
  const int lane = int(threadIdx.x) % 32;
  bool good = true;
  const auto want = [&](bool condition) { good = good && condition; };
  for (int width = 1; width <= 32; width *= 2) {
    const int start = lane / width * width, last = start + width - 1;
    for (int k = 0; k < 33; ++k) {
      const int x = lane ^ (k & 31), d = lane + (k & 31);
      want(__shfl_xor_sync(~0u, lane, k, width) == (x > last ? lane : x));
      want(__shfl_down_sync(~0u, double(lane), k, width) == (d > last ? lane : d));
      want(__shfl_sync(~0u, float(lane), k, width) == start + k % width);
    }
  }
  want(__ballot_sync(~0u, lane % 3) == 0xb6db6db6u);
  want(__any_sync(~0u, lane == 7) && !__any_sync(~0u, 0));
  // two independent halves at once, then a collective without one lane
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  for (int i = 0; i < (lane < 16 ? 3 : 1); ++i) want(__ballot_sync(half, 1) == half);
  if (lane != 5) want(__shfl_sync(~(1u << 5), lane, 31) == 31);
  __syncwarp();
  // a collective does not wait for lanes that have exited
  if (lane < 8) {
    __shfl_sync(0xffu, lane, 0);
    if (!good) atomicAdd(a.counts, 1);
    return;
  }
  want(__ballot_sync(~0u, 1) == 0xffffff00u);
  if (!good) atomicAdd(a.counts, 1);
}
static void test_collectives() {
  int wrong = 0;
  check(run(collectives, 2, 96, {nullptr, nullptr, &wrong, 0}));
  check(wrong == 0);
}

// y[block] = sum of x over a block; a thread beyond n exits before the first barrier
__global__ static void sum(const Args a) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  float* const partial = shared_floats();
  if (i >= a.n && lane == 0) partial[warp] = 0.f;
  if (i >= a.n) return;
  float v = a.x[i];
  for (int k = 16; k; k /= 2) v += __shfl_down_sync(~0u, v, k);
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  v = lane < int(blockDim.x) / 32 ? partial[lane] : 0.f;
  for (int k = 16; k; k /= 2) v += __shfl_xor_sync(~0u, v, k);
  if (threadIdx.x == 0) a.y[blockIdx.x] = v;
}
static void test_sum() {
  std::vector<float> x(64 * 32), y(4);
  std::iota(x.begin(), x.end(), 0.f);
  const int n = 64 * 32 - 5 * 32;
  check(run(sum, 4, 512, {x.data(), y.data(), nullptr, n}, 64));
  for (int b = 0; b < 4; ++b) {
    const float truth = std::accumulate(x.begin() + b * 512, x.begin() + std::min(n, b * 512 + 512), 0.f);
    check(std::fabs(y[b] - truth) <= 1e-6f * truth);
  }
}

// Without the barrier, 63 of 64 threads read too early in one order, and 1 in the other.
template <bool with_barrier>
__global__ void next_neighbour(const Args a) {
  shared_floats()[threadIdx.x] = a.x[threadIdx.x];
  if (with_barrier) __syncthreads();
  a.y[threadIdx.x] = shared_floats()[(threadIdx.x + 1) % blockDim.x];
}
static void test_order() {
  std::vector<float> x(64), y(64);
  std::iota(x.begin(), x.end(), 0.f);
  for (const bool with_barrier : {true, false}) {
    check(
        run(with_barrier ? next_neighbour<true> : next_neighbour<false>, 1, 64, {x.data(), y.data(), nullptr, 0}, 256));
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += y[i] != x[(i + 1) % 64];
    check(wrong == (with_barrier ? 0 : se_shim::reversed ? 1 : 63));
  }
}

__global__ static void poison(const Args a) {
  for (int i = int(threadIdx.x); i < a.n; i += int(blockDim.x))
    if (se_shim::dynamic_shared()[i] == char(0xff)) atomicAdd(a.counts, 1);
  __syncthreads();
  for (int i = int(threadIdx.x); i < a.n; i += int(blockDim.x)) se_shim::dynamic_shared()[i] = 0;
}
static void test_poison() {
  for (const int n : {1, 4099, 232448}) {
    int seen = 0;
    check(run(poison, 3, 32, {nullptr, nullptr, &seen, n}, n));
    check(seen == 3 * n);
  }
}

__global__ static void cluster_ring(const Args a) {
  const unsigned rank = se_shim::cluster_rank(), size = se_shim::cluster_size();
  float* const mine = shared_floats();
  for (int round = 0; round < 3; ++round) {
    mine[threadIdx.x] = float(blockIdx.x * 100 + threadIdx.x + round);
    se_shim::cluster_arrive();
    se_shim::cluster_wait();
    const float* const there = se_shim::map_shared(mine + threadIdx.x, (rank + 1) % size);
    const unsigned block = blockIdx.x / size * size + (rank + 1) % size;
    if (*there != float(block * 100 + threadIdx.x + round) || rank != blockIdx.x % size) atomicAdd(a.counts, 1);
    se_shim::cluster_arrive();
    if (round == 2 && threadIdx.x == 3) __threadfence();  // other code is allowed between arrive and wait
    se_shim::cluster_wait();
  }
  if (__ballot_sync(~0u, 1) != (threadIdx.x < 32 ? ~0u : 0xffffu)) atomicAdd(a.counts, 1);
  // some threads exit, with and without having arrived; the others still wait for each other
  if (threadIdx.x % 4 == 1) se_shim::cluster_arrive();
  if (threadIdx.x % 2) return;
  int* const here = &a.counts[1 + (blockIdx.y * gridDim.x + blockIdx.x) / size];
  atomicAdd(here, 1);
  se_shim::cluster_arrive();
  se_shim::cluster_wait();
  if (*here != int(24 * size)) atomicAdd(a.counts, 1);
}
static void test_cluster() {
  for (const unsigned cluster : {1u, 2u, 4u, 16u})
    for (const bool resident : {false, true}) {
      int counts[33] = {};
      check(run(cluster_ring, dim3(16, 2), 48, {nullptr, nullptr, counts, 0}, 48 * 4, cluster, resident));
      check(counts[0] == 0);
    }
}

// A barrier over the grid, after which every block reads what its neighbour wrote. counts: errors, arrivals.
__global__ static void grid_barrier(const Args a) {
  for (int round = 1; round <= 3; ++round) {
    if (threadIdx.x == 0) {
      a.x[blockIdx.x] = float(round);
      __threadfence();
      atomicAdd(&a.counts[1], 1);
      while (*const_cast<volatile int*>(&a.counts[1]) < 2 * round * int(gridDim.x) - int(gridDim.x)) se_shim::spin();
      if (a.x[(blockIdx.x + 1) % gridDim.x] != float(round)) atomicAdd(&a.counts[0], 1);
      atomicAdd(&a.counts[1], 1);
      while (*const_cast<volatile int*>(&a.counts[1]) < 2 * round * int(gridDim.x)) se_shim::spin();
    }
    __syncthreads();
  }
}
// A chain of blocks, of which one at a time continues, signalled by plain stores only.
__global__ static void chain(const Args a) {
  for (int round = 0; round < a.n; ++round) {
    const int turn = round * int(gridDim.x) + int(blockIdx.x);
    while (*const_cast<volatile int*>(a.counts) != turn) se_shim::spin();
    *a.counts = turn + 1;
  }
}
static void test_resident() {
  std::vector<float> x(40);
  int counts[2] = {0, 0}, turn = 0;
  check(run(grid_barrier, 40, 64, {x.data(), nullptr, counts, 0}, 0, 1, true));
  check(counts[0] == 0 && counts[1] == 40 * 6);
  check(run(chain, 40, 1, {nullptr, nullptr, &turn, 20}, 0, 1, true));
  check(turn == 40 * 20);
}

__global__ static void atomics(const Args a) {
  if (atomicAdd(&a.counts[0], 2) % 2) atomicAdd(&a.counts[2], 1);
  const unsigned bit = 1u << threadIdx.x;
  if (atomicOr(reinterpret_cast<unsigned*>(&a.counts[1]), bit) & bit) atomicAdd(&a.counts[2], 1);
}
static void test_atomics() {
  int counts[3] = {0, 0, 0};
  check(run(atomics, 1, 32, {nullptr, nullptr, counts, 0}));
  check(counts[0] == 64 && counts[1] == -1 && counts[2] == 0);
}

constexpr int kStages = 2, kStageFloats = 64;
struct BulkShared {
  float data[kStages][kStageFloats];
  BulkBarrier full[kStages];
};
// y = 2 x through a double buffer, one stage ahead; two copies per stage
__global__ static void pipeline(const Args a) {
  BulkShared& s = *reinterpret_cast<BulkShared*>(se_shim::dynamic_shared());
  const int steps = a.n / kStageFloats;
  const auto fetch = [&](int step) {
    BulkBarrier* const full = &s.full[step % kStages];
    const float* const from = a.x + step * kStageFloats;
    se_shim::bulk_expect(full, kStageFloats * 4);
    se_shim::bulk_copy(s.data[step % kStages], from, kStageFloats * 2, full);
    se_shim::bulk_copy(s.data[step % kStages] + kStageFloats / 2, from + kStageFloats / 2, kStageFloats * 2, full);
  };
  if (threadIdx.x == 0) {
    for (BulkBarrier& full : s.full) se_shim::bulk_init(&full, 1);
    fetch(0);
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (threadIdx.x == 0 && step + 1 < steps) fetch(step + 1);
    se_shim::bulk_wait(&s.full[step % kStages], step / kStages % 2);
    for (int i = int(threadIdx.x); i < kStageFloats; i += int(blockDim.x))
      a.y[step * kStageFloats + i] = 2.f * s.data[step % kStages][i];
    __syncthreads();
  }
}
// Each block sends every other one a vector per thread, and waits for theirs.
__global__ static void pushes(const Args a) {
  const unsigned rank = se_shim::cluster_rank(), size = se_shim::cluster_size();
  float* const inbox = shared_floats();
  BulkBarrier* const arrived = reinterpret_cast<BulkBarrier*>(inbox + 4 * 16 * 40);
  if (threadIdx.x == 0) se_shim::bulk_init(arrived, 1), se_shim::bulk_expect(arrived, size * 40 * 16);
  se_shim::cluster_arrive();
  se_shim::cluster_wait();
  const float v = float(100 * blockIdx.x + threadIdx.x);
  for (unsigned to = 0; to < size; ++to)
    se_shim::push(inbox + 4 * (40 * rank + threadIdx.x), {v, v + 1, v + 2, v + 3}, to, arrived);
  se_shim::bulk_wait(arrived, 0);
  for (unsigned from = 0; from < size; ++from)
    for (int i = 0; i < 4; ++i)
      if (inbox[4 * (40 * from + threadIdx.x) + i] != float(100 * (blockIdx.x - rank + from) + threadIdx.x + i))
        atomicAdd(a.counts, 1);
}
static void test_push() {
  for (const unsigned cluster : {1u, 4u, 16u}) {
    int errors = 0;
    check(run(pushes, 16, 40, {nullptr, nullptr, &errors, 0}, 4 * 4 * 16 * 40 + 16, cluster));
    check(errors == 0);
  }
}
static void test_bulk() {
  std::vector<float> x(9 * kStageFloats), y(x.size());
  std::iota(x.begin(), x.end(), 1.f);
  check(run(pipeline, 2, 96, {x.data(), y.data(), nullptr, int(x.size())}, sizeof(BulkShared)));
  for (size_t i = 0; i < x.size(); ++i) check(y[i] == 2.f * x[i]);
}

// x = x + n, as a launch of a chain: adds to what its predecessor wrote. In y[block] it counts the elements that were
// right before it waited, in y[3 + block] those that are right when it has waited.
template <bool waits, bool allows = true>
__global__ void next_of_chain(const Args a) {
  if (allows) se_shim::allow_dependents();
  const float wanted = float(a.n - 1);
  if (threadIdx.x == 0) shared_floats()[0] = a.x[blockIdx.x];
  __syncthreads();
  const bool early = shared_floats()[0] == wanted;
  if (waits) se_shim::dependency_wait();
  if (early) atomicAdd(&a.counts[blockIdx.x], 1);
  __syncthreads();
  if (threadIdx.x % 32 == 0 && a.x[blockIdx.x] == wanted) atomicAdd(&a.counts[3 + blockIdx.x], 1);
  __syncthreads();
  if (threadIdx.x == 0) a.x[blockIdx.x] = float(a.n);
}
static void test_chain() {
  for (const bool resident : {false, true}) {
    std::vector<float> x(3);
    std::vector<std::vector<int>> counts(3, std::vector<int>(6));
    const auto launch = [&](int n, bool programmatic, bool followed) {
      const Args args{x.data(), nullptr, counts[n - 1].data(), n};
      check(!se_shim::launch("chain", next_of_chain<true>, 3, 64, 4, 1, resident, args, programmatic, followed));
    };
    launch(1, false, true), launch(2, true, true);
    check(x == std::vector<float>(3));  // nothing has begun
    launch(3, true, false);
    check(x == std::vector<float>(3, 3.f));
    for (const auto& of : counts) {
      int early = 0;
      for (int block = 0; block < 3; ++block) early += of[block], check(of[3 + block] == 2);
      // The first launch follows nothing, and of the others the first wave is early.
      check(early == (&of == &counts[0] ? 3 * 64 : resident ? 0 : 2 * 64));
    }
    // A launch that is not programmatic begins after its predecessor, and one that is alone need not wait.
    x.assign(3, 0.f), counts.assign(3, std::vector<int>(6));
    launch(1, false, true), launch(2, false, false), launch(3, true, false);
    check(x == std::vector<float>(3, 3.f) && counts[1][0] == 64 && counts[2][0] == 64);
    // A launch that is refused ends its chain.
    x.assign(3, 0.f);
    launch(1, false, true);
    check(se_shim::launch("refused", next_of_chain<true>, 0, 64, 4, 1, resident, Args{}, true, true) != nullptr);
    check(x == std::vector<float>(3) && se_shim::chain.empty());
  }
}

static void test_launch() {
  const Args none{nullptr, nullptr, nullptr, 0};
  const auto refused = [&](dim3 grid, dim3 block, size_t shared, unsigned cluster, bool resident = false) {
    return se_shim::launch("refused", indices, grid, block, shared, cluster, resident, none) != nullptr;
  };
  const int before = se_shim::launches();
  check(refused(1, 1025, 0, 1) && refused(1, dim3(32, 33), 0, 1) && refused(1, 0, 0, 1) && refused(0, 1, 0, 1));
  check(refused(1, 1, 232449, 1) && refused(16, 1, 0, 0) && refused(17, 1, 0, 17) && refused(3, 1, 0, 2));
  check(refused(dim3(1, 65536), 1, 0, 1) && refused(1000, 1024, 0, 1, true));
  check(se_shim::launches() == before);
  se_shim::launch_names().clear();
  check(!refused(16, 1024, 232448, 16));
  check(se_shim::launches() == before + 1 && se_shim::launch_names() == std::vector<std::string>{"refused"});
}

static int run_ok() {
  for (const bool reverse : {se_shim::reversed, !se_shim::reversed}) {
    se_shim::set_reverse(reverse);
    test_indices(), test_collectives(), test_sum(), test_order(), test_poison(), test_cluster(), test_resident();
    test_atomics(), test_push(), test_bulk(), test_chain(), test_launch();
  }
  std::printf("%d failures, %d launches\n", failures, se_shim::launches());
  return failures != 0;
}

// ---- faulty kernels
static BulkBarrier* start_bulk(uint32_t expected) {
  BulkBarrier* const full = reinterpret_cast<BulkBarrier*>(se_shim::dynamic_shared() + 256);
  se_shim::bulk_init(full, 1);
  se_shim::bulk_expect(full, expected);
  return full;
}
static void push_to_first(uint32_t expected, float* to, int pushes) {
  BulkBarrier* const full = start_bulk(expected);
  se_shim::cluster_arrive();
  se_shim::cluster_wait();
  if (se_shim::cluster_rank() == 1)
    for (int i = 0; i < pushes; ++i) se_shim::push(to, {1, 2, 3, 4}, 0, full);
  se_shim::cluster_arrive();
  se_shim::cluster_wait();
}
static void wait_bulk() {
  se_shim::bulk_wait(reinterpret_cast<BulkBarrier*>(se_shim::dynamic_shared() + 256), 0);
}
struct Fault {
  const char *name, *message;
  Kernel kernel;
  dim3 grid = 1, block = 32;
  size_t shared = 512;
  unsigned cluster = 1;
  bool resident = false, needs_asan = false;
  Kernel second = nullptr;  // launched after the kernel, in its chain
};
static const Fault kFaults[] = {
    {"out_of_bounds", "heap-buffer-overflow", [](Args) { se_shim::dynamic_shared()[threadIdx.x + 481] = 1; }, 1, 32,
     512, 1, false, true},
    {"before_bounds", "heap-buffer-overflow", [](Args) { shared_floats()[int(threadIdx.x) - 1] = 1; }, 1, 32, 512, 1,
     false, true},
    {"divergent_barrier", "deadlock: waiting for ever in __syncthreads",
     [](Args) {
       if (threadIdx.x < 16)
         __syncthreads();
       else
         __syncwarp();
     }},
    {"divergent_spin", "deadlock: waiting for ever in a spin-wait",
     [](Args a) {
       while (threadIdx.x == 7 && a.counts[0] == 0) se_shim::spin();
       __syncthreads();
     }},
    {"not_in_mask", "__shfl_xor_sync reads lane 16, not in its mask 0x0000ffff",
     [](Args) {
       if (threadIdx.x < 16) __shfl_xor_sync(0xffffu, 1.f, 16);
     }},
    {"caller_not_in_mask", "__shfl_sync by lane 16, not in its mask 0x0000ffff",
     [](Args) { __shfl_sync(0xffffu, 1, 0); }, 1, 17},
    {"exited_lane", "__shfl_xor_sync reads lane 16, which has exited",
     [](Args) {
       if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1.f, 16);
     }},
    {"missing_lane", "__shfl_down_sync reads lane 20, which has exited", [](Args) { __shfl_down_sync(~0u, 1.f, 16); },
     1, 20},
    {"mixed_masks", "while lane", [](Args) { __shfl_xor_sync(threadIdx.x < 16 ? ~0u : 0xffff8000u, 1.f, 1); }},
    {"overlapping_masks", "__ballot_sync",
     [](Args) {
       if (threadIdx.x < 3) __ballot_sync(threadIdx.x == 1 ? 6u : 7u, 1);
     }},
    {"mixed_collectives", "while lane",
     [](Args) {
       if (threadIdx.x < 16)
         __shfl_xor_sync(~0u, 1.f, 1);
       else
         __ballot_sync(~0u, 1);
     }},
    {"partial_warp", "deadlock: waiting for ever in __shfl_xor_sync",
     [](Args) {
       if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1.f, 1);
       __syncthreads();
     }},
    {"bad_width", "with width 24", [](Args) { __shfl_xor_sync(~0u, 1.f, 1, 24); }},
    {"unmet_spin", "deadlock: waiting for ever in a spin-wait",
     [](Args a) {
       while (a.counts[0] == 0) se_shim::spin();
     }},
    {"not_resident", "deadlock: waiting for ever in a spin-wait",
     [](Args a) {
       atomicAdd(&a.counts[0], 1);
       while (a.counts[0] < int(gridDim.x * blockDim.x)) se_shim::spin();
     },
     2},
    {"cluster_divergent", "deadlock: waiting for ever in cluster_wait",
     [](Args a) {
       se_shim::cluster_arrive();
       se_shim::cluster_wait();
       if (se_shim::cluster_rank() == 1) se_shim::cluster_arrive(), se_shim::cluster_wait();
       while (a.counts[0] == 0 && se_shim::cluster_rank() == 0) se_shim::spin();
     },
     2, 32, 512, 2},
    {"cluster_no_arrive", "cluster_wait without", [](Args) { se_shim::cluster_wait(); }, 2, 32, 512, 2},
    {"cluster_two_arrive", "cluster_arrive twice", [](Args) { se_shim::cluster_arrive(), se_shim::cluster_arrive(); },
     2, 32, 512, 2},
    {"map_outside", "out of bounds", [](Args) { se_shim::map_shared(se_shim::dynamic_shared() + 512, 1); }, 2, 32, 512,
     2},
    {"map_rank", "out of bounds", [](Args) { se_shim::map_shared(se_shim::dynamic_shared(), 2); }, 2, 32, 512, 2},
    {"map_exited", "have exited",
     [](Args) {  // in both orders, the other block exits before this one maps its memory
       if (se_shim::cluster_rank() == 1) return;
       for (int i = 0; i < 3; ++i) __syncthreads();
       se_shim::map_shared(se_shim::dynamic_shared(), 1);
     },
     2, 32, 512, 2},
    {"read_exited", "heap-use-after-free",
     [](Args a) {
       se_shim::cluster_arrive();
       se_shim::cluster_wait();
       const char* const there = se_shim::map_shared(se_shim::dynamic_shared(), 1 - se_shim::cluster_rank());
       se_shim::cluster_arrive();
       se_shim::cluster_wait();
       if (se_shim::cluster_rank() == 1) return;
       for (int i = 0; i < 3; ++i) __syncthreads();
       a.counts[0] = *there;
     },
     2, 32, 512, 2, false, true},
    {"bulk_unaligned_to", "not 16-byte aligned",
     [](Args a) { se_shim::bulk_copy(se_shim::dynamic_shared() + 8, a.x, 16, start_bulk(16)); }, 1, 1},
    {"bulk_unaligned_from", "not 16-byte aligned",
     [](Args a) { se_shim::bulk_copy(se_shim::dynamic_shared(), a.x + 1, 16, start_bulk(16)); }, 1, 1},
    {"bulk_unaligned_size", "not 16-byte aligned",
     [](Args a) { se_shim::bulk_copy(se_shim::dynamic_shared(), a.x, 20, start_bulk(20)); }, 1, 1},
    {"bulk_outside", "to outside of",
     [](Args a) { se_shim::bulk_copy(se_shim::dynamic_shared() + 496, a.x, 32, start_bulk(32)); }, 1, 1},
    {"bulk_elsewhere", "to outside of", [](Args a) { se_shim::bulk_copy(a.y, a.x, 32, start_bulk(32)); }, 1, 1},
    {"bulk_too_much", "16 bytes more than expected",
     [](Args a) {
       BulkBarrier* const full = start_bulk(32);
       se_shim::bulk_copy(se_shim::dynamic_shared(), a.x, 48, full);
       se_shim::bulk_wait(full, 0);
     },
     1, 1},
    {"bulk_too_little", "deadlock: waiting for ever in bulk_wait",
     [](Args a) {
       BulkBarrier* const full = start_bulk(64);
       se_shim::bulk_copy(se_shim::dynamic_shared(), a.x, 48, full);
       se_shim::bulk_wait(full, 0);
     },
     1, 1},
    {"bulk_no_init", "no bulk barrier",
     [](Args) { se_shim::bulk_wait(reinterpret_cast<BulkBarrier*>(se_shim::dynamic_shared()), 0); }, 1, 1},
    {"bulk_overwritten", "or overwritten",
     [](Args a) {
       BulkBarrier* const full = start_bulk(16);
       std::memset(static_cast<void*>(full), 0, 8);
       se_shim::bulk_copy(se_shim::dynamic_shared(), a.x, 16, full);
     },
     1, 1},
    {"bulk_twice", "bulk_expect for the next phase", [](Args) { se_shim::bulk_expect(start_bulk(16), 16); }, 1, 1},
    {"bulk_not_waited", "without a wait for its bulk copy",
     [](Args a) { se_shim::bulk_copy(se_shim::dynamic_shared(), a.x, 16, start_bulk(16)); }, 1, 1},
    {"bulk_early", "poison seen",
     [](Args a) {
       float* const to = shared_floats();
       to[0] = 3.f;  // stale data of the previous stage
       BulkBarrier* const full = start_bulk(16);
       se_shim::bulk_copy(to, a.x, 16, full);
       __syncthreads();
       const float early = to[0];
       se_shim::bulk_wait(full, 0);
       if (std::isnan(early) && to[0] == a.x[0]) std::fputs("poison seen\n", stderr), std::abort();
     },
     1, 1},
    {"no_dependency_wait", "a thread ends without dependency_wait", next_of_chain<true>, 3, 64, 4, 1, false, false,
     next_of_chain<false>},
    {"one_thread_does_not_wait", "thread 7,0,0: a thread ends without dependency_wait", next_of_chain<true>, 3, 64, 4,
     1, false, false,
     [](Args) {
       if (threadIdx.x != 7) se_shim::dependency_wait();
     }},
    {"barrier_instead_of_dependency_wait", "a thread ends without dependency_wait", next_of_chain<true>, 1, 64, 4, 1,
     false, false, [](Args) { __syncthreads(); }},
    {"no_allow_dependents", "a block ends without allow_dependents", next_of_chain<true, false>, 3, 64, 4, 1, false,
     false, next_of_chain<true>},
    {"reads_too_early", "poison seen", next_of_chain<true>, 1, 64, 4, 1, true, false,
     [](Args a) {
       const float early = a.x[0];
       se_shim::dependency_wait();
       if (early != a.x[0]) std::fputs("poison seen\n", stderr), std::abort();
     }},
    {"unmet_spin_in_a_chain", "deadlock: waiting for ever in a spin-wait", next_of_chain<true>, 1, 64, 4, 1, false,
     false,
     [](Args a) {
       while (threadIdx.x == 0 && a.counts[3] == 100) se_shim::spin();
       se_shim::dependency_wait();
       while (threadIdx.x == 0 && a.counts[3] != 100) se_shim::spin();
     }},
    {"bulk_prefetch_unaligned", "not 16-byte aligned", [](Args a) { se_shim::bulk_prefetch(a.x + 1, 16); }, 1, 1},
    {"bulk_prefetch_outside", "global-buffer-overflow", [](Args a) { se_shim::bulk_prefetch(a.x, 272); }, 1, 1, 0, 1,
     false, true},
    {"push_misaligned", "push misaligned", [](Args) { push_to_first(16, shared_floats() + 1, 1); }, 2, 1, 512, 2},
    {"push_outside", "push misaligned or outside", [](Args) { push_to_first(16, shared_floats() + 128, 1); }, 2, 1, 512,
     2},
    {"push_early", "push before cluster_wait",
     [](Args) {
       BulkBarrier* const full = start_bulk(16);
       se_shim::cluster_arrive();
       se_shim::push(shared_floats(), {1, 2, 3, 4}, 1 - se_shim::cluster_rank(), full);
     },
     2, 1, 512, 2},
    {"push_too_much", "16 bytes more than expected",
     [](Args) { push_to_first(16, shared_floats(), 2), wait_bulk(); }, 2, 1, 512, 2},
    {"push_too_little", "deadlock: waiting for ever in bulk_wait",
     [](Args) { push_to_first(32, shared_floats(), 1), wait_bulk(); }, 2, 1, 512, 2},
    {"push_not_waited", "without a wait for its bulk copy", [](Args) { push_to_first(16, shared_floats(), 1); }, 2, 1,
     512, 2},
    {"push_no_init", "has no bulk barrier there",
     [](Args) {
       BulkBarrier* const full = reinterpret_cast<BulkBarrier*>(se_shim::dynamic_shared() + 256);
       if (se_shim::cluster_rank() == 1) start_bulk(16);
       se_shim::cluster_arrive();
       se_shim::cluster_wait();
       if (se_shim::cluster_rank() == 1) se_shim::push(shared_floats(), {1, 2, 3, 4}, 0, full);
       se_shim::cluster_arrive();
       se_shim::cluster_wait();
     },
     2, 1, 512, 2},
    {"push_exited", "have exited",
     [](Args) {
       if (se_shim::cluster_rank() == 0) return;
       BulkBarrier* const full = start_bulk(16);
       for (int i = 0; i < 3; ++i) __syncthreads();
       se_shim::push(shared_floats(), {1, 2, 3, 4}, 0, full);
     },
     2, 32, 512, 2},
    {"bulk_prefetch_unaligned_size", "not 16-byte aligned", [](Args a) { se_shim::bulk_prefetch(a.x, 20); }, 1, 1},
    {"stack_overflow", "",  // the message is AddressSanitizer's or the shim's
     [](Args) {
       volatile char big[se_shim::kStackBytes - 100];
       for (size_t i = 0; i < sizeof big; ++i) big[i] = 1;
     },
     1, 1},
};

static void run_fault(const Fault& f) {
  alignas(16) static float x[64] = {1, 2, 3, 4}, y[64];
  static int counts[4];
  const Args args{x, y, counts, 0};
  if (!f.second) return void(run(f.kernel, f.grid, f.block, args, f.shared, f.cluster, f.resident));
  se_shim::launch("first", f.kernel, f.grid, f.block, f.shared, f.cluster, f.resident, args, false, true);
  se_shim::launch("second", f.second, f.grid, f.block, f.shared, f.cluster, f.resident, args, true, false);
}
static bool caught(const Fault& f) {
  int ends[2];
  if (pipe(ends)) return false;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    run_fault(f);
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char piece[4096];
  for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) said.append(piece, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool good = status != 0 && said.find(f.message) != std::string::npos;
  if (!good) std::printf("%s: status %d, wanted \"%s\", got:\n%s\n", f.name, status, f.message, said.c_str());
  return good;
}
static int run_faults() {
#ifdef __SANITIZE_ADDRESS__
  constexpr bool asan = true;
#else
  constexpr bool asan = false;
#endif
  int seen = 0;
  for (const bool reverse : {false, true}) {
    se_shim::set_reverse(reverse);
    for (const Fault& f : kFaults)
      if (asan || !f.needs_asan) check_line(caught(f), f.name, __LINE__), ++seen;
  }
  std::printf("%d failures of %d\n", failures, seen);
  return failures != 0;
}

// ---- cost
__global__ static void barriers(const Args a) {
  for (int i = 0; i < a.n; ++i) __syncthreads();
}
__global__ static void shuffles(const Args a) {
  for (int i = 0; i < a.n; ++i) __shfl_xor_sync(~0u, i, 1);
}
static int run_cost() {
  const auto nanoseconds = [](Kernel kernel, int grid, int block, int n) {
    double best = 1e30;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      run(kernel, grid, block, {nullptr, nullptr, nullptr, n});
      const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
      best = std::min(best, spent.count());
    }
    return best;
  };
  for (const int block : {32, 128, 256, 512, 1024}) {
    const int n = 200000 / block;
    std::printf("%4d threads: %5.1f ns per thread and __syncthreads, %5.1f per shuffle, %5.1f per empty thread\n",
                block, nanoseconds(barriers, 1, block, n) / n / block, nanoseconds(shuffles, 1, block, n) / n / block,
                nanoseconds(barriers, 50, block, 0) / 50 / block);
  }
  return 0;
}

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "ok") return run_ok();
  if (what == "faults") return run_faults();
  if (what == "cost") return run_cost();
  for (const Fault& f : kFaults)
    if (what == f.name) return run_fault(f), 0;
  std::printf("usage: selftest ok | faults | cost");
  for (const Fault& f : kFaults) std::printf(" | %s", f.name);
  std::printf("\n");
  return 2;
}
