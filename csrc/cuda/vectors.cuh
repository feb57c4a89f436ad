// Vectors of eight neighbours in each mode (kernels.h), and the mask's bits that belong to them.
#pragma once

#include "activations.cuh"

namespace se_fused::cuda {

SE_DEVICE uint32_t bits_of(float x) { return as_bits(x); }
SE_DEVICE uint32_t bits_of(BFloat16 x) { return x.bits; }
SE_DEVICE uint32_t bits_of(Half x) { return x.bits; }

// Vectors of a tensor that a thread has under way at a time: 64 bytes of `tensors` of them together. With the 1024
// threads of a multiprocessor that 64 registers allow that is 64 KB, where 23 KB are needed (benchmarks/NOTES.md).
template <class T>
SE_BOTH constexpr int loads_of(Mode mode, int tensors) {
  const int loads = 64 / (8 * (int)sizeof(T) * tensors);
  return is_single(mode) || loads < 1 ? 1 : loads;
}

// The vector at `at`, elements one by one, zero from `end` on.
template <class T>
SE_DEVICE Raw<T> load_single(const T* base, int64_t at, int64_t end) {
  constexpr int per_word = 4 / sizeof(T), bits = 8 * sizeof(T);
  uint32_t w[8 / per_word];
#pragma unroll
  for (int i = 0; i < 8 / per_word; ++i) {
    w[i] = 0;
#pragma unroll
    for (int j = 0; j < per_word; ++j)
      if (const int64_t e = at + i * per_word + j; e < end) w[i] |= bits_of(base[e]) << (j * bits % 32);
  }
  Raw<T> r;
#pragma unroll
  for (int i = 0; i < (int)sizeof(T) / 2; ++i) r.q[i] = {w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]};
  return r;
}

// `end`: of the row in *_single, of the memory in rows_unaligned.
template <Mode mode, Use use, class T>
SE_DEVICE Raw<T> load(const T* base, int64_t at, int64_t end) {
  if constexpr (is_single(mode)) {
    return load_single(base, at, end);
  } else if constexpr (mode == Mode::rows_unaligned) {
    if (at + 8 > end) return load_single(base, at, end);
  }
  return load_raw<use>(base + at);
}

template <class T>
SE_DEVICE void store_whole(T* p, const float (&v)[8]) {
  Raw<T> r;
  pack(v, r);
  store_raw(p, r);
}
template <Mode mode, class T>
SE_DEVICE void store(T* base, int64_t at, int64_t end, const float (&v)[8]) {
  if constexpr (mode == Mode::rows || mode == Mode::cols) {
    store_whole(base + at, v);
  } else {
    if (mode == Mode::rows_unaligned && at + 8 <= end) return store_whole(base + at, v);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < end) put(base + at + i, v[i]);
  }
}

// Rounded to T and back: what is stored is what is summed.
template <class T>
SE_DEVICE void round_to(float (&v)[8]) {
  Raw<T> r;
  pack(v, r);
  unpack(r, v);
}

// ---- the mask: rows padded to whole bytes, lowest bit first (se_fused/ops/layout.py)
SE_DEVICE uint32_t positive_bits(const float (&t)[8]) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) bits |= (uint32_t)!(t[i] <= 0.f) << i;  // of NaN too, as in PyTorch's ReLU
  return bits;
}
SE_DEVICE void keep_bits(uint32_t bits, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = bits >> i & 1 ? v[i] : 0.f;
}

// Bits of eight elements from position `at` of a row on; those past its end are the next row's, those before its
// start (at < 0) are zero.
SE_DEVICE uint32_t unaligned_bits(const uint8_t* mask, int64_t row, int64_t rows, int at, int length) {
  const int width = (length + 7) / 8;
  const uint8_t* const bytes = mask + row * width;
  if (at < 0) return (uint32_t)bytes[0] << -at & 0xff;
  const int byte = at / 8;
  uint32_t bits = bytes[byte];
  if (byte + 1 < width) bits |= (uint32_t)bytes[byte + 1] << 8;
  bits >>= at % 8;
  const int left = length - at;
  if (left < 8) {
    bits &= (1u << left) - 1;
    if (row + 1 < rows) bits |= (uint32_t)bytes[width] << left;
  }
  return bits & 0xff;
}

// ---- rows: which vectors hold positions begin..end of a row
template <Mode mode>
struct Window {
  int64_t origin;      // of the first vector, in elements of the map
  int64_t first, end;  // the positions, in elements of the map
  int vectors;

  SE_DEVICE Window(int64_t row, int length, int begin, int stop)
      : first(row * length + begin), end(row * length + stop) {
    origin = mode == Mode::rows_unaligned ? first & ~int64_t{7} : first;
    vectors = stop > begin ? (int)((end - origin + 7) / 8) : 0;
  }
  // where a load must stop
  SE_DEVICE int64_t limit(int64_t total) const { return mode == Mode::rows_unaligned ? total : end; }
  SE_DEVICE bool whole(int64_t at) const { return mode == Mode::rows || (at >= first && at + 8 <= end); }
  SE_DEVICE bool holds(int64_t at) const { return at >= first && at < end; }
};

}  // namespace se_fused::cuda
