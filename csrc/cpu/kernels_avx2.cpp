// The kernels for AVX2, compiled for x86-64-v3 regardless of the build flags. dispatch.cpp calls them only if the
// processor supports it.
// Headers come before the pragma. Otherwise their inline functions would be compiled for x86-64-v3, and the linker
// could use these copies in other files.
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
