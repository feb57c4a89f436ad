// Pass 1: sums per sample and channel, in one read of x (forward) or of dy, x and the mask (backward).
#include "moments.cuh"

#include "batch_statistics.cuh"
#include "partition.cuh"

namespace se_fused::cuda {

// Resident blocks per multiprocessor for __launch_bounds__, which limits the registers per thread: the most with which
// nothing spills on any architecture.
SE_BOTH constexpr int blocks_of_moments(Mode mode) {
  return mode == Mode::rows ? 4 : mode == Mode::rows_unaligned ? 3 : 2;
}

template <class T, Mode mode, bool with_m2>
SE_KERNEL(kThreads, blocks_of_moments(mode))
moments_kernel(SE_CONSTANT Moments g) {
  clear(g.counters);
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const T* const x = static_cast<const T*>(g.x);
  if constexpr (mode <= Mode::rows_single) {
    const RowPartition p(g.map, g.cut);
    const ScaleShift found = row_moments<mode, Use::keep, with_m2>(x, p.row, g.map.s, p.begin, p.stop,
                                                                   g.map.n * g.map.c * g.map.s, g.cut.lanes);
    if (p.exists && threadIdx.x % g.cut.lanes == 0) {
      const int64_t out = sums_of(g.map, g.cut, kThreads / g.cut.lanes, g.last.counters) + p.c;
      g.mean[out] = found.scale;
      if (with_m2) g.m2[out] = found.shift;
    }
    if (with_m2 && g.last.counters) finish(g, shared);
  } else {
    const ColumnPartition s(g.map, g.cut);
    const Columns at(g.cut.lanes, s.columns, g.map.c);
    const int64_t out = sums_of(g.map, g.cut, 8 * g.cut.lanes, g.last.counters);
    column_moments<mode, Use::keep, with_m2>(x + s.n * g.map.s * g.map.c, g.map.c, s.begin, s.stop, at, shared,
                                             [&](int c, float mean, float m2) {
                                               g.mean[out + c] = mean;
                                               if (with_m2) g.m2[out + c] = m2;
                                             });
    if (with_m2 && g.last.counters) finish(g, shared);
  }
}

// Turns dy, passed in `dr`, into dr for one vector: by the mask bits, or with from_sum by the derivative at
// scale x + shift + residual. With from_sum dr is rounded to T, because pass 2 reads the rounded values.
template <class T, bool from_sum>
SE_DEVICE void slope(Act out_act, float (&dr)[8], const float (&x)[8], uint32_t bits, const float (&residual)[8],
                     const float (&scale)[8], const float (&shift)[8], const float (&added)[8]) {
  if constexpr (!from_sum) return keep_bits(bits, dr);
  float t[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    t[j] = scale[j] * x[j] + shift[j] + residual[j];
    dr[j] += added[j];
  }
  by_out_act(out_act, [&](auto known) {
    using Closing = decltype(known);
    if constexpr (Closing::kept == Keeps::mask) {
      keep_bits(positive_bits(t), dr);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) dr[j] *= activate_slope(Closing::value, t[j]);
    }
  });
  round_to<T>(dr);
}

