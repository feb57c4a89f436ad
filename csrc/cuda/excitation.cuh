// The matrix products of the excitation. Each has N C R multiplications (34 M at N = 128, C = 2048), too few for tensor
// cores to matter. The time depends on few dependent steps that wait for L2 (0.2 to 0.7 us each), on bytes from L2, and
// on having a tile for every multiprocessor in each phase. A tile is therefore an object: its constructor loads the
// weights, which no other block writes, and is called before the wait for the phase whose results the tile needs.
#pragma once

#include "tiles.cuh"

namespace se_fused::cuda {

constexpr int kWarps = kThreads / kWarp;

// Resident blocks per multiprocessor of the excitation's kernels with 16-bit weights in whole rows, where nothing
// spills with 128 registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
constexpr int kBlocksExcitation = 1;
#else
constexpr int kBlocksExcitation = 2;
#endif

// Positions per split and in the last split, and the weights of their means in the mean of all positions. The divisions
// are done here: a division has a branch for rare operands, and a loop that contains one waits for each of its loads.
struct SplitWeights {
  float count, last_count, weight, last_weight;

  SE_DEVICE SplitWeights(int splits, int span, int positions)
      : count((float)span),
        last_count((float)(positions - (splits - 1) * span)),
        weight(count / (float)positions),
        last_weight(last_count / (float)positions) {}
};

// whole: C and R are multiples of 8 and all memory is aligned, so that rows are read in vectors of eight. any: elements
// are read one by one.
enum class Rows { whole, any };
SE_BOTH inline bool has_whole_rows(const ExcitationLayers& fc, int channels) {
  return channels % 8 == 0 && (!fc.fc1_weight || (fc.fc1_whole && fc.fc2_whole));
}

// Neighbouring elements of a row that a lane reads at a time, as they lie in memory.
template <Rows rows, class W>
struct Piece {
  static constexpr int kSize = 8;
  Raw<W> raw;

  SE_DEVICE static Piece load(const W* p) { return {load_raw<Use::keep>(p)}; }
  SE_DEVICE void get(float (&v)[8]) const { unpack(raw, v); }
};
template <class W>
struct Piece<Rows::any, W> {
  static constexpr int kSize = 1;
  W raw;

  SE_DEVICE static Piece load(const W* p) { return {load_fresh(p)}; }
  SE_DEVICE void get(float (&v)[1]) const { v[0] = to_float(raw); }
};

// Four neighbouring floats of a row. Elements from `end` on are zero, and are not stored.
template <Rows rows>
SE_DEVICE void load_four(const float* row, int at, int end, float (&v)[4]) {
  if (rows == Rows::whole) {
    uint4 q{};
    if (at < end) q = load16<Use::keep>(row + at);
    v[0] = as_float(q.x), v[1] = as_float(q.y), v[2] = as_float(q.z), v[3] = as_float(q.w);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = at + j < end ? load_fresh(row + at + j) : 0.f;
  }
}
template <Rows rows>
SE_DEVICE void store_four(float* row, int at, int end, const float (&v)[4]) {
  if (rows == Rows::whole) {
    if (at < end) *reinterpret_cast<float4*>(row + at) = {v[0], v[1], v[2], v[3]};
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (at + j < end) row[at + j] = v[j];
  }
}

// Fetches both weights into L2, where the phases wait for them less than half as long as in DRAM.
template <class W>
SE_DEVICE void prefetch_weights(const ExcitationLayers& fc, int channels) {
  if (!fc.fc1_weight) return;
  const int64_t bytes = (int64_t)fc.r * channels * sizeof(W), part = ceil_div(ceil_div(bytes, gridDim.x), 16) * 16;
  prefetch({fc.fc1_weight, bytes, part});
  prefetch({fc.fc2_weight, bytes, part});
}

// Elements of a parameter as they lie in memory. A conversion behind each load would wait for it before the next load
// starts; so kernels load all that they need, and convert where they use it.
template <int count>
struct Elements {
  uint32_t bits[count];

