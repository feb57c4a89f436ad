// F, a vector of 16 floats for any instruction set, built on the vector extensions of GCC and Clang.
//
// kernels.inl includes this file inside one namespace per instruction set. Everything is static, so the linker cannot
// choose a function compiled for AVX-512 for a machine without it.

// SE_VL: floats per register. kernels_*.cpp defines it, because GCC 12 does not define __AVX512F__ and similar macros
// for `#pragma GCC target("arch=...")`.
#ifndef SE_VL
#define SE_VL 4
#endif
#define SE_INLINE static inline __attribute__((always_inline))
#define SE_LAMBDA __attribute__((always_inline))

constexpr int kLanes = 16;
constexpr int kParts = kLanes / SE_VL;

typedef float vf __attribute__((vector_size(SE_VL * 4)));
typedef int32_t vi __attribute__((vector_size(SE_VL * 4)));
typedef uint32_t vu __attribute__((vector_size(SE_VL * 4)));
typedef uint16_t vh __attribute__((vector_size(SE_VL * 2)));
typedef float vf_mem __attribute__((vector_size(SE_VL * 4), aligned(4), may_alias));
typedef int32_t vi_mem __attribute__((vector_size(SE_VL * 4), aligned(4), may_alias));
typedef uint16_t vh_mem __attribute__((vector_size(SE_VL * 2), aligned(2), may_alias));

struct F {
  vf p[kParts];
};
struct M {  // lanes: all ones or zero
  vi p[kParts];
};

#define SE_EACH for (int j = 0; j < kParts; ++j)
#define SE_OPERATOR(op)                \
  SE_INLINE F operator op(F a, F b) {  \
    F y;                               \
    SE_EACH y.p[j] = a.p[j] op b.p[j]; \
    return y;                          \
  }
SE_OPERATOR(+)
SE_OPERATOR(-)
SE_OPERATOR(*)
SE_OPERATOR(/)
#undef SE_OPERATOR

SE_INLINE vf splat_part(float v) { return v - vf{}; }
SE_INLINE F splat(float v) {
  F y;
  SE_EACH y.p[j] = splat_part(v);
  return y;
}
SE_INLINE F zero() {
  F y;
  SE_EACH y.p[j] = vf{};
  return y;
}
SE_INLINE F select(M m, F a, F b) {
  F y;
  SE_EACH y.p[j] = (vf)((m.p[j] & (vi)a.p[j]) | (~m.p[j] & (vi)b.p[j]));
  return y;
}
SE_INLINE F keep(M m, F a) {
  F y;
  SE_EACH y.p[j] = (vf)(m.p[j] & (vi)a.p[j]);
  return y;
}
#define SE_COMPARE(name, expression)   \
  SE_INLINE M name(F a, F b) {         \
    M m;                               \
    SE_EACH m.p[j] = (vi)(expression); \
    return m;                          \
  }
SE_COMPARE(greater, a.p[j] > b.p[j])
SE_COMPARE(less, a.p[j] < b.p[j])
SE_COMPARE(less_equal, a.p[j] <= b.p[j])
SE_COMPARE(not_equal, a.p[j] != b.p[j])
#undef SE_COMPARE

SE_INLINE float sum(F a) {
  vf t = a.p[0];
  for (int j = 1; j < kParts; ++j) t += a.p[j];
#if SE_VL == 16
  return _mm512_reduce_add_ps((__m512)t);
#else
  float buffer[SE_VL];
  *(vf_mem*)buffer = t;
  for (int width = SE_VL / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) buffer[i] += buffer[i + width];
  return buffer[0];
#endif
}

