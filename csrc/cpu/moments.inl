// Pass 1, forward: mean and centred second moment. The variance is never computed as E[x^2] - E[x]^2, which cancels.

// Sums are of differences from the first element (`shift`), so that the rounding error scales with the values' spread
// and not with their magnitude; the error of a mean is then that of its last rounding. An infinite or NaN first element
// is replaced by a shift of 0.
SE_INLINE F finite_or_zero(F v) { return select(not_equal(v - v, zero()), zero(), v); }
SE_INLINE float finite_or_zero(float v) { return v - v == 0.f ? v : 0.f; }

// Joins (mean, m2) of `count` elements with (mean2, m22) of `more` (Chan, Golub, LeVeque 1983); only the means if m2 is
// null.
static void merge(float* mean, float* m2, float count, const float* mean2, const float* m22, float more, int64_t len) {
  const float share = more / (count + more);
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
    const F old_mean = a.get(mean + i), other = a.get(mean2 + i);
    const F delta = other - old_mean, moved = old_mean + delta * splat(share);
    const F new_mean = select(not_equal(moved, moved), old_mean + other, moved);  // inf - inf: keep inf
    a.put(mean + i, a.own_or(new_mean, old_mean));
    if (!m2) return;
    const F old_m2 = a.get(m2 + i), new_m2 = old_m2 + a.get(m22 + i) + delta * delta * splat(count * share);
    a.put(m2 + i, a.own_or(new_m2, old_m2));
  });
}

static void add(float* into, const float* from, int64_t len) {
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
    const F old = a.get(into + i);
    a.put(into + i, a.own_or(old + a.get(from + i), old));
  });
}

// Moves running statistics towards those of a batch times `factor`: old + momentum (new - old), rounded like
// torch.lerp, which is exact at both ends.
template <class T>
static void move(void* running, const float* batch, float factor, float momentum, int64_t len) {
  T* const at = (T*)running;
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
    const F old = a.get(at + i), to = a.get(batch + i) * splat(factor), away = to - old;
    a.put_result(at + i, momentum < 0.5f ? old + splat(momentum) * away : to - away * splat(1.f - momentum), false);
  });
}

template <class T>
static void to_float(const void* from, float* into, int64_t len) {
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA { a.put(into + i, a.get((const T*)from + i)); });
}

// Elements per block of a long row. Each block is read twice, for the sum and for the squares, so it must stay in the
// L1 cache (16 KB of floats).
constexpr int64_t kBlock = 4096;

// Rows up to this length are processed 16 at a time, because the two horizontal sums per row would cost more than its
// elements (bfloat16 7x7 maps: 8 GB/s without this).
constexpr int64_t kShortRow = 256;

template <bool with_m2, class T>
static void moments_rows_as(const T* x, int64_t rows, int64_t len, float* mean, float* m2) {
  int64_t row = 0;
  for (; len <= kShortRow && row + kLanes <= rows; row += kLanes, x += kLanes * len) {
    F part[kLanes];
    float first[kLanes], shifted[kLanes];
    for (int r = 0; r < kLanes; ++r) first[r] = finite_or_zero(element(x + r * len));
    for (int r = 0; r < kLanes; ++r) {
      const F shift = splat(first[r]);
      F total = zero();
      sweep(len, [&](auto a, int64_t i) SE_LAMBDA { total = total + a.own(a.get(x + r * len + i) - shift); });
      part[r] = total;
    }
    const F shifted_mean = sums(part) * splat(1.f / (float)len);
    store(shifted, shifted_mean);
    store(mean + row, load(first) + shifted_mean);
    if constexpr (!with_m2) continue;
    for (int r = 0; r < kLanes; ++r) {
      const F shift = splat(first[r]), centre = splat(shifted[r]);
      F squares = zero();
      sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
        const F d = a.own((a.get(x + r * len + i) - shift) - centre);
        squares = squares + d * d;
      });
      part[r] = squares;
    }
    store(m2 + row, sums(part));
  }
  for (; row < rows; ++row, x += len) {
    const float first = finite_or_zero(element(x));
    const F shift = splat(first);
    float row_sum = 0, row_m2 = 0;
    for (int64_t start = 0; start < len; start += kBlock) {
      const T* const block = x + start;
      const int64_t size = len - start < kBlock ? len - start : kBlock;
      F total[4] = {zero(), zero(), zero(), zero()};
      sweep_sums(size,
                 [&](auto a, int64_t i, auto k) SE_LAMBDA { total[k] = total[k] + a.own(a.get(block + i) - shift); });
      const float block_sum = sum((total[0] + total[1]) + (total[2] + total[3]));
      if constexpr (with_m2) {
        const float block_mean = block_sum / (float)size;
        const F centre = splat(block_mean);
        F squares[4] = {zero(), zero(), zero(), zero()};
        sweep_sums(size, [&](auto a, int64_t i, auto k) SE_LAMBDA {
          const F d = a.own((a.get(block + i) - shift) - centre);
          squares[k] = squares[k] + d * d;
        });
        row_m2 += sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
        if (start) {
          const float delta = block_mean - row_sum / (float)start;
          row_m2 += delta * delta * (float)start * ((float)size / (float)(start + size));
        }
      }
      row_sum += block_sum;
    }
    mean[row] = first + row_sum / (float)len;
    if constexpr (with_m2) m2[row] = row_m2;
  }
}

