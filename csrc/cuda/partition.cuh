// Assignment of blocks to a map in a summing pass: partitions of the positions, with one sum per channel each.
#pragma once

#include "launch.cuh"
#include "tiles.cuh"

namespace se_fused::cuda {

// A block's sample, split and block of channels. Consecutive blocks read neighbouring memory. In 32 bits, because a
// 64-bit division takes about a hundred instructions.
struct SumBlock {
  int64_t n;
  int split, channels;

  SE_DEVICE SumBlock(int index, int blocks, int splits) {
    const unsigned rest = (unsigned)index / (unsigned)blocks, sample = rest / (unsigned)splits;
    channels = (int)((unsigned)index - rest * blocks);
    n = sample;
    split = (int)(rest - sample * splits);
  }
};

// Rows modes: the partition of one row that a group of lanes sums. A block has rows of one sample, so that a sum over
// samples has whole blocks to wait for.
struct RowPartition {
  int64_t n = 0, row, rows;  // n: not needed with one split
  int split = 0, begin, stop;
  bool exists = true;

  SE_DEVICE RowPartition(const Map& map, const Cut& cut) : rows(map.n * map.c) {
    const int shift = exponent_of(cut.lanes), width = (int)blockDim.x >> shift, own = (int)threadIdx.x >> shift;
    row = (int64_t)blockIdx.x * width + own;
    if (cut.splits > 1 || (map.c & (width - 1))) {  // else a block's rows follow those of the one before it
      const SumBlock block((int)blockIdx.x, (map.c + width - 1) >> exponent_of(width), cut.splits);
      const int c = block.channels * width + own;
      n = block.n;
      split = block.split;
      exists = c < map.c;
      row = exists ? n * map.c + c : 0;
    }
    begin = split * cut.span;
    stop = exists ? min(begin + cut.span, map.s) : begin;  // an empty range: shuffles need all lanes
  }
  // Index of this partition's sum in (splits, N, C), or with last blocks in (N, splits, C).
  SE_DEVICE int64_t at(const Map& map, const Cut& cut, bool with_last) const {
    return row + (with_last ? n * (cut.splits - 1) + split : split * map.n) * map.c;
  }
};

// Cols modes: the partition of one sample's positions, and the block of channels, that a block sums.
struct ColumnPartition {
  int64_t n;
  int split, begin, stop, columns;

  SE_DEVICE ColumnPartition(const Map& map, const Cut& cut) {
    const SumBlock block((int)blockIdx.x, (map.c + 8 * cut.lanes - 1) >> (3 + exponent_of(cut.lanes)), cut.splits);
    n = block.n;
    split = block.split;
    columns = block.channels;
    begin = split * cut.span;
    stop = min(begin + cut.span, map.s);
  }
  // Index of the block's first sum, as for rows.
  SE_DEVICE int64_t at(const Map& map, const Cut& cut, bool with_last) const {
    return (with_last ? n * cut.splits + split : split * map.n + n) * map.c;
  }
};

inline int64_t blocks_of(const Map& map, const Cut& cut) {
  return map.n * cut.splits * ceil_div(map.c, map.by_rows() ? kThreads / cut.lanes : 8 * cut.lanes);
}
inline size_t shared_of(const Map& map) { return map.by_rows() ? 0 : 16 * kThreads * sizeof(float); }

}  // namespace se_fused::cuda
