// Assignment of blocks to a map in a summing pass: partitions of the positions, with one sum per channel each.
#pragma once

#include "launch.cuh"
#include "tiles.cuh"

namespace se_fused::cuda {

// Rows modes: the partition of one row that a group of lanes sums. The blocks of a split are consecutive, so that one
// division by their number, which only more than one split needs, replaces 64-bit divisions by the number of splits.
struct RowPartition {
  int64_t row, rows;
  int split, begin, stop;
  bool exists;

  SE_DEVICE RowPartition(const Map& map, const Cut& cut) : rows(map.n * map.c) {
    const int shift = exponent_of(cut.lanes), groups = (int)blockDim.x >> shift;
    const unsigned blocks = cut.splits == 1 ? gridDim.x : (unsigned)((rows + groups - 1) >> exponent_of(groups));
    split = cut.splits == 1 ? 0 : (int)(blockIdx.x / blocks);
    row = (int64_t)(blockIdx.x - split * blocks) * groups + ((int)threadIdx.x >> shift);
    exists = row < rows;
    if (!exists) row = 0;
    begin = split * cut.span;
    stop = exists ? min(begin + cut.span, map.s) : begin;  // an empty range: shuffles need all lanes
  }
  // index of this partition's sum in (splits, N, C)
  SE_DEVICE int64_t at() const { return split * rows + row; }
  SE_DEVICE int64_t at(const Map&) const { return at(); }
};

// Cols modes: the partition of one sample's positions, and the block of channels, that a block sums.
struct ColumnPartition {
  int64_t n;
  int split, begin, stop, columns;

  SE_DEVICE ColumnPartition(const Map& map, const Cut& cut) {
    // in 32 bits, because a 64-bit division takes about a hundred instructions
    const unsigned blocks = (unsigned)(map.c + 8 * cut.lanes - 1) >> (3 + exponent_of(cut.lanes));
    const unsigned rest = blockIdx.x / blocks, sample = rest / (unsigned)cut.splits;
    columns = (int)(blockIdx.x - rest * blocks);  // consecutive blocks read neighbouring memory
    n = sample;
    split = (int)(rest - sample * cut.splits);
    begin = split * cut.span;
    stop = min(begin + cut.span, map.s);
  }
};

inline int64_t blocks_of(const Map& map, const Cut& cut) {
  if (map.by_rows()) return cut.splits * ceil_div(map.n * map.c, kThreads / cut.lanes);
  return map.n * cut.splits * ceil_div(map.c, 8 * cut.lanes);
}
inline size_t shared_of(const Map& map) { return map.by_rows() ? 0 : 16 * kThreads * sizeof(float); }

}  // namespace se_fused::cuda
