"""The backward pass of excitation, in one launch of three phases: from P and Q, (splits, N, C), to the coefficients of
dx and the gradients of all parameters. ``excitation_backward`` in se_fused/ops/excitation.py has the formulas.

1. merge: one tile per block of samples and channels. Adds up the splits of P and Q; dq = gate'(s) d (a Q + z P).
2. dhidden: one tile per block of samples and of squeezed channels: act'(hidden) (dq W2).
3. Two kinds of tiles that do not depend on each other. channels: one tile per block of channels, over all samples:
   dz = dhidden W1, dgamma and dbeta, then k1, k2, k3. weights: one tile per block of channels and of squeezed channels,
   over all samples: dW1, dW2 and the biases' gradients.

No sum over samples is split between programs, so none needs an atomic.
"""

import triton
import triton.language as tl

from .activations import activate, activate_slope, gate_slope, norm_coefficients
from .arguments import Norm
from .tiles import done, load_fresh, load_weight, take, unrolled, wait


@triton.jit
def add_parts(total, parts, at, stride, exists, begin, end, UNROLL: tl.constexpr):
    for k0 in range(begin, end, UNROLL):
        for j in tl.static_range(UNROLL):
            total += tl.load(parts + (k0 + j) * stride + at, mask=exists, other=0)
    return total


@triton.jit
def merged_sum(parts, at, stride, exists, splits, MOST: tl.constexpr = 16):
    """The sum of the splits, added in order; loaded MOST at a time, then 4, then 1, as in ``merged_moments``."""
    by_16, by_4 = unrolled(splits)
    total = tl.load(parts + at, mask=exists, other=0)
    total = add_parts(total, parts, at, stride, exists, 1, by_16, MOST)
    total = add_parts(total, parts, at, stride, exists, by_16, by_4, 4)
    return add_parts(total, parts, at, stride, exists, by_4, splits, 1)


@triton.jit
def norm_map(norm, channel, in_c, BLOCK_C: tl.constexpr):
    """mu, rstd, a, beta of batch norm; those of the identity if there is none."""
    mu = tl.zeros((BLOCK_C,), tl.float32)
    rstd = tl.full((BLOCK_C,), 1.0, tl.float32)
    a, beta = rstd, mu
    if norm.mean is not None:
        mu, rstd, a, beta = norm_coefficients(norm, channel, in_c)
    return mu, rstd, a, beta


