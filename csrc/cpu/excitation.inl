// Excitation, between the passes, on (N, C) vectors: the squeeze of the normalised map, two fully connected layers, the
// gate, and the coefficients that the passes need. se_fused/ops/excitation.py has the formulas and their derivation.

// ---- batch norm's coefficients
static void batch_norm(const BatchNormArgs& g, int64_t c0, int64_t c1) {
  const int64_t len = c1 - c0;
  float *mu = g.mu + c0, *var = g.var + c0;
  if (g.batch_stats) {
    // The samples' means are summed as differences from the first sample's mean, so that the rounding error scales with
    // their spread and not with their magnitude. If that one is not finite the shift is 0, so that an infinite mean
    // stays infinite, as in PyTorch.
    const float inverse_n = 1.f / (float)g.n, inverse_ns = 1.f / (float)(g.n * g.s);
    sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
      const float *mean = g.mean + c0 + i, *m2 = g.m2 + c0 + i;
      const F shift = finite_or_zero(a.get(mean));
      F spread = zero(), within = zero(), between = zero();
      for (int64_t n = 0; n < g.n; ++n) spread = spread + (a.get(mean + n * g.c) - shift);
      const F centre = shift + spread * splat(inverse_n);
      for (int64_t n = 0; n < g.n; ++n) {
        const F d = a.get(mean + n * g.c) - centre;
        within = within + a.get(m2 + n * g.c);
        between = between + d * d;
      }
      a.put(mu + i, centre);
      a.put(var + i, (within + between * splat((float)g.s)) * splat(inverse_ns));
    });
  }
  for (int64_t c = 0; c < len; ++c) {
    const float rstd = 1.f / __builtin_sqrtf(var[c] + g.eps);
    const float a = g.weight ? g.weight[c0 + c] * rstd : rstd;
    g.rstd[c0 + c] = rstd;
    g.a[c0 + c] = a;
    g.b[c0 + c] = (g.bias ? g.bias[c0 + c] : 0.f) - a * mu[c];
  }
}

// ---- matrix products: out[j][i] = sum_k v[j][k] * w[i][k]
// A weight rows by B vectors: A * B sums for A + B loads. 16 sums are reduced across their lanes together.
template <int A, int B, class W>
SE_INLINE void dot_block(const W* w, const float* v, int64_t k, float* out, int64_t ld) {
  F acc[A * B];
  each<A * B>([&](auto e) SE_LAMBDA { acc[e] = zero(); });
  sweep(k, [&](auto a, int64_t at) SE_LAMBDA {
    F left[A];
    each<A>([&](auto i) SE_LAMBDA { left[i] = a.own(a.get(w + i * k + at)); });
    each<B>([&](auto j) SE_LAMBDA {
      const F right = a.own(a.get(v + j * k + at));
      each<A>([&](auto i) SE_LAMBDA { acc[j * A + i] = acc[j * A + i] + left[i] * right; });
    });
  });
  if constexpr (A * B == 16) {
    float block[16];
    store(block, sums(acc));
    each<B>([&](auto j) SE_LAMBDA { __builtin_memcpy(out + j * ld, block + j * A, A * sizeof(float)); });
  } else {
    each<A * B>([&](auto e) SE_LAMBDA { out[e / A * ld + e % A] = sum(acc[e]); });
  }
}

// Rows and vectors per block: kTile * kTile sums fit into the registers.
constexpr int kTile = SE_VL == 16 ? 4 : 2;
// Floats in one group of vectors, which is multiplied by every row before the next group: 256 KB, half of a 512 KB L2.
constexpr int64_t kVectorFloats = 1 << 16;

// out[j * ld + i] for `rows` weight rows i and `vectors` vectors j; w: (rows, k), v: (vectors, k)
template <class W>
static void products(const W* w, int64_t rows, int64_t k, const float* v, int64_t vectors, float* out, int64_t ld) {
  const int64_t fit = k ? kVectorFloats / (k * kTile) : vectors;
  const int64_t step = (fit > 0 ? fit : 1) * kTile;
  for (int64_t first = 0; first < vectors; first += step) {
    const int64_t last = first + step < vectors ? first + step : vectors;
    int64_t i = 0;
    for (; i + kTile <= rows; i += kTile) {
      int64_t j = first;
      for (; j + kTile <= last; j += kTile) dot_block<kTile, kTile>(w + i * k, v + j * k, k, out + j * ld + i, ld);
      for (; j < last; ++j) dot_block<kTile, 1>(w + i * k, v + j * k, k, out + j * ld + i, ld);
    }
    for (int64_t rest = rows % kTile; rest > 0; --rest, ++i)
      for (int64_t j = first; j < last; ++j) dot_block<1, 1>(w + i * k, v + j * k, k, out + j * ld + i, ld);
  }
}

