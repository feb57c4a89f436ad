"""Pass 2 fused with the per-channel mean of its result, in one read of x and one write of y.

Each split writes its part of the mean; the caller adds the parts up, in a fixed order.
"""

import triton
import triton.language as tl

from .activations import activate
from .tiles import along_channels, along_positions, element_offsets, sizes, sum_positions, tile_place
from .unaligned import of_two_rows, vector_pair, window


@triton.jit(do_not_specialize=["outer", "samples", "splits", "steps"])
def scale_shift_act_mean_kernel(
    x, scale, shift, y, mean_parts, inner, outer, samples, splits, steps, ALIGN: tl.constexpr,
    ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, OUT_ACT: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """y = out_act(scale * x + shift), and mean_parts at [split, sample, channel]: the sum of a split's y before it is
    rounded, divided by S."""
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    sample, first, split = tile_place(tl.program_id(0), channel_count, splits, BLOCK_CHANNELS)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    vector = sample * channel_count + channel
    a = along_channels(tl.load(scale + vector, mask=in_channels, other=0), CHANNELS_LAST)
    b = along_channels(tl.load(shift + vector, mask=in_channels, other=0), CHANNELS_LAST)
    span = steps * BLOCK_POSITIONS
    begin = split * span
    stop = tl.minimum(begin + span, position_count)
    if CHANNELS_LAST:
        lanes = tl.zeros((BLOCK_POSITIONS, BLOCK_CHANNELS), tl.float32)
    else:
        lanes = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    for start in range(begin, stop, BLOCK_POSITIONS):
        position = start + tl.arange(0, BLOCK_POSITIONS)
        valid = along_channels(in_channels, CHANNELS_LAST) & along_positions(position < stop, CHANNELS_LAST)
        offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
        value = tl.load(x + offsets, mask=valid, other=0, eviction_policy="evict_first").to(tl.float32)
        t = activate(a * value + b, OUT_ACT)
        tl.store(y + offsets, t.to(y.dtype.element_ty), mask=valid)
        lanes += tl.where(valid, t, 0.0)  # outside the map x is 0, but t is not
    at = (split * samples + sample).to(tl.int64) * channel_count + channel
    tl.store(mean_parts + at, sum_positions(lanes, CHANNELS_LAST) / position_count, mask=in_channels)


@triton.jit(do_not_specialize=["rows"])
def scale_shift_act_mean_unaligned_kernel(
    x, scale, shift, y, mean_parts, rows, length, VECTOR: tl.constexpr, OUT_ACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """scale_shift_act_mean_kernel for contiguous rows that are not aligned to whole vectors: see unaligned.py."""
    row, p, offsets, touched, owned = window(tl.program_id(0), rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    a_own, a_next = vector_pair(scale, row, rows)
    b_own, b_next = vector_pair(shift, row, rows)
    value = tl.load(x + offsets, mask=touched, other=0, eviction_policy="evict_first").to(tl.float32)
    t = of_two_rows(a_own, a_next, p, length) * value + of_two_rows(b_own, b_next, p, length)
    t = activate(t, OUT_ACT)
    tl.store(y + offsets, t.to(y.dtype.element_ty), mask=owned)
    own = touched & (p >= 0) & (p < length)
    tl.store(mean_parts + row, tl.sum(tl.where(own, t, 0.0), axis=1) / length, mask=row < rows)
