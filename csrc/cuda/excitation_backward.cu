// The excitation's backward pass: from P and Q, (splits, N, C), to the coefficients of dx and the gradients of all
// parameters, in one launch of three phases. `excitation_backward` in se_fused/ops/excitation.py has the formulas.
//
// 1. merge: adds up the splits of P and Q; dq = gate'(s) d (a Q + z P).
// 2. dhidden = act'(hidden) (dq W2).
//    second weights: dW2 and its bias's gradient, which need phase 1 alone; blocks without a tile of dhidden do them.
// 3. channels: one tile per 16 channels, over all samples: dz = dhidden W1, dgamma and dbeta, then k1, k2, k3.
//    first weights: dW1 and its bias's gradient.
// No sum over samples is split between blocks, so none needs an atomic.
#include <algorithm>

#include "excitation.cuh"
#include "launch.cuh"

namespace se_fused::cuda {

constexpr int kMergeN = 32, kMergeC = 32;
constexpr int kDhiddenN = 8, kDhiddenR = 16, kDhiddenParts = 4;
constexpr int kProductTile = 32, kProductN = 128;
constexpr int kChannelsC = 16, kChannelsN = kThreads / 2;
constexpr int kStep = 64, kPitch = kStep + 4;  // dhidden in shared memory: rows of r, 16-byte aligned, all banks
constexpr int kWeightRows = 128;               // rows of W1 in shared memory
constexpr int kChannelsShared = kChannelsN * kPitch + kWeightRows * kChannelsC;
constexpr int kShared = kChannelsShared;  // floats; channels_tile needs the most
static_assert(kShared >= 2 * kProductN * kProductTile && kShared >= kDhiddenParts * kDhiddenN * kDhiddenR);

// Phase 1: eight threads with four channels each for each of 32 samples.
template <Rows rows>
SE_DEVICE void merge_tile(const ExcitationBackward& g, int64_t first_n, int first_c) {
  constexpr int kHeld = 2;  // splits that are loaded together
  const int c = first_c + 4 * (thread_here() % 8);
  const int64_t n = first_n + thread_here() / 8, all = g.n * g.c, row = n * g.c;
  if (n >= g.n || c >= g.c) return;
  const auto channel = [&](int j) { return min(c + j, g.c - 1); };
  const Elements<4> mu(g.norm.mean, channel), var(g.norm.var, channel);
  const Elements<4> weight(g.norm.weight, channel), bias(g.norm.bias, channel);
  const Elements<1> drop(g.drop, [&](int) { return n; });
  float p[4] = {}, q[4] = {}, mean[4] = {}, factor[4] = {};
  if (g.fc.fc1_weight) {
    load_four<rows>(g.mean + row, c, g.c, mean);
    load_four<rows>(g.factor + row, c, g.c, factor);
  }
#pragma unroll 1
  for (int first = 0; first < g.splits; first += kHeld) {
    float ps[kHeld][4] = {}, qs[kHeld][4] = {};
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (first + k < g.splits) {
        load_four<rows>(g.p_parts + (first + k) * all + row, c, g.c, ps[k]);
        load_four<rows>(g.q_parts + (first + k) * all + row, c, g.c, qs[k]);
      }
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) p[j] += ps[k][j], q[j] += qs[k][j];
  }
  if (g.splits > 1) {
    store_four<rows>(g.p + row, c, g.c, p);
    store_four<rows>(g.q + row, c, g.c, q);
  }
  if (!g.fc.fc1_weight) return;
  float dq[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    ChannelNorm u{0.f, 1.f, 1.f, 0.f};
    if (g.norm.mean.data)
      u = channel_norm(g.norm, mu.value(g.norm.mean, 0.f, j), var.value(g.norm.var, 1.f, j),
                       weight.value(g.norm.weight, 1.f, j), bias.value(g.norm.bias, 0.f, j));
    dq[j] = drop.value(g.drop, 1.f) * (u.a * q[j] + u(mean[j]) * p[j]) * gate_slope(g.fc.gate, factor[j]);
  }
  store_four<rows>(g.dq + row, c, g.c, dq);
}

