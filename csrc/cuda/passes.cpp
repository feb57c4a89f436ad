// The passes as operators: checks, allocation and one launch each. scale_shift_act_mean and its backward pass add one
// launch, which joins the sums of the splits.
#include "torch_host.h"

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

std::tuple<Tensor, Tensor> scale_shift_act(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                           const OptionalTensor& shift, int64_t out_act, bool save_mask) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  check_like(residual, x, layout, "residual");
  Tensor y = torch::stable::empty_like(x), mask = save_mask ? new_mask(x, layout) : new_nothing(x);
  const Map map = map_of(x, layout, {data(x), data(residual), data(y)});
  ScaleShiftAct args{};
  args.x = data(x);
  args.residual = data(residual);
  args.y = mutable_data(y);
  args.mask = save_mask ? static_cast<uint8_t*>(mutable_data(mask)) : nullptr;
  args.by.scale = float_vector(scale, nc, "scale");
  const Tensor added = shift ? *shift : torch::stable::new_zeros(scale, {layout.n, layout.c});
  args.by.shift = float_vector(added, nc, "shift");
  args.out_act = out_act_of(out_act);
  args.map = map;
  args.cut = part_of(map, place.device, blocks_of_scale_shift_act(map.mode, map.type == Type::float32));
  if (layout.numel()) place.run(args);
  return {y, mask};
}

std::tuple<Tensor, Tensor, Tensor> moments_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& residual,
                                                    const Tensor& mask, const Tensor& mean, const Tensor& scale,
                                                    const Tensor& shift, int64_t out_act, bool want_dr) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  const Act act = out_act_of(out_act);
  check_like(dy, x, layout, "dy");
  check_like(residual, x, layout, "residual");
  Tensor dr = want_dr ? torch::stable::empty_like(x) : new_nothing(x);
  Tensor p = new_float(x, {layout.n, layout.c}), q = new_float(x, {layout.n, layout.c});
  const bool from_sum = keeps_input(act);
  MomentsBackward args{};
  args.dy = data(dy);
  args.x = data(x);
  args.residual = from_sum ? data(residual) : nullptr;
  args.mask = keeps_mask(act) ? mask_of(mask, layout) : nullptr;
  args.mean = float_vector(mean, nc, "mean");
  args.by.scale = from_sum ? float_vector(scale, nc, "scale") : nullptr;
  args.by.shift = from_sum ? float_vector(shift, nc, "shift") : nullptr;
  args.dr = want_dr ? mutable_data(dr) : nullptr;
  args.p = floats(p);
  args.q = floats(q);
  args.out_act = act;
  args.map = map_of(x, layout, {data(dy), data(x), args.residual, args.dr});
  args.cut = whole(args.map);
  if (layout.numel()) place.run(args);
  return {dr, p, q};
}

Tensor scale_shift_act_backward(const Tensor& dr, const OptionalTensor& x, const Tensor& mask, const Tensor& mean,
                                const Tensor& k1, const Tensor& k2, const Tensor& k3) {
  const Place place(dr);
  const Layout layout = layout_of(dr, "dr");
  const int64_t nc = layout.n * layout.c;
  check_like(x, dr, layout, "x");
  Tensor dx = torch::stable::empty_like(dr);
  ScaleShiftActBackward args{};
  args.dr = data(dr);
  args.x = data(x);
  args.mask = mask.numel() ? mask_of(mask, layout) : nullptr;
  args.mean = float_vector(mean, nc, "mean");
  args.k1 = float_vector(k1, nc, "k1");
  args.k2 = float_vector(k2, nc, "k2");
  args.k3 = float_vector(k3, nc, "k3");
  args.dx = mutable_data(dx);
  args.map = map_of(dr, layout, {data(dr), data(x), data(dx)});
  args.cut = part_of(args.map, place.device, blocks_of_scale_shift_act_backward(args.map.mode));
  if (layout.numel()) place.run(args);
  return dx;
}

// Sum over the splits, (splits, N, C) -> (N, C), by torch.sum, whose order is the same in every run.
static Tensor joined(const Tensor& parts) {
  const int64_t dim = 0;
  return torch::stable::sum(parts, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
}

std::tuple<Tensor, Tensor> scale_shift_act_mean(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                                int64_t out_act) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  Tensor y = torch::stable::empty_like(x);
  ScaleShiftActMean args{};
  args.x = data(x);
  args.y = mutable_data(y);
  args.scale = float_vector(scale, nc, "scale");
  args.shift = float_vector(shift, nc, "shift");
  args.out_act = out_act_of(out_act);
  if (!layout.numel()) return {y, new_float(x, {layout.n, layout.c})};
  args.map = map_of(x, layout, {data(x), data(y)});
  args.cut = cut_of(args.map, place.device, Sums::scale_shift_act_mean);
  args.per_position = 1.f / (float)args.map.s;
  Tensor parts = new_float(x, {args.cut.splits, layout.n, layout.c});
  args.mean_parts = floats(parts);
  place.run(args);
  return {y, joined(parts)};
}

std::tuple<Tensor, Tensor, Tensor> scale_shift_act_mean_backward(const Tensor& dy, const Tensor& added, const Tensor& x,
                                                                 const Tensor& mean, const Tensor& scale,
                                                                 const Tensor& shift, int64_t out_act) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t nc = layout.n * layout.c;
  check_like(dy, x, layout, "dy");
  Tensor dr = torch::stable::empty_like(x);
  MomentsBackward args{};
  args.dy = data(dy);
  args.x = data(x);
  args.mean = float_vector(mean, nc, "mean");
  args.by.scale = float_vector(scale, nc, "scale");
  args.by.shift = float_vector(shift, nc, "shift");
  args.added = float_vector(added, nc, "added");
  args.dr = mutable_data(dr);
  args.out_act = out_act_of(out_act);
  if (!layout.numel()) return {dr, new_float(x, {layout.n, layout.c}), new_float(x, {layout.n, layout.c})};
  args.map = map_of(x, layout, {data(dy), data(x), args.dr});
  args.cut = cut_of(args.map, place.device, Sums::moments_backward_from_sum);
  Tensor p = new_float(x, {args.cut.splits, layout.n, layout.c}), q = torch::stable::empty_like(p);
  args.p = floats(p);
  args.q = floats(q);
  place.run(args);
  return {dr, joined(p), joined(q)};
}

}  // namespace se_fused
