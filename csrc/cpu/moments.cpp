// Pass 1, forward and backward: sums per (n, c). In the contiguous layout each row gives one sum. In channels_last, all
// channels are summed side by side over chunks of positions, and the chunks' sums are joined in a fixed order.
#include "chunks.h"
#include "passes.h"

namespace se_fused::cpu {

void moments(const PassKernels& k, const void* x, int64_t item, const Layout& layout, float* mean, float* m2) {
  const char* const from = static_cast<const char*>(x);
  const int64_t c = layout.c, s = layout.s;
  if (!layout.channels_last) {
    for_sample_rows(layout, [&](int64_t, int64_t row, int64_t rows) {
      k.moments_rows(from + row * s * item, rows, s, mean + row, m2 ? m2 + row : nullptr);
    });
    return;
  }
  in_chunks(
      layout,
      [&](int64_t n, int64_t first, int64_t rows, float* out) {
        float* const to_mean = out ? out : mean + n * c;
        float* const to_m2 = !m2 ? nullptr : out ? out + c : m2 + n * c;
        k.moments_cols(from + (n * s + first) * c * item, rows, c, to_mean, to_m2);
      },
      [&](int64_t n, int64_t before, int64_t rows, const float* part) {
        float* const to_m2 = m2 ? m2 + n * c : nullptr;
        if (before == 0) {
          std::copy_n(part, c, mean + n * c);
          if (m2) std::copy_n(part + c, c, to_m2);
        } else {
          kernels().merge(mean + n * c, to_m2, float(before), part, part + c, float(rows), c);
        }
      });
}

void moments_backward(const PassKernels& k, const MomentsBackwardArgs& args, int64_t item, const Layout& layout) {
  const bool past = args.dr && past_caches(args.dr, item, layout);
  const auto part = [&](int64_t n, int64_t row, int64_t rows, float* p, float* q) {
    const RowStart at(layout, item, n, row);
    auto g = rows_of(args, rows, layout, past);
    g.dy = at.elements(args.dy);
    g.x = at.elements(args.x);
    g.residual = at.elements(args.residual);
    g.dr = at.elements(args.dr);
    g.mask = at.mask(args.mask);
    g.mean = at.coefficients(args.mean);
    g.scale = at.coefficients(args.scale);
    g.shift = at.coefficients(args.shift);
    g.added = at.coefficients(args.added);
    g.p = p;
    g.q = q;
    return g;
  };
  const int64_t c = layout.c;
  if (!layout.channels_last) {
    for_sample_rows(layout, [&](int64_t n, int64_t row, int64_t rows) {
      k.moments_backward_rows(part(n, row, rows, args.p + row, args.q + row));
    });
    return;
  }
  in_chunks(
      layout,
      [&](int64_t n, int64_t first, int64_t rows, float* out) {
        float* const p = out ? out : args.p + n * c;
        float* const q = out ? out + c : args.q + n * c;
        k.moments_backward_cols(part(n, n * layout.s + first, rows, p, q));
      },
      [&](int64_t n, int64_t before, int64_t, const float* from) {
        float *p = args.p + n * c, *q = args.q + n * c;
        if (before == 0) {
          std::copy_n(from, c, p);
          std::copy_n(from + c, c, q);
        } else {
          kernels().add(p, from, c);
          kernels().add(q, from + c, c);
        }
      });
}

}  // namespace se_fused::cpu

namespace se_fused {

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  const Layout layout = layout_of(x, "x");
  Tensor mean = new_float(x, {layout.n, layout.c}), m2 = new_float(x, {layout.n, layout.c});
  if (layout.numel())
    cpu::moments(cpu::pass_kernels(x), cpu::bytes(x), cpu::item_bytes(x), layout, floats(mean), floats(m2));
  return {mean, m2};
}

std::tuple<Tensor, Tensor, Tensor> moments_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& residual,
                                                    const Tensor& mask, const Tensor& mean, const Tensor& scale,
                                                    const Tensor& shift, int64_t out_act, bool want_dr) {
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  check_like(dy, x, layout, "dy");
  check_like(residual, x, layout, "residual");
  const Act act = out_act_of(out_act);
  Tensor dr = want_dr ? torch::stable::empty_like(x) : new_nothing(x);
  Tensor p = new_float(x, {layout.n, layout.c}), q = new_float(x, {layout.n, layout.c});
  cpu::MomentsBackwardArgs args{};
  args.dy = cpu::bytes(dy);
  args.x = cpu::bytes(x);
  args.residual = cpu::bytes(residual);
  args.mask = keeps_mask(act) ? mask_of(mask, layout) : nullptr;
  args.mean = float_vector(mean, nc, "mean");
  args.scale = keeps_input(act) ? float_vector(scale, nc, "scale") : nullptr;
  args.shift = keeps_input(act) ? float_vector(shift, nc, "shift") : nullptr;
  args.dr = want_dr ? cpu::mutable_bytes(dr) : nullptr;
  args.p = floats(p);
  args.q = floats(q);
  args.out_act = act;
  if (layout.numel()) cpu::moments_backward(cpu::pass_kernels(x), args, cpu::item_bytes(x), layout);
  return {dr, p, q};
}

}  // namespace se_fused