// ---- matrix products of the backward pass: out[i][j] = sum_k a[i][k] * b[k][j]; j is contiguous in b and out
struct Rows {  // a[i][k] = at[i * i_step + k * k_step]: rows or columns of a matrix in memory
  const float* at;
  int64_t i_step, k_step;
};

// I rows by J vectors of 16: I * J sums for I + J loads.
template <int I, int J, class A, class B>
SE_INLINE void outer_block(A a, Rows left, const B* b, int64_t ldb, int64_t k, float* out, int64_t ld) {
  F acc[I * J];
  each<I * J>([&](auto e) SE_LAMBDA { acc[e] = zero(); });
  for (int64_t at = 0; at < k; ++at) {
    F right[J];
    each<J>([&](auto j) SE_LAMBDA { right[j] = a.get(b + at * ldb + j * kLanes); });
    each<I>([&](auto i) SE_LAMBDA {
      const F one = splat(left.at[i * left.i_step + at * left.k_step]);
      each<J>([&](auto j) SE_LAMBDA { acc[i * J + j] = acc[i * J + j] + one * right[j]; });
    });
  }
  each<I * J>([&](auto e) SE_LAMBDA { a.put(out + e / J * ld + e % J * kLanes, acc[e]); });
}

template <int I, class B>
static void outer_rows(Rows left, const B* b, int64_t ldb, int64_t k, int64_t columns, float* out, int64_t ld) {
  int64_t done = 0;
  for (; done + kTile * kLanes <= columns; done += kTile * kLanes)
    outer_block<I, kTile>(Full{}, left, b + done, ldb, k, out + done, ld);
  sweep(columns - done,
        [&](auto a, int64_t j) SE_LAMBDA { outer_block<I, 1>(a, left, b + done + j, ldb, k, out + done + j, ld); });
}

template <class B>
static void outer(Rows left, int64_t rows, const B* b, int64_t ldb, int64_t k, int64_t columns, float* out,
                  int64_t ld) {
  int64_t i = 0;
  const auto from = [&](int64_t row) { return Rows{left.at + row * left.i_step, left.i_step, left.k_step}; };
  for (; i + kTile <= rows; i += kTile) outer_rows<kTile>(from(i), b, ldb, k, columns, out + i * ld, ld);
  for (; i < rows; ++i) outer_rows<1>(from(i), b, ldb, k, columns, out + i * ld, ld);
}

// ---- forward
static void squeeze(const ExcitationArgs& g, int64_t c0, int64_t c1) {
  if (!g.a) return;  // without batch norm the caller passes the means as z
  for (int64_t n = 0; n < g.n; ++n)
    sweep(c1 - c0, [&](auto a, int64_t i) SE_LAMBDA {
      const int64_t c = c0 + i;
      a.put(g.z + n * g.c + c, a.get(g.a + c) * a.get(g.mean + n * g.c + c) + a.get(g.b + c));
    });
}

template <class W>
static void fc1(const ExcitationArgs& g, int64_t r0, int64_t r1) {
  products((const W*)g.fc1_weight + r0 * g.c, r1 - r0, g.c, g.z, g.n, g.hidden + r0, g.r);
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t r = r0; r < r1; ++r) {
      float* const hidden = g.hidden + n * g.r + r;
      if (g.fc1_bias) *hidden += g.fc1_bias[r];
      g.active[n * g.r + r] = activate(g.act, *hidden);
    }
}

static void scale_shift(const ExcitationArgs& g, int64_t c0, int64_t c1) {
  for (int64_t n = 0; n < g.n; ++n) {
    const F drop = splat(g.drop ? g.drop[n] : 1.f);
    sweep(c1 - c0, [&](auto a, int64_t i) SE_LAMBDA {
      const int64_t c = c0 + i, at = n * g.c + c;
      const F factor = g.factor ? a.get(g.factor + at) * drop : drop;
      a.put(g.scale + at, g.a ? factor * a.get(g.a + c) : factor);
      a.put(g.shift + at, g.a ? factor * a.get(g.b + c) : zero());
    });
  }
}

