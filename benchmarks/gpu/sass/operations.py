"""What the instructions of sm_90 compute, for the 32 lanes of a warp at once.

NVIDIA documents PTX but not its machine code. These meanings are derived from the names in the CUDA Binary Utilities
manual, from the PTX instructions that compile to them, and from the code of divisions, whose results are known. The
tests compare executed kernels with what the C++ source computes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COMPARISONS", "OPERATIONS", "Lanes"]

Lanes = NDArray[Any]
"""32 values: uint32 for registers, bool for predicates."""

_HIGH = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def _wide(x: Lanes) -> Lanes:
    return x.astype(np.uint64)


def _signed(x: Lanes) -> Lanes:
    return x.view(np.int32)


def _float(x: Lanes) -> Lanes:
    return x.view(np.float32)


def _bits(x: Lanes) -> Lanes:
    return x.astype(np.float32).view(np.uint32)


def pair(low: Lanes, high: Lanes) -> Lanes:
    """64-bit values from two registers."""
    return _wide(low) | (_wide(high) << _HIGH)


COMPARISONS: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip


def compare_floats(name: str, a: Lanes, b: Lanes) -> Lanes:
    """Comparisons of floats; those whose name ends with U are also true if an operand is NaN."""
    unordered = np.isnan(a) | np.isnan(b)
    if name == "NUM":
        return np.asarray(~unordered)
    if name == "NAN":
        return np.asarray(unordered)
    if name.endswith("U") and name != "NEU":
        return np.asarray(COMPARISONS[name[:-1]](a, b) | unordered)
    if name == "NEU":
        return np.asarray((a != b) | unordered)
    return np.asarray(COMPARISONS[name](a, b) & ~unordered)


def combine(modifiers: frozenset[str], found: Lanes, given: Lanes) -> Lanes:
    """A comparison's result, combined with the predicate operand."""
    if "OR" in modifiers:
        return np.asarray(found | given)
    if "XOR" in modifiers:
        return np.asarray(found ^ given)
    return np.asarray(found & given)


def add3(a: Lanes, b: Lanes, c: Lanes, carry: Lanes) -> tuple[Lanes, Lanes]:
    """(sum, carry out): the carry is 0 to 2, because negative operands are given as complements."""
    total = _wide(a) + _wide(b) + _wide(c) + carry.astype(np.uint64)
    return (total & _LOW).astype(np.uint32), (total >> _HIGH).astype(np.uint32)


def multiply_add(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """Low 32 bits of a b + c."""
    return np.asarray(a * b + c)


def multiply_wide(a: Lanes, b: Lanes, c: Lanes, signed: bool) -> Lanes:
    """64 bits of a b + c, with a 64-bit c."""
    if signed:
        return np.asarray((_signed(a).astype(np.int64) * _signed(b).astype(np.int64)).view(np.uint64) + c)
    return np.asarray(_wide(a) * _wide(b) + c)


def logic(a: Lanes, b: Lanes, c: Lanes, table: int) -> Lanes:
    """The function of three bits that an eight-bit table gives."""
    result = np.zeros_like(a)
    ones = a.dtype.type(True) if a.dtype == np.bool_ else np.uint32(0xFFFFFFFF)
    for row in range(8):
        if table >> row & 1:
            x, y, z = (v if row & bit else v ^ ones for v, bit in ((a, 4), (b, 2), (c, 1)))
            result |= x & y & z
    return result


def shift_left(low: Lanes, high: Lanes, by: Lanes, upper: bool) -> Lanes:
    """A funnel shift to the left of (high, low); `upper` returns its high half."""
    amount = np.minimum(by, 64 if upper else 32).astype(np.uint64)
    if not upper:
        return ((_wide(low) << amount) & _LOW).astype(np.uint32)
    both = pair(low, high)
    return np.where(amount >= 64, 0, (both << np.minimum(amount, np.uint64(63))) >> _HIGH).astype(np.uint32)


def shift_right(low: Lanes, high: Lanes, by: Lanes, upper: bool, signed: bool) -> Lanes:
    """A funnel shift to the right of (high, low); `upper` shifts the high half alone."""
    if upper:
        amount = np.minimum(by, 31 if signed else 32)
        if signed:
            return (_signed(high) >> amount.astype(np.int32)).view(np.uint32)
        return (_wide(high) >> amount.astype(np.uint64)).astype(np.uint32)
    both = pair(low, high)
    amount = np.minimum(by, 63)
    if signed:
        return ((both.view(np.int64) >> amount.astype(np.int64)).view(np.uint64) & _LOW).astype(np.uint32)
    return ((both >> amount.astype(np.uint64)) & _LOW).astype(np.uint32)


def permute(a: Lanes, select: Lanes, b: Lanes) -> Lanes:
    """Bytes of (b, a) by the nibbles of a selector; a nibble's high bit repeats the byte's sign."""
    both = pair(a, b)
    result = np.zeros_like(a)
    for i in range(4):
        nibble = (select >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64))) & np.uint64(255)).astype(np.uint32)
        byte = np.where(nibble & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * i)
    return result


def _rounded(x: Lanes, up: bool) -> Lanes:
    """float64 or integer values as float32 bits, rounded to nearest or up."""
    near = x.astype(np.float64).astype(np.float32)
    if up:
        near = np.where(near.astype(np.float64) < x.astype(np.float64), np.nextafter(near, np.float32(np.inf)), near)
    return _bits(near)


def to_float(modifiers: frozenset[str], x: Lanes) -> Lanes:
    """Integers, 32 or 64 bits, as floats."""
    signed = not modifiers & {"U32", "U64"}
    return _rounded(x.view(np.int64 if x.dtype == np.uint64 else np.int32) if signed else x, "RP" in modifiers)