// dhidden for 8 samples and 16 squeezed channels. Of a warp's lanes, two lie along r, each with eight elements of four
// rows of W2, and 16 along c; four warps lie along c and two along n, each with four samples.
template <class W, Rows rows>
class DhiddenTile {
  static constexpr int kC = 4 * kWarp / 2 * kDhiddenParts;  // channels of the block at a time

 public:
  SE_DEVICE DhiddenTile(const ExcitationBackward& g, int64_t first_n, int first_r)
      : g_(g), first_n_(first_n), first_r_(first_r) {
    load_weights(first_c());
  }

  SE_DEVICE void run(float* shared) {
    const int warp = thread_here() / kWarp, lane = thread_here() % kWarp;
    const int64_t n0 = first_n_ + 4 * (warp / kDhiddenParts);
    float total[32] = {};  // 4 samples x 8 squeezed channels
#pragma unroll 1
    for (int c = n0 < g_.n ? first_c() : g_.c; c < g_.c; c += kC) {
      float dq[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_four<rows>(g_.dq + min(n0 + i, g_.n - 1) * g_.c, c, g_.c, dq[i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float w[8];
        unpack(weights_[j], w);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int k = 0; k < 8; ++k) total[i * 8 + k] += dq[i][j] * w[k];
      }
      load_weights(c + kC);
    }
    sum_each<2>(total);  // this lane has the sums lane / 2 * 2 and the next of those that lie along c
    const int at = lane / 2 * 2;
#pragma unroll
    for (int e = 0; e < 2; ++e)
      shared[((warp % kDhiddenParts) * kDhiddenN + warp / kDhiddenParts * 4 + at / 8) * kDhiddenR + lane % 2 * 8 +
             at % 8 + e] = total[e];
    __syncthreads();
    const int thread = thread_here(), r = first_r_ + thread % kDhiddenR;
    const int64_t n = first_n_ + thread / kDhiddenR;
    if (thread >= kDhiddenN * kDhiddenR || n >= g_.n || r >= g_.fc.r) return;
    float sum = 0.f;
#pragma unroll
    for (int part = 0; part < kDhiddenParts; ++part) sum += shared[part * kDhiddenN * kDhiddenR + thread];
    g_.dhidden[n * g_.fc.r + r] = sum * activate_slope(g_.fc.act, g_.hidden[n * g_.fc.r + r]);
  }

 private:
  SE_DEVICE int first_c() const {
    const int warp = thread_here() / kWarp, lane = thread_here() % kWarp;
    return warp % kDhiddenParts * (2 * kWarp) + lane / 2 * 4;
  }
  SE_DEVICE void load_weights(int c) {
    const int r = first_r_ + 8 * (thread_here() % 2), squeezed = g_.fc.r;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weights_[j] = {};
      const W* const row = static_cast<const W*>(g_.fc.fc2_weight) + (int64_t)(c + j) * squeezed;
      if (c + j >= g_.c || r >= squeezed) continue;
      weights_[j] = rows == Rows::whole ? load_raw<Use::keep>(row + r) : load_single(row, r, squeezed);
    }
  }

  const ExcitationBackward& g_;
  int64_t first_n_;
  int first_r_;
  Raw<W> weights_[4];
};

// Phase 3, channels: two threads with eight channels each for each of 128 samples at a time. dz is stored in k3 between
// the two loops over the samples; the thread that wrote it reads it, and keeps that of its last samples.
template <class W, Rows rows>
class ChannelsTile {
 public:
  SE_DEVICE ChannelsTile(const ExcitationBackward& g, int first_c)
      : g_(g), c_(first_c + 8 * (thread_here() % 2)), slot_(thread_here() / 2) {
    if (g.fc.fc1_weight) load_weights(0);
  }

