// Pass 2 of the forward pass for one tile: y = out_act(scale x + shift + residual), and the mask.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

SE_DEVICE void apply(Act out_act, float (&t)[8]) {
  by_out_act(out_act, [&](auto act) {
#pragma unroll
    for (int j = 0; j < 8; ++j) t[j] = activate(act, t[j]);
  });
}

// Pointers to a tile's maps, which use the same offsets. x may be in shared memory, and y may be x.
template <class T>
struct Maps {
  const T *x, *residual;
  T* y;
};

// A vector's byte of the mask. Only in the *_single modes, fewer than eight elements may be left in the row.
template <Mode mode>
SE_DEVICE uint8_t mask_byte(const float (&t)[8], int left) {
  const uint32_t bits = positive_bits(t);
  return (uint8_t)(is_single(mode) && left < 8 ? bits & ((1u << left) - 1) : bits);
}

constexpr int kMostLanes = 32;  // of a Cut

// Floats of shared memory for `coefficients_of_lane` with K values per channel.
template <int K>
SE_BOTH constexpr int floats_of_coefficients(int lanes) {
  return K * 8 * lanes;
}

// K values for each of the thread's eight channels. of(channel, k) computes them once per channel, in one thread of the
// block, with neighbouring loads in neighbouring threads; all threads then read theirs from shared memory. If each
// thread loaded its own eight channels, neighbouring threads' loads would be 32 bytes apart, and each value of a block
// of 256 threads loaded (or computed from batch norm's parameters) eight times. A value has two planes of shared
// memory, for the first and the last four channels of each lane, so that the 16-byte reads have no bank conflicts. All
// threads of the block must call this, and there are at least 8 * lanes.
template <int K, class Of>
SE_DEVICE void coefficients_of_lane(const Columns& at, int lanes, int channels, float* shared, float (&to)[K][8],
                                    const Of& of) {
  if (const int i = (int)threadIdx.x; i < 8 * lanes) {
    float k[K] = {};
    if (at.first + i < channels) of(at.first + i, k);
#pragma unroll
    for (int m = 0; m < K; ++m) shared[((2 * m + i % 8 / 4) * lanes + i / 8) * 4 + i % 4] = k[m];
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < K; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = reinterpret_cast<const float4*>(shared)[(2 * m + half) * lanes + at.lane];
      to[m][4 * half] = v.x, to[m][4 * half + 1] = v.y, to[m][4 * half + 2] = v.z, to[m][4 * half + 3] = v.w;
    }
}

// The bytes of the mask that start in the vectors [first, last) of unaligned rows, from the positive_bits of these
// vectors and the one after them in shared memory. Byte b of row r holds the elements from r * length + 8 b on.
SE_DEVICE void mask_bytes(const uint8_t* bits_shared, int64_t first, int64_t last, int64_t total, int length,
                          uint8_t* mask) {
  const int per_row = (length + 7) / 8;
  const auto byte_of = [&](int64_t element) {
    const int64_t r = element / length;
    return r * per_row + (element - r * length + 7) / 8;
  };
  const int64_t origin = 8 * first, from = byte_of(origin);
  const int bytes = (int)(byte_of(min(8 * last, total)) - from);
  const Periods of_bytes(from, per_row);
  const int to_row = (int)(of_bytes.row * length - origin);  // small: the row holds or follows the first vector
  for (int b = (int)threadIdx.x; b < bytes; b += (int)blockDim.x) {
    uint32_t row;
    int position;
    of_bytes.find((uint32_t)b, row, position);
    const int bit = to_row + (int)row * length + 8 * position, left = length - 8 * position;
    uint32_t bits = bits_shared[bit / 8];
    if (bit % 8) bits |= (uint32_t)bits_shared[bit / 8 + 1] << 8;
    bits >>= bit % 8;
    mask[from + b] = (uint8_t)(left < 8 ? bits & ((1u << left) - 1) : bits);
  }
}