def to_integer(modifiers: frozenset[str], x: Lanes) -> Lanes:
    """Floats as unsigned or signed integers, truncated and limited to the range; 64 bits if U64 or S64 is given."""
    value = np.nan_to_num(np.trunc(_float(x).astype(np.float64)), nan=0.0, posinf=2.0**64, neginf=-(2.0**64))
    if modifiers & {"U64", "S64"}:
        return np.asarray([min(max(int(v), 0), 2**64 - 1) for v in value], dtype=np.uint64)
    if "U32" in modifiers:
        return np.clip(value, 0, 2**32 - 1).astype(np.uint32)
    return np.clip(value, -(2**31), 2**31 - 1).astype(np.int32).view(np.uint32)


_SPECIAL: dict[str, Callable[[Lanes], Lanes]] = {
    "RCP": lambda v: 1 / v, "RSQ": lambda v: 1 / np.sqrt(v), "EX2": np.exp2, "LG2": np.log2, "SQRT": np.sqrt,
    "TANH": np.tanh,
}  # fmt: skip


def transcendental(which: str, x: Lanes) -> Lanes:
    """The special function unit, to float32's precision."""
    v = _float(x).astype(np.float64)
    with np.errstate(all="ignore"):
        found = _SPECIAL[which](v)
        return _bits(found)


def pack(kind: str, high: Lanes, low: Lanes) -> Lanes:
    """Two floats as bfloat16 or half values, rounded to nearest even."""

    def one(x: Lanes) -> Lanes:
        if kind == "F16":
            with np.errstate(all="ignore"):
                return _float(x).astype(np.float16).view(np.uint16).astype(np.uint32)
        rounded = (x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(_float(x)), np.uint32(0x7FFF), rounded).astype(np.uint32)

    return np.asarray(one(low) | (one(high) << np.uint32(16)))


def extend(x: Lanes, bits: Lanes, signed: bool) -> Lanes:
    """The low bits of x, with zeros or copies of their sign above them."""
    left = np.uint32(32) - np.clip(bits, 1, 32).astype(np.uint32)
    if signed:
        return ((x << left).view(np.int32) >> left.astype(np.int32)).view(np.uint32)
    return np.asarray((x << left) >> left)


def _minimum(smallest: Lanes, a: Lanes, b: Lanes, modifiers: frozenset[str]) -> Lanes:
    if "U32" in modifiers:
        return np.where(smallest, np.minimum(a, b), np.maximum(a, b)).astype(np.uint32)
    x, y = _signed(a), _signed(b)
    found = np.where(smallest, np.minimum(x, y), np.maximum(x, y))
    return (np.maximum(found, 0) if "RELU" in modifiers else found).astype(np.int32).view(np.uint32)


def _fmnmx(m: frozenset[str], a: Lanes, b: Lanes, p: Lanes) -> Lanes:
    low, high = (np.minimum, np.maximum) if "NAN" in m else (np.fmin, np.fmax)
    return _bits(np.where(p, low(_float(a), _float(b)), high(_float(a), _float(b))))


def _fused(m: frozenset[str], a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """A product and sum with one rounding, to within float64's range; the direction of rounding is not followed."""
    found = _float(a).astype(np.float64) * _float(b).astype(np.float64) + _float(c).astype(np.float64)
    return _bits(np.clip(found, 0, 1) if "SAT" in m else found)


def _saturated(m: frozenset[str], x: Lanes) -> Lanes:
    return _bits(np.clip(x, 0, 1) if "SAT" in m else x)


Operation = Callable[..., Lanes]
OPERATIONS: dict[str, Operation] = {
    # name: function(modifiers, operands...) -> 32 bits per lane
    "MOV": lambda m, a: a,
    "VIADD": lambda m, a, b: a + b,
    "IABS": lambda m, a: np.abs(_signed(a)).view(np.uint32),
    "SEL": lambda m, a, b, p: np.where(p, a, b),
    "FSEL": lambda m, a, b, p: np.where(p, a, b),
    "PRMT": lambda m, a, s, b: permute(a, s, b),
    "FADD": lambda m, a, b: _saturated(m, _float(a) + _float(b)),
    "FMUL": lambda m, a, b: _saturated(m, _float(a) * _float(b)),
    "FFMA": _fused,
    "FMNMX": _fmnmx,
    "MUFU": lambda m, a: transcendental(next(iter(m)), a),
    "I2FP": to_float,
    "F2FP": lambda m, a, b: pack("BF16" if "BF16" in m else "F16", *(
        (np.where(_float(x) < 0, np.uint32(0), x) for x in (a, b)) if "RELU" in m else (a, b))),
    "F2F": lambda m, a: pack("BF16" if "BF16" in m else "F16", np.zeros_like(a), a),
    "VIMNMX": lambda m, a, b, p: _minimum(p, a, b, m),
    "VIADDMNMX": lambda m, a, b, c, p: _minimum(p, a + b, c, m),
    "IMNMX": lambda m, a, b, p: _minimum(p, a, b, m),
    "POPC": lambda m, a: np.bitwise_count(a).astype(np.uint32),
    "FLO": lambda m, a: np.where(
        a == 0, np.uint32(0xFFFFFFFF), np.log2(np.maximum(a, 1).astype(np.float64)).astype(np.uint32)),
    "SGXT": lambda m, a, n: extend(a, n, "U32" not in m),
    "BMSK": lambda m, a, n: (((np.uint64(1) << np.minimum(n, 32).astype(np.uint64)) - np.uint64(1))
                             << np.minimum(a, 32).astype(np.uint64)).astype(np.uint32),
    "BREV": lambda m, a: np.asarray([int(f"{int(v):032b}"[::-1], 2) for v in a], dtype=np.uint32),
}  # fmt: skip
"""Instructions whose result is one register, a function of their operands alone."""
