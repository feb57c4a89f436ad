// What several kernels share: how threads of a block lie over a channels_last map, sums over lanes, and tickets.
#pragma once

#include "vectors.cuh"

namespace se_fused::cuda {

template <int width = kWarp>
SE_DEVICE float sum_lanes(float v) {
#pragma unroll
  for (int offset = width / 2; offset; offset /= 2) v += __shfl_xor_sync(kAll, v, offset);
  return v;
}
// over aligned groups of `width` lanes, a power of two
SE_DEVICE float sum_lanes(float v, int width) {
  for (int offset = width / 2; offset; offset /= 2) v += __shfl_xor_sync(kAll, v, offset);
  return v;
}

// A block over a channels_last map: `lanes` vectors of channels side by side, the rest of its threads along positions.
struct Columns {
  int lane, step;      // this thread's vector in the block and its first position
  int steps;           // positions at a time
  int first, channel;  // of the block's channels; of this thread's
  bool exists;

  SE_DEVICE Columns(int lanes, int block, int channels)
      : lane((int)threadIdx.x % lanes),
        step((int)threadIdx.x / lanes),
        steps((int)blockDim.x / lanes),
        first(block * lanes * 8),
        channel(first + lane * 8),
        exists(channel < channels) {}
};

// Finds the period in which a number near `first` lies, by 32-bit division: a 64-bit one is a hundred instructions.
struct Periods {
  int64_t row;
  uint32_t rest, period;

  SE_DEVICE Periods(int64_t first, int length)
      : row(first / length), rest((uint32_t)(first - row * length)), period((uint32_t)length) {}
  // first + more = row_of * period + rest_of
  SE_DEVICE void find(uint32_t more, int64_t& row_of, int& rest_of) const {
    const uint32_t all = rest + more, periods = all / period;
    row_of = row + periods;
    rest_of = (int)(all - periods * period);
  }
};

// Vectors of rows near vector `first`: in rows_unaligned those of the memory, else ceil(length / 8) of each row.
template <Mode mode>
struct RowVectors {
  Periods periods;
  int64_t first, total;
  int length;

  SE_DEVICE RowVectors(int64_t first, int64_t rows, int length)
      : periods(mode == Mode::rows_unaligned ? 8 * first : first,
                mode == Mode::rows_unaligned ? length : (length + 7) / 8),
        first(first),
        total(rows * length),
        length(length) {}
  // of vector first + i: its row, the position in it, its offset in the map, and where a load must stop
  SE_DEVICE void find(int i, int64_t& row, int& position, int64_t& at, int64_t& end) const {
    if (mode == Mode::rows_unaligned) {
      periods.find(8 * (uint32_t)i, row, position);
      at = 8 * (first + i);
      end = total;
    } else {
      periods.find((uint32_t)i, row, position);
      position *= 8;
      at = row * length + position;
      end = (row + 1) * length;
    }
  }
};

// ---- tickets. `ticket` is one int of shared memory.
// The next tile of this launch, the same for all threads of the block.
SE_DEVICE int take(int* counter, int* ticket) {
  __syncthreads();  // all have read the last one, and finished what it stood for
  if (threadIdx.x == 0) *ticket = fetch_add(counter, 1);
  __syncthreads();
  return *ticket;
}
// Say that a tile's results are written. One release by one thread covers the stores of the whole block, with no fence
// beside it: causality order is transitive (PTX ISA, "Memory Consistency Model", "Causality order"). A thread's store
// comes before its arrival at the barrier in program order, the arrival synchronizes with thread 0's leaving it, and
// that comes before the release. Additions read what they add to, so an acquired count has every tile of it behind it.
SE_DEVICE void done(int* counter) {
  __syncthreads();
  if (threadIdx.x == 0) add_release(counter, 1);
}
// Wait until `count` tiles are done; what they wrote can then be read with load_fresh.
SE_DEVICE void wait(const int* counter, int count) {
  if (threadIdx.x == 0)
    while (load_acquire(counter) < count) spin();
  __syncthreads();
}
// Zero the counters of the next launch.
SE_DEVICE void clear(int* counters) {
  if (counters && blockIdx.x == 0 && threadIdx.x < kCounters) counters[threadIdx.x] = 0;
}

}  // namespace se_fused::cuda
