// The launches of the CUDA backend: what each takes. Plain C++, so that neither side needs the other's headers.
//
// A map (N, C, S) is rows of contiguous elements: (n, c) with its S positions in contiguous order, (n, s) with its C
// channels in channels_last. A "vector" is eight neighbours. The mode says how vectors lie:
//   rows            contiguous, S a multiple of 8: vectors never leave a row
//   rows_unaligned  contiguous, any S of 8 and more: vectors are those of the whole memory, and may belong to two rows
//   rows_single     contiguous, anything else (S < 8, memory off 16 bytes): elements one by one
//   cols            channels_last, C a multiple of 8
//   cols_single     channels_last, anything else
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

enum class Mode : int { rows, rows_unaligned, rows_single, cols, cols_single };
SE_BOTH constexpr bool is_single(Mode mode) { return mode == Mode::rows_single || mode == Mode::cols_single; }
enum class Type : int { float32, bfloat16, float16 };

// A parameter in whatever dtype it has; data is null where there is none.
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

// How a pass that sums is cut: each sum's positions into `splits` partitions of `span` (the last one has the rest),
// whose sums lie at [split, n, c]. In rows a group of lanes has one partition of one row; in cols a block has `lanes`
// vectors of channels and as many positions at a time as are left of its threads.
struct Cut {
  int splits, span;
  int lanes;  // a power of two, at most 32
};

// u = a (x - mean) + beta with a = weight / sqrt(var + eps); mean.data null: u = x.
struct Norm {
  Vector mean, var, weight, bias;
  float eps;
};

// (scale, shift) of (n, c): given (N, C), or d s a and d s b made of batch norm, the gate's factor and drop path.
struct Coefficients {
  const float *scale, *shift;
  const float* factor;
  Norm norm;
  Vector drop;
};

// mean and, unless null, m2 = sum (x - mean)^2; zeroes the counters of the excitation's launch.
struct Moments {
  const void* x;
  float *mean, *m2;
  int* counters;
  Map map;
  Cut cut;
};
constexpr int kCounters = 4;

// y = out_act(scale x + shift + residual); y may be x.
struct ScaleShiftAct {
  const void *x, *residual;
  void* y;
  uint8_t* mask;  // may be null
  Coefficients by;
  OutAct out_act;
  Map map;
  Cut cut;  // cols: positions and lanes of a block
};

// dr = dy out_act', p = sum dr, q = sum dr (x - mean).
struct MomentsBackward {
  const void *dy, *x, *residual;
  const uint8_t* mask;  // relu without `added`
  const float* mean;
  Coefficients by;     // recomputed(out_act), or `added`
  const float* added;  // (N, C), to dy; may be null, and with it there is no residual
  void* dr;            // may be null
  float *p, *q;
  int* counters;
  OutAct out_act;
  Map map;
  Cut cut;
};

// dx = k1 dr + k2 (x - mean) + k3; x may be null (k2 = 0); a mask is applied to dr.
struct ScaleShiftActBackward {
  const void *dr, *x;
  const uint8_t* mask;
  const float *mean, *k1, *k2, *k3;
  void* dx;
  Map map;
  Cut cut;
};

// y = out_act(scale x + shift) and parts of the mean of what is rounded to y, whose sum over the splits is the mean.
struct ScaleShiftActMean {
  const void* x;
  void* y;
  const float *scale, *shift;  // (N, C)
  float* mean_parts;           // (splits, N, C)
  OutAct out_act;
  Map map;
  Cut cut;
};

// The excitation's two layers, FC-act-FC-gate. Without fc1_weight: none.
struct ExcitationLayers {
  const void *fc1_weight, *fc2_weight;  // (R, C), (C, R)
  Type type;                            // theirs
  Vector fc1_bias, fc2_bias;
  int r;
  bool fc1_whole, fc2_whole;  // rows of the weight are whole 16-byte vectors
  Act act;
  Gate gate;
};