  SE_DEVICE void run(float* shared) {
    float* const dhidden = shared;
    float* const weights = shared + kChannelsN * kPitch;  // kWeightRows rows of kChannelsC
    const int squeezed = g_.fc.fc1_weight ? g_.fc.r : 0;
    const bool exists = c_ < g_.c, norm = g_.norm.mean.data != nullptr;
    float sums[16] = {}, dz[8], away[8], ds[8];  // sums: of dbeta, then of dgamma
    const int64_t last = (g_.n - 1) / kChannelsN * kChannelsN;
    for (int64_t first = 0; first <= last; first += kChannelsN) {
      const int64_t n = first + slot_;
      const bool mine = exists && n < g_.n;
      if (mine) {
        float p[8] = {}, q[8] = {};
        if (norm) load_eight(g_.p + n * g_.c, p), load_eight(g_.q + n * g_.c, q);
        load_sample(n, away, ds);
#pragma unroll
        for (int j = 0; j < 8; ++j) {  // what does not depend on dz
          sums[j] += ds[j] * p[j];
          sums[8 + j] += ds[j] * q[j] + away[j] * (ds[j] * p[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) dz[j] = 0.f;
      for (int r0 = 0; r0 < squeezed; r0 += kStep) {
        __syncthreads();
        if (r0 % kWeightRows == 0) {
          if (r0 || (first && squeezed > kWeightRows)) load_weights(r0);
          if (r0 || !first || squeezed > kWeightRows) store_weights(weights);
        }
        stage(first, r0, dhidden);
        __syncthreads();
        if (mine)
          multiply(dhidden + slot_ * kPitch, weights + r0 % kWeightRows * kChannelsC + 8 * (thread_here() % 2),
                   min(kStep, squeezed - r0), dz);
      }
      if (!mine) continue;
      if (squeezed && first < last) store_eight(g_.k3 + n * g_.c, dz);
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] += dz[j], sums[8 + j] += away[j] * dz[j];
    }
    const auto channel = [&](int j) { return min(c_ + j, g_.c - 1); };
    const Elements<8> var(g_.norm.var, channel), weight(g_.norm.weight, channel);
    float a[8], by_x[8] = {}, constant[8] = {};
    const float per_position = 1.f / (float)g_.s, per_sample = 1.f / (float)g_.n;
    if (norm) {
      __syncthreads();
      sum_samples(sums, shared);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const ChannelNorm u =
          channel_norm(g_.norm, 0.f, var.value(g_.norm.var, 1.f, j), weight.value(g_.norm.weight, 1.f, j), 0.f);
      a[j] = norm ? u.a : 1.f;
      if (!norm) continue;
      const float dbeta = sums[j], dgamma = sums[8 + j] * u.rstd;
      if (slot_ == 0 && c_ + j < g_.c) put(g_.dbn_weight, c_ + j, dgamma), put(g_.dbn_bias, c_ + j, dbeta);
      if (!g_.batch_stats) continue;
      // By S and by N in two steps, because float32 may not represent N S exactly.
      by_x[j] = -u.a * u.rstd * dgamma * per_position * per_sample;
      constant[j] = dbeta * per_position * per_sample;
    }
    if (!exists) return;
    for (int64_t first = last; first >= 0; first -= kChannelsN) {
      const int64_t n = first + slot_;
      if (n >= g_.n) continue;
      if (first < last) {
        load_sample(n, away, ds);
        if (squeezed) load_eight(g_.k3 + n * g_.c, dz);
      }
      float k1[8], k3[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        k1[j] = a[j] * ds[j];
        k3[j] = a[j] * (dz[j] * per_position - constant[j]) + by_x[j] * away[j];
      }
      store_eight(g_.k1 + n * g_.c, k1);
      store_eight(g_.k3 + n * g_.c, k3);
      if (g_.k2) store_eight(g_.k2 + n * g_.c, by_x);
    }
  }

 private:
  SE_DEVICE void load_eight(const float* row, float (&v)[8]) const {
    unpack(rows == Rows::whole ? load_raw<Use::keep>(row + c_) : load_single(row, c_, g_.c), v);
  }
  SE_DEVICE void store_eight(float* row, const float (&v)[8]) const {
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      const float four[4] = {v[half], v[half + 1], v[half + 2], v[half + 3]};
      store_four<rows>(row, c_ + half, g_.c, four);
    }
  }
  // The mean's distance from the batch's, and d s, of a sample.
  SE_DEVICE void load_sample(int64_t n, float (&away)[8], float (&ds)[8]) const {
    load_eight(g_.mean + n * g_.c, away);
    if (g_.fc.fc1_weight) load_eight(g_.factor + n * g_.c, ds);
    const Elements<8> mu(g_.norm.mean, [&](int j) { return min(c_ + j, g_.c - 1); });
    const float d = get_or(g_.drop, n, 1.f);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      away[j] -= mu.value(g_.norm.mean, 0.f, j);
      ds[j] = g_.fc.fc1_weight ? d * ds[j] : d;
    }
  }
  // Eight elements of row r0 + slot of W1; rows and channels past the end are zero.
  SE_DEVICE void load_weights(int r0) {
    const int r = r0 + slot_;
    weights_ = {};
    if (r >= g_.fc.r || c_ >= g_.c) return;
    const W* const row = static_cast<const W*>(g_.fc.fc1_weight) + (int64_t)r * g_.c;
    weights_ = rows == Rows::whole ? load_raw<Use::keep>(row + c_) : load_single(row, c_, g_.c);
  }
  SE_DEVICE void store_weights(float* weights) const {
    float w[8];
    unpack(weights_, w);
    float4* const to = reinterpret_cast<float4*>(weights + slot_ * kChannelsC + 8 * (thread_here() % 2));
    to[0] = {w[0], w[1], w[2], w[3]};
    to[1] = {w[4], w[5], w[6], w[7]};
  }
  // kStep squeezed channels of 128 samples; past R they are zero.
  SE_DEVICE void stage(int64_t first, int r0, float* dhidden) const {
    constexpr int kVectors = kStep / 4, kRows = kThreads / kVectors, kRounds = kChannelsN / kRows;
    const int r = 4 * (thread_here() % kVectors), row = thread_here() / kVectors;
    float v[kRounds][4];
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      load_four<rows>(g_.dhidden + min(first + row + i * kRows, g_.n - 1) * g_.fc.r, r0 + r, g_.fc.r, v[i]);
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      *reinterpret_cast<float4*>(dhidden + (row + i * kRows) * kPitch + r) = {v[i][0], v[i][1], v[i][2], v[i][3]};
  }
  // Four squeezed channels at a time: 32 FMAs for nine 16-byte loads, eight of which all lanes share.
  SE_DEVICE static void multiply(const float* dhidden, const float* weights, int steps, float (&dz)[8]) {
#pragma unroll 1
    for (int r = 0; r < steps; r += 4) {
      const float4 v = *reinterpret_cast<const float4*>(dhidden + r);
      const float by[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4* const w = reinterpret_cast<const float4*>(weights + (r + i) * kChannelsC);
        dz[0] += by[i] * w[0].x, dz[1] += by[i] * w[0].y, dz[2] += by[i] * w[0].z, dz[3] += by[i] * w[0].w;
        dz[4] += by[i] * w[1].x, dz[5] += by[i] * w[1].y, dz[6] += by[i] * w[1].z, dz[7] += by[i] * w[1].w;
      }
    }
  }

