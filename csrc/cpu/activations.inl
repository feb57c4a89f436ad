// Activations, gates and their derivatives. Values and slopes at the corners match PyTorch's, and comparisons are
// written so that NaN passes.

// ---- the activation that closes a block, on 16 elements
SE_INLINE F sigmoid(F x) { return splat(1.f) / (splat(1.f) + exp_(zero() - x)); }
SE_INLINE F silu_slope(F x) {
  const F s = sigmoid(x);
  return s * (splat(1.f) + x * (splat(1.f) - s));
}
SE_INLINE F hard_swish(F x) {
  const F t = x + splat(3.f), six = splat(6.f);
  return x * (select(less(t, zero()), zero(), select(greater(t, six), six, t)) * splat(1.f / 6.f));
}
SE_INLINE F hard_swish_slope(F x) {
  const F inside = x * splat(1.f / 3.f) + splat(0.5f);
  return select(less_equal(x, splat(-3.f)), zero(), select(less(x, splat(3.f)), inside, splat(1.f)));
}

template <Act act>
constexpr bool kHasCode = false;  // depends on `act`, so that only an instance without code fails

template <Act act>
SE_INLINE F out_activate(F t) {
  if constexpr (act == Act::identity)
    return t;
  else if constexpr (act == Act::relu)
    return keep_bits(positive_bits(t), t);
  else if constexpr (act == Act::silu)
    return t * sigmoid(t);
  else if constexpr (act == Act::hard_swish)
    return hard_swish(t);
  else
    static_assert(kHasCode<act>, "an activation of SE_OUT_ACTIVATIONS needs code here");
}

// The derivative, for activations whose input is kept. With a mask it is the mask, and a product with it would turn a
// dropped infinity into NaN.
template <Act act>
SE_INLINE F out_slope(F t) {
  if constexpr (act == Act::silu)
    return silu_slope(t);
  else if constexpr (act == Act::hard_swish)
    return hard_swish_slope(t);
  else
    static_assert(kHasCode<act>, "an activation of SE_OUT_ACTIVATIONS that keeps its input needs code here");
}

// Calls body(Known<act>) for an activation that can close a block. Operators refuse others (params.h).
template <class Body>
SE_INLINE void by_out_act(Act act, Body body) {
  switch (act) {
#define SE_CASE(name, kept) \
  case Act::name: return body(Known<Act::name>{});
    SE_OUT_ACTIVATIONS(SE_CASE)
#undef SE_CASE
    default: __builtin_unreachable();
  }
}

// ---- the activation between the layers, on the (N, R) hidden values; scalar, because they are few
SE_INLINE float logistic(float x) { return 1.f / (1.f + __builtin_expf(-x)); }
SE_INLINE float softplus(float x) { return x > 20.f ? x : __builtin_log1pf(__builtin_expf(x)); }
SE_INLINE float tanh_softplus(float x) { return __builtin_tanhf(softplus(x)); }
SE_INLINE float normal_cdf(float x) { return 0.5f * (1.f + __builtin_erff(x * kSqrtHalf)); }
SE_INLINE float gelu_tanh_part(float x) { return __builtin_tanhf(kGeluA * (x + kGeluB * x * x * x)); }

static float activate(Act act, float x) {
  switch (act) {
    case Act::identity: return x;
    case Act::relu: return x <= 0.f ? 0.f : x;
    case Act::relu6: return x <= 0.f ? 0.f : x >= 6.f ? 6.f : x;
    case Act::leaky_relu: return x > 0.f ? x : 0.01f * x;
    case Act::silu: return x * logistic(x);
    case Act::gelu: return x * normal_cdf(x);
    case Act::gelu_tanh: return 0.5f * x * (1.f + gelu_tanh_part(x));
    case Act::hard_swish: return x <= -3.f ? 0.f : x >= 3.f ? x : x * (x + 3.f) * (1.f / 6.f);
    case Act::mish: return x * tanh_softplus(x);
    case Act::tanh: return __builtin_tanhf(x);
  }
  __builtin_unreachable();
}

static float activate_slope(Act act, float x) {
  switch (act) {
    case Act::identity: return 1.f;
    case Act::relu: return x <= 0.f ? 0.f : 1.f;
    case Act::relu6: return x <= 0.f || x >= 6.f ? 0.f : 1.f;
    case Act::leaky_relu: return x > 0.f ? 1.f : 0.01f;
    case Act::silu: {
      const float s = logistic(x);
      return s * (1.f + x * (1.f - s));
    }
    case Act::gelu: return normal_cdf(x) + x * kInvSqrt2Pi * __builtin_expf(-0.5f * x * x);
    case Act::gelu_tanh: {
      const float t = gelu_tanh_part(x);
      return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * kGeluA * (1.f + 3.f * kGeluB * x * x);
    }
    case Act::hard_swish: return x <= -3.f ? 0.f : x < 3.f ? x * (1.f / 3.f) + 0.5f : 1.f;
    case Act::mish: {
      const float t = tanh_softplus(x);
      return t + x * logistic(x) * (1.f - t * t);
    }
    case Act::tanh: {
      const float t = __builtin_tanhf(x);
      return 1.f - t * t;
    }
  }
  __builtin_unreachable();
}

// ---- gates
SE_INLINE F open_gate(Gate gate, F q) {
  switch (gate) {
    case Gate::sigmoid: return sigmoid(q);
    case Gate::hard_sigmoid: {
      const F t = q * splat(1.f / 6.f) + splat(0.5f);
      const F low = select(less(t, zero()), zero(), t);  // NaN passes both comparisons
      return select(greater(low, splat(1.f)), splat(1.f), low);
    }
  }
  __builtin_unreachable();
}

// d gate / d q from the gate's value. The corners of hard sigmoid have slope 0, as in PyTorch.
SE_INLINE F gate_slope(Gate gate, F s) {
  switch (gate) {
    case Gate::sigmoid: return s * (splat(1.f) - s);
    case Gate::hard_sigmoid: {
      const F slope = select(greater(s, zero()), splat(1.f / 6.f), zero());
      return select(less(s, splat(1.f)), slope, zero());
    }
  }
  __builtin_unreachable();
}
