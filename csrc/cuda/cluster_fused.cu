// Inference of the block with one read of x, one of the residual and one write of y, for sm_90 and later.
//
// A cluster holds whole samples in its blocks' shared memory, loaded by bulk copies. Channel sums, the excitation's
// partial products and its results are exchanged between blocks through distributed shared memory. A block's partition
// is contiguous in memory: in contiguous order it is channels of a sample, whose sums are complete; in channels_last it
// is positions, whose sums are partial.
//
// Weights: each block reads the columns of W1 and rows of W2 that belong to its C / blocks channels, once for all
// samples of the cluster. A cluster per sample would read 1 MB of weights for each 0.2 MB sample at C = 2048 in 16
// bits, so plan.cpp puts several samples into a cluster where that pays and they fit.
//
// Phases, with a cluster barrier between each two:
//   1. sums of the block's partition
//   2. z of the block's channels, and their part of the product W1 z
//   3. hidden as the sum of these parts, and s of the block's channels
//   4. scale and shift of the block's partition, and y
#include "cluster_layout.h"
#include "launch.cuh"
#include "moments.cuh"
#include "scale_shift_act.cuh"

namespace se_fused::cuda {

#ifdef SE_HAS_CLUSTERS
// Calls put(row, sample, sum over i < length of weights[row, i] x[sample, i]) for rows of a weight and the cluster's
// samples; x is in shared memory. The lanes of a group lie along a row, which is read once for all samples.
template <class W, class Put>
SE_DEVICE void products(const W* weights, int64_t stride, int rows, int length, bool whole, const float* x, int pitch,
                        int samples, const Put& put) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 8 < length) lanes *= 2;
  const int lane = (int)threadIdx.x % lanes, groups = (int)blockDim.x / lanes;
  for (int first = 0; first < rows; first += groups) {
    const int row = first + (int)threadIdx.x / lanes;
    float total[kSamplesOfCluster] = {};
    if (row < rows)
      for (int i = 8 * lane; i < length; i += 8 * lanes) {
        const W* const from = weights + row * stride;
        float w[8];
        unpack(whole ? load_raw<Use::keep>(from + i) : load_single(from, i, length), w);
#pragma unroll
        for (int p = 0; p < kSamplesOfCluster; ++p)
          if (p < samples) {
#pragma unroll
            for (int k = 0; k < 8; ++k)
              if (i + k < length) total[p] += w[k] * x[p * pitch + i + k];
          }
      }
#pragma unroll
    for (int p = 0; p < kSamplesOfCluster; ++p)
      if (p < samples) {
        const float sum = sum_lanes(total[p], lanes);
        if (row < rows && lane == 0) put(row, p, sum);
      }
  }
}

