"""The passes for contiguous rows that are not aligned to 16 bytes: 7 x 7 and 14 x 14 maps in 16 bits, maps of an odd
number of positions in any dtype.

Row r has its S elements at r * S, which is in general not a multiple of VECTOR, the elements in 16 bytes. A tile's row
is a window of whole vectors, from the vector of the row's first element to that of its last. Position p of the row is
at p + off in the window, surrounded by elements of the previous and the next row. Sums read the window and count only
the row's positions. Results are stored in whole vectors. A row stores the vectors that *start* in it, so each vector is
stored once. Elements of the next row at the end of its last vector are computed with the next row's coefficients
(S >= VECTOR, so at most one next row). Only the mask needs all positions of a row, including those in a vector that the
previous row stores.

The whole window is one step. N * C * S is a multiple of VECTOR, so the last vector ends where the map ends.
"""

import triton
import triton.language as tl

from .activations import activate, apply_slope, map_coefficients
from .arguments import Norm
from .batch_statistics import finish_backward, finish_moments
from .tiles import chunk_places, clear, pack_bits, sum_positions_of_two


@triton.jit
def window(tile, rows, length, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr):
    """(row [BLOCK_ROWS], position p, element offsets, whether the element is in a vector that overlaps the row, whether
    that vector starts in the row)."""
    row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start = row.to(tl.int64) * length
    base = start // VECTOR * VECTOR
    off = (start - base).to(tl.int32)
    lane = tl.arange(0, WINDOW)
    vector = (lane // VECTOR * VECTOR)[None, :]
    touched = (row < rows)[:, None] & (vector < (off + length)[:, None])
    owned = touched & (vector >= off[:, None])
    return row, lane[None, :] - off[:, None], base[:, None] + lane[None, :], touched, owned


@triton.jit
def chunked_window(
    tile, rows, length, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """``window`` for sums over the rows, as [chunk, rows, lanes]: a thread has CHUNK vectors of one row, so that sums
    need fewer exchanges between threads. Also returns whether an element is the row's own, which takes one comparison,
    because a negative number is large as an unsigned one."""
    row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start = row.to(tl.int64) * length
    base = start // VECTOR * VECTOR
    off = (start - base).to(tl.int32)
    lane = chunk_places(True, WINDOW // CHUNK, CHUNK)[:, None, :]
    vector = lane // VECTOR * VECTOR
    touched = (row < rows)[None, :, None] & (vector < (off + length)[None, :, None])
    owned = touched & (vector >= off[None, :, None])
    p = lane - off[None, :, None]
    own = p.to(tl.uint32) < tl.where(row < rows, length, 0).to(tl.uint32)[None, :, None]
    return row, p, base[None, :, None] + lane, touched, owned, own


@triton.jit
def of_two_rows(own, following, p, length):
    """A row's coefficient for positions before S, and the next row's from S on."""
    return tl.where(p >= length, following[:, None], own[:, None])


@triton.jit
def vector_pair(pointer, row, rows, channels=1, PER_CHANNEL: tl.constexpr = False):
    """The values of a (rows,) vector for each row and for the row after it; with PER_CHANNEL, of a (C,) vector for
    their channels."""
    own = row
    following = row + 1
    if PER_CHANNEL:
        own = row % channels
        following = (row + 1) % channels
    return tl.load(pointer + own, mask=row < rows, other=0), tl.load(pointer + following, mask=row + 1 < rows, other=0)


@triton.jit
def mask_bits(mask, row, p, length, touched):
    """The mask's bits at a window's positions, in this row and the next. One byte is loaded per bit, mostly from L1."""
    following = p >= length
    rows = row.to(tl.int64)[:, None] + tl.where(following, 1, 0)
    p = tl.where(following, p - length, p)
    at = rows * ((length + 7) // 8) + p // 8
    packed = tl.load(mask + at, mask=touched & (p >= 0), other=0)
    return ((packed.to(tl.int32) >> (p & 7)) & 1) != 0


@triton.jit
def window_bits(mask, row, rows, length, VECTOR: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """``mask_bits`` of a window with chunks, by vectors: two bytes of the row and the first of the next row have the
    bits of a vector. In 16 bits that is a quarter of the loads and shifts of single elements."""
    VECTORS: tl.constexpr = WINDOW // CHUNK // VECTOR
    start = row.to(tl.int64) * length
    off = (start % VECTOR).to(tl.int32)
    vector = tl.arange(0, CHUNK)[:, None] * VECTORS + tl.arange(0, VECTORS)[None, :]
    p = (vector * VECTOR)[:, None, :] - off[None, :, None]  # of the vector's first element
    exists = (row < rows)[None, :, None] & (p < length)
    width = (length + 7) // 8
    byte = p >> 3  # rounded down, -1 before the row
    at = (row.to(tl.int64) * width)[None, :, None] + byte
    packed = tl.load(mask + at, mask=exists & (byte >= 0), other=0).to(tl.int32)
    packed |= tl.load(mask + (at + 1), mask=exists & (byte + 1 < width), other=0).to(tl.int32) << 8
    packed = packed >> (p & 7)
    following = tl.load(mask + (row.to(tl.int64) + 1) * width, mask=row + 1 < rows, other=0).to(tl.int32)
    left = tl.minimum(tl.maximum(length - p, 0), 8)  # elements of this row
    packed = (packed & ((1 << left) - 1)) | (following[None, :, None] << left)
    bits = (packed[:, :, :, None] >> tl.arange(0, VECTOR)[None, None, None, :]) & 1
    return tl.reshape(bits, (CHUNK, row.shape[0], WINDOW // CHUNK)) != 0


@triton.jit
def row_bytes(eights, off, length, WINDOW: tl.constexpr):
    """The mask's bytes of rows, from the bits of their windows in bytes ``eights`` [rows, WINDOW / 8]. The bits of a
    byte are the end of one eight and the start of the next, which another thread has. Bits past the row are 0."""
    byte = tl.arange(0, WINDOW // 8)[None, :]
    packed = eights.to(tl.int32)
    # The last eight has no next one; a row's own bits end before that.
    following = tl.gather(packed, tl.minimum(byte + 1, WINDOW // 8 - 1) + tl.zeros_like(packed), 1)
    left = tl.minimum(tl.maximum(length - 8 * byte, 0), 8)
    return (((packed | (following << 8)) >> off[:, None]) & ((1 << left) - 1)).to(tl.uint8)


@triton.jit(do_not_specialize=["rows"])
def moments_unaligned_kernel(
    x, mean, m2, counters, results, norm, running, channels, rows, length, VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, COUNTERS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """moments_kernel for unaligned rows: mean and, unless it is None, m2 (N, C). The row is in registers, so mean and
    m2 are computed one after the other."""
    if results.stats is None:
        if counters is not None:
            clear(counters, COUNTERS)
    row, _p, offsets, touched, _owned, own = chunked_window(
        tl.program_id(0), rows, length, VECTOR, BLOCK_ROWS, WINDOW, CHUNK
    )
    value = tl.where(own, tl.load(x + offsets, mask=touched).to(tl.float32), 0.0)
    centre = tl.sum(tl.sum(value, 0), 1) / length
    if m2 is not None:
        # One multiply-add with 0 or 1 in place of a second comparison and selection per element.
        away = value - tl.where(own, 1.0, 0.0) * centre[None, :, None]
        # The mean is corrected by the mean of the small differences from it, so that the rounding error scales with the
        # spread and not with the magnitude. If that is NaN, because the sum is infinite, the sum is kept.
        shift, squares = sum_positions_of_two(tl.sum(away, 0), tl.sum(away * away, 0), False)
        shift /= length
        exact = centre + shift
        tl.store(m2 + row, squares - length * shift * shift, mask=row < rows)
        centre = tl.where(exact == exact, exact, centre)
    tl.store(mean + row, centre, mask=row < rows)
    if results.stats is not None:
        first = tl.program_id(0) * BLOCK_ROWS
        finish_moments(
            counters, mean, m2, results, norm, running, first % channels, first // channels, rows // channels, channels,
            length, length, 1, BLOCK_ROWS, BLOCKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def scale_shift_act_unaligned_kernel(
    x, residual, y, mask, given, norm, stats, channels, rows, length, VECTOR: tl.constexpr, OUT_ACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """scale_shift_act_kernel for unaligned rows. y may be x if there is no mask, because then a program reads only the
    vectors that it stores."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row, p, offsets, touched, owned = window(tile, rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    if stats is not None:
        norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
    a_own, b_own = map_coefficients(given, norm, row, row % channels, row < rows, channels, BLOCK_ROWS)
    a_next, b_next = map_coefficients(given, norm, row + 1, (row + 1) % channels, row + 1 < rows, channels, BLOCK_ROWS)
    if mask is not None:
        needed = touched
    else:
        needed = owned
    t = tl.load(x + offsets, mask=needed, other=0, eviction_policy="evict_first").to(tl.float32)
    t = of_two_rows(a_own, a_next, p, length) * t + of_two_rows(b_own, b_next, p, length)
    if residual is not None:
        t += tl.load(residual + offsets, mask=needed, other=0, eviction_policy="evict_first").to(tl.float32)
    if mask is not None:
        packed = row_bytes(pack_bits((t <= 0) == 0), (row.to(tl.int64) * length % VECTOR).to(tl.int32), length, WINDOW)
        width = (length + 7) // 8
        byte = tl.arange(0, WINDOW // 8)
        at = row.to(tl.int64)[:, None] * width + byte[None, :]
        tl.store(mask + at, packed, mask=(row < rows)[:, None] & (byte < width)[None, :])
    t = activate(t, OUT_ACT)
    tl.store(y + offsets, t.to(y.dtype.element_ty), mask=owned)


@triton.jit(do_not_specialize=["rows"])
def moments_backward_unaligned_kernel(
    read, given, norm, stats, added, dr, sums, counters, results, channels, rows, length, VECTOR: tl.constexpr,
    OUT_ACT: tl.constexpr, FROM_SUM: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, COUNTERS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """moments_backward_kernel for unaligned rows: dr unless it is None, P and Q (N, C)."""
    if results.groups is None:
        if counters is not None:
            clear(counters, COUNTERS)
    row, p, offsets, touched, owned, own = chunked_window(
        tl.program_id(0), rows, length, VECTOR, BLOCK_ROWS, WINDOW, CHUNK
    )
    gradient = tl.load(read.dy + offsets, mask=touched, other=0)
    value = tl.load(read.x + offsets, mask=touched, other=0).to(tl.float32)
    if read.mask is not None:
        gradient = tl.where(window_bits(read.mask, row, rows, length, VECTOR, WINDOW, CHUNK), gradient, 0.0)
    if FROM_SUM:
        if stats is not None:
            norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
        a_own, b_own = map_coefficients(given, norm, row, row % channels, row < rows, channels, BLOCK_ROWS)
        a_next, b_next = map_coefficients(
            given, norm, row + 1, (row + 1) % channels, row + 1 < rows, channels, BLOCK_ROWS
        )
        following = p >= length
        t = tl.where(following, a_next[None, :, None], a_own[None, :, None]) * value
        t += tl.where(following, b_next[None, :, None], b_own[None, :, None])
        if read.residual is not None:
            t += tl.load(read.residual + offsets, mask=touched, other=0).to(tl.float32)
        wide = gradient.to(tl.float32)
        if added is not None:
            own_added, next_added = vector_pair(added, row, rows)
            wide += tl.where(following, next_added[None, :, None], own_added[None, :, None])
        gradient = apply_slope(wide, t, OUT_ACT).to(read.dy.dtype.element_ty)
    if dr is not None:
        tl.store(dr + offsets, gradient, mask=owned)
    centre = tl.load(read.mean + row, mask=row < rows, other=0)
    wide = tl.where(own, gradient.to(tl.float32), 0.0)
    # Outside the row x is the neighbour's, which may be infinite.
    away = tl.where(own, value - centre[None, :, None], 0.0)
    p_sum, q_sum = sum_positions_of_two(tl.sum(wide, 0), tl.sum(wide * away, 0), False)
    tl.store(sums.p + row, p_sum, mask=row < rows)
    tl.store(sums.q + row, q_sum, mask=row < rows)
    if results.groups is not None:
        first = tl.program_id(0) * BLOCK_ROWS
        finish_backward(
            counters, sums, read.mean, stats, given.drop, results, norm, first % channels, first // channels,
            rows // channels, channels, length, 1, results.k2 is not None, BLOCK_ROWS, BLOCKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def scale_shift_act_backward_unaligned_kernel(
    dr, x, mask, mean, to_dx, drop, dx, channels, rows, length, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    WINDOW: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """scale_shift_act_backward_kernel for unaligned rows."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row, p, offsets, _touched, owned = window(tile, rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    g = tl.load(dr + offsets, mask=owned, other=0, eviction_policy="evict_first").to(tl.float32)
    if mask is not None:
        g = tl.where(mask_bits(mask, row, p, length, owned), g, 0.0)
    own, following = vector_pair(to_dx.k1, row, rows, channels, PER_CHANNEL)
    if drop is not None:
        own *= tl.load(drop + row // channels, mask=row < rows, other=0).to(tl.float32)
        following *= tl.load(drop + (row + 1) // channels, mask=row + 1 < rows, other=0).to(tl.float32)
    g *= of_two_rows(own, following, p, length)
    own, following = vector_pair(to_dx.k3, row, rows, channels, PER_CHANNEL)
    g += of_two_rows(own, following, p, length)
    if x is not None:
        value = tl.load(x + offsets, mask=owned, other=0, eviction_policy="evict_first").to(tl.float32)
        own, following = vector_pair(mean, row, rows, channels, PER_CHANNEL)
        value -= of_two_rows(own, following, p, length)
        own, following = vector_pair(to_dx.k2, row, rows, channels, PER_CHANNEL)
        g += of_two_rows(own, following, p, length) * value
    tl.store(dx + offsets, g.to(dx.dtype.element_ty), mask=owned)
