// Pass 1 of the forward pass for one tile: mean and m2 = sum (x - mean)^2.
//
// A thread sums differences d from a reference point of its own, and their squares: total = sum d and squares =
// sum d^2. Then mean = reference + total / n and m2 = squares - total^2 / n. This takes four instructions per element
// with the conversion to float32; the mean of a chunk first, and then the squares around it, take six or more.
//
// The subtraction cancels where the mean is far from the reference point: by the factor squares / m2. So the reference
// point is the thread's first element, and moves to the mean of what has been read: after the first vector of a row or
// the first round of loads of a column, and then whenever the number of elements has doubled. With k elements around
// their mean and l more, squares / m2 is at most 1 + l / k: 8 for the first vector of a row, 4 for the others of its
// first round and for the first round of a column, and 2 from then on. Each move replaces the two sums by those of all
// elements so far around the new point, exactly but for rounding. m2 only grows, so all these roundings together are a
// few of m2's, whatever the data.
//
// Lanes, threads and splits are joined in a fixed order: first the means, then each part's squares around the common
// mean.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

// Moves the reference point of the sums of `count` differences to their mean, where `inverse` is about 1 / count. It
// stays if the mean is not finite, so that a mean with an infinite element is infinite and not NaN.
SE_DEVICE void recentre(float& from, float& total, float& squares, float count, float inverse) {
  const float to = from + finite_or_zero(total * inverse), by = to - from, rest = total - count * by;
  squares -= by * (total + rest);
  from = to;
  total = rest;
}

// A block's sums per step and channel in shared memory, up to two of them: 8 * blockDim.x floats each. A step's first
// four channels of all lanes come before their last four, so that neighbouring threads store 16 bytes side by side;
// with the channels in order they would be 32 bytes apart and meet in one bank, two and two.
struct ColumnSums {
  const Columns& at;
  float* shared;  // aligned to 16 bytes

  SE_DEVICE ColumnSums(const Columns& at, float* shared) : at(at), shared(shared) {}
  SE_DEVICE int width() const { return 8 * at.lanes; }  // channels of the block
  SE_DEVICE void store(int which, const float (&v)[8]) const {
    float* const to = shared + which * 8 * (int)blockDim.x + at.step * width() + 4 * at.lane;
    store_floats(to, {v[0], v[1], v[2], v[3]});
    store_floats(to + 4 * at.lanes, {v[4], v[5], v[6], v[7]});
  }
  SE_DEVICE float get(int which, int step, int i) const {
    return shared[which * 8 * (int)blockDim.x + step * width() + i];
  }
  // Calls use(i, channel) for the channels of the block, of which a thread takes one or more.
  template <class F>
  SE_DEVICE void each(int channels, const F& use) const {
    for (int i = (int)threadIdx.x; i < width(); i += (int)blockDim.x) {
      const int half = i >= 4 * at.lanes,
                channel = at.first + 2 * ((i - half * 4 * at.lanes) & ~3) + 4 * half + (i & 3);
      if (channel < channels) use(i, channel);
    }
  }
};

SE_DEVICE float not_negative(float x) { return x < 0.f ? 0.f : x; }  // keeps NaN

// mean and m2 over the positions [begin, stop) of a row, by aligned groups of `lanes` threads. Every lane
// returns the result as {mean, m2}. rows: as in RowSpan.
template <Mode mode, Use use, bool with_m2, class T>
SE_DEVICE ScaleShift row_moments(const T* x, int64_t row, int64_t rows, int length, int begin, int stop, int lanes) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  const RowSpan<mode> span(row, rows, length, begin, stop);
  const int lane = (int)threadIdx.x & (lanes - 1);
  const T* next = x + span.origin;
  float shift = 0.f, from = 0.f, sum = 0.f, squares = 0.f, inverse = 1.f / (8 * kLoads);
  int count = 0;  // elements of this lane
  next += 8 * lane;
  for (int first = 0; first < span.vectors; first += kLoads * lanes, next += 8 * kLoads * lanes) {
    Raw<T> raw[kLoads]{};
    load_vectors<mode, use>(next, span, first + lane, lanes, raw);
    if (first == 0) {  // behind the loads, so that none of them waits for this one
      shift = from = finite_or_zero(to_float(next[span.lead - 8 * lane]));
    } else if (with_m2 && (first & (first - 1)) == 0) {  // after 1, 2, 4 .. rounds
      recentre(from, sum, squares, (float)count, inverse);
      inverse *= 0.5f;
    }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int v = first + u * lanes + lane;
      const bool start = u == 0 && first == 0, seed = with_m2 && start;
      float t[8] = {};
      const auto add = [&](int j) {
        const float d = t[j] - from;
        sum += d;
        if (with_m2) squares += d * d;
      };
      if (!seed && !span.edge(first + u * lanes, lanes, start)) {
        unpack(raw[u], t);
#pragma unroll
        for (int j = 0; j < 8; ++j) add(j);
        count += 8;
      } else if (v < span.vectors) {
        unpack(raw[u], t);
        if (seed && lane) from = finite_or_zero(t[0]);  // lane 0's first element is the shift, at any place in t
        const int before = u == 0 ? span.before(v) : 0, after = span.after(v);
        const uint32_t held = 0xffu << before & 0xffu >> after;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (mode == Mode::rows || held >> j & 1) add(j);
        count += 8 - before - after;
      }
      // The first vector of an unaligned row may have a single element of it, so there the second one is used as well.
      if (with_m2 && first == 0 && (u == 0 || (u == 1 && mode == Mode::rows_unaligned && kLoads > 2)))
        recentre(from, sum, squares, (float)count, 1.f / (8 * u + 8));
    }
  }
  const float inverse_all = 1.f / (float)(stop - begin);
  if (!with_m2) return {shift + sum_lanes(sum, lanes) * inverse_all, 0.f};
  // From here on all means are differences from the shift.
  const float reference = from - shift;
  const float mean = sum_lanes(sum + (float)count * reference, lanes) * inverse_all, by = mean - reference;
  squares -= by * (sum + (sum - (float)count * by));
  return {shift + mean, not_negative(sum_lanes(squares, lanes))};
}

