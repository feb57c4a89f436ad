// A device for measurements of the host: tensors have shapes, strides and addresses, but no memory, and kernels are
// counted instead of run. PyTorch knows it as the device type "standin" (PrivateUse1).
#pragma once

#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdint>

namespace standin {

// Addresses from here on are not canonical on x86-64: no program can map them, and each access is a fault.
constexpr uintptr_t kFirstAddress = uintptr_t{1} << 62;

// A free list for each size in units of 512 bytes, like CUDA's caching allocator; memory is never returned.
c10::Allocator* allocator();

// The launches of one kernel. There is one object per place that launches.
struct Kernel {
  const char* name;
  std::atomic<int64_t> launches{0};
  Kernel* next;
  explicit Kernel(const char* name);  // adds it to the list of all kernels
};

}  // namespace standin

#define SE_COUNT_LAUNCH(name)                                \
  do {                                                       \
    static standin::Kernel kernel(name);                     \
    kernel.launches.fetch_add(1, std::memory_order_relaxed); \
  } while (false)