// Writes the factor, scale and shift of up to 16 channels of one sample, from their FC2 sums. `a` accesses the
// channels.
template <class A>
struct Channels {
  const ExcitationArgs& g;
  A a;
  int64_t c;
  F bias, ga, gb;

  inline __attribute__((always_inline)) Channels(const ExcitationArgs& g, A a, int64_t c) : g(g), a(a), c(c) {
    bias = g.fc2_bias ? a.get(g.fc2_bias + c) : zero();
    ga = g.a ? a.get(g.a + c) : splat(1.f);
    gb = g.a ? a.get(g.b + c) : zero();
  }
  inline __attribute__((always_inline)) void put(int64_t n, F sums) {
    const int64_t at = n * g.c + c;
    const F opened = open_gate(g.gate, sums + bias);
    const F factor = opened * splat(g.drop ? g.drop[n] : 1.f);
    a.put(g.factor + at, opened);
    a.put(g.scale + at, factor * ga);
    a.put(g.shift + at, factor * gb);
  }
};

// FC2 for few samples: dot products along the weight's rows. Reading the weight dominates the time.
template <class A, class W>
SE_INLINE void fc2_few(const ExcitationArgs& g, A a, int64_t c, int count) {
  const W* const w = (const W*)g.fc2_weight + c * g.r;
  Channels<A> channels(g, a, c);
  constexpr int kSamples = 4;  // samples that share each read of a weight row
  float block[kSamples * kLanes] = {};
  for (int64_t first = 0; first < g.n; first += kSamples) {
    const int64_t samples = g.n - first < kSamples ? g.n - first : kSamples;
    products(w, count, g.r, g.active + first * g.r, samples, block, kLanes);
    for (int64_t j = 0; j < samples; ++j) channels.put(first + j, load(block + j * kLanes));
  }
}

// FC2 for many samples: 16 weight rows are transposed once, so that no sum runs across the lanes of a register.
constexpr int64_t kTurned = 512;  // the longest rows that are transposed: 16 of them take 32 KB
constexpr int kManySamples = 2 * kTile;

template <int I, class A>
SE_INLINE void fc2_samples(const ExcitationArgs& g, Channels<A>& channels, const float* columns, int64_t n) {
  F acc[I];
  each<I>([&](auto i) SE_LAMBDA { acc[i] = zero(); });
  for (int64_t r = 0; r < g.r; ++r) {
    const F column = load(columns + r * kLanes);
    each<I>([&](auto i) SE_LAMBDA { acc[i] = acc[i] + splat(g.active[(n + i) * g.r + r]) * column; });
  }
  each<I>([&](auto i) SE_LAMBDA { channels.put(n + i, acc[i]); });
}

template <class A, class W>
SE_INLINE void fc2_many(const ExcitationArgs& g, A a, int64_t c, int count) {
  const W* const w = (const W*)g.fc2_weight + c * g.r;
  Channels<A> channels(g, a, c);
  float columns[kTurned * kLanes];
  W row[kLanes] = {};
  for (int64_t r = 0; r < g.r; ++r) {
    for (int i = 0; i < count; ++i) row[i] = w[i * g.r + r];
    store(columns + r * kLanes, load(row));
  }
  int64_t n = 0;
  for (; n + kManySamples <= g.n; n += kManySamples) fc2_samples<kManySamples>(g, channels, columns, n);
  for (; n < g.n; ++n) fc2_samples<1>(g, channels, columns, n);
}

template <class A, class W>
SE_INLINE void fc2_block(const ExcitationArgs& g, A a, int64_t c, int count) {
  if (g.n >= 16 && g.r <= kTurned) return fc2_many<A, W>(g, a, c, count);
  fc2_few<A, W>(g, a, c, count);
}

template <class W>
static void fc2(const ExcitationArgs& g, int64_t c0, int64_t c1) {
  int64_t c = c0;
  for (; c + kLanes <= c1; c += kLanes) fc2_block<Full, W>(g, Full{}, c, kLanes);
  if (c < c1) fc2_block<Partial, W>(g, Partial{(int)(c1 - c)}, c, (int)(c1 - c));
}

// ---- backward
static void activate_hidden(const ExcitationBackwardArgs& g) {
  for (int64_t at = 0; at < g.n * g.r; ++at) g.active[at] = activate(g.act, g.hidden[at]);
}