// mean and m2 over the positions [begin, stop) of a sample, for all channels of a block (Columns). Calls
// put(channel, mean, m2) once per channel. shared: 16 * blockDim.x floats, or half of that without m2; aligned to 16
// bytes.
template <Mode mode, Use use, bool with_m2, class T, class Put>
SE_DEVICE void column_moments(const T* x, int channels, int begin, int stop, const Columns& at, float* shared,
                              const Put& put) {
  constexpr int kLoads = loads_of<T>(mode, 1);
  const int length = stop - begin, each = length / at.steps, more = length - each * at.steps;
  const auto positions_of = [&](int step) { return each + (step < more); };
  const int own = length > 0 && at.exists ? positions_of(at.step) : 0;  // positions of this thread
  const int64_t stride = (int64_t)at.steps * channels;
  const int end = channels - at.channel;
  const T* next = x + (int64_t)(begin + at.step) * channels + at.channel;
  float from[8], total[8], squares[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) from[j] = total[j] = squares[j] = 0.f;
  float inverse = 1.f / kLoads;
  const auto add = [&](const Raw<T>& raw) {
    float t[8];
    unpack(raw, t);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float d = t[j] - from[j];
      total[j] += d;
      if (with_m2) squares[j] += d * d;
    }
  };
  for (int done = 0; done < own; done += kLoads) {
    Raw<T> raw[kLoads]{};
    const bool whole = done + kLoads <= own;
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (whole || done + u < own) raw[u] = load<mode, use>(next + u * stride, 0, end);
    next += kLoads * stride;
    if (done == 0) {
      unpack(raw[0], from);
#pragma unroll
      for (int j = 0; j < 8; ++j) from[j] = finite_or_zero(from[j]);
    } else if (with_m2 && (done & (done - 1)) == 0) {  // after 1, 2, 4 .. rounds
#pragma unroll
      for (int j = 0; j < 8; ++j) recentre(from[j], total[j], squares[j], (float)done, inverse);
      inverse *= 0.5f;
    }
    if (whole) {  // without a comparison per load
#pragma unroll
      for (int u = 0; u < kLoads; ++u) add(raw[u]);
    } else {
#pragma unroll
      for (int u = 0; u < kLoads; ++u)
        if (done + u < own) add(raw[u]);
    }
  }
  const float inverse_own = own ? 1.f / (float)own : 0.f;
  float mean[8], m2[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    mean[j] = from[j] + total[j] * inverse_own;
    m2[j] = not_negative(squares[j] - total[j] * (total[j] * inverse_own));
  }
  const ColumnSums sums(at, shared);
  sums.store(0, mean);
  if (with_m2) sums.store(1, m2);
  __syncthreads();
  const float inverse_all = 1.f / (float)length;
  const int steps = min(at.steps, length);  // threads with a position
  sums.each(channels, [&](int i, int channel) {
    const float shift = finite_or_zero(sums.get(0, 0, i));
    float sum = 0.f, m2 = 0.f;
#pragma unroll 4
    for (int step = 0; step < steps; ++step) sum += (float)positions_of(step) * (sums.get(0, step, i) - shift);
    const float mean = sum * inverse_all;
    if (with_m2)
#pragma unroll 4
      for (int step = 0; step < steps; ++step) {
        const float away = sums.get(0, step, i) - shift - mean;
        m2 += sums.get(1, step, i) + (float)positions_of(step) * (away * away);
      }
    put(channel, shift + mean, m2);
  });
  __syncthreads();  // the caller may reuse shared memory
}

}  // namespace se_fused::cuda
