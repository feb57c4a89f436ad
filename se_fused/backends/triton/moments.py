"""Pass 1: sums per sample and channel, in one read of x (forward) or of dy, x and the mask (backward).

A program sums a span of positions for BLOCK_CHANNELS pairs (n, c). If there are too few programs to keep the device
busy, the positions are split into several spans, and the kernel that reads the sums merges the splits in a fixed order.
There are no atomics on floats, so results are bit-identical in every run.
"""

import triton
import triton.language as tl

from .activations import apply_slope, map_coefficients
from .arguments import Norm
from .batch_statistics import finish_backward, finish_moments
from .tiles import (
    along_channels,
    along_chunks,
    along_positions,
    by_chunk,
    chunk_places,
    clear,
    element_offsets,
    mask_offsets,
    row_channel,
    sizes,
    sum_positions,
    sum_positions_of_two,
    tile_place,
    unpack_bits,
)


@triton.jit
def moments_tile(
    x, mean, m2, sample, first, split, samples, span, channel_count, position_count, CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """mean and, unless it is None, m2 = sum (x - mean)^2 of one tile: at [split, sample, channel] of (splits, N * C).

    A step gives each lane CHUNK values, all in one thread's registers (tiles.py). The lane takes their mean and the sum
    of squares around it, and merges both by Chan's formula: in bfloat16 5 instructions per element, where Welford's
    update of each element takes 8. The lane keeps the sum in place of the mean (a sum propagates infinity). A sum of
    squares around the first element would take one instruction less, but its accuracy would depend on that element.
    Only the last step of a map has positions past its end, so only that one is masked along the positions.
    """
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 2
    LANES: tl.constexpr = BLOCK_POSITIONS // CHUNK
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    begin = split * span
    stop = tl.minimum(begin + span, position_count)
    steps = (stop - begin) // BLOCK_POSITIONS
    place = chunk_places(CHANNELS_LAST, LANES, CHUNK)
    position = begin + tl.arange(0, BLOCK_POSITIONS)
    pointers = x + element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
    stride = tl.full((), BLOCK_POSITIONS, tl.int64)
    if CHANNELS_LAST:
        stride = stride * channel_count
        zero = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
    else:
        zero = tl.zeros((BLOCK_CHANNELS, LANES), tl.float32)
    exists = along_channels(in_channels, CHANNELS_LAST)
    total, squares = zero, zero
    for step in range(0, steps):
        # Channels that do not exist are not written, so their values need no zeros.
        value = by_chunk(tl.load(pointers, mask=exists).to(tl.float32), CHANNELS_LAST, CHUNK)
        part = tl.sum(value, AXIS)
        if m2 is not None:
            before = step * 1.0
            # The chunk's sum times `before` less the sum of the `before` chunks before it.
            away = part * before - total
            squares += away * (1.0 / (CHUNK * tl.maximum(before * (before + 1.0), 1.0))) * away
            if CHUNK > 1:
                value -= tl.expand_dims(part * (1.0 / CHUNK), AXIS)
                squares += tl.sum(value * value, AXIS)
        total += part
        pointers += stride
    counts = tl.full((LANES,), CHUNK, tl.float32) * steps
    if begin + steps * BLOCK_POSITIONS < stop:
        rest = stop - begin - steps * BLOCK_POSITIONS
        valid = along_chunks(place < rest, CHANNELS_LAST)
        inside = exists & along_positions(tl.arange(0, BLOCK_POSITIONS) < rest, CHANNELS_LAST)
        value = by_chunk(tl.load(pointers, mask=inside, other=0).to(tl.float32), CHANNELS_LAST, CHUNK)
        part = tl.sum(value, AXIS)
        if m2 is not None:
            more = tl.sum((place < rest).to(tl.float32), 0 if CHANNELS_LAST else 1)
            centre = part * along_positions(1.0 / tl.maximum(more, 1.0), CHANNELS_LAST)
            away = centre - total * (1.0 / tl.maximum(CHUNK * steps.to(tl.float32), 1.0))
            weight = counts * more / tl.maximum(counts + more, 1.0)
            squares += away * along_positions(weight, CHANNELS_LAST) * away
            value = tl.where(valid, value - tl.expand_dims(centre, AXIS), 0.0)
            squares += tl.sum(value * value, AXIS)
            counts += more
        total += part
    count = (stop - begin).to(tl.float32)
    middle = sum_positions(total, CHANNELS_LAST) / count
    at = (split * samples + sample).to(tl.int64) * channel_count + channel
    if m2 is not None:
        weight = along_positions(counts, CHANNELS_LAST)
        away = total * along_positions(1.0 / tl.maximum(counts, 1.0), CHANNELS_LAST)
        away = tl.where(weight > 0, away - along_channels(middle, CHANNELS_LAST), 0.0)
        # The mean is corrected by the mean of the small differences from it, so that the rounding error scales with the
        # spread and not with the magnitude. If that is NaN, because the sum is infinite, the sum is kept.
        shift, squares = sum_positions_of_two(away * weight, squares + weight * away * away, CHANNELS_LAST)
        exact = middle + shift / count
        squares -= count * (exact - middle) * (exact - middle)
        middle = tl.where(exact == exact, exact, middle)
        tl.store(m2 + at, squares, mask=in_channels)
    tl.store(mean + at, middle, mask=in_channels)


@triton.jit(do_not_specialize=["outer", "samples", "splits", "steps"])
def moments_kernel(
    x, mean, m2, counters, results, norm, running, channels, inner, outer, samples, splits, steps, ALIGN: tl.constexpr,
    ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
    CHUNK: tl.constexpr, COUNTERS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Pass 1 forward, one program per tile. ``counters`` are zeroed for the excitation's launch, unless None. With
    results (BatchStatistics) they are zero and count programs, of which the last compute the statistics
    (batch_statistics.py)."""
    if results.stats is None:
        if counters is not None:
            clear(counters, COUNTERS)
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    sample, first, split = tile_place(tl.program_id(0), channel_count, splits, BLOCK_CHANNELS)
    moments_tile(
        x, mean, m2, sample, first, split, samples, steps * BLOCK_POSITIONS, channel_count, position_count,
        CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS, CHUNK,
    )  # fmt: skip
    if results.stats is not None:
        if CHANNELS_LAST:
            batch = samples
        else:
            batch = channel_count // channels
            sample = first // channels
        finish_moments(
            counters, mean, m2, results, norm, running, first % channels, sample, batch, channels,
            steps * BLOCK_POSITIONS, position_count, splits, BLOCK_CHANNELS, BLOCKS,
        )  # fmt: skip


@triton.jit
def backward_step(
    read, dr, sample, channel, first, start, stop, in_channels, centre, a, b, more, channel_count, position_count,
    CHANNELS_LAST: tl.constexpr, OUT_ACT: tl.constexpr, FROM_SUM: tl.constexpr, PARTIAL: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """(sum of dr, sum of dr * (x - mean)) of each lane's chunk in the step at position ``start``; writes dr unless it
    is None. a, b: of t = a x + b + residual; more: what is added to dy. Each may be None. Only with PARTIAL does the
    step have positions past ``stop``.
    """
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 2
    position = start + tl.arange(0, BLOCK_POSITIONS)
    offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
    exists = along_channels(in_channels, CHANNELS_LAST)
    if PARTIAL:
        exists = exists & along_positions(position < stop, CHANNELS_LAST)
        gradient = tl.load(read.dy + offsets, mask=exists, other=0)
        value = tl.load(read.x + offsets, mask=exists, other=0).to(tl.float32)
    else:  # channels that do not exist are not written, so their values need no zeros
        gradient = tl.load(read.dy + offsets, mask=exists)
        value = tl.load(read.x + offsets, mask=exists).to(tl.float32)
    if read.mask is not None:
        at, has_byte = mask_offsets(
            sample, first, start, channel_count, position_count, CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS
        )
        gradient = tl.where(unpack_bits(tl.load(read.mask + at, mask=has_byte, other=0)), gradient, 0.0)
    if FROM_SUM:
        t = a * value + b
        if read.residual is not None:
            t += tl.load(read.residual + offsets, mask=exists, other=0).to(tl.float32)
        wide = gradient.to(tl.float32)
        if more is not None:  # outside the map dy is 0, but `more` is not
            wide += tl.where(exists, more, 0.0)
        gradient = apply_slope(wide, t, OUT_ACT).to(read.dy.dtype.element_ty)
    if dr is not None:
        tl.store(dr + offsets, gradient, mask=exists)
    wide = gradient.to(tl.float32)
    # Outside the map x is 0 and x - mean is not, but the gradient is 0 there.
    q = by_chunk(wide * (value - centre), CHANNELS_LAST, CHUNK)
    return tl.sum(by_chunk(wide, CHANNELS_LAST, CHUNK), AXIS), tl.sum(q, AXIS)


@triton.jit(do_not_specialize=["outer", "samples", "splits", "steps"])
def moments_backward_kernel(
    read, given, norm, stats, added, dr, sums, counters, results, channels, inner, outer, samples, splits, steps,
    ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, OUT_ACT: tl.constexpr,
    FROM_SUM: tl.constexpr, WHOLE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
    CHUNK: tl.constexpr, COUNTERS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Pass 1 backward: dr = dy * out_act'(t), written unless it is None; p = sum dr and q = sum dr * (x - mean), at
    [split, sample, channel]. read: MomentsBackward.

    The derivative is the mask, unless that is None. With FROM_SUM it is computed from t = scale * x + shift + residual,
    where scale and shift are given or computed from what the forward pass saved, with stats (2, C) as batch norm's
    statistics; dr is then rounded before it is summed, because pass 2 reads the rounded dr. ``added`` (N, C), unless
    None, is added to dy, only with FROM_SUM. With WHOLE a tile has one step.
    ``counters`` are as in ``moments_kernel``, with results (BatchGradients).
    """
    if results.groups is None:
        if counters is not None:
            clear(counters, COUNTERS)
    LANES: tl.constexpr = BLOCK_POSITIONS // CHUNK
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    sample, first, split = tile_place(tl.program_id(0), channel_count, splits, BLOCK_CHANNELS)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    vector = sample * channel_count + channel
    centre = along_channels(tl.load(read.mean + vector, mask=in_channels, other=0), CHANNELS_LAST)
    a = None
    b = None
    if FROM_SUM:
        if stats is not None:
            norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
        of_channel = row_channel(vector, channel, channels, CHANNELS_LAST)
        a, b = map_coefficients(given, norm, vector, of_channel, in_channels, channels, BLOCK_CHANNELS)
        a = along_channels(a, CHANNELS_LAST)
        b = along_channels(b, CHANNELS_LAST)
    more = None
    if added is not None:
        more = along_channels(tl.load(added + vector, mask=in_channels, other=0), CHANNELS_LAST)
    if CHANNELS_LAST:
        p_lanes = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
        q_lanes = tl.zeros((LANES, BLOCK_CHANNELS), tl.float32)
    else:
        p_lanes = tl.zeros((BLOCK_CHANNELS, LANES), tl.float32)
        q_lanes = tl.zeros((BLOCK_CHANNELS, LANES), tl.float32)
    if WHOLE:
        split = 0
        begin = 0
        stop = position_count
    else:
        begin = split * steps * BLOCK_POSITIONS
        stop = tl.minimum(begin + steps * BLOCK_POSITIONS, position_count)
        for start in range(begin, stop - BLOCK_POSITIONS + 1, BLOCK_POSITIONS):
            p, q = backward_step(
                read, dr, sample, channel, first, start, stop, in_channels, centre, a, b, more, channel_count,
                position_count, CHANNELS_LAST, OUT_ACT, FROM_SUM, False, BLOCK_CHANNELS, BLOCK_POSITIONS, CHUNK,
            )  # fmt: skip
            p_lanes += p
            q_lanes += q
        begin += (stop - begin) // BLOCK_POSITIONS * BLOCK_POSITIONS
    if WHOLE or begin < stop:
        p, q = backward_step(
            read, dr, sample, channel, first, begin, stop, in_channels, centre, a, b, more, channel_count,
            position_count, CHANNELS_LAST, OUT_ACT, FROM_SUM, True, BLOCK_CHANNELS, BLOCK_POSITIONS, CHUNK,
        )  # fmt: skip
        p_lanes += p
        q_lanes += q
    at = (split * samples + sample).to(tl.int64) * channel_count + channel
    p, q = sum_positions_of_two(p_lanes, q_lanes, CHANNELS_LAST)
    tl.store(sums.p + at, p, mask=in_channels)
    tl.store(sums.q + at, q, mask=in_channels)
    if results.groups is not None:
        if CHANNELS_LAST:
            batch = samples
        else:
            batch = channel_count // channels
            sample = first // channels
        finish_backward(
            counters, sums, read.mean, stats, given.drop, results, norm, first % channels, sample, batch, channels,
            position_count, splits, results.k2 is not None, BLOCK_CHANNELS, BLOCKS,
        )  # fmt: skip
