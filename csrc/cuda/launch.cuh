// Kernel launches from the host: choice of the kernel instance, launch configuration, errors.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "kernel_params.h"
#include "once.h"
#include "platform.cuh"

#ifdef __CUDACC__
#define SE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#else
#define SE_KERNEL(threads, blocks) static void
#endif

namespace se_fused::cuda {

struct Launch {
  const char* name;
  int64_t blocks;
  int threads = kThreads;
  size_t shared = 0;
  int cluster = 1;
  bool resident = false;  // blocks of the launch wait for each other
};

// Limits that hold unless a kernel opts in to more (see `permit`).
constexpr size_t kSharedByDefault = 48 << 10;
constexpr int kClusterByDefault = 8;

#ifdef __CUDACC__
// Permits a kernel to use all the shared memory of a block, and clusters of 16 blocks. This is done once and for the
// maximum: if each launch set the limit that it needs, a thread with a smaller map could lower the limit between
// another thread's setting and its launch.
inline cudaError_t permit(const void* function) {
  static OncePerKernel once;
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return once(function, device, [&] {
    int bytes = 0, clusters = 0;
    cudaFuncAttributes found{};
    cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&found, function);
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   bytes - (int)found.sharedSizeBytes);
    if (error == cudaSuccess && clusters)
      error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return error;
  });
}

struct Configuration {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  cudaError_t error = cudaSuccess;

  Configuration(const void* function, const Launch& how, Stream stream) {
    config.gridDim = dim3((unsigned)how.blocks);
    config.blockDim = dim3(how.threads);
    config.dynamicSmemBytes = how.shared;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    config.attrs = attributes;
    if (how.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {(unsigned)how.cluster, 1, 1};
    }
    if (stream.programmatic) {
      cudaLaunchAttribute& early = attributes[config.numAttrs++];
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
    }
    if (how.shared > kSharedByDefault || how.cluster > kClusterByDefault) error = permit(function);
  }
};

template <class Args>
Error start(void (*kernel)(const Args), const Launch& how, Stream stream, const Args& args) {
  if (how.blocks > INT32_MAX) return "more blocks than a grid can have";
  const Configuration c(reinterpret_cast<const void*>(kernel), how, stream);
  cudaError_t error = c.error == cudaSuccess ? cudaLaunchKernelEx(&c.config, kernel, args) : c.error;
  const cudaError_t pending = cudaGetLastError();  // also clears the error, so that later calls do not report it
  if (error == cudaSuccess) error = pending;
  if (error != cudaSuccess &&
      stream.programmatic) {  // in case the driver refuses the attribute: without it from now on
    set_programmatic_launches(false);
    return start(kernel, how, {stream.handle}, args);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline Error zero(void* memory, size_t bytes, Stream stream) {
  const cudaError_t error = cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream.handle));
  cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <class Args>
int clusters_at_once(void (*kernel)(const Args), const Launch& how) {
  const Configuration c(reinterpret_cast<const void*>(kernel), how, {});
  int clusters = 0;
  cudaError_t error = c.error;
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel), &c.config);
  cudaGetLastError();
  return error == cudaSuccess ? clusters : 0;
}
#else
inline Error zero(void* memory, size_t bytes, Stream) {
  std::memset(memory, 0, bytes);
  return nullptr;
}
template <class Args>
int clusters_at_once(void (*)(const Args), const Launch& how) {
  return se_shim::can_place(how.cluster, how.shared);
}
template <class Args>
Error start(void (*kernel)(const Args), const Launch& how, Stream stream, const Args& args) {
  return se_shim::launch(how.name, kernel, dim3((unsigned)how.blocks), dim3(how.threads), how.shared, how.cluster,
                         how.resident, args, stream.programmatic, stream.followed);
}
#endif

// Compile-time constants for a type and a mode: by_type_and_mode calls f(type, mode), whose values are
// decltype(type)::type and mode.value.
template <class T>
struct TypeTag {
  using type = T;
};
template <Mode m>
struct ModeTag {
  static constexpr Mode value = m;
};

template <class F>
auto by_type(Type type, const F& f) {
  switch (type) {
    case Type::bfloat16: return f(TypeTag<BFloat16>{});
    case Type::float16: return f(TypeTag<Half>{});
    default: return f(TypeTag<float>{});
  }
}

template <class F>
auto by_type_and_mode(const Map& map, const F& f) {
  return by_type(map.type, [&](auto type) {
    switch (map.mode) {
      case Mode::rows: return f(type, ModeTag<Mode::rows>{});
      case Mode::rows_unaligned: return f(type, ModeTag<Mode::rows_unaligned>{});
      case Mode::rows_single: return f(type, ModeTag<Mode::rows_single>{});
      case Mode::cols: return f(type, ModeTag<Mode::cols>{});
      default: return f(type, ModeTag<Mode::cols_single>{});
    }
  });
}

// ---- every instance of the kernels, for kernel_attributes.cu
struct Instance {
  std::string name;
  const void* kernel;
  int threads = kThreads;
  int shared = 0;  // bytes, at most; kByShape if it depends on the map
};
constexpr int kByShape = -1;
using Instances = std::vector<Instance>;

template <class Args>
void add(Instances& to, std::string name, void (*kernel)(const Args), int shared = 0, int threads = kThreads) {
  to.push_back({std::move(name), reinterpret_cast<const void*>(kernel), threads, shared});
}

constexpr Type kTypes[] = {Type::float32, Type::bfloat16, Type::float16};
inline std::string name_of(Type type) {
  constexpr const char* names[] = {"float32", "bfloat16", "float16"};
  return names[(int)type];
}

// Calls f(map, text) with a map of each type and mode, and both as text.
template <class F>
void each_map(const F& f) {
  constexpr const char* modes[] = {"rows", "rows_unaligned", "rows_single", "cols", "cols_single"};
  for (const Type type : kTypes)
    for (int mode = 0; mode < 5; ++mode) f(Map{1, 1, 1, (Mode)mode, type}, name_of(type) + " " + modes[mode]);
}

void list_moments(Instances&);
void list_scale_shift_act(Instances&);
void list_scale_shift_act_mean(Instances&);
void list_excitation(Instances&);
void list_excitation_backward(Instances&);
void list_cluster_fused(Instances&);
void list_l2_grouped(Instances&);

}  // namespace se_fused::cuda
