// A 1x1 convolution over rows of channels as one matrix product: y = act(scale * (W h) + shift + residual). Scale,
// shift, residual and activation are applied to each tile of sums before it is stored.
//
// The weight is packed in panels of 16 output channels, (ceil(C / 16), K, 16), and read sequentially. A tile is
// kTileRows rows by kTilePanels panels, whose sums fill the registers. The tile's h, kTileRows * K floats, stays in the
// L1 cache while the panels come from L2.
constexpr int kTileRows = SE_VL == 16 ? 14 : SE_VL == 8 ? 6 : 3;
constexpr int kTilePanels = SE_VL == 16 ? 2 : 1;

template <int rows, int panels>
SE_INLINE void sum_tile(const float* h, const float* weight, int64_t k, F* sums) {
  // Three rows share a pointer, because one pointer per row would not fit into the general-purpose registers.
  const float* third[(rows + 2) / 3];
  each<(rows + 2) / 3>([&](auto i) SE_LAMBDA { third[i] = h + 3 * i * k; });
  F sum[rows * panels];
  each<rows * panels>([&](auto i) SE_LAMBDA { sum[i] = zero(); });
  for (int64_t i = 0; i < k; ++i) {
    F w[panels];
    each<panels>([&](auto p) SE_LAMBDA { w[p] = load(weight + (p * k + i) * kLanes); });
    each<rows>([&](auto r) SE_LAMBDA {
      const F v = splat(third[r / 3][r % 3 * k + i]);
      each<panels>([&](auto p) SE_LAMBDA { sum[r * panels + p] = sum[r * panels + p] + v * w[p]; });
    });
  }
  each<rows * panels>([&](auto i) SE_LAMBDA { sums[i] = sum[i]; });
}

// sums[row * panels + panel], for 1 to kTileRows rows. Not inlined: inlined into every combination of epilogues, this
// code was half of the library's size.
template <int panels>
static __attribute__((noinline)) void sum_rows(int64_t rows, const float* h, const float* weight, int64_t k, F* sums) {
  if (rows == kTileRows) return sum_tile<kTileRows, panels>(h, weight, k, sums);
  each<kTileRows - 1>([&](auto last) SE_LAMBDA {
    if (rows == last + 1) sum_tile<decltype(last)::value + 1, panels>(h, weight, k, sums);
  });
}

template <Act act, bool has_residual, class T, class A>
SE_INLINE void close_step(A a, F t, const float* scale, const float* shift, const T* residual, T* y) {
  if (scale) t = t * a.get(scale);
  if (shift) t = t + a.get(shift);
  if constexpr (has_residual) t = t + a.get(residual);
  a.put(y, out_activate<act>(t));
}

// Rows [row, row + rows) of panels [panel, panel + panels).
template <Act act, bool has_residual, class T>
SE_INLINE void product_tile(const ProductArgs& g, const float* h, const int64_t* coefficients, int64_t row,
                            int64_t rows, int64_t panel, int64_t panels) {
  const int64_t c = panel * kLanes, ld = g.c, from = row * ld + c, left = ld - c;
  const T* const residual = (const T*)g.residual + from;
  T* const y = (T*)g.y + from;
  const float *const scale = g.scale ? g.scale + c : nullptr, *const shift = g.shift ? g.shift + c : nullptr;
  // Hardware prefetchers do not follow runs of two cache lines with a stride of ld. These loads overlap with the sums.
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t at = r * ld + p * kLanes;
      if constexpr (has_residual) __builtin_prefetch(residual + at);
      __builtin_prefetch(y + at, 1);
    }
  F sums[kTileRows * kTilePanels];
  const float* const weight = g.weight + c * g.k;
  if (panels == kTilePanels)
    sum_rows<kTilePanels>(rows, h, weight, g.k, sums);
  else
    sum_rows<1>(rows, h, weight, g.k, sums);
  const auto close = [&](auto a, int64_t r, int64_t p) SE_LAMBDA {
    const int64_t of = coefficients[r] + p * kLanes, at = r * ld + p * kLanes;
    close_step<act, has_residual, T>(a, sums[r * panels + p], scale ? scale + of : nullptr,
                                     shift ? shift + of : nullptr, residual + at, y + at);
  };
  if (left >= panels * kLanes) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t p = 0; p < panels; ++p) close(Full{}, r, p);
  } else {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < panels - 1; ++p) close(Full{}, r, p);
      close(Partial{(int)(left % kLanes)}, r, panels - 1);
    }
  }
}

template <Act act, bool has_residual, class T>
static void product_as(const ProductArgs& g, const ProductPart& part, float* scratch) {
  for (int64_t row = part.row0; row < part.row1; row += kTileRows) {
    const int64_t rows = part.row1 - row < kTileRows ? part.row1 - row : kTileRows;
    const float* h = (const float*)g.h + row * g.k;
    if constexpr (!__is_same(T, float)) {
      to_float<T>((const T*)g.h + row * g.k, scratch, rows * g.k);
      h = scratch;
    }
    int64_t coefficients[kTileRows];
    for (int64_t r = 0; r < rows; ++r) coefficients[r] = (row + r) / g.s * g.stride;
    for (int64_t panel = part.panel0; panel < part.panel1; panel += kTilePanels) {
      const int64_t panels = part.panel1 - panel < kTilePanels ? part.panel1 - panel : kTilePanels;
      product_tile<act, has_residual, T>(g, h, coefficients, row, rows, panel, panels);
    }
  }
}

template <Act act, class T>
static void product_with(const ProductArgs& g, const ProductPart& part, float* scratch) {
  g.residual ? product_as<act, true, T>(g, part, scratch) : product_as<act, false, T>(g, part, scratch);
}

template <class T>
static void product(const ProductArgs& g, const ProductPart& part, float* scratch) {
  by_out_act(g.out_act, [&](auto act) SE_LAMBDA { product_with<decltype(act)::value, T>(g, part, scratch); });
}
