// Pass 2: y from x and the residual by one multiply-add per element and the activation; dx in the backward pass.
//
// Pass 1 has just read x from front to back, so L2 holds its end. Blocks here therefore start from the end.
#include "scale_shift_act.cuh"

#include "launch.cuh"

namespace se_fused::cuda {

constexpr int kRounds = 2;  // rounds of loads per block; the coefficients of a vector are read once per block

template <class T, Mode mode, int tensors>
SE_BOTH constexpr int vectors_of_block() {
  return kThreads * kRounds * loads_of<T>(mode, tensors);
}
SE_BOTH inline int64_t vectors_of_map(const Map& map) {
  const int64_t rows = map.n * map.c;
  return map.mode == Mode::rows_unaligned ? ceil_div(rows * map.s, 8) : rows * ceil_div(map.s, 8);
}

// The sample, channels and positions of a channels_last map that a block processes.
struct MapPartition {
  int64_t n;
  int columns, begin, stop;

  SE_DEVICE MapPartition(const Map& map, const Cut& cut) {
    const int blocks = (int)ceil_div(map.c, 8 * cut.lanes), splits = (int)ceil_div(map.s, cut.span);
    const int64_t tile = (int64_t)gridDim.x - 1 - blockIdx.x, rest = tile / blocks;
    columns = (int)(tile % blocks);
    n = rest / splits;
    begin = (int)(rest % splits) * cut.span;
    stop = min(begin + cut.span, map.s);
  }
};

// Resident blocks per multiprocessor for __launch_bounds__, which limits the registers per thread: the most with which
// nothing spills on any architecture.
SE_BOTH constexpr int blocks_of_scale_shift_act(Mode mode) { return is_single(mode) ? 2 : mode == Mode::rows ? 4 : 3; }

template <class T, Mode mode>
SE_KERNEL(kThreads, blocks_of_scale_shift_act(mode))
scale_shift_act_kernel(SE_CONSTANT ScaleShiftAct g) {
  const Map& map = g.map;
  const Maps<T> maps{static_cast<const T*>(g.x), static_cast<const T*>(g.residual), static_cast<T*>(g.y)};
  if constexpr (mode <= Mode::rows_single) {
    SE_SHARED(bits);
    constexpr int kVectors = vectors_of_block<T, mode, 2>();
    const int64_t first = ((int64_t)gridDim.x - 1 - blockIdx.x) * kVectors, all = vectors_of_map(map);
    scale_shift_act_rows<mode, Use::last>(maps, map.n * map.c, map.s, first, min(first + kVectors, all), g.out_act,
                                          g.mask, bits, [&](int64_t row) {
                                            if (g.by.per_channel) row = (uint32_t)row % (uint32_t)map.c;
                                            if (g.by.scale) return ScaleShift{g.by.scale[row], g.by.shift[row]};
                                            const int64_t n = row / map.c;
                                            return coefficients(g.by, n, (int)(row - n * map.c), map.c);
                                          });
  } else {
    const MapPartition part(map, g.cut);
    const Columns at(g.cut.lanes, part.columns, map.c);
    float scale[8], shift[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      scale[j] = shift[j] = 0.f;
      if (at.channel + j < map.c) {
        const ScaleShift by = coefficients(g.by, part.n, at.channel + j, map.c);
        scale[j] = by.scale;
        shift[j] = by.shift;
      }
    }
    const int64_t base = part.n * map.s * map.c;
    const Maps<T> sample{maps.x + base, maps.residual ? maps.residual + base : nullptr, maps.y + base};
    uint8_t* const mask = g.mask ? g.mask + part.n * map.s * ((map.c + 7) / 8) : nullptr;
    scale_shift_act_columns<mode, Use::last>(sample, map.c, part.begin, part.stop, at, g.out_act, mask, scale, shift);
  }
}

// ---- backward: dx = k1 dr + k2 (x - mean) + k3. x is centred, because k2 x alone would cancel against k3.
struct Slopes {
  float k1, k2, k3, mean;
};

template <bool with_x>
SE_DEVICE Slopes slopes(const ScaleShiftActBackward& g, int64_t at) {
  return {g.k1[at], with_x ? g.k2[at] : 0.f, g.k3[at], with_x ? g.mean[at] : 0.f};
}

template <class T, Mode mode, bool with_x>
SE_DEVICE void backward_rows(const ScaleShiftActBackward& g) {
  constexpr int kLoads = loads_of<T>(mode, 2), kVectors = vectors_of_block<T, mode, 2>();
  const Map& map = g.map;
  const T *const dr = static_cast<const T*>(g.dr), *const x = static_cast<const T*>(g.x);
  T* const dx = static_cast<T*>(g.dx);
  const int64_t rows = map.n * map.c, first = ((int64_t)gridDim.x - 1 - blockIdx.x) * kVectors;
  const int count = (int)min((int64_t)kVectors, vectors_of_map(map) - first);
  const RowVectors<mode> vectors(first, rows, map.s);
  for (int start = 0; start < count; start += kLoads * kThreads) {
    Raw<T> raw[kLoads], raw_x[kLoads];
    int64_t row[kLoads], at[kLoads], end[kLoads];
    int position[kLoads];
    uint32_t bits[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int i = start + u * kThreads + (int)threadIdx.x; i < count) {
        vectors.find(i, row[u], position[u], at[u], end[u]);
        raw[u] = load<mode, Use::last>(dr, at[u], end[u]);
        if (with_x) raw_x[u] = load<mode, Use::last>(x, at[u], end[u]);
        bits[u] = 0xff;
        if (g.mask)
          bits[u] = mode == Mode::rows_unaligned ? unaligned_bits(g.mask, row[u], rows, position[u], map.s)
                                                 : g.mask[first + i];
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (start + u * kThreads + (int)threadIdx.x >= count) continue;
      float d[8], v[8];
      unpack(raw[u], d);
      keep_bits(bits[u], d);
      if (with_x) unpack(raw_x[u], v);
      const int64_t k = g.per_channel ? (uint32_t)row[u] % (uint32_t)map.c : row[u];
      const Slopes own = slopes<with_x>(g, k);
      const int left = map.s - position[u];
      const bool two = mode == Mode::rows_unaligned && left < 8 && row[u] + 1 < rows;
      const Slopes next = two ? slopes<with_x>(g, g.per_channel && k + 1 == map.c ? 0 : k + 1) : own;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool mine = !two || j < left;
        d[j] = (mine ? own.k1 : next.k1) * d[j] + (mine ? own.k3 : next.k3);
        if (with_x) d[j] += (mine ? own.k2 : next.k2) * (v[j] - (mine ? own.mean : next.mean));
      }
      store<mode>(dx, at[u], end[u], d);
    }
  }
}

