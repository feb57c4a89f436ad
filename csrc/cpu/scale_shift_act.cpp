// Pass 2, forward and backward: each element is scaled and shifted by coefficients per (n, c).
#include "passes.h"

namespace se_fused::cpu {

void scale_shift_act(const PassKernels& k, ScaleShiftActArgs args, int64_t item, const Layout& layout,
                     int64_t past_caches_from) {
  const auto run = layout.channels_last ? k.scale_shift_act_cols : k.scale_shift_act_rows;
  const bool any_rows = !layout.channels_last && !args.mask && layout.s >= 16;  // the case of scale_shift_act_flat
  // If y is written over x, its lines are already in the caches, so they are not bypassed.
  const bool past = args.x != args.y && past_caches(args.y, item, layout, past_caches_from, any_rows);
  for_sample_rows_backwards(layout, item, [&](int64_t n, int64_t row, int64_t rows) {
    const RowStart at(layout, item, n, row);
    auto g = rows_of(args, rows, layout, past);
    g.x = at.elements(args.x);
    g.residual = at.elements(args.residual);
    g.y = at.elements(args.y);
    g.mask = at.mask(args.mask);
    g.scale = at.coefficients(args.scale);
    g.shift = at.coefficients(args.shift);
    run(g);
  });
}

void scale_shift_act_backward(const PassKernels& k, const ScaleShiftActBackwardArgs& args, int64_t item,
                              const Layout& layout) {
  const auto run = layout.channels_last ? k.scale_shift_act_backward_cols : k.scale_shift_act_backward_rows;
  const bool past = past_caches(args.dx, item, layout);
  for_sample_rows_backwards(layout, item, [&](int64_t n, int64_t row, int64_t rows) {
    const RowStart at(layout, item, n, row);
    auto g = rows_of(args, rows, layout, past);
    g.dr = at.elements(args.dr);
    g.mask = at.mask(args.mask);
    g.x = at.elements(args.x);
    g.mean = args.x ? at.coefficients(args.mean) : nullptr;
    g.k1 = at.coefficients(args.k1);
    g.k2 = at.coefficients(args.k2);
    g.k3 = at.coefficients(args.k3);
    g.dx = at.elements(args.dx);
    run(g);
  });
}

}  // namespace se_fused::cpu

namespace se_fused {

std::tuple<Tensor, Tensor> scale_shift_act(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                           const OptionalTensor& shift, int64_t out_act, bool save_mask) {
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  check_like(residual, x, layout, "residual");
  Tensor y = torch::stable::empty_like(x);
  Tensor mask = save_mask ? new_mask(x, layout) : new_nothing(x);
  cpu::ScaleShiftActArgs args{};
  args.x = cpu::bytes(x);
  args.residual = cpu::bytes(residual);
  args.y = cpu::mutable_bytes(y);
  args.mask = save_mask ? reinterpret_cast<uint8_t*>(cpu::mutable_bytes(mask)) : nullptr;
  args.scale = float_vector(scale, nc, "scale");
  const std::unique_ptr<float[]> zeros(shift ? nullptr : new float[nc]());
  args.shift = shift ? float_vector(*shift, nc, "shift") : zeros.get();
  args.out_act = out_act_of(out_act);
  cpu::scale_shift_act(cpu::pass_kernels(x), args, cpu::item_bytes(x), layout, cpu::kPastCaches);
  return {y, mask};
}

Tensor scale_shift_act_backward(const Tensor& dr, const OptionalTensor& x, const Tensor& mask, const Tensor& mean,
                                const Tensor& k1, const Tensor& k2, const Tensor& k3) {
  const Layout layout = layout_of(dr, "dr");
  const int64_t nc = layout.n * layout.c;
  check_like(x, dr, layout, "x");
  Tensor dx = torch::stable::empty_like(dr);
  cpu::ScaleShiftActBackwardArgs args{};
  args.dr = cpu::bytes(dr);
  args.mask = mask.numel() ? mask_of(mask, layout) : nullptr;
  args.x = cpu::bytes(x);
  args.mean = float_vector(mean, nc, "mean");
  args.k1 = float_vector(k1, nc, "k1");
  args.k2 = float_vector(k2, nc, "k2");
  args.k3 = float_vector(k3, nc, "k3");
  args.dx = cpu::mutable_bytes(dx);
  cpu::scale_shift_act_backward(cpu::pass_kernels(dr), args, cpu::item_bytes(dr), layout);
  return dx;
}

}  // namespace se_fused
