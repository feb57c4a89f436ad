// Pass 1 of the forward pass for one tile: mean and m2 = sum (x - mean)^2.
//
// Sums are of differences from the channel's first element in the tile, so that the rounding error scales with the
// spread and not with the magnitude; if that element is not finite, the shift is 0. For m2, a thread computes the mean
// of each chunk of up to 32 elements in registers, then the squares around it. Chunks, lanes, threads and splits are
// joined by Chan's formula in a fixed order. This takes five instructions per element; memory bandwidth leaves time for
// about twelve (2 bytes per element at 4.3 TB/s over 132 multiprocessors). Welford's update would take seven, in one
// dependent chain.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

// Count, sum, and sum of squares around the mean, of differences from a shift that is stored elsewhere.
struct Sums {
  float count, total, squares;

  SE_DEVICE void join(float other_count, float other_total, float other_squares) {
    const float both = count + other_count;
    if (count > 0.f && other_count > 0.f) {
      const float away = other_total / other_count - total / count;
      other_squares += away * away * (count * other_count / both);
    }
    squares += other_squares;
    total += other_total;
    count = both;
  }
};

// mean and m2 over the positions [begin, stop) of a row, by aligned groups of `lanes` threads. Every lane returns the
// result as {mean, m2}.
template <Mode mode, Use use, bool with_m2, class T>
SE_DEVICE ScaleShift row_moments(const T* x, int64_t row, int length, int begin, int stop, int64_t total, int lanes) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  const Window<mode> window(row, length, begin, stop);
  const int lane = (int)threadIdx.x % lanes;
  const float shift = window.vectors ? finite_or_zero(to_float(x[window.first])) : 0.f;
  Sums sums{0.f, 0.f, 0.f};
  for (int i = lane; i < window.vectors; i += kLoads * lanes) {
    Raw<T> raw[kLoads]{};
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int v = i + u * lanes; v < window.vectors)
        raw[u] = load<mode, use>(x, window.origin + 8 * (int64_t)v, window.limit(total));
    const auto each = [&](const auto& use_one) {  // calls it for each loaded element of this row
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int64_t at = window.origin + 8 * (int64_t)(i + u * lanes);
        if (i + u * lanes >= window.vectors) continue;
        float v[8];
        unpack(raw[u], v);
        const bool whole = window.whole(at);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (whole || window.holds(at + j)) use_one(v[j] - shift);
      }
    };
    float count = 0.f, chunk = 0.f, squares = 0.f;
    each([&](float d) { chunk += d, count += 1.f; });
    if (with_m2) {
      const float mean = chunk / count;
      each([&](float d) { squares += (d - mean) * (d - mean); });
      sums.join(count, chunk, squares);
    } else {
      sums.total += chunk;
    }
  }
  for (int offset = lanes / 2; offset; offset /= 2) {
    const float total_there = __shfl_xor_sync(kAll, sums.total, offset);
    if (with_m2) {
      const float count_there = __shfl_xor_sync(kAll, sums.count, offset);
      sums.join(count_there, total_there, __shfl_xor_sync(kAll, sums.squares, offset));
    } else {
      sums.total += total_there;
    }
  }
  const float count = (float)(stop - begin);
  return {shift + sums.total / count, sums.squares};
}

// mean and m2 over the positions [begin, stop) of a sample, for all channels of a block (Columns). Calls
// put(channel, mean, m2) once per channel. shared: 16 * blockDim.x floats, or half of that without m2.
template <Mode mode, Use use, bool with_m2, class T, class Put>
SE_DEVICE void column_moments(const T* x, int channels, int begin, int stop, const Columns& at, float* shared,
                              const Put& put) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  const int64_t stride = channels, row_end = stride;
  float shift[8], total[8], squares[8], count = 0.f;
#pragma unroll
  for (int j = 0; j < 8; ++j) shift[j] = total[j] = squares[j] = 0.f;
  if (at.exists && begin < stop) {
    unpack(load<mode, use>(x + begin * stride, at.channel, row_end), shift);
#pragma unroll
    for (int j = 0; j < 8; ++j) shift[j] = finite_or_zero(shift[j]);
    for (int position = begin + at.step; position < stop; position += kLoads * at.steps) {
      Raw<T> raw[kLoads]{};
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (const int p = position + u * at.steps; p < stop)
          raw[u] = load<mode, use>(x + p * stride, at.channel, row_end);
      float chunk[8], there = 0.f;
#pragma unroll
      for (int j = 0; j < 8; ++j) chunk[j] = 0.f;
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (position + u * at.steps < stop) {
          float v[8];
          unpack(raw[u], v);
          there += 1.f;
#pragma unroll
          for (int j = 0; j < 8; ++j) chunk[j] += v[j] - shift[j];
        }
      if (with_m2) {
        // All eight channels have the same counts, so the factors of Chan's formula are computed once.
        const float each = 1.f / there, before = count > 0.f ? 1.f / count : 0.f;
        const float weight = count * there / (count + there);
        float mean[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          mean[j] = chunk[j] * each;
          const float away = mean[j] - total[j] * before;
          squares[j] += away * away * weight;
        }
#pragma unroll
        for (int u = 0; u < kLoads; ++u)
          if (position + u * at.steps < stop) {
            float v[8];
            unpack(raw[u], v);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              const float d = v[j] - shift[j] - mean[j];
              squares[j] += d * d;
            }
          }
      }
      count += there;
#pragma unroll
      for (int j = 0; j < 8; ++j) total[j] += chunk[j];
    }
  }
  const int width = (int)blockDim.x / at.steps * 8;  // channels of the block
  float* const squares_shared = shared + 8 * blockDim.x;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    shared[at.step * width + at.lane * 8 + j] = total[j];
    if (with_m2) squares_shared[at.step * width + at.lane * 8 + j] = squares[j];
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < width && at.first + i < channels; i += (int)blockDim.x) {
    const float from = begin < stop ? finite_or_zero(to_float(x[begin * stride + at.first + i])) : 0.f;
    Sums sums{0.f, 0.f, 0.f};
    for (int step = 0; step < at.steps; ++step) {
      const float own = shared[step * width + i];
      if (with_m2) {
        const int mine = max(stop - begin - step + at.steps - 1, 0) / at.steps;  // positions of the thread at `step`
        if (mine) sums.join((float)mine, own, squares_shared[step * width + i]);
      } else {
        sums.total += own;
      }
    }
    put(at.first + i, from + sums.total / (float)(stop - begin), sums.squares);
  }
  __syncthreads();  // the caller may reuse shared memory
}

}  // namespace se_fused::cuda
