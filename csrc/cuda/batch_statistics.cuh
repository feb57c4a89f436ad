// The end of pass 1 for batch norm without excitation: what needs sums over all samples, computed by the blocks of
// pass 1 that finish last, so that no launch lies between the passes.
//
// A block of pass 1 writes the sums of one sample, one split and `width` channels, and counts them. The block that
// counts the last sums of a group of samples merges the group's, and the block that does so for the last group merges
// the groups'. plan.cpp chooses groups so that neither reads much. Sums are always taken in the order of samples and
// splits, so the result does not depend on which block is last.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

constexpr size_t kSharedOfLast = (kThreads + 1) * sizeof(float);

// Counts what the block has written, and returns whether all blocks have now counted. If so, the block can read what
// they wrote with load_fresh. The release covers the whole block's stores, as in `done`. which(all) returns the counter
// and sets how many blocks count there; one thread calls it, so that the other warps take no time for it. slot: one int
// of shared memory.
template <class Which>
SE_DEVICE bool is_last(int* slot, const Which& which) {
  __syncthreads();
  if (reread_thread() == 0) {
    int all;
    int* const counter = which(all);
    *slot = fetch_add_acquire_release(counter, 1) - (all - 1);
  }
  __syncthreads();
  return *slot == 0;
}

// Sums to merge: of `samples` samples with `splits` splits each, one after the other. At the second level the groups
// are the splits of one sample.
struct SumList {
  int samples, splits;
  float positions, last_positions;  // of a split, and of the last one of each sample
};

// The sum over a list of weight (v - centre), or of weight (v - centre)^2 with `squared`, for the channel threadIdx.x %
// width of those that `sums` points to; all threads of a channel get it, and its order is fixed. The weights are the
// splits' positions.
//
// A thread has sums of one split if there are enough rows of threads, and else of all splits in turn, so that no
// division tells which split a sum is of. It loads eight sums before it uses the first: 8 KB in flight for the block. A
// warp reads 128 bytes at a time, or whole sectors of 32 if the block has few channels. The function is not inlined,
// because pass 1's loops need the registers.
SE_DEVICE_CALL float merge(const float* sums, int stride, int width, bool exists, SumList list, float centre,
                           bool squared, float* shared) {
  constexpr int kAhead = 8;
  const int thread = (int)threadIdx.x, shift = exponent_of(width), row = thread >> shift, rows = kThreads >> shift;
  const int splits = list.splits;
  const int turn = rows < splits ? rows : 0, used = turn ? rows : rows - rows % splits;
  const int count = exists && row < used ? list.samples * splits : 0;
  const int64_t step = (int64_t)used * stride;
  const float* p = sums + (int64_t)row * stride;
  float total = 0.f;
  int k = row % splits;
#pragma unroll 1
  for (int i = row; i < count; i += kAhead * used, p += kAhead * step) {
    float v[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (i + u * used < count) v[u] = load_fresh(p + u * step);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (i + u * used < count) {
        const float away = v[u] - centre;
        total += (k == splits - 1 ? list.last_positions : list.positions) * (squared ? away * away : away);
      }
      k += turn;
      if (k >= splits) k -= splits;
    }
  }
  for (int offset = width; offset < kWarp; offset *= 2) total += __shfl_xor_sync(kAll, total, offset);
  const int together = max(width, kWarp), own = thread & (width - 1);
  __syncthreads();
  if (thread % together < width) shared[thread / together * width + own] = total;
  __syncthreads();
  total = 0.f;
#pragma unroll 1
  for (int i = own; i < kThreads / together * width; i += width) total += shared[i];
  return total;
}

// The block of channels and the group of samples of a block of pass 1. Its number is read again, so that nothing is
// kept for this during pass 1's loops.
struct LastBlock {
  int channels, group, samples;  // samples: of the group

  SE_DEVICE explicit LastBlock(const LastBlocks& last) {
    const uint32_t index = (uint32_t)reread_block();
    uint32_t rest;
    divide(index, last.blocks, rest);
    channels = (int)rest;
    group = (int)divide(index, last.blocks_of_group, rest);
    samples = group == last.groups - 1 ? last.rest : last.group;
  }
};

// A thread of a block that merges.
struct Merging {
  const LastBlocks& last;
  int thread, channel, stride;
  bool exists;
  float* shared;

  SE_DEVICE Merging(const LastBlocks& last, const LastBlock& own, int channels, float* shared)
      : last(last),
        thread(reread_thread()),
        channel(own.channels * last.width + (thread & (last.width - 1))),
        stride(channels),
        exists(channel < channels),
        shared(shared) {}
  // One thread of each channel writes what is found.
  SE_DEVICE bool writes() const { return exists && thread < last.width; }
  SE_DEVICE float weighted(const SumList& list, const float* sums, float centre, bool squared) const {
    return merge(sums, stride, last.width, exists, list, centre, squared, shared);
  }
  SE_DEVICE float plain(const SumList& list, const float* sums) const {
    return merge(sums, stride, last.width, exists, {list.samples, list.splits, 1.f, 1.f}, 0.f, false, shared);
  }
};

