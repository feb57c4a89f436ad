// What the kernels of every backend name alike. The order of the names is the contract with se_fused/activations.py.
#pragma once

#include <cstdint>

namespace se_fused {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class OutAct : int64_t { none, relu, silu, hard_swish };
// Whether the derivative is computed from the sum before the activation, which is then computed again; relu's is a
// mask.
constexpr bool recomputed(OutAct act) { return act == OutAct::silu || act == OutAct::hard_swish; }
enum class Gate : int64_t { sigmoid, hard_sigmoid };
enum class Act : int64_t { identity, relu, relu6, leaky_relu, silu, gelu, gelu_tanh, hard_swish, mish, tanh };

}  // namespace se_fused
