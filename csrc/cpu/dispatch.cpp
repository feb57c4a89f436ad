// Selects the instruction set once, at run time. Tests and users can cap it.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "../introspection.h"
#include "parallel.h"

namespace se_fused::cpu {
namespace {

const Kernels* best(const char* cap) {
#if defined(__x86_64__)
  // The same environment variable and names as PyTorch (ATEN_CPU_CAPABILITY), so that one setting caps both libraries.
  const bool below_avx2 = !std::strcmp(cap, "default"), below_avx512 = below_avx2 || !std::strcmp(cap, "avx2");
  if (!below_avx512 && __builtin_cpu_supports("x86-64-v4")) return &avx512::kernels;
  if (!below_avx2 && __builtin_cpu_supports("x86-64-v3")) return &avx2::kernels;
#else
  (void)cap;
#endif
  return &baseline::kernels;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> value = [] {
    const char* const cap = std::getenv("ATEN_CPU_CAPABILITY");
    return best(cap ? cap : "");
  }();
  return value;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool set_capability(const char* cap) {
  for (const char* known : {"", "default", "avx2", "avx512"})
    if (!std::strcmp(cap, known)) {
      chosen() = best(cap);
      return true;
    }
  return false;
}

}  // namespace se_fused::cpu

namespace se_fused {

std::string capability(const std::optional<std::string>& cap) {
  if (cap)
    STD_TORCH_CHECK(cpu::set_capability(cap->c_str()), "cap must be \"\", \"default\", \"avx2\" or \"avx512\", got \"",
                    *cap, "\"");
  return cpu::kernels().name;
}

}  // namespace se_fused

const char* se_fused_cpu_capability() { return se_fused::cpu::kernels().name; }