// found(at, list, first, second, sample, a, b) sets a and b to what the sums of a list amount to, for the thread's
// channel; all threads of a block call it. first and second: the list's sums. sample: its first one, or -1 if it has
// groups. write(channel, a, b) is called by one thread of each channel, in the block that has the result for all
// samples.
template <class Found, class Write>
SE_DEVICE void over_samples(const LastBlocks& last, const Map& map, const Cut& cut, const float* first,
                            const float* second, float* shared, const Found& found, const Write& write) {
  int* const slot = reinterpret_cast<int*>(shared + kThreads);
  const auto counter = [&](const LastBlock& own) { return last.counters + (int64_t)own.channels * (last.groups + 1); };
  if (!is_last(slot, [&](int& all) {
        const LastBlock own(last);
        all = own.samples * cut.splits;
        return counter(own) + own.group;
      }))
    return;
  const LastBlock own(last);
  const Merging at(last, own, map.c, shared);
  const int64_t sample = (int64_t)own.group * last.group, offset = sample * cut.splits * map.c + at.channel;
  float a, b;
  found(at, SumList{own.samples, cut.splits, (float)cut.span, (float)(map.s - (cut.splits - 1) * cut.span)},
        first + offset, second + offset, sample, a, b);
  if (last.groups > 1) {
    float* const sums = last.sums + at.channel;
    const int64_t mine = (int64_t)own.group * map.c, all = (int64_t)last.groups * map.c;
    if (at.writes()) sums[mine] = a, sums[all + mine] = b;
    if (!is_last(slot, [&](int& all) {
          all = last.groups;
          return counter(own) + last.groups;
        }))
      return;
    found(at, SumList{1, last.groups, (float)last.group * (float)map.s, (float)last.rest * (float)map.s}, sums,
          sums + all, int64_t{-1}, a, b);
  }
  if (at.writes()) write(at.channel, a, b);
}

// Keeps a channel's batch mean and biased variance, and updates the running statistics.
SE_DEVICE void keep(const BatchStatistics& to, int c, int channels, float mean, float var) {
  if (to.stats) to.stats[c] = mean, to.stats[channels + c] = var;
  if (to.moved_mean.data) {
    move(to.moved_mean, c, mean, to.momentum);
    move(to.moved_var, c, var * to.unbias, to.momentum);
  }
}

// Batch statistics from the means and m2 of all samples, and from them pass 2's scale and shift.
SE_DEVICE void finish(const Moments& g, float* shared) {
  const Map& map = g.map;
  const auto found = [&](const Merging& at, const SumList& list, const float* means, const float* m2s, int64_t sample,
                         float& mean, float& m2) {
    // Differences from the first mean, so that the rounding error scales with the means' spread.
    const float shift = at.exists ? finite_or_zero(load_fresh(means)) : 0.f;
    const float all = (list.positions * (float)(list.splits - 1) + list.last_positions) * (float)list.samples;
    mean = shift + at.weighted(list, means, shift, false) / all;
    m2 = at.plain(list, m2s) + at.weighted(list, means, mean, true);
    if (!g.sample_mean || sample < 0 || !at.exists) return;
    for (int i = at.thread / g.last.width; i < list.samples; i += kThreads / g.last.width) {
      const float* own = means + (int64_t)i * list.splits * map.c;
      float away = 0.f;
#pragma unroll 1
      for (int k = 0; k < list.splits; ++k, own += map.c)
        away += (k == list.splits - 1 ? list.last_positions : list.positions) * (load_fresh(own) - shift);
      g.sample_mean[(sample + i) * map.c + at.channel] = shift + away / (float)map.s;
    }
  };
  over_samples(g.last, map, g.cut, g.mean, g.m2, shared, found, [&](int c, float mean, float m2) {
    // Two divisions, because float32 may not represent the product of the counts exactly.
    const float var = m2 / (float)map.s / (float)map.n;
    keep(g.statistics, c, map.c, mean, var);
    const ChannelNorm u = channel_norm(g.norm, c, mean, var);
    g.scale[c] = u.a;
    g.shift[c] = u.b();
  });
}

// The gradients of batch norm's weight and bias from P and Q of all samples, and from them the coefficients of dx =
// k1 dr + k2 (x - mean) + k3. Q is around the channel's mean, so that dbeta = sum_n P and dgamma = rstd sum_n Q.
SE_DEVICE void finish(const MomentsBackward& g, float* shared) {
  const Map& map = g.map;
  const auto found = [&](const Merging& at, const SumList& list, const float* ps, const float* qs, int64_t, float& p,
                         float& q) {
    p = at.plain(list, ps);
    q = at.plain(list, qs);
  };
  over_samples(g.last, map, g.cut, g.p, g.q, shared, found, [&](int c, float p, float q) {
    const ChannelNorm u = channel_norm(g.norm, c);
    const float dgamma = u.rstd * q;
    put(g.dbn_weight, c, dgamma);
    put(g.dbn_bias, c, p);
    g.k1[c] = u.a;
    g.k3[c] = 0.f;
    if (!g.k2) return;  // given statistics do not depend on x
    // Divided by S and by N in two steps, because float32 may not represent N S exactly.
    g.k2[c] = -u.a * u.rstd * dgamma / (float)map.s / (float)map.n;
    g.k3[c] = -u.a * (p / (float)map.s / (float)map.n);
  });
}

}  // namespace se_fused::cuda