template <class T, Mode mode, bool from_sum>
SE_DEVICE void backward_rows(const MomentsBackward& g) {
  constexpr int kLoads = loads_of<T>(mode, from_sum ? 3 : 2);
  const Map& map = g.map;
  const T *const dy = static_cast<const T*>(g.dy), *const x = static_cast<const T*>(g.x);
  const T* const residual = static_cast<const T*>(g.residual);
  T* const dr = static_cast<T*>(g.dr);
  const RowPartition part(map, g.cut);
  const Window<mode> window(part.row, map.s, part.begin, part.stop);
  const int64_t rows = map.n * map.c, total = rows * map.s, limit = window.limit(total);
  const int lanes = g.cut.lanes, lane = (int)threadIdx.x % lanes, width = (map.s + 7) / 8;
  const float mean = g.mean[g.last.counters ? part.c : part.row];
  ScaleShift own{1.f, 0.f}, next{1.f, 0.f};
  float own_added = 0.f, next_added = 0.f;
  if constexpr (from_sum) {
    own = coefficients(g.by, part.row / map.c, (int)(part.row % map.c), map.c);
    const int64_t after = min(part.row + 1, rows - 1);
    if (mode == Mode::rows_unaligned) next = coefficients(g.by, after / map.c, (int)(after % map.c), map.c);
    if (g.added) {
      own_added = g.added[part.row];
      next_added = g.added[after];
    }
  }
  float p = 0.f, q = 0.f;
  for (int i = lane; i < window.vectors; i += kLoads * lanes) {
    Raw<T> raw_dy[kLoads], raw_x[kLoads], raw_residual[kLoads];
    uint32_t bits[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int v = i + u * lanes; v < window.vectors) {
        const int64_t at = window.origin + 8 * (int64_t)v;
        raw_dy[u] = load<mode, Use::last>(dy, at, limit);
        raw_x[u] = load<mode, Use::keep>(x, at, limit);
        if (from_sum && residual) raw_residual[u] = load<mode, Use::last>(residual, at, limit);
        bits[u] = 0xff;
        if (!from_sum && g.mask) {
          const int position = (int)(at - part.row * map.s);
          bits[u] = mode == Mode::rows_unaligned ? unaligned_bits(g.mask, part.row, rows, position, map.s)
                                                 : g.mask[part.row * width + position / 8];
        }
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t at = window.origin + 8 * (int64_t)(i + u * lanes);
      if (i + u * lanes >= window.vectors) continue;
      float d[8], v[8], r[8], scale[8], shift[8], added[8];
      unpack(raw_dy[u], d);
      unpack(raw_x[u], v);
      if (from_sum && residual) unpack(raw_residual[u], r);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (!from_sum || !residual) r[j] = 0.f;
        const bool mine = mode != Mode::rows_unaligned || at + j < (part.row + 1) * map.s;
        scale[j] = mine ? own.scale : next.scale;
        shift[j] = mine ? own.shift : next.shift;
        added[j] = mine ? own_added : next_added;
      }
      slope<T, from_sum>(g.out_act, d, v, bits[u], r, scale, shift, added);
      // A vector that two rows or two partitions share is written by the one that holds its first element.
      if (dr && window.holds(at)) store<mode>(dr, at, limit, d);
      const bool whole = window.whole(at);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (whole || window.holds(at + j)) p += d[j], q += d[j] * (v[j] - mean);
    }
  }
  p = sum_lanes(p, lanes);
  q = sum_lanes(q, lanes);
  if (part.exists && lane == 0) {
    const int64_t out = sums_of(map, g.cut, kThreads / lanes, g.last.counters) + part.c;
    g.p[out] = p, g.q[out] = q;
  }
  SE_SHARED(shared);
  if (g.last.counters) finish(g, reinterpret_cast<float*>(shared));
}

