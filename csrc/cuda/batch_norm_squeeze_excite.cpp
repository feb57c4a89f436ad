// The whole operator: three launches each for forward and backward, two for batch norm without excitation; in inference
// one, two or three (plan.cpp).
#include "batch_norm_squeeze_excite.h"

#include "torch_host.h"

namespace se_fused::cuda {
namespace {

ExcitationLayers layers_of(const ExcitationParams& given, int64_t c) {
  ExcitationLayers fc{};
  fc.type = Type::float32;
  fc.act = given.act;
  fc.gate = given.gate;
  if (!given.fc1_weight) return fc;
  const int64_t r = check_weights(*given.fc1_weight, given.fc2_weight, c);
  STD_TORCH_CHECK(r <= INT32_MAX / 2, "fc1_weight must have fewer than 2^30 rows");
  fc.fc1_weight = data(given.fc1_weight);
  fc.fc2_weight = data(given.fc2_weight);
  fc.type = type_of(*given.fc1_weight, "fc1_weight");
  fc.fc1_bias = vector_of(given.fc1_bias, r, "fc1_bias");
  fc.fc2_bias = vector_of(given.fc2_bias, c, "fc2_bias");
  fc.r = (int)r;
  fc.fc1_whole = c % 8 == 0 && reinterpret_cast<uintptr_t>(fc.fc1_weight) % 16 == 0;
  fc.fc2_whole = r % 8 == 0 && reinterpret_cast<uintptr_t>(fc.fc2_weight) % 16 == 0;
  return fc;
}

Norm norm_of(const BatchNormParams& bn, int64_t c) {
  STD_TORCH_CHECK(bn.running_mean.has_value() == bn.running_var.has_value(),
                  "running_mean and running_var are required together");
  return {vector_of(bn.running_mean, c, "running_mean"), vector_of(bn.running_var, c, "running_var"),
          vector_of(bn.weight, c, "bn_weight"), vector_of(bn.bias, c, "bn_bias"), (float)bn.eps};
}

ScaleShiftAct scale_shift_act_args(const Map& map, const Device& device, const Tensor& x, const BlockOptions& end,
                                   const Tensor& y) {
  ScaleShiftAct args{};
  args.x = data(x);
  args.residual = data(end.residual);
  args.y = mutable_data(y);
  args.out_act = end.out_act;
  args.map = map;
  args.cut = part_of(map, device, blocks_of_scale_shift_act(map.mode, map.type == Type::float32));
  return args;
}

// The first two launches: pass 1 over x, and excitation. A null result is allocated in the workspace, and null running
// statistics are not updated.
struct FirstHalf {
  const Tensor& x;
  Map map;
  Cut cut;
  Norm norm;
  ExcitationLayers fc;
  Vector drop;
  bool batch_stats = false;
  float *mean = nullptr, *stats = nullptr, *factor = nullptr, *hidden = nullptr;
  Result moved_mean{}, moved_var{};
  double momentum = 0;
};

// Whether pass 1 of batch norm can compute all that pass 2 needs: coefficients are then per channel, and kernels find a
// row's channel in 32 bits.
bool norm_alone(const Map& map, const ExcitationLayers& fc, const Vector& drop) {
  return !fc.fc1_weight && !drop.data && map.n * map.c <= INT32_MAX;
}

// Sums that the last blocks of pass 1 merge, and their counters.
int64_t workspace_of(const LastBlocks& last, int64_t c) {
  return Workspace::rounded(2 * last.groups * c) + Workspace::rounded(counters_of(last, (int)c));
}

// Takes the memory of the last blocks, and zeroes the counters.
void prepare(const Place& place, const Map& map, Workspace& scratch, LastBlocks& last) {
  last.sums = scratch.take(2 * last.groups * map.c);
  const int64_t count = counters_of(last, map.c);
  last.counters = reinterpret_cast<int*>(scratch.take(count));
  place.run(Zero{last.counters, count});
}

int64_t workspace_of(const Map& map, const Cut& cut, int r) {
  const int64_t nc = Workspace::rounded(map.n * map.c);
  return 2 * Workspace::rounded((int64_t)cut.splits * map.n * map.c) + 4 * nc + Workspace::rounded(2 * map.c) +
         Workspace::rounded((int64_t)map.n * r) + Workspace::rounded(kCounters);
}

// A vector as a result, which the kernels do not read as a parameter.
Result taken(Vector& v) {
  const Result result{const_cast<void*>(v.data), v.type};
  v.data = nullptr;
  return result;
}

// The batch's statistics of the channels, which pass 1 or the excitation computes.
BatchStatistics statistics_of(const FirstHalf& half, float* stats) {
  const double count = (double)half.map.n * half.map.s;
  return {stats, half.moved_mean, half.moved_var, (float)half.momentum, (float)(count / (count - 1))};
}

// Launches pass 2, the last of its chain.
void finish(const Place& place, const Map& map, ScaleShiftAct& second) {
  if (second.residual && place.programmatic()) second.ahead = end_of(second.residual, map, place.device);
  place.last(second);
}

// Batch norm without excitation: pass 1, which also computes scale and shift (C), and pass 2.
void norm_and_act(const Place& place, const FirstHalf& half, ScaleShiftAct& second) {
  const Map& map = half.map;
  const Cut& cut = half.cut;
  LastBlocks last = last_blocks_of(map, cut);
  const int64_t parts = cut.splits * map.n * map.c, c = Workspace::rounded(map.c);
  Workspace scratch(half.x, 2 * Workspace::rounded(parts) + 2 * c + workspace_of(last, map.c));
  Moments first{
      data(half.x), cut.splits == 1 && half.mean ? half.mean : scratch.take(parts), scratch.take(parts), nullptr, map,
      cut};
  prepare(place, map, scratch, last);
  first.last = last;
  first.sample_mean = cut.splits > 1 ? half.mean : nullptr;
  first.statistics = statistics_of(half, half.stats);
  first.norm = half.norm;
  first.scale = scratch.take(map.c);
  first.shift = scratch.take(map.c);
  second.by = {first.scale, first.shift, nullptr, {}, {}, last.channels};
  place.first(first);
  finish(place, map, second);
}

// Pass 1, excitation and pass 2, which reads scale and shift (N, C).
void separate(const Place& place, const FirstHalf& half, ScaleShiftAct& second) {
  const Map& map = half.map;
  const Cut& cut = half.cut;
  const int64_t nc = map.n * map.c;
  Workspace scratch(half.x, workspace_of(map, cut, half.fc.r));
  int* const counters = reinterpret_cast<int*>(scratch.take(kCounters));
  float* const parts = cut.splits == 1 && half.mean ? half.mean : scratch.take(cut.splits * nc);
  Moments first{data(half.x), parts, half.batch_stats ? scratch.take(cut.splits * nc) : nullptr, counters, map, cut};
  Excitation g{};
  g.n = map.n;
  g.c = map.c;
  g.s = map.s;
  g.mean_parts = parts;
  g.m2_parts = first.m2;
  g.splits = cut.splits;
  g.span = cut.span;
  g.mean = cut.splits == 1 ? parts : half.mean ? half.mean : scratch.take(nc);
  g.norm = half.norm;
  static_cast<BatchStatistics&>(g) = statistics_of(half, half.stats         ? half.stats
                                                         : half.batch_stats ? scratch.take(2 * map.c)
                                                                            : nullptr);
  g.fc = half.fc;
  g.drop = half.drop;
  const bool has_norm = half.batch_stats || half.norm.mean.data, has_excitation = half.fc.fc1_weight;
  g.z = has_norm && has_excitation ? scratch.take(nc) : g.mean;
  g.hidden = half.hidden;
  g.activated = scratch.take(map.n * half.fc.r);
  g.factor = half.factor;
  g.scale = scratch.take(nc);
  g.shift = scratch.take(nc);
  g.counters = counters;
  place.first(first);
  place.then(g, 2 * place.device.multiprocessors);
  second.by.scale = g.scale;
  second.by.shift = g.shift;
  finish(place, map, second);
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
  g.activated = scratch.take(map.n * op.fc.r);
  Tensor counters = torch::stable::new_zeros(x, {counters_of(g)}, ScalarType::Int);
  g.counters = static_cast<int*>(mutable_data(counters));
  place.run(g, blocks);
}

}  // namespace

std::string why_not_programmatic(int64_t device) {
  if (!device_of((int)device).programmatic) return "needs compute capability 9.0 and a driver for CUDA 12.3";
  return programmatic_launches() ? "" : "switched off, or refused by the driver";
}

std::string describe_plan(int64_t n, int64_t c, int64_t s, bool channels_last, int64_t item_bytes, int64_t r,
                          int64_t device, int64_t weight_bytes) {
  Map map{n, (int)c, (int)s, Mode::cols, item_bytes == 4 ? Type::float32 : Type::bfloat16};
  if (channels_last)
    map.mode = c % 8 ? Mode::cols_single : Mode::cols;
  else
    map.mode = s < 8 ? Mode::rows_single : s % 8 ? Mode::rows_unaligned : Mode::rows;
  const int bytes = (int)(weight_bytes ? weight_bytes : item_bytes);
  return describe(plan_inference(map, (int)r, bytes, true, device_of((int)device), forced_path()), map, (int)r, bytes);
}

std::string force_plan(std::string path) {
  std::string before = forced_name();
  STD_TORCH_CHECK(force_path(path), "path must be '', 'cluster_fused', 'l2_grouped' or 'separate', got '", path, "'");
  return before;
}

}  // namespace se_fused::cuda

