"""Memory of a launch, and the instructions that access it."""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .matrices import matrix_access
from .operations import Lanes
from .parse import Instruction, Operand, is_predicate
from .races import Races

if TYPE_CHECKING:
    from .warp import Warp

__all__ = ["ACCESSES", "LOADED", "SHARED_WINDOW", "Memory", "Pattern", "Process", "access"]

LOADED = 0x3F803F80
"""What loads return in :class:`Pattern`: 1 as a float and as two bfloat16 values, nearly."""
SHARED_WINDOW = 0x51000000
"""High word of generic addresses of shared memory."""
ACCESSES = frozenset(
    ("LDG", "STG", "LD", "ST", "LDS", "STS", "ATOMG", "ATOM", "REDG", "RED", "LDSM", "STSM", "LDL", "STL")
)
"""Instructions with an address."""
SHARED_BYTES = 0x400 + 232448  # 1 KB is the system's


class Memory(Protocol):
    """Global memory."""

    def load(self, addresses: Lanes, size: int) -> Lanes:
        """Values of ``size`` bytes at addresses: (words, lanes), at least one word."""

    def store(self, addresses: Lanes, size: int, words: Lanes) -> None:
        """The inverse of :meth:`load`."""

    def add(self, address: int, value: int) -> int:
        """Add to an int32; returns the value before."""

    def read(self, address: int, count: int) -> bytes:
        """Bytes for a bulk copy."""