@triton.jit
def merge_tile(
    first_n, first_c, parts, sums, saved, norm, drop, scratch, samples, channels, splits, GATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Phase 1 for one block. With one split, the sums may share the memory of the parts."""
    sample = first_n + tl.arange(0, BLOCK_N)
    channel = first_c + tl.arange(0, BLOCK_C)
    in_n = sample < samples
    in_c = channel < channels
    exists = in_n[:, None] & in_c[None, :]
    at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
    stride = samples.to(tl.int64) * channels
    sum_p = merged_sum(parts.p, at, stride, exists, splits)
    sum_q = merged_sum(parts.q, at, stride, exists, splits)
    tl.store(sums.p + at, sum_p, mask=exists & (splits > 1))
    tl.store(sums.q + at, sum_q, mask=exists & (splits > 1))
    mu, _rstd, a, beta = norm_map(norm, channel, in_c, BLOCK_C)
    z = (tl.load(saved.mean + at, mask=exists, other=0) - mu[None, :]) * a[None, :] + beta[None, :]
    grad = a[None, :] * sum_q + z * sum_p
    if drop is not None:
        grad *= tl.load(drop + sample, mask=in_n, other=0).to(tl.float32)[:, None]
    s = tl.load(saved.factor + at, mask=exists, other=0)
    tl.store(scratch.dq + at, grad * gate_slope(s, GATE), mask=exists)


@triton.jit
def dhidden_tile(
    first_n, first_r, saved, layers, scratch, samples, channels, squeezed, ACT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Phase 2: dhidden[n, r] = act'(hidden[n, r]) sum_c dq[n, c] W2[c, r]."""
    sample = first_n + tl.arange(0, BLOCK_N)
    in_n = sample < samples
    r = first_r + tl.arange(0, BLOCK_R)
    in_r = r < squeezed
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for c in range(0, channels, BLOCK_K):
        channel = c + tl.arange(0, BLOCK_K)
        in_c = channel < channels
        grad = load_fresh(scratch.dq, sample, channel, channels, in_n, in_c)
        w = load_weight(layers.fc2_weight, channel, r, squeezed, in_c, in_r)
        total = tl.dot(grad, w, total, input_precision=PRECISION)
    at = sample.to(tl.int64)[:, None] * squeezed + r[None, :]
    exists = in_n[:, None] & in_r[None, :]
    h = tl.load(saved.hidden + at, mask=exists, other=0)
    tl.store(scratch.dhidden + at, total * activate_slope(h, ACT), mask=exists)


@triton.jit
def channels_tile(
    first_c, sums, saved, norm, layers, drop, scratch, to_dx, gradients, samples, channels, squeezed, position_count,
    BATCH_STATS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Phase 3: k1, k2, k3 of dx = k1 dr + k2 (x - m) + k3 (``to_dx``), and batch norm's gradients.

    dz is stored in k3 between the two loops over the samples.
    """
    channel = first_c + tl.arange(0, BLOCK_C)
    in_c = channel < channels
    mu, rstd, a, _beta = norm_map(norm, channel, in_c, BLOCK_C)
    dbeta = tl.zeros((BLOCK_C,), tl.float32)
    dgamma = tl.zeros((BLOCK_C,), tl.float32)
    for n in range(0, samples, BLOCK_M):
        sample = n + tl.arange(0, BLOCK_M)
        in_n = sample < samples
        exists = in_n[:, None] & in_c[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        dz = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        for r0 in range(0, squeezed, BLOCK_Q):
            r = r0 + tl.arange(0, BLOCK_Q)
            in_r = r < squeezed
            grad = load_fresh(scratch.dhidden, sample, r, squeezed, in_n, in_r)
            w = load_weight(layers.fc1_weight, r, channel, channels, in_r, in_c)
            dz = tl.dot(grad, w, dz, input_precision=PRECISION)
        tl.store(to_dx.k3 + at, dz, mask=exists)
        if norm.mean is not None:
            ds = tl.load(saved.factor + at, mask=exists, other=0)
            if drop is not None:
                ds *= tl.load(drop + sample, mask=in_n, other=0).to(tl.float32)[:, None]
            g1 = ds * tl.load(sums.p + at, mask=exists, other=0, cache_modifier=".cg") + dz
            g2 = ds * tl.load(sums.q + at, mask=exists, other=0, cache_modifier=".cg")
            away = tl.where(exists, tl.load(saved.mean + at, mask=exists, other=0) - mu[None, :], 0.0)
            dbeta += tl.sum(g1, axis=0)
            dgamma += tl.sum(g2 + away * g1, axis=0)
    if norm.mean is not None:
        dgamma *= rstd
        tl.store(gradients.dbn_weight + channel, dgamma, mask=in_c)
        tl.store(gradients.dbn_bias + channel, dbeta, mask=in_c)
        # Divided by S and by N in two steps, because N * S may not fit in an int32.
        by_x = -a * rstd * dgamma / position_count / samples.to(tl.float32)
        constant = dbeta / position_count / samples.to(tl.float32)
    tl.debug_barrier()  # dz was written by other threads of this program
    for n in range(0, samples, BLOCK_M):
        sample = n + tl.arange(0, BLOCK_M)
        in_n = sample < samples
        exists = in_n[:, None] & in_c[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        by_dr = tl.load(saved.factor + at, mask=exists, other=0) * a[None, :]
        if drop is not None:
            by_dr *= tl.load(drop + sample, mask=in_n, other=0).to(tl.float32)[:, None]
        rest = tl.load(to_dx.k3 + at, mask=exists, other=0) / position_count
        if BATCH_STATS:
            rest -= constant[None, :]
        rest *= a[None, :]
        if BATCH_STATS:
            rest += by_x[None, :] * (tl.load(saved.mean + at, mask=exists, other=0) - mu[None, :])
            tl.store(to_dx.k2 + at, tl.zeros((BLOCK_M, BLOCK_C), tl.float32) + by_x[None, :], mask=exists)
        tl.store(to_dx.k1 + at, by_dr, mask=exists)
        tl.store(to_dx.k3 + at, rest, mask=exists)


@triton.jit
def weights_tile(
    first_c, first_r, saved, norm, scratch, gradients, samples, channels, squeezed, ACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Phase 3: dW1 (R, C) = dhidden^T z, dW2 (C, R) = dq^T act(hidden), db1 (R,) and db2 (C,), for one block."""
    channel = first_c + tl.arange(0, BLOCK_C)
    in_c = channel < channels
    r = first_r + tl.arange(0, BLOCK_R)
    in_r = r < squeezed
    mu, _rstd, a, beta = norm_map(norm, channel, in_c, BLOCK_C)
    first = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    first_bias = tl.zeros((BLOCK_R,), tl.float32)
    second_bias = tl.zeros((BLOCK_C,), tl.float32)
    for n in range(0, samples, BLOCK_M):
        sample = n + tl.arange(0, BLOCK_M)
        in_n = sample < samples
        at_c = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        at_r = sample.to(tl.int64)[:, None] * squeezed + r[None, :]
        exists_c = in_n[:, None] & in_c[None, :]
        exists_r = in_n[:, None] & in_r[None, :]
        # Gradients are 0 past the last sample, so z and h there add nothing as long as they are finite.
        z = (tl.load(saved.mean + at_c, mask=exists_c, other=0) - mu[None, :]) * a[None, :] + beta[None, :]
        h = activate(tl.load(saved.hidden + at_r, mask=exists_r, other=0), ACT)
        by_q = tl.load(scratch.dq + at_c, mask=exists_c, other=0, cache_modifier=".cg")
        by_hidden = tl.load(scratch.dhidden + at_r, mask=exists_r, other=0, cache_modifier=".cg")
        first = tl.dot(tl.trans(by_hidden), z, first, input_precision=PRECISION)
        second = tl.dot(tl.trans(by_q), h, second, input_precision=PRECISION)
        first_bias += tl.sum(by_hidden, axis=0)
        second_bias += tl.sum(by_q, axis=0)
    exists = in_r[:, None] & in_c[None, :]
    tl.store(gradients.dfc1_weight + r[:, None] * channels + channel[None, :], first, mask=exists)
    tl.store(
        gradients.dfc2_weight + channel[:, None] * squeezed + r[None, :], second, mask=in_c[:, None] & in_r[None, :]
    )
    if first_c == 0:
        tl.store(gradients.dfc1_bias + r, first_bias, mask=in_r)
    if first_r == 0:
        tl.store(gradients.dfc2_bias + channel, second_bias, mask=in_c)


@triton.jit(do_not_specialize=["samples", "splits"])
def excitation_backward_kernel(
    counters, parts, sums, saved, norm, layers, drop, scratch, to_dx, gradients, samples, channels, squeezed, splits,
    position_count, ACT: tl.constexpr, GATE: tl.constexpr, BATCH_STATS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All phases. Parts and sums: Sums.

    counters: int32 (4,), zeroed by pass 1.
    """
    if saved.stats is not None:
        norm = Norm(saved.stats, saved.stats + channels, norm.weight, norm.bias, norm.eps)
    n_tiles = tl.cdiv(samples, BLOCK_N)
    c_tiles = tl.cdiv(channels, BLOCK_C)
    merge_tiles = n_tiles * c_tiles
    r_tiles = tl.cdiv(squeezed, BLOCK_R)
    hidden_tiles = n_tiles * r_tiles
    weight_tiles = c_tiles * r_tiles
    before = merge_tiles + hidden_tiles
    total = before + c_tiles + weight_tiles
    ticket = take(counters)
    while ticket < total:
        if ticket < merge_tiles:
            merge_tile(
                ticket // c_tiles * BLOCK_N, ticket % c_tiles * BLOCK_C, parts, sums, saved, norm, drop, scratch,
                samples, channels, splits, GATE, BLOCK_N, BLOCK_C,
            )  # fmt: skip
            done(counters + 1)
        else:
            wait(counters + 1, merge_tiles)
            if ticket < before:
                tile = ticket - merge_tiles
                dhidden_tile(
                    tile // r_tiles * BLOCK_N, tile % r_tiles * BLOCK_R, saved, layers, scratch, samples, channels,
                    squeezed, ACT, BLOCK_N, BLOCK_R, BLOCK_K, PRECISION,
                )  # fmt: skip
                done(counters + 2)
            else:
                wait(counters + 2, hidden_tiles)
                if ticket < before + c_tiles:
                    channels_tile(
                        (ticket - before) * BLOCK_C, sums, saved, norm, layers, drop, scratch, to_dx, gradients,
                        samples, channels, squeezed, position_count, BATCH_STATS, BLOCK_M, BLOCK_C, BLOCK_Q,
                        PRECISION,
                    )  # fmt: skip
                else:
                    tile = ticket - before - c_tiles
                    weights_tile(
                        tile // r_tiles * BLOCK_C, tile % r_tiles * BLOCK_R, saved, norm, scratch, gradients,
                        samples, channels, squeezed, ACT, BLOCK_M, BLOCK_C, BLOCK_R, PRECISION,
                    )  # fmt: skip
        ticket = take(counters)
