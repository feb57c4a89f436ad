// Pass 2 of the forward pass for one tile: y = out_act(scale x + shift + residual), and the mask.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

SE_DEVICE void apply(Act out_act, float (&t)[8]) {
  by_out_act(out_act, [&](auto act) {
#pragma unroll
    for (int j = 0; j < 8; ++j) t[j] = activate(decltype(act)::value, t[j]);
  });
}

// Pointers to a tile's maps, which use the same offsets. x may be in shared memory, and y may be x.
template <class T>
struct Maps {
  const T *x, *residual;
  T* y;
};

// Vectors [first, last) of `rows` rows. by(row) returns a row's scale and shift. In all modes but rows_unaligned a
// vector is one byte of the mask. In rows_unaligned, bits are first written to shared memory, and then the bytes of the
// mask that start in the tile are assembled. Shared memory holds blockDim.x * loads_of() + 1 bytes: the last one is for
// the first vector after the tile, whose x must not be overwritten yet, so y must not be x if a mask is written.
template <Mode mode, Use use, class T, class By>
SE_DEVICE void scale_shift_act_rows(const Maps<T>& maps, int64_t rows, int length, int64_t first, int64_t last,
                                    Act out_act, uint8_t* mask, uint8_t* bits_shared, const By& by) {
  constexpr int kLoads = loads_of<T>(mode, use == Use::shared ? 1 : 2);  // x in shared memory is no load
  const int per_row = (length + 7) / 8, tile = kLoads * (int)blockDim.x;
  const RowVectors<mode> vectors(first, rows, length);
  const auto finish = [&](float (&t)[8], int64_t row, int position, const Raw<T>& raw_residual) {
    const ScaleShift own = by(row);
    const int left = length - position;
    if (mode == Mode::rows_unaligned && left < 8) {
      const ScaleShift next = by(min(row + 1, rows - 1));
#pragma unroll
      for (int j = 0; j < 8; ++j)
        t[j] = (j < left ? own.scale : next.scale) * t[j] + (j < left ? own.shift : next.shift);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) t[j] = own.scale * t[j] + own.shift;
    }
    if (maps.residual) {
      float r[8];
      unpack(raw_residual, r);
#pragma unroll
      for (int j = 0; j < 8; ++j) t[j] += r[j];
    }
  };
  const int count = (int)(last - first);
  for (int start = 0; start < count; start += tile) {
    Raw<T> raw[kLoads], raw_residual[kLoads];
    int64_t row[kLoads], at[kLoads], end[kLoads];
    int position[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int i = start + u * (int)blockDim.x + (int)threadIdx.x; i < count) {
        vectors.find(i, row[u], position[u], at[u], end[u]);
        raw[u] = load<mode, use>(maps.x, at[u], end[u]);
        if (maps.residual) raw_residual[u] = load<mode, Use::last>(maps.residual, at[u], end[u]);
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int i = start + u * (int)blockDim.x + (int)threadIdx.x;
      if (i >= count) continue;
      float t[8];
      unpack(raw[u], t);
      finish(t, row[u], position[u], raw_residual[u]);
      if (mask) {
        const uint32_t bits = positive_bits(t);
        const int left = length - position[u];
        if (mode == Mode::rows_unaligned)
          bits_shared[i - start] = (uint8_t)bits;
        else
          mask[first + i] = (uint8_t)(left < 8 ? bits & ((1u << left) - 1) : bits);
      }
      apply(out_act, t);
      store<mode>(maps.y, at[u], end[u], t);
    }
    if (mode == Mode::rows_unaligned && mask) {
      const int stop = min(start + tile, count);
      if (threadIdx.x == 0 && 8 * (first + stop) < vectors.total) {
        int64_t r, a, e;
        int p;
        vectors.find(stop, r, p, a, e);
        Raw<T> more{};
        if (maps.residual) more = load<mode, Use::keep>(maps.residual, a, e);
        float t[8];
        unpack(load<mode, use == Use::shared ? use : Use::keep>(maps.x, a, e), t);
        finish(t, r, p, more);
        bits_shared[stop - start] = (uint8_t)positive_bits(t);
      }
      __syncthreads();
      // Bytes of the mask whose first element lies in the tile: byte b of row r holds the elements from
      // r * length + 8 b on.
      const auto byte_of = [&](int64_t element) {
        const int64_t r = element / length;
        return r * per_row + (element - r * length + 7) / 8;
      };
      const int64_t origin = 8 * (first + start), from = byte_of(origin);
      const int bytes = (int)(byte_of(min(8 * (first + stop), vectors.total)) - from);
      const Periods of_bytes(from, per_row);
      for (int b = (int)threadIdx.x; b < bytes; b += (int)blockDim.x) {
        int64_t r;
        int p;
        of_bytes.find((uint32_t)b, r, p);
        const int bit = (int)(r * length + 8 * p - origin), left = length - 8 * p;
        uint32_t bits = bits_shared[bit / 8];
        if (bit % 8) bits |= (uint32_t)bits_shared[bit / 8 + 1] << 8;
        bits >>= bit % 8;
        mask[from + b] = (uint8_t)(left < 8 ? bits & ((1u << left) - 1) : bits);
      }
      __syncthreads();
    }
  }
}

// Positions [begin, stop) of a sample, from the last to the first, for a block's channels. maps and mask point to the
// sample.
template <Mode mode, Use use, class T>
SE_DEVICE void scale_shift_act_columns(const Maps<T>& maps, int channels, int begin, int stop, const Columns& at,
                                       Act out_act, uint8_t* mask, const float (&scale)[8], const float (&shift)[8]) {
  constexpr int kLoads = loads_of<T>(mode, use == Use::shared ? 1 : 2);  // x in shared memory is no load
  if (!at.exists) return;
  const int64_t stride = channels;
  const int width = (channels + 7) / 8, left = channels - at.channel;
  for (int position = begin + at.step; position < stop; position += kLoads * at.steps) {
    Raw<T> raw[kLoads], raw_residual[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int64_t s = position + u * at.steps; s < stop) {
        raw[u] = load<mode, use>(maps.x + s * stride, at.channel, stride);
        if (maps.residual) raw_residual[u] = load<mode, Use::last>(maps.residual + s * stride, at.channel, stride);
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t s = position + u * at.steps;
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
        const uint32_t bits = positive_bits(t);
        mask[s * width + at.channel / 8] = (uint8_t)(left < 8 ? bits & ((1u << left) - 1) : bits);
      }
      apply(out_act, t);
      store<mode>(maps.y + s * stride, at.channel, stride, t);
    }
  }
}

}  // namespace se_fused::cuda
