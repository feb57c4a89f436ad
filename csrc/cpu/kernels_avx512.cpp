// Compiled for x86-64-v4 whatever the build flags; dispatch.cpp calls it only where the processor has it.
// Headers come before the pragma, so that nothing they define is compiled for x86-64-v4 and shared with other files.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

// Its own intrinsics pass an undefined register where a result is masked.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define SE_VL 16
#define SE_KERNELS_NAME "avx512"
namespace se_fused::cpu::avx512 {
#include "kernels.inl"
}
#endif
