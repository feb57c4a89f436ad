"""How kernels see a map, and how programs of one launch wait for each other.

A dense map (N, C, *spatial) is ``rows`` of ``length`` contiguous elements: (n, c) with its S positions in contiguous
order, (n, s) with its C channels in channels_last. A tile is [rows, columns]; coefficients and sums belong to (n, c),
so they lie along the tile's rows in the one order and along its columns in the other. A sum runs along the *reduced
axis*, the S positions; the other one is the *channel axis*:

    contiguous:     channel = n * C + c of 1 sample, or c of N;  tile [channels, positions]
    channels_last:  channel = c of N samples;                    tile [positions, channels]

So ``channel_count``, the length of the channel axis, is C or N * C; an argument ``channels`` is always C. Whatever the
order, the coefficient of a channel lies at sample * channel_count + channel.

``inner`` is the length of the contiguous axis divided by ``ALIGN``, a power of two: the product tells the compiler that
rows start at multiples of ALIGN elements, which it must know for 16-byte accesses (it looks by itself only at whether
an argument is a multiple of 16, and 14 x 14 is none). ``outer`` is the other axis divided by ``ALIGN_OUTER``, a factor
of C where it is N * C long: coefficients are loaded along it. Offsets of rows are 64-bit.

Triton compiles a kernel again where an argument becomes 1 or ceases to be a multiple of 16. What follows from the
batch's size (``outer``, ``rows``, ``samples``, ``splits``, the ``steps`` of a split) must not do that in the middle of
an epoch, whose last batch is a part of one: ``do_not_specialize`` says so, and nothing that accesses are aligned by
is among it. (Besides, a constant 1 has no dtype: ``samples.to`` would not compile.)
"""

import triton
import triton.language as tl


@triton.jit
def along_channels(vector, CHANNELS_LAST: tl.constexpr):
    """A vector over the channel axis, to be broadcast over a tile."""
    if CHANNELS_LAST:
        return vector[None, :]
    else:
        return vector[:, None]


@triton.jit
def along_positions(vector, CHANNELS_LAST: tl.constexpr):
    """A vector over the positions, to be broadcast over a tile."""
    if CHANNELS_LAST:
        return vector[:, None]
    else:
        return vector[None, :]


@triton.jit
def sum_positions(tile, CHANNELS_LAST: tl.constexpr):
    """Tile -> vector over the channel axis."""
    if CHANNELS_LAST:
        return tl.sum(tile, axis=0)
    else:
        return tl.sum(tile, axis=1)


@triton.jit
def sizes(inner, outer, ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(channel_count, position_count) from the contiguous axis' and the other one's length."""
    if CHANNELS_LAST:
        return inner * ALIGN, outer * ALIGN_OUTER
    else:
        return outer * ALIGN_OUTER, inner * ALIGN


@triton.jit
def tile_place(tile, channel_count, splits, BLOCK_CHANNELS: tl.constexpr):
    """(sample, first channel, split) of a pass's tile: neighbours in memory are neighbours in time."""
    channel_blocks = tl.cdiv(channel_count, BLOCK_CHANNELS)
    rest = tile // channel_blocks
    return rest // splits, (tile % channel_blocks) * BLOCK_CHANNELS, rest % splits


@triton.jit
def split_count(split, span, position_count):
    """Positions of a split: ``span``, the last one's rest, none beyond it."""
    return tl.maximum(tl.minimum(span, position_count - split * span), 0).to(tl.float32)


@triton.jit
def unrolled(splits):
    """Where the splits from the second on are no longer taken sixteen, and no longer four at a time."""
    by_16 = 1 + (splits - 1) // 16 * 16
    return by_16, by_16 + (splits - by_16) // 4 * 4


@triton.jit
def element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST: tl.constexpr):
    """Offsets of a tile's elements."""
    if CHANNELS_LAST:
        rows = sample.to(tl.int64) * position_count + position
        return rows[:, None] * channel_count + channel[None, :]
    else:
        rows = sample.to(tl.int64) * channel_count + channel
        return rows[:, None] * position_count + position[None, :]


# ---- matrices of the excitation: (N, C), (N, R) and weights
@triton.jit
def load_weight(weight, row, column, width, in_row, in_column):
    """[rows, columns] of a weight whose rows have ``width`` elements, in float32; zero outside of it."""
    exists = in_row[:, None] & in_column[None, :]
    return tl.load(weight + row[:, None] * width + column[None, :], mask=exists, other=0).to(tl.float32)


@triton.jit
def load_fresh(matrix, row, column, width, in_row, in_column):
    """The same of a float32 matrix with a row per sample. Other programs of the launch wrote it: read past L1 (.cg)."""
    exists = in_row[:, None] & in_column[None, :]
    offsets = row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(matrix + offsets, mask=exists, other=0, cache_modifier=".cg")


# ---- the mask: one bit per element, each row padded to whole bytes, lowest bit first (se_fused/ops/layout.py)
@triton.jit
def mask_offsets(
    sample, first_channel, first_position, channel_count, position_count, CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """(offsets of a tile's mask bytes [rows, columns / 8], which of them exist)."""
    if CHANNELS_LAST:
        position = first_position + tl.arange(0, BLOCK_POSITIONS)
        row = sample.to(tl.int64) * position_count + position
        byte = first_channel // 8 + tl.arange(0, BLOCK_CHANNELS // 8)
        width = (channel_count + 7) // 8
        return row[:, None] * width + byte[None, :], (position < position_count)[:, None] & (byte < width)[None, :]
    else:
        channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
        row = sample.to(tl.int64) * channel_count + channel
        byte = first_position // 8 + tl.arange(0, BLOCK_POSITIONS // 8)
        width = (position_count + 7) // 8
        return row[:, None] * width + byte[None, :], (channel < channel_count)[:, None] & (byte < width)[None, :]


@triton.jit
def pack_bits(bits):
    """[rows, columns] of 0 and 1 -> bytes [rows, columns / 8]. A thread that holds 8 neighbours sums registers."""
    rows: tl.constexpr = bits.shape[0]
    columns: tl.constexpr = bits.shape[1]
    eights = tl.reshape(bits.to(tl.int32), (rows, columns // 8, 8))
    return tl.sum(eights << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)


@triton.jit
def unpack_bits(packed):
    """Bytes [rows, columns / 8] -> [rows, columns] of booleans."""
    rows: tl.constexpr = packed.shape[0]
    columns: tl.constexpr = packed.shape[1] * 8
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (rows, columns)) != 0


# ---- one launch, several phases
# Programs take tickets, in order. A tile that depends on others comes after them, so whoever waits waits for programs
# that run already: no deadlock, however few programs the device holds at once. (In the interpreter, where programs run
# one after another, the first one takes every ticket and never waits.) What is waited for is a count of finished tiles.
@triton.jit
def take(counters):
    """The next tile of this launch. counters: int32, zero at first."""
    return tl.atomic_add(counters, 1, sem="relaxed")


@triton.jit
def done(counter):
    """Say that a tile's results are written: all threads' stores first, then the count."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, count):
    """Wait until ``count`` tiles are done; what they wrote can then be read."""
    seen = tl.atomic_add(counter, 0, sem="acquire")
    while seen < count:
        seen = tl.atomic_add(counter, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def clear(counters, COUNTERS: tl.constexpr):
    """Zero the counters of the next launch: by one program of the launch before it, instead of a launch of its own."""
    if tl.program_id(0) == 0:
        tl.store(counters + tl.arange(0, COUNTERS), tl.zeros((COUNTERS,), tl.int32))
