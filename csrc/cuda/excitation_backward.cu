// The excitation's backward pass: from P and Q, (splits, N, C), to the coefficients of dx and the gradients of all
// parameters, in one launch of three phases. `excitation_backward` in se_fused/ops/excitation.py has the formulas.
//
// 1. merge: adds up the splits of P and Q; dq = gate'(s) d (a Q + z P).
// 2. dhidden = act'(hidden) (dq W2).
// 3. channels: one tile per 32 channels, over all samples: dz = dhidden W1, dgamma and dbeta, then k1, k2, k3.
//    weights: one tile per 32 channels and 32 squeezed channels, over all samples: dW1, dW2 and the biases' gradients.
// No sum over samples is split between blocks, so none needs an atomic.
#include "excitation.cuh"
#include "launch.cuh"

namespace se_fused::cuda {

constexpr int kMergeTile = 4 * kThreads;
constexpr int kDhiddenN = 4, kDhiddenR = 32;
constexpr int kBlockC = 32, kBlockR = 32, kSamples = 32;
constexpr int kStep = 64, kPitch = kSamples + 4;  // dhidden in shared memory: kStep rows of r, 16-byte aligned
constexpr int kShared = 4 * kSamples * kBlockC;   // floats; weights_tile needs the most
static_assert(kShared >= kStep * kPitch && kShared >= kWarps * kDhiddenN * kDhiddenR);

static SE_DEVICE void merge_tile(const ExcitationBackward& g, int tile) {
  const int64_t all = g.n * g.c, end = min((int64_t)(tile + 1) * kMergeTile, all);
  for (int64_t at = (int64_t)tile * kMergeTile + threadIdx.x; at < end; at += kThreads) {
    float p = 0.f, q = 0.f;
#pragma unroll 8
    for (int k = 0; k < g.splits; ++k) p += g.p_parts[k * all + at], q += g.q_parts[k * all + at];
    if (g.splits > 1) g.p[at] = p, g.q[at] = q;
    if (g.fc.fc1_weight) {
      const int64_t n = at / g.c;
      const ChannelNorm u = channel_norm(g.norm, (int)(at - n * g.c));
      const float ds = get_or(g.drop, n, 1.f) * (u.a * q + u(g.mean[at]) * p);
      g.dq[at] = ds * gate_slope(g.fc.gate, g.factor[at]);
    }
  }
}

// dhidden for 4 samples and 32 squeezed channels. Of a warp's lanes, four lie along r, each with a vector of a row of
// W2, and eight along c. Warps lie along c.
template <class W>
SE_DEVICE void dhidden_tile(const ExcitationBackward& g, int64_t n0, int r0, float* shared) {
  const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp;
  const int r = r0 + 8 * (lane % 4), squeezed = g.fc.r;
  float total[kDhiddenN][8] = {};
#pragma unroll 4
  for (int c = 8 * warp + lane / 4; c < g.c; c += 8 * kWarps) {
    float w[8];
    Raw<W> raw{};
    if (r < squeezed)
      raw = load_row(static_cast<const W*>(g.fc.fc2_weight) + (int64_t)c * squeezed, r, squeezed, g.fc.fc2_whole);
    unpack(raw, w);
#pragma unroll
    for (int i = 0; i < kDhiddenN; ++i) {
      const float dq = load_fresh(g.dq + min(n0 + i, g.n - 1) * g.c + c);
#pragma unroll
      for (int k = 0; k < 8; ++k) total[i][k] += dq * w[k];
    }
  }
#pragma unroll
  for (int i = 0; i < kDhiddenN; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) total[i][k] += __shfl_xor_sync(kAll, total[i][k], offset);
      if (lane < 4) shared[(warp * kDhiddenN + i) * kDhiddenR + 8 * lane + k] = total[i][k];
    }
  __syncthreads();
  const int i = (int)threadIdx.x / kDhiddenR, own = r0 + (int)threadIdx.x % kDhiddenR;
  if (i < kDhiddenN && n0 + i < g.n && own < squeezed) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared[(w * kDhiddenN + i) * kDhiddenR + own - r0];
    const int64_t at = (n0 + i) * squeezed + own;
    g.dhidden[at] = sum * activate_slope(g.fc.act, g.hidden[at]);
  }
}

