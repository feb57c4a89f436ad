// Stream 2 of both directions: one multiply-add per element with coefficients per (n, c).
#include "streams.h"

namespace se_fused::cpu {

void affine(const StreamKernels& k, AffineArgs args, int64_t item, const Layout& layout, int64_t past_caches_from) {
  const auto run = layout.channels_last ? k.affine_cols : k.affine_rows;
  // x's lines are in the caches already where y is written over it
  const bool any_rows = !layout.channels_last && !args.mask && layout.s >= 16;
  const bool past = args.x != args.y && past_caches(args.y, item, layout, past_caches_from, any_rows);
  for_sample_rows_backwards(layout, item, [&](int64_t n, int64_t row, int64_t rows) {
    const int64_t skip = row * layout.row_len() * item, coefficients = layout.channels_last ? n * layout.c : row;
    AffineArgs g = args;
    g.x = static_cast<const char*>(args.x) + skip;
    if (args.residual) g.residual = static_cast<const char*>(args.residual) + skip;
    g.y = static_cast<char*>(args.y) + skip;
    if (args.mask) g.mask = args.mask + row * layout.row_mask_bytes();
    g.scale = args.scale + coefficients;
    g.shift = args.shift + coefficients;
    g.rows = rows;
    g.len = layout.row_len();
    g.past_caches = past;
    run(g);
  });
}

void affine_backward(const StreamKernels& k, const AffineBackwardArgs& args, int64_t item, const Layout& layout) {
  const auto run = layout.channels_last ? k.affine_backward_cols : k.affine_backward_rows;
  const bool past = past_caches(args.dx, item, layout);
  for_sample_rows_backwards(layout, item, [&](int64_t n, int64_t row, int64_t rows) {
    const int64_t skip = row * layout.row_len() * item, coefficients = layout.channels_last ? n * layout.c : row;
    AffineBackwardArgs g = args;
    g.dr = static_cast<const char*>(args.dr) + skip;
    if (args.mask) g.mask = args.mask + row * layout.row_mask_bytes();
    if (args.x) {
      g.x = static_cast<const char*>(args.x) + skip;
      g.mean = args.mean + coefficients;
    }
    g.k1 = args.k1 + coefficients;
    g.k2 = args.k2 + coefficients;
    g.k3 = args.k3 + coefficients;
    g.dx = static_cast<char*>(args.dx) + skip;
    g.rows = rows;
    g.len = layout.row_len();
    g.past_caches = past;
    run(g);
  });
}

}  // namespace se_fused::cpu

namespace se_fused {

std::tuple<Tensor, Tensor> affine(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                  const Tensor& shift, int64_t out_act, bool save_mask) {
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  if (residual) check_like(*residual, x, layout, "residual");
  Tensor y = torch::stable::empty_like(x);
  Tensor mask = save_mask ? cpu::new_mask(x, layout) : cpu::new_nothing(x);
  cpu::AffineArgs args{};
  args.x = cpu::bytes(x);
  args.residual = cpu::bytes(residual);
  args.y = cpu::mutable_bytes(y);
  args.mask = save_mask ? reinterpret_cast<uint8_t*>(cpu::mutable_bytes(mask)) : nullptr;
  args.scale = float_vector(scale, nc, "scale");
  args.shift = float_vector(shift, nc, "shift");
  args.out_act = static_cast<cpu::OutAct>(out_act);
  cpu::affine(cpu::stream_kernels(x), args, cpu::item_bytes(x), layout, cpu::kPastCaches);
  return {y, mask};
}

Tensor affine_backward(const Tensor& dr, const OptionalTensor& x, const Tensor& mask, const Tensor& mean,
                       const Tensor& k1, const Tensor& k2, const Tensor& k3) {
  const Layout layout = layout_of(dr, "dr");
  const int64_t nc = layout.n * layout.c;
  if (x) check_like(*x, dr, layout, "x");
  const bool masked = mask.numel() != 0;
  if (masked) check_vector(mask, layout.rows() * layout.row_mask_bytes(), "mask");
  Tensor dx = torch::stable::empty_like(dr);
  cpu::AffineBackwardArgs args{};
  args.dr = cpu::bytes(dr);
  args.mask = masked ? reinterpret_cast<const uint8_t*>(cpu::bytes(mask)) : nullptr;
  args.x = cpu::bytes(x);
  args.mean = float_vector(mean, nc, "mean");
  args.k1 = float_vector(k1, nc, "k1");
  args.k2 = float_vector(k2, nc, "k2");
  args.k3 = float_vector(k3, nc, "k3");
  args.dx = cpu::mutable_bytes(dx);
  cpu::affine_backward(cpu::stream_kernels(dr), args, cpu::item_bytes(dr), layout);
  return dx;
}

}  // namespace se_fused