// From the splits' sums to scale and shift.
struct Excitation {
  int64_t n;
  int c, s;
  const float *mean_parts, *m2_parts;  // (splits, N, C); m2_parts null: statistics are given
  int splits, span;
  float* mean;        // (N, C); mean_parts itself where there is one split
  float* stats;       // (2, C) mean and biased variance, or null
  Result moved_mean;  // running statistics to move, or null
  Result moved_var;
  float momentum, unbias;
  Norm norm;  // with m2_parts: weight, bias and eps; mean and var are found here
  ExcitationLayers fc;
  Vector drop;
  float* z;       // (N, C) squeeze of u; mean itself without batch norm
  float* hidden;  // (N, R)
  float* factor;  // (N, C) or null
  float *scale, *shift;
  int* counters;  // zero
};

struct ExcitationBackward {
  int64_t n;
  int c, s;
  const float *p_parts, *q_parts;  // (splits, N, C)
  int splits;
  float *p, *q;  // (N, C); the parts themselves where there is one split
  const float *mean, *factor, *hidden;
  Norm norm;  // mean and var: the saved statistics
  ExcitationLayers fc;
  Vector drop;
  bool batch_stats;
  float *dq, *dhidden;
  float *k1, *k2, *k3;
  Result dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias;
  int* counters;  // zero
};

// Inference, everything in one launch: cluster_fused.cu and l2_grouped.cu.
struct InferenceParams {
  const void *x, *residual;
  void* y;
  Norm norm;
  ExcitationLayers fc;
  Vector drop;
  OutAct out_act;
  Map map;
};

// A cluster of `blocks` holds `samples` samples, each in `share` = blocks / samples blocks; a block holds a partition
// of `partition` channels (rows) or positions (cols) of one sample, and computes the gate's values for `channels`
// channels of all the cluster's samples.
struct ClusterFused {
  InferenceParams op;
  int blocks, samples, share, partition, channels;
  int lanes;    // of a row's sum; in cols as in Cut
  int threads;  // of a block
};
constexpr int kSamplesOfCluster = 8;       // at most
constexpr int kLargestCluster = 16;        // blocks; more than 8 are not every device's to place
constexpr int kThreadsClusterFused = 384;  // two blocks of a multiprocessor have 80 registers a thread then

// Samples in groups that stay in L2; pass 1 of a group goes before pass 2 of the one before.
struct L2Grouped {
  InferenceParams op;
  int group;  // samples
  // rows: rows of a tile, and tiles of a sample; cols: positions of a tile, and partitions of a sample's positions
  int tile, splits;
  int lanes;                                       // of a row's sum; in cols as in Cut
  float *mean_parts, *z, *hidden, *scale, *shift;  // (splits, N, C) in cols; (N, C); (N, R)
  int* counters;
};
// int32 that an l2_grouped launch finds zero: tickets, three per group, and in cols one per sample and block of
// channels
SE_BOTH inline int64_t counters_of(const L2Grouped& g) {
  const Map& map = g.op.map;
  return 1 + 3 * ceil_div(map.n, g.group) + (map.by_rows() ? 0 : map.n * ceil_div(map.c, 8 * g.lanes));
}

// What a launch reports: null, or what CUDA says went wrong.
using Error = const char*;
using Stream = void*;

Error launch(const Moments&, Stream);
Error launch(const ScaleShiftAct&, Stream);
Error launch(const MomentsBackward&, Stream);
Error launch(const ScaleShiftActBackward&, Stream);
Error launch(const ScaleShiftActMean&, Stream);
Error launch(const Excitation&, int blocks, Stream);
Error launch(const ExcitationBackward&, int blocks, Stream);
Error launch(const ClusterFused&, Stream);
Error launch(const L2Grouped&, int blocks, Stream);

// Shared memory of a block of the cluster_fused kernel.
size_t shared_bytes(const ClusterFused&);
// Of its clusters' sizes the largest that the current device can place, if each block has so much shared memory.
int largest_cluster(size_t shared_bytes);

}  // namespace se_fused::cuda
