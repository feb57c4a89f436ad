// The products of weights and vectors in a block of the cluster_fused kernel.
//
// A thread multiplies four rows of the weight with up to four samples. The lanes of a group lie along the rows. A
// vector of a row is 16 or 32 bytes, loaded once for all samples; four floats of a sample are one 128-bit access to
// shared memory, used for four rows. 32 registers (Held) take a thread's first vectors, so that they can be loaded
// before the wait for the samples' values.
#pragma once

#include "tiles.cuh"

#ifdef SE_HAS_CLUSTERS
namespace se_fused::cuda {

constexpr int kRowsOfThread = 4;

// Where element i of a sample lies in shared memory: the first four floats of all its vectors, then the last four.
// Neighbouring lanes then read neighbouring 16 bytes, and the eight lanes that are served together read all 32 banks
// once; in natural order they would read 16 of the 32 banks twice.
SE_DEVICE int halved(int i, int length) { return (i & 4 ? length / 2 : 0) + i / 8 * 4 + i % 4; }

// Rows [0, rows) of a weight and their elements [0, length), as the threads of a block share them.
struct Slice {
  const void* weights;  // of the first element
  Type type;
  int stride, rows, length;
  bool whole;  // rows are whole 16-byte vectors
  int vectors, lanes, lane, group, groups;

  // As few lanes as give every thread work: the lanes' sums take shuffles.
  SE_DEVICE Slice(const void* matrix, Type type, int64_t first, int stride, int rows, int length, bool whole)
      : weights(static_cast<const unsigned char*>(matrix) + first * (type == Type::float32 ? 4 : 2)),
        type(type),
        stride(stride),
        rows(rows),
        length(length),
        whole(whole),
        vectors((length + 7) / 8),
        lanes(1) {
    while (lanes < kWarp && lanes < vectors && (int)blockDim.x / (2 * lanes) * kRowsOfThread >= rows) lanes *= 2;
    lane = (int)threadIdx.x % lanes;
    group = (int)threadIdx.x / lanes;
    groups = (int)blockDim.x / lanes;
  }
};

// Four rows' next vectors, side by side along the lanes: two vectors of a row in 16 bits, one in float32.
struct Held {
  Raw<BFloat16> q[2 * kRowsOfThread];  // 16 bytes each, of any type
};
template <class W>
constexpr int kVectorsHeld = 4 / (int)sizeof(W);

template <bool whole, class W>
SE_DEVICE void hold(const Slice& s, int first_row, int vector, Held& held) {
  constexpr int kQuads = (int)sizeof(W) / 2;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    // Past the end the last row is loaded again, and its results are dropped.
    const W* const row = static_cast<const W*>(s.weights) + (int64_t)min(first_row + i, s.rows - 1) * s.stride;
#pragma unroll
    for (int d = 0; d < kVectorsHeld<W>; ++d)
      if (const int v = vector + d * s.lanes; v < s.vectors) {
        const Raw<W> raw = whole ? load_raw<Use::keep>(row + 8 * v) : load_single(row, 8 * v, s.length);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) held.q[2 * i + d * kQuads + q].q[0] = raw.q[q];
      }
  }
}
template <class W>
SE_DEVICE void hold(const Slice& s, int first_row, int vector, Held& held) {
  // One branch around all loads, so that they are in flight together.
  if (s.whole)
    hold<true, W>(s, first_row, vector, held);
  else
    hold<false, W>(s, first_row, vector, held);
}
// Starts to bring the slice to L2, where it is if another cluster has read it.
SE_DEVICE void prefetch(const Slice& s) {
  if (!s.whole || !s.rows) return;
  const bool together = s.stride == s.length;  // the rows follow each other
  const int item = s.type == Type::float32 ? 4 : 2, bytes = s.length * item;
  for (int i = (int)threadIdx.x; i < (together ? 1 : s.rows); i += (int)blockDim.x)
    bulk_prefetch(static_cast<const unsigned char*>(s.weights) + (int64_t)i * s.stride * item,
                  together ? s.rows * bytes : bytes);
}
// The first vectors of every thread.
SE_DEVICE void hold_first(const Slice& s, Held& held) {
  if (s.group * kRowsOfThread >= s.rows) return;
  if (s.type == Type::float32) return hold<float>(s, s.group * kRowsOfThread, s.lane, held);
  hold<BFloat16>(s, s.group * kRowsOfThread, s.lane, held);  // both 16-bit types are copied alike
}