template <class T, Mode mode, bool with_x>
SE_DEVICE void backward_columns(const ScaleShiftActBackward& g) {
  constexpr int kLoads = loads_of<T>(mode, 2);
  const Map& map = g.map;
  const MapPartition part(map, g.cut);
  const Columns columns(g.cut.lanes, part.columns, map.c);
  if (!columns.exists) return;
  const int64_t base = part.n * map.s * map.c, stride = map.c;
  const T *const dr = static_cast<const T*>(g.dr) + base, *const x =
                                                              with_x ? static_cast<const T*>(g.x) + base : nullptr;
  T* const dx = static_cast<T*>(g.dx) + base;
  const int width = (map.c + 7) / 8;
  const uint8_t* const mask = g.mask ? g.mask + part.n * map.s * width + columns.channel / 8 : nullptr;
  Slopes k[8];
  const int64_t first = (g.per_channel ? 0 : part.n * map.c) + columns.channel;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    k[j] = {0.f, 0.f, 0.f, 0.f};
    if (columns.channel + j < map.c) k[j] = slopes<with_x>(g, first + j);
  }
  for (int position = part.begin + columns.step; position < part.stop; position += kLoads * columns.steps) {
    Raw<T> raw[kLoads], raw_x[kLoads];
    uint32_t bits[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int64_t s = position + u * columns.steps; s < part.stop) {
        raw[u] = load<mode, Use::last>(dr + s * stride, columns.channel, stride);
        if (with_x) raw_x[u] = load<mode, Use::last>(x + s * stride, columns.channel, stride);
        bits[u] = mask ? mask[s * width] : 0xff;
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int64_t s = position + u * columns.steps;
      if (s >= part.stop) continue;
      float d[8], v[8];
      unpack(raw[u], d);
      keep_bits(bits[u], d);
      if (with_x) unpack(raw_x[u], v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        d[j] = k[j].k1 * d[j] + k[j].k3;
        if (with_x) d[j] += k[j].k2 * (v[j] - k[j].mean);
      }
      store<mode>(dx + s * stride, columns.channel, stride, d);
    }
  }
}

SE_BOTH constexpr int blocks_of_backward(Mode mode) { return is_single(mode) ? 2 : mode == Mode::cols ? 3 : 4; }

template <class T, Mode mode, bool with_x>
SE_KERNEL(kThreads, blocks_of_backward(mode))
scale_shift_act_backward_kernel(SE_CONSTANT ScaleShiftActBackward g) {
  if constexpr (mode <= Mode::rows_single)
    backward_rows<T, mode, with_x>(g);
  else
    backward_columns<T, mode, with_x>(g);
}

template <class T, Mode mode>
int64_t blocks_of(const Map& map, const Cut& cut) {
  if (map.by_rows()) return ceil_div(vectors_of_map(map), vectors_of_block<T, mode, 2>());
  return map.n * ceil_div(map.s, cut.span) * ceil_div(map.c, 8 * cut.lanes);
}

template <class T, Mode mode>
constexpr size_t bits_of() {  // shared memory for the mask
  return mode == Mode::rows_unaligned ? kThreads * loads_of<T>(mode, 2) + 1 : 0;
}

Error launch(const ScaleShiftAct& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    constexpr Mode m = mode.value;
    const size_t bits = g.mask ? bits_of<T, m>() : 0;
    return start(scale_shift_act_kernel<T, m>, {"scale_shift_act", blocks_of<T, m>(g.map, g.cut), kThreads, bits},
                 stream, g);
  });
}

Error launch(const ScaleShiftActBackward& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    constexpr Mode m = mode.value;
    const auto kernel =
        g.x ? scale_shift_act_backward_kernel<T, m, true> : scale_shift_act_backward_kernel<T, m, false>;
    return start(kernel, {"scale_shift_act_backward", blocks_of<T, m>(g.map, g.cut)}, stream, g);
  });
}

void list_scale_shift_act(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    by_type_and_mode(map, [&](auto type, auto mode) {
      using T = typename decltype(type)::type;
      constexpr Mode m = mode.value;
      add(to, "scale_shift_act " + name, scale_shift_act_kernel<T, m>, (int)bits_of<T, m>());
      add(to, "scale_shift_act_backward " + name, scale_shift_act_backward_kernel<T, m, false>);
      add(to, "scale_shift_act_backward " + name + " x", scale_shift_act_backward_kernel<T, m, true>);
    });
  });
}

}  // namespace se_fused::cuda
