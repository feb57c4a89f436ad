// Pass 2: y from x and the residual by one multiply-add per element and the activation; dx in the backward pass.
//
// Pass 1 has just read x from front to back, so L2 holds its end. Blocks here therefore start from the end.
#include "scale_shift_act.cuh"

#include "launch.cuh"

namespace se_fused::cuda {

constexpr int kRounds = 2;  // of loads per block

// Vectors of a block in the rows modes. In rows_unaligned, the mask's last byte may need one vector more
// (scale_shift_act_rows). It is the block's 1017th, with 16 bits: the block is eight vectors shorter, so that its loads
// start at whole lines of 128 bytes and the additional vector is loaded with the others.
template <class T, Mode mode, int tensors>
SE_BOTH constexpr int vectors_read() {
  return kThreads * kRounds * loads_of<T>(mode, tensors);
}
template <class T, Mode mode>
SE_BOTH constexpr int vectors_with_mask() {
  return vectors_read<T, mode, 2>() - (mode == Mode::rows_unaligned ? 8 : 0);
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

// y is stored to stay in L2, because the next kernel reads it at once, while x and the residual are evicted first. The
// blocks run from the end to the start, so what L2 holds of a large y is its start, which the next kernel reads first.
template <class T, Mode mode>
SE_KERNEL(kThreads, blocks_of_scale_shift_act(mode, sizeof(T) == 4))
scale_shift_act_kernel(SE_CONSTANT ScaleShiftAct g) {
  prefetch(g.ahead);
  dependency_wait();
  SE_SHARED(shared);
  const Map& map = g.map;
  const Maps<T> maps{static_cast<const T*>(g.x), static_cast<const T*>(g.residual), static_cast<T*>(g.y)};
  const auto by = [&](int64_t n, int c) { return coefficients(g.by, n, c, map.c); };
  if constexpr (mode <= Mode::rows_single) {
    constexpr int kVectors = vectors_with_mask<T, mode>();
    const int64_t first = ((int64_t)gridDim.x - 1 - blockIdx.x) * kVectors, all = vectors_of_map(map);
    scale_shift_act_rows<mode, Use::last, Use::keep>(maps, map.n * map.c, map.s, first, min(first + kVectors, all),
                                                     g.out_act, g.mask, shared, [&](int64_t row) {
                                                       row = value_of(row, g.by.per_channel);
                                                       if (g.by.scale)
                                                         return ScaleShift{g.by.scale[row], g.by.shift[row]};
                                                       const int64_t n = row / map.c;
                                                       return by(n, (int)(row - n * map.c));
                                                     });
  } else {
    const MapPartition part(map, g.cut);
    const Columns at(g.cut.lanes, part.columns, map.c);
    const int64_t base = part.n * map.s * map.c;
    const Maps<T> sample{maps.x + base, maps.residual ? maps.residual + base : nullptr, maps.y + base};
    uint8_t* const mask = g.mask ? g.mask + part.n * map.s * ((map.c + 7) / 8) : nullptr;
    scale_shift_act_columns<mode, Use::last, Use::keep>(
        sample, map.c, part.begin, part.stop, at, g.out_act, mask, [&](float (&scale)[8], float (&shift)[8]) {
          float k[2][8];
          coefficients_of_lane<2>(at, g.cut.lanes, map.c, reinterpret_cast<float*>(shared), k, [&](int c, auto& of) {
            const ScaleShift found = by(part.n, c);
            of[0] = found.scale, of[1] = found.shift;
          });
#pragma unroll
          for (int j = 0; j < 8; ++j) scale[j] = k[0][j], shift[j] = k[1][j];
        });
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
  constexpr int kLoads = loads_of<T>(mode, 2), kVectors = vectors_read<T, mode, 2>();
  const Map& map = g.map;
  const T *const dr = static_cast<const T*>(g.dr), *const x = static_cast<const T*>(g.x);
  T* const dx = static_cast<T*>(g.dx);
  const int64_t rows = map.n * map.c, first = ((int64_t)gridDim.x - 1 - blockIdx.x) * kVectors;
  const int count = (int)min((int64_t)kVectors, vectors_of_map(map) - first);
  const RowVectors<mode> vectors(first, rows, map.s);
  for (int start = 0; start < count; start += kLoads * kThreads) {
    Raw<T> raw[kLoads], raw_x[kLoads];
    int64_t row[kLoads];
    int position[kLoads];
    uint32_t bits[kLoads];
    Slopes own[kLoads], next[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int i = start + u * kThreads + (int)threadIdx.x; i < count) {
        vectors.find(i, row[u], position[u]);
        const int64_t at = vectors.offset(i, row[u], position[u]), end = vectors.end(row[u]);
        raw[u] = load<mode, Use::last>(dr, at, end);
        if (with_x) raw_x[u] = load<mode, Use::last>(x, at, end);
        bits[u] = 0xff;
        if (g.mask)
          bits[u] = mode == Mode::rows_unaligned ? unaligned_bits(g.mask, row[u], rows, position[u], map.s)
                                                 : g.mask[first + i];
      }
    // Before the first store, which no later load can be moved across.
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (start + u * kThreads + (int)threadIdx.x < count) {
        const int64_t k = value_of(row[u], g.per_channel);
        own[u] = slopes<with_x>(g, k);
        if (mode == Mode::rows_unaligned) {
          next[u] = own[u];
          if (map.s - position[u] < 8 && row[u] + 1 < rows)
            next[u] = slopes<with_x>(g, k + 1 == g.per_channel.by ? 0 : k + 1);
        }
      }
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int i = start + u * kThreads + (int)threadIdx.x;
      if (i >= count) continue;
      float d[8], v[8];
      unpack(raw[u], d);
      keep_bits(bits[u], d);
      if (with_x) unpack(raw_x[u], v);
      const int left = map.s - position[u];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const bool mine = mode != Mode::rows_unaligned || j < left;
        const auto of = [&](float Slopes::* k) { return mine ? own[u].*k : next[u].*k; };
        d[j] = of(&Slopes::k1) * d[j] + of(&Slopes::k3);
        if (with_x) d[j] += of(&Slopes::k2) * (v[j] - of(&Slopes::mean));
      }
      store<mode, Use::keep>(dx, vectors.offset(i, row[u], position[u]), vectors.end(row[u]), d);
    }
  }
}

template <class T, Mode mode, bool with_x>
SE_DEVICE void backward_columns(const ScaleShiftActBackward& g) {
  SE_SHARED(shared);
  constexpr int kLoads = loads_of<T>(mode, 2);
  const Map& map = g.map;
  const MapPartition part(map, g.cut);
  const Columns columns(g.cut.lanes, part.columns, map.c);
  const int64_t base = part.n * map.s * map.c;
  const T *const dr = static_cast<const T*>(g.dr) + base, *const x =
                                                              with_x ? static_cast<const T*>(g.x) + base : nullptr;
  T* const dx = static_cast<T*>(g.dx) + base;
  const int width = (map.c + 7) / 8;
  const uint8_t* const mask = g.mask ? g.mask + part.n * map.s * width + columns.channel / 8 : nullptr;
  Raw<T> raw[kLoads], raw_x[kLoads];
  uint32_t bits[kLoads];
  int position = part.begin + columns.step;
  const auto fetch = [&] {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      if (const int s = position + u * columns.steps; s < part.stop) {
        const int64_t row = (int64_t)s * map.c;
        raw[u] = load<mode, Use::last>(dr + row, columns.channel, map.c);
        if (with_x) raw_x[u] = load<mode, Use::last>(x + row, columns.channel, map.c);
        bits[u] = mask ? mask[(int64_t)s * width] : 0xff;
      }
  };
  if (columns.exists) fetch();
  const int64_t first = g.per_channel.by ? 0 : part.n * map.c;
  constexpr int kValues = with_x ? 4 : 2;
  float k[kValues][8];  // k1, k3, k2, mean
  coefficients_of_lane<kValues>(columns, g.cut.lanes, map.c, reinterpret_cast<float*>(shared), k,
                                [&](int c, float (&of)[kValues]) {
                                  const Slopes found = slopes<with_x>(g, first + c);
                                  of[0] = found.k1, of[1] = found.k3;
                                  if constexpr (with_x) of[2] = found.k2, of[3] = found.mean;
                                });
  if (!columns.exists) return;
  while (position < part.stop) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int s = position + u * columns.steps;
      if (s >= part.stop) continue;
      float d[8], v[8];
      unpack(raw[u], d);
      keep_bits(bits[u], d);
      if (with_x) unpack(raw_x[u], v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        d[j] = k[0][j] * d[j] + k[1][j];
        if constexpr (with_x) d[j] += k[2][j] * (v[j] - k[3][j]);
      }
      store<mode, Use::keep>(dx + (int64_t)s * map.c, columns.channel, map.c, d);
    }
    position += kLoads * columns.steps;
    fetch();
  }
}