// Half a vector as floats.
SE_DEVICE void unpack_half(const Held& held, int i, int d, int half, const float*, float (&w)[4]) {
  const uint4 q = held.q[2 * i + half].q[0];
  w[0] = as_float(q.x), w[1] = as_float(q.y), w[2] = as_float(q.z), w[3] = as_float(q.w);
  (void)d;
}
SE_DEVICE void unpack_half(const Held& held, int i, int d, int half, const BFloat16*, float (&w)[4]) {
  const uint4 q = held.q[2 * i + d].q[0];
  const uint32_t a = half ? q.z : q.x, b = half ? q.w : q.y;
  w[0] = as_float(a << 16), w[1] = as_float(a & 0xffff0000u), w[2] = as_float(b << 16),
  w[3] = as_float(b & 0xffff0000u);
}
SE_DEVICE void unpack_half(const Held& held, int i, int d, int half, const Half*, float (&w)[4]) {
  const uint4 q = held.q[2 * i + d].q[0];
  const uint32_t a = half ? q.z : q.x, b = half ? q.w : q.y;
  w[0] = half_to_float((uint16_t)a), w[1] = half_to_float((uint16_t)(a >> 16));
  w[2] = half_to_float((uint16_t)b), w[3] = half_to_float((uint16_t)(b >> 16));
}

// Calls put(row, sample, sum over i < length of weights[row, i] x[sample, i]). x is in shared memory, in the order of
// `halved`, `pitch` floats per sample: whole vectors, whose elements past the length are finite. `held` is what
// hold_first has loaded.
template <class W, class Put>
SE_DEVICE void products_of(const Slice& s, Held& held, const float* x, int pitch, int samples, const Put& put) {
  for (int start = 0; start < s.rows; start += kRowsOfThread * s.groups) {
    const int first_row = start + kRowsOfThread * s.group;
    float total[kRowsOfThread][kSamplesOfCluster] = {};
    for (int vector = first_row < s.rows ? s.lane : s.vectors; vector < s.vectors;
         vector += kVectorsHeld<W> * s.lanes) {
      if (start || vector != s.lane) hold<W>(s, first_row, vector, held);
#pragma unroll
      for (int d = 0; d < kVectorsHeld<W>; ++d) {
        const int v = vector + d * s.lanes;
        if (v >= s.vectors) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float w[kRowsOfThread][4];
#pragma unroll
          for (int i = 0; i < kRowsOfThread; ++i) unpack_half(held, i, d, half, static_cast<const W*>(nullptr), w[i]);
          const float* const from = x + half * (pitch / 2) + 4 * v;
#pragma unroll
          for (int p = 0; p < kSamplesOfCluster; ++p)
            if (p < samples) {
              const float4 a = load_floats(from + p * pitch);
#pragma unroll
              for (int i = 0; i < kRowsOfThread; ++i) {  // one at a time: four FMAs, without a separate sum
                total[i][p] += w[i][0] * a.x;
                total[i][p] += w[i][1] * a.y;
                total[i][p] += w[i][2] * a.z;
                total[i][p] += w[i][3] * a.w;
              }
            }
        }
      }
    }
    for (int offset = s.lanes / 2; offset; offset /= 2)
#pragma unroll
      for (int p = 0; p < kSamplesOfCluster; ++p)
        if (p < samples) {
#pragma unroll
          for (int i = 0; i < kRowsOfThread; ++i) total[i][p] += __shfl_xor_sync(kAll, total[i][p], offset);
        }
#pragma unroll
    for (int p = 0; p < kSamplesOfCluster; ++p)
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i)
        if (s.lane == 0 && p < samples && first_row + i < s.rows) put(first_row + i, p, total[i][p]);
  }
}
template <class Put>
SE_DEVICE void products(const Slice& s, Held& held, const float* x, int pitch, int samples, const Put& put) {
  by_weight(s.type,
            [&](auto* tag) { products_of<std::remove_pointer_t<decltype(tag)>>(s, held, x, pitch, samples, put); });
}

}  // namespace se_fused::cuda
#endif
