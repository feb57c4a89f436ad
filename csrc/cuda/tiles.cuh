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
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    const float there = __shfl_xor_sync(kAll, v, offset);
    if (offset < width) v += there;
  }
  return v;
}

// log2 of a power of two: the exponent of its float. A division by a number of lanes takes twenty instructions, a shift
// one.
SE_DEVICE int exponent_of(int power_of_two) { return (int)(as_bits((float)power_of_two) >> 23) - 127; }

// Assignment of a block's threads to a channels_last map: `lanes` vectors of channels side by side, and blockDim.x /
// lanes positions.
struct Columns {
  int lanes;
  int lane, step;      // this thread's vector in the block, and its first position
  int steps;           // positions that the block processes at a time
  int first, channel;  // the first channel of the block, and of this thread
  bool exists;

  SE_DEVICE Columns(int lanes, int block, int channels)
      : lanes(lanes),
        lane((int)threadIdx.x & (lanes - 1)),
        step((int)threadIdx.x >> exponent_of(lanes)),
        steps((int)blockDim.x >> exponent_of(lanes)),
        first(block * lanes * 8),
        channel(first + lane * 8),
        exists(channel < channels) {}
};

// n = quotient * d.by + rest. For m = floor((2^32 - 1) / by), floor(n m / 2^32) is the quotient or one less.
SE_DEVICE uint32_t divide(uint32_t n, const Divisor& d, uint32_t& rest) {
  uint32_t quotient = multiply_high(n, d.inverse);
  rest = n - quotient * d.by;
  if (rest >= d.by) ++quotient, rest -= d.by;
  return quotient;
}
// Index of a row's value in (N, C), or in (C) if `channels` is C and not zero.
SE_DEVICE int64_t value_of(int64_t row, const Divisor& channels) {
  uint32_t channel;
  if (!channels.by) return row;
  divide((uint32_t)row, channels, channel);
  return channel;
}

// Divides numbers near `first` by a period: first + more = (row + row_of) * period + rest_of. A 64-bit division takes
// about a hundred instructions and a 32-bit one about twenty, so there are one of each per block's thread; `find` takes
// five.
struct Periods {
  int64_t row;
  uint32_t rest;
  Divisor period;

  SE_DEVICE Periods(int64_t first, int length)
      : row(first / length), rest((uint32_t)(first - row * length)), period(divisor_of(length)) {}
  SE_DEVICE void find(uint32_t more, uint32_t& row_of, int& rest_of) const {
    uint32_t left;
    row_of = divide(rest + more, period, left);
    rest_of = (int)left;
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
  // The row of vector first + i, and its position in the row.
  SE_DEVICE void find(int i, int64_t& row, int& position) const {
    uint32_t more;
    periods.find(mode == Mode::rows_unaligned ? 8 * (uint32_t)i : (uint32_t)i, more, position);
    row = periods.row + more;
    if (mode != Mode::rows_unaligned) position *= 8;
  }
  // Its offset in the map. Only rows_single leaves gaps between vectors.
  SE_DEVICE int64_t offset(int i, int64_t row, int position) const {
    return mode == Mode::rows_single ? row * length + position : 8 * (first + i);
  }
  // The end up to which a load or store of it may reach.
  SE_DEVICE int64_t end(int64_t row) const { return mode == Mode::rows_single ? (row + 1) * length : total; }
};

// Fetches this block's part of the memory into L2, without the bytes outside of whole 16-byte vectors.
SE_DEVICE void prefetch(const Prefetch& ahead) {
  const int64_t offset = blockIdx.x * ahead.part, bytes = min(ahead.part, ahead.bytes - offset);
  if (threadIdx.x || bytes < 16) return;
  const int64_t begin = reinterpret_cast<int64_t>(ahead.begin) + offset, first = (begin + 15) & -16;
  const int64_t count = ((begin + bytes) & -16) - first;
  if (count > 0) bulk_prefetch(reinterpret_cast<const void*>(first), (uint32_t)min(count, (int64_t)1 << 20));
}

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