// Vectors [first, last) of `rows` rows. by(row) returns a row's scale and shift. In all modes but rows_unaligned a
// vector is one byte of the mask. In rows_unaligned, bits are first written to shared memory, and then the bytes of the
// mask that start in the tile are assembled. The last of them may need the first vector after the tile, which is
// therefore read like the others, but not written: shared memory holds last - first + 1 bytes. Because that vector's x
// must not be overwritten yet, y must not be x if a mask is written.
template <Mode mode, Use use, Use written = Use::last, class T, class By>
SE_DEVICE void scale_shift_act_rows(const Maps<T>& maps, int64_t rows, int length, int64_t first, int64_t last,
                                    Act out_act, uint8_t* mask, uint8_t* bits_shared, const By& by) {
  constexpr int kLoads = loads_of<T>(mode, use == Use::shared ? 1 : 2);  // x in shared memory is no load
  const RowVectors<mode> vectors(first, rows, length);
  const int count = (int)(last - first);
  const int read = count + (mode == Mode::rows_unaligned && mask && 8 * last < vectors.total);
  for (int start = 0; start < read; start += kLoads * (int)blockDim.x) {
    Raw<T> raw[kLoads]{}, raw_residual[kLoads]{};
    int64_t row[kLoads]{};
    int position[kLoads]{};
    ScaleShift own[kLoads], next[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int i = start + u * (int)blockDim.x + (int)threadIdx.x; i < read) {
        vectors.find(i, row[u], position[u]);
        const int64_t at = vectors.offset(i, row[u], position[u]), end = vectors.end(row[u]);
        raw[u] = load<mode, use>(maps.x, at, end);
        if (maps.residual) raw_residual[u] = load<mode, Use::last>(maps.residual, at, end);
      }
    // The coefficients of all vectors are loaded before the first store, which no later load can be moved across.
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (start + u * (int)blockDim.x + (int)threadIdx.x < read) {
        own[u] = by(row[u]);
        if (mode == Mode::rows_unaligned) {
          next[u] = own[u];
          if (length - position[u] < 8 && row[u] + 1 < rows) next[u] = by(row[u] + 1);
        }
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int i = start + u * (int)blockDim.x + (int)threadIdx.x;
      if (i >= read) continue;
      const int left = length - position[u];
      float t[8];
      unpack(raw[u], t);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool mine = mode != Mode::rows_unaligned || j < left;
        t[j] = (mine ? own[u].scale : next[u].scale) * t[j] + (mine ? own[u].shift : next[u].shift);
      }
      if (maps.residual) {
        float r[8];
        unpack(raw_residual[u], r);
#pragma unroll
        for (int j = 0; j < 8; ++j) t[j] += r[j];
      }
      if (mask) {
        if (mode == Mode::rows_unaligned)
          bits_shared[i] = (uint8_t)positive_bits(t);
        else
          mask[first + i] = mask_byte<mode>(t, left);
      }
      if (mode == Mode::rows_unaligned && i >= count) continue;
      apply(out_act, t);
      store<mode, written>(maps.y, vectors.offset(i, row[u], position[u]), vectors.end(row[u]), t);
    }
  }
  if (mode == Mode::rows_unaligned && mask) {
    __syncthreads();
    mask_bytes(bits_shared, first, last, vectors.total, length, mask);
  }
}

// Positions [begin, stop) of a sample for a block's channels. maps and mask point to the sample. by(scale, shift) sets
// the coefficients of the thread's channels; all threads of the block call it, when their first loads are under way.
template <Mode mode, Use use, Use written = Use::last, class T, class By>
SE_DEVICE void scale_shift_act_columns(const Maps<T>& maps, int channels, int begin, int stop, const Columns& at,
                                       Act out_act, uint8_t* mask, const By& by) {
  constexpr int kLoads = loads_of<T>(mode, use == Use::shared ? 1 : 2);  // x in shared memory is no load
  const int width = (channels + 7) / 8;
  Raw<T> raw[kLoads]{}, raw_residual[kLoads]{};
  int position = begin + at.step;
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int s = position + u * at.steps; s < stop) {
        const int64_t row = (int64_t)s * channels;  // of 32-bit factors, which is one instruction
        raw[u] = load<mode, use>(maps.x + row, at.channel, channels);
        if (maps.residual) raw_residual[u] = load<mode, Use::last>(maps.residual + row, at.channel, channels);
      }
  };
  if (at.exists) fetch();
  float scale[8], shift[8];
  by(scale, shift);
  if (!at.exists) return;
  while (position < stop) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int s = position + u * at.steps;
      if (s >= stop) continue;
      float t[8];
      unpack(raw[u], t);
#pragma unroll
      for (int j = 0; j < 8; ++j) t[j] = scale[j] * t[j] + shift[j];
      if (maps.residual) {
        float r[8];
        unpack(raw_residual[u], r);
#pragma unroll
        for (int j = 0; j < 8; ++j) t[j] += r[j];
      }
      if (mask) {
        mask[(int64_t)s * width + at.channel / 8] = mask_byte<mode>(t, channels - at.channel);
      }
      apply(out_act, t);
      store<mode, written>(maps.y + (int64_t)s * channels, at.channel, channels, t);
    }
    position += kLoads * at.steps;
    fetch();
  }
}

// The same with coefficients in registers.
template <Mode mode, Use use, class T>
SE_DEVICE void scale_shift_act_columns(const Maps<T>& maps, int channels, int begin, int stop, const Columns& at,
                                       Act out_act, uint8_t* mask, const float (&scale)[8], const float (&shift)[8]) {
  scale_shift_act_columns<mode, use>(maps, channels, begin, stop, at, out_act, mask, [&](auto& a, auto& b) {
#pragma unroll
    for (int j = 0; j < 8; ++j) a[j] = scale[j], b[j] = shift[j];
  });
}

}  // namespace se_fused::cuda
