// Loads and stores of vectors of eight elements in each mode (kernel_params.h), and their bits in the mask.
#pragma once

#include "activations.cuh"

namespace se_fused::cuda {

SE_DEVICE uint32_t bits_of(float x) { return as_bits(x); }
SE_DEVICE uint32_t bits_of(BFloat16 x) { return x.bits; }
SE_DEVICE uint32_t bits_of(Half x) { return x.bits; }

// Vectors of each tensor that a thread has in flight, so that `tensors` tensors together are 64 bytes. 64 registers
// allow 1024 threads per multiprocessor, which makes 64 KB; 23 KB are needed (benchmarks/NOTES.md).
template <class T>
SE_BOTH constexpr int loads_of(Mode mode, int tensors) {
  const int loads = 64 / (8 * (int)sizeof(T) * tensors);
  return is_single(mode) || loads < 1 ? 1 : loads;
}

// The vector at `at`, loaded element by element; elements from `end` on are zero.
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

// `end`: the end of the row in the *_single modes, of the memory in rows_unaligned.
template <Mode mode, Use use, class T>
SE_DEVICE Raw<T> load(const T* base, int64_t at, int64_t end) {
  if constexpr (is_single(mode)) {
    return load_single(base, at, end);
  } else if constexpr (mode == Mode::rows_unaligned) {
    if (at + 8 > end) return load_single(base, at, end);
  }
  return load_raw<use>(base + at);
}

template <Use use = Use::last, class T>
SE_DEVICE void store_whole(T* p, const float (&v)[8]) {
  Raw<T> r;
  pack(v, r);
  store_raw<use>(p, r);
}
template <Mode mode, Use use = Use::last, class T>
SE_DEVICE void store(T* base, int64_t at, int64_t end, const float (&v)[8]) {
  if constexpr (mode == Mode::rows || mode == Mode::cols) {
    store_whole<use>(base + at, v);
  } else {
    if (mode == Mode::rows_unaligned && at + 8 <= end) return store_whole<use>(base + at, v);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < end) put(base + at + i, v[i]);
  }
}

// Rounds to T and converts back, so that the summed values equal the stored ones.
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
  for (int i = 0; i < 8; ++i) bits |= (uint32_t)!(t[i] <= 0.f) << i;  // also set for NaN, as in PyTorch's ReLU
  return bits;
}
SE_DEVICE void keep_bits(uint32_t bits, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = bits >> i & 1 ? v[i] : 0.f;
}

// Mask bits of the eight elements from position `at` of a row on. Bits past the row's end belong to the next row; bits
// before its start (at < 0) are zero.
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

// ---- rows: the vectors that hold the positions [begin, stop) of a row
template <Mode mode>
struct Window {
  int64_t origin;      // offset of the first vector, in elements of the map
  int64_t first, end;  // offsets of the positions, in elements of the map
  int vectors;

  SE_DEVICE Window(int64_t row, int length, int begin, int stop)
      : first(row * length + begin), end(row * length + stop) {
    origin = mode == Mode::rows_unaligned ? first & ~int64_t{7} : first;
    vectors = stop > begin ? (int)((end - origin + 7) / 8) : 0;
  }
  // the end up to which a load may read
  SE_DEVICE int64_t limit(int64_t total) const { return mode == Mode::rows_unaligned ? total : end; }
  SE_DEVICE bool whole(int64_t at) const { return mode == Mode::rows || (at >= first && at + 8 <= end); }
  SE_DEVICE bool holds(int64_t at) const { return at >= first && at < end; }
};

}  // namespace se_fused::cuda
