// Batch norm, activation and the mean of the activated map in one call, forward and backward: pass 1, batch norm's
// coefficients, pass 2 with the mean.
#include "batch_norm.h"
#include "passes.h"

namespace se_fused::cpu {
namespace {

struct ScaleShift {
  float *scale, *shift;  // (N, C)
};

// Batch norm's coefficients, repeated for each sample, because the passes index them so.
ScaleShift repeated(const BatchNormArgs& bn, Scratch& scratch) {
  ExcitationArgs g{};
  g.n = bn.n;
  g.c = bn.c;
  g.a = bn.a;
  g.b = bn.b;
  g.scale = scratch.take(bn.n * bn.c);
  g.shift = scratch.take(bn.n * bn.c);
  scale_shift(kernels().excitation[0], g);
  return {g.scale, g.shift};
}

}  // namespace
}  // namespace se_fused::cpu

namespace se_fused {

std::tuple<Tensor, Tensor, Tensor, Tensor> act_squeeze_forward(const Tensor& x, const BatchNormParams& norm,
                                                               Act out_act, bool save) {
  using namespace cpu;
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c, nc = n * c, item = item_bytes(x);
  const PassKernels& passes = pass_kernels(x);
  check_running(norm, c);
  STD_TORCH_CHECK(norm.batch_stats || norm.running_mean, "running_mean and running_var are required");

  Tensor y = torch::stable::empty_like(x), squeezed = new_float(x, {n, c});
  const bool keep = save || norm.batch_stats;
  const Tensor nothing = save ? y : new_nothing(x);  // shared by the absent results
  Tensor mean = save ? new_float(x, {n, c}) : nothing, stats = keep ? new_float(x, {2, c}) : nothing;
  Scratch scratch(4 * nc + kBatchNormVectors * c);
  BatchNormArgs bn = batch_norm_args(layout, norm, keep ? floats(stats) : nullptr, scratch);
  if (layout.numel() == 0) return {y, squeezed, mean, stats};

  if (norm.batch_stats) {
    float* const means = save ? floats(mean) : scratch.take(nc);
    float* const m2 = scratch.take(nc);
    moments(passes, bytes(x), item, layout, means, m2);
    bn.mean = means;
    bn.m2 = m2;
    bn.batch_stats = true;
    batch_norm(bn);
    update_running(norm, bn);
  } else {
    use_running(norm, bn, scratch);
    // Any centre is right for the backward pass, which converts the sums around it to the norm's mean.
    if (save)
      for (int64_t i = 0; i < n; ++i) std::copy_n(bn.mu, c, floats(mean) + i * c);
  }
  const ScaleShift map = repeated(bn, scratch);

  ScaleShiftActMeanArgs second{};
  second.x = bytes(x);
  second.y = mutable_bytes(y);
  second.scale = map.scale;
  second.shift = map.shift;
  second.total = floats(squeezed);
  second.out_act = out_act;
  scale_shift_act_mean(passes, second, item, layout);
  return {y, squeezed, mean, stats};
}

std::tuple<Tensor, Tensor, Tensor> act_squeeze_backward(const Tensor& dy, const Tensor& dsqueezed, const Tensor& x,
                                                        const Tensor& mean, const Tensor& stats,
                                                        const BatchNormParams& norm, Act out_act) {
  using namespace cpu;
  const Layout layout = layout_of(x, "x");
  const int64_t n = layout.n, c = layout.c, nc = n * c, item = item_bytes(x);
  const PassKernels& passes = pass_kernels(x);
  check_like(dy, x, layout, "dy");
  STD_TORCH_CHECK(layout.numel() > 0, "x must not be empty");
  Tensor dx = torch::stable::empty_like(x), dr = torch::stable::empty_like(x);
  Tensor dbn_weight = new_float(x, {c}), dbn_bias = new_float(x, {c});

  Scratch scratch(8 * nc + kBatchNormVectors * c);
  const float* const means = float_vector(mean, nc, "mean");
  float* const used = const_cast<float*>(float_vector(stats, 2 * c, "stats"));  // read only: batch_stats is not set
  const BatchNormArgs bn = batch_norm_args(layout, norm, used, scratch);
  batch_norm(bn);
  const ScaleShift map = repeated(bn, scratch);
  const float* const of_means = float_vector(dsqueezed, nc, "dsqueezed");
  float* const added = scratch.take(nc);
  for (int64_t i = 0; i < nc; ++i) added[i] = of_means[i] / static_cast<float>(layout.s);

  MomentsBackwardArgs first{};
  first.dy = bytes(dy);
  first.x = bytes(x);
  first.mean = means;
  first.scale = map.scale;
  first.shift = map.shift;
  first.added = added;
  first.dr = mutable_bytes(dr);
  first.p = scratch.take(nc);
  first.q = scratch.take(nc);
  first.out_act = out_act;
  moments_backward(passes, first, item, layout);

  ExcitationBackwardArgs g{};
  g.n = n;
  g.c = c;
  g.s = layout.s;
  g.mean = means;
  g.a = bn.a;
  g.b = bn.b;
  g.mu = bn.mu;
  g.rstd = bn.rstd;
  g.p = first.p;
  g.q = first.q;
  g.batch_stats = norm.batch_stats;
  g.dbn_weight = floats(dbn_weight);
  g.dbn_bias = floats(dbn_bias);
  g.k1 = scratch.take(nc);
  g.k2 = scratch.take(nc);
  g.k3 = scratch.take(nc);
  excitation_backward(kernels().excitation[0], g);

  ScaleShiftActBackwardArgs second{};
  second.dr = bytes(dr);
  second.x = norm.batch_stats ? bytes(x) : nullptr;  // without batch statistics k2 is zero and x need not be read
  second.mean = means;
  second.k1 = g.k1;
  second.k2 = g.k2;
  second.k3 = g.k3;
  second.dx = mutable_bytes(dx);
  scale_shift_act_backward(passes, second, item, layout);
  return {dx, dbn_weight, dbn_bias};
}

}  // namespace se_fused
