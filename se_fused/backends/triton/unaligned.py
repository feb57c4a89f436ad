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
from .tiles import clear


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
def of_two_rows(own, following, p, length):
    """A row's coefficient for positions before S, and the next row's from S on."""
    return tl.where(p >= length, following[:, None], own[:, None])


@triton.jit
def vector_pair(pointer, row, rows):
    """The values of a (rows,) vector for each row and for the row after it."""
    return tl.load(pointer + row, mask=row < rows, other=0), tl.load(pointer + row + 1, mask=row + 1 < rows, other=0)


@triton.jit
def mask_bits(mask, row, p, length, touched):
    """The mask's bits at a window's positions, in this row and the next. One byte is loaded per bit, mostly from L1."""
    following = p >= length
    rows = row.to(tl.int64)[:, None] + tl.where(following, 1, 0)
    p = tl.where(following, p - length, p)
    at = rows * ((length + 7) // 8) + p // 8
    packed = tl.load(mask + at, mask=touched & (p >= 0), other=0)
    return ((packed.to(tl.int32) >> (p & 7)) & 1) != 0


@triton.jit(do_not_specialize=["rows"])
def moments_unaligned_kernel(
    x, mean, m2, counters, rows, length, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
    COUNTERS: tl.constexpr,
):  # fmt: skip
    """moments_kernel for unaligned rows: mean and, unless it is None, m2 (N, C). The row is in registers, so mean and
    m2 are computed one after the other."""
    if counters is not None:
        clear(counters, COUNTERS)
    row, p, offsets, touched, _owned = window(tl.program_id(0), rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    valid = touched & (p >= 0) & (p < length)
    value = tl.where(valid, tl.load(x + offsets, mask=touched, other=0).to(tl.float32), 0.0)
    centre = tl.sum(value, axis=1) / length
    if m2 is not None:
        # The mean is corrected by the mean of the small differences from it, so that the rounding error scales with the
        # spread and not with the magnitude. If that is NaN, because the sum is infinite, the sum is kept.
        exact = centre + tl.sum(tl.where(valid, value - centre[:, None], 0.0), axis=1) / length
        centre = tl.where(exact == exact, exact, centre)
        away = tl.where(valid, value - centre[:, None], 0.0)
        tl.store(m2 + row, tl.sum(away * away, axis=1), mask=row < rows)
    tl.store(mean + row, centre, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def scale_shift_act_unaligned_kernel(
    x, residual, y, mask, given, norm, channels, rows, length, VECTOR: tl.constexpr, OUT_ACT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """scale_shift_act_kernel for unaligned rows. y may be x if there is no mask, because then a program reads only the
    vectors that it stores.

    Bits of the mask are summed into WORDS words of 64 bits: position p is bit p, wherever the row starts.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row, p, offsets, touched, owned = window(tile, rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    a_own, b_own = map_coefficients(given, norm, row, row < rows, channels, BLOCK_ROWS)
    a_next, b_next = map_coefficients(given, norm, row + 1, row + 1 < rows, channels, BLOCK_ROWS)
    if mask is not None:
        needed = touched
    else:
        needed = owned
    t = tl.load(x + offsets, mask=needed, other=0, eviction_policy="evict_first").to(tl.float32)
    t = of_two_rows(a_own, a_next, p, length) * t + of_two_rows(b_own, b_next, p, length)
    if residual is not None:
        t += tl.load(residual + offsets, mask=needed, other=0, eviction_policy="evict_first").to(tl.float32)
    if mask is not None:
        alive = (touched & (p >= 0) & (p < length) & ((t <= 0) == 0)).to(tl.int64)
        width = (length + 7) // 8
        byte = tl.arange(0, 8)
        for word in tl.static_range(WORDS):
            here = (p >= 64 * word) & (p < 64 * word + 64)
            bits = tl.sum(tl.where(here, alive << (p & 63).to(tl.int64), 0), axis=1)
            at = row.to(tl.int64)[:, None] * width + (8 * word + byte)[None, :]
            exists = (row < rows)[:, None] & (8 * word + byte < width)[None, :]
            tl.store(mask + at, ((bits[:, None] >> (8 * byte)[None, :].to(tl.int64)) & 255).to(tl.uint8), mask=exists)
    t = activate(t, OUT_ACT)
    tl.store(y + offsets, t.to(y.dtype.element_ty), mask=owned)


@triton.jit(do_not_specialize=["rows"])
def moments_backward_unaligned_kernel(
    read, given, norm, stats, added, dr, sums, counters, channels, rows, length, VECTOR: tl.constexpr,
    OUT_ACT: tl.constexpr, FROM_SUM: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
    COUNTERS: tl.constexpr,
):  # fmt: skip
    """moments_backward_kernel for unaligned rows: dr unless it is None, P and Q (N, C)."""
    if counters is not None:
        clear(counters, COUNTERS)
    row, p, offsets, touched, owned = window(tl.program_id(0), rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    gradient = tl.load(read.dy + offsets, mask=touched, other=0)
    value = tl.load(read.x + offsets, mask=touched, other=0).to(tl.float32)
    if read.mask is not None:
        gradient = tl.where(mask_bits(read.mask, row, p, length, touched), gradient, 0.0)
    if FROM_SUM:
        if stats is not None:
            norm = Norm(stats, stats + channels, norm.weight, norm.bias, norm.eps)
        a_own, b_own = map_coefficients(given, norm, row, row < rows, channels, BLOCK_ROWS)
        a_next, b_next = map_coefficients(given, norm, row + 1, row + 1 < rows, channels, BLOCK_ROWS)
        t = of_two_rows(a_own, a_next, p, length) * value + of_two_rows(b_own, b_next, p, length)
        if read.residual is not None:
            t += tl.load(read.residual + offsets, mask=touched, other=0).to(tl.float32)
        wide = gradient.to(tl.float32)
        if added is not None:
            own_added, next_added = vector_pair(added, row, rows)
            wide += of_two_rows(own_added, next_added, p, length)
        gradient = apply_slope(wide, t, OUT_ACT).to(read.dy.dtype.element_ty)
    if dr is not None:
        tl.store(dr + offsets, gradient, mask=owned)
    centre = tl.load(read.mean + row, mask=row < rows, other=0)
    own = touched & (p >= 0) & (p < length)
    wide = tl.where(own, gradient.to(tl.float32), 0.0)
    tl.store(sums.p + row, tl.sum(wide, axis=1), mask=row < rows)
    tl.store(sums.q + row, tl.sum(tl.where(own, wide * (value - centre[:, None]), 0.0), axis=1), mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def scale_shift_act_backward_unaligned_kernel(
    dr, x, mask, mean, to_dx, dx, rows, length, VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """scale_shift_act_backward_kernel for unaligned rows."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row, p, offsets, _touched, owned = window(tile, rows, length, VECTOR, BLOCK_ROWS, WINDOW)
    g = tl.load(dr + offsets, mask=owned, other=0, eviction_policy="evict_first").to(tl.float32)
    if mask is not None:
        g = tl.where(mask_bits(mask, row, p, length, owned), g, 0.0)
    own, following = vector_pair(to_dx.k1, row, rows)
    g *= of_two_rows(own, following, p, length)
    own, following = vector_pair(to_dx.k3, row, rows)
    g += of_two_rows(own, following, p, length)
    if x is not None:
        value = tl.load(x + offsets, mask=owned, other=0, eviction_policy="evict_first").to(tl.float32)
        own, following = vector_pair(mean, row, rows)
        value -= of_two_rows(own, following, p, length)
        own, following = vector_pair(to_dx.k2, row, rows)
        g += of_two_rows(own, following, p, length) * value
    tl.store(dx + offsets, g.to(dx.dtype.element_ty), mask=owned)