template <class T, Mode mode>
SE_DEVICE void cluster_fused(const ClusterFused& g) {
  SE_SHARED(memory);
  constexpr bool by_rows = mode <= Mode::rows_single;
  const ClusterLayout layout(g);
  const Map& map = g.op.map;
  const ExcitationLayers& fc = g.op.fc;
  T* const x = reinterpret_cast<T*>(memory);
  float *const coefficients = reinterpret_cast<float*>(memory + layout.coefficients), *const sums = coefficients;
  float* const work = reinterpret_cast<float*>(memory + layout.work);
  float *const z = work + layout.z, *const partial = work + layout.partial, *const active = work + layout.active,
               *const scale_shift = work + layout.scale_shift;
  BulkBarrier* const barrier = reinterpret_cast<BulkBarrier*>(memory + layout.barrier);

  const int rank = (int)cluster_rank(), own = rank / g.share, begin = rank % g.share * g.partition;
  const int64_t first = (int64_t)(blockIdx.x / g.blocks) * g.samples, n = first + own;
  const int count = n < map.n ? max(min(g.partition, (by_rows ? map.c : map.s) - begin), 0) : 0;
  const int64_t width = by_rows ? map.s : map.c, base = n * map.c * map.s + begin * width;
  const auto exists = [&](int p) { return first + p < map.n; };

  if (threadIdx.x == 0) bulk_init(barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0 && count) {
    constexpr uint32_t kCopy = 16 << 10;  // bytes per copy, so that several copies are in flight
    const uint32_t bytes = (uint32_t)(count * width * sizeof(T));
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(static_cast<const T*>(g.op.x) + base);
    bulk_expect(barrier, bytes);
    for (uint32_t at = 0; at < bytes; at += kCopy)
      bulk_copy(memory + at, from + at, bytes - at < kCopy ? bytes - at : kCopy, barrier);
  }
  if (count) bulk_wait(barrier, 0);

  if constexpr (by_rows) {
    const int groups = (int)blockDim.x / g.lanes;
    for (int i = 0; i < count; i += groups) {
      const int row = i + (int)threadIdx.x / g.lanes;
      const bool mine = row < count;
      const ScaleShift found =
          row_moments<mode, Use::shared, false>(x, mine ? row : 0, 0, map.s, 0, mine ? map.s : 0, g.lanes);
      if (mine && threadIdx.x % g.lanes == 0) sums[row] = found.scale;
    }
  } else {
    const float share = (float)count / (float)map.s;
    for (int block = 0; block * g.lanes * 8 < map.c; ++block)
      column_moments<mode, Use::shared, false>(x, map.c, 0, count, Columns(g.lanes, block, map.c), work,
                                               [&](int c, float mean, float) { sums[c] = count ? mean * share : 0.f; });
  }
  cluster_arrive();
  cluster_wait();

  const int first_c = rank * g.channels, channels = max(min(g.channels, map.c - first_c), 0);
  for (int i = (int)threadIdx.x; i < g.samples * channels; i += (int)blockDim.x) {
    const int p = i / channels, c = first_c + i % channels;
    float mean = 0.f;
    if (exists(p)) {
      if constexpr (by_rows) {
        mean = *map_shared(sums + c % g.partition, p * g.share + c / g.partition);
      } else {
        for (int part = 0; part < g.share; ++part) mean += *map_shared(sums + c, p * g.share + part);
      }
    }
    z[p * g.channels + c - first_c] = channel_norm(g.op.norm, c)(mean);
  }
  __syncthreads();
  by_weight(fc.type, [&](auto* tag) {
    using W = std::remove_pointer_t<decltype(tag)>;
    products(static_cast<const W*>(fc.fc1_weight) + first_c, map.c, channels ? fc.r : 0, channels, fc.fc1_whole, z,
             g.channels, g.samples, [&](int r, int p, float sum) { partial[p * fc.r + r] = sum; });
  });
  if (!channels)
    for (int i = (int)threadIdx.x; i < g.samples * fc.r; i += (int)blockDim.x) partial[i] = 0.f;
  cluster_arrive();
  cluster_wait();

  for (int i = (int)threadIdx.x; i < g.samples * fc.r; i += (int)blockDim.x) {
    float sum = get_or(fc.fc1_bias, i % fc.r, 0.f);
    for (int block = 0; block < g.blocks; ++block) sum += *map_shared(partial + i, block);
    active[i] = activate(fc.act, sum);
  }
  __syncthreads();
  by_weight(fc.type, [&](auto* tag) {
    using W = std::remove_pointer_t<decltype(tag)>;
    products(static_cast<const W*>(fc.fc2_weight) + (int64_t)first_c * fc.r, fc.r, channels, fc.r, fc.fc2_whole, active,
             fc.r, g.samples, [&](int row, int p, float sum) {
               const int c = first_c + row;
               const float s = open_gate(fc.gate, sum + get_or(fc.fc2_bias, c, 0.f));
               const float ds = exists(p) ? s * get_or(g.op.drop, first + p, 1.f) : 0.f;
               const ChannelNorm u = channel_norm(g.op.norm, c);
               scale_shift[2 * (p * g.channels + row)] = ds * u.a;
               scale_shift[2 * (p * g.channels + row) + 1] = ds * u.b();
             });
  });
  cluster_arrive();
  cluster_wait();

  for (int i = (int)threadIdx.x; i < (by_rows ? count : map.c); i += (int)blockDim.x) {
    const int c = by_rows ? begin + i : i;
    const float* const there = map_shared(scale_shift + 2 * (own * g.channels + c % g.channels), c / g.channels);
    coefficients[i] = there[0];
    coefficients[layout.length + i] = there[1];
  }
  // This block has finished reading other blocks' shared memory. It must not exit before the others have finished too,
  // because its shared memory ends with it; cluster_wait is at the end of this function. The arrival can be relaxed:
  // nothing written before this barrier is read after it by another block, and the values read above have arrived,
  // because they were stored to `coefficients`.
  cluster_arrive_relaxed();
  __syncthreads();

  const T* const residual = static_cast<const T*>(g.op.residual);
  const Maps<T> maps{x, residual ? residual + base : nullptr, static_cast<T*>(g.op.y) + base};
  if constexpr (by_rows) {
    const int64_t vectors =
        mode == Mode::rows_unaligned ? ceil_div((int64_t)count * map.s, 8) : (int64_t)count * ceil_div(map.s, 8);
    scale_shift_act_rows<mode, Use::shared>(
        maps, count, map.s, 0, vectors, g.op.out_act, nullptr, nullptr,
        [&](int64_t row) { return ScaleShift{coefficients[row], coefficients[layout.length + row]}; });
  } else {
    for (int block = 0; block * g.lanes * 8 < map.c; ++block) {
      const Columns at(g.lanes, block, map.c);
      float scale[8] = {}, shift[8] = {};
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (at.exists) scale[j] = coefficients[at.channel + j], shift[j] = coefficients[layout.length + at.channel + j];
      scale_shift_act_columns<mode, Use::shared>(maps, map.c, 0, count, at, g.op.out_act, nullptr, scale, shift);
    }
  }
  cluster_wait();
}
#endif