template <class T, Mode mode, bool from_sum>
SE_DEVICE void backward_columns(const MomentsBackward& g) {
  constexpr int kLoads = loads_of<T>(mode, from_sum ? 3 : 2);
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const Map& map = g.map;
  const ColumnPartition part(map, g.cut);
  const Columns at(g.cut.lanes, part.columns, map.c);
  const int64_t base = part.n * map.s * map.c;
  const T *const dy = static_cast<const T*>(g.dy) + base, *const x = static_cast<const T*>(g.x) + base;
  const T* const residual = g.residual ? static_cast<const T*>(g.residual) + base : nullptr;
  T* const dr = g.dr ? static_cast<T*>(g.dr) + base : nullptr;
  const int width = (map.c + 7) / 8;
  const uint8_t* const mask = g.mask ? g.mask + part.n * map.s * width + at.channel / 8 : nullptr;
  const float* const means = g.mean + (g.last.counters ? 0 : part.n * map.c);
  float mean[8], scale[8], shift[8], added[8], p[8], q[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    p[j] = q[j] = mean[j] = scale[j] = shift[j] = added[j] = 0.f;
    if (const int c = at.channel + j; c < map.c) {
      mean[j] = means[c];
      if constexpr (from_sum) {
        const ScaleShift by = coefficients(g.by, part.n, c, map.c);
        scale[j] = by.scale;
        shift[j] = by.shift;
        if (g.added) added[j] = g.added[part.n * map.c + c];
      }
    }
  }
  if (at.exists)
    for (int position = part.begin + at.step; position < part.stop; position += kLoads * at.steps) {
      Raw<T> raw_dy[kLoads], raw_x[kLoads], raw_residual[kLoads];
      uint32_t bits[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (const int64_t s = position + u * at.steps; s < part.stop) {
          raw_dy[u] = load<mode, Use::last>(dy + s * map.c, at.channel, map.c);
          raw_x[u] = load<mode, Use::keep>(x + s * map.c, at.channel, map.c);
          if (from_sum && residual) raw_residual[u] = load<mode, Use::last>(residual + s * map.c, at.channel, map.c);
          bits[u] = !from_sum && mask ? mask[s * width] : 0xff;
        }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int64_t s = position + u * at.steps;
        if (s >= part.stop) continue;
        float d[8], v[8], r[8];
        unpack(raw_dy[u], d);
        unpack(raw_x[u], v);
        if (from_sum && residual) unpack(raw_residual[u], r);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (!from_sum || !residual) r[j] = 0.f;
        slope<T, from_sum>(g.out_act, d, v, bits[u], r, scale, shift, added);
        if (dr) store<mode>(dr + s * map.c, at.channel, map.c, d);
#pragma unroll
        for (int j = 0; j < 8; ++j) p[j] += d[j], q[j] += d[j] * (v[j] - mean[j]);
      }
    }
  const int channels = 8 * g.cut.lanes;
  float* const shared_q = shared + 8 * blockDim.x;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    shared[at.step * channels + at.lane * 8 + j] = p[j];
    shared_q[at.step * channels + at.lane * 8 + j] = q[j];
  }
  __syncthreads();
  const int64_t out = sums_of(map, g.cut, 8 * g.cut.lanes, g.last.counters);
  for (int i = (int)threadIdx.x; i < channels && at.first + i < map.c; i += (int)blockDim.x) {
    float sum_p = 0.f, sum_q = 0.f;
    for (int step = 0; step < at.steps; ++step)
      sum_p += shared[step * channels + i], sum_q += shared_q[step * channels + i];
    g.p[out + at.first + i] = sum_p;
    g.q[out + at.first + i] = sum_q;
  }
  if (g.last.counters) finish(g, shared);
}

template <class T, Mode mode, bool from_sum>
SE_KERNEL(kThreads, from_sum ? 2 : 3)
moments_backward_kernel(SE_CONSTANT MomentsBackward g) {
  clear(g.counters);
  if constexpr (mode <= Mode::rows_single)
    backward_rows<T, mode, from_sum>(g);
  else
    backward_columns<T, mode, from_sum>(g);
}

// The last blocks need shared memory in every mode.
static size_t shared_of(const Map& map, bool with_last) {
  return std::max(shared_of(map), with_last ? kSharedOfLast : 0);
}

Error launch(const Zero& g, Stream stream) { return zero(g.counters, g.count * sizeof(int), stream); }

Error launch(const Moments& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    const auto kernel = g.m2 ? moments_kernel<T, mode.value, true> : moments_kernel<T, mode.value, false>;
    const size_t shared = shared_of(g.map, g.last.counters);
    return start(kernel, {"moments", blocks_of(g.map, g.cut), kThreads, shared}, stream, g);
  });
}

Error launch(const MomentsBackward& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    const auto kernel = keeps_input(g.out_act) || g.added ? moments_backward_kernel<T, mode.value, true>
                                                          : moments_backward_kernel<T, mode.value, false>;
    const size_t shared = shared_of(g.map, g.last.counters);
    return start(kernel, {"moments_backward", blocks_of(g.map, g.cut), kThreads, shared}, stream, g);
  });
}

void list_moments(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    by_type_and_mode(map, [&](auto type, auto mode) {
      using T = typename decltype(type)::type;
      constexpr Mode m = mode.value;
      const int shared = (int)shared_of(map, true);
      add(to, "moments " + name, moments_kernel<T, m, false>, (int)shared_of(map));
      add(to, "moments " + name + " m2", moments_kernel<T, m, true>, shared);
      add(to, "moments_backward " + name, moments_backward_kernel<T, m, false>, shared);
      add(to, "moments_backward " + name + " from sum", moments_backward_kernel<T, m, true>, shared);
    });
  });
}

}  // namespace se_fused::cuda
