"""Runs the machine code of a whole launch on the CPU: every block, with its barriers, clusters and atomics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .mbarrier import Barrier
from .memory import Memory
from .parse import Instruction
from .races import Races
from .warp import Constants, ExecutionError, Place, Warp, advance

__all__ = ["Grid", "run_grid"]

POISON = 0xFF
SYSTEM = 0x400  # bytes of shared memory before a block's own


@dataclass(frozen=True)
class Grid:
    """Sizes of a launch: blocks, threads of a block, bytes of shared memory, blocks of a cluster."""

    blocks: int
    threads: int
    shared: int
    cluster: int = 1


def _run_cluster(
    code: Mapping[int, Instruction], constants: Constants, grid: Grid, memory: Memory, first: int, reverse: bool
) -> None:
    """Run the blocks of one cluster side by side, each warp until its next barrier."""
    shared = [np.full(SYSTEM + grid.shared, POISON, dtype=np.uint8) for _ in range(grid.cluster)]
    shared = [np.concatenate([one, np.zeros(-len(one) % 4, dtype=np.uint8)]) for one in shared]
    races = [Races(len(one)) for one in shared]
    mbarriers: list[dict[int, Barrier]] = [{} for _ in shared]
    warps = math.ceil(grid.threads / 32)
    blocks = [
        [
            Warp(code, constants, Place(first + rank, 32 * k, rank), min(grid.threads - 32 * k, 32), memory, shared,
                 races, rank * warps + k, mbarriers)
            for k in range(warps)
        ]
        for rank in range(grid.cluster)
    ]  # fmt: skip
    at: dict[int, str | None] = {id(warp): "start" for block in blocks for warp in block}
    while any(state is not None for state in at.values()):
        moved = False
        for block in reversed(blocks) if reverse else blocks:
            for warp in reversed(block) if reverse else block:
                if at[id(warp)] in ("start", "copy"):
                    before, at[id(warp)] = at[id(warp)], advance(warp)
                    moved = moved or (before, at[id(warp)]) != ("copy", "copy")
            alive = [warp for warp in block if at[id(warp)] is not None]
            if alive and all(at[id(warp)] == "block" for warp in alive):
                at.update((id(warp), "start") for warp in alive)
                moved = True
        every = [warp for block in blocks for warp in block if at[id(warp)] is not None]
        if every and all(at[id(warp)] == "cluster" for warp in every):
            at.update((id(warp), "start") for warp in every)
            moved = True
        if not moved:
            raise ExecutionError(f"warps wait for ever: {sorted({str(state) for state in at.values()})}")


def run_grid(
    code: Mapping[int, Instruction], constants: Constants, grid: Grid, memory: Memory, reverse: bool = False
) -> None:
    """Run all blocks of a launch, one cluster after another.

    A block that waits for a tile of another block finds it done, because tiles are taken in order.

    Args:
        code: the kernel, from :func:`.parse.parse`.
        constants: constant banks, with the launch's parameter.
        grid: the launch's sizes.
        memory: global memory.
        reverse: run blocks and warps from the last to the first.

    Raises:
        ExecutionError: an instruction is not known, memory outside of shared memory is accessed, or warps wait for
            ever.
        Race: two accesses to shared memory are not ordered by a barrier.
    """
    firsts = range(0, grid.blocks, grid.cluster)
    for first in reversed(firsts) if reverse else firsts:
        _run_cluster(code, constants, grid, memory, first, reverse)
