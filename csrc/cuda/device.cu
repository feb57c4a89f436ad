#include "device.h"

#include <array>
#include <mutex>

#include "launch.cuh"

namespace se_fused::cuda {

#ifdef __CUDACC__

__global__ void probe_kernel() {}

const Device& device_of(int index) {
  static std::array<std::once_flag, 64> once;
  static std::array<Device, 64> devices;
  std::call_once(once[index], [&] {
    const auto get = [&](cudaDeviceAttr attribute) {
      int value = 0;
      cudaDeviceGetAttribute(&value, attribute, index);
      return value;
    };
    const int capability = 10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor);
    Device& device = devices[index];
    device = {capability, get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrL2CacheSize),
              get(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
    find_clusters(device);
    int driver = 0;
    cudaDriverGetVersion(&driver);
    // Graphs capture programmatic launches since CUDA 12.3. Before, a capture would fail.
    device.programmatic = capability >= 90 && driver >= 12030;
  });
  return devices[index];
}

std::string problem(int64_t index) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice((int)index);
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
  cudaSetDevice(before);
  cudaGetLastError();
  if (error == cudaSuccess) return "";
  std::string text = cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    const int capability = device_of((int)index).capability;
    text = "the library has no kernels for compute capability " + std::to_string(capability / 10) + "." +
           std::to_string(capability % 10) + "; rebuild se_fused with a TORCH_CUDA_ARCH_LIST that includes it";
  } else if (error == cudaErrorInsufficientDriver) {
    text = "the GPU's driver is older than the CUDA runtime that the library was built for; update the driver";
  }
  return text;
}

#else

static Device stand_in{90, 132, 60 << 20, 232448, 16, 16, true};  // an H200; tests set others with set_stand_in

void set_stand_in(const Device& device, int64_t large_cluster_bytes) {
  se_shim::large_cluster_bytes = large_cluster_bytes;
  find_clusters(stand_in = device);
  stand_in.programmatic = device.capability >= 90;
}
const Device& device_of(int) { return stand_in; }
std::string problem(int64_t) { return ""; }
void reverse(bool on) { se_shim::set_reverse(on); }
// Launches call the function at this address instead of running (se_shim::TakeOver); 0 runs them again.
void take_over(int64_t function) { se_shim::take_over = reinterpret_cast<se_shim::TakeOver>(function); }
int64_t programmatic_count() { return std::exchange(se_shim::programmatic_count, 0); }
// Names of the launches since the last call.
std::string launched() {
  std::string all;
  for (const std::string& name : se_shim::launch_names()) all += (all.empty() ? "" : " ") + name;
  se_shim::launch_names().clear();
  return all;
}

#endif

}  // namespace se_fused::cuda
