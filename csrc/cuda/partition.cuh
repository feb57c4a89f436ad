// Assignment of blocks to a map in a summing pass: partitions of the positions, with one sum per channel each.
#pragma once

#include "launch.cuh"
#include "tiles.cuh"

namespace se_fused::cuda {

// Where the sums of a block's sample and split begin: in (splits, N, C), or with last blocks in (N, splits, C). `width`
// channels per block. The block's number is read again, so that no register keeps it during pass 1's loop.
SE_DEVICE int64_t sums_of(const Map& map, const Cut& cut, int width, bool with_last) {
  const int64_t index = reread_block() / ((map.c + width - 1) / width);
  return (with_last ? index : index % cut.splits * map.n + index / cut.splits) * map.c;
}

// Rows modes: the partition of one row that a group of lanes sums.
struct RowPartition {
  int64_t n, row;
  int channels, c, split, begin, stop;  // channels: the block of channels
  bool exists;

  // A block has rows of one sample, so that a sum over samples has whole blocks to wait for.
  SE_DEVICE RowPartition(const Map& map, const Cut& cut) {
    const int width = (int)blockDim.x / cut.lanes, blocks = (map.c + width - 1) / width;
    const int rest = (int)blockIdx.x / blocks;
    channels = (int)blockIdx.x % blocks;
    n = rest / cut.splits;
    split = rest % cut.splits;
    c = channels * width + (int)threadIdx.x / cut.lanes;
    exists = c < map.c;
    if (!exists) c = 0;
    row = n * map.c + c;
    begin = split * cut.span;
    stop = exists ? min(begin + cut.span, map.s) : begin;  // an empty range: shuffles need all lanes
  }
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
  return map.n * cut.splits * ceil_div(map.c, map.by_rows() ? kThreads / cut.lanes : 8 * cut.lanes);
}
inline size_t shared_of(const Map& map) { return map.by_rows() ? 0 : 16 * kThreads * sizeof(float); }

}  // namespace se_fused::cuda
