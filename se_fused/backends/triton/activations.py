"""Elementwise float32 functions of the kernels: activations by their number in se_fused/activations.py, gates, batch
norm.

libdevice is not used, because it exists only for NVIDIA GPUs and not in the interpreter. Python floats take the dtype
of the tensor operand; a test checks that the compiled code has no float64.
"""

import triton
import triton.language as tl

from ...activations import ACT_CODES, GATE_CODES

# Kernels may read a global only if it is a constexpr. A number without a branch below is an error when the kernel is
# compiled.
IDENTITY = tl.constexpr(ACT_CODES["identity"])
RELU = tl.constexpr(ACT_CODES["relu"])
RELU6 = tl.constexpr(ACT_CODES["relu6"])
LEAKY_RELU = tl.constexpr(ACT_CODES["leaky_relu"])
SILU = tl.constexpr(ACT_CODES["silu"])
GELU = tl.constexpr(ACT_CODES["gelu"])
GELU_TANH = tl.constexpr(ACT_CODES["gelu_tanh"])
HARD_SWISH = tl.constexpr(ACT_CODES["hard_swish"])
MISH = tl.constexpr(ACT_CODES["mish"])
TANH = tl.constexpr(ACT_CODES["tanh"])
SIGMOID = tl.constexpr(GATE_CODES["sigmoid"])
HARD_SIGMOID = tl.constexpr(GATE_CODES["hard_sigmoid"])


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def hard_swish(x):
    t = x + 3.0
    return x * (tl.where(t < 0, 0.0, tl.where(t > 6, 6.0, t)) * (1.0 / 6))


@triton.jit
def hard_swish_slope(x):
    return tl.where(x <= -3, 0.0, tl.where(x < 3, x * (1.0 / 3) + 0.5, 1.0))


@triton.jit
def tanh(x):
    """tanh as 1 - 2 / (exp(2x) + 1). For |x| < 0.25, where that cancels, the power series; the first term that is left
    out is below 1e-8 of the result."""
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def tanh_softplus(x):
    """tanh(log(1 + e)) with e = exp(x), as a ratio, so that nothing cancels. Above x = 20 it rounds to 1."""
    e = tl.exp(tl.minimum(x, 20.0))
    u = e * (e + 2.0)
    return tl.where(x > 20.0, 1.0, u / (u + 2.0))


@triton.jit
def gelu_cdf(x):
    """The normal distribution's probability of values below x, the factor of x in GELU."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """tanh(sqrt(2 / pi) (x + 0.044715 x^3)), of the approximation of GELU (Hendrycks and Gimpel 2016)."""
    return tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation between the two layers, or at the end of a block, by its number in ACT_CODES."""
    if ACT == RELU:  # comparisons are written so that NaN propagates, as in PyTorch
        x = tl.where(x <= 0, 0.0, x)
    elif ACT == RELU6:
        x = tl.where(x <= 0, 0.0, tl.where(x >= 6, 6.0, x))
    elif ACT == LEAKY_RELU:
        x = tl.where(x > 0, x, 0.01 * x)
    elif ACT == SILU:
        x = silu(x)
    elif ACT == GELU:
        x *= gelu_cdf(x)
    elif ACT == GELU_TANH:
        x = 0.5 * x * (1.0 + gelu_tanh(x))
    elif ACT == HARD_SWISH:
        x = hard_swish(x)
    elif ACT == MISH:
        x = x * tanh_softplus(x)
    elif ACT == TANH:
        x = tanh(x)
    else:
        tl.static_assert(ACT == IDENTITY, "this activation has no code")
    return x


