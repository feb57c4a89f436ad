// Loads and stores of vectors of eight elements in each mode (kernel_params.h), and their bits in the mask.
#pragma once

#include "activations.cuh"

namespace se_fused::cuda {

SE_DEVICE uint32_t bits_of(float x) { return as_bits(x); }
SE_DEVICE uint32_t bits_of(BFloat16 x) { return x.bits; }
SE_DEVICE uint32_t bits_of(Half x) { return x.bits; }

template <class T>
SE_BOTH constexpr int loads_of(Mode mode, int tensors) {
  return loads_of(mode, (int)sizeof(T), tensors);
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

// Up to eight floats, of which `count` exist, else zeros. Two 16-byte loads where the address permits.
SE_DEVICE void load_eight(const float* p, int count, float (&v)[8]) {
  if (count >= 8 && ((uintptr_t)p & 15) == 0) return unpack(load_raw<Use::keep>(p), v);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = j < count ? p[j] : 0.f;
}
// The first `count` elements of a vector, one by one.
template <class T>
SE_DEVICE void store_some(T* p, int count, const float (&v)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
    if (j < count) put(p + j, v[j]);
}
// One 16-byte access of four floats.
SE_DEVICE float4 load_floats(const float* p) { return *reinterpret_cast<const float4*>(p); }
SE_DEVICE void store_floats(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

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

// Mask bits of the eight elements from position `at` of a row on, whose mask is `bytes`. Bits past the row's end belong
// to the next row, if there is one; bits before its start (at < 0) are zero.
SE_DEVICE uint32_t unaligned_bits(const uint8_t* bytes, int at, int length, bool has_next) {
  const int width = (length + 7) / 8;
  if (at < 0) return (uint32_t)bytes[0] << -at & 0xff;
  const int byte = at / 8, left = length - at;
  uint32_t bits = bytes[byte];
  if (byte + 1 < width) bits |= (uint32_t)bytes[byte + 1] << 8;
  bits >>= at % 8;
  if (left < 8) {
    bits &= (1u << left) - 1;
    if (has_next) bits |= (uint32_t)bytes[width] << left;
  }
  return bits & 0xff;
}
SE_DEVICE uint32_t unaligned_bits(const uint8_t* mask, int64_t row, int64_t rows, int at, int length) {
  return unaligned_bits(mask + row * ((length + 7) / 8), at, length, row + 1 < rows);
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

// The same with one 64-bit offset, that of the first vector. All others are 32-bit and count from there, so that a
// vector's address is one instruction.
template <Mode mode>
struct RowSpan {
  int64_t origin;  // offset of the first vector, in elements of the map
  int lead, last;  // the positions are [lead, last)
  int vectors;
  int whole;  // vectors within the tensor's memory: all, or all but the last one

  // rows: of the tensor; 0 if it is known to be whole vectors
  SE_DEVICE RowSpan(int64_t row, int64_t rows, int length, int begin, int stop) {
    const int64_t first = row * length + begin;
    lead = mode == Mode::rows_unaligned ? (int)(first & 7) : 0;
    origin = first - lead;
    last = lead + stop - begin;
    vectors = stop > begin ? (last + 7) >> 3 : 0;
    whole = mode == Mode::rows_unaligned && rows && row == rows - 1 && stop == length ? last >> 3 : vectors;
  }
  // Whether one of the vectors [first, first + count), of which `first` is not the span's first vector unless `start`,
  // may have elements outside of the positions, or not exist.
  SE_DEVICE bool edge(int first, int count, bool start) const {
    if (mode == Mode::rows) return first + count > vectors;
    return (mode == Mode::rows_unaligned && start) || first + count >= vectors;
  }
  // Elements of a vector before the first and after the last position
  SE_DEVICE int before(int vector) const { return mode == Mode::rows_unaligned && vector == 0 ? lead : 0; }
  SE_DEVICE int after(int vector) const { return mode == Mode::rows ? 0 : max(8 * vector + 8 - last, 0); }
};

// Loads vector first + u * step of a span into raw[u], which keeps its value if there is none. `at` points to vector
// `first`.
template <Mode mode, Use use, class T, int count>
SE_DEVICE void load_vectors(const T* at, const RowSpan<mode>& span, int first, int step, Raw<T> (&raw)[count]) {
#pragma unroll
  for (int u = 0; u < count; ++u)
    if (first + u * step < span.whole) {
      if constexpr (is_single(mode))
        raw[u] = load_single(at + 8 * u * step, 0, span.last - 8 * (first + u * step));
      else
        raw[u] = load_raw<use>(at + 8 * u * step);
    }
  if (mode == Mode::rows_unaligned && span.whole < span.vectors) {  // the tensor ends within the last vector
    const Raw<T> end = load_single(at + 8 * (span.whole - first), 0, span.last & 7);
#pragma unroll
    for (int u = 0; u < count; ++u)
      if (first + u * step == span.whole) raw[u] = end;
  }
}

}  // namespace se_fused::cuda
