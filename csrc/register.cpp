// Registration of the CPU backend's operators. They are internal: se_fused/ops wraps them with fake implementations and
// autograd.
#include "operators.h"

STABLE_TORCH_LIBRARY(se_fused_cpu, m) {
  se_fused::define_operators(m);
  m.def("packed_conv1x1_squeeze_excite(Tensor h, Tensor packed, Tensor? conv_bias, " SE_EXCITATION_SCHEMA SE_END_SCHEMA
        "Tensor(a!) y) -> ()");
  m.def("capability(str? cap=None) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CPU, m) {
  se_fused::implement_operators(m);
  m.impl("packed_conv1x1_squeeze_excite", TORCH_BOX(&se_fused::packed_conv1x1_squeeze_excite));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&se_fused::capability));
}
