// One-time preparation of a kernel on a device before its first launch, safe for concurrent threads.
// Plain C++: tests/support/cuda_once.cpp runs it without CUDA.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace se_fused::cuda {

class OncePerKernel {
 public:
  // Calls `prepare` unless it has already returned zero for this kernel and device. Returns zero if the kernel is
  // prepared, else the error of `prepare`; the next caller then tries again. Once prepared, a call costs two loads.
  template <class Prepare>
  auto operator()(const void* kernel, int device, const Prepare& prepare) -> decltype(prepare()) {
    const uint64_t bit = device >= 0 && device < 64 ? uint64_t{1} << device : 0;  // others are prepared at each call
    if (const Slot* slot = find(kernel); slot && slot->devices.load(std::memory_order_acquire) & bit) return {};
    const std::lock_guard lock(mutex_);
    Slot* const slot = claim(kernel);
    if (slot && slot->devices.load(std::memory_order_relaxed) & bit) return {};
    const auto error = prepare();
    if (slot && error == decltype(prepare()){}) slot->devices.fetch_or(bit, std::memory_order_release);
    return error;
  }

 private:
  struct Slot {
    std::atomic<const void*> kernel{};
    std::atomic<uint64_t> devices{};  // one bit per device
  };
  static constexpr size_t kSlots = 64;  // only the cluster_fused kernel needs preparation; it has nine instances

  static size_t first(const void* kernel) { return reinterpret_cast<uintptr_t>(kernel) / 16 % kSlots; }

  // The kernel's slot, or null if it has none. A claimed slot never changes its kernel.
  const Slot* find(const void* kernel) const {
    for (size_t i = 0, at = first(kernel); i < kSlots; ++i, at = (at + 1) % kSlots) {
      const void* const there = slots_[at].kernel.load(std::memory_order_relaxed);
      if (there == kernel) return &slots_[at];
      if (!there) return nullptr;
    }
    return nullptr;
  }
  // The kernel's slot, claimed if it has none; the caller holds the lock. Null if all slots are taken: this kernel is
  // then prepared at each call.
  Slot* claim(const void* kernel) {
    for (size_t i = 0, at = first(kernel); i < kSlots; ++i, at = (at + 1) % kSlots) {
      const void* const there = slots_[at].kernel.load(std::memory_order_relaxed);
      if (!there) slots_[at].kernel.store(kernel, std::memory_order_relaxed);
      if (!there || there == kernel) return &slots_[at];
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::array<Slot, kSlots> slots_;
};

}  // namespace se_fused::cuda
