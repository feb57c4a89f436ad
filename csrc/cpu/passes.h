// The passes over raw memory, which the operators of a pass and of the whole op share.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

// Results at least this large are written past the caches: an ordinary store first reads the line that it overwrites, a
// quarter of all traffic, and keeps a line that would be pushed out before anybody reads it. A step of sixteen 16-bit
// elements is half a line, whose halves only meet in time where rows are long. In inference the next layer reads y at
// once, and only what the caches could not hold anyway should go past them. Measured in benchmarks/NOTES.md.
constexpr int64_t kPastCaches = 4 << 20, kPastCachesInference = 8 << 20;

// any_rows: the kernel's steps are aligned wherever rows start, else rows must be whole lines.
inline bool past_caches(const void* result, int64_t item, const Layout& layout, int64_t from = kPastCaches,
                        bool any_rows = false) {
  if (item == 2 && layout.channels_last) return false;
  const bool aligned = any_rows || layout.row_len() * item % 64 == 0;
  return aligned && reinterpret_cast<uintptr_t>(result) % 64 == 0 && layout.numel() * item >= from;
}

// mean, m2: (N, C); m2 may be null
void moments(const PassKernels& k, const void* x, int64_t item, const Layout& layout, float* mean, float* m2);

// args.y may be args.x; y goes past the caches from so many bytes on. args.scale and args.shift: (N, C); rows and len
// are filled in here, as are the pointers of each thread's share
void scale_shift_act(const PassKernels& k, ScaleShiftActArgs args, int64_t item, const Layout& layout,
                     int64_t past_caches_from);

// args.mean, scale, shift, p, q: (N, C)
void moments_backward(const PassKernels& k, const MomentsBackwardArgs& args, int64_t item, const Layout& layout);

// args.mean, k1, k2, k3: (N, C)
void scale_shift_act_backward(const PassKernels& k, const ScaleShiftActBackwardArgs& args, int64_t item,
                              const Layout& layout);

}  // namespace se_fused::cpu
