// Names and schemas of the backend's operators. Users never call these: se_fused/ops wraps them with fakes and
// autograd.
#include <torch/csrc/stable/library.h>

#include "ops.h"
#include "schemas.h"

STABLE_TORCH_LIBRARY(se_fused_cpu, m) {
  se_fused::define_streams(m);
  se_fused::define_tail(m);
  m.def(
      "tail_forward(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight,"
      " Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias,"
      " Tensor? drop_path_scale, bool batch_stats, float eps, int act, int gate, int out_act, bool save)"
      " -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)");
  m.def("capability(str? cap=None) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CPU, m) {
  m.impl("moments", TORCH_BOX(&se_fused::moments));
  m.impl("affine", TORCH_BOX(&se_fused::affine));
  m.impl("moments_backward", TORCH_BOX(&se_fused::moments_backward));
  m.impl("affine_backward", TORCH_BOX(&se_fused::affine_backward));
  m.impl("affine_moments", TORCH_BOX(&se_fused::affine_moments));
  m.impl("affine_moments_backward", TORCH_BOX(&se_fused::affine_moments_backward));
  m.impl("tail_forward", TORCH_BOX(&se_fused::tail_forward));
  m.impl("tail_inference", TORCH_BOX(&se_fused::tail_inference));
  m.impl("tail_backward", TORCH_BOX(&se_fused::tail_backward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&se_fused::capability));
}
