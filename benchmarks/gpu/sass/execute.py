"""Executes one instruction for the lanes of a warp that have it next."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import operations as op
from .flow import flow, mask_of, resume
from .matrices import matrix_product
from .mbarrier import bulk_copy, push, synchronize
from .memory import ACCESSES, SHARED_WINDOW, access, bytes_of
from .operations import COMPARISONS, OPERATIONS, Lanes, combine, compare_floats
from .parse import Instruction, Operand, is_predicate

if TYPE_CHECKING:
    from .warp import Warp

__all__ = ["execute", "unit_of"]

_FLOATS = {"FADD", "FMUL", "FFMA", "FMNMX", "MUFU", "F2FP", "F2F", "FSEL"}
_WITHOUT_EFFECT = {
    "NOP", "YIELD", "BAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "DEPBAR", "FENCE", "ENDCOLLECTIVE", "ACQBULK",
    "PREEXIT", "UBLKPF", "NANOSLEEP", "WARPSYNC", "UCGABAR_ARV", "UCGABAR_WAIT",
}  # fmt: skip


def _split_predicates(operands: Sequence[Operand]) -> tuple[list[Operand], list[Operand]]:
    """(leading predicates, the rest)."""
    leading = list(itertools.takewhile(is_predicate, operands))
    return leading, list(operands[len(leading) :])


def _with_carries(i: Instruction) -> tuple[Operand, list[Operand], list[Operand]]:
    """(result, predicates that get the carry, the rest) of the operands."""
    carries, rest = _split_predicates(i.operands[1:])
    return i.operands[0], carries, rest


def _compare(warp: "Warp", i: Instruction, active: Lanes) -> None:
    floats = i.base == "FSETP"
    first, second, a, b, given, *extended = i.operands
    name = next(m for m in i.name.split(".")[1:] if m in COMPARISONS or m.endswith("U") or m in ("NUM", "NAN"))
    if floats:
        x, y = (warp.floating(o).view(np.float32) for o in (a, b))
        found = compare_floats(name, x, y)
    else:
        x, y = warp.value(a), warp.value(b)
        if "U32" not in i.modifiers:
            x, y = x.view(np.int32), y.view(np.int32)
        if "EX" in i.modifiers:
            low = warp.predicate(extended[0])
            if name == "EQ":
                found = (x == y) & low
            elif name == "NE":
                found = (x != y) | low
            else:
                found = COMPARISONS[name[:1] + "T"](x, y) | ((x == y) & low)
        else:
            found = COMPARISONS[name](x, y)
    with_given = warp.predicate(given)
    warp.put_predicate(first, combine(i.modifiers, found, with_given), active)
    warp.put_predicate(second, combine(i.modifiers, ~found, with_given), active)


def _sums(warp: "Warp", i: Instruction, active: Lanes) -> None:
    """IADD3, and IADD3.64 of uniform registers."""
    result, carries, rest = _with_carries(i)
    if "64" in i.modifiers:
        total = sum((warp.wide(o) for o in rest[:3]), np.zeros(32, dtype=np.uint64))
        warp.put_wide(result, np.asarray(total), active)
        return
    carry = np.zeros(32, dtype=np.uint32)
    if "X" in i.modifiers:
        for o in rest[3:]:
            carry = carry + warp.predicate(o).astype(np.uint32)
    terms = []
    for o in rest[:3]:
        if o.negative:  # a complement and one, so that the carry is that of a subtraction
            terms.append(~warp.plain(o))
            carry = carry + np.uint32(1)
        else:
            terms.append(warp.value(o))
    total, out = op.add3(*terms, carry)
    for k, o in enumerate(carries):
        warp.put_predicate(o, out > k, active)
    warp.put(result, total, active)


def _products(warp: "Warp", i: Instruction, active: Lanes) -> None:
    result, carries, rest = _with_carries(i)
    a, b, c, *carry = rest
    if i.modifiers & {"WIDE", "HI"}:
        third = warp.wide(c)
        value = op.multiply_wide(warp.value(a), warp.value(b), third, "U32" not in i.modifiers)
        for o in carries:
            warp.put_predicate(o, value < third, active)
        if "WIDE" in i.modifiers:
            warp.put_wide(result, value, active)
        else:
            warp.put(result, (value >> np.uint64(32)).astype(np.uint32), active)
    else:
        value = op.multiply_add(warp.value(a), warp.value(b), warp.value(c))
        if "X" in i.modifiers:
            for o in carry:
                value = value + warp.predicate(o).astype(np.uint32)
        warp.put(result, value, active)


def _shifted_sum(warp: "Warp", i: Instruction, active: Lanes) -> None:
    """LEA: (a << shift) + b, or of its high part."""
    result, carries, rest = _with_carries(i)
    a, b = rest[0], rest[1]
    shift = next(o.number for o in reversed(rest) if o.kind == "number")
    x = warp.value(a)
    carry = np.zeros(32, dtype=np.uint32)
    if "HI" in i.modifiers:
        if "SX32" in i.modifiers:
            high = (x.view(np.int32) >> np.int32(31)).view(np.uint32)
        else:
            high = warp.value(rest[2])
        x = ((op.pair(x, high) << np.uint64(shift)) >> np.uint64(32)).astype(np.uint32)
        if "X" in i.modifiers and is_predicate(rest[-1]):
            carry = warp.predicate(rest[-1]).astype(np.uint32)
    else:
        x = ((x.astype(np.uint64) << np.uint64(shift)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    second = warp.plain(b)
    if b.negative:
        second, carry = ~second, carry + np.uint32(1)
    elif b.inverted:
        second = ~second
    total, out = op.add3(x, second, np.zeros(32, dtype=np.uint32), carry)
    for o in carries:
        warp.put_predicate(o, out > 0, active)
    warp.put(result, total, active)


def _shift(warp: "Warp", i: Instruction, active: Lanes) -> None:
    result, low, by, high = i.operands
    m, upper = i.modifiers, "HI" in i.modifiers
    a, s, b = warp.value(low), warp.value(by), warp.value(high)
    if "W" in m:
        s = s & np.uint32(63 if m & {"U64", "S64"} else 31)
    if "L" in m:
        value = op.shift_left(a, b, s, upper)
    else:
        value = op.shift_right(a, b, s, upper, bool(m & {"S32", "S64"}))
    warp.put(result, value, active)


def _special(warp: "Warp", name: str) -> Lanes:
    lanes = np.arange(32, dtype=np.uint32)
    if name == "SR_TID.X":
        return lanes + np.uint32(warp.place.thread)
    if name == "SR_LANEID":
        return lanes
    if name == "SR_LTMASK":
        return (np.uint32(1) << lanes) - np.uint32(1)
    one = {"SR_CTAID.X": warp.place.block, "SR_CgaCtaId": warp.place.rank, "SR_TID.Y": 0, "SR_TID.Z": 0,
           "SR_CTAID.Y": 0, "SR_CTAID.Z": 0, "SR_CgaSize": 0, "SR_CLOCKLO": int(warp.clock), "SR_SWINHI": SHARED_WINDOW,
           "SR_CgaCtaid.X": warp.place.rank}  # fmt: skip
    if name not in one:
        raise ValueError(f"special register {name}")
    return np.full(32, one[name], dtype=np.uint32)


def _predicates_as_bits(warp: "Warp", i: Instruction, active: Lanes) -> None:
    if i.base == "P2R":
        result, _, kept, mask = i.operands
        bits = sum((warp.predicates[k].astype(np.uint32) << np.uint32(k) for k in range(7)), np.zeros(32, np.uint32))
        chosen = warp.plain(mask)
        warp.put(result, np.asarray((warp.value(kept) & ~chosen) | (bits & chosen)), active)
        return
    _, source, mask = i.operands
    shift = np.uint32({".B1": 8, ".B2": 16, ".B3": 24}.get(source.text, 0))
    bits, chosen = warp.plain(source) >> shift, int(warp.plain(mask)[0])
    for k in range(7):
        if chosen >> k & 1:
            warp.put_predicate(Operand("predicate", k), ((bits >> np.uint32(k)) & np.uint32(1)).astype(bool), active)


def _halves(warp: "Warp", i: Instruction, active: Lanes) -> None:
    """HFMA2 with two numbers is a constant; HADD2.F32 turns a half into a float."""
    result = i.operands[0]
    if i.base == "HADD2":
        source = i.operands[-1]
        bits = warp.plain(source) >> np.uint32(16 if source.text == ".H1_H1" else 0)
        value = bits.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
        warp.put(result, value ^ np.uint32(0x80000000) if source.negative else value, active)
        return
    high, low = (np.float16(float(o.text)).view(np.uint16) for o in i.operands[-2:])
    warp.put(result, np.full(32, int(high) << 16 | int(low), dtype=np.uint32), active)


def _other(warp: "Warp", i: Instruction, active: Lanes, latency: Mapping[str, float]) -> bool:
    """Instructions with an own form; returns whether the instruction is one of them."""
    base = i.base
    if base in ("S2R", "S2UR", "CS2R"):
        if base == "CS2R":
            warp.put_wide(i.operands[0], np.zeros(32, dtype=np.uint64), active)
        else:
            warp.put(i.operands[0], _special(warp, i.operands[1].text), active)
    elif base in ("USGXT", "UFLO", "UBMSK", "UPOPC", "UBREV"):
        result, *sources = i.operands
        warp.put(result, OPERATIONS[base[1:]](i.modifiers, *(warp.value(o) for o in sources)), active)
    elif base in ("R2UR", "UMOV", "USEL", "UPRMT"):
        leading, rest = _split_predicates(i.operands)
        result, *sources = rest
        if base == "USEL":
            value = np.where(warp.predicate(sources[2]), warp.value(sources[0]), warp.value(sources[1]))
        elif base == "UPRMT":
            value = op.permute(*(warp.value(o) for o in sources))
        else:
            value = warp.value(sources[0])
        warp.put(result, value, active)
        if leading:  # R2UR: which lanes have another value than the chosen one
            others = value != warp.plain(result)
            before = warp.predicate(leading[0]) if "OR" in i.modifiers else np.zeros(32, dtype=bool)
            warp.put_predicate(leading[0], others | before, active)
    elif base in ("LDC", "ULDC"):
        result, source = i.operands
        if i.modifiers & {"64"}:
            warp.put_wide(result, warp.wide(source), active)
        else:
            value = warp.plain(source)
            size = bytes_of(i.modifiers)
            warp.put(result, value & np.uint32({1: 0xFF, 2: 0xFFFF}.get(size, 0xFFFFFFFF)), active)
    elif base in ("LOP3", "ULOP3"):
        leading, rest = _split_predicates(i.operands)
        result, a, b, c, table, *_ = rest
        value = op.logic(*(warp.value(o) for o in (a, b, c)), table.number)
        if leading:
            warp.put_predicate(leading[0], value != 0, active)
        warp.put(result, value, active)
    elif base in ("PLOP3", "UPLOP3"):
        first, second, a, b, c, table, other = i.operands
        given = [warp.predicate(o) for o in (a, b, c)]
        warp.put_predicate(first, op.logic(*given, table.number), active)
        warp.put_predicate(second, op.logic(*given, other.number), active)
    elif base in ("P2R", "R2P"):
        _predicates_as_bits(warp, i, active)
    elif base in ("HFMA2", "HADD2"):
        _halves(warp, i, active)
    elif base in ("I2F", "F2I"):
        result, source = i.operands
        wide = bool(i.modifiers & {"U64", "S64"})
        if base == "I2F":
            warp.put(result, op.to_float(i.modifiers, warp.wide(source) if wide else warp.plain(source)), active)
        elif wide:
            warp.put_wide(result, op.to_integer(i.modifiers, warp.floating(source)), active)
        else:
            warp.put(result, op.to_integer(i.modifiers, warp.floating(source)), active)
    elif base == "FCHK":  # whether a division needs its slow path: not for the numbers that occur here
        warp.put_predicate(i.operands[0], np.zeros(32, dtype=bool), active)
    elif base == "FSET":
        result, a, b, given = i.operands
        name = i.name.split(".")[2]
        x, y = (warp.floating(o).view(np.float32) for o in (a, b))
        found = combine(i.modifiers, compare_floats(name, x, y), warp.predicate(given))
        warp.put(result, np.where(found, np.uint32(0x3F800000), np.uint32(0)), active)
    elif base in ("VOTE", "VOTEU"):
        given = warp.predicate(i.operands[-1])
        value = (given & active).any() if "ANY" in i.modifiers else not (active & ~given).any()
        for o in i.operands[:-1]:
            if is_predicate(o):
                warp.put_predicate(o, np.full(32, value), active)
            elif o.kind in ("register", "uniform"):
                warp.put(o, np.full(32, mask_of(given & active), dtype=np.uint32), active)
    elif base == "ELECT":
        chosen = np.zeros(32, dtype=bool)
        chosen[int(np.argmax(active))] = True
        warp.put_predicate(i.operands[0], chosen, active)
    elif base == "SYNCS":
        warp.active_lane = int(np.argmax(active))
        answer = synchronize(warp, i)
        if is_predicate(i.operands[0]):
            warp.put_predicate(i.operands[0], np.full(32, answer), active)
            warp.spins = not answer
            if answer:  # bytes from another block take as long as a barrier of the cluster
                warp.clock += latency["cluster barrier"]
                warp.trace.marks.append(warp.clock)
    else:
        return False
    return True


_FORMS = {
    "IADD3": _sums, "UIADD3": _sums, "IMAD": _products, "UIMAD": _products, "LEA": _shifted_sum, "ULEA": _shifted_sum,
    "SHF": _shift, "USHF": _shift, "ISETP": _compare, "UISETP": _compare, "FSETP": _compare,
}  # fmt: skip


_UNITS = {
    "fma": {"FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"},
    "imad": {"IMAD"},
    "tensor": {"HMMA"},
    "xu": {"MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV"},
    "lsu": {*ACCESSES, "SHFL"},
    "constant": {"LDC", "ULDC"},
    "control": {"BRA", "BSSY", "BSYNC", "BREAK", "EXIT", "NOP", "WARPSYNC", "CALL", "RET", "YIELD", "BRX", "BRXU",
                "ENDCOLLECTIVE", "BAR", "DEPBAR", "ELECT", "UBLKCP", "UBLKPF", "UCGABAR_ARV", "UCGABAR_WAIT", "STAS"},
}  # fmt: skip


def unit_of(base: str) -> str:
    """The unit that executes an instruction; the units' rates are in the model."""
    for unit, names in _UNITS.items():
        if base in names:
            return unit
    return "uniform" if base.startswith("U") else "alu"


