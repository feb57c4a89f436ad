// The four streams as operators: shapes, memory, one launch each.
#include "host.h"

namespace se_fused {

using namespace cuda;

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const Map map = map_of(x, layout, {data(x)});
  Tensor mean = new_float(x, {layout.n, layout.c}), m2 = new_float(x, {layout.n, layout.c});
  if (layout.numel()) place.run(Moments{data(x), floats(mean), floats(m2), nullptr, map, whole(map)});
  return {mean, m2};
}

std::tuple<Tensor, Tensor> affine(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                  const Tensor& shift, int64_t out_act, bool save_mask) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  if (residual) check_like(*residual, x, layout, "residual");
  Tensor y = torch::stable::empty_like(x), mask = save_mask ? new_mask(x, layout) : new_nothing(x);
  const Map map = map_of(x, layout, {data(x), data(residual), data(y)});
  Affine args{};
  args.x = data(x);
  args.residual = data(residual);
  args.y = mutable_data(y);
  args.mask = save_mask ? static_cast<uint8_t*>(mutable_data(mask)) : nullptr;
  args.by.scale = float_vector(scale, nc, "scale");
  args.by.shift = float_vector(shift, nc, "shift");
  args.out_act = static_cast<OutAct>(out_act);
  args.map = map;
  args.cut = part_of(args.map);
  if (layout.numel()) place.run(args);
  return {y, mask};
}

std::tuple<Tensor, Tensor, Tensor> moments_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& residual,
                                                    const Tensor& mask, const Tensor& mean, const Tensor& scale,
                                                    const Tensor& shift, int64_t out_act, bool want_dr) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  const auto act = static_cast<OutAct>(out_act);
  check_like(dy, x, layout, "dy");
  if (residual) check_like(*residual, x, layout, "residual");
  if (act == OutAct::relu) check_vector(mask, layout.rows() * layout.row_mask_bytes(), "mask");
  Tensor dr = want_dr ? torch::stable::empty_like(x) : new_nothing(x);
  Tensor p = new_float(x, {layout.n, layout.c}), q = new_float(x, {layout.n, layout.c});
  const bool silu = act == OutAct::silu;
  MomentsBackward args{};
  args.dy = data(dy);
  args.x = data(x);
  args.residual = silu ? data(residual) : nullptr;
  args.mask = act == OutAct::relu ? static_cast<const uint8_t*>(data(mask)) : nullptr;
  args.mean = float_vector(mean, nc, "mean");
  args.by.scale = silu ? float_vector(scale, nc, "scale") : nullptr;
  args.by.shift = silu ? float_vector(shift, nc, "shift") : nullptr;
  args.dr = want_dr ? mutable_data(dr) : nullptr;
  args.p = floats(p);
  args.q = floats(q);
  args.out_act = act;
  args.map = map_of(x, layout, {data(dy), data(x), args.residual, args.dr});
  args.cut = whole(args.map);
  if (layout.numel()) place.run(args);
  return {dr, p, q};
}

Tensor affine_backward(const Tensor& dr, const OptionalTensor& x, const Tensor& mask, const Tensor& mean,
                       const Tensor& k1, const Tensor& k2, const Tensor& k3) {
  const Place place(dr);
  const Layout layout = layout_of(dr, "dr");
  const int64_t nc = layout.n * layout.c;
  if (x) check_like(*x, dr, layout, "x");
  const bool masked = mask.numel() != 0;
  if (masked) check_vector(mask, layout.rows() * layout.row_mask_bytes(), "mask");
  Tensor dx = torch::stable::empty_like(dr);
  AffineBackward args{};
  args.dr = data(dr);
  args.x = data(x);
  args.mask = masked ? static_cast<const uint8_t*>(data(mask)) : nullptr;
  args.mean = float_vector(mean, nc, "mean");
  args.k1 = float_vector(k1, nc, "k1");
  args.k2 = float_vector(k2, nc, "k2");
  args.k3 = float_vector(k3, nc, "k3");
  args.dx = mutable_data(dx);
  args.map = map_of(dr, layout, {data(dr), data(x), data(dx)});
  args.cut = part_of(args.map);
  if (layout.numel()) place.run(args);
  return dx;
}

}  // namespace se_fused
