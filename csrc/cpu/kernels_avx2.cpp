// Compiled for x86-64-v3 whatever the build flags; dispatch.cpp calls it only where the processor has it.
// Headers come before the pragma, so that nothing they define is compiled for x86-64-v3 and shared with other files.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("arch=x86-64-v3")
#define SE_VL 8
#define SE_KERNELS_NAME "avx2"
namespace se_fused::cpu::avx2 {
#include "kernels.inl"
}
#endif
