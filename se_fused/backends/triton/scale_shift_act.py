"""Pass 2: y from x and the residual by one multiply-add per element and the activation; dx in the backward pass.

Pass 1 has just read x from front to back, so L2 holds its end. Programs here therefore start from the end.
"""

import triton
import triton.language as tl

from .activations import activate, map_coefficients
from .arguments import Norm
from .tiles import (
    along_channels,
    along_positions,
    element_offsets,
    mask_offsets,
    pack_bits,
    row_channel,
    sizes,
    tile_place,
    unpack_bits,
)


@triton.jit
def scale_shift_act_tile(
    x, residual, y, mask, a, b, sample, first, begin, stop, channel_count, position_count, CHANNELS_LAST: tl.constexpr,
    OUT_ACT: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """y = out_act(a * x + b + residual) for the positions [begin, stop); y may be x. a, b: along the channel axis.

    x and the residual are not read again, so they are marked evict_first: they must not evict data that pass 2 has yet
    to read.
    """
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    a = along_channels(a, CHANNELS_LAST)
    b = along_channels(b, CHANNELS_LAST)
    for start in range(begin, stop, BLOCK_POSITIONS):
        position = start + tl.arange(0, BLOCK_POSITIONS)
        valid = along_channels(in_channels, CHANNELS_LAST) & along_positions(position < stop, CHANNELS_LAST)
        offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
        t = tl.load(x + offsets, mask=valid, other=0, eviction_policy="evict_first").to(tl.float32)
        t = a * t + b
        if residual is not None:
            t += tl.load(residual + offsets, mask=valid, other=0, eviction_policy="evict_first").to(tl.float32)
        if mask is not None:
            at, exists = mask_offsets(
                sample, first, start, channel_count, position_count, CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS
            )
            tl.store(mask + at, pack_bits(valid & ((t <= 0) == 0)), mask=exists)
        t = activate(t, OUT_ACT)
        tl.store(y + offsets, t.to(y.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["outer"])
def scale_shift_act_kernel(
    x, residual, y, mask, given, norm, stats, channels, inner, outer, splits, span, ALIGN: tl.constexpr,
    ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, OUT_ACT: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Pass 2 forward, one program per tile, the last tile first.

    given: Coefficients. Without scale and shift these are computed from batch norm's running statistics, so that batch
    norm and activation are one launch in inference, or from stats (2, C).
    """
    if stats is not None:
        norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, first, split = tile_place(tile, channel_count, splits, BLOCK_CHANNELS)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    vector = sample * channel_count + channel
    a, b = map_coefficients(
        given, norm, vector, row_channel(vector, channel, channels, CHANNELS_LAST), channel < channel_count, channels,
        BLOCK_CHANNELS,
    )  # fmt: skip
    begin = split * span
    stop = tl.minimum(begin + span, position_count)
    scale_shift_act_tile(
        x, residual, y, mask, a, b, sample, first, begin, stop, channel_count, position_count, CHANNELS_LAST, OUT_ACT,
        BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["outer"])
def scale_shift_act_backward_kernel(
    dr, x, mask, mean, to_dx, drop, dx, channels, inner, outer, splits, span, ALIGN: tl.constexpr,
    ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """Pass 2 backward, the last tile first: dx = k1 * dr + k2 * (x - mean) + k3 by DxCoefficients. Without x the second
    term is left out. A mask that is not None is applied to dr first. With PER_CHANNEL the coefficients and the mean are
    those of channels, and k1 is multiplied by drop (N,) unless that is None."""
    channel_count, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    sample, first, split = tile_place(tile, channel_count, splits, BLOCK_CHANNELS)
    channel = first + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < channel_count
    vector = sample * channel_count + channel
    by_dr = 1.0
    if drop is not None:
        by_dr = tl.load(drop + vector // channels, mask=in_channels, other=0).to(tl.float32)
    if PER_CHANNEL:
        vector = row_channel(vector, channel, channels, CHANNELS_LAST)
    by_dr = along_channels(by_dr * tl.load(to_dx.k1 + vector, mask=in_channels, other=0), CHANNELS_LAST)
    constant = along_channels(tl.load(to_dx.k3 + vector, mask=in_channels, other=0), CHANNELS_LAST)
    if x is not None:
        by_x = along_channels(tl.load(to_dx.k2 + vector, mask=in_channels, other=0), CHANNELS_LAST)
        centre = along_channels(tl.load(mean + vector, mask=in_channels, other=0), CHANNELS_LAST)
    begin = split * span
    stop = tl.minimum(begin + span, position_count)
    for start in range(begin, stop, BLOCK_POSITIONS):
        position = start + tl.arange(0, BLOCK_POSITIONS)
        valid = along_channels(in_channels, CHANNELS_LAST) & along_positions(position < stop, CHANNELS_LAST)
        offsets = element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST)
        g = tl.load(dr + offsets, mask=valid, other=0, eviction_policy="evict_first").to(tl.float32)
        if mask is not None:
            at, exists = mask_offsets(
                sample, first, start, channel_count, position_count, CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS
            )
            g = tl.where(unpack_bits(tl.load(mask + at, mask=exists, other=0)), g, 0.0)
        g = by_dr * g + constant
        if x is not None:
            value = tl.load(x + offsets, mask=valid, other=0, eviction_policy="evict_first").to(tl.float32)
            g += by_x * (value - centre)
        tl.store(dx + offsets, g.to(dx.dtype.element_ty), mask=valid)
