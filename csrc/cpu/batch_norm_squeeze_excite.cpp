// The whole operator in one call, forward and backward: pass 1, excitation, pass 2.
#include "batch_norm.h"
#include "passes.h"

namespace se_fused::cpu {
namespace {

// The parameters of one call as float32 vectors, with the checks that forward and backward share.
struct Parameters {
  bool has_excitation;
  int64_t r = 0;
  int weight_type = 0;
  const void *fc1_weight = nullptr, *fc2_weight = nullptr;
  const float* drop;

  Parameters(const Layout& layout, const ExcitationParams& fc, const BlockOptions& end, Scratch& scratch)
      : has_excitation(fc.fc1_weight.has_value()) {
    drop = as_floats(end.drop_path_scale, layout.n, scratch, "drop_path_scale");
    if (!has_excitation) return;
    r = check_weights(*fc.fc1_weight, fc.fc2_weight, layout.c);
    weight_type = type_index(*fc.fc1_weight, "fc1_weight");
    fc1_weight = bytes(fc.fc1_weight);
    fc2_weight = bytes(fc.fc2_weight);
  }
};

// The excitation arguments that forward and backward have in common.
template <class Args>
Args excitation_args(const Layout& layout, const Parameters& p, const ExcitationParams& fc, const float* mean) {
  Args g{};
  g.n = layout.n;
  g.c = layout.c;
  g.r = p.r;
  g.mean = mean;
  g.drop = p.drop;
  g.fc1_weight = p.fc1_weight;
  g.fc2_weight = p.fc2_weight;
  g.act = fc.act;
  g.gate = fc.gate;
  return g;
}

// y may share x's memory: every element is read before it is written.
void forward(const Tensor& x, const BatchNormParams& norm, const ExcitationParams& fc, const BlockOptions& end,
             const Layout& layout, const Tensor& y, const Kept& kept) {
  const int64_t n = layout.n, c = layout.c, nc = n * c, item = item_bytes(x);
  const PassKernels& passes = pass_kernels(x);
  check_like(end.residual, x, layout, "residual");
  check_running(norm, c);

  const int64_t r_bound = fc.fc1_weight ? fc.fc1_weight->size(0) : 0;
  Scratch scratch(8 * nc + (kBatchNormVectors + 1) * c + 2 * n * r_bound + n + r_bound);
  const bool has_bn = norm.batch_stats || norm.running_mean.has_value();
  const Parameters p(layout, fc, end, scratch);

  const bool save = kept.mean;
  float* const mean = save ? kept.mean : scratch.take(nc);
  float* const m2 = norm.batch_stats ? scratch.take(nc) : nullptr;

  auto g = excitation_args<ExcitationArgs>(layout, p, fc, mean);
  BatchNormArgs bn{};
  if (has_bn) {
    bn = batch_norm_args(layout, norm, kept.stats, scratch);
    bn.mean = mean;
    bn.m2 = m2;
    bn.batch_stats = norm.batch_stats;
    if (!norm.batch_stats) use_running(norm, bn, scratch);
    g.a = bn.a;
    g.b = bn.b;
  }
  g.scale = scratch.take(nc);
  g.shift = scratch.take(nc);
  if (p.has_excitation) {
    g.fc1_bias = as_floats(fc.fc1_bias, p.r, scratch, "fc1_bias");
    g.fc2_bias = as_floats(fc.fc2_bias, c, scratch, "fc2_bias");
    g.hidden = kept.hidden ? kept.hidden : scratch.take(n * p.r);
    g.active = scratch.take(n * p.r);
    g.factor = kept.factor ? kept.factor : scratch.take(nc);
    g.z = has_bn ? scratch.take(nc) : mean;
  }

  ScaleShiftActArgs second{};
  second.x = bytes(x);
  second.residual = bytes(end.residual);
  second.y = mutable_bytes(y);
  second.mask = kept.mask;
  second.scale = g.scale;
  second.shift = g.shift;
  second.out_act = end.out_act;

  if (norm.batch_stats || p.has_excitation || save) moments(passes, bytes(x), item, layout, mean, m2);
  if (norm.batch_stats) {
    batch_norm(bn);
    update_running(norm, bn);
  }
  excitation(kernels().excitation[p.weight_type], g);
  scale_shift_act(passes, second, item, layout, save ? kPastCaches : kPastCachesInference);
}

}  // namespace
}  // namespace se_fused::cpu

