"""Phases of launches whose blocks take tickets (excitation, excitation_backward), found by executing single tiles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .launches import Launched
from .machine_code import code_of, constants_of
from .sass.memory import Pattern
from .sass.warp import Place, Trace, run

__all__ = ["Phase", "phases"]

_DONE = 1 << 29
"""A ticket after the last one, and a count that every wait accepts."""
_COUNTERS = 16  # bytes after the ticket counter that hold the counts of finished tiles


@dataclass(frozen=True)
class Phase:
    """Tiles of a launch that take the same path.

    Attributes:
        tiles: their number.
        trace: what the first warp does in one of them.
        waits: the counters, as offsets from the first, that they wait for.
    """

    tiles: int
    trace: Trace
    waits: frozenset[int]


class _Tickets(Pattern):
    """Memory of a block that takes one given ticket and then finds that none is left."""

    def __init__(self, ticket: int) -> None:
        super().__init__(self._take, self._count)
        self.ticket, self.taken = ticket, 0
        self.counters: int | None = None
        self.waited: set[int] = set()

    def _take(self, address: int) -> int:
        if self.counters is None:
            self.counters = address
        if address != self.counters:
            return 0
        self.taken += 1
        return self.ticket if self.taken == 1 else _DONE

    def _count(self, address: int) -> int | None:
        if self.counters is not None and 0 < address - self.counters < _COUNTERS:
            self.waited.add(address - self.counters)
            return _DONE
        return None


def phases(launch: Launched, latency: Mapping[str, float]) -> list[Phase]:
    """The phases of a launch: neighbouring tickets whose tiles take the same path.

    Args:
        launch: from :func:`.launches.recorded`.
        latency: as in :func:`.sass.warp.run`.
    """
    seen: dict[int, Phase] = {}

    def at(ticket: int) -> Phase:
        if ticket not in seen:
            memory = _Tickets(ticket)
            trace = run(code_of(launch.symbol), constants_of(launch), Place(0), memory, latency)
            seen[ticket] = Phase(1, trace, frozenset(memory.waited))
        return seen[ticket]

    def path(ticket: int) -> set[int]:
        return at(ticket).trace.path

    nothing = path(_DONE)
    last = 1
    while path(last) != nothing:
        last *= 2
    low, high = last // 2, last  # `low` has a tile, `high` has none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if path(middle) != nothing else (low, middle)
    found: list[Phase] = []
    first = 0
    while first < high:
        inside, outside = first, high
        while outside - inside > 1:
            middle = (inside + outside) // 2
            # the last tile of a phase may be partly filled, and the first may do a little more
            same = at(middle).waits == at(first).waits and len(path(middle) ^ path(first)) <= 4
            inside, outside = (middle, outside) if same else (inside, middle)
        found.append(replace(at((first + inside) // 2), tiles=outside - first))
        first = outside
    return found
