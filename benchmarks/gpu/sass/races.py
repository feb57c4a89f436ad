"""Races in shared memory: accesses of two warps to a byte, one of them a store, that no barrier orders.

An access comes before another one if its warp arrives at a barrier after it that the other's warp has left. Barriers of
the block order the warps of a block, barriers of the cluster all warps of the cluster. Lanes of one warp are not
compared, and bulk copies are not accesses: an mbarrier orders them.
"""

import numpy as np

from .operations import Lanes

__all__ = ["Clock", "Race", "Races"]

_NONE, _SEVERAL = -1, -2


class Race(Exception):
    """Two accesses that are not ordered."""


class Clock:
    """Barriers of the block and of the cluster that a warp has arrived at and has left."""

    def __init__(self, number: int, block: int) -> None:
        self.number, self.block = number, block
        self.bars = 0
        self.arrived = self.left = 0  # of the cluster


class _Accesses:
    """The last store or load of each byte: its warp and block, and how far it was."""

    def __init__(self, size: int) -> None:
        self.warp = np.full(size, _NONE, dtype=np.int32)
        self.block = np.zeros(size, dtype=np.int32)
        self.bars = np.zeros(size, dtype=np.int32)
        self.arrived = np.zeros(size, dtype=np.int32)

    def unordered(self, at: Lanes, by: Clock) -> Lanes:
        """Whether the last access of each byte is another warp's and not before an access now."""
        warps = self.warp[at]
        others = (warps != _NONE) & (warps != by.number)
        inside = (self.block[at] == by.block) & (by.bars > self.bars[at])
        return np.asarray(others & ~inside & ~(by.left > self.arrived[at]))

    def put(self, at: Lanes, by: Clock, warp: Lanes | int) -> None:
        self.warp[at], self.block[at], self.bars[at], self.arrived[at] = warp, by.block, by.bars, by.arrived


class Races:
    """Watches the shared memory of one block.

    Args:
        size: its bytes.
    """

    def __init__(self, size: int) -> None:
        self._stores, self._loads = _Accesses(size), _Accesses(size)

    def _require(self, unordered: Lanes, at: Lanes, what: str, by: Clock, other: _Accesses) -> None:
        if unordered.any():
            byte = int(at[int(np.argmax(unordered))])
            raise Race(
                f"{what} of byte {byte} of shared memory by warp {by.number}, without a barrier after warp "
                f"{int(other.warp[byte])}"
            )

    def load(self, at: Lanes, by: Clock) -> None:
        """Bytes that a warp loads.

        Raises:
            Race: another warp's store is not before it.
        """
        self._require(self._stores.unordered(at, by), at, "load", by, self._stores)
        before = self._loads.unordered(at, by)
        self._loads.put(at, by, np.where(before, _SEVERAL, by.number))

    def store(self, at: Lanes, by: Clock) -> None:
        """Bytes that a warp stores.

        Raises:
            Race: another warp's access is not before it.
        """
        self._require(self._stores.unordered(at, by), at, "store", by, self._stores)
        self._require(self._loads.unordered(at, by), at, "store", by, self._loads)
        self._stores.put(at, by, by.number)
        self._loads.put(at, by, _NONE)