// Lane i of the result is sum(a[i]). With AVX-512 one tree of shuffles: three instructions per sum instead of ten.
SE_INLINE F sums(const F* a) {
#if SE_VL == 16
#define SE_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
  vf t[16];
  for (int i = 0; i < 8; ++i) {
    const vf x = a[2 * i].p[0], y = a[2 * i + 1].p[0];
    t[i] = SE_SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SE_SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const vf x = t[2 * i], y = t[2 * i + 1];
    t[i] = SE_SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SE_SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const vf x = t[2 * i], y = t[2 * i + 1];
    t[i] = SE_SHUFFLE(x, y, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           SE_SHUFFLE(x, y, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return F{{SE_SHUFFLE(t[0], t[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
            SE_SHUFFLE(t[0], t[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)}};
#undef SE_SHUFFLE
#else
  F y;
  float* const lane = (float*)&y;
  for (int i = 0; i < kLanes; ++i) lane[i] = sum(a[i]);
  return y;
#endif
}

// ---- conversions
SE_INLINE F load(const float* p) {
  F y;
  SE_EACH y.p[j] = *(const vf_mem*)(p + j * SE_VL);
  return y;
}
SE_INLINE void store(float* p, F v) { SE_EACH*(vf_mem*)(p + j * SE_VL) = v.p[j]; }

// 16 bits to 32 and back (the upper 16 bits are dropped). GCC 12 compiles the generic form to a dozen shuffles.
SE_INLINE vu widen(vh v) {
#if SE_VL == 16
  return (vu)_mm512_cvtepu16_epi32((__m256i)v);
#elif SE_VL == 8
  return (vu)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, vu);
#endif
}
SE_INLINE vh narrow(vu v) {
#if SE_VL == 16
  return (vh)_mm512_cvtepi32_epi16((__m512i)v);
#elif SE_VL == 8
  const __m256i low = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(0xffff));
  return (vh)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
#else
  return __builtin_convertvector(v, vh);
#endif
}

SE_INLINE F load(const BFloat16* p) {
  F y;
  SE_EACH { y.p[j] = (vf)(widen(*(const vh_mem*)(p + j * SE_VL)) << 16); }
  return y;
}
SE_INLINE void store(BFloat16* p, F v) {
  SE_EACH {
    const vu bits = (vu)v.p[j];
    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const vu nan = (vu)(v.p[j] != v.p[j]);
    *(vh_mem*)(p + j * SE_VL) = narrow((nan & 0x7fc0u) | (~nan & rounded));
  }
}

#if SE_VL == 16
SE_INLINE F load(const Half* p) { return F{{(vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}}; }
SE_INLINE void store(Half* p, F v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v.p[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif SE_VL == 8
SE_INLINE F load(const Half* p) {
  F y;
  SE_EACH y.p[j] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + j * SE_VL)));
  return y;
}
SE_INLINE void store(Half* p, F v) {
  SE_EACH _mm_storeu_si128((__m128i*)(p + j * SE_VL),
                           _mm256_cvtps_ph((__m256)v.p[j], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
SE_INLINE F load(const Half* p) {
  F y;
  SE_EACH {
    const vu h = __builtin_convertvector(*(const vh_mem*)(p + j * SE_VL), vu);
    const vu magnitude = (h & 0x7fffu) << 13;
    vu bits = (vu)((vf)magnitude * splat_part(0x1p112f));  // exponent bias 15 -> 127, subnormals included
    const vu special = (vu)(magnitude >= (0x7c00u << 13));
    bits |= special & 0x7f800000u;
    y.p[j] = (vf)(bits | ((h & 0x8000u) << 16));
  }
  return y;
}
SE_INLINE void store(Half* p, F v) {
  SE_EACH {
    const vu bits = (vu)v.p[j];
    const vu sign = (bits >> 16) & 0x8000u;
    const vu magnitude = bits & 0x7fffffffu;
    // Below 2^-14 adding 0.5 leaves the rounded subnormal in the low bits.
    const vu subnormal = (vu)((vf)magnitude + splat_part(0.5f)) - 0x3f000000u;
    const vu normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const vu is_subnormal = (vu)(magnitude < 0x38800000u);
    const vu overflows = (vu)(magnitude >= 0x477ff000u);  // 65520 rounds to infinity
    const vu nan = (vu)(v.p[j] != v.p[j]);
    vu half = (is_subnormal & subnormal) | (~is_subnormal & normal);
    half = (overflows & 0x7c00u) | (~overflows & half);
    half = (nan & 0x7e00u) | (~nan & half);
    *(vh_mem*)(p + j * SE_VL) = __builtin_convertvector(half | sign, vh);
  }
}
#endif

SE_INLINE float element(const float* p) { return *p; }
SE_INLINE float from_bits(uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, 4);
  return v;
}
SE_INLINE float element(const BFloat16* p) { return from_bits((uint32_t)p->bits << 16); }
SE_INLINE float element(const Half* p) {  // the same conversion as the generic load above
  const uint32_t magnitude = (uint32_t)(p->bits & 0x7fff) << 13, sign = (uint32_t)(p->bits & 0x8000) << 16;
  const float v = from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  return from_bits(bits | sign | (magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u));
}

// v rounded to type T and converted back to float
template <class T>
SE_INLINE F rounded(F v) {
  T buffer[kLanes];
  store(buffer, v);
  return load(buffer);
}

// ---- bits: bit i of the result belongs to lane i
alignas(64) static const int32_t kWeights[16] = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                                 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};

// Bit i is set if v > 0 or v is NaN, where PyTorch's ReLU passes the gradient.
SE_INLINE uint32_t positive_bits(F v) {
#if SE_VL == 16
  return _mm512_cmp_ps_mask((__m512)v.p[0], _mm512_setzero_ps(), _CMP_NLE_UQ);
#elif SE_VL == 8
  uint32_t bits = 0;
  SE_EACH bits |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)v.p[j], _mm256_setzero_ps(), _CMP_NLE_UQ))
                  << (j * SE_VL);
  return bits;
#else
  uint32_t bits = 0;
  SE_EACH {
    const vi picked = ~(v.p[j] <= vf{}) & *(const vi_mem*)(kWeights + j * SE_VL);
    bits |= (uint32_t)(picked[0] | picked[1] | picked[2] | picked[3]);
  }
  return bits;
#endif
}

SE_INLINE F keep_bits(uint32_t bits, F v) {
#if SE_VL == 16
  return F{{(vf)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)v.p[0])}};
#else
  F y;
  SE_EACH {
    const vi weights = *(const vi_mem*)(kWeights + j * SE_VL);
    const vi on = (((int32_t)bits - vi{}) & weights) == weights;
    y.p[j] = (vf)(on & (vi)v.p[j]);
  }
  return y;
#endif
}

