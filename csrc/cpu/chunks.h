// Sums over a channels_last map: each chunk of positions sums all channels side by side, and the chunks' sums are
// joined in a fixed order.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

// Rows per chunk. It depends only on the shape, never on the number of threads, so that every machine computes the same
// sums in the same order. 16 chunks keep 16 threads busy. At most 512 rows bound the length of a float32 chain of
// additions; chunks below 64 rows (7x7 maps) are not worth joining.
inline int64_t chunk_rows(const Layout& layout) {
  return std::clamp<int64_t>((layout.n * layout.s + 15) / 16, 64, 512);
}

// Calls work(n, first, rows, out) for every chunk of every sample, then join(n, before, rows, from) for the chunks
// of a sample in order. `work` writes two vectors of C floats to out[0] and out[C]. With one chunk per sample, out is
// null (`work` writes the final result) and `join` is not called.
template <class Work, class Join>
void in_chunks(const Layout& layout, const Work& work, const Join& join) {
  const int64_t size = std::min(layout.s, chunk_rows(layout)), chunks = (layout.s + size - 1) / size;
  const int64_t c = layout.c, samples = layout.n;
  const std::unique_ptr<float[]> partial(chunks > 1 ? new float[samples * chunks * 2 * c] : nullptr);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (size * c));
  in_parallel(samples * chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / chunks, first = task % chunks * size;
      work(n, first, std::min(size, layout.s - first), partial ? partial.get() + task * 2 * c : nullptr);
    }
  });
  if (!partial) return;
  in_parallel(samples, std::max<int64_t>(1, kGrainElements / (chunks * c)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        join(i, chunk * size, std::min(size, layout.s - chunk * size), partial.get() + (i * chunks + chunk) * 2 * c);
  });
}

}  // namespace se_fused::cpu
