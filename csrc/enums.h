// Element types and activation numbers shared by the kernels of every backend. se_fused/activations.py relies on the
// order of the enumerators.
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
// Whether the backward pass recomputes the activation's input, scale * x + shift + residual, for the derivative. relu
// saves a mask instead.
constexpr bool recomputed(OutAct act) { return act == OutAct::silu || act == OutAct::hard_swish; }
enum class Gate : int64_t { sigmoid, hard_sigmoid };
enum class Act : int64_t { identity, relu, relu6, leaky_relu, silu, gelu, gelu_tanh, hard_swish, mish, tanh };

}  // namespace se_fused
