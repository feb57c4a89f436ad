// Registers, memory and occupancy of each kernel on the current device (../introspection.h).
#include <algorithm>
#include <cstdio>

#include "../introspection.h"
#include "launch.cuh"

namespace se_fused::cuda {

static Instances all_instances() {
  Instances all;
  for (const auto list : {list_moments, list_scale_shift_act, list_scale_shift_act_mean, list_excitation,
                          list_excitation_backward, list_cluster_fused, list_l2_grouped})
    list(all);
  return all;
}

#ifdef __CUDACC__
// The reason why no kernel can be queried; null if kernels can be.
static const char* device_error() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

static void measure(const Instance& instance, SeFusedAttributes& to) {
  cudaFuncAttributes found{};
  cudaError_t error = cudaFuncGetAttributes(&found, instance.kernel);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&to.blocks_per_multiprocessor, instance.kernel,
                                                          instance.threads, std::max(instance.shared, 0));
  cudaGetLastError();
  if (error != cudaSuccess) to.error = cudaGetErrorString(error);
  if (to.shared_bytes != kByShape) to.shared_bytes += (int)found.sharedSizeBytes;
  to.max_threads = found.maxThreadsPerBlock;
  to.registers = found.numRegs;
  to.local_bytes = (int)found.localSizeBytes;
  to.constant_bytes = (int)found.constSizeBytes;
}
#else
static const char* device_error() { return nullptr; }
static void measure(const Instance&, SeFusedAttributes& to) { to.error = "compiled for the CPU"; }
#endif

}  // namespace se_fused::cuda

int se_fused_cuda_attributes(SeFusedAttributes* out, int capacity, const char** error) {
  using namespace se_fused::cuda;
  *error = device_error();
  if (*error) return 0;
  const Instances all = all_instances();
  for (int i = 0; i < std::min((int)all.size(), capacity); ++i) {
    const auto& [name, kernel, threads, shared] = all[i];
    SeFusedAttributes& to = out[i] = {};
    std::snprintf(to.name, sizeof to.name, "%s", name.c_str());
    to.threads = threads;
    to.shared_bytes = shared;
    measure(all[i], to);
  }
  return (int)all.size();
}
