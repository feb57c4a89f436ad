// Assignment of blocks to a map in a summing pass: partitions of the positions, with one sum per channel each.
#pragma once

#include "launch.cuh"
#include "tiles.cuh"

namespace se_fused::cuda {

// Rows modes: the partition of one row that a group of lanes sums.
struct RowPartition {
  int64_t row;
  int split, begin, stop;
  bool exists;

  SE_DEVICE RowPartition(const Map& map, const Cut& cut) {
    const int64_t rows = map.n * map.c;
    const int64_t unit = (int64_t)blockIdx.x * (blockDim.x / cut.lanes) + threadIdx.x / cut.lanes;
    exists = unit < rows * cut.splits;
    row = exists ? unit / cut.splits : 0;
    split = exists ? (int)(unit % cut.splits) : 0;
    begin = split * cut.span;
    stop = exists ? min(begin + cut.span, map.s) : begin;  // an empty range: shuffles need all lanes
  }
  // index of this partition's sum in (splits, N, C)
  SE_DEVICE int64_t at(const Map& map) const { return split * map.n * map.c + row; }
};

// Cols modes: the partition of one sample's positions, and the block of channels, that a block sums.
struct ColumnPartition {
  int64_t n;
  int split, begin, stop, columns;

  SE_DEVICE ColumnPartition(const Map& map, const Cut& cut) {
    const int blocks = (int)ceil_div(map.c, 8 * cut.lanes);
    const int64_t rest = blockIdx.x / blocks;
    columns = (int)(blockIdx.x % blocks);  // consecutive blocks read neighbouring memory
    n = rest / cut.splits;
    split = (int)(rest % cut.splits);
    begin = split * cut.span;
    stop = min(begin + cut.span, map.s);
  }
};

inline int64_t blocks_of(const Map& map, const Cut& cut) {
  if (map.by_rows()) return ceil_div(map.n * map.c * cut.splits, kThreads / cut.lanes);
  return map.n * cut.splits * ceil_div(map.c, 8 * cut.lanes);
}
inline size_t shared_of(const Map& map) { return map.by_rows() ? 0 : 16 * kThreads * sizeof(float); }

}  // namespace se_fused::cuda
