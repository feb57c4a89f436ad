// Autocast on the stand-in: CUDA's lists of operators for lower precision and for float32.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#define SE_LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SE_FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define SE_FLOAT32_OPTIONAL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(SE_LOWER_PRECISION)
  AT_FORALL_FP32(SE_FLOAT32)
  AT_FORALL_FP32_SET_OPT_DTYPE(SE_FLOAT32_OPTIONAL)
}
