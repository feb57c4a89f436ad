// Conversion of PyTorch tensors to launch parameters: modes, workspace memory, device and stream, errors.
#pragma once

#include <initializer_list>

#include "../new_tensors.h"
#include "device.h"

#ifndef SE_CUDA_SHIM
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace se_fused::cuda {

inline Type type_of(ScalarType type, const char* name) {
  switch (type) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}
inline Type type_of(const Tensor& t, const char* name) { return type_of(t.scalar_type(), name); }

// Makes x's device the current one for the time of a call, and launches on its current stream. `run` is for a launch
// alone; `first`, any number of `then`, and `last` are for a chain, whose launches overlap at their ends
// (platform.cuh).
class Place {
 public:
#ifdef SE_CUDA_SHIM
  explicit Place(const Tensor&) : device(device_of(0)) {}
#else
  explicit Place(const Tensor& x) : guard_(x.get_device_index()), device(device_of(x.get_device_index())) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
  }
#endif
  template <class... Args>
  void run(const Args&... args) const {
    check(launch(args..., Stream{stream_}));
  }
  template <class... Args>
  void first(const Args&... args) const {
    check(launch(args..., Stream{stream_, false, true}));
  }
  template <class... Args>
  void then(const Args&... args) const {
    check(launch(args..., Stream{stream_, programmatic(), true}));
  }
  template <class... Args>
  void last(const Args&... args) const {
    check(launch(args..., Stream{stream_, programmatic(), false}));
  }
  bool programmatic() const { return device.programmatic && programmatic_launches(); }

 private:
  static void check(Error error) { STD_TORCH_CHECK(!error, "CUDA: ", error); }
#ifndef SE_CUDA_SHIM
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;

 public:
  const Device& device;
};

inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }
inline void* mutable_data(const Tensor& t) { return t.mutable_data_ptr(); }

// The map and its mode. `memory` lists all pointers that are accessed in vectors, since all must be 16-byte aligned.
inline Map map_of(const Tensor& x, const Layout& layout, std::initializer_list<const void*> memory) {
  STD_TORCH_CHECK(layout.c <= INT32_MAX / 2 && layout.s <= INT32_MAX / 2,
                  "x must have fewer than 2^30 channels and fewer than 2^30 positions");
  Map map{layout.n, (int)layout.c, (int)layout.s, Mode::rows, type_of(x, "x")};
  bool aligned = true;
  for (const void* p : memory) aligned &= reinterpret_cast<uintptr_t>(p) % 16 == 0;
  if (layout.channels_last)
    map.mode = aligned && layout.c % 8 == 0 ? Mode::cols : Mode::cols_single;
  else if (!aligned || layout.s < 8)
    map.mode = Mode::rows_single;
  else
    map.mode = layout.s % 8 == 0 ? Mode::rows : Mode::rows_unaligned;
  return map;
}

// A contiguous parameter of `numel` elements in any supported dtype.
inline Vector vector_of(const OptionalTensor& t, int64_t numel, const char* name) {
  if (!t) return {nullptr, Type::float32};
  check_vector(*t, numel, name);
  return {data(*t), type_of(*t, name)};
}

// One allocation, handed out in parts of whole cache lines of 128 bytes, so that aligned sectors of 32 bytes in a part
// are aligned in memory.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t floats) : memory_(new_float(like, {floats})), next_(se_fused::floats(memory_)) {
    end_ = next_ + floats;
  }
  float* take(int64_t count) {
    float* const part = next_;
    next_ += rounded(count);
    STD_TORCH_CHECK(next_ <= end_, "internal error: workspace too small");
    return part;
  }
  static int64_t rounded(int64_t count) { return (count + 31) / 32 * 32; }

 private:
  Tensor memory_;
  float *next_, *end_;
};

}  // namespace se_fused::cuda
