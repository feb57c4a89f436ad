// Pass 1: sums per sample and channel, in one read of x (forward) or of dy, x and the mask (backward).
#include "moments.cuh"

#include "batch_statistics.cuh"
#include "partition.cuh"

namespace se_fused::cuda {

template <class T, Mode mode, bool with_m2>
SE_KERNEL(kThreads, resident_blocks(Sums::moments, mode))
moments_kernel(SE_CONSTANT Moments g) {
  allow_dependents();
  clear(g.counters);
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  const T* const x = static_cast<const T*>(g.x);
  if constexpr (mode <= Mode::rows_single) {
    const RowPartition p(g.map, g.cut);
    const ScaleShift found =
        row_moments<mode, Use::keep, with_m2>(x, p.row, p.rows, g.map.s, p.begin, p.stop, g.cut.lanes);
    if (p.exists && (threadIdx.x & (g.cut.lanes - 1)) == 0) {
      const int64_t out = p.at(g.map, g.cut, g.last.counters);
      g.mean[out] = found.scale;
      if (with_m2) g.m2[out] = found.shift;
    }
    if (with_m2 && g.last.counters) finish(g, shared);
  } else {
    const ColumnPartition s(g.map, g.cut);
    const Columns at(g.cut.lanes, s.columns, g.map.c);
    const int64_t out = s.at(g.map, g.cut, g.last.counters);
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
      for (int j = 0; j < 8; ++j) dr[j] *= activate_slope(Closing{}, t[j]);
    }
  });
  round_to<T>(dr);
}

