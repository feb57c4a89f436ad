// The passes over raw memory, shared by the operators for one pass and for the whole block.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

// Results of at least this many bytes are written with non-temporal stores, past the caches. An ordinary store first
// reads the line that it overwrites, a quarter of all traffic, and occupies a cache line that is evicted before it is
// read. A step of sixteen 16-bit elements is half a line, and its two halves combine in time only if rows are long. In
// inference the next layer reads y at once, so the threshold is higher: only results that the caches could not hold
// anyway bypass them. Measured in benchmarks/NOTES.md.
constexpr int64_t kPastCaches = 4 << 20, kPastCachesInference = 8 << 20;

// Whether to write `result` past the caches. any_rows: the kernel aligns its steps wherever rows start; if false, rows
// must be whole cache lines.
inline bool past_caches(const void* result, int64_t item, const Layout& layout, int64_t from = kPastCaches,
                        bool any_rows = false) {
  if (item == 2 && layout.channels_last) return false;
  const bool aligned = any_rows || layout.row_len() * item % 64 == 0;
  return aligned && reinterpret_cast<uintptr_t>(result) % 64 == 0 && layout.numel() * item >= from;
}

// mean, m2: (N, C); m2 may be null
void moments(const PassKernels& k, const void* x, int64_t item, const Layout& layout, float* mean, float* m2);

// args.scale and args.shift: (N, C); args.y may be args.x. y is written past the caches from past_caches_from bytes on.
// rows, len and the pointers of each thread's share are set here.
void scale_shift_act(const PassKernels& k, ScaleShiftActArgs args, int64_t item, const Layout& layout,
                     int64_t past_caches_from);

// The same with the mean of the result: args.total (N, C) holds the means on return.
void scale_shift_act_mean(const PassKernels& k, const ScaleShiftActMeanArgs& args, int64_t item, const Layout& layout);

// args.mean, scale, shift, p, q: (N, C)
void moments_backward(const PassKernels& k, const MomentsBackwardArgs& args, int64_t item, const Layout& layout);

// args.mean, k1, k2, k3: (N, C)
void scale_shift_act_backward(const PassKernels& k, const ScaleShiftActBackwardArgs& args, int64_t item,
                              const Layout& layout);

}  // namespace se_fused::cpu
