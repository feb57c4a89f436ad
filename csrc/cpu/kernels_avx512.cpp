// The kernels for AVX-512, compiled for x86-64-v4 regardless of the build flags. dispatch.cpp calls them only if the
// processor supports it.
// Headers come before the pragma. Otherwise their inline functions would be compiled for x86-64-v4, and the linker
// could use these copies in other files.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

// GCC's AVX-512 intrinsics pass an undefined register as the source of masked results, which triggers this warning.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define SE_VL 16
#define SE_KERNELS_NAME "avx512"
namespace se_fused::cpu::avx512 {
#include "kernels.inl"
}
#endif
