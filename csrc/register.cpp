// Registration of the CPU backend's operators. They are internal: se_fused/ops wraps them with fake implementations and
// autograd.
#include "schemas.h"

STABLE_TORCH_LIBRARY(se_fused_cpu, m) {
  se_fused::define_operators(m);
  m.def(
      "packed_conv1x1_squeeze_excite(Tensor h, Tensor packed, Tensor? bias, Tensor? folded_weight, Tensor? folded_bias,"
      " Tensor? fc2_weight, Tensor? fc2_bias, Tensor? residual, int act, int gate, int out_act, Tensor(a!) y) -> ()");
  m.def(SE_FORWARD_SCHEMA(""));
  m.def("capability(str? cap=None) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CPU, m) {
  m.impl("packed_conv1x1_squeeze_excite", TORCH_BOX(&se_fused::packed_conv1x1_squeeze_excite));
  se_fused::implement_operators(m);
  m.impl("batch_norm_squeeze_excite_forward", TORCH_BOX(&se_fused::batch_norm_squeeze_excite_forward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&se_fused::capability));
}
