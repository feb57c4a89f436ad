"""Indexing of tiles in a map, the bit mask, and synchronisation between the programs of one launch.

A dense map (N, C, *spatial) consists of ``rows`` of ``length`` contiguous elements: one (n, c) with its S positions in
contiguous order, one (n, s) with its C channels in channels_last. A tile is [rows, columns]. Coefficients and sums
belong to (n, c), so they lie along the tile's rows in contiguous order and along its columns in channels_last. A sum
runs along the *reduced axis*, the S positions; the other one is the *channel axis*:

    contiguous:     channel = n * C + c of 1 sample, or c of N;  tile [channels, positions]
    channels_last:  channel = c of N samples;                    tile [positions, channels]

So ``channel_count``, the length of the channel axis, is C or N * C; an argument ``channels`` is always C. In both
orders, the coefficient of a channel is stored at sample * channel_count + channel.

``inner`` is the length of the contiguous axis divided by ``ALIGN``, a power of two. The product inner * ALIGN tells the
compiler that rows start at multiples of ALIGN elements, which it must know for 16-byte accesses; on its own it only
checks whether an argument is a multiple of 16, and 14 x 14 = 196 is not. ``outer`` is the length of the other axis
divided by ``ALIGN_OUTER``, a factor of C if the axis has N * C channels, because coefficients are loaded along it.
Offsets of rows are 64-bit.

Triton recompiles a kernel if an argument becomes 1 or is no longer a multiple of 16. Arguments that depend on the batch
size (``outer``, ``rows``, ``samples``, ``splits``, the ``steps`` of a split) must not cause that at the end of an
epoch, whose last batch is smaller. They are therefore listed in ``do_not_specialize``; the alignment of accesses
depends on none of them. (Also, a constant 1 has no dtype, so ``samples.to`` would not compile.)
"""

import triton
import triton.language as tl


@triton.jit
def along_channels(vector, CHANNELS_LAST: tl.constexpr):
    """Reshapes a vector over the channel axis so that it broadcasts over a tile."""
    if CHANNELS_LAST:
        return vector[None, :]
    else:
        return vector[:, None]


@triton.jit
def along_positions(vector, CHANNELS_LAST: tl.constexpr):
    """Reshapes a vector over the positions so that it broadcasts over a tile."""
    if CHANNELS_LAST:
        return vector[:, None]
    else:
        return vector[None, :]


@triton.jit
def sum_positions(tile, CHANNELS_LAST: tl.constexpr):
    """Sums a tile over its positions: a vector over the channel axis."""
    if CHANNELS_LAST:
        return tl.sum(tile, axis=0)
    else:
        return tl.sum(tile, axis=1)


@triton.jit
def add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def sum_positions_of_two(one, two, CHANNELS_LAST: tl.constexpr):
    """``sum_positions`` of two tiles, whose threads exchange both sums at the same time."""
    if CHANNELS_LAST:
        return tl.reduce((one, two), 0, add_two)
    else:
        return tl.reduce((one, two), 1, add_two)


@triton.jit
def row_channel(vector, channel, channels, CHANNELS_LAST: tl.constexpr):
    """The channels at the offsets ``vector`` of (N, C), which in channels_last are the positions ``channel`` of the
    channel axis (a remainder would hide that they are neighbours)."""
    if CHANNELS_LAST:
        return channel
    else:
        return vector % channels


