// Test of csrc/cuda/once.h: each kernel and device is prepared once, from any thread, and again after a failure.
#include "../../csrc/cuda/once.h"

#include <cstdio>
#include <thread>
#include <vector>

using se_fused::cuda::OncePerKernel;

static int failures = 0;
static void check_line(bool good, const char* what, int line) {
  if (!good) std::printf("cuda_once.cpp:%d: %s\n", line, what), ++failures;
}
#define check(condition) check_line(condition, #condition, __LINE__)

constexpr int kKernels = 70, kDevices = 65;  // more than once.h has room for
static char kernels[16 * kKernels];

// Threads call with all kernels and devices at once: no call returns before its pair is prepared.
static void test_threads() {
  static OncePerKernel once;
  static int prepared[kKernels][kDevices];  // not atomic: the lock must suffice, and ThreadSanitizer checks it
  std::atomic<int> early{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 4 * kKernels * 63; ++i) {
        const int kernel = (i + t / 2 * 9) % 60, device = (i / 60 + t / 2) % 63;  // in pairs
        early += once(&kernels[16 * kernel], device, [&] {
                   const int before = prepared[kernel][device];
                   std::this_thread::yield();
                   return prepared[kernel][device] = before + 1, 0;
                 }) != 0;
        early += prepared[kernel][device] != 1;
      }
    });
  for (std::thread& thread : threads) thread.join();
  check(early == 0);
}

// A thread that finds a pair prepared sees what the preparing thread wrote, without other synchronisation.
static void test_later_threads_see_it() {
  OncePerKernel once;
  int prepared = 0;
  std::atomic<bool> over{false};
  std::thread first(
      [&] { once(kernels, 0, [&] { return prepared = 1, 0; }), over.store(true, std::memory_order_relaxed); });
  while (!over.load(std::memory_order_relaxed)) std::this_thread::yield();
  check(once(kernels, 0, [] { return 7; }) == 0 && prepared == 1);
  first.join();
}

static void test_failures_are_tried_again() {
  OncePerKernel once;
  int calls = 0;
  const auto prepare = [&] { return ++calls < 3 ? 7 : 0; };
  check(once(kernels, 0, prepare) == 7);
  check(once(kernels, 0, prepare) == 7);
  check(once(kernels, 0, prepare) == 0);
  check(once(kernels, 0, prepare) == 0 && calls == 3);
  check(once(kernels, 1, prepare) == 0 && calls == 4);       // another device
  check(once(kernels + 16, 0, prepare) == 0 && calls == 5);  // another kernel; below, one that shares its slot
  check(once(kernels + 16 * 64, 0, prepare) == 0 && calls == 6);
  check(once(kernels + 16 * 64, 0, prepare) == 0 && once(kernels, 0, prepare) == 0 && calls == 6);
}

static void test_more_than_there_is_room_for() {
  OncePerKernel once;
  int calls = 0;
  const auto prepare = [&] { return ++calls, 0; };
  for (int round = 0; round < 2; ++round)
    for (int kernel = 0; kernel < kKernels; ++kernel) check(once(&kernels[16 * kernel], 0, prepare) == 0);
  check(calls == 64 + 2 * 6);
  calls = 0;
  for (int round = 0; round < 2; ++round) once(kernels, 64, prepare), once(kernels, -1, prepare);
  check(calls == 4);
}

int main() {
  test_threads();
  test_later_threads_see_it();
  test_failures_are_tried_again();
  test_more_than_there_is_room_for();
  return failures != 0;
}
