// Registration of the CPU backend's operators. They are internal: se_fused/ops wraps them with fake implementations and
// autograd.
#include "operators.h"

STABLE_TORCH_LIBRARY(se_fused_cpu, m) {
  se_fused::define_operators(m);
  m.def("packed_conv1x1_squeeze_excite(Tensor h, Tensor packed, Tensor? conv_bias, " SE_EXCITATION_SCHEMA SE_END_SCHEMA
        "Tensor(a!) y) -> ()");
  m.def("batch_norm_act_squeeze(Tensor x, " SE_BATCH_NORM_SCHEMA(
      "(a!)", "(b!)",
      SE_TRAINING_SCHEMA) "int out_act, bool save) -> (Tensor y, Tensor squeezed, Tensor mean, Tensor stats)");
  m.def(
      "batch_norm_act_squeeze_backward(Tensor dy, Tensor dsqueezed, Tensor x, Tensor mean, Tensor "
      "stats, " SE_BATCH_NORM_SCHEMA(
          "", "", SE_TRAINING_SCHEMA) "int out_act) -> (Tensor dx, Tensor dbn_weight, Tensor dbn_bias)");
  m.def("capability(str? cap=None) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CPU, m) {
  se_fused::implement_operators(m);
  m.impl("packed_conv1x1_squeeze_excite", TORCH_BOX(&se_fused::packed_conv1x1_squeeze_excite));
  m.impl("batch_norm_act_squeeze", TORCH_BOX(&se_fused::batch_norm_act_squeeze));
  m.impl("batch_norm_act_squeeze_backward", TORCH_BOX(&se_fused::batch_norm_act_squeeze_backward));
}

STABLE_TORCH_LIBRARY_IMPL(se_fused_cpu, CompositeExplicitAutograd, m) {
  se_fused::implement_settings(m);
  m.impl("capability", TORCH_BOX(&se_fused::capability));
}
