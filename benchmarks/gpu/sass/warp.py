"""Executes one warp of a kernel and counts what it does.

Groups of lanes with the same next instruction run one after another, the group with the lowest address first, and wait
for each other where the code says so (BSSY and BSYNC). Barriers of the block let the warp pass: the counts of a warp
depend on the launch's parameters and the warp's place in the grid, not on values in memory. Loads return a fixed
pattern, atomics what the caller says.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from . import operations as op
from .execute import execute, unit_of
from .mbarrier import Barrier
from .memory import LOADED, SHARED_BYTES, Memory, Pattern
from .operations import Lanes
from .parse import Instruction, Operand, is_predicate
from .races import Clock, Race, Races

__all__ = ["LATENCY", "Constants", "ExecutionError", "Place", "Trace", "Warp", "advance", "empty_shared", "run"]

_LANES = np.arange(32, dtype=np.uint32)
# Cycles until a result can be used, on an H100: microbenchmarks in "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture via Microbenchmarking" (Luo et al., 2024) and "Dissecting the Ampere GPU Architecture" (Abdelkhalik et
# al., 2022); those of global memory are set by the model.
LATENCY = {
    "alu": 5.0, "fma": 4.0, "imad": 4.0, "xu": 22.0, "shared": 29.0, "shuffle": 24.0, "uniform": 6.0, "constant": 30.0,
    "barrier": 20.0, "control": 2.0, "global": 280.0, "atomic": 400.0, "cluster barrier": 190.0, "remote": 200.0,
}  # fmt: skip


class ExecutionError(Exception):
    """The code uses something that this file does not know, or runs for too long."""


@dataclass
class Constants:
    """Constant banks: bank 0 has the launch's sizes and, from 0x210 on, its parameters; others belong to the kernel."""

    banks: dict[int, bytes]

    def word(self, bank: int, offset: int) -> int:
        data = self.banks.get(bank, b"")
        return int.from_bytes(data[offset : offset + 4].ljust(4, b"\0"), "little")


@dataclass(frozen=True)
class Place:
    """The warp's place: its block, its first thread, and the block's rank in its cluster."""

    block: int
    thread: int = 0
    rank: int = 0


@dataclass
class Trace:
    """What a warp did.

    Attributes:
        units: instructions by unit, each issued once for the warp.
        names: instructions by name.
        read, written: bytes of global memory that it accesses, by width of the access in bytes.
        sectors_read, sectors_written: sectors of 32 bytes.
        wavefronts: cycles of the load/store unit: 128 bytes of memory each, or a conflict-free access to shared memory.
        conflicts: those of them that bank conflicts cause.
        cycles: until the warp ends, alone on its multiprocessor.
        path: addresses of executed branches' targets, to compare two runs.
        marks: cycles at which waits for bulk copies, for bytes from other blocks, and for the cluster end.
    """

    units: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    read: Counter[int] = field(default_factory=Counter)
    written: Counter[int] = field(default_factory=Counter)
    sectors_read: int = 0
    sectors_written: int = 0
    wavefronts: float = 0
    conflicts: float = 0
    cycles: float = 0
    path: set[int] = field(default_factory=set)
    marks: list[float] = field(default_factory=list)

    @property
    def instructions(self) -> int:
        """All instructions."""
        return self.units.total()