namespace se_fused {

void block_forward(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                   const Tensor& y, const Kept& kept) {
  cpu::forward(x, bn, fc, end, layout_of(x, "x"), y, kept);
}

void block_inference(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                     const Tensor& y) {
  const Layout layout = layout_of(x, "x");
  check_like(y, x, layout, "y");
  if (layout.numel()) cpu::forward(x, bn, fc, end, layout, y, {});
}

ScalarType gradient_type(ScalarType) { return ScalarType::Float; }

void block_backward(const Tensor& dy, const Saved& saved, const BatchNormParams& norm, const ExcitationParams& fc,
                    const BlockOptions& end, const Tensor& dx, const OptionalTensor& dr, const Slots& gradients) {
  using namespace cpu;
  const Tensor& x = saved.x;
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c, nc = n * c, item = item_bytes(x);
  const PassKernels& passes = pass_kernels(x);
  check_like(dy, x, layout, "dy");
  check_like(end.residual, x, layout, "residual");

  const int64_t r_bound = fc.fc1_weight ? fc.fc1_weight->size(0) : 0;
  Scratch scratch(14 * nc + kBatchNormVectors * c + 3 * n * r_bound + n);
  const Parameters p(layout, fc, end, scratch);
  const int64_t r = p.r;
  const auto floats_of = [](const Slot& slot) { return static_cast<float*>(slot.data); };
  STD_TORCH_CHECK(layout.numel() > 0, "x must not be empty");

  auto g = excitation_args<ExcitationBackwardArgs>(layout, p, fc, saved.mean);
  g.s = layout.s;
  g.batch_stats = norm.batch_stats;
  if (saved.stats) {
    // a, b and rstd take a few (C,) operations, so they are recomputed rather than saved.
    const BatchNormArgs bn = batch_norm_args(layout, norm, const_cast<float*>(saved.stats), scratch);
    batch_norm(bn);
    g.a = bn.a;
    g.b = bn.b;
    g.mu = bn.mu;
    g.rstd = bn.rstd;
    g.dbn_weight = floats_of(gradients.bn_weight);
    g.dbn_bias = floats_of(gradients.bn_bias);
  }
  float* const sums = scratch.take(2 * nc);
  g.p = sums;
  g.q = sums + nc;
  g.k1 = scratch.take(nc);
  g.k2 = scratch.take(nc);
  g.k3 = scratch.take(nc);
  if (p.has_excitation) {
    g.factor = saved.factor;
    g.hidden = saved.hidden;
    g.z = scratch.take(nc);
    g.dq = scratch.take(nc);
    g.dz = scratch.take(nc);
    g.active = scratch.take(n * r);
    g.dhidden = scratch.take(n * r);
    g.dfc1_weight = floats_of(gradients.fc1_weight);
    g.dfc1_bias = floats_of(gradients.fc1_bias);
    g.dfc2_weight = floats_of(gradients.fc2_weight);
    g.dfc2_bias = floats_of(gradients.fc2_bias);
  }

  MomentsBackwardArgs first{};
  first.dy = bytes(dy);
  first.x = bytes(x);
  first.mean = g.mean;
  first.dr = dr ? mutable_bytes(*dr) : nullptr;
  first.p = sums;
  first.q = sums + nc;
  first.out_act = end.out_act;
  if (keeps_mask(end.out_act)) first.mask = saved.mask;
  if (keeps_input(end.out_act)) {  // scale and shift of the forward pass, recomputed from the saved tensors
    first.residual = bytes(end.residual);
    ExcitationArgs forward{};
    forward.n = n;
    forward.c = c;
    forward.a = g.a;
    forward.b = g.b;
    forward.drop = g.drop;
    forward.factor = const_cast<float*>(g.factor);
    forward.scale = scratch.take(nc);
    forward.shift = scratch.take(nc);
    scale_shift(kernels().excitation[0], forward);
    first.scale = forward.scale;
    first.shift = forward.shift;
  }
  moments_backward(passes, first, item, layout);
  excitation_backward(kernels().excitation[p.weight_type], g);

  ScaleShiftActBackwardArgs second{};
  second.dr = dr ? bytes(*dr) : bytes(dy);
  second.mask = dr ? nullptr : first.mask;
  second.x = norm.batch_stats ? bytes(x) : nullptr;  // without batch statistics k2 is zero and x need not be read
  second.mean = g.mean;
  second.k1 = g.k1;
  second.k2 = g.k2;
  second.k3 = g.k3;
  second.dx = mutable_bytes(dx);
  scale_shift_act_backward(passes, second, item, layout);
}

}  // namespace se_fused