// A loop unrolled by template recursion, so that arrays indexed by its counter stay in registers. GCC 12 unrolls
// ordinary loops too late for that: the matrix product of excitation.inl ran at a quarter of its speed.
template <int K>
struct Index {
  static constexpr int value = K;
  constexpr operator int() const { return K; }
};
template <int N, int K = 0, class Body>
SE_INLINE void each(Body body) {
  if constexpr (K < N) {
    body(Index<K>{});
    each<N, K + 1>(body);
  }
}

// ---- functions
// exp to about 1 ulp, after Cephes' expf: range reduction by ln 2 in two parts, then a degree-5 polynomial.
SE_INLINE F exp_(F x) {
  const F high = splat(88.72283f), low = splat(-87.33654f), magic = splat(12582912.f);
  const M over = greater(x, high), under = less(x, low), nan = not_equal(x, x);
  const F t = select(over, high, select(under, low, x));
  const F n = (t * splat(1.44269504088896341f) + magic) - magic;
  const F r = (t - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  F y = splat(1.9875691500e-4f);
  y = y * r + splat(1.3981999507e-3f);
  y = y * r + splat(8.3334519073e-3f);
  y = y * r + splat(4.1665795894e-2f);
  y = y * r + splat(1.6666665459e-1f);
  y = y * r + splat(5.0000001201e-1f);
  y = y * (r * r) + r + splat(1.f);
  F power;  // 2^n as two factors: n reaches 128, and 2^128 is infinite
  SE_EACH {
    const vi whole = __builtin_convertvector(n.p[j], vi);
    const vi half = whole >> 1;
    power.p[j] = (vf)((half + 127) << 23);
    y.p[j] *= (vf)((whole - half + 127) << 23);
  }
  y = y * power;
  y = select(over, splat(__builtin_inff()), select(under, zero(), y));
  return select(nan, x, y);
}
