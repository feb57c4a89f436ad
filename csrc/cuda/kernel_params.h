// The launches of the CUDA backend and their parameters. Plain C++, so that host code needs no CUDA headers and kernels
// need no torch headers.
//
// A map (N, C, S) consists of rows of contiguous elements: one (n, c) with its S positions in contiguous order, one
// (n, s) with its C channels in channels_last. A "vector" is eight neighbouring elements. The mode tells how vectors
// lie in memory:
//   rows            contiguous, S a multiple of 8: a vector lies within one row
//   rows_unaligned  contiguous, any other S >= 8: vectors are aligned in memory, and one may span two rows
//   rows_single     contiguous, anything else (S < 8, memory not 16-byte aligned): elements are accessed one by one
//   cols            channels_last, C a multiple of 8
//   cols_single     channels_last, anything else: elements are accessed one by one
#pragma once

#include <cstddef>
#include <cstdint>

#include "../enums.h"

#ifdef __CUDACC__
#define SE_BOTH __host__ __device__
#else
#define SE_BOTH
#endif

namespace se_fused::cuda {

SE_BOTH inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A divisor of 32-bit numbers that the host knows, with floor((2^32 - 1) / by): `divide` (tiles.cuh) takes five
// instructions, and a division by any other number about twenty.
struct Divisor {
  uint32_t by, inverse;
};
SE_BOTH inline Divisor divisor_of(int64_t by) { return {(uint32_t)by, 0xffffffffu / (uint32_t)by}; }

enum class Mode : int { rows, rows_unaligned, rows_single, cols, cols_single };
SE_BOTH constexpr bool is_single(Mode mode) { return mode == Mode::rows_single || mode == Mode::cols_single; }
enum class Type : int { float32, bfloat16, float16 };

// A parameter or its gradient in its dtype; data is null if absent.
struct Vector {
  const void* data;
  Type type;
};
struct Result {
  void* data;
  Type type;
};

struct Map {
  int64_t n;
  int c, s;
  Mode mode;
  Type type;
  SE_BOTH bool by_rows() const { return mode <= Mode::rows_single; }
};

// How a summing pass is partitioned. The positions of each sum are divided into `splits` partitions of `span` positions
// (the last one has the rest), whose sums are stored at [split, n, c]. In the rows modes a group of `lanes` threads
// sums one partition of one row. In the cols modes a block covers `lanes` vectors of channels, and processes threads /
// lanes positions at a time.
struct Cut {
  int splits, span;
  int lanes;  // a power of two, at most 32
};

// The kernels that sum over positions (moments.cu, scale_shift_act_mean.cu). moments_backward_from_sum computes the
// activation's derivative from the sum, so it also reads the residual.
enum class Sums : int { moments, moments_backward, moments_backward_from_sum, scale_shift_act_mean };

// Vectors of each tensor that a thread has in flight, so that `tensors` tensors together are 64 bytes. 64 registers
// allow 1024 threads per multiprocessor, which makes 64 KB; 23 KB are needed (benchmarks/NOTES.md).
SE_BOTH constexpr int loads_of(Mode mode, int item_bytes, int tensors) {
  const int loads = 64 / (8 * item_bytes * tensors);
  return is_single(mode) || loads < 1 ? 1 : loads;
}
SE_BOTH constexpr int tensors_of(Sums sums) {
  return sums == Sums::moments || sums == Sums::scale_shift_act_mean ? 1
         : sums == Sums::moments_backward_from_sum                   ? 3
                                                                     : 2;
}

// Resident blocks per multiprocessor: for __launch_bounds__, which limits the registers per thread, and for the waves
// that plan.cpp counts. The most with which nothing spills on any architecture.
SE_BOTH constexpr int resident_blocks(Sums sums, Mode mode) {
  switch (sums) {
    case Sums::moments: return 4;
    case Sums::moments_backward: return 3;
    case Sums::moments_backward_from_sum: return 2;
    default: return is_single(mode) ? 2 : 3;
  }
}

// Batch norm: u = a (x - mean) + bias with a = weight / sqrt(var + eps). Without it mean.data is null, and u = x.
struct Norm {
  Vector mean, var, weight, bias;
  float eps;
};

// (scale, shift) per (n, c): read from scale and shift (N, C), or (C) with per_channel.by, or if these are null,
// computed as d s a and d s b from batch norm, the gate's factor s (N, C) and drop path d.
struct Coefficients {
  const float *scale, *shift;
  const float* factor;
  Norm norm;
  Vector drop;
  Divisor per_channel{};  // C, or zero
};

// How the last blocks of pass 1 merge the sums of all samples (batch_statistics.cuh).
struct LastBlocks {
  int* counters;      // zero before the launch; null if they merge nothing
  float* sums;        // (2, groups, C); not used by a single group
  int width;          // channels of a block, at least 8
  int group, groups;  // samples per group, and groups
  int rest;           // samples of the last group
  // Of a block's number, by the blocks of one sample's split and by those of a group; and of a row, by the channels.
  Divisor blocks, blocks_of_group, channels;
};
SE_BOTH inline int64_t counters_of(const LastBlocks& last, int channels) {
  return ceil_div(channels, last.width) * (last.groups + 1);
}

// Where batch statistics go.
struct BatchStatistics {
  float* stats;       // (2, C) mean and biased variance, or null
  Result moved_mean;  // running statistics to update, or null
  Result moved_var;
  float momentum, unbias;
};

// Zeroes counters of a launch that no other launch of the call precedes.
struct Zero {
  int* counters;
  int64_t count;
};

// mean and, unless it is null, m2 = sum (x - mean)^2, both (splits, N, C). Also zeroes the counters of the excitation's
// launch. With last.counters, which needs m2, the last blocks compute the batch statistics, scale and shift.
struct Moments {
  const void* x;
  float *mean, *m2;
  int* counters;
  Map map;
  Cut cut;
  LastBlocks last{};
  float* sample_mean = nullptr;  // (N, C), or null
  BatchStatistics statistics{};
  Norm norm{};                               // weight, bias and eps
  float *scale = nullptr, *shift = nullptr;  // (C)
};
constexpr int kCounters = 4;

// Resident blocks per multiprocessor of pass 2's kernels, for __launch_bounds__, which limits the registers per thread,
// and for the plan: the most with which nothing spills on any architecture.
SE_BOTH constexpr int blocks_of_scale_shift_act(Mode mode, bool float32) {
  return is_single(mode) ? 2 : mode == Mode::rows_unaligned || (mode == Mode::cols && float32) ? 3 : 4;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kBlocksUnalignedBackward = 3;
#else
constexpr int kBlocksUnalignedBackward = 4;
#endif
SE_BOTH constexpr int blocks_of_scale_shift_act_backward(Mode mode) {
  if (mode == Mode::rows_unaligned) return kBlocksUnalignedBackward;
  return is_single(mode) ? 2 : mode == Mode::cols ? 3 : 4;
}

// Memory that a kernel's first blocks fetch into L2 before they wait for their predecessor, `part` bytes each.
struct Prefetch {
  const void* begin;
  int64_t bytes;
  int64_t part;  // a multiple of 16
};

// y = out_act(scale x + shift + residual); y may be x.
struct ScaleShiftAct {
  const void *x, *residual;
  void* y;
  uint8_t* mask;  // may be null
  Coefficients by;
  Act out_act;
  Map map;
  Cut cut;         // used in the cols modes: positions and lanes of a block
  Prefetch ahead;  // of the residual
};

// dr = dy out_act', p = sum dr, q = sum dr (x - mean); p and q: (splits, N, C). With last.counters, the last blocks
// compute the norm's gradients and the coefficients k1, k2 (unless it is null) and k3 (C) of pass 2.
struct MomentsBackward {
  const void *dy, *x, *residual;
  const uint8_t* mask;  // used if keeps_mask(out_act), without `added`
  const float* mean;    // (N, C), or (C) with last.counters
  Coefficients by;      // used if keeps_input(out_act), or with `added`
  const float* added;   // (N, C), added to dy; may be null. With it there is no residual
  void* dr;             // may be null
  float *p, *q;
  int* counters;
  Act out_act;
  Map map;
  Cut cut;
  LastBlocks last;
  Norm norm;  // mean and var: the saved statistics
  Result dbn_weight, dbn_bias;
  float *k1, *k2, *k3;
};

// dx = k1 dr + k2 (x - mean) + k3. x may be null if k2 = 0. A mask that is not null is applied to dr first. mean and
// the coefficients are (N, C), or with per_channel.by (C).
struct ScaleShiftActBackward {
  const void *dr, *x;
  const uint8_t* mask;
  const float *mean, *k1, *k2, *k3;
  Divisor per_channel;  // C, or zero
  void* dx;
  Map map;
  Cut cut;
};

// y = out_act(scale x + shift), and mean_parts, whose sum over the splits is the mean of y before it is rounded.
struct ScaleShiftActMean {
  const void* x;
  void* y;
  const float *scale, *shift;  // (N, C)
  float* mean_parts;           // (splits, N, C)
  float per_position;          // 1 / S
  Act out_act;
  Map map;
  Cut cut;
};

// The excitation's two layers, FC-act-FC-gate. If fc1_weight is null, there is no excitation.
struct ExcitationLayers {
  const void *fc1_weight, *fc2_weight;  // (R, C), (C, R)
  Type type;                            // of both weights
  Vector fc1_bias, fc2_bias;
  int r;
  bool fc1_whole, fc2_whole;  // rows of the weight are whole 16-byte vectors
  Act act;
  Gate gate;
};

// From the splits' sums to scale and shift.
struct Excitation : BatchStatistics {
  int64_t n;
  int c, s;
  const float *mean_parts, *m2_parts;  // (splits, N, C); with m2_parts null, norm has the statistics
  int splits, span;
  float* mean;  // (N, C); equals mean_parts if there is one split
  Norm norm;    // with m2_parts only weight, bias and eps; mean and var are computed from the batch
  ExcitationLayers fc;
  Vector drop;
  float* z;          // (N, C) squeeze of u; equals mean without batch norm
  float* hidden;     // (N, R) or null
  float* activated;  // (N, R) act(hidden)
  float* factor;     // (N, C) or null
  float *scale, *shift;
  int* counters;  // kCounters, zero before the launch
};

struct ExcitationBackward {
  int64_t n;
  int c, s;
  const float *p_parts, *q_parts;  // (splits, N, C)
  int splits;
  float *p, *q;  // (N, C); equal the parts if there is one split
  const float *mean, *factor, *hidden;
  Norm norm;  // mean and var: the saved statistics
  ExcitationLayers fc;
  Vector drop;
  bool batch_stats;
  float *dq, *dhidden;
  float *k1, *k2, *k3;
  Result dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias;
  int* counters;  // kCounters, zero before the launch
};

// Parameters of the kernels that do all of inference in one launch: cluster_fused.cu and l2_grouped.cu.
struct InferenceParams {
  const void *x, *residual;
  void* y;
  Norm norm;
  ExcitationLayers fc;
  Vector drop;
  Act out_act;
  Map map;
};

// What the blocks of a cluster_fused cluster send each other, in this order.
enum Exchange { kMeans, kParts, kHidden, kCoefficients, kExchanges };

// Shared memory of a block of a cluster (cluster_layout.h): counts of floats, and offsets in bytes, which are multiples
// of 16, because values travel and are read four at a time.
struct ClusterLayout {
  int length;   // channels of the partition's coefficients
  int r;        // squeezed channels, in whole vectors: the pad is zero
  int senders;  // the first blocks of the cluster; the others have no channels
  int hidden;   // of all samples
  int own;      // of `hidden`, summed by one block
  int stored;   // steps of channels_last whose sums go through shared memory; the others stay in registers
  // `sums` and `coefficients` share memory, as do `means` and (partial, active, factor). A block receives active or
  // coefficients only after it has sent all its means. It may receive `parts` earlier, so they have their own.
  int sums, coefficients, means, partial, active, factor, norm, bias, z, parts, barriers, all;
};

// A cluster of `blocks` holds `samples` samples, each in `share` = blocks / samples blocks; a block holds a partition
// of `partition` channels (rows) or positions (cols) of one sample, and computes the gate's values for `channels`
// channels of all the cluster's samples.
struct ClusterFused {
  InferenceParams op;
  int blocks, samples, share, partition, channels;
  int lanes;    // that share a row's sum; in the cols modes as in Cut, up to `threads`
  int threads;  // per block
  ClusterLayout layout;
};
constexpr int kLargestShared = 1 << 20;    // more than a block can have, in bytes
constexpr int kSamplesOfCluster = 4;       // at most: a thread has a sum for each
constexpr int kLargestCluster = 16;        // blocks; not every device can place more than 8
constexpr int kThreadsClusterFused = 256;  // leaves 128 registers per thread with two blocks per multiprocessor

// Samples are processed in groups that stay in L2 between the two passes.
struct L2Grouped {
  InferenceParams op;
  int group;  // samples
  // rows modes: rows per tile, and tiles per sample; cols modes: positions per tile, and partitions of the positions
  int tile, splits;
  int lanes;                                          // that share a row's sum; in the cols modes as in Cut
  float *mean_parts, *z, *activated, *scale, *shift;  // (splits, N, C) in cols; (N, C); (N, R) act(hidden)
  int* counters;
};
// Number of int32 counters of an l2_grouped launch, zero before it: one for tickets, three per group, and in the cols
// modes one per sample and block of channels.
SE_BOTH inline int64_t counters_of(const L2Grouped& g) {
  const Map& map = g.op.map;
  return 1 + 3 * ceil_div(map.n, g.group) + (map.by_rows() ? 0 : map.n * ceil_div(map.c, 8 * g.lanes));
}

// The result of a launch: null, or CUDA's error message.
using Error = const char*;
struct Stream {
  void* handle = nullptr;
  bool programmatic = false;  // the launch may begin while the one before it still runs (platform.cuh)
  bool followed = false;      // another launch of the same chain follows; only the shim needs to know
};

// Whether launches may be programmatic; set by SE_FUSED_PDL. set_programmatic_launches returns the setting before.
bool programmatic_launches();
bool set_programmatic_launches(bool on);

Error launch(const Zero&, Stream);
Error launch(const Moments&, Stream);
Error launch(const ScaleShiftAct&, Stream);
Error launch(const MomentsBackward&, Stream);
Error launch(const ScaleShiftActBackward&, Stream);
Error launch(const ScaleShiftActMean&, Stream);
Error launch(const Excitation&, int blocks, Stream);
Error launch(const ExcitationBackward&, int blocks, Stream);
Error launch(const ClusterFused&, Stream);
Error launch(const L2Grouped&, int blocks, Stream);

// Bytes of shared memory per block of the cluster_fused kernel.
size_t shared_bytes(const ClusterFused&);
// The largest cluster of the cluster_fused kernel, in blocks, that the current device can place if each block has
// `shared_bytes` of shared memory.
int largest_cluster(size_t shared_bytes);

}  // namespace se_fused::cuda