template <class T>
static void moments_rows(const void* x, int64_t rows, int64_t len, float* mean, float* m2) {
  return m2 ? moments_rows_as<true>((const T*)x, rows, len, mean, m2)
            : moments_rows_as<false>((const T*)x, rows, len, mean, m2);
}

// A tile of R rows is centred on its mean in registers, then joined with the sums of the rows before it, so that x is
// read once. `total` holds sums of differences from `first`, the chunk's first row.
template <bool with_m2, int R, class T>
SE_INLINE void moments_tile(const T* x, const T* first, int64_t before, int64_t len, float* total, float* m2) {
  const float before_inverse = before ? 1.f / (float)before : 0.f;
  const float weight = (float)before * R / (float)(before + R);
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
    const F shift = finite_or_zero(a.get(first + i));
    F v[R];
    F tile_sum = zero(), tile_m2 = zero();
    each<R>([&](auto r) SE_LAMBDA { v[r] = a.get(x + r * len + i) - shift; });
    each<R>([&](auto r) SE_LAMBDA { tile_sum = tile_sum + v[r]; });
    const F tile_mean = tile_sum * splat(1.f / R);
    if constexpr (with_m2) {
      each<R>([&](auto r) SE_LAMBDA {
        const F d = v[r] - tile_mean;
        tile_m2 = tile_m2 + d * d;
      });
    }
    if (before == 0) {
      a.put(total + i, tile_sum);
      if constexpr (with_m2) a.put(m2 + i, tile_m2);
      return;
    }
    const F old_total = a.get(total + i);
    if constexpr (with_m2) {
      const F old_m2 = a.get(m2 + i), delta = tile_mean - old_total * splat(before_inverse);
      a.put(m2 + i, a.own_or(old_m2 + tile_m2 + delta * delta * splat(weight), old_m2));
    }
    a.put(total + i, a.own_or(old_total + tile_sum, old_total));
  });
}

template <bool with_m2, class T>
static void moments_cols_as(const T* x, int64_t rows, int64_t len, float* mean, float* m2) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) moments_tile<with_m2, 8>(x + row * len, x, row, len, mean, m2);
  for (; row < rows; ++row) moments_tile<with_m2, 1>(x + row * len, x, row, len, mean, m2);
  const F inverse = splat(1.f / (float)rows);
  sweep(len, [&](auto a, int64_t i) SE_LAMBDA {
    const F total = a.get(mean + i);
    a.put(mean + i, a.own_or(finite_or_zero(a.get(x + i)) + total * inverse, total));
  });
}

template <class T>
static void moments_cols(const void* x, int64_t rows, int64_t len, float* mean, float* m2) {
  return m2 ? moments_cols_as<true>((const T*)x, rows, len, mean, m2)
            : moments_cols_as<false>((const T*)x, rows, len, mean, m2);
}

// Pass 1, backward: dr = dy * act', P = sum dr, Q = sum dr * (x - mean). With `added`, dr = (dy + added) * act', and
// there is no mask, and its bits too are computed from the sum before the activation.
template <Act act, bool added>
constexpr bool kFromSum = keeps_input(act) || (added && keeps_mask(act));

template <Act act, bool with_added, class T, class A>
SE_INLINE F out_act_backward(A a, const T* dy, const T* residual, const uint8_t* mask, F scale, F shift, F added,
                             int64_t i, F xv) {
  F d = a.get(dy + i);
  if constexpr (with_added) d = d + added;
  if constexpr (kFromSum<act, with_added>) {
    F t = scale * xv + shift;
    if (residual) t = t + a.get(residual + i);
    if constexpr (keeps_mask(act))
      d = keep_bits(positive_bits(t), d);
    else
      d = d * out_slope<act>(t);
  } else if constexpr (keeps_mask(act)) {
    return keep_bits(a.get_bits(mask, i), d);
  }
  // Pass 2 reads the rounded dr. P and Q must be sums of the same numbers, or dx would not sum to zero.
  if constexpr (with_added || keeps_input(act)) d = rounded<T>(d);
  return d;
}