// ds = d (a Q + z P), dq = ds gate', dW2 = dq^T h, db2 = sum_n dq
template <class W>
static void backward_fc2(const ExcitationBackwardArgs& g, int64_t c0, int64_t c1) {
  for (int64_t n = 0; n < g.n; ++n) {
    const F drop = splat(g.drop ? g.drop[n] : 1.f);
    sweep(c1 - c0, [&](auto a, int64_t i) SE_LAMBDA {
      const int64_t c = c0 + i, at = n * g.c + c;
      const F mean = a.get(g.mean + at), p = a.get(g.p + at), q = a.get(g.q + at);
      const F ga = g.a ? a.get(g.a + c) : splat(1.f);
      const F z = g.a ? ga * mean + a.get(g.b + c) : mean;
      a.put(g.z + at, z);
      a.put(g.dq + at, drop * (ga * q + z * p) * gate_slope(g.gate, a.get(g.factor + at)));
    });
  }
  for (int64_t c = c0; c < c1; ++c) g.dfc2_bias[c] = 0;
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t c = c0; c < c1; ++c) g.dfc2_bias[c] += g.dq[n * g.c + c];
  outer(Rows{g.dq + c0, 1, g.c}, c1 - c0, g.active, g.r, g.n, g.r, g.dfc2_weight + c0 * g.r, g.r);
}

// dhidden = (dq W2) act'
template <class W>
static void backward_hidden(const ExcitationBackwardArgs& g, int64_t n0, int64_t n1) {
  const Rows dq{g.dq + n0 * g.c, g.c, 1};
  outer(dq, n1 - n0, (const W*)g.fc2_weight, g.r, g.c, g.r, g.dhidden + n0 * g.r, g.r);
  for (int64_t at = n0 * g.r; at < n1 * g.r; ++at) g.dhidden[at] *= activate_slope(g.act, g.hidden[at]);
}

// dz = dhidden W1, dW1 = dhidden^T z, for the channels [c0, c1) of every row of W1
template <class W>
static void backward_fc1(const ExcitationBackwardArgs& g, int64_t c0, int64_t c1) {
  outer(Rows{g.dhidden, g.r, 1}, g.n, (const W*)g.fc1_weight + c0, g.c, g.r, c1 - c0, g.dz + c0, g.c);
  outer(Rows{g.dhidden, 1, g.r}, g.r, g.z + c0, g.c, g.n, c1 - c0, g.dfc1_weight + c0, g.c);
}

// g1 = d s P + dz, g2 = d s Q, dbeta = sum_n g1, dgamma = rstd sum_n(g2 + (m - mu) g1), and k1, k2, k3 of pass 2
template <class W>
static void backward_coefficients(const ExcitationBackwardArgs& g, int64_t c0, int64_t c1) {
  const F inverse_s = splat(1.f / (float)g.s), inverse_ns = splat(1.f / (float)(g.n * g.s));
  sweep(c1 - c0, [&](auto a, int64_t i) SE_LAMBDA {
    const int64_t c = c0 + i;
    F ga = splat(1.f), mu = zero(), rstd = splat(1.f), dbeta = zero(), dgamma = zero(), k2 = zero();
    const auto factor = [&](int64_t n) SE_LAMBDA {
      const F drop = splat(g.drop ? g.drop[n] : 1.f);
      return g.factor ? drop * a.get(g.factor + n * g.c + c) : drop;
    };
    if (g.a) {
      ga = a.get(g.a + c);
      mu = a.get(g.mu + c);
      rstd = a.get(g.rstd + c);
      for (int64_t n = 0; n < g.n; ++n) {
        const int64_t at = n * g.c + c;
        F g1 = factor(n) * a.get(g.p + at);
        if (g.factor) g1 = g1 + a.get(g.dz + at);
        dbeta = dbeta + g1;
        dgamma = dgamma + factor(n) * a.get(g.q + at) + (a.get(g.mean + at) - mu) * g1;
      }
      dgamma = dgamma * rstd;
      a.put(g.dbn_weight + c, dgamma);
      a.put(g.dbn_bias + c, dbeta);
      if (g.batch_stats) k2 = zero() - ga * rstd * dgamma * inverse_ns;
    }
    for (int64_t n = 0; n < g.n; ++n) {
      const int64_t at = n * g.c + c;
      F k3 = g.factor ? a.get(g.dz + at) * inverse_s : zero();
      if (g.a && g.batch_stats) k3 = k3 - dbeta * inverse_ns;
      a.put(g.k1 + at, ga * factor(n));
      a.put(g.k2 + at, k2);
      a.put(g.k3 + at, ga * k3 + k2 * (a.get(g.mean + at) - mu));
    }
  });
}