  // index(0), index(1), ...: which elements
  template <class Index>
  SE_DEVICE Elements(const Vector& from, const Index& index) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      bits[i] = 0;
      if (from.data)
        bits[i] = from.type == Type::float32 ? static_cast<const uint32_t*>(from.data)[index(i)]
                                             : static_cast<const uint16_t*>(from.data)[index(i)];
    }
  }
  SE_DEVICE float value(const Vector& from, float otherwise, int i = 0) const {
    if (!from.data) return otherwise;
    if (from.type == Type::float32) return as_float(bits[i]);
    return from.type == Type::bfloat16 ? to_float(BFloat16{(uint16_t)bits[i]}) : to_float(Half{(uint16_t)bits[i]});
  }
};

// Sums each of 32 (or 16) values over the lanes that differ in the bits from `last` on: lane i gets the sums of the
// `last` values from v[i / last * last] on (i modulo 16), in v[0], v[1], ... That takes 31 shuffles, where 32 sums over
// all lanes take 160.
template <int last = 1, int count, int offset = count / 2>
SE_DEVICE void sum_each(float (&v)[count]) {
  if constexpr (offset >= last) {
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < offset; ++i) {
      const float kept = upper ? v[i + offset] : v[i], given = upper ? v[i] : v[i + offset];
      v[i] = kept + __shfl_xor_sync(kAll, given, offset);
    }
    sum_each<last, count, offset / 2>(v);
  } else if constexpr (count < kWarp) {
#pragma unroll
    for (int i = 0; i < last; ++i) v[i] += __shfl_xor_sync(kAll, v[i], count);
  }
}

// Sums over the threads whose number has the same last bit, in a fixed order: over lanes, then over warps. All of them
// get the sums. shared: 2 * kWarps * count floats, which nothing else may use until the block's next barrier.
template <int count>
SE_DEVICE void sum_samples(float (&v)[count], float* shared) {
  const int warp = (int)threadIdx.x / kWarp, half = (int)threadIdx.x % 2;
#pragma unroll
  for (int i = 0; i < count; ++i)
#pragma unroll
    for (int offset = 2; offset < kWarp; offset *= 2) v[i] += __shfl_xor_sync(kAll, v[i], offset);
  if (threadIdx.x % kWarp < 2) {
#pragma unroll
    for (int i = 0; i < count; ++i) shared[(2 * warp + half) * count + i] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    v[i] = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) v[i] += shared[(2 * w + half) * count + i];
  }
}

// hidden[n, r] = sum_c W1[r, c] z[n, c] + b1[r] and its activation for 16 samples and 8 squeezed channels. Lanes lie
// along c with a piece each; up to eight warps lie along c as well, so that the block reads each element of z and W1
// once, and the other warps along n. A warp computes kN x 8 sums at a time: 4 x 8, or 2 x 8 in kernels with few
// registers.
constexpr int kHiddenN = 16, kHiddenR = 8;
constexpr int kHiddenShared = kWarps * kHiddenN * kHiddenR;  // floats

template <class W, Rows rows, int kN>
class HiddenTile {
  using Weights = Piece<rows, W>;
  using Values = Piece<rows, float>;

 public:
  SE_DEVICE HiddenTile(const ExcitationLayers& fc, int first_r, int channels)
      : fc_(fc),
        first_r_(first_r),
        channels_(channels),
        bias_(fc.fc1_bias, [&](int) { return min(own_r(), fc.r - 1); }) {
    const int thread = thread_here();
    while (parts_ < kWarps && parts_ * kSlice < channels) parts_ *= 2;
    first_c_ = thread / kWarp % parts_ * kSlice + Weights::kSize * (thread % kWarp);
    load_weights(min(first_c_, channels - Weights::kSize));
  }

