// Loops along a row in steps of 16 elements, and the load and store methods of a step.
//
// If the row's length is not a multiple of 16, the last step starts 16 elements before the row's end and repeats some
// elements (`Overlap`). A row shorter than 16 uses a masked access or a buffer (`Partial`). Neither reads past the row.

static const int32_t kLastLanes[32] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
static const int32_t kFirstLanes[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                        0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

SE_INLINE M lanes(const int32_t* table) {
  M m;
  SE_EACH m.p[j] = *(const vi_mem*)(table + j * SE_VL);
  return m;
}

// Non-temporal stores: they bypass the caches and do not first read the lines that they overwrite (a quarter of the
// traffic of scale_shift_act). The address must be aligned to the store's size; call fence() after the last one.
#if SE_VL == 16
SE_INLINE void store_past(float* p, F v) { _mm512_stream_ps(p, (__m512)v.p[0]); }
template <class T>
SE_INLINE void store_past(T* p, F v) {
  alignas(32) T buffer[kLanes];
  store(buffer, v);
  _mm256_stream_si256((__m256i*)p, _mm256_load_si256((const __m256i*)buffer));
}
SE_INLINE void fence() { _mm_sfence(); }
#else
template <class T>
SE_INLINE void store_past(T* p, F v) {
  store(p, v);
}
SE_INLINE void fence() {}
#endif

struct Full {
  template <class T>
  SE_INLINE void put_result(T* p, F v, bool past_caches) {
    if (past_caches)
      store_past(p, v);
    else
      store(p, v);
  }
  template <class T>
  SE_INLINE F get(const T* p) {
    return load(p);
  }
  template <class T>
  SE_INLINE void put(T* p, F v) {
    store(p, v);
  }
  // own: lanes that another step already covered become 0, for sums. own_or: they keep the old value, for accumulators.
  SE_INLINE F own(F v) { return v; }
  SE_INLINE F own_or(F v, F) { return v; }
  SE_INLINE void put_bits(uint8_t* mask, int64_t i, uint32_t bits) {
    const uint16_t two = (uint16_t)bits;
    __builtin_memcpy(mask + i / 8, &two, 2);
  }
  SE_INLINE uint32_t get_bits(const uint8_t* mask, int64_t i) {
    uint16_t two;
    __builtin_memcpy(&two, mask + i / 8, 2);
    return two;
  }
};

struct Overlap {  // only the last `rest` lanes are new; the others repeat the previous step
  int rest;
  // The repeated lanes keep their stored value: if y is x, they would be computed from their own result.
  template <class T>
  inline __attribute__((always_inline)) void put_result(T* p, F v, bool) const {
    store(p, own_or(v, load(p)));
  }
  template <class T>
  SE_INLINE F get(const T* p) {
    return load(p);
  }
  template <class T>
  SE_INLINE void put(T* p, F v) {
    store(p, v);
  }
  inline __attribute__((always_inline)) F own(F v) const { return keep(lanes(kLastLanes + rest), v); }
  inline __attribute__((always_inline)) F own_or(F v, F old) const { return select(lanes(kLastLanes + rest), v, old); }
  inline __attribute__((always_inline)) void put_bits(uint8_t* mask, int64_t i, uint32_t bits) const {
    uint8_t* const at = mask + (i + kLanes - rest) / 8;
    bits >>= kLanes - rest;
    at[0] = (uint8_t)bits;
    if (rest > 8) at[1] = (uint8_t)(bits >> 8);
  }
  inline __attribute__((always_inline)) uint32_t get_bits(const uint8_t* mask, int64_t i) const {
    const uint8_t* const at = mask + i / 8;  // all 16 bits, because the repeated lanes are stored again
    const int shift = (int)(i % 8);
    const uint32_t bits = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (shift ? (uint32_t)at[2] << 16 : 0u);
    return (bits >> shift) & 0xffffu;
  }
};

// Not inlined: the rare case of rows shorter than 16 would otherwise be half of all the code.
template <class T>
static __attribute__((noinline)) void copy_elements(T* to, const T* from, int count) {
  for (int i = 0; i < count; ++i) to[i] = from[i];
}

struct Partial {  // the row has only `rest` < 16 elements
  int rest;
  template <class T>
  inline __attribute__((always_inline)) void put_result(T* p, F v, bool) const {
    put(p, v);
  }
#if SE_VL == 16  // one masked access: element by element, 2x2 maps took three times as long as in plain PyTorch
  inline __attribute__((always_inline)) __mmask16 mask() const { return (__mmask16)((1u << rest) - 1); }
  inline __attribute__((always_inline)) F get(const float* p) const {
    F v;
    v.p[0] = (vf)_mm512_maskz_loadu_ps(mask(), p);
    return v;
  }
  inline __attribute__((always_inline)) void put(float* p, F v) const {
    _mm512_mask_storeu_ps(p, mask(), (__m512)v.p[0]);
  }
  template <class T>
  inline __attribute__((always_inline)) F get(const T* p) const {
    alignas(32) T buffer[kLanes];
    _mm256_store_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16(mask(), p));
    return load(buffer);
  }
  template <class T>
  inline __attribute__((always_inline)) void put(T* p, F v) const {
    alignas(32) T buffer[kLanes];
    store(buffer, v);
    _mm256_mask_storeu_epi16(p, mask(), _mm256_load_si256((const __m256i*)buffer));
  }
#else
  template <class T>
  inline __attribute__((always_inline)) F get(const T* p) const {
    T buffer[kLanes] = {};
    copy_elements(buffer, p, rest);
    return load(buffer);
  }
  template <class T>
  inline __attribute__((always_inline)) void put(T* p, F v) const {
    T buffer[kLanes];
    store(buffer, v);
    copy_elements(p, buffer, rest);
  }
#endif
  inline __attribute__((always_inline)) F own(F v) const { return keep(lanes(kFirstLanes + kLanes - rest), v); }
  inline __attribute__((always_inline)) F own_or(F v, F) const { return v; }
  inline __attribute__((always_inline)) void put_bits(uint8_t* mask, int64_t, uint32_t bits) const {
    mask[0] = (uint8_t)bits;
    if (rest > 8) mask[1] = (uint8_t)(bits >> 8);
  }
  inline __attribute__((always_inline)) uint32_t get_bits(const uint8_t* mask, int64_t) const {
    return (uint32_t)mask[0] | (rest > 8 ? (uint32_t)mask[1] << 8 : 0u);
  }
};

// Calls body(access, i) for every step of a row.
template <class Body>
SE_INLINE void sweep(int64_t len, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= len; i += kLanes) body(Full{}, i);
  const int rest = (int)(len - i);
  if (!rest) return;
  if (len >= kLanes)
    body(Overlap{rest}, len - kLanes);
  else
    body(Partial{rest}, 0);
}

// As sweep, for sums: calls body(access, i, k) with k cycling through 0..3, so that a sum runs in four independent
// chains (an addition has a latency of four cycles).
template <class Body>
SE_INLINE void sweep_sums(int64_t len, Body body) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= len; i += 4 * kLanes) {
    body(Full{}, i, Index<0>{});
    body(Full{}, i + kLanes, Index<1>{});
    body(Full{}, i + 2 * kLanes, Index<2>{});
    body(Full{}, i + 3 * kLanes, Index<3>{});
  }
  for (; i + kLanes <= len; i += kLanes) body(Full{}, i, Index<0>{});
  const int rest = (int)(len - i);
  if (!rest) return;
  if (len >= kLanes)
    body(Overlap{rest}, len - kLanes, Index<1>{});
  else
    body(Partial{rest}, 0, Index<1>{});
}
