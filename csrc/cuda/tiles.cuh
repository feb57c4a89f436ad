// Helpers shared by several kernels: sums over lanes, assignment of threads to a map, and tickets.
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

// Assignment of a block's threads to a channels_last map: `lanes` vectors of channels side by side, and blockDim.x /
// lanes positions.
struct Columns {
  int lane, step;      // this thread's vector in the block, and its first position
  int steps;           // positions that the block processes at a time
  int first, channel;  // the first channel of the block, and of this thread
  bool exists;

  SE_DEVICE Columns(int lanes, int block, int channels)
      : lane((int)threadIdx.x % lanes),
        step((int)threadIdx.x / lanes),
        steps((int)blockDim.x / lanes),
        first(block * lanes * 8),
        channel(first + lane * 8),
        exists(channel < channels) {}
};

// Divides numbers near `first` by a period, with 32-bit division: a 64-bit division takes about a hundred instructions.
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

// Vectors of a map in rows, near vector `first`. In rows_unaligned they are the aligned vectors of the whole memory, in
// the other modes each row has ceil(length / 8).
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
  // For vector first + i: its row, its position in the row, its offset in the map, and the end up to which it may load.
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

// ---- tickets: the blocks of a launch take the numbers of its tiles in order. Thread 0 asks for a block's next ticket
// while the block works on the current one, so that the round trip to L2 (0.3 to 0.7 us) is hidden. No deadlock
// follows: a tile waits for smaller tickets only, and of all tickets that are not done the smallest is its block's
// current one. `slot` is one int of shared memory.
class Tickets {
 public:
  SE_DEVICE Tickets(int* counter, int* slot) : counter_(counter), slot_(slot) {
    if (threadIdx.x == 0) next_ = fetch_add(counter_, 1);
  }
  // Returns the block's next tile, the same for all threads.
  SE_DEVICE int take() {
    __syncthreads();  // all threads have read the previous ticket and finished its tile
    if (threadIdx.x == 0) *slot_ = next_, next_ = fetch_add(counter_, 1);
    __syncthreads();
    return *slot_;
  }

 private:
  int *counter_, *slot_, next_ = 0;
};
// Signals that a tile's results are written. One release by thread 0 covers the stores of the whole block without a
// separate fence, because causality order is transitive (PTX ISA, "Memory Consistency Model", "Causality order"): a
// thread's store precedes its arrival at the barrier in program order, the arrival synchronizes with thread 0 leaving
// the barrier, and that precedes the release. Each addition reads the previous count, so a thread that acquires a count
// sees the results of all tiles counted in it.
SE_DEVICE void done(int* counter) {
  __syncthreads();
  if (threadIdx.x == 0) add_release(counter, 1);
}
// Waits until `count` tiles are done. Their results can then be read with load_fresh.
SE_DEVICE void wait(const int* counter, int count) {
  if (threadIdx.x == 0)
    while (load_acquire(counter) < count) spin();
  __syncthreads();
}
// Zeroes the counters of the next launch.
SE_DEVICE void clear(int* counters) {
  if (counters && blockIdx.x == 0 && threadIdx.x < kCounters) counters[threadIdx.x] = 0;
}

}  // namespace se_fused::cuda
