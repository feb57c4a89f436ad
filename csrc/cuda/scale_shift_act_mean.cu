// Pass 2 fused with the per-channel mean of its result: one read of x and one write of y.
#include "partition.cuh"
#include "scale_shift_act.cuh"

namespace se_fused::cuda {

template <class T, Mode mode>
SE_DEVICE void moments_of_rows(const ScaleShiftActMean& g) {
  constexpr int kLoads = loads_of<T>(mode, 2);
  const Map& map = g.map;
  const T* const x = static_cast<const T*>(g.x);
  T* const y = static_cast<T*>(g.y);
  const RowPartition part(map, g.cut);
  const Window<mode> window(part.row, map.s, part.begin, part.stop);
  const int64_t rows = map.n * map.c, limit = window.limit(rows * map.s), row_end = (part.row + 1) * map.s;
  const int lanes = g.cut.lanes, lane = (int)threadIdx.x % lanes;
  const int64_t after = min(part.row + 1, rows - 1);
  const ScaleShift own{g.scale[part.row], g.shift[part.row]}, next{g.scale[after], g.shift[after]};
  float total = 0.f;
  for (int i = lane; i < window.vectors; i += kLoads * lanes) {
    Raw<T> raw[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int v = i + u * lanes; v < window.vectors)
        raw[u] = load<mode, Use::last>(x, window.origin + 8 * (int64_t)v, limit);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t at = window.origin + 8 * (int64_t)(i + u * lanes);
      if (i + u * lanes >= window.vectors) continue;
      float t[8];
      unpack(raw[u], t);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool mine = mode != Mode::rows_unaligned || at + j < row_end;
        t[j] = (mine ? own.scale : next.scale) * t[j] + (mine ? own.shift : next.shift);
      }
      apply(g.out_act, t);
      // A vector that two rows or two partitions share is written by the one that holds its first element.
      if (window.holds(at)) store<mode>(y, at, limit, t);
      const bool whole = window.whole(at);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (whole || window.holds(at + j)) total += t[j];
    }
  }
  total = sum_lanes(total, lanes);
  if (part.exists && lane == 0) g.mean_parts[part.split * map.n * map.c + part.row] = total / (float)map.s;
}

template <class T, Mode mode>
SE_DEVICE void moments_of_columns(const ScaleShiftActMean& g) {
  constexpr int kLoads = loads_of<T>(mode, 2);
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const Map& map = g.map;
  const ColumnPartition part(map, g.cut);
  const Columns at(g.cut.lanes, part.columns, map.c);
  const int64_t base = part.n * map.s * map.c, stride = map.c;
  const T* const x = static_cast<const T*>(g.x) + base;
  T* const y = static_cast<T*>(g.y) + base;
  float scale[8], shift[8], total[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    scale[j] = shift[j] = total[j] = 0.f;
    if (const int c = at.channel + j; c < map.c) {
      scale[j] = g.scale[part.n * map.c + c];
      shift[j] = g.shift[part.n * map.c + c];
    }
  }
  if (at.exists)
    for (int position = part.begin + at.step; position < part.stop; position += kLoads * at.steps) {
      Raw<T> raw[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (const int64_t s = position + u * at.steps; s < part.stop)
          raw[u] = load<mode, Use::last>(x + s * stride, at.channel, stride);
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int64_t s = position + u * at.steps;
        if (s >= part.stop) continue;
        float t[8];
        unpack(raw[u], t);
#pragma unroll
        for (int j = 0; j < 8; ++j) t[j] = scale[j] * t[j] + shift[j];
        apply(g.out_act, t);
        store<mode>(y + s * stride, at.channel, stride, t);
#pragma unroll
        for (int j = 0; j < 8; ++j) total[j] += t[j];
      }
    }
  const int channels = 8 * g.cut.lanes;
#pragma unroll
  for (int j = 0; j < 8; ++j) shared[at.step * channels + at.lane * 8 + j] = total[j];
  __syncthreads();
  const int64_t out = (part.split * map.n + part.n) * map.c;
  for (int i = (int)threadIdx.x; i < channels && at.first + i < map.c; i += (int)blockDim.x) {
    float sum = 0.f;
    for (int step = 0; step < at.steps; ++step) sum += shared[step * channels + i];
    g.mean_parts[out + at.first + i] = sum / (float)map.s;
  }
}

// Resident blocks per multiprocessor for __launch_bounds__, which limits the registers per thread: the most with which
// nothing spills on any architecture.
SE_BOTH constexpr int blocks_of_scale_shift_act_mean(Mode mode) { return is_single(mode) ? 2 : 3; }

template <class T, Mode mode>
SE_KERNEL(kThreads, blocks_of_scale_shift_act_mean(mode))
scale_shift_act_mean_kernel(SE_CONSTANT ScaleShiftActMean g) {
  if constexpr (mode <= Mode::rows_single)
    moments_of_rows<T, mode>(g);
  else
    moments_of_columns<T, mode>(g);
}

static size_t shared_of_totals(const Map& map) { return shared_of(map) / 2; }  // shared_of is for two sums per channel

Error launch(const ScaleShiftActMean& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    return start(scale_shift_act_mean_kernel<T, mode.value>,
                 {"scale_shift_act_mean", blocks_of(g.map, g.cut), kThreads, shared_of_totals(g.map)}, stream, g);
  });
}

void list_scale_shift_act_mean(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    by_type_and_mode(map, [&](auto type, auto mode) {
      using T = typename decltype(type)::type;
      constexpr Mode m = mode.value;
      add(to, "scale_shift_act_mean " + name, scale_shift_act_mean_kernel<T, m>, (int)shared_of_totals(map));
    });
  });
}

}  // namespace se_fused::cuda
