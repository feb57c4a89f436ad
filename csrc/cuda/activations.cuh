// Scalar float32 functions of the kernels: activations, gates, parameter access and batch norm. Values and slopes at
// the corners match PyTorch's, and comparisons are written so that NaN propagates.
#pragma once

#include "kernel_params.h"
#include "platform.cuh"

namespace se_fused::cuda {

SE_DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
SE_DEVICE float silu(float x) { return x * sigmoid(x); }
SE_DEVICE float silu_slope(float x) {
  const float s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}
SE_DEVICE float hard_swish(float x) {
  const float t = x + 3.f;
  return x * ((t < 0.f ? 0.f : t > 6.f ? 6.f : t) * (1.f / 6.f));
}
SE_DEVICE float hard_swish_slope(float x) { return x <= -3.f ? 0.f : x < 3.f ? x * (1.f / 3.f) + 0.5f : 1.f; }

// tanh(log(1 + e)) with e = exp(x), as a ratio, so that nothing cancels. Above x = 20 it rounds to 1.
SE_DEVICE float tanh_softplus(float x) {
  if (x > 20.f) return 1.f;
  const float e = expf(x), u = e * (e + 2.f);
  return u / (u + 2.f);
}

SE_DEVICE float normal_cdf(float x) { return 0.5f * (1.f + erff(x * kSqrtHalf)); }
SE_DEVICE float gelu_tanh_part(float x) { return tanhf(kGeluA * (x + kGeluB * x * x * x)); }

static SE_DEVICE float activate(Act act, float x) {
  switch (act) {
    case Act::identity: return x;
    case Act::relu: return x <= 0.f ? 0.f : x;
    case Act::relu6: return x <= 0.f ? 0.f : x >= 6.f ? 6.f : x;
    case Act::leaky_relu: return x > 0.f ? x : 0.01f * x;
    case Act::silu: return silu(x);
    case Act::gelu: return x * normal_cdf(x);
    case Act::gelu_tanh: return 0.5f * x * (1.f + gelu_tanh_part(x));
    case Act::hard_swish: return hard_swish(x);
    case Act::mish: return x * tanh_softplus(x);
    case Act::tanh: return tanhf(x);
  }
  return x;
}

static SE_DEVICE float activate_slope(Act act, float x) {
  switch (act) {
    case Act::identity: return 1.f;
    case Act::relu: return x <= 0.f ? 0.f : 1.f;
    case Act::relu6: return x <= 0.f || x >= 6.f ? 0.f : 1.f;
    case Act::leaky_relu: return x > 0.f ? 1.f : 0.01f;
    case Act::silu: return silu_slope(x);
    case Act::gelu: return normal_cdf(x) + x * kInvSqrt2Pi * expf(-0.5f * x * x);
    case Act::gelu_tanh: {
      const float t = gelu_tanh_part(x);
      return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * kGeluA * (1.f + 3.f * kGeluB * x * x);
    }
    case Act::hard_swish: return hard_swish_slope(x);
    case Act::mish: {
      const float t = tanh_softplus(x);
      return t + x * sigmoid(x) * (1.f - t * t);
    }
    case Act::tanh: {
      const float t = tanhf(x);
      return 1.f - t * t;
    }
  }
  return 1.f;
}

// ---- the activations that close a block, one per element of a map. Excitation and gates are few, and their contract
// bounds the relative error, so they use the functions above.
//
// The sigmoid s = 1 / (1 + e) with e = exp(-x) = 2^(-x log2(e)) takes two instructions of the special function unit and
// two others. With expf and a division rounded to nearest it takes 25, and a branch to the division's slow path. Errors
// relative to the result, in units of u = 2^-24, to first order:
//   1.25 |x|  of e, from its argument: the product's rounding (1 u) and log2(e)'s (0.23 u), times |x|
//   5         of e, from exp2_approx: 2 ulp beyond correct rounding
//   4         of s, from the addition (1 u) and rcp_approx (3 u)
// The error of e enters s with the weight 1 - s = e / (1 + e), so the sum is at most (1.25 |x| + 9) u for x < 0 and 7 u
// for x >= 0, where |x| (1 - s) <= 0.28. Relative to 1 it is at most 6 u, because s (1 - s) |x| <= 0.23. Below
// x = -87.3 the reciprocal is subnormal and flushed to 0, and below -88.7 the sum is infinity and its reciprocal 0. NaN
// passes through all instructions. (tanh.approx would save one instruction, but its error is 2^-11: 8000 u.)
SE_DEVICE float exp_approx(float x) { return exp2_approx(x * kLog2E); }
SE_DEVICE float sigmoid_approx(float x) { return rcp_approx(1.f + exp_approx(-x)); }
SE_DEVICE float silu_approx(float x) { return x * sigmoid_approx(x); }
// s (1 + x (1 - s)). 1 - s is not computed as a difference, because x would multiply the error of s. With
// e = exp(-|x|) <= 1 and r = 1 / (1 + e), one of s and 1 - s is r and the other is e r, and nothing overflows. The
// error is at most 16 u relative to 1: for x >= 0, 7 u of s and 5 u of 1 + x (1 - s) times a slope of at most 1.1; for
// x < 0, 1.25 |x| + 10 u of s times a slope of at most 0.5, and 8 |x| u of x (1 - s) times s, where s |x| <= 0.28.
SE_DEVICE float silu_slope_approx(float x) {
  const float e = exp_approx(-fabsf(x)), r = rcp_approx(1.f + e), other = e * r;
  const bool positive = x >= 0.f;
  return (positive ? r : other) * (1.f + x * (positive ? other : r));
}

// Calls f(Known<act>) for an activation that can close a block. Operators refuse others (csrc/params.h).
template <class F>
SE_DEVICE void by_out_act(Act act, const F& f) {
  switch (act) {
#define SE_CASE(name, kept) \
  case Act::name: return f(Known<Act::name>{});
    SE_OUT_ACTIVATIONS(SE_CASE)
    default: return;
  }
#undef SE_CASE
}

template <Act act>
SE_DEVICE float activate(Known<act>, float x) {
  return act == Act::silu ? silu_approx(x) : activate(act, x);
}
template <Act act>
SE_DEVICE float activate_slope(Known<act>, float x) {
  return act == Act::silu ? silu_slope_approx(x) : activate_slope(act, x);
}

SE_DEVICE float open_gate(Gate gate, float q) {
  switch (gate) {
    case Gate::sigmoid: return sigmoid(q);
    case Gate::hard_sigmoid: {
      const float t = q * (1.f / 6.f) + 0.5f;  // exactly 0 and 1 at the corners -3 and 3, or beyond
      return t < 0.f ? 0.f : t > 1.f ? 1.f : t;
    }
  }
  return q;
}

// d gate / d q from the gate's value s.
SE_DEVICE float gate_slope(Gate gate, float s) {
  switch (gate) {
    case Gate::sigmoid: return s * (1.f - s);
    case Gate::hard_sigmoid: return s > 0.f && s < 1.f ? 1.f / 6.f : 0.f;
  }
  return s;
}

// ---- parameters of any dtype; all threads take the same branch
SE_DEVICE float get(const Vector& v, int64_t i) {
  if (v.type == Type::float32) return static_cast<const float*>(v.data)[i];
  if (v.type == Type::bfloat16) return to_float(static_cast<const BFloat16*>(v.data)[i]);
  return to_float(static_cast<const Half*>(v.data)[i]);
}
SE_DEVICE float get_or(const Vector& v, int64_t i, float otherwise) { return v.data ? get(v, i) : otherwise; }
SE_DEVICE void put(const Result& r, int64_t i, float x) {
  if (r.type == Type::float32) return put(static_cast<float*>(r.data) + i, x);
  if (r.type == Type::bfloat16) return put(static_cast<BFloat16*>(r.data) + i, x);
  put(static_cast<Half*>(r.data) + i, x);
}

// Calls f(null pointer to the weights' element type), in kernels whose weights may have a different dtype than x.
template <class F>
SE_DEVICE void by_weight(Type type, const F& f) {
  if (type == Type::float32) return f(static_cast<float*>(nullptr));
  if (type == Type::bfloat16) return f(static_cast<BFloat16*>(nullptr));
  f(static_cast<Half*>(nullptr));
}

// Updates a running statistic: old + momentum (to - old), rounded like torch.lerp, which is exact at both ends.
SE_DEVICE void move(const Result& r, int64_t i, float to, float momentum) {
  const float old = get(Vector{r.data, r.type}, i);
  put(r, i, momentum < 0.5f ? old + momentum * (to - old) : to - (to - old) * (1.f - momentum));
}

// Batch norm of one channel as u = a (x - mu) + beta.
struct ChannelNorm {
  float mu, rstd, a, beta;
  SE_DEVICE float b() const { return beta - a * mu; }
  SE_DEVICE float operator()(float x) const { return (x - mu) * a + beta; }
};
SE_DEVICE ChannelNorm channel_norm(const Norm& norm, float mu, float var, float weight, float bias) {
  const float rstd = rsqrtf(var + norm.eps);
  return {mu, rstd, rstd * weight, bias};
}
SE_DEVICE ChannelNorm channel_norm(const Norm& norm, int c, float mu, float var) {
  return channel_norm(norm, mu, var, get_or(norm.weight, c, 1.f), get_or(norm.bias, c, 0.f));
}
SE_DEVICE ChannelNorm channel_norm(const Norm& norm, int c) {
  if (!norm.mean.data) return {0.f, 1.f, 1.f, 0.f};
  return channel_norm(norm, c, get(norm.mean, c), get(norm.var, c));
}

struct ScaleShift {
  float scale, shift;
};
SE_DEVICE ScaleShift coefficients(const Coefficients& by, int64_t n, int c, int channels) {
  const int64_t at = by.per_channel.by ? c : n * channels + c;
  if (by.scale) return {by.scale[at], by.shift[at]};
  const ChannelNorm norm = channel_norm(by.norm, c);
  const float ds = get_or(by.drop, n, 1.f) * (by.factor ? by.factor[at] : 1.f);
  return {ds * norm.a, ds * norm.b()};
}

SE_DEVICE bool is_finite(float x) { return (as_bits(x) & 0x7f800000u) != 0x7f800000u; }
SE_DEVICE float finite_or_zero(float x) { return is_finite(x) ? x : 0.f; }

}  // namespace se_fused::cuda
