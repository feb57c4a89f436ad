// Memory, device, stream and counters of the stand-in.
#include "device.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <callgrind.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace standin {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

const Device kDevice(c10::DeviceType::PrivateUse1, 0);

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* const p = bytes ? take((bytes + 511) / 512 * 512) : nullptr;
    return {p, p, &give_back, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void*, const void*, size_t) const override { SE_COUNT_LAUNCH("memcpy"); }

  std::atomic<int64_t> allocations{0};

 private:
  void* take(size_t bytes) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    std::vector<void*>& free = free_[bytes];
    void* p;
    if (free.empty()) {
      p = reinterpret_cast<void*>(next_);
      next_ += bytes;
    } else {
      p = free.back();
      free.pop_back();
    }
    bytes_of_[p] = bytes;
    return p;
  }
  static void give_back(void* p);

  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  std::unordered_map<void*, size_t> bytes_of_;
  uintptr_t next_ = kFirstAddress;
};

Allocator& memory() {
  static Allocator& it = *new Allocator;  // never destroyed: tensors may live until the process ends
  return it;
}

void Allocator::give_back(void* p) {
  if (!p) return;
  Allocator& it = memory();
  const std::lock_guard lock(it.mutex_);
  const auto found = it.bytes_of_.find(p);
  it.free_[found->second].push_back(p);
  it.bytes_of_.erase(found);
}

// One device with one stream.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream) const override { return Stream(Stream::DEFAULT, kDevice); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const Stream&, DeviceIndex, c10::EventFlag) const override { *event = &*event; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
};
const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::SetAllocator(c10::DeviceType::PrivateUse1, allocator());
  return true;
}();

std::atomic<Kernel*> kernels{nullptr};

// "name count" per kernel since the last call, one line each, most frequent first by name.
std::string launched() {
  std::map<std::string, int64_t> counts;
  for (Kernel* k = kernels; k; k = k->next) counts[k->name] += k->launches.exchange(0);
  std::string text;
  for (const auto& [name, count] : counts)
    if (count) text += name + " " + std::to_string(count) + "\n";
  return text;
}
int64_t allocations() { return memory().allocations.exchange(0); }
int64_t current_device() { return 0; }

// Callgrind counts between these two, in all threads: the backward pass runs in a thread of its own. The
// instrumentation starts with the first call and then stays, because each start translates all code again.
void start_counting() {
  CALLGRIND_START_INSTRUMENTATION;
  CALLGRIND_ZERO_STATS;
}
void stop_counting(std::string name) { CALLGRIND_DUMP_STATS_AT(name.c_str()); }

}  // namespace

c10::Allocator* allocator() { return &memory(); }

Kernel::Kernel(const char* name) : name(name), next(kernels) {
  while (!kernels.compare_exchange_weak(next, this)) {
  }
}

TORCH_LIBRARY(standin, m) {
  m.def("launched() -> str", &launched);
  m.def("allocations() -> int", &allocations);
  m.def("current_device() -> int", &current_device);
  m.def("start_counting() -> ()", &start_counting);
  m.def("stop_counting(str name) -> ()", &stop_counting);
}

}  // namespace standin

// What csrc/cuda asks for the stream of its launches.
extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