namespace se_fused {

using namespace cuda;

void block_forward(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                   const Tensor& y, const Kept& kept) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c;
  check_like(end.residual, x, layout, "residual");
  const Map map = map_of(x, layout, {data(x), data(end.residual), data(y)});
  FirstHalf half{x, map, {}, norm_of(bn, c), layers_of(fc, c), vector_of(end.drop_path_scale, n, "drop_path_scale")};
  if (bn.batch_stats) {  // the kernels update the running statistics and take the batch's instead
    half.batch_stats = true;
    half.moved_mean = taken(half.norm.mean);
    half.moved_var = taken(half.norm.var);
    half.momentum = bn.momentum;
  }
  half.cut = cut_of(map, place.device, Sums::moments);
  half.mean = kept.mean;
  half.stats = kept.stats;
  half.factor = kept.factor;
  half.hidden = kept.hidden;
  ScaleShiftAct second = scale_shift_act_args(map, place.device, x, end, y);
  second.mask = kept.mask;
  if (half.batch_stats && norm_alone(map, half.fc, half.drop)) return norm_and_act(place, half, second);
  separate(place, half, second);
}

ScalarType gradient_type(ScalarType parameter) { return parameter; }

void block_inference(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                     const Tensor& y) {
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  check_like(y, x, layout, "y");
  check_like(end.residual, x, layout, "residual");
  if (!layout.numel()) return;
  const Map map = map_of(x, layout, {data(x), data(end.residual), data(y)});
  const ExcitationLayers layers = layers_of(fc, layout.c);
  const Norm norm = norm_of(bn, layout.c);
  const Vector drop = vector_of(end.drop_path_scale, layout.n, "drop_path_scale");
  ScaleShiftAct second = scale_shift_act_args(map, place.device, x, end, y);
  if (!layers.fc1_weight) {  // batch norm and activation: one launch
    second.by.norm = norm;
    second.by.drop = drop;
    return place.run(second);
  }
  const InferenceParams op{data(x), data(end.residual), mutable_data(y), norm, layers, drop, end.out_act, map};
  const bool weights_fit = layers.type == map.type || layers.type == Type::float32;
  const int weight_bytes = layers.type == Type::float32 ? 4 : 2;
  const InferencePlan plan = plan_inference(map, layers.r, weight_bytes, weights_fit, place.device, forced_path());
  STD_TORCH_CHECK(!plan.refusal, "the plan '", forced_name(),
                  "' is forced but cannot be used for this map: ", plan.refusal);
  if (plan.path == Path::cluster_fused) {
    ClusterFused g = plan.cluster_fused;
    g.op = op;
    return place.run(g);
  }
  if (plan.path == Path::l2_grouped) return run_l2_grouped(place, x, plan.l2_grouped, op, plan.blocks);
  separate(place, {x, map, cut_of(map, place.device, Sums::moments), norm, layers, drop}, second);
}