@triton.jit
def activate_slope(x, ACT: tl.constexpr):
    """The derivative of ``activate``, with PyTorch's values at the corners."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if ACT == RELU:
        slope = tl.where(x <= 0, 0.0, slope)
    elif ACT == RELU6:
        slope = tl.where((x <= 0) | (x >= 6), 0.0, slope)
    elif ACT == LEAKY_RELU:
        slope = tl.where(x > 0, slope, 0.01)
    elif ACT == SILU:
        slope = silu_slope(x)
    elif ACT == GELU:
        slope = gelu_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACT == GELU_TANH:
        t = gelu_tanh(x)
        inner = 0.7978845608028654 * (1.0 + 3 * 0.044715 * x * x)
        slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    elif ACT == HARD_SWISH:
        slope = hard_swish_slope(x)
    elif ACT == MISH:
        t = tanh_softplus(x)
        slope = t + x * sigmoid(x) * (1.0 - t * t)
    elif ACT == TANH:
        t = tanh(x)
        slope = 1.0 - t * t
    else:
        tl.static_assert(ACT == IDENTITY, "this activation has no code")
    return slope


@triton.jit
def apply_slope(gradient, t, ACT: tl.constexpr):
    """gradient * act'(t), for an activation at the end of a block. Where ReLU's slope is 0 the result is 0 for an
    infinite or NaN gradient too, as in PyTorch."""
    if ACT == RELU:
        gradient = tl.where(t <= 0, 0.0, gradient)
    elif ACT != IDENTITY:
        gradient *= activate_slope(t, ACT)
    return gradient


@triton.jit
def open_gate(q, GATE: tl.constexpr):
    if GATE == SIGMOID:
        return sigmoid(q)
    else:
        tl.static_assert(GATE == HARD_SIGMOID, "this gate has no code")
        t = q / 6.0 + 0.5
        return tl.where(t < 0, 0.0, tl.where(t > 1, 1.0, t))


@triton.jit
def gate_slope(s, GATE: tl.constexpr):
    """d gate / d q from the gate's value s. Hard sigmoid has slope 0 at its corners, as in PyTorch."""
    if GATE == SIGMOID:
        return s * (1.0 - s)
    else:
        tl.static_assert(GATE == HARD_SIGMOID, "this gate has no code")
        return tl.where((s > 0) & (s < 1), 1.0 / 6, 0.0)


@triton.jit
def norm_parameters(rstd, norm, channel, exists):
    """a = weight * rstd and beta = bias of some channels of batch norm."""
    a = rstd
    if norm.weight is not None:
        a *= tl.load(norm.weight + channel, mask=exists, other=0).to(tl.float32)
    beta = tl.zeros_like(a)
    if norm.bias is not None:
        beta = tl.load(norm.bias + channel, mask=exists, other=0).to(tl.float32)
    return a, beta


@triton.jit
def norm_coefficients(norm, channel, exists):
    """mu, rstd, a, beta of some channels, for batch norm as u = a (x - mu) + beta."""
    mu = tl.load(norm.mean + channel, mask=exists, other=0).to(tl.float32)
    rstd = tl.rsqrt(tl.load(norm.var + channel, mask=exists, other=1).to(tl.float32) + norm.eps)
    a, beta = norm_parameters(rstd, norm, channel, exists)
    return mu, rstd, a, beta


@triton.jit
def map_coefficients(given, norm, vector, channel, exists, channels, BLOCK: tl.constexpr):
    """(scale, shift) at the offsets ``vector`` of (N, C), of these channels: loaded from ``given``, or if it has none,
    computed as d s a and d s b from batch norm, the gate's factor s and drop path d."""
    if given.scale is not None:
        a = tl.load(given.scale + vector, mask=exists, other=0)
        b = tl.load(given.shift + vector, mask=exists, other=0)
    else:
        a = tl.full((BLOCK,), 1.0, tl.float32)
        b = tl.zeros((BLOCK,), tl.float32)
        if norm.mean is not None:
            mu, _rstd, a, beta = norm_coefficients(norm, channel, exists)
            b = beta - a * mu
        if given.factor is not None:
            s = tl.load(given.factor + vector, mask=exists, other=0)
            a *= s
            b *= s
        if given.drop is not None:
            d = tl.load(given.drop + vector // channels, mask=exists, other=0).to(tl.float32)
            a *= d
            b *= d
    return a, b
