"""Executes one instruction for the lanes of a warp that have it next."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from . import operations as op
from .operations import COMPARISONS, OPERATIONS, Lanes, combine, compare_floats
from .parse import Instruction, Operand

if TYPE_CHECKING:
    from .warp import _Warp

__all__ = ["execute"]

_FLOATS = {"FADD", "FMUL", "FFMA", "FMNMX", "MUFU", "F2FP", "FSEL"}
_WITHOUT_EFFECT = {
    "NOP", "YIELD", "BAR", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "DEPBAR", "LEPC", "FENCE", "ENDCOLLECTIVE", "ACQBULK",
    "PREEXIT", "UBLKCP", "UBLKPF", "NANOSLEEP", "CCTLL", "WARPSYNC", "UCGABAR_ARV", "UCGABAR_WAIT", "UTMAPF", "LDGDEPBAR",
}  # fmt: skip
ZERO = Operand("register", 255)
TRUE = Operand("predicate", 7)


def _predicate(o: Operand) -> bool:
    return o.kind in ("predicate", "uniform predicate")


def _resume(warp: "_Warp", address: int, lanes: Lanes) -> None:
    """Lanes go on at an address, with the group that is there."""
    if not lanes.any():
        return
    if address in warp.groups:
        warp.groups[address] = warp.groups[address] | lanes
    else:
        warp.groups[address] = lanes


def _release(warp: "_Warp") -> None:
    """Lets lanes that wait for each other go on if none is missing."""
    for (barrier, address), lanes in list(warp.waiting.items()):
        first = int(np.argmax(lanes))
        wanted = int(warp.reconverge[barrier, first]) if barrier >= 0 else 0xFFFFFFFF
        needed = ((np.uint32(wanted) >> np.arange(32, dtype=np.uint32)) & np.uint32(1)).astype(bool) & warp.alive
        if not (needed & ~lanes).any():
            del warp.waiting[barrier, address]
            _resume(warp, address, lanes)


def _mask_of(lanes: Lanes) -> int:
    return int(np.packbits(lanes, bitorder="little").view(np.uint32)[0])


def _flow(warp: "_Warp", i: Instruction, mask: Lanes, active: Lanes, following: int) -> bool:
    """Branches, calls and reconvergence; returns whether the instruction is one of them."""
    base, skipped = i.base, mask & ~active
    if base == "BRA":
        taken = active
        target = i.operands[-1].number
        if "DIV" in i.modifiers:
            taken = active if (mask != warp.alive).any() else active & False
        elif "ANY" in i.modifiers:  # uniform: all lanes if one has the condition
            taken = mask if active.any() else active
        elif _predicate(i.operands[0]):
            taken = active & warp.predicate(i.operands[0])
        elif i.operands[0].kind == "uniform predicate":
            taken = active & warp.predicate(i.operands[0])
        if taken.any():
            warp.trace.path.add(target)
        _resume(warp, target, taken)
        _resume(warp, following, mask & ~taken)
    elif base in ("BRX", "BRXU"):
        register, offset = i.operands[0], i.operands[1].number
        targets = (warp.plain(register) + np.uint32((following + offset) & 0xFFFFFFFF)).astype(np.uint32)
        for target in np.unique(targets[active]):
            warp.trace.path.add(int(target))
            _resume(warp, int(target), active & (targets == target))
        _resume(warp, following, skipped)
    elif base == "CALL":
        _resume(warp, i.operands[-1].number, active)
        warp.trace.path.add(i.operands[-1].number)
        _resume(warp, following, skipped)
    elif base == "RET":
        targets = warp.plain(i.operands[0])
        for target in np.unique(targets[active]):
            _resume(warp, int(target), active & (targets == target))
        _resume(warp, following, skipped)
    elif base == "EXIT":
        warp.alive = warp.alive & ~active
        _resume(warp, following, skipped)
        _release(warp)
    elif base == "BSSY":
        number = i.operands[0].number
        np.copyto(warp.reconverge[number], np.uint32(_mask_of(active)), where=active)
        _resume(warp, following, mask)
    elif base == "BREAK":
        number = i.operands[-1].number
        left = np.uint32(~_mask_of(active) & 0xFFFFFFFF)
        warp.reconverge[number] &= left
        _resume(warp, following, mask)
        _release(warp)
    elif base == "BSYNC":
        key = (i.operands[-1].number, following)
        warp.waiting[key] = warp.waiting.get(key, active & False) | active
        _resume(warp, following, skipped)
        _release(warp)
    elif base == "WARPSYNC" and "ALL" in i.modifiers:
        key = (-1, following)
        warp.waiting[key] = warp.waiting.get(key, active & False) | active
        _resume(warp, following, skipped)
        _release(warp)
    else:
        return False
    return True


def _addresses(warp: "_Warp", o: Operand) -> Lanes:
    """64-bit addresses of a memory operand."""
    offset = np.uint64(o.number & 0xFFFFFFFFFFFFFFFF)
    found = np.full(32, offset, dtype=np.uint64)
    if o.base is not None and o.base != 255:
        base = Operand("register", o.base)
        found = found + (warp.wide(base) if o.wide else warp.registers[o.base].astype(np.uint64))
    if o.second is not None and o.second != 63:
        second = Operand("uniform", o.second)
        found = found + (warp.wide(second) if o.wide and o.base is None else warp.plain(second).astype(np.uint64))
    return found


def _bytes_of(modifiers: frozenset[str]) -> int:
    for name, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2), ("8", 1)):
        if name in modifiers:
            return size
    return 4


def _shared_cycles(addresses: Lanes, size: int) -> int:
    """Cycles of an access to shared memory: 32 banks of 4 bytes; wide accesses go in halves or quarters of a warp."""
    cycles = 0
    step = {8: 16, 16: 8}.get(size, 32)
    for first in range(0, len(addresses), step):
        words = np.unique(addresses[first : first + step] // np.uint64(4))
        if size > 4:
            words = np.unique((words[:, None] + np.arange(size // 4, dtype=np.uint64)[None, :]).ravel())
        cycles += int(np.bincount((words % np.uint64(32)).astype(np.int64)).max()) if len(words) else 0
    return cycles


def _store_shared(warp: "_Warp", source: Operand, addresses: Lanes, size: int, active: Lanes) -> None:
    """Stores to shared memory; narrow ones are not followed."""
    if size < 4:
        return
    words = (addresses[active] // np.uint64(4)).astype(np.int64)
    for k in range(size // 4):
        value = warp.registers[source.number + k if source.number != 255 else 255]
        warp.shared[(words + k) % len(warp.shared)] = value[active]


def _load(
    warp: "_Warp", result: Operand, addresses: Lanes, size: int, active: Lanes, shared: bool,
    loads: Callable[[int], int | None],
) -> None:  # fmt: skip
    """Loads: what the warp itself stored to shared memory, what the caller gives, or the fixed pattern."""
    pattern = np.uint32(0x3F803F80)
    for k in range(max(size // 4, 1)):
        value = np.full(32, pattern, dtype=np.uint32)
        if shared and size >= 4:
            words = (addresses // np.uint64(4)).astype(np.int64) + k
            value = np.where(words < len(warp.shared), warp.shared[words % len(warp.shared)], pattern)
        if size == 4:
            for address in np.unique(addresses[active]):
                if (given := loads(int(address))) is not None:
                    value = np.where(addresses == address, np.uint32(given), value)
        elif size < 4:
            value &= np.uint32(0xFFFF if size == 2 else 0xFF)
        if result.number != 255:
            warp.put(Operand("register", result.number + k), value.astype(np.uint32), active)


def _memory(
    warp: "_Warp", i: Instruction, active: Lanes, atomic: Callable[[int], int],
    loads: Callable[[int], int | None], latency: Mapping[str, float],
) -> float | None:  # fmt: skip
    """Loads, stores and atomics; None if the instruction is none of them, else the cycles until its result is there."""
    base, trace = i.base, warp.trace
    if base in ("LDG", "LD", "LDS", "STG", "ST", "STS", "ATOMG", "ATOM", "REDG", "RED", "ATOMS"):
        where = next(o for o in i.operands if o.kind == "address")
        size, addresses = _bytes_of(i.modifiers), _addresses(warp, where)
        used = addresses[active]
        if not len(used):
            return 0.0
        if base in ("LDS", "STS"):
            cycles = _shared_cycles(np.asarray(used), size)
            trace.wavefronts += cycles
            trace.conflicts += cycles - max(len(used) * size / 128, 1)
        else:
            sectors = len(np.unique(used // np.uint64(32)))
            lines = len(np.unique(used // np.uint64(128)))
            trace.wavefronts += max(lines, len(used) * size / 128)
            if base in ("STG", "ST"):
                trace.written[size] += len(used) * size
                trace.sectors_written += sectors
            elif base in ("LDG", "LD"):
                trace.read[size] += len(used) * size
                trace.sectors_read += sectors
        if base == "STS":
            _store_shared(warp, i.operands[-1], addresses, size, active)
        elif base in ("LDG", "LD", "LDS"):
            _load(warp, i.operands[0], addresses, size, active, base == "LDS", loads)
            if base == "LDS":
                return latency["shared"]
            if base == "LD":
                return latency["remote"]
            return latency["map" if size == 16 and "map" in latency else "global"]
        if base in ("ATOMG", "ATOM", "ATOMS"):
            result = next(o for o in i.operands if o.kind == "register")
            values = [atomic(int(a)) if lane else 0 for a, lane in zip(addresses, active, strict=True)]
            warp.put(result, np.asarray(values, dtype=np.uint32), active)
            return latency["atomic"]
        return 0.0
    if base == "SHFL":
        result, source, other = i.operands[-4], warp.plain(i.operands[-3]), warp.plain(i.operands[-2])
        lanes = np.arange(32, dtype=np.uint32)
        limit = int(warp.plain(i.operands[-1])[0])
        width_mask = np.uint32((limit >> 8) & 31)
        if "BFLY" in i.modifiers:
            sources = lanes ^ other
        elif "IDX" in i.modifiers:
            sources = (lanes & width_mask) | (other & ~width_mask & np.uint32(31))
        elif "DOWN" in i.modifiers:
            sources = lanes + other
        else:
            sources = (lanes - other).astype(np.uint32)
        inside = sources < np.uint32(32)
        warp.put(result, source[np.where(inside, sources, lanes).astype(np.int64)], active)
        if _predicate(i.operands[0]):
            warp.put_predicate(i.operands[0], inside, active)
        trace.wavefronts += 1
        return latency["shuffle"]
    return None


def _split_predicates(i: Instruction) -> tuple[list[Operand], list[Operand]]:
    """(leading predicates, the rest) of the operands."""
    rest = list(i.operands)
    leading = []
    while rest and _predicate(rest[0]):
        leading.append(rest.pop(0))
    return leading, rest


def _compare(warp: "_Warp", i: Instruction, active: Lanes) -> None:
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


def _sums(warp: "_Warp", i: Instruction, active: Lanes) -> None:
    """IADD3, and IADD3.64 of uniform registers."""
    result, *rest = i.operands
    carries = []
    while rest and _predicate(rest[0]):
        carries.append(rest.pop(0))
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


def _products(warp: "_Warp", i: Instruction, active: Lanes) -> None:
    result, *rest = i.operands
    carries = []
    while rest and _predicate(rest[0]):
        carries.append(rest.pop(0))
    a, b, c, *carry = rest
    if "WIDE" in i.modifiers:
        value = op.multiply_wide(warp.value(a), warp.value(b), warp.wide(c), "U32" not in i.modifiers)
        for o in carries:
            warp.put_predicate(o, value < warp.wide(c), active)
        warp.put_wide(result, value, active)
    elif "HI" in i.modifiers:
        value = op.multiply_wide(warp.value(a), warp.value(b), warp.wide(c), "U32" not in i.modifiers)
        warp.put(result, (value >> np.uint64(32)).astype(np.uint32), active)
    else:
        value = op.multiply_add(warp.value(a), warp.value(b), warp.value(c))
        if "X" in i.modifiers:
            for o in carry:
                value = value + warp.predicate(o).astype(np.uint32)
        warp.put(result, value, active)


def _shifted_sum(warp: "_Warp", i: Instruction, active: Lanes) -> None:
    """LEA: (a << shift) + b, or of its high part."""
    result, *rest = i.operands
    carries = []
    while rest and _predicate(rest[0]):
        carries.append(rest.pop(0))
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
        if "X" in i.modifiers and _predicate(rest[-1]):
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


def _shift(warp: "_Warp", i: Instruction, active: Lanes) -> None:
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


def _special(warp: "_Warp", name: str) -> Lanes:
    lanes = np.arange(32, dtype=np.uint32)
    if name == "SR_TID.X":
        return lanes + np.uint32(warp.place.thread)
    if name == "SR_LANEID":
        return lanes
    one = {"SR_CTAID.X": warp.place.block, "SR_CgaCtaId": warp.place.rank, "SR_TID.Y": 0, "SR_TID.Z": 0,
           "SR_CTAID.Y": 0, "SR_CTAID.Z": 0, "SR_CgaSize": 0, "SR_CLOCKLO": int(warp.clock), "SR_SWINHI": 0,
           "SR_CgaCtaid.X": warp.place.rank}  # fmt: skip
    from .warp import ExecutionError

    if name not in one:
        raise ExecutionError(f"special register {name}")
    return np.full(32, one[name], dtype=np.uint32)


def _predicates_as_bits(warp: "_Warp", i: Instruction, active: Lanes) -> None:
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


def _halves(warp: "_Warp", i: Instruction, active: Lanes) -> None:
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


def _other(warp: "_Warp", i: Instruction, active: Lanes) -> bool:
    """Instructions with an own form; returns whether the instruction is one of them."""
    base = i.base
    if base in ("S2R", "S2UR", "CS2R"):
        if base == "CS2R":
            warp.put_wide(i.operands[0], np.zeros(32, dtype=np.uint64), active)
        else:
            warp.put(i.operands[0], _special(warp, i.operands[1].text), active)
    elif base in ("R2UR", "UMOV", "USEL", "UPRMT"):
        leading, rest = _split_predicates(i)
        result, *sources = rest
        if base == "USEL":
            value = np.where(warp.predicate(sources[2]), warp.value(sources[0]), warp.value(sources[1]))
        elif base == "UPRMT":
            value = op.permute(*(warp.value(o) for o in sources))
        else:
            value = warp.value(sources[0])
        if leading:
            warp.put_predicate(leading[0], warp.predicate(TRUE), active)
        warp.put(result, value, active)
    elif base in ("LDC", "ULDC"):
        result, source = i.operands
        if i.modifiers & {"64"}:
            warp.put_wide(result, warp.wide(source), active)
        else:
            value = warp.plain(source)
            size = _bytes_of(i.modifiers)
            warp.put(result, value & np.uint32({1: 0xFF, 2: 0xFFFF}.get(size, 0xFFFFFFFF)), active)
    elif base in ("LOP3", "ULOP3"):
        leading, rest = _split_predicates(i)
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
        leading, rest = _split_predicates(i)
        given = warp.predicate(i.operands[-1])
        value = (given & active).any() if "ANY" in i.modifiers else not (active & ~given).any()
        for o in i.operands[:-1]:
            if _predicate(o):
                warp.put_predicate(o, np.full(32, value), active)
            elif o.kind in ("register", "uniform"):
                warp.put(o, np.full(32, _mask_of(given & active), dtype=np.uint32), active)
    elif base == "ELECT":
        chosen = np.zeros(32, dtype=bool)
        chosen[int(np.argmax(active))] = True
        warp.put_predicate(i.operands[0], chosen, active)
    elif base == "SYNCS":
        if _predicate(i.operands[0]):  # a wait for a bulk copy: it is over
            warp.put_predicate(i.operands[0], np.ones(32, dtype=bool), active)
    else:
        return False
    return True


_FORMS = {
    "IADD3": _sums, "UIADD3": _sums, "IMAD": _products, "UIMAD": _products, "LEA": _shifted_sum, "ULEA": _shifted_sum,
    "SHF": _shift, "USHF": _shift, "ISETP": _compare, "UISETP": _compare, "FSETP": _compare,
}  # fmt: skip


def execute(
    warp: "_Warp", i: Instruction, mask: Lanes, active: Lanes, following: int, atomic: Callable[[int], int],
    loads: Callable[[int], int | None], latency: Mapping[str, float],
) -> float:  # fmt: skip
    """Execute an instruction and put its lanes where they go on; returns the cycles until its result can be used.

    Args:
        warp: the warp's state.
        i: the instruction.
        mask: lanes that have it next.
        active: those of them whose guard is true.
        following: address of the next instruction.
        atomic, loads, latency: as in :func:`.warp.run`.
    """
    from .warp import ExecutionError, unit_of

    if _flow(warp, i, mask, active, following):
        return 0.0
    _resume(warp, following, mask)
    base = i.base
    if base in ("BAR", "UCGABAR_WAIT"):
        warp.clock += latency["barrier" if base == "BAR" else "cluster barrier"]
        if base == "UCGABAR_WAIT":
            warp.trace.marks.append(warp.clock)
    if base in _WITHOUT_EFFECT:
        return 0.0
    if not active.any():
        return 0.0
    done = _memory(warp, i, active, atomic, loads, latency)
    if done is not None:
        return done
    try:
        if base in _FORMS:
            _FORMS[base](warp, i, active)
        elif base in OPERATIONS:
            read = warp.floating if base in _FLOATS else warp.value
            result, *sources = i.operands
            given = [warp.predicate(o) if _predicate(o) else read(o) for o in sources]
            warp.put(result, np.asarray(OPERATIONS[base](i.modifiers, *given)), active)
        elif not _other(warp, i, active):
            raise ExecutionError(f"unknown instruction {i.text}")
    except (ValueError, TypeError, IndexError, StopIteration, KeyError) as error:
        raise ExecutionError(f"{i.text}: {error!r}") from error
    return latency.get(unit_of(base), latency["alu"])
