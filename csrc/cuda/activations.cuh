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

SE_DEVICE float open_gate(Gate gate, float q) {
  switch (gate) {
    case Gate::sigmoid: return sigmoid(q);
    case Gate::hard_sigmoid: {
      const float t = q / 6.f + 0.5f;
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
SE_DEVICE ChannelNorm channel_norm(const Norm& norm, int c, float mu, float var) {
  const float rstd = rsqrtf(var + norm.eps);
  return {mu, rstd, rstd * get_or(norm.weight, c, 1.f), get_or(norm.bias, c, 0.f)};
}
SE_DEVICE ChannelNorm channel_norm(const Norm& norm, int c) {
  if (!norm.mean.data) return {0.f, 1.f, 1.f, 0.f};
  return channel_norm(norm, c, get(norm.mean, c), get(norm.var, c));
}

struct ScaleShift {
  float scale, shift;
};
SE_DEVICE ScaleShift coefficients(const Coefficients& by, int64_t n, int c, int channels) {
  const int64_t at = by.per_channel ? c : n * channels + c;
  if (by.scale) return {by.scale[at], by.shift[at]};
  const ChannelNorm norm = channel_norm(by.norm, c);
  const float ds = get_or(by.drop, n, 1.f) * (by.factor ? by.factor[at] : 1.f);
  return {ds * norm.a, ds * norm.b()};
}

SE_DEVICE bool is_finite(float x) { return (as_bits(x) & 0x7f800000u) != 0x7f800000u; }
SE_DEVICE float finite_or_zero(float x) { return is_finite(x) ? x : 0.f; }

}  // namespace se_fused::cuda
