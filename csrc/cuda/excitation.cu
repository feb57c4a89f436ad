// Excitation, between the passes: from (splits, N, C) sums to scale and shift (N, C), in one launch of three phases.
//
// 1. statistics: one tile per 8 channels, over all samples. Merges the splits (Chan), computes the batch statistics,
//    updates the running ones, and computes z = a (m - mu) + beta, because a m + b would cancel if the mean is large
//    compared with the deviation. Without squeeze-excite it also writes scale and shift. Skipped if nothing is to do.
// 2. hidden: W1 z + b1 and its activation.
// 3. excite: s, scale, shift.
//
// Each phase needs all results of the one before it; tickets order them (tiles.cuh). se_fused/ops/excitation.py has the
// definition.
#include <algorithm>

#include "excitation.cuh"
#include "launch.cuh"

namespace se_fused::cuda {

// Two threads for each of 128 samples, with four channels each. 8 channels are 32 bytes, the smallest access to memory:
// narrow tiles over all samples occupy many multiprocessors, and no tile has to wait for sums of another one.
constexpr int kStatisticsC = 8, kStatisticsN = kThreads / 2;
constexpr int kStatisticsShared = 2 * kWarps * (8 + 4);  // floats
static_assert(kExciteShared >= kStatisticsShared);

// mean and m2 of four neighbouring (n, c), merged from their splits. `row` is the offset of the sample.
template <Rows rows>
SE_DEVICE void merge_splits(const Excitation& g, const SplitWeights& weights, int64_t row, int c, float (&mean)[4],
                            float (&m2)[4]) {
  constexpr int kHeld = 4;  // splits that are loaded together and stay in registers
  const bool with_m2 = g.m2_parts != nullptr;
  const int64_t stride = g.n * g.c;
  float means[kHeld][4] = {}, m2s[kHeld][4] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (k < g.splits) {
      load_four<rows>(g.mean_parts + k * stride + row, c, g.c, means[k]);
      if (with_m2) load_four<rows>(g.m2_parts + k * stride + row, c, g.c, m2s[k]);
    }
  float shift[4], sum[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) mean[j] = means[0][j], m2[j] = m2s[0][j];
  if (g.splits == 1) return;
  // Sums of differences from the first split's mean, so that the rounding error scales with their spread. If it is not
  // finite, the shift is 0, so that an infinite mean stays infinite.
#pragma unroll
  for (int j = 0; j < 4; ++j) shift[j] = finite_or_zero(mean[j]);
  const auto add_mean = [&](int k, const float (&of)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      sum[j] += (of[j] - shift[j]) * (k < g.splits - 1 ? weights.weight : weights.last_weight);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (k < g.splits) add_mean(k, means[k]);
#pragma unroll 4
  for (int k = kHeld; k < g.splits; ++k) {
    float more[4];
    load_four<rows>(g.mean_parts + k * stride + row, c, g.c, more);
    add_mean(k, more);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) mean[j] = shift[j] + sum[j], m2[j] = 0.f;
  if (!with_m2) return;
  const auto add_m2 = [&](int k, const float (&of)[4], const float (&of_mean)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float away = of_mean[j] - mean[j];
      m2[j] += of[j] + (k < g.splits - 1 ? weights.count : weights.last_count) * away * away;
    }
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (k < g.splits) add_m2(k, m2s[k], means[k]);
#pragma unroll 4
  for (int k = kHeld; k < g.splits; ++k) {
    float more[4], more_mean[4];
    load_four<rows>(g.m2_parts + k * stride + row, c, g.c, more);
    load_four<rows>(g.mean_parts + k * stride + row, c, g.c, more_mean);
    add_m2(k, more, more_mean);
  }
}

// Signals `counter` when all but the running statistics is written, which nobody waits for.
template <Rows rows>
SE_DEVICE void statistics_tile(const Excitation& g, int tile, float* shared, int* counter) {
  const int c = tile * kStatisticsC + 4 * ((int)threadIdx.x % 2), slot = (int)threadIdx.x / 2;
  const bool batch = g.m2_parts != nullptr;
  const auto channel = [&](int j) { return min(c + j, g.c - 1); };
  const Elements<4> weight(g.norm.weight, channel), bias(g.norm.bias, channel);
  const Elements<4> saved_mean(g.norm.mean, channel), saved_var(g.norm.var, channel);
  const bool exists = c < g.c;
  const SplitWeights weights(g.splits, g.span, g.s);
  // Reciprocals of the counts, because twelve divisions would lie between the last load and the first store. They are
  // two, because float32 may not represent the product of the counts exactly.
  const float per_sample = 1.f / (float)g.n, per_position = 1.f / (float)g.s;
  // Means are summed as differences from the first sample's, so that the rounding error scales with their spread.
  float first[4], own[4] = {}, own_m2[4], mu[4], var[4];
  load_four<rows>(g.mean_parts, c, g.c, first);
  // A thread's first sample stays in registers; more than 128 samples are read again.
  float sums[8] = {};  // of means and of m2
  for (int64_t n = slot; exists && n < g.n; n += kStatisticsN) {
    float mean[4];
    merge_splits<rows>(g, weights, n * g.c, c, mean, own_m2);
    if (g.splits > 1) store_four<rows>(g.mean + n * g.c, c, g.c, mean);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (n == slot) own[j] = mean[j];
      sums[j] += mean[j] - finite_or_zero(first[j]);
      sums[4 + j] += own_m2[j];
    }
  }
  const auto each_sample = [&](const auto& f) {
    if (!exists || slot >= g.n) return;
    f((int64_t)slot, own);
#pragma unroll 2
    for (int64_t n = slot + kStatisticsN; n < g.n; n += kStatisticsN) {
      float mean[4];
      load_four<rows>(g.mean + n * g.c, c, g.c, mean);
      f(n, mean);
    }
  };
  if (batch) {
    float between[4] = {};
    sum_samples(sums, shared);
#pragma unroll
    for (int j = 0; j < 4; ++j) mu[j] = finite_or_zero(first[j]) + sums[j] * per_sample;
    each_sample([&](int64_t, const float (&mean)[4]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) between[j] += (mean[j] - mu[j]) * (mean[j] - mu[j]);
    });
    sum_samples(between, shared + 2 * kWarps * 8);
#pragma unroll
    for (int j = 0; j < 4; ++j) var[j] = (sums[4 + j] * per_position + between[j]) * per_sample;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      mu[j] = saved_mean.value(g.norm.mean, 0.f, j);
      var[j] = saved_var.value(g.norm.var, 1.f, j);
    }
  }
  const bool norm = batch || g.norm.mean.data;
  if (g.stats && norm && slot == 0) {
    store_four<rows>(g.stats, c, g.c, mu);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (c + j < g.c) g.stats[g.c + c + j] = var[j];
  }
  ChannelNorm u[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    u[j] =
        norm ? channel_norm(g.norm, mu[j], var[j], weight.value(g.norm.weight, 1.f, j), bias.value(g.norm.bias, 0.f, j))
             : ChannelNorm{0.f, 1.f, 1.f, 0.f};
  each_sample([&](int64_t n, const float (&mean)[4]) {
    float values[4];
    if (g.fc.fc1_weight) {
      if (g.z == g.mean) return;
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = u[j](mean[j]);
      store_four<rows>(g.z + n * g.c, c, g.c, values);
    } else {
      const float d = get_or(g.drop, n, 1.f);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = d * u[j].a;
      store_four<rows>(g.scale + n * g.c, c, g.c, values);
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = d * u[j].b();
      store_four<rows>(g.shift + n * g.c, c, g.c, values);
    }
  });
  done(counter);
  const int moved = kStatisticsN - 1 - slot;  // four threads per four channels update one statistic each
  if (!batch || !g.moved_mean.data || moved >= 4 || c + moved >= g.c) return;
#pragma unroll
  for (int j = 1; j < 4; ++j)
    if (j == moved) mu[0] = mu[j], var[0] = var[j];
  move(g.moved_mean, c + moved, mu[0], g.momentum);
  move(g.moved_var, c + moved, var[0] * g.unbias, g.momentum);
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

template <class W, Rows rows>
SE_KERNEL(kThreads, rows == Rows::whole && sizeof(W) == 2 ? kBlocksExcitation : 1)
excitation_kernel(SE_CONSTANT Excitation g) {
  allow_dependents();
  prefetch_weights<W>(g.fc, g.c);
  dependency_wait();  // also before the first ticket: pass 1 zeroes the counters
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  int* const slot = reinterpret_cast<int*>(shared + kExciteShared);
  const ForwardTiles tiles(g);
  Norm norm = g.norm;
  if (g.m2_parts) norm.mean = {g.stats, Type::float32}, norm.var = {g.stats + g.c, Type::float32};
  Tickets tickets(g.counters, slot);
  for (int ticket; (ticket = tickets.take()) < tiles.all;) {
    if (ticket < tiles.statistics) {
      statistics_tile<rows>(g, ticket, shared, g.counters + 1);
    } else if (ticket < tiles.statistics + tiles.hidden) {
      const int tile = ticket - tiles.statistics;
      HiddenTile<W, rows, 4> hidden(g.fc, tile % tiles.r * kHiddenR, g.c);
      wait(g.counters + 1, tiles.statistics);
      hidden.run(g.z, g.hidden, g.activated, (int64_t)(tile / tiles.r) * kHiddenN, g.n, shared);
      done(g.counters + 2);
    } else {
      const int tile = ticket - tiles.statistics - tiles.hidden;
      ExciteTile<W, rows> excite(g.fc, tile % tiles.c * kExciteC, g.c);
      wait(g.counters + 2, tiles.hidden);
      excite.run({g.activated, norm, g.drop, g.factor, g.scale, g.shift}, (int64_t)(tile / tiles.c) * kExciteN, g.n,
                 shared);
    }
  }
}

constexpr size_t kSharedBytes = kExciteShared * sizeof(float) + sizeof(int);

Error launch(const Excitation& g, int blocks, Stream stream) {
  return by_type(g.fc.type, [&](auto type) {
    using W = typename decltype(type)::type;
    const int64_t most = ForwardTiles(g).all;
    const Launch how{"excitation", std::min<int64_t>(blocks, most), kThreads, kSharedBytes, 1, true};
    return has_whole_rows(g.fc, g.c) ? start(excitation_kernel<W, Rows::whole>, how, stream, g)
                                     : start(excitation_kernel<W, Rows::any>, how, stream, g);
  });
}

void list_excitation(Instances& to) {
  for (const Type weights : kTypes)
    by_type(weights, [&](auto type) {
      using W = typename decltype(type)::type;
      add(to, "excitation " + name_of(weights), excitation_kernel<W, Rows::whole>, (int)kSharedBytes);
      add(to, "excitation " + name_of(weights) + ", any rows", excitation_kernel<W, Rows::any>, (int)kSharedBytes);
    });
}

}  // namespace se_fused::cuda
