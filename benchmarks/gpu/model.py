"""Predicted time of each CUDA kernel on an H100, from its machine code, a launch's parameters, and counts.

    python3 -m benchmarks.gpu model [--kernel NAME ...] [--batch N] [--json FILE]

The launches of a call are recorded from the backend's host code (:mod:`.launches`). Some of their warps are executed
(:mod:`.sass`), which counts instructions, memory sectors and bank conflicts, and how long a warp takes alone. From these
follow three times for a launch, of which the longest decides:

- issue: the instructions of all warps through the units of the multiprocessors;
- memory: the bytes that must move, at a copy's speed;
- latency: rounds of blocks, each as long as one of its warps takes when it waits for memory.

They do not overlap perfectly where they are close, so the prediction is the fourth root of the sum of their fourth powers,
and the time in which a launch fills and drains the device. The constants below are for an H100 SXM. Nothing here has been
compared with a GPU yet: take a prediction as an order of kernels and of changes, not as a time.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from se_fused._formats import LAYOUTS
from se_fused.ops.layout import mask_numel

from ..cases import PASSES
from .launches import Launched, recorded
from .sass.parse import Instruction, parse
from .sass.warp import LATENCY, Constants, Place, Trace, run
from .target import use_tests

__all__ = ["MACHINE", "STAGES", "Machine", "Prediction", "predict", "predictions"]

STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
PARAMETERS = 0x210
"""Offset of a kernel's parameter in constant bank 0 on sm_90."""


@dataclass(frozen=True)
class Machine:
    """An H100 SXM.

    Attributes:
        multiprocessors, clock, registers, threads, blocks, shared: of the device, and per multiprocessor (Hz, bytes).
        copy: bytes per second of a copy in device memory, both directions together.
        memory, l2: cycles from a load to its value, under load, from device memory and from L2.
        start: seconds in which a launch fills and drains the device.
        phase: seconds for one phase of a launch with tickets to hand over to the next: release, polling, ticket.
    """

    multiprocessors: int = 132
    clock: float = 1.755e9
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    shared: int = 233472
    copy: float = 3.0e12
    memory: float = 1000.0
    l2: float = 350.0
    start: float = 2.0e-6
    phase: float = 1.2e-6


MACHINE = Machine()


def busy(trace: Trace) -> float:
    """Cycles of a multiprocessor that a warp's instructions take, by the busiest unit.

    A multiprocessor has four schedulers, each of which issues one instruction a cycle. Throughput of the units per
    multiprocessor: 128 float32 additions or products, 64 integer products, additions, comparisons or logical
    operations, 16 special functions or conversions of 64 bits (CUDA Programming Guide, "Throughput of Native Arithmetic
    Instructions", compute capability 9.0), 128 bytes through the load/store unit.
    """
    units = trace.units
    return max(
        trace.instructions / 4, units["alu"] / 2, (units["fma"] + units["imad"]) / 4, units["imad"] / 2, units["xu"] * 2,
        trace.wavefronts,
    )  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """The predicted time of a launch, and what it comes from.

    Attributes:
        kernel: the launch's name.
        us: predicted microseconds.
        share: of a copy's speed on the counted bytes; None if the kernel's bytes are not counted.
        issue, memory, latency: the three times, in microseconds.
        limit: the name of the longest of them.
        registers, resident: per thread, and blocks per multiprocessor.
        blocks, rounds: of the launch, and blocks over resident blocks.
        per_vector: warp instructions per 16 bytes of maps and lane.
        conflicts: share of the load/store unit's cycles that bank conflicts cause.
    """

    kernel: str
    us: float
    share: float | None
    issue: float
    memory: float
    latency: float
    limit: str
    registers: int
    resident: int
    blocks: int
    rounds: float
    per_vector: float | None
    conflicts: float


@functools.cache
def _kernels() -> dict[str, tuple[str, int, Path]]:
    """(disassembly, registers, cubin) of every kernel, compiled for sm_90."""
    use_tests()
    from support import cuda_code

    found = {}
    for source in cuda_code.SOURCES.values():
        code = cuda_code.compiled(source, 90)
        text = cuda_code.machine_code(code)
        found.update({k.mangled: (text[k.mangled], k.registers, code.cubin) for k in code.kernels if k.is_entry})
    return found