  const ExcitationBackward& g_;
  int c_, slot_;
  Raw<W> weights_{};
};

// weight[i, j] = sum_n left[n, i] act(right[n, j]) and bias[i] = sum_n left[n, i] for 32 x 32 of them. A thread
// computes 4 x 4 sums over a quarter of the samples, from two 16-byte loads per sample; then the quarters are added up.
template <class Left, class Right>
SE_DEVICE void product_tile(int64_t samples, Act right_act, int i0, int ends_i, int j0, int ends_j,
                            const Result& weight, const Result& bias, float* shared, const Left& load_left,
                            const Right& load_right) {
  const int thread = thread_here(), quarter = thread / 64, vector = 4 * (thread % 8), row = thread / 8;
  const int i = 4 * (thread % 64 / 8), j = 4 * (thread % 8);
  float *const left = shared, *const right = left + kProductN * kProductTile;
  float total[4][4] = {}, of_bias[4] = {};
  for (int64_t first = 0; first < samples; first += kProductN) {
    __syncthreads();
    float a[4][4], b[4][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t n = min(first + row + e * kMergeN, samples - 1);
      load_left(n, i0 + vector, a[e]);
      load_right(n, j0 + vector, b[e]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = (row + e * kMergeN) * kProductTile + vector;
      const bool exists = first + row + e * kMergeN < samples;
      *reinterpret_cast<float4*>(left + at) = exists ? float4{a[e][0], a[e][1], a[e][2], a[e][3]} : float4{};
      *reinterpret_cast<float4*>(right + at) = exists ? float4{b[e][0], b[e][1], b[e][2], b[e][3]} : float4{};
    }
    if (right_act != Act::identity) {  // of its own values, in a loop, because the code of all activations is long
#pragma unroll 1
      for (int e = 0; e < 16; ++e) {
        float& value = right[(row + e / 4 * kMergeN) * kProductTile + vector + e % 4];
        value = activate(right_act, value);
      }
    }
    __syncthreads();
    const int count = (int)min((int64_t)kProductN, samples - first);
#pragma unroll 4
    for (int n = quarter; n < count; n += 4) {
      const float4 va = *reinterpret_cast<const float4*>(left + n * kProductTile + i);
      const float4 vb = *reinterpret_cast<const float4*>(right + n * kProductTile + j);
      const float by_a[4] = {va.x, va.y, va.z, va.w}, by_b[4] = {vb.x, vb.y, vb.z, vb.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        of_bias[e] += by_a[e];
#pragma unroll
        for (int f = 0; f < 4; ++f) total[e][f] += by_a[e] * by_b[f];
      }
    }
  }
  __syncthreads();
  float* const biases = shared + 4 * kProductTile * kProductTile;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    *reinterpret_cast<float4*>(shared + (quarter * kProductTile + i + e) * kProductTile + j) = {
        total[e][0], total[e][1], total[e][2], total[e][3]};
    if (j == 0) biases[quarter * kProductTile + i + e] = of_bias[e];
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = thread + e * kThreads, own_i = i0 + at / kProductTile, own_j = j0 + at % kProductTile;
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += shared[k * kProductTile * kProductTile + at];
    if (own_i < ends_i && own_j < ends_j) put(weight, (int64_t)own_i * ends_j + own_j, sum);
  }
  if (j0 == 0 && thread < kProductTile && i0 + thread < ends_i) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += biases[k * kProductTile + thread];
    put(bias, i0 + thread, sum);
  }
}

