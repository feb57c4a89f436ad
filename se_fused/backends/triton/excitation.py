"""Excitation, between the passes: from (splits, N, C) sums to scale and shift (N, C), in one launch of three phases.

1. coefficients: one tile per block of channels, over all samples. Merges the splits (Chan), computes the batch
   statistics, and batch norm as u = a (x - mu) + beta = a x + b.
2. hidden: one tile per block of samples and of squeezed channels: W1 z + b1 with z = a (m - mu) + beta, because a m + b
   would cancel if the mean is large compared with the deviation.
3. excite: one tile per block of samples and of channels: s = gate(W2 act(hidden) + b2), scale = d s a, shift = d s b.

Each phase needs all results of the one before it; tickets order them (tiles.py). se_fused/ops/excitation.py has the
definition. ``PRECISION`` is tl.dot's: on NVIDIA GPUs three TF32 products in place of one, which keeps at least 21 of
float32's 24 bits and runs on tensor cores; elsewhere plain float32.
"""

import triton
import triton.language as tl

from .activations import activate, norm_coefficients, open_gate
from .arguments import Norm
from .tiles import done, load_fresh, load_weight, split_count, take, unrolled, wait


@triton.jit
def finite_or_zero(x):
    """A shift of sums: 0 in place of infinity and NaN, so that an infinite mean stays infinite."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def add_means(mean, parts, at, stride, exists, shift, begin, end, span, position_count, UNROLL: tl.constexpr):
    """mean + sum over the splits [begin, end) of their weighted differences from ``shift``; UNROLL splits are loaded at
    once."""
    for k0 in range(begin, end, UNROLL):
        for j in tl.static_range(UNROLL):
            k = k0 + j
            share = split_count(k, span, position_count) / position_count
            part = tl.load(parts + k * stride + at, mask=exists, other=0)
            mean += tl.where(exists, (part - shift) * share, 0.0)
    return mean


@triton.jit
def add_squares(
    m2, parts, mean_parts, at, stride, exists, mean, begin, end, span, position_count, UNROLL: tl.constexpr
):  # fmt: skip
    """m2 + the sum of squares around ``mean`` of the splits [begin, end)."""
    for k0 in range(begin, end, UNROLL):
        for j in tl.static_range(UNROLL):
            k = k0 + j
            m2 += tl.load(parts + k * stride + at, mask=exists, other=0)
            away = tl.load(mean_parts + k * stride + at, mask=exists, other=0) - mean
            m2 += split_count(k, span, position_count) * away * away
    return m2


@triton.jit
def merged_moments(
    mean_parts, m2_parts, at, stride, exists, splits, span, position_count, MOST: tl.constexpr = 16
):  # fmt: skip
    """(mean, m2) of [samples, channels] at the offsets ``at``, merged from the splits. A split has ``span`` positions,
    the last one the rest.

    ``stride`` is N * C. m2 is zero if m2_parts is None. Splits are loaded MOST (16 or 4) at a time, then 4, then 1,
    because each separate load would wait for L2. Their number depends on the batch, so it is not a compile-time
    constant. The first split is loaded before the loops.
    """
    first = tl.load(mean_parts + at, mask=exists, other=0)
    # Sums of differences from the first split's mean, so that the rounding error scales with their spread.
    shift = finite_or_zero(first)
    by_16, by_4 = unrolled(splits)
    mean = add_means(first, mean_parts, at, stride, exists, shift, 1, by_16, span, position_count, MOST)
    mean = add_means(mean, mean_parts, at, stride, exists, shift, by_16, by_4, span, position_count, 4)
    mean = add_means(mean, mean_parts, at, stride, exists, shift, by_4, splits, span, position_count, 1)
    m2 = tl.zeros_like(first)
    if m2_parts is not None:
        m2 = tl.load(m2_parts + at, mask=exists, other=0)
        away = tl.where(splits > 1, first - mean, 0.0)
        m2 += split_count(0, span, position_count) * away * away
        m2 = add_squares(m2, m2_parts, mean_parts, at, stride, exists, mean, 1, by_16, span, position_count, MOST)
        m2 = add_squares(m2, m2_parts, mean_parts, at, stride, exists, mean, by_16, by_4, span, position_count, 4)
        m2 = add_squares(m2, m2_parts, mean_parts, at, stride, exists, mean, by_4, splits, span, position_count, 1)
    return mean, m2


@triton.jit
def move(pointer, to, momentum, exists):
    """Updates a running statistic: old + momentum (to - old), rounded like torch.lerp, which is exact at both ends."""
    old = tl.load(pointer, mask=exists, other=0).to(tl.float32)
    new = tl.where(momentum < 0.5, old + momentum * (to - old), to - (to - old) * (1.0 - momentum))
    tl.store(pointer, new.to(pointer.dtype.element_ty), mask=exists)


@triton.jit
def coefficients_tile(
    tile, parts, norm, running, results, samples, channels, span, position_count, splits, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Phase 1 for one block of channels.

    With parts.m2, batch statistics are computed and update the running ones; otherwise norm's are used. Of the results,
    mean is written if there are several splits, and stats unless None.
    """
    channel = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = channel < channels
    stride = samples.to(tl.int64) * channels
    if parts.m2 is not None:
        # Means are summed as differences from the first sample's first split, so that the rounding error scales with
        # their spread.
        shift_by = finite_or_zero(tl.load(parts.mean + channel, mask=in_c, other=0))
        spread = tl.zeros((BLOCK_C,), tl.float32)
        within = tl.zeros((BLOCK_C,), tl.float32)
    walked = samples
    if parts.m2 is None:
        walked = tl.where(splits > 1, samples, 0)  # with one split, mean already is that split's
    for n in range(0, walked, BLOCK_M):
        sample = n + tl.arange(0, BLOCK_M)
        exists = (sample < samples)[:, None] & in_c[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        m, v = merged_moments(parts.mean, parts.m2, at, stride, exists, splits, span, position_count)
        tl.store(results.mean + at, m, mask=exists & (splits > 1))
        if parts.m2 is not None:
            spread += tl.sum(tl.where(exists, m - shift_by[None, :], 0.0), axis=0)
            within += tl.sum(v, axis=0)
    if parts.m2 is not None:
        mu = shift_by + spread / samples.to(tl.float32)
        between = tl.zeros((BLOCK_C,), tl.float32)
        for n in range(0, samples, BLOCK_M):
            sample = n + tl.arange(0, BLOCK_M)
            exists = (sample < samples)[:, None] & in_c[None, :]
            at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
            m, v = merged_moments(parts.mean, None, at, stride, exists, splits, span, position_count)
            away = tl.where(exists, m - mu[None, :], 0.0)
            between += tl.sum(away * away, axis=0)
        # Two divisions, because the product of the counts may not fit in an int32.
        var = (within / position_count + between) / samples.to(tl.float32)
        if running.mean is not None:
            move(running.mean + channel, mu, running.momentum, in_c)
            move(running.var + channel, var * running.unbias, running.momentum, in_c)
    elif norm.mean is not None:
        mu = tl.load(norm.mean + channel, mask=in_c, other=0).to(tl.float32)
        var = tl.load(norm.var + channel, mask=in_c, other=0).to(tl.float32)
    if results.stats is not None:
        tl.store(results.stats + channel, mu, mask=in_c)
        tl.store(results.stats + channels + channel, var, mask=in_c)


@triton.jit
def hidden_tile(
    first_n, end_n, first_r, norm, layers, results, channels, squeezed, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Phase 2: hidden[n, r] = sum_c W1[r, c] z[n, c] + b1[r], before the activation.

    Values that other programs of the same launch wrote are read past L1 (.cg).
    """
    sample = first_n + tl.arange(0, BLOCK_N)
    in_n = sample < end_n
    r = first_r + tl.arange(0, BLOCK_R)
    in_r = r < squeezed
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for c in range(0, channels, BLOCK_K):
        channel = c + tl.arange(0, BLOCK_K)
        in_c = channel < channels
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        exists = in_n[:, None] & in_c[None, :]
        m = tl.load(results.mean + at, mask=exists, other=0, cache_modifier=".cg")
        if norm.mean is not None:
            mu, _rstd, a, beta = norm_coefficients(norm, channel, in_c)
            m = tl.where(exists, (m - mu[None, :]) * a[None, :] + beta[None, :], 0.0)
        w = load_weight(layers.fc1_weight, r, channel, channels, in_r, in_c)
        total = tl.dot(m, tl.trans(w), total, input_precision=PRECISION)
    if layers.fc1_bias is not None:
        total += tl.load(layers.fc1_bias + r, mask=in_r, other=0).to(tl.float32)[None, :]
    at = sample.to(tl.int64)[:, None] * squeezed + r[None, :]
    tl.store(results.hidden + at, total, mask=in_n[:, None] & in_r[None, :])


@triton.jit
def excite_tile(
    first_n, end_n, first_c, norm, out_bias, layers, drop, results, channels, squeezed, ACT: tl.constexpr,
    GATE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Phase 3: s = gate(W2 act(hidden) + b2), written to factor unless it is None; scale = d s a and shift = d s b.

    out_bias (C,): a convolution's bias, which takes the place of b if there is no batch norm; may be None.
    """
    sample = first_n + tl.arange(0, BLOCK_N)
    in_n = sample < end_n
    channel = first_c + tl.arange(0, BLOCK_C)
    in_c = channel < channels
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for r0 in range(0, squeezed, BLOCK_Q):
        r = r0 + tl.arange(0, BLOCK_Q)
        in_r = r < squeezed
        h = load_fresh(results.hidden, sample, r, squeezed, in_n, in_r)
        w = load_weight(layers.fc2_weight, channel, r, squeezed, in_c, in_r)
        # Every activation maps 0 to 0, so elements past R add nothing.
        total = tl.dot(activate(h, ACT), tl.trans(w), total, input_precision=PRECISION)
    if layers.fc2_bias is not None:
        total += tl.load(layers.fc2_bias + channel, mask=in_c, other=0).to(tl.float32)[None, :]
    s = open_gate(total, GATE)
    at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
    exists = in_n[:, None] & in_c[None, :]
    if results.factor is not None:
        tl.store(results.factor + at, s, mask=exists)
    if drop is not None:
        s *= tl.load(drop + sample, mask=in_n, other=0).to(tl.float32)[:, None]
    a = tl.full((BLOCK_C,), 1.0, tl.float32)
    b = tl.zeros((BLOCK_C,), tl.float32)
    if norm.mean is not None:
        mu, _rstd, a, beta = norm_coefficients(norm, channel, in_c)
        b = beta - a * mu
    if out_bias is not None:
        b = tl.load(out_bias + channel, mask=in_c, other=0).to(tl.float32)
    tl.store(results.scale + at, s * a[None, :], mask=exists)
    tl.store(results.shift + at, s * b[None, :], mask=exists)


@triton.jit(do_not_specialize=["samples", "splits", "span"])
def excitation_kernel(
    counters, parts, norm, running, layers, out_bias, drop, results, samples, channels, out_channels, squeezed, splits,
    span, position_count, ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All three phases. counters: int32 (4,), zeroed by pass 1.

    ``out_channels`` is C, unless the squeeze is that of a convolution's input (conv1x1_squeeze_excite.py).
    """
    c_tiles = tl.cdiv(channels, BLOCK_C)
    n_tiles = tl.cdiv(samples, BLOCK_N)
    if parts.m2 is not None:
        norm = Norm(results.stats, results.stats + channels, norm.weight, norm.bias, norm.eps)
    r_tiles = tl.cdiv(squeezed, BLOCK_R)
    hidden_tiles = n_tiles * r_tiles
    out_tiles = tl.cdiv(out_channels, BLOCK_C)
    total = c_tiles + hidden_tiles + n_tiles * out_tiles
    ticket = take(counters)
    while ticket < total:
        if ticket < c_tiles:
            coefficients_tile(
                ticket, parts, norm, running, results, samples, channels, span, position_count, splits, BLOCK_M, BLOCK_C
            )
            done(counters + 1)
        elif ticket < c_tiles + hidden_tiles:
            tile = ticket - c_tiles
            wait(counters + 1, c_tiles)
            hidden_tile(
                tile // r_tiles * BLOCK_N, samples, tile % r_tiles * BLOCK_R, norm, layers, results, channels,
                squeezed, BLOCK_N, BLOCK_R, BLOCK_K, PRECISION,
            )  # fmt: skip
            done(counters + 2)
        else:
            tile = ticket - c_tiles - hidden_tiles
            wait(counters + 2, hidden_tiles)
            excite_tile(
                tile // out_tiles * BLOCK_N, samples, tile % out_tiles * BLOCK_C, norm, out_bias, layers, drop,
                results, out_channels, squeezed, ACT, GATE, BLOCK_N, BLOCK_C, BLOCK_Q, PRECISION,
            )  # fmt: skip
        ticket = take(counters)
