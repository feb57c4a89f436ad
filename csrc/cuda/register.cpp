// Names and schemas of the CUDA backend's operators. Users never call these: se_fused/ops wraps them.
#include <torch/csrc/stable/library.h>

#include "../schemas.h"
#include "tail.h"

#ifdef SE_CUDA_SHIM
#define SE_LIBRARY se_fused_cuda_shim  // the real one may be loaded in the same process
#define SE_DEVICE_KEY CPU
namespace se_fused::cuda {
void set_stand_in(const Device&);
// The device that the rules are to see, and the order in which the shim runs fibers.
void stand_in(int64_t capability, int64_t multiprocessors, int64_t l2_bytes, int64_t shared_bytes) {
  set_stand_in({(int)capability, (int)multiprocessors, l2_bytes, shared_bytes, capability >= 90 ? 16 : 1});
}
void reverse(bool on);
std::string launched();
}  // namespace se_fused::cuda
#else
#define SE_LIBRARY se_fused_cuda
#define SE_DEVICE_KEY CUDA
#endif
// One level more, so that names are expanded before they become strings.
#define SE_DEFINE(library, m) STABLE_TORCH_LIBRARY(library, m)
#define SE_IMPLEMENT(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

SE_DEFINE(SE_LIBRARY, m) {
  se_fused::define_streams(m);
  se_fused::define_tail(m);
  m.def(
      "tail_forward(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight,"
      " Tensor? bn_bias, Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias,"
      " Tensor? drop_path_scale, bool batch_stats, float eps, int act, int gate, int out_act, bool save,"
      " Tensor(a!)? moved_mean, Tensor(b!)? moved_var, float momentum, float unbias)"
      " -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)");
  m.def("problem(int device) -> str");
  m.def("plan(int n, int c, int s, bool channels_last, int item_bytes, int r, int device) -> str");
#ifdef SE_CUDA_SHIM
  m.def("stand_in(int capability, int multiprocessors, int l2_bytes, int shared_bytes) -> ()");
  m.def("reverse(bool on) -> ()");
  m.def("launched() -> str");
#endif
}

SE_IMPLEMENT(SE_LIBRARY, SE_DEVICE_KEY, m) {
  m.impl("moments", TORCH_BOX(&se_fused::moments));
  m.impl("affine", TORCH_BOX(&se_fused::affine));
  m.impl("moments_backward", TORCH_BOX(&se_fused::moments_backward));
  m.impl("affine_backward", TORCH_BOX(&se_fused::affine_backward));
  m.impl("affine_moments", TORCH_BOX(&se_fused::affine_moments));
  m.impl("affine_moments_backward", TORCH_BOX(&se_fused::affine_moments_backward));
  m.impl("tail_forward", TORCH_BOX(&se_fused::cuda::tail_forward));
  m.impl("tail_inference", TORCH_BOX(&se_fused::tail_inference));
  m.impl("tail_backward", TORCH_BOX(&se_fused::tail_backward));
}

SE_IMPLEMENT(SE_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("problem", TORCH_BOX(&se_fused::cuda::problem));
  m.impl("plan", TORCH_BOX(&se_fused::cuda::describe_plan));
#ifdef SE_CUDA_SHIM
  m.impl("stand_in", TORCH_BOX(&se_fused::cuda::stand_in));
  m.impl("reverse", TORCH_BOX(&se_fused::cuda::reverse));
  m.impl("launched", TORCH_BOX(&se_fused::cuda::launched));
#endif
}
