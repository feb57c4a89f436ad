// The whole operator: three launches each for forward and backward; in inference one, two or three (plan.cpp).
#include "batch_norm_squeeze_excite.h"

namespace se_fused::cuda {
namespace {

ExcitationLayers layers_of(const OptionalTensor& fc1, const OptionalTensor& fc1_bias, const OptionalTensor& fc2,
                           const OptionalTensor& fc2_bias, int64_t c, int64_t act, int64_t gate) {
  ExcitationLayers fc{};
  fc.type = Type::float32;
  fc.act = act_of(act);
  fc.gate = gate_of(gate);
  if (!fc1) return fc;
  const int64_t r = check_weights(*fc1, fc2, c);
  STD_TORCH_CHECK(r <= INT32_MAX / 2, "fc1_weight must have fewer than 2^30 rows");
  fc.fc1_weight = data(*fc1);
  fc.fc2_weight = data(*fc2);
  fc.type = type_of(*fc1, "fc1_weight");
  fc.fc1_bias = vector_of(fc1_bias, r, "fc1_bias");
  fc.fc2_bias = vector_of(fc2_bias, c, "fc2_bias");
  fc.r = (int)r;
  fc.fc1_whole = c % 8 == 0 && reinterpret_cast<uintptr_t>(fc.fc1_weight) % 16 == 0;
  fc.fc2_whole = r % 8 == 0 && reinterpret_cast<uintptr_t>(fc.fc2_weight) % 16 == 0;
  return fc;
}

Norm norm_of(const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& weight,
             const OptionalTensor& bias, int64_t c, double eps) {
  return {vector_of(mean, c, "running_mean"), vector_of(var, c, "running_var"), vector_of(weight, c, "bn_weight"),
          vector_of(bias, c, "bn_bias"), (float)eps};
}

ScaleShiftAct scale_shift_act_args(const Map& map, const Tensor& x, const OptionalTensor& residual, const Tensor& y,
                                   int64_t out_act) {
  ScaleShiftAct args{};
  args.x = data(x);
  args.residual = data(residual);
  args.y = mutable_data(y);
  args.out_act = out_act_of(out_act);
  args.map = map;
  args.cut = part_of(map);
  return args;
}

// Results of the first two launches. A null pointer is allocated in the workspace, and null running statistics are not
// updated.
struct Between {
  float *mean, *stats, *factor, *hidden;
  Result moved_mean, moved_var;
  double momentum, unbias;
};

int64_t workspace_of(const Map& map, const Cut& cut, int r) {
  const int64_t nc = Workspace::rounded(map.n * map.c);
  return 2 * Workspace::rounded((int64_t)cut.splits * map.n * map.c) + 4 * nc + Workspace::rounded(2 * map.c) +
         Workspace::rounded((int64_t)map.n * r) + kCounters;
}

// Launches pass 1 and excitation, and sets scale and shift (N, C) of pass 2 in `second`.
void coefficients(const Place& place, const Tensor& x, const Map& map, const Cut& cut, const Norm& norm,
                  const ExcitationLayers& fc, const Vector& drop, bool batch_stats, const Between& between,
                  Workspace& scratch, ScaleShiftAct& second) {
  const int64_t nc = map.n * map.c;
  int* const counters = reinterpret_cast<int*>(scratch.take(kCounters));
  float* const parts = cut.splits == 1 && between.mean ? between.mean : scratch.take(cut.splits * nc);
  Moments first{data(x), parts, batch_stats ? scratch.take(cut.splits * nc) : nullptr, counters, map, cut};
  Excitation g{};
  g.n = map.n;
  g.c = map.c;
  g.s = map.s;
  g.mean_parts = parts;
  g.m2_parts = first.m2;
  g.splits = cut.splits;
  g.span = cut.span;
  g.mean = cut.splits == 1 ? parts : between.mean ? between.mean : scratch.take(nc);
  g.norm = norm;
  g.stats = between.stats ? between.stats : batch_stats ? scratch.take(2 * map.c) : nullptr;
  g.moved_mean = between.moved_mean;
  g.moved_var = between.moved_var;
  g.momentum = (float)between.momentum;
  g.unbias = (float)between.unbias;
  g.fc = fc;
  g.drop = drop;
  const bool has_norm = batch_stats || norm.mean.data;
  g.z = has_norm && fc.fc1_weight ? scratch.take(nc) : g.mean;
  g.hidden = between.hidden ? between.hidden : fc.fc1_weight ? scratch.take(map.n * fc.r) : nullptr;
  g.factor = between.factor;
  g.scale = scratch.take(nc);
  g.shift = scratch.take(nc);
  g.counters = counters;
  place.run(first);
  place.run(g, place.device.multiprocessors);
  second.by.scale = g.scale;
  second.by.shift = g.shift;
}

void run_l2_grouped(const Place& place, const Tensor& x, L2Grouped g, const InferenceParams& op, int blocks) {
  g.op = op;
  const Map& map = op.map;
  const int64_t nc = map.n * map.c, parts = map.by_rows() || g.splits == 1 ? 0 : g.splits * nc;
  Workspace scratch(x, Workspace::rounded(parts) + 3 * Workspace::rounded(nc) + Workspace::rounded(map.n * op.fc.r));
  g.mean_parts = scratch.take(parts);
  g.z = scratch.take(nc);
  g.scale = scratch.take(nc);
  g.shift = scratch.take(nc);
  g.hidden = scratch.take(map.n * op.fc.r);
  Tensor counters = torch::stable::new_zeros(x, {counters_of(g)}, ScalarType::Int);
  g.counters = static_cast<int*>(mutable_data(counters));
  place.run(g, blocks);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_forward(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& fc1_weight, const OptionalTensor& fc1_bias, const OptionalTensor& fc2_weight,
    const OptionalTensor& fc2_bias, const OptionalTensor& drop_path_scale, bool batch_stats, double eps, int64_t act,
    int64_t gate, int64_t out_act, bool save, const OptionalTensor& moved_mean, const OptionalTensor& moved_var,
    double momentum, double unbias) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c;
  check_like(residual, x, layout, "residual");
  Tensor y = torch::stable::empty_like(x);
  const Map map = map_of(x, layout, {data(x), data(residual), data(y)});
  const ExcitationLayers fc = layers_of(fc1_weight, fc1_bias, fc2_weight, fc2_bias, c, act, gate);
  Norm norm = norm_of(running_mean, running_var, bn_weight, bn_bias, c, eps);
  const bool has_bn = batch_stats || running_mean, has_excitation = fc.fc1_weight;
  if (batch_stats) norm.mean.data = norm.var.data = nullptr;
  const bool save_mask = save && keeps_mask(out_act_of(out_act));
  const Tensor nothing = new_nothing(x);
  Tensor mask = save_mask ? new_mask(x, layout) : nothing, mean = save ? new_float(x, {n, c}) : nothing,
         factor = save && has_excitation ? new_float(x, {n, c}) : nothing,
         hidden = save && has_excitation ? new_float(x, {n, fc.r}) : nothing,
         stats = has_bn && (save || batch_stats) ? new_float(x, {2, c}) : nothing;
  if (layout.numel()) {
    const auto given = [&](const Tensor& t) { return t.numel() ? floats(t) : nullptr; };
    const auto moved = [&](const OptionalTensor& t, const char* name) {
      const Vector v = vector_of(t, c, name);
      return Result{const_cast<void*>(v.data), v.type};
    };
    const Cut cut = cut_of(map, place.device);
    Workspace scratch(x, workspace_of(map, cut, fc.r));
    ScaleShiftAct second = scale_shift_act_args(map, x, residual, y, out_act);
    if (save_mask) second.mask = static_cast<uint8_t*>(mutable_data(mask));
    coefficients(place, x, map, cut, norm, fc, vector_of(drop_path_scale, n, "drop_path_scale"), batch_stats,
                 {given(mean), given(stats), given(factor), given(hidden), moved(moved_mean, "running_mean"),
                  moved(moved_var, "running_var"), momentum, unbias},
                 scratch, second);
    place.run(second);
  }
  return {y, mask, mean, factor, hidden, stats};
}

std::string describe_plan(int64_t n, int64_t c, int64_t s, bool channels_last, int64_t item_bytes, int64_t r,
                          int64_t device) {
  Map map{n, (int)c, (int)s, Mode::cols, item_bytes == 4 ? Type::float32 : Type::bfloat16};
  if (channels_last)
    map.mode = c % 8 ? Mode::cols_single : Mode::cols;
  else
    map.mode = s < 8 ? Mode::rows_single : s % 8 ? Mode::rows_unaligned : Mode::rows;
  return describe(plan_inference(map, (int)r, true, device_of((int)device), forced_path()), map, (int)r);
}

std::string force_plan(std::string path) {
  std::string before = forced_name();
  STD_TORCH_CHECK(force_path(path), "path must be '', 'cluster_fused', 'l2_grouped' or 'separate', got '", path, "'");
  return before;
}

}  // namespace se_fused::cuda

namespace se_fused {

using namespace cuda;

void batch_norm_squeeze_excite_inference(const Tensor& x, const OptionalTensor& residual,
                                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                         const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                         const OptionalTensor& fc1_weight, const OptionalTensor& fc1_bias,
                                         const OptionalTensor& fc2_weight, const OptionalTensor& fc2_bias,
                                         const OptionalTensor& drop_path_scale, double eps, int64_t act, int64_t gate,
                                         int64_t out_act, const Tensor& y) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  check_like(y, x, layout, "y");
  check_like(residual, x, layout, "residual");
  if (!layout.numel()) return;
  const Map map = map_of(x, layout, {data(x), data(residual), data(y)});
  const ExcitationLayers fc = layers_of(fc1_weight, fc1_bias, fc2_weight, fc2_bias, layout.c, act, gate);
  const Norm norm = norm_of(running_mean, running_var, bn_weight, bn_bias, layout.c, eps);
  const Vector drop = vector_of(drop_path_scale, layout.n, "drop_path_scale");
  ScaleShiftAct second = scale_shift_act_args(map, x, residual, y, out_act);
  if (!fc.fc1_weight) {  // batch norm and activation: one launch
    second.by.norm = norm;
    second.by.drop = drop;
    return place.run(second);
  }
  const InferenceParams op{data(x), data(residual), mutable_data(y), norm, fc, drop, out_act_of(out_act), map};
  const bool weights_fit = fc.type == map.type || fc.type == Type::float32;
  const InferencePlan plan = plan_inference(map, fc.r, weights_fit, place.device, forced_path());
  STD_TORCH_CHECK(!plan.refusal, "the plan '", forced_name(),
                  "' is forced but cannot be used for this map: ", plan.refusal);
  if (plan.path == Path::cluster_fused) {
    ClusterFused g = plan.cluster_fused;
    g.op = op;
    return place.run(g);
  }
  if (plan.path == Path::l2_grouped) return run_l2_grouped(place, x, plan.l2_grouped, op, plan.blocks);
  const Cut cut = cut_of(map, place.device);
  Workspace scratch(x, workspace_of(map, cut, fc.r));
  coefficients(place, x, map, cut, norm, fc, drop, false, {}, scratch, second);
  place.run(second);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& residual, const Tensor& mask, const Tensor& mean,
    const Tensor& factor, const Tensor& hidden, const Tensor& stats, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& fc1_weight, const OptionalTensor& fc2_weight,
    const OptionalTensor& drop_path_scale, bool batch_stats, double eps, int64_t act, int64_t gate, int64_t out_act,
    bool want_dr) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c, nc = n * c;
  check_like(dy, x, layout, "dy");
  check_like(residual, x, layout, "residual");
  STD_TORCH_CHECK(layout.numel() > 0, "x must not be empty");
  const Act closing = out_act_of(out_act);
  const bool from_sum = keeps_input(closing), has_bn = stats.numel() != 0;
  const bool write_dr = writes_dr(closing, want_dr);
  const Tensor nothing = new_nothing(x);
  Tensor dx = torch::stable::empty_like(x), dr = write_dr ? torch::stable::empty_like(x) : nothing;
  const ExcitationLayers fc = layers_of(fc1_weight, {}, fc2_weight, {}, c, act, gate);
  const bool has_excitation = fc.fc1_weight;
  const int64_t r = fc.r;
  // Gradients are allocated in the parameters' dtypes, because each cast would be one more launch.
  const auto like = [&](const OptionalTensor& t) {
    return t ? torch::stable::empty_like(*t) : new_float(x, {has_bn ? c : 0});
  };
  Tensor dbn_weight = like(bn_weight), dbn_bias = like(bn_bias);
  const auto weight = [&](std::initializer_list<int64_t> sizes) {
    return has_excitation ? torch::stable::new_empty(*fc1_weight, sizes) : nothing;
  };
  Tensor dfc1_weight = weight({r, c}), dfc1_bias = weight({r}), dfc2_weight = weight({c, r}), dfc2_bias = weight({c});