// Phase 3, channels. Lanes lie along c, and a warp has four samples. dz is stored in k3 between the two loops over the
// samples; the thread that wrote it reads it.
template <class W>
SE_DEVICE void channels_tile(const ExcitationBackward& g, int c0, float* shared) {
  const int warp = (int)threadIdx.x / kWarp, c = c0 + (int)threadIdx.x % kWarp, squeezed = g.fc.r;
  const bool exists = c < g.c, has_excitation = g.fc.fc1_weight != nullptr, norm = g.norm.mean.data != nullptr;
  const ChannelNorm u = channel_norm(g.norm, exists ? c : 0);
  const W* const weights = static_cast<const W*>(g.fc.fc1_weight);
  const auto factor = [&](int64_t n) {
    return get_or(g.drop, n, 1.f) * (has_excitation ? g.factor[n * g.c + c] : 1.f);
  };
  float dbeta = 0.f, dgamma = 0.f;
  for (int64_t first = 0; first < g.n; first += kSamples) {
    float dz[4] = {};
    for (int r0 = 0; has_excitation && r0 < squeezed; r0 += kStep) {
      __syncthreads();
      for (int i = (int)threadIdx.x; i < kSamples * kStep; i += kThreads) {
        const int64_t n = first + i / kStep;
        const int r = r0 + i % kStep;
        shared[i % kStep * kPitch + i / kStep] =
            n < g.n && r < squeezed ? load_fresh(g.dhidden + n * squeezed + r) : 0.f;
      }
      __syncthreads();
      if (!exists) continue;
      const int steps = min(kStep, squeezed - r0);
#pragma unroll 8
      for (int r = 0; r < steps; ++r) {
        const float w = to_float(weights[(int64_t)(r0 + r) * g.c + c]);
#pragma unroll
        for (int i = 0; i < 4; ++i) dz[i] += w * shared[r * kPitch + 4 * warp + i];
      }
    }
    if (!exists) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int64_t n = first + 4 * warp + i; n < g.n) {
        const int64_t at = n * g.c + c;
        if (has_excitation) g.k3[at] = dz[i];
        if (norm) {
          const float ds = factor(n), g1 = ds * load_fresh(g.p + at) + dz[i];
          dbeta += g1;
          dgamma += ds * load_fresh(g.q + at) + (g.mean[at] - u.mu) * g1;
        }
      }
  }
  float by_x = 0.f, constant = 0.f;
  const float positions = (float)g.s, samples = (float)g.n;
  if (norm) {
    __syncthreads();
    shared[threadIdx.x] = dbeta;
    shared[kThreads + threadIdx.x] = dgamma;
    __syncthreads();
    dbeta = dgamma = 0.f;
    for (int w = 0; w < kWarps; ++w) {
      dbeta += shared[w * kWarp + threadIdx.x % kWarp];
      dgamma += shared[kThreads + w * kWarp + threadIdx.x % kWarp];
    }
    dgamma *= u.rstd;
    if (exists && warp == 0) put(g.dbn_weight, c, dgamma), put(g.dbn_bias, c, dbeta);
    // Divided by S and by N in two steps, because float32 may not represent N S exactly.
    if (g.batch_stats) by_x = -u.a * u.rstd * dgamma / positions / samples, constant = dbeta / positions / samples;
  }
  if (!exists) return;
  for (int64_t first = 0; first < g.n; first += kSamples)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int64_t n = first + 4 * warp + i; n < g.n) {
        const int64_t at = n * g.c + c;
        g.k1[at] = u.a * factor(n);
        g.k3[at] = u.a * ((has_excitation ? g.k3[at] / positions : 0.f) - constant) + by_x * (g.mean[at] - u.mu);
        if (g.k2) g.k2[at] = by_x;
      }
}