class Pattern:
    """Memory whose values do not matter: loads return a fixed pattern, stores are dropped.

    Args:
        add: the value that an atomic addition at an address returns.
        word: the value of a load of 32 bits at an address, or None for the pattern.
    """

    def __init__(
        self, add: Callable[[int], int] = lambda address: 0, word: Callable[[int], int | None] = lambda address: None
    ) -> None:
        self._add, self._word = add, word

    def load(self, addresses: Lanes, size: int) -> Lanes:
        value = np.full((max(size // 4, 1), len(addresses)), LOADED, dtype=np.uint32)
        if size < 4:
            value &= np.uint32(0xFFFF if size == 2 else 0xFF)
        elif size == 4:
            for address in np.unique(addresses):
                if (given := self._word(int(address))) is not None:
                    value[0, addresses == address] = given
        return value

    def store(self, addresses: Lanes, size: int, words: Lanes) -> None:
        pass

    def add(self, address: int, value: int) -> int:
        return self._add(address)

    def read(self, address: int, count: int) -> bytes:
        return b""


class Process:
    """The memory of this process: a launch's pointers are those of tensors."""

    def load(self, addresses: Lanes, size: int) -> Lanes:
        data = b"".join(ctypes.string_at(int(a), size) for a in addresses)
        if size < 4:
            return np.frombuffer(data, dtype=np.uint8 if size == 1 else np.uint16).astype(np.uint32)[None, :]
        return np.frombuffer(data, dtype=np.uint32).reshape(len(addresses), size // 4).T

    def store(self, addresses: Lanes, size: int, words: Lanes) -> None:
        kind = np.uint8 if size == 1 else np.uint16 if size == 2 else np.uint32
        data = words.T.astype(kind).copy()
        for k, address in enumerate(addresses):
            ctypes.memmove(int(address), data[k].tobytes(), size)

    def add(self, address: int, value: int) -> int:
        cell = ctypes.c_int32.from_address(address)
        before = cell.value
        cell.value = before + value
        return before & 0xFFFFFFFF

    def read(self, address: int, count: int) -> bytes:
        return ctypes.string_at(address, count)


def addresses_of(warp: "Warp", o: Operand) -> Lanes:
    """64-bit addresses of a memory operand."""
    found = np.full(32, np.uint64(o.number & 0xFFFFFFFFFFFFFFFF), dtype=np.uint64)
    if o.base is not None and o.base != 255:
        base = Operand("register", o.base)
        found = found + (warp.wide(base) if o.wide else warp.registers[o.base].astype(np.uint64))
    if o.second is not None and o.second != 63:
        second = Operand("uniform", o.second)
        found = found + (warp.wide(second) if o.wide and o.base is None else warp.plain(second).astype(np.uint64))
    return found if o.wide or o.base is None else found & np.uint64(0xFFFFFFFF)


def bytes_of(modifiers: frozenset[str]) -> int:
    """Bytes of an access for one lane."""
    for name, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2), ("8", 1)):
        if name in modifiers:
            return size
    return 4


def shared_cycles(addresses: Lanes, size: int) -> int:
    """Cycles of an access to shared memory: 32 banks of 4 bytes; wide accesses go in halves or quarters of a warp."""
    cycles = 0
    step = {8: 16, 16: 8}.get(size, 32)
    for first in range(0, len(addresses), step):
        words = np.unique(addresses[first : first + step] // np.uint64(4))
        if size > 4:
            words = np.unique((words[:, None] + np.arange(size // 4, dtype=np.uint64)[None, :]).ravel())
        cycles += int(np.bincount((words % np.uint64(32)).astype(np.int64)).max()) if len(words) else 0
    return cycles


def _shared_places(warp: "Warp", addresses: Lanes, size: int) -> Iterator[tuple[Lanes, Lanes, Lanes, Races | None]]:
    """(lanes, memory, index of the first element, races) for each block whose shared memory is accessed.

    Bits 24 and up of an address are the block's rank in its cluster.
    """
    ranks = (addresses >> np.uint64(24)).astype(np.int64) & 0xFF
    offsets = (addresses & np.uint64(0xFFFFFF)).astype(np.int64)
    kind = {1: np.uint8, 2: np.uint16}.get(size, np.uint32)
    for rank in np.unique(ranks):
        chosen = ranks == rank
        memory = warp.shared[min(int(rank), len(warp.shared) - 1)]
        races = warp.races[int(rank)] if warp.races else None
        yield chosen, memory.view(kind), offsets[chosen] // np.dtype(kind).itemsize, races


def _bytes_from(at: Lanes, item: int, size: int) -> Lanes:
    return np.unique((at[:, None] * item + np.arange(size)[None, :]).ravel())


def _shared_load(warp: "Warp", addresses: Lanes, size: int) -> Lanes:
    words = np.zeros((max(size // 4, 1), len(addresses)), dtype=np.uint32)
    for chosen, memory, at, races in _shared_places(warp, addresses, size):
        for k in range(len(words)):
            words[k, chosen] = memory[at + k]
        if races is not None:
            races.load(_bytes_from(at, memory.itemsize, size), warp.barriers)
    return words


def _shared_store(warp: "Warp", addresses: Lanes, size: int, words: Lanes) -> None:
    for chosen, memory, at, races in _shared_places(warp, addresses, size):
        where = _bytes_from(at, memory.itemsize, size)
        before = memory.view(np.uint8)[where]
        for k in range(len(words)):
            memory[at + k] = words[k, chosen].astype(memory.dtype)
        if races is not None:
            races.store(where, warp.barriers, memory.view(np.uint8)[where] != before)


def _local(warp: "Warp", i: Instruction, addresses: Lanes, size: int, active: Lanes) -> None:
    """The stack of each lane."""
    words = (addresses.astype(np.int64) // 4) % warp.local.shape[0]
    register = next(o for o in i.operands if o.kind == "register").number
    for k in range(max(size // 4, 1)):
        if i.base == "LDL":
            warp.registers[register + k][active] = warp.local[words + k, np.flatnonzero(active)]
        else:
            value = warp.registers[register + k if register != 255 else 255]
            warp.local[words + k, np.flatnonzero(active)] = value[active]


def _shuffle(warp: "Warp", i: Instruction, active: Lanes) -> None:
    result, source, other = i.operands[-4], warp.plain(i.operands[-3]), warp.plain(i.operands[-2])
    lanes = np.arange(32, dtype=np.uint32)
    limit = int(warp.plain(i.operands[-1])[0])
    fixed = np.uint32((limit >> 8) & 31)
    if "BFLY" in i.modifiers:
        sources = lanes ^ other
    elif "IDX" in i.modifiers:
        sources = (lanes & fixed) | (other & ~fixed & np.uint32(31))
    elif "DOWN" in i.modifiers:
        sources = lanes + other
        sources = np.where(sources > ((lanes & fixed) | (np.uint32(limit & 31) & ~fixed)), np.uint32(99), sources)
    else:
        sources = np.where(other > (lanes & ~fixed), np.uint32(99), lanes - other).astype(np.uint32)
    inside = sources < np.uint32(32)
    warp.put(result, source[np.where(inside, sources, lanes).astype(np.int64)], active)
    if is_predicate(i.operands[0]):
        warp.put_predicate(i.operands[0], inside, active)


def access(warp: "Warp", i: Instruction, active: Lanes, latency: Mapping[str, float]) -> float | None:
    """Execute a load, store, atomic or shuffle.

    Returns:
        None if the instruction is none of them, else the cycles until its result can be used.
    """
    base, trace = i.base, warp.trace
    if base == "SHFL":
        _shuffle(warp, i, active)
        trace.wavefronts += 1
        return latency["shuffle"]
    if base not in ACCESSES:
        return None
    where = next(o for o in i.operands if o.kind == "address")
    size = bytes_of(i.modifiers)
    used = addresses_of(warp, where)[active]
    if not len(used):
        return 0.0
    if base in ("LDSM", "STSM"):
        matrix_access(warp, i, addresses_of(warp, where))
        trace.wavefronts += shared_cycles(used, 16)
        return latency["shared"]
    if base in ("LDL", "STL"):
        _local(warp, i, used, size, active)
        return latency["shared"]
    shared = base in ("LDS", "STS")
    window = base in ("LD", "ST") and int(used[0] >> np.uint64(32)) == SHARED_WINDOW
    if shared:
        cycles = shared_cycles(used, size)
        trace.wavefronts += cycles
        trace.conflicts += cycles - max(len(used) * size / 128, 1)
    else:
        trace.wavefronts += max(len(np.unique(used // np.uint64(128))), len(used) * size / 128)
        if not window and base in ("STG", "ST"):
            trace.written[size] += len(used) * size
            trace.sectors_written += len(np.unique(used // np.uint64(32)))
        elif not window and base in ("LDG", "LD"):
            trace.read[size] += len(used) * size
            trace.sectors_read += len(np.unique(used // np.uint64(32)))
    if base in ("STS", "STG", "ST"):
        source = i.operands[-1]
        count = max(size // 4, 1)
        numbers = [255 if source.number == 255 else source.number + k for k in range(count)]
        words = np.stack([warp.registers[k][active] for k in numbers])
        if source.kind == "uniform":
            words = np.stack([warp.plain(source)[active]] * count)
        if shared or window:
            _shared_store(warp, used & np.uint64(0xFFFFFFFF), size, words)
        else:
            warp.memory.store(used, size, words)
        return 0.0
    if base in ("LDS", "LDG", "LD"):
        result = i.operands[0]
        found = _shared_load(warp, used & np.uint64(0xFFFFFFFF), size) if shared or window else (
            warp.memory.load(used, size))  # fmt: skip
        if result.number != 255:
            for k in range(len(found)):
                warp.registers[result.number + k][active] = found[k]
        if shared:
            return latency["shared"]
        if window:
            return latency["remote"]
        return latency["map" if size == 16 and "map" in latency else "global"]
    if "ADD" not in i.modifiers:
        raise ValueError("only additions are known among the atomics")
    value = warp.plain(i.operands[-1])[active]
    before = np.asarray([warp.memory.add(int(a), int(v)) for a, v in zip(used, value, strict=True)], dtype=np.uint32)
    if base in ("ATOMG", "ATOM"):
        result = next(o for o in i.operands if o.kind == "register")
        if result.number != 255:
            warp.registers[result.number][active] = before
        return latency["atomic"]
    return 0.0
