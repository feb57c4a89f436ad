"""Inference of the block in three passes over memory: x is read, the residual is read, y is written.

With one launch per step, a map larger than L2 is read twice from memory, which makes four passes. Here one launch
processes the samples in groups, so that pass 2 of a group follows soon after its pass 1 and finds x in L2. Programs
take tickets (tiles.py). The tickets of round k are, in this order,

    hidden(k - 1)   pass 1 (k)   excite(k - 1)   pass 2 (k - 2)

so that a whole pass lies between a tile and the tiles it waits for. A pass of a group has as many tiles as there are
programs, so no program waits long. Two more groups are read between the two passes of a group, so three groups of x
must fit in L2, beside the residual, which is marked evict_first, and y. ``l2_grouped_config`` in launch_configs.py
chooses the group's size. The tile of a sample that finishes last merges the means of all its tiles. The counters decide
which tile that is, but the order of the sum is fixed.

Bytes for bfloat16, N = 128, 256 x 56 x 56: one pass is 205.5 MB, three are 617 MB and four 822 MB, which take 143 and
191 us at the 4.3 TB/s that a copy reaches on an H200. The means of the splits, written and read once through L2, are
1.6 % of a pass. The weights (16 KB in stage 1, 256 KB in stage 3) are read once per group and 16 samples.
"""

import triton
import triton.language as tl

from .excitation import excite_tile, hidden_tile
from .moments import moments_tile
from .scale_shift_act import scale_shift_act_tile
from .tiles import done, sizes, split_count, take, tile_place, wait


@triton.jit
def merge_means(mean_parts, mean, counter, sample, first, samples, channels, span, position_count,
                SPLITS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):  # fmt: skip
    """Counts a finished tile of pass 1. The last of the SPLITS tiles computes mean (N, C) from their parts, in
    order."""
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
        tl.debug_barrier()
        WIDTH: tl.constexpr = triton.next_power_of_2(SPLITS)
        split = tl.arange(0, WIDTH)
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        at = sample.to(tl.int64) * channels + channel
        rows = split.to(tl.int64) * samples * channels
        exists = (split < SPLITS)[:, None] & (channel < channels)[None, :]
        parts = tl.load(mean_parts + rows[:, None] + at[None, :], mask=exists, other=0, cache_modifier=".cg")
        share = split_count(split, span, position_count) / position_count
        tl.store(mean + at, tl.sum(tl.where(exists, parts * share[:, None], 0.0), axis=0), mask=channel < channels)


@triton.jit(do_not_specialize=["samples", "group"])  # a constant 1 has no dtype
def l2_grouped_kernel(
    counters, x, residual, y, norm, layers, drop, mean_parts, results, samples, squeezed, span, group, inner, outer,
    SPLITS: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    OUT_ACT: tl.constexpr, ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inference of the block in one launch, as the module's docstring describes.

    counters: int32, zero before the launch: one for tickets; per group, the finished tiles of pass 1, hidden and
    excite; per sample and block of channels, the finished tiles of pass 1.
    """
    channels, position_count = sizes(inner, outer, ALIGN, ALIGN_OUTER, CHANNELS_LAST)
    groups = tl.cdiv(samples, group)
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    pass_tiles = group * blocks * SPLITS
    by_sample = counters + 1 + 3 * groups
    n_tiles = tl.cdiv(group, BLOCK_N)
    r_tiles = tl.cdiv(squeezed, BLOCK_R)
    c_tiles = tl.cdiv(channels, BLOCK_C)
    hiddens = n_tiles * r_tiles
    excites = n_tiles * c_tiles
    a_round = hiddens + pass_tiles + excites + pass_tiles
    total = (groups + 2) * a_round
    ticket = take(counters)
    while ticket < total:
        turn = ticket // a_round
        tile = ticket % a_round
        if tile < hiddens:
            turn -= 1
            if (turn >= 0) & (turn < groups):
                first_n = turn * group
                wait(counters + 1 + 3 * turn, pass_tiles)
                hidden_tile(
                    first_n + tile // r_tiles * BLOCK_N, tl.minimum(first_n + group, samples), tile % r_tiles * BLOCK_R,
                    norm, layers, results, channels, squeezed, BLOCK_N, BLOCK_R, BLOCK_K, PRECISION,
                )  # fmt: skip
                done(counters + 2 + 3 * turn)
        elif tile < hiddens + pass_tiles:
            if turn < groups:
                sample, first, split = tile_place(tile - hiddens, channels, SPLITS, BLOCK_CHANNELS)
                sample += turn * group
                if sample < samples:
                    moments_tile(
                        x, mean_parts, None, sample, first, split, samples, span, channels, position_count,
                        CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS, CHUNK,
                    )  # fmt: skip
                    if SPLITS > 1:
                        merge_means(
                            mean_parts, results.mean, by_sample + sample * blocks + first // BLOCK_CHANNELS, sample,
                            first, samples, channels, span, position_count, SPLITS, BLOCK_CHANNELS,
                        )  # fmt: skip
                done(counters + 1 + 3 * turn)
        elif tile < hiddens + pass_tiles + excites:
            tile -= hiddens + pass_tiles
            turn -= 1
            if (turn >= 0) & (turn < groups):
                first_n = turn * group
                wait(counters + 2 + 3 * turn, hiddens)
                excite_tile(
                    first_n + tile // c_tiles * BLOCK_N, tl.minimum(first_n + group, samples), tile % c_tiles * BLOCK_C,
                    norm, None, layers, drop, results, channels, squeezed, ACT, GATE, BLOCK_N, BLOCK_C, BLOCK_Q,
                    PRECISION,
                )  # fmt: skip
                done(counters + 3 + 3 * turn)
        else:
            turn -= 2
            if turn >= 0:
                sample, first, split = tile_place(
                    tile - hiddens - pass_tiles - excites, channels, SPLITS, BLOCK_CHANNELS
                )
                sample += turn * group
                if sample < samples:
                    wait(counters + 3 + 3 * turn, excites)
                    channel = first + tl.arange(0, BLOCK_CHANNELS)
                    at = sample * channels + channel
                    a = tl.load(results.scale + at, mask=channel < channels, other=0, cache_modifier=".cg")
                    b = tl.load(results.shift + at, mask=channel < channels, other=0, cache_modifier=".cg")
                    begin = split * span
                    scale_shift_act_tile(
                        x, residual, y, None, a, b, sample, first, begin, tl.minimum(begin + span, position_count),
                        channels, position_count, CHANNELS_LAST, OUT_ACT, BLOCK_CHANNELS, BLOCK_POSITIONS,
                    )  # fmt: skip
        ticket = take(counters)