  const Map map = map_of(x, layout, {data(dy), data(x), data(residual), data(dx), write_dr ? data(dr) : nullptr});
  const Cut cut = cut_of(map, place.device);
  const int64_t sums = Workspace::rounded(cut.splits * nc);
  Workspace scratch(x, 2 * sums + 6 * Workspace::rounded(nc) + Workspace::rounded(n * r) + kCounters);
  int* const counters = reinterpret_cast<int*>(scratch.take(kCounters));

  ExcitationBackward g{};
  g.n = n;
  g.c = map.c;
  g.s = map.s;
  g.splits = cut.splits;
  g.mean = float_vector(mean, nc, "mean");
  if (has_bn) {
    const float* const given = float_vector(stats, 2 * c, "stats");
    g.norm = norm_of({}, {}, bn_weight, bn_bias, c, eps);
    g.norm.mean = {given, Type::float32};
    g.norm.var = {given + c, Type::float32};
  }
  g.fc = fc;
  g.drop = vector_of(drop_path_scale, n, "drop_path_scale");
  g.batch_stats = batch_stats;
  if (has_excitation) {
    g.factor = float_vector(factor, nc, "factor");
    g.hidden = float_vector(hidden, n * r, "hidden");
    g.dq = scratch.take(nc);
    g.dhidden = scratch.take(n * r);
  }