// dW2[c, r] = sum_n dq[n, c] act(hidden[n, r])
template <Rows rows>
SE_DEVICE void second_weights_tile(const ExcitationBackward& g, int c0, int r0, float* shared) {
  product_tile(
      g.n, g.fc.act, c0, g.c, r0, g.fc.r, g.dfc2_weight, g.dfc2_bias, shared,
      [&](int64_t n, int c, float (&v)[4]) { load_four<rows>(g.dq + n * g.c, c, g.c, v); },
      [&](int64_t n, int r, float (&v)[4]) { load_four<rows>(g.hidden + n * g.fc.r, r, g.fc.r, v); });
}

// dW1[r, c] = sum_n dhidden[n, r] z[n, c]
template <Rows rows>
SE_DEVICE void first_weights_tile(const ExcitationBackward& g, int c0, int r0, float* shared) {
  ChannelNorm u[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) u[j] = channel_norm(g.norm, min(c0 + 4 * (thread_here() % 8) + j, g.c - 1));
  product_tile(
      g.n, Act::identity, r0, g.fc.r, c0, g.c, g.dfc1_weight, g.dfc1_bias, shared,
      [&](int64_t n, int r, float (&v)[4]) { load_four<rows>(g.dhidden + n * g.fc.r, r, g.fc.r, v); },
      [&](int64_t n, int c, float (&v)[4]) {
        load_four<rows>(g.mean + n * g.c, c, g.c, v);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = u[j](v[j]);
      });
}