template <Act act, bool with_added, class T>
static void moments_backward_rows_with(const MomentsBackwardArgs& g) {
  const T *dy = (const T*)g.dy, *x = (const T*)g.x, *residual = (const T*)g.residual;
  T* dr = (T*)g.dr;
  const uint8_t* mask = g.mask;
  const int64_t mask_bytes = (g.len + 7) / 8;
  F parts_p[kLanes], parts_q[kLanes];  // the sums of 16 short rows, reduced across their lanes together
  const int64_t together = g.len <= kShortRow ? g.rows / kLanes * kLanes : 0;
  for (int64_t row = 0; row < g.rows; ++row) {
    const F mean = splat(g.mean[row]);
    const F scale = kFromSum<act, with_added> ? splat(g.scale[row]) : zero();
    const F shift = kFromSum<act, with_added> ? splat(g.shift[row]) : zero();
    const F added = with_added ? splat(g.added[row]) : zero();
    float row_p = 0, row_q = 0;
    for (int64_t start = 0; start < g.len; start += kBlock) {  // bounds the length of each float32 chain
      const int64_t size = g.len - start < kBlock ? g.len - start : kBlock;
      F p[4] = {zero(), zero(), zero(), zero()}, q[4] = {zero(), zero(), zero(), zero()};
      sweep_sums(size, [&](auto a, int64_t i, auto k) SE_LAMBDA {
        const F xv = a.get(x + start + i);
        const F d = out_act_backward<act, with_added>(a, dy + start, residual ? residual + start : nullptr,
                                                      mask + start / 8, scale, shift, added, i, xv);
        if (dr) a.put_result(dr + start + i, d, g.past_caches);
        p[k] = p[k] + a.own(d);
        q[k] = q[k] + a.own(d * (xv - mean));
      });
      const F all_p = (p[0] + p[1]) + (p[2] + p[3]), all_q = (q[0] + q[1]) + (q[2] + q[3]);
      if (row < together) {
        parts_p[row % kLanes] = all_p;
        parts_q[row % kLanes] = all_q;
      } else {
        row_p += sum(all_p);
        row_q += sum(all_q);
      }
    }
    if (row >= together) {
      g.p[row] = row_p;
      g.q[row] = row_q;
    } else if (row % kLanes == kLanes - 1) {
      store(g.p + row - (kLanes - 1), sums(parts_p));
      store(g.q + row - (kLanes - 1), sums(parts_q));
    }
    dy += g.len;
    x += g.len;
    if (residual) residual += g.len;
    if (dr) dr += g.len;
    if (mask) mask += mask_bytes;
  }
  if (g.past_caches) fence();
}

template <Act act, bool with_added, int R, class T>
SE_INLINE void moments_backward_tile(const MomentsBackwardArgs& g, int64_t row) {
  const int64_t mask_bytes = (g.len + 7) / 8, at = row * g.len;
  const T *dy = (const T*)g.dy + at, *x = (const T*)g.x + at;
  const T* residual = g.residual ? (const T*)g.residual + at : nullptr;
  T* dr = g.dr ? (T*)g.dr + at : nullptr;
  const uint8_t* mask = keeps_mask(act) && !with_added ? g.mask + row * mask_bytes : nullptr;
  sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA {
    const F mean = a.get(g.mean + i);
    const F scale = kFromSum<act, with_added> ? a.get(g.scale + i) : zero();
    const F shift = kFromSum<act, with_added> ? a.get(g.shift + i) : zero();
    const F added = with_added ? a.get(g.added + i) : zero();
    F p = zero(), q = zero();
    for (int r = 0; r < R; ++r) {
      const int64_t skip = r * g.len;
      const F xv = a.get(x + skip + i);
      const F d = out_act_backward<act, with_added>(a, dy + skip, residual ? residual + skip : nullptr,
                                                    mask + r * mask_bytes, scale, shift, added, i, xv);
      if (dr) a.put_result(dr + skip + i, d, g.past_caches);
      p = p + d;
      q = q + d * (xv - mean);
    }
    if (row) {
      const F old_p = a.get(g.p + i), old_q = a.get(g.q + i);
      p = a.own_or(old_p + p, old_p);
      q = a.own_or(old_q + q, old_q);
    }
    a.put(g.p + i, p);
    a.put(g.q + i, q);
  });
}

template <Act act, bool with_added, class T>
static void moments_backward_cols_with(const MomentsBackwardArgs& g) {
  int64_t row = 0;
  for (; row + 8 <= g.rows; row += 8) moments_backward_tile<act, with_added, 8, T>(g, row);
  for (; row < g.rows; ++row) moments_backward_tile<act, with_added, 1, T>(g, row);
  if (g.past_caches) fence();
}

template <Act act, class T>
static void moments_backward_rows_as(const MomentsBackwardArgs& g) {
  return g.added ? moments_backward_rows_with<act, true, T>(g) : moments_backward_rows_with<act, false, T>(g);
}
template <Act act, class T>
static void moments_backward_cols_as(const MomentsBackwardArgs& g) {
  return g.added ? moments_backward_cols_with<act, true, T>(g) : moments_backward_cols_with<act, false, T>(g);
}
template <class T>
static void moments_backward_rows(const MomentsBackwardArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { moments_backward_rows_as<decltype(act)::value, T>(g); });
}
template <class T>
static void moments_backward_cols(const MomentsBackwardArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { moments_backward_cols_as<decltype(act)::value, T>(g); });
}
