// y = act(scale * x + shift), and the sum of the same float32 values before they are rounded to y. Squeeze-excite after
// an activation needs it, because the mean of an activated map does not follow from the moments of x.

template <Act act, class T>
static void scale_shift_act_mean_rows_as(const ScaleShiftActMeanArgs& g) {
  const T* x = (const T*)g.x;
  T* y = (T*)g.y;
  F parts[kLanes];  // the sums of 16 short rows, reduced across their lanes together
  const int64_t together = g.len <= kShortRow ? g.rows / kLanes * kLanes : 0;
  for (int64_t row = 0; row < g.rows; ++row) {
    const F scale = splat(g.scale[row]), shift = splat(g.shift[row]);
    float row_total = 0;
    for (int64_t start = 0; start < g.len; start += kBlock) {  // bounds the length of each float32 chain
      const int64_t size = g.len - start < kBlock ? g.len - start : kBlock;
      F total[4] = {zero(), zero(), zero(), zero()};
      sweep_sums(size, [&](auto a, int64_t i, auto k) SE_LAMBDA {
        const F t = scale_shift_act_step<act, false>(a, x + start, (const T*)nullptr, y + start, (uint8_t*)nullptr,
                                                     scale, shift, i, g.past_caches);
        total[k] = total[k] + a.own(t);
      });
      const F all = (total[0] + total[1]) + (total[2] + total[3]);
      if (row < together)
        parts[row % kLanes] = all;
      else
        row_total += sum(all);
    }
    if (row >= together)
      g.total[row] = row_total;
    else if (row % kLanes == kLanes - 1)
      store(g.total + row - (kLanes - 1), sums(parts));
    x += g.len;
    y += g.len;
  }
  if (g.past_caches) fence();
}

template <Act act, int R, class T>
SE_INLINE void scale_shift_act_mean_tile(const ScaleShiftActMeanArgs& g, int64_t row) {
  const T* const x = (const T*)g.x + row * g.len;
  T* const y = (T*)g.y + row * g.len;
  sweep(g.len, [&](auto a, int64_t i) SE_LAMBDA {
    const F scale = a.get(g.scale + i), shift = a.get(g.shift + i);
    F total = zero();
    for (int r = 0; r < R; ++r)
      total = total + scale_shift_act_step<act, false>(a, x + r * g.len, (const T*)nullptr, y + r * g.len,
                                                       (uint8_t*)nullptr, scale, shift, i, g.past_caches);
    if (row) {
      const F old = a.get(g.total + i);
      total = a.own_or(old + total, old);
    }
    a.put(g.total + i, total);
  });
}

template <Act act, class T>
static void scale_shift_act_mean_cols_as(const ScaleShiftActMeanArgs& g) {
  int64_t row = 0;
  for (; row + 8 <= g.rows; row += 8) scale_shift_act_mean_tile<act, 8, T>(g, row);
  for (; row < g.rows; ++row) scale_shift_act_mean_tile<act, 1, T>(g, row);
  if (g.past_caches) fence();
}

template <class T>
static void scale_shift_act_mean_rows(const ScaleShiftActMeanArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { scale_shift_act_mean_rows_as<decltype(act)::value, T>(g); });
}
template <class T>
static void scale_shift_act_mean_cols(const ScaleShiftActMeanArgs& g) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { scale_shift_act_mean_cols_as<decltype(act)::value, T>(g); });
}