@functools.cache
def _code(symbol: str) -> dict[int, Instruction]:
    return parse(_kernels()[symbol][0])


@functools.cache
def _table(symbol: str) -> bytes:
    """The kernel's constants in bank 2: the targets of its switches."""
    use_tests()
    from support import cuda_code

    return cuda_code.section(_kernels()[symbol][2], f".nv.constant2.{symbol}")


def _constants(launch: Launched) -> Constants:
    words = {0x0: launch.threads, 0x4: 1, 0x8: 1, 0xC: launch.blocks, 0x10: 1, 0x14: 1}
    head = bytearray(PARAMETERS)
    for at, word in words.items():
        head[at : at + 4] = word.to_bytes(4, "little")
    return Constants({0: bytes(head) + launch.parameter, 2: _table(launch.symbol)})


def resident(launch: Launched, machine: Machine = MACHINE) -> int:
    """Blocks of a launch that a multiprocessor holds at a time."""
    registers = math.ceil(_kernels()[launch.symbol][1] / 8) * 8
    by_registers = machine.registers // (registers * launch.threads)
    by_shared = machine.shared // (launch.shared + 1024)
    return max(min(by_registers, by_shared, machine.threads // launch.threads, machine.blocks), 1)


# ---- passes
def _sampled(launch: Launched, latency: dict[str, float]) -> Iterator[Trace]:
    """Warps of a block at the start, in the middle and near the end of the grid."""
    code, constants = _code(launch.symbol), _constants(launch)
    warps = launch.threads // 32
    for block in dict.fromkeys((1 % launch.blocks, launch.blocks // 2, launch.blocks - 1 - launch.blocks // 3)):
        for warp in dict.fromkeys((0, warps // 2, warps - 1)):
            place = Place(block, 32 * warp, block % launch.cluster)
            yield run(code, constants, place, latency=latency)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _joined(*times: float) -> float:
    """The fourth root of the sum of fourth powers: the longest time, and a little of the others."""
    return sum(t**4 for t in times) ** 0.25


def _pass(launch: Launched, counted: int | None, machine: Machine) -> Prediction:
    latency = {**LATENCY, "global": machine.l2, "map": machine.memory}
    traces = list(_sampled(launch, latency))
    blocks, warps = resident(launch, machine), launch.threads // 32
    rounds = launch.blocks / (blocks * machine.multiprocessors)
    issue = launch.blocks * warps / machine.multiprocessors * _mean([busy(t) for t in traces]) / machine.clock
    moved = launch.blocks * warps * _mean([sum(t.read.values()) + sum(t.written.values()) for t in traces])
    memory = (counted or moved) / machine.copy
    longest = _mean([t.cycles for t in traces]) / machine.clock
    latency_time = max(rounds, 1) * longest
    time = _joined(issue, memory, latency_time) + machine.start
    wide = launch.blocks * warps * _mean([t.read[16] + t.written[16] for t in traces])
    instructions = launch.blocks * warps * _mean([t.instructions for t in traces])
    times = {"issue": issue, "memory": memory, "latency": latency_time}
    return Prediction(
        launch.name, time * 1e6, None if counted is None else counted / machine.copy / time,
        issue * 1e6, memory * 1e6, latency_time * 1e6, max(times, key=times.__getitem__),
        _kernels()[launch.symbol][1], blocks, launch.blocks, rounds,
        instructions * 32 / (wide / 16) if wide else None,
        sum(t.conflicts for t in traces) / max(sum(t.wavefronts for t in traces), 1),
    )  # fmt: skip


# ---- launches with tickets
_DONE = 1 << 29
"""A ticket after the last one, and a count that every wait accepts."""


class _Tickets:
    """Memory of a block that takes one given ticket and then finds that none is left."""

    def __init__(self, ticket: int) -> None:
        self.ticket, self.counters, self.taken, self.slot = ticket, None, 0, None

    def atomic(self, address: int) -> int:
        if self.counters is None:
            self.counters = address
        if address != self.counters:
            return 0
        self.taken += 1
        return self.ticket if self.taken == 1 else _DONE

    def loads(self, address: int) -> int | None:
        """The counters of phases; and for warps that do not take the ticket, the ticket in shared memory."""
        if self.counters is not None and 0 <= address - self.counters < 64:
            return _DONE
        if address == self.slot:
            self.taken += 1
            return self.ticket if self.taken == 1 else _DONE
        return None


def _slot(launch: Launched) -> int:
    """Address of the ticket in shared memory: the last word (excitation.cu, excitation_backward.cu)."""
    return (launch.shared - 4) & ~3


def _tile(launch: Launched, ticket: int, warp: int, latency: dict[str, float]) -> Trace:
    memory = _Tickets(ticket)
    if warp:
        memory.slot = _slot(launch)
        memory.counters = -(1 << 60)
    return run(
        _code(launch.symbol), _constants(launch), Place(0, 32 * warp), atomic=memory.atomic, loads=memory.loads,
        latency=latency, most=1_000_000,
    )  # fmt: skip


def phases(launch: Launched, latency: dict[str, float]) -> list[tuple[int, Trace]]:
    """(tiles, what the first warp does in one) of each phase: tickets whose tiles take the same path."""
    seen: dict[int, Trace] = {}

    def at(ticket: int) -> Trace:
        if ticket not in seen:
            seen[ticket] = _tile(launch, ticket, 0, latency)
        return seen[ticket]

    nothing = at(_DONE).path
    last = 1
    while at(last).path != nothing:
        last *= 2
    low, high = last // 2, last  # tickets: low has a tile, high has none
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).path != nothing else (low, middle)
    found: list[tuple[int, Trace]] = []
    first = 0
    while first < high:
        inside, outside = first, high
        while outside - inside > 1:
            middle = (inside + outside) // 2
            same = len(at(middle).path ^ at(first).path) <= 2  # the last tile of a phase may be partly filled
            inside, outside = (middle, outside) if same else (inside, middle)
        found.append((outside - first, at((first + inside) // 2)))
        first = outside
    return found


def _tickets(launch: Launched, machine: Machine) -> Prediction:
    latency = {**LATENCY, "global": machine.l2, "map": machine.l2}
    blocks, warps = resident(launch, machine), launch.threads // 32
    places = launch.blocks
    time = issue = waits = 0.0
    for tiles, trace in phases(launch, latency):
        rounds = math.ceil(tiles / places)
        one = trace.cycles / machine.clock
        per = tiles * warps * busy(trace) / min(machine.multiprocessors, max(tiles, 1)) / machine.clock
        time += max(rounds * one, per) + machine.phase
        issue += per
        waits += rounds * one
    time += machine.start
    return Prediction(
        launch.name, time * 1e6, None, issue * 1e6, 0.0, waits * 1e6, "latency" if waits > issue else "issue",
        _kernels()[launch.symbol][1], blocks, launch.blocks, 1.0, None, 0.0,
    )  # fmt: skip


# ---- clusters
def _clusters(launch: Launched, counted: int, machine: Machine) -> Prediction:
    """Rounds of clusters: each moves its maps at a copy's speed, and waits for sums and gate in between.

    All clusters of a round are in the same phase, so memory is idle during sums and gate, but for a prefetch of the
    residual.
    """
    latency = {**LATENCY, "global": machine.l2, "map": machine.memory}
    code, constants = _code(launch.symbol), _constants(launch)
    blocks, warps = resident(launch, machine), launch.threads // 32
    middle = launch.blocks // launch.cluster // 2 * launch.cluster
    traces = [
        run(code, constants, Place(middle + rank, 32 * warp, rank), latency=latency)
        for rank in dict.fromkeys((0, launch.cluster - 1))
        for warp in dict.fromkeys((0, warps // 2))
    ]
    at_once = max(machine.multiprocessors * blocks // launch.cluster, 1)
    rounds = launch.blocks / launch.cluster / at_once
    exposed = max(t.marks[-2] if len(t.marks) > 1 else t.cycles for t in traces) / machine.clock
    memory = counted / machine.copy
    prefetched = any(name.startswith("UBLKPF") for t in traces for name in t.names)
    per_round = memory / max(rounds, 1)
    hidden = min(exposed, per_round / 3) if prefetched else 0.0
    issue = launch.blocks * warps / machine.multiprocessors * _mean([busy(t) for t in traces]) / machine.clock
    waits = max(rounds, 1) * (exposed - hidden)
    first = machine.memory / machine.clock
    time = max(memory + waits, issue) + machine.start + 2 * first
    times = {"issue": issue, "memory": memory, "latency": waits}
    wide = launch.blocks * warps * _mean([t.read[16] + t.written[16] for t in traces])
    instructions = launch.blocks * warps * _mean([t.instructions for t in traces])
    return Prediction(
        launch.name, time * 1e6, counted / machine.copy / time, issue * 1e6, memory * 1e6, waits * 1e6,
        max(times, key=times.__getitem__), _kernels()[launch.symbol][1], blocks, launch.blocks, rounds,
        instructions * 32 / (counted / 16) if wide else None,
        sum(t.conflicts for t in traces) / max(sum(t.wavefronts for t in traces), 1),
    )  # fmt: skip


# ---- calls
def _counted(kernel: str, mode: str, shape: Sequence[int], dtype: torch.dtype) -> int | None:
    """Bytes that a launch must move; None if they are not counted. As in :func:`.work.times.counted_bytes_of`."""
    x = torch.empty(tuple(shape), dtype=dtype, device="meta")
    if kernel in ("cluster_fused", "l2_grouped"):
        return 3 * x.nbytes
    if kernel not in PASSES:
        return None
    reads, writes, masks, _ = PASSES[kernel]
    return (reads + writes) * x.nbytes + (0 if mode == "infer" else masks) * mask_numel(x)


def predict(launch: Launched, mode: str, shape: Sequence[int], dtype: torch.dtype, machine: Machine = MACHINE) -> Prediction:
    """The predicted time of a launch.

    Args:
        launch: from :func:`.launches.recorded`.
        mode: "infer", "train" or "squeeze"; decides whether a mask is written.
        shape, dtype: of the map.
        machine: the GPU.
    """
    counted = _counted(launch.name, mode, shape, dtype)
    if launch.cluster > 1 or launch.name == "cluster_fused":
        assert counted is not None
        return _clusters(launch, counted, machine)
    if launch.name in ("excitation", "excitation_backward"):
        return _tickets(launch, machine)
    return _pass(launch, counted, machine)


def inputs(shape: Sequence[int], layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """Tensors for :func:`.work.times.call`, whose memory is never touched."""
    c = shape[1]
    r = max(c // 16, 4)
    maps = {k: torch.empty(tuple(shape), dtype=dtype, memory_format=LAYOUTS[layout]) for k in ("x", "residual", "dy")}
    fc = [torch.empty(size, dtype=dtype) for size in ((r, c), (r,), (c, r), (c,))]
    return maps | {"fc": fc, "bn": [torch.empty(c), torch.empty(c)], "vector": torch.empty(tuple(shape[:2]))}


def predictions(
    batch: int = 128, dtype: torch.dtype = torch.bfloat16, stages: Sequence[tuple[int, ...]] = STAGES,
    kernels: Sequence[str] = (), machine: Machine = MACHINE, progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each launch of the block in inference, training and as a squeeze, in all stages and layouts."""
    from .work.times import MODES, call

    rows = []
    for stage, sizes in enumerate(stages):
        shape = (batch, *sizes)
        for layout in LAYOUTS:
            for mode in MODES:
                progress(f"{mode} {shape} {layout}")
                given = inputs(shape, layout, dtype)
                for launch in recorded(lambda backend, m=mode, g=given: call(m, "cuda", g)()):
                    if kernels and launch.name not in kernels:
                        continue
                    found = predict(launch, mode, shape, dtype, machine)
                    rows.append({"stage": stage, "shape": list(shape), "layout": layout, "mode": mode} | asdict(found))
    return rows
