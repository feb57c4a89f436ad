// C interface through which the compiled libraries report their kernels and instruction set. introspect.cpp looks these
// functions up by name; it needs neither torch nor CUDA, and is optional.
#pragma once

#define SE_INTROSPECTION extern "C" __attribute__((visibility("default")))

// Attributes of one CUDA kernel instance as compiled for the current device. Memory is in bytes.
struct SeFusedAttributes {
  char name[64];                  // kernel, dtype, memory access mode (kernel_params.h), variant
  const char* error;              // why the attributes of this instance are missing, or null
  int threads;                    // per block, as launched
  int max_threads;                // per block, the most that its registers allow
  int registers;                  // per thread
  int local_bytes;                // per thread: spilled registers and arrays without registers
  int constant_bytes;             // constants of the kernel, without its arguments
  int shared_bytes;               // per block, at most; -1 if it depends on the map's shape
  int blocks_per_multiprocessor;  // resident; if shared_bytes is -1, the limit set by all other resources
};

// Returns the number of kernel instances and writes up to `capacity` of them to `out`. If the device cannot be queried,
// returns 0 and sets *error to the reason; otherwise *error is null.
SE_INTROSPECTION int se_fused_cuda_attributes(SeFusedAttributes* out, int capacity, const char** error);

// The instruction set that the CPU kernels currently use: "default", "avx2" or "avx512".
SE_INTROSPECTION const char* se_fused_cpu_capability();