template <class T, Mode mode, bool with_x>
SE_KERNEL(kThreads, blocks_of_scale_shift_act_backward(mode))
scale_shift_act_backward_kernel(SE_CONSTANT ScaleShiftActBackward g) {
  dependency_wait();
  if constexpr (mode <= Mode::rows_single)
    backward_rows<T, mode, with_x>(g);
  else
    backward_columns<T, mode, with_x>(g);
}

template <class T, Mode mode>
int64_t blocks_of(const Map& map, const Cut& cut, int vectors) {
  if (map.by_rows()) return ceil_div(vectors_of_map(map), vectors);
  return map.n * ceil_div(map.s, cut.span) * ceil_div(map.c, 8 * cut.lanes);
}

// Shared memory: the mask's bits in rows_unaligned, coefficients in the cols modes.
template <class T, Mode mode>
constexpr size_t shared_of_scale_shift_act(int lanes, bool mask) {
  if (mode <= Mode::rows_single) return mode == Mode::rows_unaligned && mask ? vectors_with_mask<T, mode>() + 1 : 0;
  return floats_of_coefficients<2>(lanes) * sizeof(float);
}
constexpr size_t shared_of_backward(Mode mode, int lanes, bool with_x) {
  if (mode <= Mode::rows_single) return 0;
  return (with_x ? floats_of_coefficients<4>(lanes) : floats_of_coefficients<2>(lanes)) * sizeof(float);
}
Error launch(const ScaleShiftAct& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    constexpr Mode m = mode.value;
    return start(scale_shift_act_kernel<T, m>,
                 {"scale_shift_act", blocks_of<T, m>(g.map, g.cut, vectors_with_mask<T, m>()), kThreads,
                  shared_of_scale_shift_act<T, m>(g.cut.lanes, g.mask)},
                 stream, g);
  });
}

