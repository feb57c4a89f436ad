// The kernels for the compiler's default target: SSE2 on x86-64, NEON on arm64.
#include "kernels.h"

#define SE_KERNELS_NAME "default"
namespace se_fused::cpu::baseline {
#include "kernels.inl"
}