  // Writes hidden, unless it is null, and its activation for the samples [first_n, first_n + 16) before end_n.
  SE_DEVICE void run(const float* z, float* hidden, float* activated, int64_t first_n, int64_t end_n, float* shared) {
    const int warp = thread_here() / kWarp, lane = thread_here() % kWarp;
#pragma unroll 1
    for (int group = warp / parts_; group < kHiddenN / kN; group += kWarps / parts_) {
      const int64_t n0 = first_n + kN * group;
      if (n0 >= end_n) break;
      float total[kN * kHiddenR] = {};
#pragma unroll 1
      for (int c = first_c_; c < channels_; c += kSlice * parts_) {
        Values values[kN];
#pragma unroll
        for (int i = 0; i < kN; ++i)  // past the end the last sample is used again, and its results are dropped
          values[i] = Values::load(z + min(n0 + i, end_n - 1) * channels_ + c);
        if (kSlice * kWarps < channels_) load_weights(c);  // else they are those of the constructor
#pragma unroll
        for (int j = 0; j < kHiddenR; ++j) {
          float w[Weights::kSize];
          weights_[j].get(w);
#pragma unroll
          for (int i = 0; i < kN; ++i) {
            float v[Weights::kSize];
            values[i].get(v);
#pragma unroll
            for (int k = 0; k < Weights::kSize; ++k) total[i * kHiddenR + j] += v[k] * w[k];
          }
        }
      }
      sum_each(total);
      if (lane < kN * kHiddenR) shared[(warp % parts_ * kHiddenN + kN * group) * kHiddenR + lane] = total[0];
    }
    __syncthreads();
    const int thread = thread_here();
    const int64_t n = first_n + thread / kHiddenR;
    if (thread >= kHiddenN * kHiddenR || n >= end_n || own_r() >= fc_.r) return;
    float sum = 0.f;
    for (int part = 0; part < parts_; ++part) sum += shared[part * kHiddenN * kHiddenR + thread];
    sum += bias_.value(fc_.fc1_bias, 0.f);
    if (hidden) hidden[n * fc_.r + own_r()] = sum;
    activated[n * fc_.r + own_r()] = activate(fc_.act, sum);
  }

 private:
  static constexpr int kSlice = Weights::kSize * kWarp;  // channels of a warp

  SE_DEVICE int own_r() const { return first_r_ + thread_here() % kHiddenR; }
  SE_DEVICE void load_weights(int c) {
#pragma unroll
    for (int j = 0; j < kHiddenR; ++j) {
      const int r = rows == Rows::whole ? first_r_ + j : min(first_r_ + j, fc_.r - 1);
      weights_[j] = Weights::load(static_cast<const W*>(fc_.fc1_weight) + (int64_t)r * channels_ + c);
    }
  }

  const ExcitationLayers& fc_;
  int first_r_, channels_, parts_ = 1, first_c_;
  Elements<1> bias_;
  Weights weights_[kHiddenR];
};

// s[n, c] = gate(sum_r W2[c, r] activated[n, r] + b2[c]) for 32 samples and 32 channels, written to factor unless it is
// null; scale = d s a, shift = d s b. Lanes lie along c, and a warp has four samples. shared: kExciteShared floats.
constexpr int kExciteN = 32, kExciteC = 32, kExciteStep = 128;
constexpr int kExciteShared = kExciteN * kExciteStep;
static_assert(kExciteShared >= kHiddenShared);

struct Excite {
  const float* activated;
  const Norm& norm;
  const Vector& drop;
  float *factor, *scale, *shift;
};

template <class W, Rows rows>
class ExciteTile {
  using Weights = Piece<rows, W>;

