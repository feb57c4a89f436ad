"""Barriers in shared memory that bulk copies complete (mbarrier): one phase after another, for one arrival each."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import bytes_of
from .operations import Lanes
from .parse import Instruction, Operand

if TYPE_CHECKING:
    from .warp import Warp

__all__ = ["Barrier", "bulk_copy", "push", "synchronize"]


@dataclass
class Barrier:
    """State of a barrier: bytes that are expected and have not come, whether the arrival has, and completed phases."""

    expected: int = 0
    arrived: bool = False
    phases: int = 0

    def update(self) -> None:
        """Complete the phase if nothing is missing."""
        if self.arrived and self.expected == 0:
            self.arrived = False
            self.phases += 1


def _at(warp: "Warp", address: int) -> Barrier:
    """The barrier at an address of shared memory.

    Raises:
        ValueError: there is none.
    """
    assert warp.mbarriers is not None
    found = warp.mbarriers[min(address >> 24, len(warp.mbarriers) - 1)].get(address & 0xFFFFFF)
    if found is None:
        raise ValueError("no barrier has been made there")
    return found


def _address(warp: "Warp", o: Operand) -> int:
    lanes = np.full(32, o.number, dtype=np.uint64)
    if o.base not in (None, 255):
        lanes = lanes + warp.registers[o.base].astype(np.uint64)  # type: ignore[index]
    if o.second not in (None, 63):
        lanes = lanes + np.uint64(int(warp.uniform[o.second]))  # type: ignore[index]
    return int(lanes[warp.active_lane])


def synchronize(warp: "Warp", i: Instruction) -> bool:
    """SYNCS: make a barrier, arrive at it and expect bytes, or ask whether a phase is complete.

    Returns:
        The answer; True for the other two. Without a state of barriers, as when a warp runs alone, always True.

    Raises:
        ValueError: the form is not known, or there is no barrier.
    """
    if warp.mbarriers is None:
        return True
    where = _address(warp, next(o for o in i.operands if o.kind == "address"))
    if "EXCH" in i.modifiers:
        warp.mbarriers[min(where >> 24, len(warp.mbarriers) - 1)][where & 0xFFFFFF] = Barrier()
    elif "ARRIVE" in i.modifiers:
        barrier = _at(warp, where)
        barrier.expected += int(warp.plain(i.operands[-1])[warp.active_lane])
        barrier.arrived = True
        barrier.update()
    elif "PHASECHK" in i.modifiers:
        parity = int(warp.plain(i.operands[-1])[warp.active_lane]) >> 31
        return _at(warp, where).phases % 2 != parity
    else:
        raise ValueError("an unknown form of SYNCS")
    return True


def bulk_copy(warp: "Warp", i: Instruction) -> None:
    """cp.async.bulk from global to shared memory, done at once; its size is in units of 16 bytes.

    The first operand is a pair of registers: the addresses of the target and of the barrier.

    Raises:
        ValueError: an address or the size is no multiple of 16, or more bytes come than are expected.
    """
    to, source, size = (o.second if o.kind == "address" else o.number for o in i.operands)
    assert to is not None and source is not None and size is not None
    count = (int(warp.uniform[size]) & 0xFFFF) * 16
    target, barrier = int(warp.uniform[to]), int(warp.uniform[to + 1])
    address = int(warp.wide(Operand("uniform", source))[0])
    if warp.mbarriers is None:
        return
    if (target | address) % 16:
        raise ValueError(f"a bulk copy from {address:#x} to {target:#x}: not aligned to 16 bytes")
    memory = warp.shared[min(target >> 24, len(warp.shared) - 1)]
    offset = target & 0xFFFFFF
    memory[offset : offset + count] = np.frombuffer(warp.memory.read(address, count), dtype=np.uint8)
    state = _at(warp, barrier)
    state.expected -= count
    if state.expected < 0:
        raise ValueError(f"{-state.expected} bytes more than the barrier expects")
    state.update()


def push(warp: "Warp", i: Instruction, active: Lanes) -> None:
    """st.async: each lane stores to shared memory of a block of the cluster and completes bytes on a barrier there.

    The address is a pair of registers: the target's and the barrier's. Both are done at once.

    Raises:
        ValueError: an address is not aligned, there is no barrier, or more bytes come than are expected.
    """
    where, source = i.operands
    size = bytes_of(i.modifiers)
    assert where.base is not None
    targets = warp.registers[where.base][active].astype(np.uint64) + np.uint64(where.number)
    barriers = warp.registers[where.base + 1][active]
    words = np.stack([warp.registers[source.number + k][active] for k in range(size // 4)])
    if (targets % size).any():
        raise ValueError(f"a store to shared memory that is not aligned to {size} bytes")
    warp.trace.wavefronts += len(targets) * size / 128
    if warp.mbarriers is None:
        return
    for lane, (target, at) in enumerate(zip(targets, barriers, strict=True)):
        rank, offset = int(target) >> 24, int(target) & 0xFFFFFF
        warp.shared[rank][offset : offset + size] = np.ascontiguousarray(words[:, lane]).view(np.uint8)
        state = _at(warp, int(at))
        state.expected -= size
        if state.arrived and state.expected < 0:
            raise ValueError(f"{-state.expected} bytes more than the barrier expects")
        state.update()
