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
// Phases, with an exchange between each two:
//   1. means of the block's partition, sent to the blocks that own the channels
//   2. z of the block's channels, and their part of the product W1 z, sent to the blocks that own the squeezed channels
//   3. hidden as the sum of these parts, sent to all blocks
//   4. scale and shift of the block's channels, sent to the blocks that hold them
//   5. y
// An exchange is stores to other blocks' shared memory (push) and a wait for the bytes that this block expects. There
// is no barrier of the cluster: a barrier whose arrival releases shared memory is a fence for the whole device in
// machine code, and reading what lies behind it is a round trip. A block waits for every exchange, so nothing arrives
// after it has ended, and it leaves without waiting for the others. ClusterLayout says what shares memory.
#include "cluster_products.cuh"
#include "launch.cuh"
#include "scale_shift_act.cuh"

namespace se_fused::cuda {

#ifdef SE_HAS_CLUSTERS
SE_DEVICE float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Means of `count` rows of x in shared memory, by groups of `lanes` threads. Elements of rows that are no whole vectors
// are read one by one: four instructions each, where a vector takes three per element, but also masks at both ends.
template <Mode mode, class T>
SE_DEVICE void row_means(const T* x, int count, int length, int lanes, float* means) {
  const int lane = (int)threadIdx.x % lanes, groups = (int)blockDim.x / lanes;
  for (int start = 0; start < count; start += groups) {
    const int row = start + (int)threadIdx.x / lanes;
    const T* const from = x + (row < count ? row : 0) * length;
    const float shift = finite_or_zero(to_float(from[0]));
    float total = 0.f;
    if constexpr (mode == Mode::rows) {
#pragma unroll 4
      for (int i = 8 * lane; i < length; i += 8 * lanes) {
        float v[8];
        unpack(load_raw<Use::shared>(from + i), v);
        float part = 0.f;
#pragma unroll
        for (int j = 0; j < 8; ++j) part += v[j] - shift;
        total += part;
      }
    } else {
#pragma unroll 8
      for (int i = lane; i < length; i += lanes) total += to_float(from[i]) - shift;
    }
    total = sum_lanes(total, lanes);
    if (row < count && lane == 0) means[row] = shift + total / (float)length;
  }
}

// Means over `count` positions of all channels in shared memory. Calls put(c, {means of c, ..., c + 3}).
template <class T, class Put>
SE_DEVICE void column_means(const T* x, int channels, int count, int lanes, int stored, float* sums, const Put& put) {
  const float each = 1.f / (float)count;
  const int width = 8 * lanes;
  for (int block = 0; block * width < channels; ++block) {
    const Columns at(lanes, block, channels);
    float total[8] = {};
    if (at.exists && count) {
      float shift[8];
      unpack(load_raw<Use::shared>(x + at.channel), shift);
#pragma unroll
      for (int j = 0; j < 8; ++j) shift[j] = finite_or_zero(shift[j]);
      const auto add = [&](const Raw<T>& raw) {
        float v[8];
        unpack(raw, v);
#pragma unroll
        for (int j = 0; j < 8; ++j) total[j] += v[j] - shift[j];
      };
      const T* from = x + at.step * channels + at.channel;
      const int stride = at.steps * channels;
      int left = ((count - at.step) + at.steps - 1) / at.steps;
      for (; left >= 4; left -= 4, from += 4 * stride) {  // four loads in flight
        Raw<T> raw[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) raw[u] = load_raw<Use::shared>(from + u * stride);
#pragma unroll
        for (int u = 0; u < 4; ++u) add(raw[u]);
      }
      for (; left > 0; --left, from += stride) add(load_raw<Use::shared>(from));
    }
    // The second half of the steps gives its sums to the first half, which needs half the memory. A thread that adds
    // reads and writes the same place. The first four channels of all lanes lie together, so that no banks conflict.
    const auto place = [&](int step) { return sums + step * width + 4 * at.lane; };
    const auto save = [&](float* to) {
      store_floats(to, {total[0], total[1], total[2], total[3]});
      store_floats(to + width / 2, {total[4], total[5], total[6], total[7]});
    };
    if (at.steps > 1) {
      if (at.step >= stored) save(place(at.step - stored));
      __syncthreads();
    }
    if (at.step < stored) {
      if (at.step + stored < at.steps) {
        const float4 low = load_floats(place(at.step)), high = load_floats(place(at.step) + width / 2);
        total[0] += low.x, total[1] += low.y, total[2] += low.z, total[3] += low.w;
        total[4] += high.x, total[5] += high.y, total[6] += high.z, total[7] += high.w;
      }
      save(place(at.step));
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < width / 4; i += (int)blockDim.x) {
      const int c = at.first + i % lanes * 8 + i / lanes * 4;
      if (c >= channels) continue;
      float4 sum = load_floats(sums + 4 * i), from{};
      for (int step = 1; step < stored; ++step) sum = sum + load_floats(sums + step * width + 4 * i);
      if (count)
        from = {finite_or_zero(to_float(x[c])), finite_or_zero(to_float(x[c + 1])), finite_or_zero(to_float(x[c + 2])),
                finite_or_zero(to_float(x[c + 3]))};
      put(c, float4{from.x + sum.x * each, from.y + sum.y * each, from.z + sum.z * each, from.w + sum.w * each});
    }
    if ((block + 1) * width < channels) __syncthreads();
  }
}

template <class T, Mode mode>
SE_DEVICE void cluster_fused(const ClusterFused& g) {
  SE_SHARED(memory);
  constexpr bool by_rows = mode <= Mode::rows_single;
  const ClusterLayout& layout = g.layout;
  const Map& map = g.op.map;
  const ExcitationLayers& fc = g.op.fc;
  const auto at = [&](int offset) { return reinterpret_cast<float*>(memory + offset); };
  T* const x = reinterpret_cast<T*>(memory);
  float *const sums = at(layout.sums), *const coefficients = at(layout.coefficients), *const means = at(layout.means);
  float *const partial = at(layout.partial), *const active = at(layout.active), *const factor = at(layout.factor);
  float *const norm = at(layout.norm), *const bias = at(layout.bias), *const z = at(layout.z);
  float* const parts = at(layout.parts);
  BulkBarrier *const arrived = reinterpret_cast<BulkBarrier*>(memory + layout.barriers), *const loaded =
                                                                                             arrived + kExchanges;

  const int thread = (int)threadIdx.x, threads = (int)blockDim.x;
  const int rank = (int)cluster_rank(), own = rank / g.share, begin = rank % g.share * g.partition;
  const int64_t first = (int64_t)((int)blockIdx.x / g.blocks) * g.samples, n = first + own;
  const int span = max(min(g.partition, (by_rows ? map.c : map.s) - begin), 0), count = n < map.n ? span : 0;
  const int64_t width = by_rows ? map.s : map.c, base = n * map.c * map.s + begin * width;
  const int first_c = rank * g.channels, channels = max(min(g.channels, map.c - first_c), 0), fours = channels / 4;
  const int first_hidden = rank * layout.own, hidden = max(min(layout.own, layout.hidden - first_hidden), 0);
  const T* const residual = static_cast<const T*>(g.op.residual);

  constexpr uint32_t kCopy = 16 << 10;  // bytes per copy, so that several copies are in flight
  const uint32_t bytes = (uint32_t)(count * width * sizeof(T));
  const auto in_copies = [&](const auto& copy) {
    for (uint32_t from = 0; from < bytes; from += kCopy) copy(from, bytes - from < kCopy ? bytes - from : kCopy);
  };
  if (thread == 0) {
    bulk_init(loaded, 1);
    if (count) {
      const unsigned char* const from = reinterpret_cast<const unsigned char*>(static_cast<const T*>(g.op.x) + base);
      bulk_expect(loaded, bytes);
      in_copies([&](uint32_t offset, uint32_t size) { bulk_copy(memory + offset, from + offset, size, loaded); });
    }
    for (int i = 0; i < kExchanges; ++i) bulk_init(arrived + i, 1);
    bulk_expect(arrived + kMeans, 4 * (by_rows ? g.samples : g.blocks) * channels);
    bulk_expect(arrived + kParts, 4 * layout.senders * hidden);
    bulk_expect(arrived + kHidden, channels ? 4 * layout.hidden : 0);
    bulk_expect(arrived + kCoefficients, 8 * (by_rows ? span : map.c));
  }
  // No block pushes before all have initialised their barriers. Relaxed: bulk_init makes a barrier visible to the
  // cluster, and nothing else that was written before is read by others.
  cluster_arrive_relaxed();
  __syncthreads();
  // While x is on its way: parameters go to shared memory, weights to L2.
  const Slice fc1(fc.fc1_weight, fc.type, first_c, map.c, channels ? fc.r : 0, channels, fc.fc1_whole);
  const Slice fc2(fc.fc2_weight, fc.type, (int64_t)first_c * fc.r, fc.r, channels, fc.r, fc.fc2_whole);
  prefetch(fc1);
  prefetch(fc2);
  for (int i = thread; i < channels; i += threads) {
    const ChannelNorm u = channel_norm(g.op.norm, first_c + i);
    norm[i] = u.mu, norm[g.channels + i] = u.a, norm[2 * g.channels + i] = u.beta;
  }
  for (int i = thread; i < hidden; i += threads) {
    const int r = (first_hidden + i) % layout.r;
    bias[i] = r < fc.r ? get_or(fc.fc1_bias, r, 0.f) : 0.f;
  }
  if (count) bulk_wait(loaded, 0);
  // Memory would idle from here to y. The residual of all resident blocks is at most as large as the multiprocessors'
  // shared memory, 30 MB on an H100, and stays in its L2 of 50 MB until y reads it.
  if (thread == 0 && residual) {
    const unsigned char* const from = reinterpret_cast<const unsigned char*>(residual + base);
    in_copies([&](uint32_t offset, uint32_t size) { bulk_prefetch(from + offset, size); });
  }

  if constexpr (by_rows) {
    row_means<mode>(x, count, map.s, g.lanes, sums);
    __syncthreads();
    cluster_wait();
    for (int i = 4 * thread; i < span; i += 4 * threads) {
      const int c = begin + i, to = c / g.channels;
      push(means + own * g.channels + c - to * g.channels, count ? load_floats(sums + i) : float4{}, to,
           arrived + kMeans);
    }
  } else {
    const float share = (float)count / (float)map.s;
    cluster_wait();
    column_means(x, map.c, count, g.lanes, layout.stored, sums, [&](int c, float4 m) {
      const int to = c / g.channels;
      push(means + rank * g.channels + c - to * g.channels,
           count ? float4{m.x * share, m.y * share, m.z * share, m.w * share} : float4{}, to, arrived + kMeans);
    });
  }

  Held held;
  hold_first(fc1, held);  // does not depend on the means
  push_wait(arrived + kMeans, 0);
  for (int i = thread; i < g.samples * fours; i += threads) {
    const int p = i / fours, c = 4 * (i % fours);
    const int stride = by_rows ? 0 : g.channels;
    const float* const from = means + (by_rows ? p : p * g.share) * g.channels + c;
    float4 mean = load_floats(from);
    if constexpr (!by_rows)
      for (int part = 1; part < g.share; ++part) mean = mean + load_floats(from + part * stride);
    const float4 mu = load_floats(norm + c), a = load_floats(norm + g.channels + c),
                 beta = load_floats(norm + 2 * g.channels + c);
    store_floats(z + p * g.channels + halved(c, g.channels),
                 {(mean.x - mu.x) * a.x + beta.x, (mean.y - mu.y) * a.y + beta.y, (mean.z - mu.z) * a.z + beta.z,
                  (mean.w - mu.w) * a.w + beta.w});
  }
  __syncthreads();
  products(fc1, held, z, g.channels, g.samples, [&](int r, int p, float sum) { partial[p * layout.r + r] = sum; });
  __syncthreads();
  if (channels)
    for (int i = 4 * thread; i < layout.hidden; i += 4 * threads) {
      const int to = i / layout.own;
      push(parts + rank * layout.own + i - to * layout.own, load_floats(partial + i), to, arrived + kParts);
    }

  hold_first(fc2, held);
  float* const bias2 = z;  // which has been read
  for (int i = thread; i < channels; i += threads) bias2[i] = get_or(fc.fc2_bias, first_c + i, 0.f);
  push_wait(arrived + kParts, 0);
  for (int i = thread; i < hidden / 4 * layout.senders; i += threads) {  // four sums for one block
    const int at_own = 4 * (i % (hidden / 4)), to = i / (hidden / 4), r = (first_hidden + at_own) % layout.r;
    float4 sum = load_floats(bias + at_own);
    for (int block = 0; block < layout.senders; ++block) sum = sum + load_floats(parts + block * layout.own + at_own);
    const int p = (first_hidden + at_own) / layout.r;
    const auto act = [&](int j, float v) { return r + j < fc.r ? activate(fc.act, v) : 0.f; };
    push(active + p * layout.r + halved(r, layout.r), {act(0, sum.x), act(1, sum.y), act(2, sum.z), act(3, sum.w)}, to,
         arrived + kHidden);
  }
  push_wait(arrived + kHidden, 0);
  products(fc2, held, active, layout.r, g.samples,
           [&](int row, int p, float sum) { factor[p * g.channels + row] = sum; });
  __syncthreads();
  for (int i = thread; i < (by_rows ? g.samples : g.blocks) * fours; i += threads) {
    const int c = 4 * (i % fours), p = i / fours / (by_rows ? 1 : g.share);
    const float d = first + p < map.n ? get_or(g.op.drop, first + p, 1.f) : 0.f;
    float scale[4], shift[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float ds = open_gate(fc.gate, factor[p * g.channels + c + j] + bias2[c + j]) * d;
      const float mu = norm[c + j], a = norm[g.channels + c + j], beta = norm[2 * g.channels + c + j];
      scale[j] = ds * a;
      shift[j] = ds * (beta - a * mu);
    }
    if constexpr (by_rows) {
      const int part = (first_c + c) / g.partition, to = p * g.share + part;
      float* const there = coefficients + 2 * (first_c + c - part * g.partition);
      push(there, {scale[0], shift[0], scale[1], shift[1]}, to, arrived + kCoefficients);
      push(there + 4, {scale[2], shift[2], scale[3], shift[3]}, to, arrived + kCoefficients);
    } else {
      float* const there = coefficients + halved(first_c + c, layout.length);
      push(there, {scale[0], scale[1], scale[2], scale[3]}, i / fours, arrived + kCoefficients);
      push(there + layout.length, {shift[0], shift[1], shift[2], shift[3]}, i / fours, arrived + kCoefficients);
    }
  }
  push_wait(arrived + kCoefficients, 0);

  const Maps<T> maps{x, residual ? residual + base : nullptr, static_cast<T*>(g.op.y) + base};
  if constexpr (by_rows) {
    const int64_t vectors =
        mode == Mode::rows_unaligned ? ceil_div((int64_t)count * map.s, 8) : (int64_t)count * ceil_div(map.s, 8);
    scale_shift_act_rows<mode, Use::shared>(
        maps, count, map.s, 0, vectors, g.op.out_act, nullptr, nullptr,
        [&](int64_t row) { return reinterpret_cast<const ScaleShift*>(coefficients)[row]; });
  } else {
    for (int block = 0; block * g.lanes * 8 < map.c; ++block) {
      const Columns columns(g.lanes, block, map.c);
      scale_shift_act_columns<mode, Use::shared>(
          maps, map.c, 0, count, columns, g.op.out_act, nullptr, [&](float (&scale)[8], float (&shift)[8]) {
            if (!columns.exists) return;
            const float* const from = coefficients + columns.channel / 2;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const float4 a = load_floats(from + half * (layout.length / 2));
              const float4 b = load_floats(from + half * (layout.length / 2) + layout.length);
              scale[4 * half] = a.x, scale[4 * half + 1] = a.y, scale[4 * half + 2] = a.z, scale[4 * half + 3] = a.w;
              shift[4 * half] = b.x, shift[4 * half + 1] = b.y, shift[4 * half + 2] = b.z, shift[4 * half + 3] = b.w;
            }
          });
    }
  }
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