// Phase 3, weights. Lanes lie along c, and a warp has four squeezed channels. Sums are over all samples.
static SE_DEVICE void weights_tile(const ExcitationBackward& g, int c0, int r0, float* shared) {
  const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp, squeezed = g.fc.r;
  float *const z = shared, *const dq = z + kSamples * kBlockC, *const h = dq + kSamples * kBlockC,
               *const dhidden = h + kSamples * kBlockR;
  const int c = c0 + lane, r = r0 + lane, first_r = 4 * warp;
  const ChannelNorm u = channel_norm(g.norm, min(c, g.c - 1));
  float first[4] = {}, second[4] = {}, first_bias[4] = {}, second_bias = 0.f;
  for (int64_t n0 = 0; n0 < g.n; n0 += kSamples) {
    __syncthreads();
    for (int i = (int)threadIdx.x; i < kSamples * kWarp; i += kThreads) {  // i % kWarp is this thread's lane
      const int64_t n = n0 + i / kWarp;
      const bool in_c = n < g.n && c < g.c, in_r = n < g.n && r < squeezed;
      z[i] = in_c ? u(g.mean[n * g.c + c]) : 0.f;
      dq[i] = in_c ? load_fresh(g.dq + n * g.c + c) : 0.f;
      h[i] = in_r ? activate(g.fc.act, g.hidden[n * squeezed + r]) : 0.f;
      dhidden[i] = in_r ? load_fresh(g.dhidden + n * squeezed + r) : 0.f;
    }
    __syncthreads();
    const int samples = (int)min((int64_t)kSamples, g.n - n0);
#pragma unroll 4
    for (int n = 0; n < samples; ++n) {
      const float by_z = z[n * kWarp + lane], by_q = dq[n * kWarp + lane];
      second_bias += by_q;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float by_hidden = dhidden[n * kWarp + first_r + i];
        first[i] += by_hidden * by_z;
        second[i] += by_q * h[n * kWarp + first_r + i];
        first_bias[i] += by_hidden;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (const int own = r0 + first_r + i; own < squeezed) {
      if (c < g.c) {
        put(g.dfc1_weight, (int64_t)own * g.c + c, first[i]);
        put(g.dfc2_weight, (int64_t)c * squeezed + own, second[i]);
      }
      if (c0 == 0 && lane == 0) put(g.dfc1_bias, own, first_bias[i]);
    }
  if (r0 == 0 && warp == 0 && c < g.c) put(g.dfc2_bias, c, second_bias);
}

struct BackwardTiles {
  int merge, r, hidden, c, weights_r, all;

  SE_BOTH explicit BackwardTiles(const ExcitationBackward& g) {
    const bool has_excitation = g.fc.fc1_weight != nullptr;
    merge = has_excitation || g.splits > 1 ? (int)ceil_div(g.n * g.c, kMergeTile) : 0;
    r = has_excitation ? (int)ceil_div(g.fc.r, kDhiddenR) : 0;
    hidden = r * (int)ceil_div(g.n, kDhiddenN);
    c = (int)ceil_div(g.c, kBlockC);
    weights_r = has_excitation ? (int)ceil_div(g.fc.r, kBlockR) : 0;
    all = merge + hidden + c + c * weights_r;
  }
};

template <class W>
SE_KERNEL(kThreads, 1)
excitation_backward_kernel(SE_CONSTANT ExcitationBackward g) {
  allow_dependents();
  prefetch_weights<W>(g.fc, g.c);
  dependency_wait();  // also before the first ticket: pass 1 zeroes the counters
  SE_SHARED(memory);
  float* const shared = reinterpret_cast<float*>(memory);
  int* const slot = reinterpret_cast<int*>(shared + kShared);
  const BackwardTiles tiles(g);
  for (int ticket; (ticket = take(g.counters, slot)) < tiles.all;) {
    if (ticket < tiles.merge) {
      merge_tile(g, ticket);
      done(g.counters + 1);
    } else if (ticket < tiles.merge + tiles.hidden) {
      const int tile = ticket - tiles.merge;
      wait(g.counters + 1, tiles.merge);
      dhidden_tile<W>(g, (int64_t)(tile / tiles.r) * kDhiddenN, tile % tiles.r * kDhiddenR, shared);
      done(g.counters + 2);
    } else {
      const int tile = ticket - tiles.merge - tiles.hidden;
      wait(g.counters + 1, tiles.merge);
      wait(g.counters + 2, tiles.hidden);
      if (tile < tiles.c) {
        channels_tile<W>(g, tile * kBlockC, shared);
      } else {
        const int rest = tile - tiles.c;
        weights_tile(g, rest / tiles.weights_r * kBlockC, rest % tiles.weights_r * kBlockR, shared);
      }
    }
  }
}

constexpr size_t kSharedBytes = kShared * sizeof(float) + sizeof(int);

Error launch(const ExcitationBackward& g, int blocks, Stream stream) {
  return by_type(g.fc.type, [&](auto type) {
    const int most = BackwardTiles(g).all;
    return start(excitation_backward_kernel<typename decltype(type)::type>,
                 {"excitation_backward", blocks < most ? blocks : most, kThreads, kSharedBytes, 1, true}, stream, g);
  });
}

void list_excitation_backward(Instances& to) {
  for (const Type weights : kTypes)
    by_type(weights, [&](auto type) {
      add(to, "excitation_backward " + name_of(weights), excitation_backward_kernel<typename decltype(type)::type>,
          (int)kSharedBytes);
    });
}

}  // namespace se_fused::cuda