struct BackwardTiles {
  int merge_c, merge, r, hidden, c, weights_r, weights, channels, all;

  SE_BOTH explicit BackwardTiles(const ExcitationBackward& g) {
    const bool has_excitation = g.fc.fc1_weight != nullptr;
    merge_c = (int)ceil_div(g.c, kMergeC);
    merge = has_excitation || g.splits > 1 ? merge_c * (int)ceil_div(g.n, kMergeN) : 0;
    r = has_excitation ? (int)ceil_div(g.fc.r, kDhiddenR) : 0;
    hidden = r * (int)ceil_div(g.n, kDhiddenN);
    c = (int)ceil_div(g.c, kProductTile);
    weights_r = has_excitation ? (int)ceil_div(g.fc.r, kProductTile) : 0;
    weights = c * weights_r;
    channels = (int)ceil_div(g.c, kChannelsC);
    all = merge + hidden + channels + 2 * weights;
  }
};

template <class W, Rows rows>
SE_KERNEL(kThreads, rows == Rows::whole && sizeof(W) == 2 ? kBlocksExcitation : 1)
excitation_backward_kernel(SE_CONSTANT ExcitationBackward g) {
  allow_dependents();
  prefetch_weights<W>(g.fc, g.c);
  dependency_wait();  // also before the first ticket: pass 1 zeroes the counters
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  int* const slot = reinterpret_cast<int*>(shared + kShared);
  const BackwardTiles tiles(g);
  Tickets tickets(g.counters, slot);
  for (int ticket; (ticket = tickets.take()) < tiles.all;) {
    int tile = ticket;
    if (tile < tiles.merge) {
      merge_tile<rows>(g, (int64_t)(tile / tiles.merge_c) * kMergeN, tile % tiles.merge_c * kMergeC);
      done(g.counters + 1);
    } else if ((tile -= tiles.merge) < tiles.hidden) {
      DhiddenTile<W, rows> dhidden(g, (int64_t)(tile / tiles.r) * kDhiddenN, tile % tiles.r * kDhiddenR);
      wait(g.counters + 1, tiles.merge);
      dhidden.run(shared);
      done(g.counters + 2);
    } else if ((tile -= tiles.hidden) < tiles.weights) {
      wait(g.counters + 1, tiles.merge);
      second_weights_tile<rows>(g, tile / tiles.weights_r * kProductTile, tile % tiles.weights_r * kProductTile,
                                shared);
    } else if ((tile -= tiles.weights) < tiles.channels) {
      ChannelsTile<W, rows> channels(g, tile * kChannelsC);
      wait(g.counters + 1, tiles.merge);
      wait(g.counters + 2, tiles.hidden);
      channels.run(shared);
    } else {
      tile -= tiles.channels;
      wait(g.counters + 2, tiles.hidden);
      first_weights_tile<rows>(g, tile / tiles.weights_r * kProductTile, tile % tiles.weights_r * kProductTile, shared);
    }
  }
}

constexpr size_t kSharedBytes = kShared * sizeof(float) + sizeof(int);

Error launch(const ExcitationBackward& g, int blocks, Stream stream) {
  return by_type(g.fc.type, [&](auto type) {
    using W = typename decltype(type)::type;
    const int64_t most = BackwardTiles(g).all;
    const Launch how{"excitation_backward", std::min<int64_t>(blocks, most), kThreads, kSharedBytes, 1, true};
    return has_whole_rows(g.fc, g.c) ? start(excitation_backward_kernel<W, Rows::whole>, how, stream, g)
                                     : start(excitation_backward_kernel<W, Rows::any>, how, stream, g);
  });
}

void list_excitation_backward(Instances& to) {
  for (const Type weights : kTypes)
    by_type(weights, [&](auto type) {
      using W = typename decltype(type)::type;
      const std::string name = "excitation_backward " + name_of(weights);
      add(to, name, excitation_backward_kernel<W, Rows::whole>, (int)kSharedBytes);
      add(to, name + ", any rows", excitation_backward_kernel<W, Rows::any>, (int)kSharedBytes);
    });
}

}  // namespace se_fused::cuda