  MomentsBackward first{};
  first.dy = data(dy);
  first.x = data(x);
  first.residual = from_sum ? data(residual) : nullptr;
  first.mean = g.mean;
  if (keeps_mask(closing)) first.mask = mask_of(mask, layout);
  if (from_sum) first.by = {nullptr, nullptr, g.factor, g.norm, g.drop};
  first.dr = write_dr ? mutable_data(dr) : nullptr;
  first.p = scratch.take(cut.splits * nc);
  first.q = scratch.take(cut.splits * nc);
  first.counters = counters;
  first.out_act = closing;
  first.map = map;
  first.cut = cut;

  g.p_parts = first.p;
  g.q_parts = first.q;
  g.p = cut.splits == 1 ? first.p : scratch.take(nc);
  g.q = cut.splits == 1 ? first.q : scratch.take(nc);
  g.k1 = scratch.take(nc);
  g.k2 = batch_stats ? scratch.take(nc) : nullptr;
  g.k3 = scratch.take(nc);
  const auto result = [](const Tensor& t, const char* name) { return Result{mutable_data(t), type_of(t, name)}; };
  g.dbn_weight = result(dbn_weight, "bn_weight");
  g.dbn_bias = result(dbn_bias, "bn_bias");
  g.dfc1_weight = result(dfc1_weight, "fc1_weight");
  g.dfc1_bias = result(dfc1_bias, "fc1_weight");
  g.dfc2_weight = result(dfc2_weight, "fc2_weight");
  g.dfc2_bias = result(dfc2_bias, "fc2_weight");
  g.counters = counters;

  ScaleShiftActBackward second{};
  second.dr = write_dr ? data(dr) : data(dy);
  second.mask = write_dr ? nullptr : first.mask;
  second.x = batch_stats ? data(x) : nullptr;  // without batch statistics k2 is zero and x need not be read
  second.mean = g.mean;
  second.k1 = g.k1;
  second.k2 = g.k2;
  second.k3 = g.k3;
  second.dx = mutable_data(dx);
  second.map = map;
  second.cut = part_of(map);

  place.run(first);
  place.run(g, place.device.multiprocessors);
  place.run(second);
  return {dx, dr, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias};
}

}  // namespace se_fused