 public:
  SE_DEVICE ExciteTile(const ExcitationLayers& fc, int first_c, int channels)
      : fc_(fc),
        thread_(thread_here()),
        c_(first_c + thread_ % kWarp),
        channels_(channels),
        bias_(fc.fc2_bias, [&](int) { return min(c_, channels - 1); }) {
    row_ = static_cast<const W*>(fc.fc2_weight) + (int64_t)min(c_, channels - 1) * fc.r;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) weights_[i] = Weights::load(row_ + min(Weights::kSize * i, fc.r - Weights::kSize));
  }

  SE_DEVICE void run(const Excite& g, int64_t first_n, int64_t end_n, float* shared) {
    const int warp = thread_ / kWarp, lane = thread_ % kWarp;
    const int64_t n0 = first_n + 4 * warp;
    const float* const values = shared + 4 * warp * kExciteStep;
    const auto own = [&](int) { return min(c_, channels_ - 1); };
    const Elements<1> mean(g.norm.mean, own), var(g.norm.var, own), weight(g.norm.weight, own), beta(g.norm.bias, own);
    const Elements<4> drop(g.drop, [&](int i) { return min(n0 + i, end_n - 1); });
    float total[4] = {};
#pragma unroll 1
    for (int r0 = 0; r0 < fc_.r; r0 += kExciteStep) {
      const int steps = min(kExciteStep, fc_.r - r0);
      float staged[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        load_four<rows>(g.activated + min(first_n + warp + i * kWarps, end_n - 1) * fc_.r, r0 + 4 * lane, fc_.r,
                        staged[i]);
      if (r0) __syncthreads();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<float4*>(shared + (warp + i * kWarps) * kExciteStep + 4 * lane) = {
            staged[i][0], staged[i][1], staged[i][2], staged[i][3]};
      __syncthreads();
      if (n0 >= end_n) continue;
      int r = 0;
      if (r0 == 0) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (Weights::kSize * i < steps) multiply(weights_[i], values + Weights::kSize * i, total);
        r = Weights::kSize * kAhead;
      }
#pragma unroll 4
      for (; r < steps; r += Weights::kSize) multiply(Weights::load(row_ + r0 + r), values + r, total);
    }
    if (c_ >= channels_) return;
    ChannelNorm u{0.f, 1.f, 1.f, 0.f};
    if (g.norm.mean.data)
      u = channel_norm(g.norm, mean.value(g.norm.mean, 0.f), var.value(g.norm.var, 1.f),
                       weight.value(g.norm.weight, 1.f), beta.value(g.norm.bias, 0.f));
    const float bias = bias_.value(fc_.fc2_bias, 0.f);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int64_t n = n0 + i; n < end_n) {
        const float s = open_gate(fc_.gate, total[i] + bias), ds = s * drop.value(g.drop, 1.f, i);
        const int64_t at = n * channels_ + c_;
        if (g.factor) g.factor[at] = s;
        g.scale[at] = ds * u.a;
        g.shift[at] = ds * u.b();
      }
  }

 private:
  static constexpr int kAhead = 16 / (int)sizeof(W);  // pieces of a row of W2: R = 64 in 16 bits

  // Products of a piece for each of the warp's four samples, whose values all lanes read: 32 FMAs per 8 loads from
  // shared memory.
  SE_DEVICE void multiply(const Weights& piece, const float* values, float (&total)[4]) const {
    float w[Weights::kSize];
    piece.get(w);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const own = values + i * kExciteStep;
      if constexpr (rows == Rows::whole) {
#pragma unroll
        for (int k = 0; k < 8; k += 4) {
          const float4 v = *reinterpret_cast<const float4*>(own + k);
          total[i] += w[k] * v.x;
          total[i] += w[k + 1] * v.y;
          total[i] += w[k + 2] * v.z;
          total[i] += w[k + 3] * v.w;
        }
      } else {
        total[i] += w[0] * *own;
      }
    }
  }

  const ExcitationLayers& fc_;
  const W* row_;
  int thread_, c_, channels_;
  Elements<1> bias_;
  Weights weights_[kAhead];
};

}  // namespace se_fused::cuda
