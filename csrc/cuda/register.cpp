// Registration of the CUDA backend's operators. They are internal: se_fused/ops wraps them.
#include "../operators.h"
#include "batch_norm_squeeze_excite.h"
#include "device.h"

#ifdef SE_CUDA_SHIM
#define SE_LIBRARY se_fused_cuda_shim  // a different name, because the CUDA library may be loaded in the same process
#define SE_DEVICE_KEY CPU
namespace se_fused::cuda {
void set_stand_in(const Device&, int64_t large_cluster_bytes);
// Test hooks. stand_in sets the device that the rules see; large_cluster_bytes is the shared memory per block up to
// which it can place clusters of 16. reverse sets the order in which the shim runs fibers. launched returns the names
// of the launches since its last call, and programmatic_count how many were programmatic. take_over hands all launches
// to a function.
void stand_in(int64_t capability, int64_t multiprocessors, int64_t l2_bytes, int64_t shared_bytes,
              int64_t large_cluster_bytes) {
  set_stand_in({(int)capability, (int)multiprocessors, l2_bytes, shared_bytes}, large_cluster_bytes);
}
void reverse(bool on);
std::string launched();
void take_over(int64_t function);
int64_t programmatic_count();
}  // namespace se_fused::cuda
#elif !defined(SE_LIBRARY)  // benchmarks/standin builds the host code for a device without kernels
#define SE_LIBRARY se_fused_cuda
#define SE_DEVICE_KEY CUDA
#endif
// One more level of macros, so that names are expanded before they are turned into strings.
#define SE_DEFINE(library, m) STABLE_TORCH_LIBRARY(library, m)
#define SE_IMPLEMENT(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

SE_DEFINE(SE_LIBRARY, m) {
  se_fused::define_operators(m);
  m.def("problem(int device) -> str");
  m.def(
      "plan(int n, int c, int s, bool channels_last, int item_bytes, int r, int device, "
      "int weight_bytes=0) -> str");
  m.def("force_plan(str path) -> str");
  m.def("set_programmatic_launches(bool on) -> bool");
  m.def("why_not_programmatic(int device) -> str");
#ifdef SE_CUDA_SHIM
  m.def(
      "stand_in(int capability, int multiprocessors, int l2_bytes, int shared_bytes, int large_cluster_bytes=232448)"
      " -> ()");
  m.def("reverse(bool on) -> ()");
  m.def("launched() -> str");
  m.def("take_over(int function) -> ()");
  m.def("programmatic_count() -> int");
#endif
}

SE_IMPLEMENT(SE_LIBRARY, SE_DEVICE_KEY, m) { se_fused::implement_operators(m); }

SE_IMPLEMENT(SE_LIBRARY, CompositeExplicitAutograd, m) {
  se_fused::implement_settings(m);
  m.impl("problem", TORCH_BOX(&se_fused::cuda::problem));
  m.impl("plan", TORCH_BOX(&se_fused::cuda::describe_plan));
  m.impl("force_plan", TORCH_BOX(&se_fused::cuda::force_plan));
  m.impl("set_programmatic_launches", TORCH_BOX(&se_fused::cuda::set_programmatic_launches));
  m.impl("why_not_programmatic", TORCH_BOX(&se_fused::cuda::why_not_programmatic));
#ifdef SE_CUDA_SHIM
  m.impl("stand_in", TORCH_BOX(&se_fused::cuda::stand_in));
  m.impl("reverse", TORCH_BOX(&se_fused::cuda::reverse));
  m.impl("launched", TORCH_BOX(&se_fused::cuda::launched));
  m.impl("take_over", TORCH_BOX(&se_fused::cuda::take_over));
  m.impl("programmatic_count", TORCH_BOX(&se_fused::cuda::programmatic_count));
#endif
}