template <class T, Mode mode, bool from_sum>
SE_DEVICE void backward_rows(const MomentsBackward& g) {
  constexpr int kLoads = loads_of<T>(mode, from_sum ? 3 : 2);
  const Map& map = g.map;
  const RowPartition part(map, g.cut);
  const RowSpan<mode> span(part.row, part.rows, map.s, part.begin, part.stop);
  const int lanes = g.cut.lanes, lane = (int)threadIdx.x & (lanes - 1);
  const int64_t origin = span.origin + 8 * lane;
  const T *dy = static_cast<const T*>(g.dy) + origin, *x = static_cast<const T*>(g.x) + origin;
  const T* residual = g.residual ? static_cast<const T*>(g.residual) + origin : nullptr;
  T* dr = g.dr ? static_cast<T*>(g.dr) + origin : nullptr;
  const int width = (map.s + 7) / 8, begin = part.begin - span.lead;
  const bool masked = !from_sum && g.mask, has_next = part.row + 1 < part.rows;
  const uint8_t* const mask = masked ? g.mask + part.row * width : nullptr;
  const int row_end = map.s - part.begin + span.lead;  // from here on elements belong to the next row
  const float mean = g.mean[value_of(part.row, g.last.channels)];
  float own_added = 0.f, next_added = 0.f, p = 0.f, q = 0.f;
  ScaleShift own{1.f, 0.f}, next{1.f, 0.f};
  for (int first = 0; first < span.vectors; first += kLoads * lanes) {
    Raw<T> raw_dy[kLoads], raw_x[kLoads], raw_residual[kLoads];
    uint32_t bits[kLoads];
    load_vectors<mode, Use::last>(dy, span, first + lane, lanes, raw_dy);
    load_vectors<mode, Use::keep>(x, span, first + lane, lanes, raw_x);
    if (from_sum && residual) load_vectors<mode, Use::last>(residual, span, first + lane, lanes, raw_residual);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      bits[u] = 0xff;
      if (const int v = first + u * lanes + lane; masked && v < span.vectors)
        bits[u] =
            mode == Mode::rows_unaligned ? unaligned_bits(mask, begin + 8 * v, map.s, has_next) : mask[begin / 8 + v];
    }
    if (from_sum && first == 0) {  // behind the loads, so that none of them waits for these
      if constexpr (from_sum) {
        const int64_t after = min(part.row + 1, part.rows - 1);
        own = coefficients(g.by, part.row / map.c, (int)(part.row % map.c), map.c);
        if (mode == Mode::rows_unaligned) next = coefficients(g.by, after / map.c, (int)(after % map.c), map.c);
        if (g.added) {
          own_added = g.added[part.row];
          next_added = g.added[after];
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int v = first + u * lanes + lane;
      if (v >= span.vectors) continue;
      float d[8], t[8], r[8], scale[8], shift[8], added[8];
      unpack(raw_dy[u], d);
      unpack(raw_x[u], t);
      if (from_sum && residual) unpack(raw_residual[u], r);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (!from_sum || !residual) r[j] = 0.f;
        const bool mine = mode != Mode::rows_unaligned || 8 * v + j < row_end;
        scale[j] = mine ? own.scale : next.scale;
        shift[j] = mine ? own.shift : next.shift;
        added[j] = mine ? own_added : next_added;
      }
      slope<T, from_sum>(g.out_act, d, t, bits[u], r, scale, shift, added);
      const int before = u == 0 ? span.before(v) : 0, after = span.after(v);
      // A vector that two rows or two partitions share is written by the one that holds its first element.
      if (dr && !before) {
        T* const to = dr + 8 * u * lanes;
        if (!is_single(mode) && v < span.whole)
          store_whole<Use::keep>(to, d);  // pass 2 reads it next
        else
          store_some(to, span.last - 8 * v, d);
      }
      const auto add = [&](int j) { p += d[j], q += d[j] * (t[j] - mean); };
      if (!span.edge(first + u * lanes, lanes, u == 0 && first == 0)) {
#pragma unroll
        for (int j = 0; j < 8; ++j) add(j);
      } else {
        const uint32_t held = 0xffu << before & 0xffu >> after;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (mode == Mode::rows || held >> j & 1) add(j);
      }
    }
    const int step = 8 * kLoads * lanes;
    dy += step, x += step;
    if (residual) residual += step;
    if (dr) dr += step;
  }
  p = sum_lanes(p, lanes);
  q = sum_lanes(q, lanes);
  if (part.exists && lane == 0) {
    const int64_t out = part.at(map, g.cut, g.last.counters);
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
  const int end = map.c - at.channel, width = (map.c + 7) / 8;
  const T *const dy = static_cast<const T*>(g.dy), *const x = static_cast<const T*>(g.x);
  const T* const residual = static_cast<const T*>(g.residual);
  T* const dr = static_cast<T*>(g.dr);
  // One offset for all maps: a pointer to each would take more registers than there are.
  const int64_t row = part.n * map.s, stride = (int64_t)at.steps * map.c;
  int64_t offset = (row + part.begin + at.step) * map.c + at.channel;
  float mean[8], scale[8], shift[8], added[8], p[8], q[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    p[j] = q[j] = scale[j] = shift[j] = added[j] = 0.f;
    if (from_sum && j < end) {
      const ScaleShift by = coefficients(g.by, part.n, at.channel + j, map.c);
      scale[j] = by.scale;
      shift[j] = by.shift;
      if (g.added) added[j] = g.added[part.n * map.c + at.channel + j];
    }
  }
  load_eight(g.mean + (g.last.counters ? 0 : part.n * map.c) + at.channel, end, mean);
  if (at.exists)
    for (int position = part.begin + at.step; position < part.stop; position += kLoads * at.steps) {
      Raw<T> raw_dy[kLoads], raw_x[kLoads], raw_residual[kLoads];
      uint32_t bits[kLoads];
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (position + u * at.steps < part.stop) {
          const int64_t there = offset + u * stride;
          raw_dy[u] = load<mode, Use::last>(dy + there, 0, end);
          raw_x[u] = load<mode, Use::keep>(x + there, 0, end);
          if (from_sum && residual) raw_residual[u] = load<mode, Use::last>(residual + there, 0, end);
          bits[u] = 0xff;
          if (!from_sum && g.mask)
            bits[u] = g.mask[mode == Mode::cols ? there / 8 : (row + position + u * at.steps) * width + at.channel / 8];
        }
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        if (position + u * at.steps >= part.stop) continue;
        float d[8], v[8], r[8];
        unpack(raw_dy[u], d);
        unpack(raw_x[u], v);
        if (from_sum && residual) unpack(raw_residual[u], r);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (!from_sum || !residual) r[j] = 0.f;
        slope<T, from_sum>(g.out_act, d, v, bits[u], r, scale, shift, added);
        if (dr) store<mode, Use::keep>(dr + (offset + u * stride), 0, end, d);
#pragma unroll
        for (int j = 0; j < 8; ++j) p[j] += d[j], q[j] += d[j] * (v[j] - mean[j]);
      }
      offset += kLoads * stride;
    }
  const ColumnSums sums(at, shared);
  sums.store(0, p);
  sums.store(1, q);
  __syncthreads();
  const int64_t out = part.at(map, g.cut, g.last.counters);
  sums.each(map.c, [&](int i, int channel) {
    float sum_p = 0.f, sum_q = 0.f;
#pragma unroll 8
    for (int step = 0; step < at.steps; ++step) sum_p += sums.get(0, step, i), sum_q += sums.get(1, step, i);
    g.p[out + channel] = sum_p;
    g.q[out + channel] = sum_q;
  });
  if (g.last.counters) finish(g, shared);
}

template <class T, Mode mode, bool from_sum>
SE_KERNEL(kThreads, resident_blocks(from_sum ? Sums::moments_backward_from_sum : Sums::moments_backward, mode))
moments_backward_kernel(SE_CONSTANT MomentsBackward g) {
  allow_dependents();
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
