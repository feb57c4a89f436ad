// Pass 2, forward: y = act(scale * x + shift + residual), and the ReLU mask with one bit per element.

template <Act act, bool has_residual, class T, class A>
SE_INLINE F scale_shift_act_step(A a, const T* x, const T* residual, T* y, uint8_t* mask, F scale, F shift, int64_t i,
                                 bool past_caches) {
  F t = scale * a.get(x + i) + shift;
  if constexpr (has_residual) t = t + a.get(residual + i);
  if constexpr (keeps_mask(act)) {
    const uint32_t bits = positive_bits(t);
    if (mask) a.put_bits(mask, i, bits);
    t = keep_bits(bits, t);
  } else {
    t = out_activate<act>(t);
  }
  a.put_result(y + i, t, past_caches);
  return t;
}

template <bool per_row, Act act, bool has_residual, class T>
static void scale_shift_act_as(const ScaleShiftActArgs& g) {
  const T *x = (const T*)g.x, *residual = (const T*)g.residual;
  T* y = (T*)g.y;
  uint8_t* mask = g.mask;
  const int64_t mask_bytes = (g.len + 7) / 8;
  const bool past_caches = g.past_caches;
  for (int64_t row = 0; row < g.rows; ++row) {
    if constexpr (per_row) {
      const F scale = splat(g.scale[row]), shift = splat(g.shift[row]);
      sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA {
        scale_shift_act_step<act, has_residual>(a, x, residual, y, mask, scale, shift, i, past_caches);
      });
    } else {
      sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA {
        scale_shift_act_step<act, has_residual>(a, x, residual, y, mask, a.get(g.scale + i), a.get(g.shift + i), i,
                                                past_caches);
      });
    }
    x += g.len;
    if (has_residual) residual += g.len;
    y += g.len;
    if (mask) mask += mask_bytes;
  }
  if (past_caches) fence();
}

// The case of rows of at least 16 elements, one coefficient per row and no mask. Steps are aligned in y whatever the
// rows' length, so that y can be written past the caches, and no element is computed twice (7x7 maps: 3.06 steps per
// row instead of 4). A step that spans two rows takes its remaining coefficients from the second row.
template <Act act, bool has_residual, class T>
static void scale_shift_act_flat(const ScaleShiftActArgs& g) {
  const T *x = (const T*)g.x, *residual = (const T*)g.residual;
  T* const y = (T*)g.y;
  const int64_t total = g.rows * g.len;
  const auto step = [&](auto a, int64_t i, F scale, F shift, bool past) SE_LAMBDA {
    scale_shift_act_step<act, has_residual>(a, x, residual, y, (uint8_t*)nullptr, scale, shift, i, past);
  };
  const int64_t misaligned = (int64_t)((uintptr_t)y / sizeof(T) % kLanes);
  int64_t i = misaligned ? kLanes - misaligned : 0, row = 0, row_end = g.len;
  if (i) step(Partial{(int)i}, 0, splat(g.scale[0]), splat(g.shift[0]), false);
  while (true) {
    const F scale = splat(g.scale[row]), shift = splat(g.shift[row]);
    for (; i + kLanes <= row_end; i += kLanes) step(Full{}, i, scale, shift, g.past_caches);
    if (row + 1 == g.rows) break;
    const int left = (int)(row_end - i);
    ++row;
    row_end += g.len;
    if (!left) continue;
    const M mine = lanes(kFirstLanes + kLanes - left);
    step(Full{}, i, select(mine, scale, splat(g.scale[row])), select(mine, shift, splat(g.shift[row])), g.past_caches);
    i += kLanes;
  }
  if (i < total) step(Partial{(int)(total - i)}, i, splat(g.scale[row]), splat(g.shift[row]), false);
  if (g.past_caches) fence();
}

template <bool per_row, Act act, class T>
static void scale_shift_act_residual(const ScaleShiftActArgs& g) {
  if (per_row && !g.mask && g.len >= kLanes && g.len % kLanes)
    return g.residual ? scale_shift_act_flat<act, true, T>(g) : scale_shift_act_flat<act, false, T>(g);
  return g.residual ? scale_shift_act_as<per_row, act, true, T>(g) : scale_shift_act_as<per_row, act, false, T>(g);
}
template <Act act, class T>
static void scale_shift_act_rows_as(const ScaleShiftActArgs& g) {
  scale_shift_act_residual<true, act, T>(g);
}
template <Act act, class T>
static void scale_shift_act_cols_as(const ScaleShiftActArgs& g) {
  scale_shift_act_residual<false, act, T>(g);
}
template <class T>
static void scale_shift_act_rows(const ScaleShiftActArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { scale_shift_act_rows_as<decltype(act)::value, T>(g); });
}
template <class T>
static void scale_shift_act_cols(const ScaleShiftActArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { scale_shift_act_cols_as<decltype(act)::value, T>(g); });
}

// Pass 2, backward: dx = k1 * dr + k2 * (x - mean) + k3. x is centred, because k2 * x alone would cancel against k3.
template <bool per_row, bool has_mask, bool has_x, class T>
static void scale_shift_act_backward_as(const ScaleShiftActBackwardArgs& g) {
  const T *dr = (const T*)g.dr, *x = (const T*)g.x;
  T* dx = (T*)g.dx;
  const uint8_t* mask = g.mask;
  const int64_t mask_bytes = (g.len + 7) / 8;
  const bool past_caches = g.past_caches;
  for (int64_t row = 0; row < g.rows; ++row) {
    const auto step = [&](auto a, int64_t i, F mean, F k1, F k2, F k3) SE_LAMBDA {
      F d = a.get(dr + i);
      if constexpr (has_mask) d = keep_bits(a.get_bits(mask, i), d);
      F y = k1 * d + k3;
      if constexpr (has_x) y = y + k2 * (a.get(x + i) - mean);
      a.put_result(dx + i, y, past_caches);
    };
    if constexpr (per_row) {
      const F mean = has_x ? splat(g.mean[row]) : zero();
      const F k1 = splat(g.k1[row]), k2 = splat(g.k2[row]), k3 = splat(g.k3[row]);
      sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA { step(a, i, mean, k1, k2, k3); });
    } else {
      sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA {
        step(a, i, has_x ? a.get(g.mean + i) : zero(), a.get(g.k1 + i), has_x ? a.get(g.k2 + i) : zero(),
             a.get(g.k3 + i));
      });
    }
    dr += g.len;
    if (has_x) x += g.len;
    dx += g.len;
    if (has_mask) mask += mask_bytes;
  }
  if (past_caches) fence();
}

template <bool per_row, class T>
static void scale_shift_act_backward_choose(const ScaleShiftActBackwardArgs& g) {
  if (g.mask)
    return g.x ? scale_shift_act_backward_as<per_row, true, true, T>(g)
               : scale_shift_act_backward_as<per_row, true, false, T>(g);
  return g.x ? scale_shift_act_backward_as<per_row, false, true, T>(g)
             : scale_shift_act_backward_as<per_row, false, false, T>(g);
}
template <class T>
static void scale_shift_act_backward_rows(const ScaleShiftActBackwardArgs& g) {
  scale_shift_act_backward_choose<true, T>(g);
}
template <class T>
static void scale_shift_act_backward_cols(const ScaleShiftActBackwardArgs& g) {
  scale_shift_act_backward_choose<false, T>(g);
}
