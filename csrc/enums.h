// Element types, and the activations and gates with their numbers, shared by the kernels of every backend.
#pragma once

#include <cstdint>

namespace se_fused {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The activations of se_fused/activations.py in its order; positions are the numbers that Python passes.
#define SE_ACTIVATIONS(X) \
  X(identity) X(relu) X(relu6) X(leaky_relu) X(silu) X(gelu) X(gelu_tanh) X(hard_swish) X(mish) X(tanh)
// Those that can close a block, and what their backward pass keeps for the derivative.
#define SE_OUT_ACTIVATIONS(X) X(identity, nothing) X(relu, mask) X(silu, input) X(hard_swish, input)
#define SE_GATES(X) X(sigmoid) X(hard_sigmoid)

#define SE_ENUMERATOR(name) name,
#define SE_COUNT(name) +1
enum class Act : int64_t { SE_ACTIVATIONS(SE_ENUMERATOR) };
enum class Gate : int64_t { SE_GATES(SE_ENUMERATOR) };
constexpr int64_t kActivations = SE_ACTIVATIONS(SE_COUNT), kGates = SE_GATES(SE_COUNT);
#undef SE_ENUMERATOR
#undef SE_COUNT

// nothing: the derivative is 1. mask: it is 1 or 0, one bit per element. input: it is computed from the activation's
// input, scale * x + shift + residual, which the backward pass computes again.
enum class Keeps { nothing, mask, input };

#define SE_CASE(name, kept) \
  case Act::name: return Keeps::kept;
constexpr Keeps keeps(Act act) {
  switch (act) {
    SE_OUT_ACTIVATIONS(SE_CASE)
    default: return Keeps::nothing;
  }
}
#undef SE_CASE

#define SE_CASE(name, kept) \
  case Act::name: return true;
constexpr bool can_close(Act act) {
  switch (act) {
    SE_OUT_ACTIVATIONS(SE_CASE)
    default: return false;
  }
}
#undef SE_CASE

constexpr bool keeps_mask(Act act) { return keeps(act) == Keeps::mask; }
constexpr bool keeps_input(Act act) { return keeps(act) == Keeps::input; }

// Whether the backward pass writes dr = dy * act', the residual's gradient. Where the derivative needs the input, it
// does so even if dr is not wanted, because pass 2 needs dr again and silu's derivative costs one exponential per
// element.
constexpr bool writes_dr(Act act, bool wanted) { return keeps_input(act) || (wanted && keeps(act) != Keeps::nothing); }

// An activation as a type, so that a generic lambda is compiled once for each.
template <Act act>
struct Known {
  static constexpr Act value = act;
  static constexpr Keeps kept = keeps(act);  // CUDA's device code cannot call keeps()
};

// Constants of gelu and gelu_tanh (Hendrycks and Gimpel 2016).
constexpr float kSqrtHalf = 0.70710678118654752f, kInvSqrt2Pi = 0.39894228040143268f;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kGeluA = 0.79788456080286536f, kGeluB = 0.044715f;  // kGeluA: sqrt(2 / pi)

}  // namespace se_fused
