// Pass 2 fused with the per-channel mean of its result: one read of x and one write of y.
#include "partition.cuh"
#include "scale_shift_act.cuh"

namespace se_fused::cuda {

// Offsets are relative to the window's first vector, so that they fit in 32 bits. Only the first and the last vector of
// a window can have elements of another row or partition.
template <class T, Mode mode>
SE_DEVICE void moments_of_rows(const ScaleShiftActMean& g) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  const Map& map = g.map;
  const RowPartition part(map, g.cut);
  const Window<mode> window(part.row, map.s, part.begin, part.stop);
  const T* const x = static_cast<const T*>(g.x) + window.origin;
  T* const y = static_cast<T*>(g.y) + window.origin;
  const int64_t rows = map.n * map.c;
  const int limit = (int)min(window.limit(rows * map.s) - window.origin, (int64_t)INT32_MAX);
  const int begin = (int)(window.first - window.origin), stop = begin + part.stop - part.begin;
  const int row_end = begin + map.s - part.begin;
  const int lanes = g.cut.lanes;
  int i = (int)threadIdx.x % lanes;
  Raw<T> raw[kLoads];
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int v = i + u * lanes; v < window.vectors) raw[u] = load<mode, Use::last>(x, 8 * v, limit);
  };
  fetch();
  const ScaleShift own{g.scale[part.row], g.shift[part.row]};
  ScaleShift next = own;
  if (mode == Mode::rows_unaligned && part.row + 1 < rows) next = {g.scale[part.row + 1], g.shift[part.row + 1]};
  float total = 0.f;
  while (i < window.vectors) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int v = i + u * lanes, at = 8 * v;
      if (v >= window.vectors) continue;
      const bool whole = mode == Mode::rows || (at >= begin && at + 8 <= stop);
      float t[8];
      unpack(raw[u], t);
      if (mode != Mode::rows_unaligned || whole) {
#pragma unroll
        for (int j = 0; j < 8; ++j) t[j] = own.scale * t[j] + own.shift;
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          t[j] = (at + j < row_end ? own.scale : next.scale) * t[j] + (at + j < row_end ? own.shift : next.shift);
      }
      apply(g.out_act, t);
      // A vector that two rows or two partitions share is written by the one that holds its first element.
      if (at >= begin) store<mode, Use::keep>(y, at, limit, t);
      if (whole) {
        total += ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (at + j >= begin && at + j < stop) total += t[j];
      }
    }
    i += kLoads * lanes;
    fetch();
  }
  total = sum_lanes(total, lanes);
  if (part.exists && threadIdx.x % lanes == 0) g.mean_parts[part.at(map, g.cut, false)] = total * g.per_position;
}

template <class T, Mode mode>
SE_DEVICE void moments_of_columns(const ScaleShiftActMean& g) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const Map& map = g.map;
  const ColumnPartition part(map, g.cut);
  const int lanes = g.cut.lanes;
  const Columns at(lanes, part.columns, map.c);
  const int64_t base = part.n * map.s * map.c;
  const T* const x = static_cast<const T*>(g.x) + base;
  T* const y = static_cast<T*>(g.y) + base;
  Raw<T> raw[kLoads];
  int position = part.begin + at.step;
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int s = position + u * at.steps; s < part.stop)
        raw[u] = load<mode, Use::last>(x + (int64_t)s * map.c, at.channel, map.c);
  };
  if (at.exists) fetch();
  float k[2][8], total[8] = {};
  coefficients_of_lane<2>(at, lanes, map.c, shared, k, [&](int c, float (&of)[2]) {
    of[0] = g.scale[part.n * map.c + c], of[1] = g.shift[part.n * map.c + c];
  });
  while (at.exists && position < part.stop) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int s = position + u * at.steps;
      if (s >= part.stop) continue;
      float t[8];
      unpack(raw[u], t);
#pragma unroll
      for (int j = 0; j < 8; ++j) t[j] = k[0][j] * t[j] + k[1][j];
      apply(g.out_act, t);
      store<mode, Use::keep>(y + (int64_t)s * map.c, at.channel, map.c, t);
#pragma unroll
      for (int j = 0; j < 8; ++j) total[j] += t[j];
    }
    position += kLoads * at.steps;
    fetch();
  }
  // Per step, two planes of 16-byte vectors without bank conflicts, as in coefficients_of_lane, and behind its values,
  // which other threads may still read.
  const int channels = 8 * lanes;
  float* const totals = shared + floats_of_coefficients<2>(lanes);
  float4* const mine = reinterpret_cast<float4*>(totals + at.step * channels) + at.lane;
  mine[0] = {total[0], total[1], total[2], total[3]};
  mine[lanes] = {total[4], total[5], total[6], total[7]};
  __syncthreads();
  const int i = (int)threadIdx.x, c = at.first + i / 4 % lanes * 8 + i / (4 * lanes) * 4 + i % 4;
  if (i >= channels || c >= map.c) return;
  float sum = 0.f;
  for (int step = 0; step < at.steps; ++step) sum += totals[step * channels + i];
  g.mean_parts[(part.split * map.n + part.n) * map.c + c] = sum * g.per_position;
}

template <class T, Mode mode>
SE_KERNEL(kThreads, resident_blocks(Sums::scale_shift_act_mean, mode))
scale_shift_act_mean_kernel(SE_CONSTANT ScaleShiftActMean g) {
  if constexpr (mode <= Mode::rows_single)
    moments_of_rows<T, mode>(g);
  else
    moments_of_columns<T, mode>(g);
}

static size_t shared_of(const Map& map, int lanes) {  // the coefficients, and a sum per thread and channel
  return map.by_rows() ? 0 : (floats_of_coefficients<2>(lanes) + 8 * kThreads) * sizeof(float);
}

Error launch(const ScaleShiftActMean& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    return start(scale_shift_act_mean_kernel<T, mode.value>,
                 {"scale_shift_act_mean", blocks_of(g.map, g.cut), kThreads, shared_of(g.map, g.cut.lanes)}, stream, g);
  });
}

void list_scale_shift_act_mean(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    by_type_and_mode(map, [&](auto type, auto mode) {
      using T = typename decltype(type)::type;
      constexpr Mode m = mode.value;
      add(to, "scale_shift_act_mean " + name, scale_shift_act_mean_kernel<T, m>, (int)shared_of(map, kMostLanes));
    });
  });
}

}  // namespace se_fused::cuda