template <class T, Mode mode>
SE_KERNEL(kThreadsClusterFused, 2)
cluster_fused_kernel(SE_CONSTANT ClusterFused g) {
#ifdef SE_HAS_CLUSTERS
  cluster_fused<T, mode>(g);
#endif  // otherwise never launched: plan.cpp checks the device's capability
}

template <class F>
auto by_kernel(const ClusterFused& g, const F& f) {
  return by_type(g.op.map.type, [&](auto type) {
    using T = typename decltype(type)::type;
    switch (g.op.map.mode) {
      case Mode::rows: return f(cluster_fused_kernel<T, Mode::rows>);
      case Mode::rows_unaligned: return f(cluster_fused_kernel<T, Mode::rows_unaligned>);
      default: return f(cluster_fused_kernel<T, Mode::cols>);
    }
  });
}

Error launch(const ClusterFused& g, Stream stream) {
  const Launch how{"cluster_fused", ceil_div(g.op.map.n, g.samples) * g.blocks, g.threads, shared_bytes(g), g.blocks};
  return by_kernel(g, [&](auto kernel) { return start(kernel, how, stream, g); });
}

// Calls f(kernel, its type and mode as text) for every instance.
template <class F>
static void each_kernel(const F& f) {
  each_map([&](const Map& map, const std::string& name) {
    ClusterFused g{};
    g.op.map = map;
    if (!is_single(map.mode)) by_kernel(g, [&](auto kernel) { f(kernel, name); });
  });
}

int largest_cluster(size_t shared_bytes) {
  int blocks = kLargestCluster;
  for (; blocks > 1; blocks /= 2) {
    bool all = true;
    each_kernel([&](auto kernel, const std::string&) {
      all = all && clusters_at_once(kernel, {"cluster_fused", blocks, kThreadsClusterFused, shared_bytes, blocks});
    });
    if (all) break;
  }
  return blocks;
}

void list_cluster_fused(Instances& to) {
  each_kernel([&](auto kernel, const std::string& name) {
    add(to, "cluster_fused " + name, kernel, kByShape, kThreadsClusterFused);
  });
}

}  // namespace se_fused::cuda