Error launch(const ScaleShiftActBackward& g, Stream stream) {
  return by_type_and_mode(g.map, [&](auto type, auto mode) {
    using T = typename decltype(type)::type;
    constexpr Mode m = mode.value;
    const auto kernel =
        g.x ? scale_shift_act_backward_kernel<T, m, true> : scale_shift_act_backward_kernel<T, m, false>;
    return start(kernel,
                 {"scale_shift_act_backward", blocks_of<T, m>(g.map, g.cut, vectors_read<T, m, 2>()), kThreads,
                  shared_of_backward(m, g.cut.lanes, g.x)},
                 stream, g);
  });
}

void list_scale_shift_act(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    by_type_and_mode(map, [&](auto type, auto mode) {
      using T = typename decltype(type)::type;
      constexpr Mode m = mode.value;
      add(to, "scale_shift_act " + name, scale_shift_act_kernel<T, m>,
          (int)shared_of_scale_shift_act<T, m>(kMostLanes, true));
      add(to, "scale_shift_act_backward " + name, scale_shift_act_backward_kernel<T, m, false>,
          (int)shared_of_backward(m, kMostLanes, false));
      add(to, "scale_shift_act_backward " + name + " x", scale_shift_act_backward_kernel<T, m, true>,
          (int)shared_of_backward(m, kMostLanes, true));
    });
  });
}

}  // namespace se_fused::cuda