@triton.jit
def sizes(inner, outer, ALIGN: tl.constexpr, ALIGN_OUTER: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(channel_count, position_count) from ``inner`` and ``outer``."""
    if CHANNELS_LAST:
        return inner * ALIGN, outer * ALIGN_OUTER
    else:
        return outer * ALIGN_OUTER, inner * ALIGN


@triton.jit
def tile_place(tile, channel_count, splits, BLOCK_CHANNELS: tl.constexpr):
    """(sample, first channel, split) of a pass's tile. Consecutive tiles are neighbours in memory."""
    channel_blocks = tl.cdiv(channel_count, BLOCK_CHANNELS)
    rest = tile // channel_blocks
    return rest // splits, (tile % channel_blocks) * BLOCK_CHANNELS, rest % splits


@triton.jit
def split_count(split, span, position_count):
    """Number of positions of a split: ``span``, the rest for the last split, 0 past it."""
    return tl.maximum(tl.minimum(span, position_count - split * span), 0).to(tl.float32)


@triton.jit
def unrolled(splits):
    """(by_16, by_4), the ends of the unrolled loops over the splits from the second on: [1, by_16) are loaded 16 at a
    time, [by_16, by_4) 4 at a time, and the rest singly."""
    by_16 = 1 + (splits - 1) // 16 * 16
    return by_16, by_16 + (splits - by_16) // 4 * 4


@triton.jit
def element_offsets(sample, channel, position, channel_count, position_count, CHANNELS_LAST: tl.constexpr):
    """Offsets of a tile's elements, 64-bit."""
    if CHANNELS_LAST:
        rows = sample.to(tl.int64) * position_count + position
        return rows[:, None] * channel_count + channel[None, :]
    else:
        rows = sample.to(tl.int64) * channel_count + channel
        return rows[:, None] * position_count + position[None, :]


# ---- chunks
# A kernel that sums over positions regards a tile as [chunk, lanes, channels] in channels_last and as [channels, lanes,
# chunk] in contiguous order. The CHUNK values of a lane and channel are in the registers of one thread: in contiguous
# order they are the vector of one access, in channels_last the same channel of several accesses. So sums over the chunk
# need no shuffle, and a kernel keeps one value per lane and not one per element. Tiles are loaded in two dimensions,
# because versions of Triton spread threads over the outer two of three dimensions in different order.
@triton.jit
def chunk_places(CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr):
    """Positions within a step: [chunk, lanes] in channels_last, [lanes, chunk] in contiguous order."""
    if CHANNELS_LAST:
        return tl.arange(0, CHUNK)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    else:
        return tl.arange(0, LANES)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]


@triton.jit
def by_chunk(tile, CHANNELS_LAST: tl.constexpr, CHUNK: tl.constexpr):
    """A tile in three dimensions; no value changes its thread."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    if CHANNELS_LAST:
        return tl.reshape(tile, (CHUNK, rows // CHUNK, columns))
    else:
        return tl.reshape(tile, (rows, columns // CHUNK, CHUNK))


@triton.jit
def along_chunks(matrix, CHANNELS_LAST: tl.constexpr):
    """Reshapes values at ``chunk_places`` so that they broadcast over a tile with chunks."""
    if CHANNELS_LAST:
        return matrix[:, :, None]
    else:
        return matrix[None, :, :]


# ---- matrices of the excitation: (N, C), (N, R) and weights
@triton.jit
def load_weight(weight, row, column, width, in_row, in_column):
    """[rows, columns] of a weight whose rows have ``width`` elements, in float32; zero outside the weight."""
    exists = in_row[:, None] & in_column[None, :]
    return tl.load(weight + row[:, None] * width + column[None, :], mask=exists, other=0).to(tl.float32)


@triton.jit
def load_fresh(matrix, row, column, width, in_row, in_column):
    """[rows, columns] of a float32 matrix with one row per sample, zero outside the matrix. Other programs of this
    launch wrote the matrix, so the load bypasses L1 (.cg)."""
    exists = in_row[:, None] & in_column[None, :]
    offsets = row.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(matrix + offsets, mask=exists, other=0, cache_modifier=".cg")


# ---- the mask: one bit per element, each row padded to whole bytes, lowest bit first (se_fused/ops/layout.py)
@triton.jit
def mask_offsets(
    sample, first_channel, first_position, channel_count, position_count, CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """(offsets of a tile's mask bytes [rows, columns / 8], whether each of them exists)."""
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
    """[rows, columns] of 0 and 1 -> bytes [rows, columns / 8]. If a thread holds 8 neighbours, it sums only
    registers."""
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


# ---- several phases in one launch
# Programs take tickets in order, and a tile comes after the tiles it depends on. A program therefore waits only for
# programs that already run, so there is no deadlock however few programs are resident. (In the interpreter, where
# programs run one after another, the first one takes every ticket and never waits.) A program waits for a number of
# finished tiles.
@triton.jit
def take(counters):
    """Returns the next tile of this launch. counters: int32, zero before the launch."""
    return tl.atomic_add(counters, 1, sem="relaxed")


@triton.jit
def done(counter):
    """Signals that a tile's results are written. The barrier orders all threads' stores before the count."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, count):
    """Waits until ``count`` tiles are done. Their results can then be read."""
    seen = tl.atomic_add(counter, 0, sem="acquire")
    while seen < count:
        seen = tl.atomic_add(counter, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def clear(counters, COUNTERS: tl.constexpr):
    """Zeroes the counters of the next launch. One program of the preceding launch does it, which saves a launch."""
    if tl.program_id(0) == 0:
        tl.store(counters + tl.arange(0, COUNTERS), tl.zeros((COUNTERS,), tl.int32))
