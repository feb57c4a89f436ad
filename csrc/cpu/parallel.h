// Helpers shared by the CPU operators: element types, parameters as float32, and loops split between threads.
#pragma once

#include <algorithm>
#include <memory>

#include "../new_tensors.h"
#include "kernels.h"

namespace se_fused::cpu {

// Below this much work per thread, waking another thread costs more than it saves: a fork and join takes about 5 us on
// the reference machine, in which one core processes about this many elements from its caches.
constexpr int64_t kGrainElements = 16384;
constexpr int64_t kGrainFlops = 262144;
constexpr int64_t kBackwardsBytes = 128 << 10;  // small against an L2 cache, large against the cost of starting a block

// torch::stable::parallel_for over [0, count), but small loops are called directly: a call through the library's
// interface takes 1,200 instructions, and an operator has up to seven loops.
template <class F>
void in_parallel(int64_t count, int64_t grain, const F& f) {
  if (count > grain)
    torch::stable::parallel_for(0, count, grain, f);
  else if (count > 0)
    f(0, count);
}

inline int type_index(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return 0;
    case ScalarType::BFloat16: return 1;
    case ScalarType::Half: return 2;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

inline const PassKernels& pass_kernels(const Tensor& x) { return kernels().passes[type_index(x, "x")]; }

inline int64_t item_bytes(const Tensor& x) { return x.scalar_type() == ScalarType::Float ? 4 : 2; }

inline const char* bytes(const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); }
inline const char* bytes(const OptionalTensor& t) { return t ? bytes(*t) : nullptr; }
inline char* mutable_bytes(const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); }

// Scratch memory of one call: one block of uninitialised floats, handed out in parts.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : block_(new float[floats]), next_(block_.get()), end_(next_ + floats) {}
  float* take(int64_t count) {
    float* const part = next_;
    next_ += count;
    STD_TORCH_CHECK(next_ <= end_, "internal error: scratch too small");
    return part;
  }

 private:
  std::unique_ptr<float[]> block_;
  float *next_, *end_;
};

// A parameter vector as float32: the tensor's memory if it is contiguous float32, else a converted copy in scratch.
// Null if absent. It may be a view with a step; its sizes after the first are 1.
inline const float* as_floats(const OptionalTensor& t, int64_t numel, Scratch& scratch, const char* name) {
  if (!t) return nullptr;
  const bool contiguous = t->is_contiguous();
  const int type = type_index(*t, name);
  const auto* const from = static_cast<const char*>(t->const_data_ptr());
  if (contiguous || t->size(0) != numel) check_vector(*t, numel, name);
  if (contiguous && type == 0) return reinterpret_cast<const float*>(from);
  float* const out = scratch.take(numel);
  const auto convert = kernels().to_float[type];
  if (contiguous) {
    convert(from, out, numel);
  } else {
    const int64_t step = t->stride(0) * (type == 0 ? 4 : 2);
    for (int64_t i = 0; i < numel; ++i) convert(from + i * step, out + i, 1);
  }
  return out;
}

// Offsets a kernel's pointers to row `row` (counted over the whole tensor) of sample n. Null pointers stay null.
class RowStart {
 public:
  RowStart(const Layout& layout, int64_t item, int64_t n, int64_t row)
      : bytes_(row * layout.row_len() * item),
        mask_(row * layout.row_mask_bytes()),
        coefficients_(layout.channels_last ? n * layout.c : row) {}
  const void* elements(const void* base) const { return base ? static_cast<const char*>(base) + bytes_ : nullptr; }
  void* elements(void* base) const { return base ? static_cast<char*>(base) + bytes_ : nullptr; }
  template <class Byte>
  Byte* mask(Byte* base) const {
    return base ? base + mask_ : nullptr;
  }
  const float* coefficients(const float* base) const { return base ? base + coefficients_ : nullptr; }

 private:
  int64_t bytes_, mask_, coefficients_;
};

// A copy of a pass's arguments with `rows`, `len` and `past_caches` set; the pointers still point to the whole map.
template <class Args>
Args rows_of(Args args, int64_t rows, const Layout& layout, bool past_caches) {
  args.rows = rows;
  args.len = layout.row_len();
  args.past_caches = past_caches;
  return args;
}

// Calls f(n, first, rows) for runs of rows of one sample n, split between threads; `first` counts over the whole
// tensor.
template <class F>
void for_sample_rows(const Layout& layout, const F& f) {
  const int64_t per_sample = layout.channels_last ? layout.s : layout.c;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, layout.row_len()));
  in_parallel(layout.n * per_sample, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t n = begin / per_sample;
      const int64_t stop = std::min(end, (n + 1) * per_sample);
      f(n, begin, stop - begin);
      begin = stop;
    }
  });
}

// As for_sample_rows, for pass 2: from the end of each thread's range to its beginning, because the rows that pass 1
// read last are still in that core's cache.
template <class F>
void for_sample_rows_backwards(const Layout& layout, int64_t item, const F& f) {
  const int64_t per_sample = layout.channels_last ? layout.s : layout.c;
  const int64_t block = std::max<int64_t>(1, kBackwardsBytes / std::max<int64_t>(1, layout.row_len() * item));
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, layout.row_len()));
  in_parallel(layout.n * per_sample, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t n = (end - 1) / per_sample;
      const int64_t start = std::max({begin, n * per_sample, end - block});
      f(n, start, end - start);
      end = start;
    }
  });
}

}  // namespace se_fused::cpu
