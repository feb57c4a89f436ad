// The matrix products of the excitation. Each has N C R multiplications (34 M at N = 128, C = 2048), too few for tensor
// cores to matter. The time depends on having a tile for every multiprocessor in each phase, on reading weights in
// vectors, and on few dependent steps that wait for L2 (0.7 us each).
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

constexpr int kWarps = kThreads / kWarp;

// Positions per split and in the last split, and the weights of their means in the mean of all positions. The divisions
// are done here, and the callers handle the last split outside their loops: a division has a branch for rare operands,
// and a loop that contains one waits for each of its loads.
struct SplitWeights {
  float count, last_count, weight, last_weight;

  SE_DEVICE SplitWeights(int splits, int span, int positions)
      : count((float)span),
        last_count((float)(positions - (splits - 1) * span)),
        weight(count / (float)positions),
        last_weight(last_count / (float)positions) {}
};

// Eight neighbouring elements of a row of a weight or of a float32 matrix; `whole`: rows are whole 16-byte vectors.
template <class W>
SE_DEVICE Raw<W> load_row(const W* row, int at, int end, bool whole) {
  return whole ? load_raw<Use::keep>(row + at) : load_single(row, at, end);
}

// Fetches both weights into L2, where the phases wait for them less than half as long as in DRAM.
template <class W>
SE_DEVICE void prefetch_weights(const ExcitationLayers& fc, int channels) {
  if (!fc.fc1_weight) return;
  const int64_t bytes = (int64_t)fc.r * channels * sizeof(W), part = ceil_div(ceil_div(bytes, gridDim.x), 16) * 16;
  prefetch({fc.fc1_weight, bytes, part});
  prefetch({fc.fc2_weight, bytes, part});
}

// hidden[n, r] = sum_c W1[r, c] z[n, c] + b1[r] for 16 samples and 8 squeezed channels. A warp computes 4 x 4 of them;
// its lanes lie along c and are summed at the end. Each loaded vector is used four times.
constexpr int kHiddenN = 16, kHiddenR = 8;

// `ahead`: unrolled steps, whose loads are in flight together; larger in kernels with free registers.
template <class W, int ahead>
SE_DEVICE void hidden_tile(const ExcitationLayers& fc, const float* z, float* hidden, int64_t first_n, int64_t end_n,
                           int first_r, int channels) {
  const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp;
  const int64_t n0 = first_n + warp / 2 * 4;
  const int r0 = first_r + warp % 2 * 4;
  if (n0 >= end_n || r0 >= fc.r) return;  // the whole warp
  const float* rows[4];
  const W* weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // past the end the last row is used again, and its results are dropped
    rows[i] = z + min(n0 + i, end_n - 1) * channels;
    weights[i] = static_cast<const W*>(fc.fc1_weight) + (int64_t)min(r0 + i, fc.r - 1) * channels;
  }
  float total[4][4] = {};
#pragma unroll ahead
  for (int c = 8 * lane; c < channels; c += 8 * kWarp) {
    Raw<float> raw_z[4];
    Raw<W> raw_w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw_z[i] = load_row(rows[i], c, channels, channels % 8 == 0);
      raw_w[i] = load_row(weights[i], c, channels, fc.fc1_whole);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float w[8];
      unpack(raw_w[j], w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v[8];
        unpack(raw_z[i], v);
#pragma unroll
        for (int k = 0; k < 8; ++k) total[i][j] += v[k] * w[k];
      }
    }
  }
  float mine = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float sum = sum_lanes(total[i][j]);
      if (lane == 4 * i + j) mine = sum;
    }
  const int64_t n = n0 + lane / 4;
  const int r = r0 + lane % 4;
  if (lane < 16 && n < end_n && r < fc.r) hidden[n * fc.r + r] = mine + get_or(fc.fc1_bias, r, 0.f);
}

// s[n, c] = gate(sum_r W2[c, r] act(hidden[n, r]) + b2[c]) for 32 samples and 32 channels, written to factor unless it
// is null; scale = d s a, shift = d s b. Lanes lie along c, and a warp has four samples. shared: kExciteShared floats.
constexpr int kExciteN = 32, kExciteC = 32, kExciteStep = 64;
constexpr int kExciteShared = kExciteN * kExciteStep;

struct Excite {
  const float* hidden;
  const Norm& norm;
  const Vector& drop;
  float *factor, *scale, *shift;
};

template <class W, int ahead>
SE_DEVICE void excite_tile(const ExcitationLayers& fc, const Excite& g, int64_t first_n, int64_t end_n, int first_c,
                           int channels, float* shared) {
  const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp, c = first_c + lane;
  const int64_t n0 = first_n + 4 * warp;
  const W* const row = static_cast<const W*>(fc.fc2_weight) + (int64_t)min(c, channels - 1) * fc.r;
  float total[4] = {};
  for (int r0 = 0; r0 < fc.r; r0 += kExciteStep) {
    __syncthreads();
    for (int i = (int)threadIdx.x; i < kExciteShared; i += kThreads) {
      const int64_t n = first_n + i / kExciteStep;
      const int r = r0 + i % kExciteStep;
      // Elements past R are multiplied by weights of zero, so they must be finite.
      shared[i] = n < end_n && r < fc.r ? activate(fc.act, load_fresh(g.hidden + n * fc.r + r)) : 0.f;
    }
    __syncthreads();
    if (n0 >= end_n) continue;
    const int steps = min(kExciteStep, fc.r - r0);
#pragma unroll ahead
    for (int r = 0; r < steps; r += 8) {
      float w[8];
      unpack(load_row(row, r0 + r, fc.r, fc.fc2_whole), w);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int k = 0; k < 8; ++k) total[i] += w[k] * shared[(4 * warp + i) * kExciteStep + r + k];
    }
  }
  if (c >= channels) return;
  const ChannelNorm u = channel_norm(g.norm, c);
  const float bias = get_or(fc.fc2_bias, c, 0.f);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (const int64_t n = n0 + i; n < end_n) {
      const float s = open_gate(fc.gate, total[i] + bias), ds = s * get_or(g.drop, n, 1.f);
      const int64_t at = n * channels + c;
      if (g.factor) g.factor[at] = s;
      g.scale[at] = ds * u.a;
      g.shift[at] = ds * u.b();
    }
}

}  // namespace se_fused::cuda
