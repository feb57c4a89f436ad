// Excitation, between the passes: from (splits, N, C) sums to scale and shift (N, C), in one launch of three phases.
//
// 1. statistics: one tile per 32 channels, over all samples. Merges the splits (Chan), computes the batch statistics,
//    updates the running ones, and computes z = a (m - mu) + beta, because a m + b would cancel if the mean is large
//    compared with the deviation. Without squeeze-excite it also writes scale and shift. Skipped if nothing is to do.
// 2. hidden: W1 z + b1.
// 3. excite: s, scale, shift.
//
// Each phase needs all results of the one before it; tickets order them (tiles.cuh). se_fused/ops/excitation.py has the
// definition.
#include "excitation.cuh"

#include "batch_statistics.cuh"
#include "launch.cuh"

namespace se_fused::cuda {

constexpr int kStatisticsC = 32;

// mean and m2 of one (n, c), merged from its splits.
SE_DEVICE ScaleShift merged(const Excitation& g, const SplitWeights& weights, int64_t at, bool with_m2) {
  const int64_t stride = g.n * g.c, last = (g.splits - 1) * stride + at;
  float mean = g.mean_parts[at], m2 = 0.f;
  if (g.splits > 1) {
    // Sums of differences from the first split's mean, so that the rounding error scales with their spread. If it is
    // not finite, the shift is 0, so that an infinite mean stays infinite.
    const float shift = finite_or_zero(mean), of_last = g.mean_parts[last];
    mean = shift;
#pragma unroll 8
    for (int k = 0; k < g.splits - 1; ++k) mean += (g.mean_parts[k * stride + at] - shift) * weights.weight;
    mean += (of_last - shift) * weights.last_weight;
  }
  if (with_m2) {
    const auto add = [&](float split_m2, float split_mean, float count) {
      const float away = g.splits > 1 ? split_mean - mean : 0.f;
      m2 += split_m2 + count * away * away;
    };
    const float of_last = g.m2_parts[last];
#pragma unroll 8
    for (int k = 0; k < g.splits - 1; ++k)
      add(g.m2_parts[k * stride + at], g.mean_parts[k * stride + at], weights.count);
    add(of_last, g.mean_parts[last], weights.last_count);
  }
  return {mean, m2};
}

// Sum over the block's eight warps for each lane, in the order of the warps.
SE_DEVICE float sum_warps(float v, float* shared) {
  __syncthreads();
  shared[threadIdx.x] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * kWarp + threadIdx.x % kWarp];
  return sum;
}

static SE_DEVICE void statistics_tile(const Excitation& g, int tile, float* shared) {
  const int c = tile * kStatisticsC + (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp;
  const bool exists = c < g.c, batch = g.m2_parts != nullptr;
  ChannelNorm u = channel_norm(g.norm, exists ? c : 0);
  if (batch || g.splits > 1) {
    const SplitWeights weights(g.splits, g.span, g.s);
    float spread = 0.f, within = 0.f;
    // Means are summed as differences from the first sample's, so that the rounding error scales with their spread.
    const float shift = finite_or_zero(exists ? g.mean_parts[c] : 0.f);
    if (exists)
      for (int64_t n = warp; n < g.n; n += kWarps) {
        const ScaleShift found = merged(g, weights, n * g.c + c, batch);
        if (g.splits > 1) g.mean[n * g.c + c] = found.scale;
        spread += found.scale - shift;
        within += found.shift;
      }
    if (batch) {
      const float samples = (float)g.n, mu = shift + sum_warps(spread, shared) / samples;
      within = sum_warps(within, shared);
      float between = 0.f;
      if (exists)
        for (int64_t n = warp; n < g.n; n += kWarps) {
          const float away = g.mean[n * g.c + c] - mu;
          between += away * away;
        }
      // Two divisions, because float32 may not represent the product of the counts exactly.
      const float var = (within / (float)g.s + sum_warps(between, shared)) / samples;
      if (exists && warp == 0) keep(g, c, g.c, mu, var);
      if (exists) u = channel_norm(g.norm, c, mu, var);
    }
  }
  if (exists && !batch && g.stats && g.norm.mean.data && warp == 0) {
    g.stats[c] = get(g.norm.mean, c);
    g.stats[g.c + c] = get(g.norm.var, c);
  }
  if (!exists) return;
  for (int64_t n = warp; n < g.n; n += kWarps) {
    const int64_t at = n * g.c + c;
    if (g.fc.fc1_weight) {
      if (g.z != g.mean) g.z[at] = u(g.mean[at]);
    } else {
      const float d = get_or(g.drop, n, 1.f);
      g.scale[at] = d * u.a;
      g.shift[at] = d * u.b();
    }
  }
}

struct ForwardTiles {
  int statistics, r, hidden, c, all;

  SE_BOTH explicit ForwardTiles(const Excitation& g) {
    const bool has_excitation = g.fc.fc1_weight != nullptr;
    const bool needed = g.m2_parts || g.splits > 1 || g.norm.mean.data || !has_excitation;
    statistics = needed ? (int)ceil_div(g.c, kStatisticsC) : 0;
    r = has_excitation ? (int)ceil_div(g.fc.r, kHiddenR) : 0;
    c = has_excitation ? (int)ceil_div(g.c, kExciteC) : 0;
    hidden = r * (int)ceil_div(g.n, kHiddenN);
    all = statistics + hidden + c * (int)ceil_div(g.n, kExciteN);
  }
};

template <class W>
SE_KERNEL(kThreads, 1)
excitation_kernel(SE_CONSTANT Excitation g) {
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  int* const slot = reinterpret_cast<int*>(shared + kExciteShared);
  const ForwardTiles tiles(g);
  Norm norm = g.norm;
  if (g.m2_parts) norm.mean = {g.stats, Type::float32}, norm.var = {g.stats + g.c, Type::float32};
  for (int ticket; (ticket = take(g.counters, slot)) < tiles.all;) {
    if (ticket < tiles.statistics) {
      statistics_tile(g, ticket, shared);
      done(g.counters + 1);
    } else if (ticket < tiles.statistics + tiles.hidden) {
      const int tile = ticket - tiles.statistics;
      wait(g.counters + 1, tiles.statistics);
      hidden_tile<W, 2>(g.fc, g.z, g.hidden, (int64_t)(tile / tiles.r) * kHiddenN, g.n, tile % tiles.r * kHiddenR, g.c);
      done(g.counters + 2);
    } else {
      const int tile = ticket - tiles.statistics - tiles.hidden;
      wait(g.counters + 2, tiles.hidden);
      excite_tile<W, 4>(g.fc, {g.hidden, norm, g.drop, g.factor, g.scale, g.shift},
                        (int64_t)(tile / tiles.c) * kExciteN, g.n, tile % tiles.c * kExciteC, g.c, shared);
    }
  }
}

constexpr size_t kSharedBytes = kExciteShared * sizeof(float) + sizeof(int);

Error launch(const Excitation& g, int blocks, Stream stream) {
  return by_type(g.fc.type, [&](auto type) {
    const int most = ForwardTiles(g).all;
    return start(excitation_kernel<typename decltype(type)::type>,
                 {"excitation", blocks < most ? blocks : most, kThreads, kSharedBytes, 1, true}, stream, g);
  });
}

void list_excitation(Instances& to) {
  for (const Type weights : kTypes)
    by_type(weights, [&](auto type) {
      add(to, "excitation " + name_of(weights), excitation_kernel<typename decltype(type)::type>, (int)kSharedBytes);
    });
}

}  // namespace se_fused::cuda
