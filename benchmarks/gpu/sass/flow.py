"""Branches, calls, and lanes that wait for each other."""

from typing import TYPE_CHECKING

import numpy as np

from .operations import Lanes
from .parse import Instruction, is_predicate

if TYPE_CHECKING:
    from .warp import Warp

__all__ = ["flow", "mask_of", "resume"]


def resume(warp: "Warp", address: int, lanes: Lanes) -> None:
    """Lanes go on at an address, with the group that is there."""
    if not lanes.any():
        return
    if address in warp.groups:
        warp.groups[address] = warp.groups[address] | lanes
    else:
        warp.groups[address] = lanes


def _release(warp: "Warp") -> None:
    """Lets lanes that wait for each other go on if none is missing."""
    for (barrier, address), lanes in list(warp.waiting.items()):
        first = int(np.argmax(lanes))
        wanted = int(warp.reconverge[barrier, first]) if barrier >= 0 else 0xFFFFFFFF
        needed = ((np.uint32(wanted) >> np.arange(32, dtype=np.uint32)) & np.uint32(1)).astype(bool) & warp.alive
        if not (needed & ~lanes).any():
            del warp.waiting[barrier, address]
            resume(warp, address, lanes)


def mask_of(lanes: Lanes) -> int:
    return int(np.packbits(lanes, bitorder="little").view(np.uint32)[0])


def flow(warp: "Warp", i: Instruction, mask: Lanes, active: Lanes, following: int) -> bool:
    """Branches, calls and reconvergence; returns whether the instruction is one of them."""
    base, skipped = i.base, mask & ~active
    if base == "BRA":
        taken = active
        target = i.operands[-1].number
        if "DIV" in i.modifiers:
            taken = active if (mask != warp.alive).any() else active & False
        elif "ANY" in i.modifiers:  # uniform: all lanes if one has the condition
            taken = mask if active.any() else active
        elif is_predicate(i.operands[0]):
            taken = active & warp.predicate(i.operands[0])
        elif i.operands[0].kind == "uniform predicate":
            taken = active & warp.predicate(i.operands[0])
        if taken.any():
            warp.trace.path.add(target)
        resume(warp, target, taken)
        resume(warp, following, mask & ~taken)
    elif base in ("BRX", "BRXU"):
        register, offset = i.operands[0], i.operands[1].number
        targets = (warp.plain(register) + np.uint32((following + offset) & 0xFFFFFFFF)).astype(np.uint32)
        for target in np.unique(targets[active]):
            warp.trace.path.add(int(target))
            resume(warp, int(target), active & (targets == target))
        resume(warp, following, skipped)
    elif base == "CALL":
        resume(warp, i.operands[-1].number, active)
        warp.trace.path.add(i.operands[-1].number)
        resume(warp, following, skipped)
    elif base == "RET":
        targets = warp.plain(i.operands[0])
        for target in np.unique(targets[active]):
            resume(warp, int(target), active & (targets == target))
        resume(warp, following, skipped)
    elif base == "EXIT":
        warp.alive = warp.alive & ~active
        resume(warp, following, skipped)
        _release(warp)
    elif base == "BSSY":
        number = i.operands[0].number
        np.copyto(warp.reconverge[number], np.uint32(mask_of(active)), where=active)
        resume(warp, following, mask)
    elif base == "BREAK":
        number = i.operands[-1].number
        left = np.uint32(~mask_of(active) & 0xFFFFFFFF)
        warp.reconverge[number] &= left
        resume(warp, following, mask)
        _release(warp)
    elif base == "BSYNC":
        key = (i.operands[-1].number, following)
        warp.waiting[key] = warp.waiting.get(key, active & False) | active
        resume(warp, following, skipped)
        _release(warp)
    elif base == "WARPSYNC" and "ALL" in i.modifiers:
        key = (-1, following)
        warp.waiting[key] = warp.waiting.get(key, active & False) | active
        resume(warp, following, skipped)
        _release(warp)
    else:
        return False
    return True
