// What the libraries tell of themselves through plain C: introspect.cpp looks it up in them by name and needs neither
// torch nor CUDA, and is optional.
#pragma once

#define SE_INTROSPECTION extern "C" __attribute__((visibility("default")))

// One instance of a CUDA kernel as the current device's compiler made it. Bytes and registers.
struct SeFusedAttributes {
  char name[64];                  // kernel, dtype, how vectors lie, variant
  const char* error;              // why this one has no attributes, or null
  int threads;                    // of a block, as it is launched
  int max_threads;                // that a block of it could have
  int registers;                  // of a thread
  int local_bytes;                // of a thread: what was spilled, and arrays that found no registers
  int constant_bytes;             // of the kernel's own, beside its arguments
  int shared_bytes;               // of a block, at most; -1: the map's shape decides
  int blocks_per_multiprocessor;  // at once; where the shape decides, what all the rest allows
};

// How many there are; writes as many as there is room for. 0 with *error set, else null: why none can be asked.
SE_INTROSPECTION int se_fused_cuda_attributes(SeFusedAttributes* out, int capacity, const char** error);

// The instruction set that the CPU kernels use now: "default", "avx2" or "avx512".
SE_INTROSPECTION const char* se_fused_cpu_capability();
