// Inference of the block in three passes over memory, for devices without clusters and samples that cluster_fused.cu
// cannot hold. Samples are processed in groups, so that pass 2 of a group follows soon after its pass 1 and finds x in
// L2. Blocks are persistent and take tickets (tiles.cuh). The tickets of round k are, in this order,
//
//     hidden(k - 1)   pass 1 (k)   excite(k - 1)   pass 2 (k - 2)
//
// so that a whole pass lies between a tile and the tiles it waits for. Two more groups are read between the two passes
// of a group, so three groups of x must fit in L2, beside the residual and y, which are evicted first. plan.cpp chooses
// the group's size.
#include <type_traits>

#include "excitation.cuh"
#include "launch.cuh"
#include "moments.cuh"
#include "scale_shift_act.cuh"

namespace se_fused::cuda {

constexpr int kColumnsShared = 8 * kThreads;  // floats that column_moments needs without squares
constexpr int kSharedL2Grouped = kColumnsShared > kExciteShared ? kColumnsShared : kExciteShared;

struct Rounds {
  int groups, blocks, passes, r, c, hidden, excite, round, all;

  SE_BOTH explicit Rounds(const L2Grouped& g) {
    const Map& map = g.op.map;
    groups = (int)ceil_div(map.n, g.group);
    blocks = map.by_rows() ? 1 : (int)ceil_div(map.c, 8 * g.lanes);
    passes = g.group * blocks * g.splits;
    r = (int)ceil_div(g.op.fc.r, kHiddenR);
    c = (int)ceil_div(map.c, kExciteC);
    hidden = r * (int)ceil_div(g.group, kHiddenN);
    excite = c * (int)ceil_div(g.group, kExciteN);
    round = hidden + excite + 2 * passes;
    all = (groups + 2) * round;
  }
};

// A tile of a pass: its sample, and its rows (rows modes) or its channels and positions (cols modes).
struct PassTile {
  int64_t n;
  int block, split, begin, stop;

