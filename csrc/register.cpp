// Names and schemas of the backend's operators. Users never call these: se_fused/ops wraps them with fakes and
// autograd.
#include "ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(se_fused_cpu, m) {
  m.def("moments(Tensor x) -> (Tensor mean, Tensor m2)");
  m.def(
      "affine(Tensor x, Tensor? residual, Tensor scale, Tensor shift, int out_act, bool save_mask)"
      " -> (Tensor y, Tensor mask)");
  m.def(
      "moments_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor scale, Tensor shift,"
      " int out_act, bool want_dr) -> (Tensor dr, Tensor p, Tensor q)");
  m.def(
      "affine_backward(Tensor dr, Tensor? x, Tensor mask, Tensor mean, Tensor k1, Tensor k2, Tensor k3) -> Tensor dx");
  m.def(
      "tail_forward(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight,"
      " Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias,"
      " Tensor? drop_path_scale, bool batch_stats, float eps, int act, int gate, int out_act, bool save)"
      " -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)");
  m.def(
      "tail_inference(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight,"
      " Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias,"
      " Tensor? drop_path_scale, float eps, int act, int gate, int out_act, Tensor(a!) y) -> ()");
  m.def(
      "tail_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor factor, Tensor hidden,"
      " Tensor stats, Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc2_weight,"
      " Tensor? drop_path_scale, bool batch_stats, float eps, int act, int gate, int out_act, bool want_dr)"
      " -> (Tensor dx, Tensor dr, Tensor dbn_weight, Tensor dbn_bias, Tensor dfc1_weight, Tensor dfc1_bias,"
      " Tensor dfc2_weight, Tensor dfc2_bias)");
  m.def("capability(str? cap=None) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CPU, m) {
  m.impl("moments", TORCH_BOX(&se_fused::moments));
  m.impl("affine", TORCH_BOX(&se_fused::affine));
  m.impl("moments_backward", TORCH_BOX(&se_fused::moments_backward));
  m.impl("affine_backward", TORCH_BOX(&se_fused::affine_backward));
  m.impl("tail_forward", TORCH_BOX(&se_fused::tail_forward));
  m.impl("tail_inference", TORCH_BOX(&se_fused::tail_inference));
  m.impl("tail_backward", TORCH_BOX(&se_fused::tail_backward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&se_fused::capability));
}
