// Pass 2 fused with the per-channel mean of its result, and the first half of its backward pass.
#include "chunks.h"
#include "passes.h"

namespace se_fused::cpu {

void scale_shift_act_mean(const PassKernels& k, const ScaleShiftActMeanArgs& args, int64_t item, const Layout& layout) {
  const bool past = past_caches(args.y, item, layout);
  const auto part = [&](int64_t n, int64_t row, int64_t rows, float* total) {
    const RowStart at(layout, item, n, row);
    auto g = rows_of(args, rows, layout, past);
    g.x = at.elements(args.x);
    g.y = at.elements(args.y);
    g.scale = at.coefficients(args.scale);
    g.shift = at.coefficients(args.shift);
    g.total = total;
    return g;
  };
  const int64_t c = layout.c;
  if (layout.channels_last)
    in_chunks(
        layout,
        [&](int64_t n, int64_t first, int64_t rows, float* out) {
          k.scale_shift_act_mean_cols(part(n, n * layout.s + first, rows, out ? out : args.total + n * c));
        },
        [&](int64_t n, int64_t before, int64_t, const float* from) {
          if (before == 0)
            std::copy_n(from, c, args.total + n * c);
          else
            kernels().add(args.total + n * c, from, c);
        });
  else
    for_sample_rows_backwards(layout, item, [&](int64_t n, int64_t row, int64_t rows) {
      k.scale_shift_act_mean_rows(part(n, row, rows, args.total + row));
    });
  for (int64_t i = 0; i < layout.n * c; ++i) args.total[i] /= static_cast<float>(layout.s);
}

}  // namespace se_fused::cpu

namespace se_fused {

std::tuple<Tensor, Tensor> scale_shift_act_mean(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                                int64_t out_act) {
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  Tensor y = torch::stable::empty_like(x), mean = new_float(x, {layout.n, layout.c});
  cpu::ScaleShiftActMeanArgs args{};
  args.x = cpu::bytes(x);
  args.y = cpu::mutable_bytes(y);
  args.scale = float_vector(scale, nc, "scale");
  args.shift = float_vector(shift, nc, "shift");
  args.total = floats(mean);
  args.out_act = out_act_of(out_act);
  if (layout.numel()) cpu::scale_shift_act_mean(cpu::pass_kernels(x), args, cpu::item_bytes(x), layout);
  return {y, mean};
}

std::tuple<Tensor, Tensor, Tensor> scale_shift_act_mean_backward(const Tensor& dy, const Tensor& added, const Tensor& x,
                                                                 const Tensor& mean, const Tensor& scale,
                                                                 const Tensor& shift, int64_t out_act) {
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  check_like(dy, x, layout, "dy");
  Tensor dr = torch::stable::empty_like(x);
  Tensor p = new_float(x, {layout.n, layout.c}), q = new_float(x, {layout.n, layout.c});
  cpu::MomentsBackwardArgs args{};
  args.dy = cpu::bytes(dy);
  args.x = cpu::bytes(x);
  args.mean = float_vector(mean, nc, "mean");
  args.scale = float_vector(scale, nc, "scale");
  args.shift = float_vector(shift, nc, "shift");
  args.added = float_vector(added, nc, "added");
  args.dr = cpu::mutable_bytes(dr);
  args.p = floats(p);
  args.q = floats(q);
  args.out_act = out_act_of(out_act);
  if (layout.numel()) cpu::moments_backward(cpu::pass_kernels(x), args, cpu::item_bytes(x), layout);
  return {dr, p, q};
}

}  // namespace se_fused
