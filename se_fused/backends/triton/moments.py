"""Pass 1: sums per sample and channel, in one read of x (forward) or of dy, x and the mask (backward).

A program sums a span of positions for BLOCK_CHANNELS pairs (n, c). If there are too few programs to keep the device
busy, the positions are split into several spans, and the kernel that reads the sums merges the splits in a fixed order.
There are no atomics on floats, so results are bit-identical in every run.
"""

import triton
import triton.language as tl

from .activations import apply_slope, map_coefficients
from .arguments import Norm
from .tiles import (
    along_channels,
    along_positions,
    clear,
    element_offsets,
    mask_offsets,
    sizes,
    sum_positions,
    tile_place,
    unpack_bits,
)


@triton.jit
def moments_tile(
    x, mean, m2, sample, first, split, samples, span, channel_count, position_count, CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """mean and, unless it is None, m2 = sum (x - mean)^2 of one tile: at [split, sample, channel] of (splits, N * C).

    Each lane runs Welford's update over its positions, with the running sum in place of the running mean (one array
    less, and a sum propagates infinity). The lanes are merged by Chan's formula. A sum of squares around the first
    element would take one multiply-add less, but its accuracy would depend on that element. The kernel is limited by
    memory either way: it uses 7 of the about 15 instructions per element that fit.
    """
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    begin = split * span
    stop = tl.minimum(begin + span, position_count)
    lane = tl.arange(0, BLOCK_POSITIONS)
    if CHANNELS_LAST:
        zero = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    else:
        zero = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    total, squares = zero, zero
    step = 0
    for start in range(begin, stop, BLOCK_POSITIONS):
        position = start + lane
        mask = along_channels(in_channels, CHANNELS_LAST) & along_positions(position < stop, CHANNELS_LAST)
        offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
        value = tl.load(x + offsets, mask=mask, other=0).to(tl.float32)
        if m2 is not None:
            before = value - total * (1.0 / tl.maximum(step, 1))
            step += 1
        total += value
        if m2 is not None:
            squares += tl.where(mask, before * (value - total * (1.0 / step)), 0.0)
    count = (stop - begin).to(tl.float32)
    centre = sum_positions(total, CHANNELS_LAST) / count
    at = (split * samples + sample).to(tl.int64) * channel_count + channel
    if m2 is not None:
        counts = tl.maximum(stop - begin - lane + BLOCK_POSITIONS - 1, 0) // BLOCK_POSITIONS
        counts = along_positions(counts, CHANNELS_LAST).to(tl.float32)
        away = tl.where(counts > 0, total / tl.maximum(counts, 1.0) - along_channels(centre, CHANNELS_LAST), 0.0)
        # The mean is corrected by the mean of the small differences from it, so that the rounding error scales with the
        # spread and not with the magnitude. If that is NaN, because the sum is infinite, the sum is kept.
        exact = centre + sum_positions(away * counts, CHANNELS_LAST) / count
        squares = sum_positions(squares + counts * away * away, CHANNELS_LAST)
        squares -= count * (exact - centre) * (exact - centre)
        centre = tl.where(exact == exact, exact, centre)
        tl.store(m2 + at, squares, mask=in_channels)
    tl.store(mean + at, centre, mask=in_channels)


@triton.jit(do_not_specialize=["outer", "samples", "splits", "steps"])
def moments_kernel(
    x, mean, m2, counters, inner, outer, samples, splits, steps, ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    """Pass 1 forward, one program per tile. Zeroes ``counters`` for the excitation's launch, unless it is None."""
    if counters is not None:
        clear(counters, COUNTERS)
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    sample, first, split = tile_place(tl.program_id(0), channel_count, splits, BLOCK_CHANNELS)
    moments_tile(
        x, mean, m2, sample, first, split, samples, steps * BLOCK_POSITIONS, channel_count, position_count,
        CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["outer", "samples", "splits", "steps"])
def moments_backward_kernel(
    read, given, norm, stats, added, dr, sums, counters, channels, inner, outer, samples, splits, steps,
    ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, OUT_ACT: tl.constexpr,
    FROM_SUM: tl.constexpr, WHOLE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
    COUNTERS: tl.constexpr,
):  # fmt: skip
    """Pass 1 backward: dr = dy * out_act'(t), written unless it is None; p = sum dr and q = sum dr * (x - mean), at
    [split, sample, channel]. read: MomentsBackward.

    The derivative is the mask, unless that is None. With FROM_SUM it is computed from t = scale * x + shift + residual,
    where scale and shift are given or computed from what the forward pass saved, with stats (2, C) as batch norm's
    statistics; dr is then rounded before it is summed, because pass 2 reads the rounded dr. ``added`` (N, C), unless
    None, is added to dy, only with FROM_SUM.
    """
    if counters is not None:
        clear(counters, COUNTERS)
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    sample, first, split = tile_place(tl.program_id(0), channel_count, splits, BLOCK_CHANNELS)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    vector = sample * channel_count + channel
    centre = along_channels(tl.load(read.mean + vector, mask=in_channels, other=0), CHANNELS_LAST)
    if FROM_SUM:
        if stats is not None:
            norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
        a, b = map_coefficients(given, norm, vector, in_channels, channels, BLOCK_CHANNELS)
        a = along_channels(a, CHANNELS_LAST)
        b = along_channels(b, CHANNELS_LAST)
    if added is not None:
        more = along_channels(tl.load(added + vector, mask=in_channels, other=0), CHANNELS_LAST)
    if WHOLE:  # a single step: without a loop it needs half of the registers if accesses are narrow
        split = 0
        begin = 0
        stop = tl.minimum(BLOCK_POSITIONS, position_count)
    else:
        begin = split * steps * BLOCK_POSITIONS
        stop = tl.minimum(begin + steps * BLOCK_POSITIONS, position_count)
    if CHANNELS_LAST:
        p_lanes = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
        q_lanes = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    else:
        p_lanes = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
        q_lanes = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    for start in range(begin, stop, BLOCK_POSITIONS):
        position = start + tl.arange(0, BLOCK_POSITIONS)
        valid = along_channels(in_channels, CHANNELS_LAST) & along_positions(position < stop, CHANNELS_LAST)
        offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
        gradient = tl.load(read.dy + offsets, mask=valid, other=0)
        value = tl.load(read.x + offsets, mask=valid, other=0).to(tl.float32)
        if read.mask is not None:
            at, exists = mask_offsets(
                sample, first, start, channel_count, position_count, CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS
            )
            gradient = tl.where(unpack_bits(tl.load(read.mask + at, mask=exists, other=0)), gradient, 0.0)
        if FROM_SUM:
            t = a * value + b
            if read.residual is not None:
                t += tl.load(read.residual + offsets, mask=valid, other=0).to(tl.float32)
            wide = gradient.to(tl.float32)
            if added is not None:  # outside the map dy is 0, but `added` is not
                wide += tl.where(valid, more, 0.0)
            gradient = apply_slope(wide, t, OUT_ACT).to(read.dy.dtype.element_ty)
        if dr is not None:
            tl.store(dr + offsets, gradient, mask=valid)
        wide = gradient.to(tl.float32)
        p_lanes += wide
        # Outside the map x is 0 and x - mean is not, but the gradient is 0 there.
        q_lanes += wide * (value - centre)
    at = (split * samples + sample).to(tl.int64) * channel_count + channel
    tl.store(sums.p + at, sum_positions(p_lanes, CHANNELS_LAST), mask=in_channels)
    tl.store(sums.q + at, sum_positions(q_lanes, CHANNELS_LAST), mask=in_channels)