  SE_DEVICE PassTile(const L2Grouped& g, const Rounds& rounds, int turn, int tile) {
    const int rest = tile / rounds.blocks;
    block = tile % rounds.blocks;
    split = rest % g.splits;
    n = (int64_t)turn * g.group + rest / g.splits;
    begin = split * g.tile;
    stop = min(begin + g.tile, g.op.map.by_rows() ? g.op.map.c : g.op.map.s);
  }
};

// z of 8 lanes channels of a sample, from the means of its splits. A thread has four channels of every groups-th split,
// so that all threads load, eight vectors at a time; then the groups' sums are added up.
SE_DEVICE void merge_means(const L2Grouped& g, int64_t row, int first_c, float* shared) {
  const Map& map = g.op.map;
  const int vectors = 2 * g.lanes, groups = kThreads / vectors, thread = thread_here(), group = thread / vectors;
  const int c = first_c + 4 * (thread % vectors);
  const SplitWeights weights(g.splits, g.tile, map.s);
  float sum[4] = {};
  for (int first = group; first < g.splits; first += 8 * groups) {
    float means[8][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = first + i * groups;
      load_four<Rows::whole>(g.mean_parts + min(k, g.splits - 1) * map.n * map.c + row, c, map.c, means[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = first + i * groups;
      const float weight = k < g.splits - 1 ? weights.weight : weights.last_weight;
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (k < g.splits) sum[j] += means[i][j] * weight;
    }
  }
  float4* const sums = reinterpret_cast<float4*>(shared);
  sums[thread] = {sum[0], sum[1], sum[2], sum[3]};
  __syncthreads();
  for (int i = thread; i < 4 * vectors && first_c + i < map.c; i += kThreads) {
    float mean = 0.f;
    for (int from = 0; from < groups; ++from) mean += shared[4 * from * vectors + i];
    g.z[row + first_c + i] = channel_norm(g.op.norm, first_c + i)(mean);
  }
}

template <class T, Mode mode>
SE_DEVICE void sums_tile(const L2Grouped& g, const PassTile& tile, const Rounds& rounds, float* shared, int* slot) {
  const Map& map = g.op.map;
  const T* const x = static_cast<const T*>(g.op.x) + tile.n * map.c * map.s;
  if constexpr (mode <= Mode::rows_single) {
    const int shift = exponent_of(g.lanes), groups = kThreads >> shift;
    for (int c = tile.begin; c < tile.stop; c += groups) {
      const int own = c + ((int)threadIdx.x >> shift);
      const bool mine = own < tile.stop;
      const ScaleShift found =
          row_moments<mode, Use::keep, false>(x, mine ? own : 0, 0, map.s, 0, mine ? map.s : 0, g.lanes);
      if (mine && (threadIdx.x & (g.lanes - 1)) == 0)
        g.z[tile.n * map.c + own] = channel_norm(g.op.norm, own)(found.scale);
    }
  } else {
    const Columns at(g.lanes, tile.block, map.c);
    const int64_t stride = map.n * map.c, row = tile.n * map.c;
    column_moments<mode, Use::keep, false>(x, map.c, tile.begin, tile.stop, at, shared, [&](int c, float mean, float) {
      if (g.splits == 1)
        g.z[row + c] = channel_norm(g.op.norm, c)(mean);
      else
        g.mean_parts[tile.split * stride + row + c] = mean;
    });
    if (g.splits == 1) return;
    // The tile of a sample that finishes last merges the means of all tiles, in a fixed order. The counter's release
    // covers the whole block as in `done`, because the barrier at the end of column_moments comes before it. Its
    // acquire makes the other tiles' means visible.
    if (threadIdx.x == 0)
      *slot = fetch_add_acquire_release(g.counters + 1 + 3 * rounds.groups + tile.n * rounds.blocks + tile.block, 1);
    __syncthreads();
    if (*slot != g.splits - 1) return;
    merge_means(g, row, at.first, shared);
  }
}

template <class T, Mode mode>
SE_DEVICE void result_tile(const L2Grouped& g, const PassTile& tile) {
  const Map& map = g.op.map;
  const int64_t row = tile.n * map.c, base = row * map.s;
  const T* const residual = static_cast<const T*>(g.op.residual);
  const Maps<T> maps{static_cast<const T*>(g.op.x) + base, residual ? residual + base : nullptr,
                     static_cast<T*>(g.op.y) + base};
  if constexpr (mode <= Mode::rows_single) {
    const int64_t per_row = ceil_div(map.s, 8);
    const int64_t first = mode == Mode::rows_unaligned ? (int64_t)tile.begin * map.s / 8 : tile.begin * per_row;
    const int64_t last = mode == Mode::rows_unaligned ? ceil_div((int64_t)tile.stop * map.s, 8) : tile.stop * per_row;
    scale_shift_act_rows<mode, Use::last>(
        maps, map.c, map.s, first, last, g.op.out_act, nullptr, nullptr,
        [&](int64_t c) { return ScaleShift{load_fresh(g.scale + row + c), load_fresh(g.shift + row + c)}; });
  } else {
    const Columns at(g.lanes, tile.block, map.c);
    float scale[8] = {}, shift[8] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (at.channel + j < map.c)
        scale[j] = load_fresh(g.scale + row + at.channel + j), shift[j] = load_fresh(g.shift + row + at.channel + j);
    scale_shift_act_columns<mode, Use::last>(maps, map.c, tile.begin, tile.stop, at, g.op.out_act, nullptr, scale,
                                             shift);
  }
}

template <class T, Mode mode, class W>
SE_DEVICE void l2_grouped(const L2Grouped& g) {
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  int* const slot = reinterpret_cast<int*>(shared + kSharedL2Grouped);
  const Rounds rounds(g);
  const Map& map = g.op.map;
  const auto counter = [&](int turn, int which) { return g.counters + 1 + 3 * turn + which; };
  const auto by_rows = [&](const auto& f) {
    if (has_whole_rows(g.op.fc, map.c))
      f(std::integral_constant<Rows, Rows::whole>{});
    else
      f(std::integral_constant<Rows, Rows::any>{});
  };
  prefetch_weights<W>(g.op.fc, map.c);
  Tickets tickets(g.counters, slot);
  for (int ticket; (ticket = tickets.take()) < rounds.all;) {
    int turn = ticket / rounds.round, tile = ticket % rounds.round;
    if (tile < rounds.hidden) {
      if (--turn < 0 || turn >= rounds.groups) continue;
      const int64_t first = (int64_t)turn * g.group, end = min(first + g.group, map.n);
      by_rows([&](auto rows) {
        HiddenTile<W, rows.value, 2> hidden(g.op.fc, tile % rounds.r * kHiddenR, map.c);
        wait(counter(turn, 0), rounds.passes);
        hidden.run(g.z, nullptr, g.activated, first + tile / rounds.r * kHiddenN, end, shared);
      });
      done(counter(turn, 1));
    } else if ((tile -= rounds.hidden) < rounds.passes) {
      if (turn >= rounds.groups) continue;
      const PassTile at(g, rounds, turn, tile);
      if (at.n < map.n) sums_tile<T, mode>(g, at, rounds, shared, slot);
      done(counter(turn, 0));
    } else if ((tile -= rounds.passes) < rounds.excite) {
      if (--turn < 0 || turn >= rounds.groups) continue;
      const int64_t first = (int64_t)turn * g.group, end = min(first + g.group, map.n);
      by_rows([&](auto rows) {
        ExciteTile<W, rows.value> excite(g.op.fc, tile % rounds.c * kExciteC, map.c);
        wait(counter(turn, 1), rounds.hidden);
        excite.run({g.activated, g.op.norm, g.op.drop, nullptr, g.scale, g.shift}, first + tile / rounds.c * kExciteN,
                   end, shared);
      });
      done(counter(turn, 2));
    } else {
      if ((turn -= 2) < 0) continue;
      const PassTile at(g, rounds, turn, tile - rounds.excite);
      if (at.n >= map.n) continue;
      wait(counter(turn, 2), rounds.excite);
      result_tile<T, mode>(g, at);
    }
  }
}

// Resident blocks per multiprocessor for __launch_bounds__, which limits the registers: two where nothing spills then.
// 256 threads with 64 bytes in flight each are 16 KB per block. An A100 needs 10 KB in flight per multiprocessor
// (1.55 TB/s, 0.7 us latency), an H200 23 KB.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int kBlocksL2Grouped = 1;
#else
constexpr int kBlocksL2Grouped = 2;
#endif

// The weights have x's dtype or are float32. Other combinations take separate launches (plan.cpp).
template <class T, Mode mode, class W>
SE_KERNEL(kThreads, sizeof(W) == 4 ? 1 : kBlocksL2Grouped)
l2_grouped_kernel(SE_CONSTANT L2Grouped g) {
  l2_grouped<T, mode, W>(g);
}

template <class F>
auto by_kernel(const L2Grouped& g, const F& f) {
  return by_type(g.op.map.type, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with = [&](auto weight) {
      using W = typename decltype(weight)::type;
      switch (g.op.map.mode) {
        case Mode::rows: return f(l2_grouped_kernel<T, Mode::rows, W>);
        case Mode::rows_unaligned: return f(l2_grouped_kernel<T, Mode::rows_unaligned, W>);
        default: return f(l2_grouped_kernel<T, Mode::cols, W>);
      }
    };
    return g.op.fc.type == Type::float32 ? with(TypeTag<float>{}) : with(type);
  });
}

constexpr size_t kSharedBytes = kSharedL2Grouped * sizeof(float) + sizeof(int);

Error launch(const L2Grouped& g, int blocks, Stream stream) {
  const int most = Rounds(g).all;
  const Launch how{"l2_grouped", blocks < most ? blocks : most, kThreads, kSharedBytes, 1, true};
  return by_kernel(g, [&](auto kernel) { return start(kernel, how, stream, g); });
}

void list_l2_grouped(Instances& to) {
  each_map([&](const Map& map, const std::string& name) {
    if (is_single(map.mode)) return;
    L2Grouped g{};
    g.op.map = map;
    const auto add_with = [&](Type weights) {
      g.op.fc.type = weights;
      by_kernel(g, [&](auto kernel) {
        add(to, "l2_grouped " + name + ", weights " + name_of(weights), kernel, (int)kSharedBytes);
      });
    };
    add_with(Type::float32);
    if (map.type != Type::float32) add_with(map.type);
  });
}

}  // namespace se_fused::cuda