void block_backward(const Tensor& dy, const Saved& saved, const BatchNormParams& bn, const ExcitationParams& fc,
                    const BlockOptions& end, const Tensor& dx, const OptionalTensor& dr, const Slots& gradients) {
  const Tensor& x = saved.x;
  const Place place(x);
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c, nc = n * c;
  check_like(dy, x, layout, "dy");
  check_like(end.residual, x, layout, "residual");
  STD_TORCH_CHECK(layout.numel() > 0, "x must not be empty");
  const bool from_sum = keeps_input(end.out_act);
  const ExcitationLayers layers = layers_of(fc, c);
  const bool has_excitation = layers.fc1_weight;
  const int64_t r = layers.r;
  const Map map = map_of(x, layout, {data(dy), data(x), data(end.residual), data(dx), data(dr)});
  const Cut cut = cut_of(map, place.device, from_sum ? Sums::moments_backward_from_sum : Sums::moments_backward);
  const int64_t sums = Workspace::rounded(cut.splits * nc);
  const Vector drop = vector_of(end.drop_path_scale, n, "drop_path_scale");
  const bool alone = saved.stats && norm_alone(map, layers, drop);
  LastBlocks last = last_blocks_of(map, cut);
  const int64_t values = alone ? 3 * Workspace::rounded(c) + workspace_of(last, c)
                               : 6 * Workspace::rounded(nc) + Workspace::rounded(n * r) + Workspace::rounded(kCounters);
  Workspace scratch(x, 2 * sums + values);
  int* const counters = alone ? nullptr : reinterpret_cast<int*>(scratch.take(kCounters));

  ExcitationBackward g{};
  g.n = n;
  g.c = map.c;
  g.s = map.s;
  g.splits = cut.splits;
  g.mean = saved.mean;
  if (saved.stats) {
    g.norm = norm_of(bn, c);
    g.norm.mean = {saved.stats, Type::float32};
    g.norm.var = {saved.stats + c, Type::float32};
  }
  g.fc = layers;
  g.drop = drop;
  g.batch_stats = bn.batch_stats;
  if (has_excitation) {
    g.factor = saved.factor;
    g.hidden = saved.hidden;
    g.dq = scratch.take(nc);
    g.dhidden = scratch.take(n * r);
  }

  MomentsBackward first{};
  first.dy = data(dy);
  first.x = data(x);
  first.residual = from_sum ? data(end.residual) : nullptr;
  first.mean = g.mean;
  if (keeps_mask(end.out_act)) first.mask = saved.mask;
  if (from_sum) first.by = {nullptr, nullptr, g.factor, g.norm, g.drop};
  first.dr = dr ? mutable_data(*dr) : nullptr;
  first.p = scratch.take(cut.splits * nc);
  first.q = scratch.take(cut.splits * nc);
  first.counters = counters;
  first.out_act = end.out_act;
  first.map = map;
  first.cut = cut;

  ScaleShiftActBackward second{};
  second.dr = dr ? data(*dr) : data(dy);
  second.mask = dr ? nullptr : first.mask;
  second.x = bn.batch_stats ? data(x) : nullptr;  // without batch statistics k2 is zero and x need not be read
  second.dx = mutable_data(dx);
  second.map = map;
  second.cut = part_of(map, place.device, blocks_of_scale_shift_act_backward(map.mode));
  const auto result = [](const Slot& slot) { return Result{slot.data, type_of(slot.type, "a gradient")}; };

  if (alone) {  // the channels' means are the centre of Q
    prepare(place, map, scratch, last);
    first.last = last;
    first.norm = g.norm;
    first.dbn_weight = result(gradients.bn_weight);
    first.dbn_bias = result(gradients.bn_bias);
    second.per_channel = last.channels;
    second.mean = first.mean = saved.stats;
    second.k1 = first.k1 = scratch.take(c);
    second.k2 = first.k2 = bn.batch_stats ? scratch.take(c) : nullptr;
    second.k3 = first.k3 = scratch.take(c);
    place.first(first);
    return place.last(second);
  }

  g.p_parts = first.p;
  g.q_parts = first.q;
  g.p = cut.splits == 1 ? first.p : scratch.take(nc);
  g.q = cut.splits == 1 ? first.q : scratch.take(nc);
  g.k1 = scratch.take(nc);
  g.k2 = bn.batch_stats ? scratch.take(nc) : nullptr;
  g.k3 = scratch.take(nc);
  g.dbn_weight = result(gradients.bn_weight);
  g.dbn_bias = result(gradients.bn_bias);
  g.dfc1_weight = result(gradients.fc1_weight);
  g.dfc1_bias = result(gradients.fc1_bias);
  g.dfc2_weight = result(gradients.fc2_weight);
  g.dfc2_bias = result(gradients.fc2_bias);
  g.counters = counters;
  second.mean = g.mean;
  second.k1 = g.k1;
  second.k2 = g.k2;
  second.k3 = g.k3;
  place.first(first);
  place.then(g, 2 * place.device.multiprocessors);
  place.last(second);
}

}  // namespace se_fused