def execute(
    warp: "Warp", i: Instruction, mask: Lanes, active: Lanes, following: int, latency: Mapping[str, float]
) -> float:
    """Execute an instruction and put its lanes where they go on.

    Args:
        warp: the warp's state.
        i: the instruction.
        mask: lanes that have it next.
        active: those of them whose guard is true.
        following: address of the next instruction.
        latency: cycles until a result can be used, by unit.

    Returns:
        Cycles until the result can be used.

    Raises:
        ValueError: the instruction is not known, or has a form that is not.
    """
    if flow(warp, i, mask, active, following):
        return 0.0
    resume(warp, following, mask)
    base = i.base
    if base in _WITHOUT_EFFECT or not active.any():
        return 0.0
    if base == "UBLKCP":
        bulk_copy(warp, i)
        return 0.0
    if base == "STAS":
        push(warp, i, active)
        return 0.0
    done = access(warp, i, active, latency)
    if done is not None:
        return done
    if base in _FORMS:
        _FORMS[base](warp, i, active)
    elif base in OPERATIONS:
        read = warp.floating if base in _FLOATS else warp.value
        result, *sources = i.operands
        given = [warp.predicate(o) if is_predicate(o) else read(o) for o in sources]
        warp.put(result, np.asarray(OPERATIONS[base](i.modifiers, *given)), active)
    elif base == "HMMA":
        matrix_product(warp, i)
    elif not _other(warp, i, active, latency):
        raise ValueError("the instruction is not known")
    return latency.get(unit_of(base), latency["alu"])
