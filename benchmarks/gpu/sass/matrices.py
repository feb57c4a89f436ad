"""Matrix instructions: ldmatrix and stmatrix through shared memory, and products on tensor cores.

The places of elements are those of the PTX ISA, sections "ldmatrix", "stmatrix" and "Matrix fragments for mma.m16n8k8".
"""

from typing import TYPE_CHECKING

import numpy as np

from .operations import Lanes
from .parse import Instruction

if TYPE_CHECKING:
    from .warp import Warp

__all__ = ["matrix_access", "matrix_product"]

_LANES = np.arange(32)


def _count(i: Instruction) -> int:
    """Matrices of 8x8 elements of 16 bits that an access moves."""
    return 4 if "4" in i.modifiers else 2 if "2" in i.modifiers else 1


def matrix_access(warp: "Warp", i: Instruction, addresses: Lanes) -> None:
    """LDSM and STSM: eight lanes have the addresses of the rows of one matrix.

    Args:
        warp: the warp, whose lanes are all active.
        i: the instruction.
        addresses: of the lanes, in shared memory.
    """
    memory = warp.shared[min(int(addresses[0]) >> 24, len(warp.shared) - 1)].view(np.uint16)
    offsets = (addresses & np.uint64(0xFFFFFF)).astype(np.int64) // 2
    row, column = _LANES // 4, 2 * (_LANES % 4)
    if "MT88" in i.modifiers:
        row, column = column, row
    step = (1, 0) if "MT88" in i.modifiers else (0, 1)
    register = next(o for o in i.operands if o.kind == "register").number
    for k in range(_count(i)):
        at = offsets[8 * k + row] + column
        other = offsets[8 * k + row + step[0]] + column + step[1]
        if i.base == "LDSM":
            found = memory[at].astype(np.uint32) | memory[other].astype(np.uint32) << np.uint32(16)
            warp.registers[register + k] = found
        else:
            value = warp.registers[register + k]
            memory[at] = (value & np.uint32(0xFFFF)).astype(np.uint16)
            memory[other] = (value >> np.uint32(16)).astype(np.uint16)


def matrix_product(warp: "Warp", i: Instruction) -> None:
    """HMMA.1688.F32.TF32: D = A B + C, 16x8 by 8x8, with float32 sums; the low 13 bits of A and B are ignored.

    Raises:
        ValueError: the shape or type is another one.
    """
    if not {"1688", "F32", "TF32"} <= i.modifiers:
        raise ValueError("only products of TF32 with the shape 16x8x8 are known")
    d, a, b, c = (o.number for o in i.operands)

    def values(register: int) -> Lanes:
        if register == 255:
            return np.zeros(32)
        bits = warp.registers[register] & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64)

    group, inside = _LANES // 4, _LANES % 4
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    for k in range(4):
        left[group + 8 * (k % 2), inside + 4 * (k // 2)] = values(a + k if a != 255 else a)
    for k in range(2):
        right[inside + 4 * k, group] = values(b + k if b != 255 else b)
    product = left @ right
    for k in range(4):
        before = 0.0 if c == 255 else warp.registers[c + k].view(np.float32).astype(np.float64)
        found = product[group + 8 * (k // 2), 2 * inside + k % 2] + before
        warp.registers[d + k] = found.astype(np.float32).view(np.uint32)
