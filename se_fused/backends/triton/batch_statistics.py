"""What follows pass 1 in a norm without squeeze-excite, done by pass 1's last programs, so that such a norm needs no
launch between its passes.

The programs of a block of channels merge their sums in two levels, because one program would wait for L2 too often: at
N = 128 a block of 64 channels has 64 KB of sums per split, and a step of a program loads 4 KB. The last program to
arrive of a GROUP of samples merges these, and the last group to arrive merges the groups. Both merge in order of the
samples, so results do not depend on who is last. Counters are left at zero, as they were found.

Coefficients of pass 2 are then those of channels and not of (n, c): scale and shift follow from the statistics, and
dx = k1 d dr + k2 (x - mu) + k3 with the batch's mean mu and the factor d of stochastic depth.
"""

import triton
import triton.language as tl

from .activations import norm_parameters
from .excitation import finite_or_zero, merged_moments, move
from .excitation_backward import merged_sum

GROUP = tl.constexpr(8)
"""Samples of a group."""

STEP = tl.constexpr(256)
"""Elements of a step: with the sums and squares of 4 splits in flight, 16 values per thread. With twice as many the
kernel spills at 64 registers."""


@triton.jit
def is_last(counter, count):
    """Counts a program that has written its results. For the last of ``count`` programs the results of all can be read,
    and the counter is zero again."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


# ---- forward
@triton.jit
def merge_group(
    mean, m2, results, group, first, samples, channels, span, position_count, splits, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """The means of a group's samples, and the mean and sum of squares of all their positions."""
    SAMPLES: tl.constexpr = min(max(STEP // BLOCK_CHANNELS, 1), GROUP)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_c = channel < channels
    stride = samples.to(tl.int64) * channels
    begin = group * GROUP
    end = tl.minimum(begin + GROUP, samples)
    # Sums around the first sample's mean: at worst the squares lose as many units of rounding as there are samples.
    shift = finite_or_zero(tl.load(mean + begin.to(tl.int64) * channels + channel, mask=in_c, other=0))
    spread = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    squares = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    within = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for n in range(begin, end, SAMPLES):
        sample = n + tl.arange(0, SAMPLES)
        exists = (sample < end)[:, None] & in_c[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        m, v = merged_moments(mean, m2, at, stride, exists, splits, span, position_count, 4)
        tl.store(results.mean + at, m, mask=exists & (splits > 1))
        away = tl.where(exists, m - shift[None, :], 0.0)
        spread += tl.sum(away, axis=0)
        squares += tl.sum(away * away, axis=0)
        within += tl.sum(v, axis=0)
    count = (end - begin).to(tl.float32)
    spread /= count
    groups = tl.cdiv(samples, GROUP)
    at = group.to(tl.int64) * channels + channel
    tl.store(results.groups + at, shift + spread, mask=in_c)
    within += position_count * (squares - count * spread * spread)
    tl.store(results.groups + groups.to(tl.int64) * channels + at, within, mask=in_c)


@triton.jit
def merge_groups(
    results, norm, running, m2, first, samples, channels, position_count, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """The statistics of a block of channels, and the update of running statistics. Without m2 they are norm's."""
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_c = channel < channels
    if m2 is not None:
        ROWS: tl.constexpr = max(STEP // BLOCK_CHANNELS, 1)
        groups = tl.cdiv(samples, GROUP)
        stride = groups.to(tl.int64) * channels
        shift = finite_or_zero(tl.load(results.groups + channel, mask=in_c, other=0))
        spread = tl.zeros((BLOCK_CHANNELS,), tl.float32)
        within = tl.zeros((BLOCK_CHANNELS,), tl.float32)
        between = tl.zeros((BLOCK_CHANNELS,), tl.float32)
        for g in range(0, groups, ROWS):
            row = g + tl.arange(0, ROWS)
            exists = (row < groups)[:, None] & in_c[None, :]
            at = row.to(tl.int64)[:, None] * channels + channel[None, :]
            count = tl.minimum(samples - row * GROUP, GROUP).to(tl.float32)
            m = tl.load(results.groups + at, mask=exists, other=0)
            spread += tl.sum(tl.where(exists, (m - shift[None, :]) * count[:, None], 0.0), axis=0)
            within += tl.sum(tl.load(results.groups + (stride + at), mask=exists, other=0), axis=0)
        mu = shift + spread / samples.to(tl.float32)
        for g in range(0, groups, ROWS):
            row = g + tl.arange(0, ROWS)
            exists = (row < groups)[:, None] & in_c[None, :]
            at = row.to(tl.int64)[:, None] * channels + channel[None, :]
            count = tl.minimum(samples - row * GROUP, GROUP).to(tl.float32)
            away = tl.load(results.groups + at, mask=exists, other=0) - mu[None, :]
            between += tl.sum(tl.where(exists, away * away * count[:, None], 0.0), axis=0)
        # Two divisions, because the product of the counts may not fit in an int32.
        var = (within / position_count + between) / samples.to(tl.float32)
        if running.mean is not None:
            move(running.mean + channel, mu, running.momentum, in_c)
            move(running.var + channel, var * running.unbias, running.momentum, in_c)
    else:
        mu = tl.load(norm.mean + channel, mask=in_c, other=0).to(tl.float32)
        var = tl.load(norm.var + channel, mask=in_c, other=0).to(tl.float32)
    tl.store(results.stats + channel, mu, mask=in_c)
    tl.store(results.stats + channels + channel, var, mask=in_c)


@triton.jit
def finish_moments(
    counters, mean, m2, results, norm, running, row, sample, samples, channels, span, position_count, splits,
    BLOCK_CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The end of a program of pass 1 forward, whose first channel is that of ``row`` of ``sample``.

    With BLOCKS each program has channels of one block of BLOCK_CHANNELS channels of one sample. Otherwise the last of
    all programs merges everything.
    """
    groups = tl.cdiv(samples, GROUP)
    if BLOCKS:
        blocks = tl.cdiv(channels, BLOCK_CHANNELS)
        block = row // BLOCK_CHANNELS
        group = sample // GROUP
        first = block * BLOCK_CHANNELS
        if is_last(counters + blocks + block * groups + group, tl.minimum(samples - group * GROUP, GROUP) * splits):
            merge_group(
                mean, m2, results, group, first, samples, channels, span, position_count, splits, BLOCK_CHANNELS
            )
            if is_last(counters + block, groups):
                merge_groups(results, norm, running, m2, first, samples, channels, position_count, BLOCK_CHANNELS)
    else:
        if is_last(counters, tl.num_programs(0)):
            for first in range(0, channels, BLOCK_CHANNELS):
                for group in range(0, groups):
                    merge_group(
                        mean, m2, results, row * 0 + group, first, samples, channels, span, position_count, splits,
                        BLOCK_CHANNELS,
                    )  # fmt: skip
                tl.debug_barrier()
                merge_groups(results, norm, running, m2, first, samples, channels, position_count, BLOCK_CHANNELS)


# ---- backward
@triton.jit
def add_group(
    sums, mean, stats, drop, groups_out, group, first, samples, channels, splits, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """A group's part of dbeta = sum d p and of dgamma / rstd = sum d (q + (m - mu) p)."""
    SAMPLES: tl.constexpr = min(max(STEP // BLOCK_CHANNELS, 1), GROUP)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_c = channel < channels
    stride = samples.to(tl.int64) * channels
    mu = tl.load(stats + channel, mask=in_c, other=0)
    dbeta = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    dgamma = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    begin = group * GROUP
    end = tl.minimum(begin + GROUP, samples)
    for n in range(begin, end, SAMPLES):
        sample = n + tl.arange(0, SAMPLES)
        exists = (sample < end)[:, None] & in_c[None, :]
        at = sample.to(tl.int64)[:, None] * channels + channel[None, :]
        p = merged_sum(sums.p, at, stride, exists, splits, 4)
        q = merged_sum(sums.q, at, stride, exists, splits, 4)
        q += tl.where(exists, tl.load(mean + at, mask=exists, other=0) - mu[None, :], 0.0) * p
        if drop is not None:
            d = tl.load(drop + sample, mask=sample < end, other=0).to(tl.float32)
            p *= d[:, None]
            q *= d[:, None]
        dbeta += tl.sum(p, axis=0)
        dgamma += tl.sum(q, axis=0)
    at = group.to(tl.int64) * channels + channel
    groups = tl.cdiv(samples, GROUP)
    tl.store(groups_out + at, dbeta, mask=in_c)
    tl.store(groups_out + groups.to(tl.int64) * channels + at, dgamma, mask=in_c)


@triton.jit
def add_groups(
    results, stats, norm, first, samples, channels, position_count, BATCH_STATS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """dgamma and dbeta of a block of channels, and the coefficients of dx."""
    ROWS: tl.constexpr = max(STEP // BLOCK_CHANNELS, 1)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_c = channel < channels
    dbeta = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    dgamma = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    groups = tl.cdiv(samples, GROUP)
    for g in range(0, groups, ROWS):
        row = g + tl.arange(0, ROWS)
        exists = (row < groups)[:, None] & in_c[None, :]
        at = row.to(tl.int64)[:, None] * channels + channel[None, :]
        dbeta += tl.sum(tl.load(results.groups + at, mask=exists, other=0), axis=0)
        dgamma += tl.sum(tl.load(results.groups + (groups.to(tl.int64) * channels + at), mask=exists, other=0), axis=0)
    rstd = tl.rsqrt(tl.load(stats + channels + channel, mask=in_c, other=1) + norm.eps)
    a, _beta = norm_parameters(rstd, norm, channel, in_c)
    dgamma *= rstd
    tl.store(results.dbn_weight + channel, dgamma, mask=in_c)
    tl.store(results.dbn_bias + channel, dbeta, mask=in_c)
    tl.store(results.k1 + channel, a, mask=in_c)
    constant = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    if BATCH_STATS:
        # Divided by S and by N in two steps, because N * S may not fit in an int32.
        constant -= a * (dbeta / position_count / samples.to(tl.float32))
        tl.store(results.k2 + channel, -a * rstd * dgamma / position_count / samples.to(tl.float32), mask=in_c)
    tl.store(results.k3 + channel, constant, mask=in_c)


@triton.jit
def finish_backward(
    counters, sums, mean, stats, drop, results, norm, row, sample, samples, channels, position_count, splits,
    BATCH_STATS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The end of a program of pass 1 backward, as ``finish_moments``."""
    groups = tl.cdiv(samples, GROUP)
    if BLOCKS:
        blocks = tl.cdiv(channels, BLOCK_CHANNELS)
        block = row // BLOCK_CHANNELS
        group = sample // GROUP
        first = block * BLOCK_CHANNELS
        if is_last(counters + blocks + block * groups + group, tl.minimum(samples - group * GROUP, GROUP) * splits):
            add_group(sums, mean, stats, drop, results.groups, group, first, samples, channels, splits, BLOCK_CHANNELS)
            if is_last(counters + block, groups):
                add_groups(results, stats, norm, first, samples, channels, position_count, BATCH_STATS, BLOCK_CHANNELS)
    else:
        if is_last(counters, tl.num_programs(0)):
            for first in range(0, channels, BLOCK_CHANNELS):
                for group in range(0, groups):
                    add_group(
                        sums, mean, stats, drop, results.groups, row * 0 + group, first, samples, channels, splits,
                        BLOCK_CHANNELS,
                    )  # fmt: skip
                tl.debug_barrier()
                add_groups(results, stats, norm, first, samples, channels, position_count, BATCH_STATS, BLOCK_CHANNELS)