def empty_shared() -> Lanes:
    """Shared memory of a block, filled with the pattern of :class:`.memory.Pattern`."""
    return np.full(SHARED_BYTES // 4, LOADED, dtype=np.uint32).view(np.uint8)


class Warp:
    """State of a warp: registers, predicates, and which lanes have which instruction next.

    Args:
        code: the kernel.
        constants: constant banks.
        place: where the warp is.
        alive: lanes that exist.
        memory: global memory.
        shared: shared memory of each block of the cluster, in bytes.
        races: watch it, one for each block; None watches nothing.
        number: of the warp in its cluster.
        mbarriers: of each block, by address; None lets every wait for a bulk copy pass.
    """

    def __init__(
        self, code: Mapping[int, Instruction], constants: Constants, place: Place, alive: int, memory: Memory,
        shared: list[Lanes], races: list[Races] | None = None, number: int = 0,
        mbarriers: list[dict[int, Barrier]] | None = None,
    ) -> None:  # fmt: skip
        self.code, self.constants, self.place = code, constants, place
        self.memory, self.shared, self.races = memory, shared, races
        self.barriers = Clock(number, place.rank)
        self.mbarriers = mbarriers
        self.active_lane, self.spins = 0, False
        self.local = np.zeros((1024, 32), dtype=np.uint32)
        self.registers = np.zeros((256, 32), dtype=np.uint32)
        self.predicates = np.zeros((8, 32), dtype=bool)
        self.predicates[7] = True
        self.uniform = np.zeros(64, dtype=np.uint32)
        self.uniform_predicates = np.zeros(8, dtype=bool)
        self.uniform_predicates[7] = True
        self.alive = _LANES < alive
        self.groups: dict[int, Lanes] = {0: self.alive.copy()}
        self.reconverge = np.zeros((16, 32), dtype=np.uint32)  # mask of BSSY, per lane
        self.waiting: dict[tuple[int, int], Lanes] = {}  # (barrier, address) -> lanes
        self.clock = 0.0
        self.ready: dict[tuple[str, int], float] = {}
        self.trace = Trace()
        self.constant_cache: dict[tuple[int, int], Lanes] = {}

    # ---- operands
    def value(self, o: Operand) -> Lanes:
        """32-bit value of an operand, with an integer's sign."""
        x = self.plain(o)
        if o.inverted:
            x = ~x
        if o.negative:
            x = (~x) + np.uint32(1)
        return x

    def plain(self, o: Operand) -> Lanes:
        if o.kind == "register":
            return self.registers[o.number]
        if o.kind == "uniform":
            return np.full(32, self.uniform[o.number], dtype=np.uint32)
        if o.kind == "constant":
            offset = o.number
            if o.second is not None:
                offset += int(self.uniform[o.second])
            if o.base not in (None, 255):
                offsets = self.registers[o.base].astype(np.int64) + offset  # type: ignore[index]
                return np.asarray([self.constants.word(o.bank, int(at)) for at in offsets], dtype=np.uint32)
            key = (o.bank, offset)
            if key not in self.constant_cache:
                self.constant_cache[key] = np.full(32, self.constants.word(*key), dtype=np.uint32)
            return self.constant_cache[key]
        if o.kind == "number":
            return np.full(32, o.number, dtype=np.uint32)
        raise ValueError(f"operand of kind {o.kind}")

    def floating(self, o: Operand) -> Lanes:
        """Bits of a float operand, with its modifiers."""
        if o.kind == "number" and not o.text.lstrip("-").startswith("0x"):
            number = float(o.text.replace("QNAN", "nan").replace("INF", "inf"))
            x = np.full(32, np.float32(-number if o.negative else number).view(np.uint32), dtype=np.uint32)
            return x
        x = self.plain(o)
        if o.absolute:
            x = x & np.uint32(0x7FFFFFFF)
        if o.negative:
            x = x ^ np.uint32(0x80000000)
        return x

    def wide(self, o: Operand) -> Lanes:
        """64-bit value of a pair of registers or constants."""
        if o.kind == "register":
            if o.number == 255:
                return np.zeros(32, dtype=np.uint64)
            found = op.pair(self.registers[o.number], self.registers[o.number + 1])
        elif o.kind == "uniform":
            both = 0 if o.number == 63 else int(self.uniform[o.number]) | int(self.uniform[o.number + 1]) << 32
            found = np.full(32, both, dtype=np.uint64)
        elif o.kind == "constant":
            low = self.plain(o)
            high = self.plain(Operand("constant", o.number + 4, bank=o.bank, base=o.base, second=o.second))
            found = op.pair(low, high)
        else:
            found = self.plain(o).view(np.int32).astype(np.int64).view(np.uint64)
        return np.asarray((~found) + np.uint64(1) if o.negative else found)

    def predicate(self, o: Operand) -> Lanes:
        if o.kind == "predicate":
            x = self.predicates[o.number]
        else:
            x = np.full(32, self.uniform_predicates[o.number])
        return ~x if o.inverted else x

    # ---- results
    def put(self, o: Operand, value: Lanes, mask: Lanes) -> None:
        if o.kind == "uniform":
            if o.number != 63 and mask.any():
                self.uniform[o.number] = value[int(np.argmax(mask))]
        elif o.number != 255:
            np.copyto(self.registers[o.number], value.astype(np.uint32), where=mask)

    def put_wide(self, o: Operand, value: Lanes, mask: Lanes) -> None:
        if o.number in (255, 63 if o.kind == "uniform" else 255):
            return
        self.put(o, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)
        self.put(Operand(o.kind, o.number + 1), (value >> np.uint64(32)).astype(np.uint32), mask)

    def put_predicate(self, o: Operand, value: Lanes, mask: Lanes) -> None:
        if o.number == 7:
            return
        if o.kind == "predicate":
            np.copyto(self.predicates[o.number], value, where=mask)
        elif mask.any():
            self.uniform_predicates[o.number] = value[int(np.argmax(mask))]


def _sources_and_results(i: Instruction) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Registers that an instruction reads and writes, for the times at which values are ready."""
    wide = 4 if "128" in i.modifiers else 2 if i.modifiers & {"64", "WIDE", "S64", "U64"} else 1
    reads: list[tuple[str, int]] = []
    writes: list[tuple[str, int]] = []
    stores = i.base in ("STG", "STS", "ST", "REDG", "RED")
    first = True
    for o in i.operands:
        if o.kind == "address":
            for number in (o.base,) if o.base is not None else ():
                reads += [("R", number), ("R", number + 1)] if o.wide else [("R", number)]
            if o.second is not None:
                reads.append(("U", o.second))
            first = first and not stores
            continue
        if o.kind in ("register", "uniform"):
            kind = "R" if o.kind == "register" else "U"
            span = [(kind, o.number + k) for k in range(wide if o.number not in (255, 63) else 1)]
            if first and not stores:
                writes += span
                first = False
            else:
                reads += span
        elif is_predicate(o):
            leading = first or not writes or (i.base in ("IADD3", "LEA") and not reads)
            (writes if leading else reads).append(("P" if o.kind == "predicate" else "Q", o.number))
            if i.base in ("ISETP", "FSETP", "PLOP3", "UISETP"):
                first = False
        elif o.kind != "special":
            first = False
    if i.guard is not None:
        reads.append(("P" if i.guard.kind == "predicate" else "Q", i.guard.number))
    return reads, writes


@dataclass
class _Program:
    """A kernel's instructions, their order, and the registers that each reads and writes."""

    code: Mapping[int, Instruction]
    following: dict[int, int]
    uses: dict[int, tuple[list[tuple[str, int]], list[tuple[str, int]]]]


_PROGRAMS: dict[int, _Program] = {}


def _program(code: Mapping[int, Instruction]) -> _Program:
    key = id(code)
    if key not in _PROGRAMS or _PROGRAMS[key].code is not code:
        at = sorted(code)
        following = dict(zip(at, [*at[1:], at[-1] + 16], strict=True))
        _PROGRAMS[key] = _Program(code, following, {a: _sources_and_results(i) for a, i in code.items()})
    return _PROGRAMS[key]


def advance(warp: Warp, latency: Mapping[str, float] = LATENCY, most: int = 1_000_000) -> str | None:
    """Execute a warp until all its lanes are at a barrier or have ended.

    Args:
        warp: the warp.
        latency: cycles until a result can be used, by unit.
        most: instructions after which execution ends with an error.

    Returns:
        "block" or "cluster" at a barrier of the block or the cluster, "copy" if a bulk copy has not come, None at the
        end.

    Raises:
        ExecutionError: an instruction is not known, or the warp does not end.
        Race: two accesses to shared memory are not ordered.
    """
    program, trace = _program(warp.code), warp.trace
    with np.errstate(all="ignore"):
        while warp.groups:
            address = min(warp.groups)
            mask = warp.groups.pop(address)
            i = program.code.get(address)
            if i is None:
                raise ExecutionError(f"no instruction at {address:#x}")
            active = mask if i.guard is None else mask & warp.predicate(i.guard)
            trace.units[unit_of(i.base)] += 1
            trace.names[i.name] += 1
            reads, writes = program.uses[address]
            warp.clock = max([warp.clock + 1, *(warp.ready[key] for key in reads if key in warp.ready)])
            try:
                done = execute(warp, i, mask, active, program.following[address], latency)
            except Race as race:
                raise Race(f"{address:#x}: {i.text}: {race}") from race
            except (ValueError, TypeError, IndexError, StopIteration, KeyError) as error:
                raise ExecutionError(f"{address:#x}: {i.text}: {error!r}") from error
            if active.any():
                for key in writes:
                    warp.ready[key] = warp.clock + done
            if warp.spins:
                warp.spins = False
                return "copy"
            if i.base == "UCGABAR_ARV":
                warp.barriers.arrived += 1
            if i.base in ("BAR", "UCGABAR_WAIT"):
                warp.barriers.bars += i.base == "BAR"
                warp.barriers.left += i.base != "BAR"
                warp.clock += latency["barrier" if i.base == "BAR" else "cluster barrier"]
                if i.base == "UCGABAR_WAIT":
                    trace.marks.append(warp.clock)
                return "block" if i.base == "BAR" else "cluster"
            if trace.units.total() > most:
                raise ExecutionError(f"more than {most} instructions; last at {address:#x}: {i.text}")
    if warp.waiting:
        raise ExecutionError(f"lanes wait for ever at {[hex(a) for _, a in warp.waiting]}")
    trace.cycles = warp.clock
    return None


def run(
    code: Mapping[int, Instruction], constants: Constants, place: Place, memory: Memory | None = None,
    latency: Mapping[str, float] = LATENCY, most: int = 1_000_000,
) -> Trace:  # fmt: skip
    """Execute one warp alone, to count; barriers let it pass.

    Args:
        code: the kernel, from :func:`.parse.parse`; it must not change afterwards.
        constants: constant banks.
        place: where the warp is.
        memory: global memory; the default is a fixed pattern.
        latency: cycles until a result can be used, by unit.
        most: instructions after which execution ends with an error.

    Raises:
        ExecutionError: an instruction is not known, or the warp does not end.
    """
    warp = Warp(code, constants, place, 32, memory or Pattern(), [empty_shared()])
    while advance(warp, latency, most) is not None:
        pass
    return warp.trace
