"""Predicted time of each kernel on an H100, from its machine code, a launch's parameters, and counts.

``python3 -m benchmarks.gpu model`` prints it. The launches of a call are recorded from the backend's host code
(:mod:`.launches`). Some of their warps are executed (:mod:`.sass`), which counts instructions, memory sectors and bank
conflicts, and how long a warp takes alone. From these follow three times for a launch, of which the longest decides:

- issue: the instructions of all warps through the units of the multiprocessors;
- memory: the bytes that must move, at a copy's speed;
- latency: rounds of blocks, each as long as one of its warps takes when it waits for memory.

They do not overlap perfectly where they are close: the prediction is the fourth root of the sum of their fourth powers,
plus the time in which a launch fills and drains the device. The constants are for an H100 SXM. Nothing here has been
compared with a GPU yet: take a prediction as an order of kernels and of changes, not as a time.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from se_fused._formats import LAYOUTS

from . import triton_launches
from .launches import Launched, recorded
from .machine_code import code_of, constants_of, registers_of
from .sass.warp import LATENCY, Place, Trace, run
from .tickets import phases
from .work.times import MODES, call, counted_bytes_of

__all__ = ["MACHINE", "STAGES", "Machine", "Prediction", "predict", "predictions"]

STAGES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))


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
        trace.instructions / 4, units["alu"] / 2, (units["fma"] + units["imad"]) / 4, units["imad"] / 2,
        units["xu"] * 2, trace.wavefronts,
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


def resident(launch: Launched, machine: Machine = MACHINE) -> int:
    """Blocks of a launch that a multiprocessor holds at a time."""
    registers = math.ceil(registers_of(launch.symbol) / 8) * 8
    by_registers = machine.registers // (registers * launch.threads)
    by_shared = machine.shared // (launch.shared + 1024)
    return max(min(by_registers, by_shared, machine.threads // launch.threads, machine.blocks), 1)


# ---- passes
def _sampled(launch: Launched, latency: dict[str, float]) -> Iterator[Trace]:
    """Warps of a block at the start, in the middle and near the end of the grid."""
    code, constants = code_of(launch.symbol), constants_of(launch)
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
        registers_of(launch.symbol), blocks, launch.blocks, rounds,
        instructions * 32 / (wide / 16) if wide else None,
        sum(t.conflicts for t in traces) / max(sum(t.wavefronts for t in traces), 1),
    )  # fmt: skip


# ---- launches with tickets
def _tickets(launch: Launched, machine: Machine) -> Prediction:
    latency = {**LATENCY, "global": machine.l2, "map": machine.l2}
    blocks, warps = resident(launch, machine), launch.threads // 32
    time = issue = waits = 0.0
    found = phases(launch, latency)
    for level in dict.fromkeys(phase.waits for phase in found):  # phases that wait for the same run side by side
        together = [phase for phase in found if phase.waits == level]
        tiles = sum(phase.tiles for phase in together)
        spread = sum(phase.tiles * phase.trace.cycles for phase in together) / min(launch.blocks, tiles)
        one = max(max(phase.trace.cycles for phase in together), spread) / machine.clock
        per = sum(phase.tiles * warps * busy(phase.trace) for phase in together)
        per /= min(machine.multiprocessors, tiles) * machine.clock
        time += max(one, per) + machine.phase
        issue += per
        waits += one
    time += machine.start
    return Prediction(
        launch.name, time * 1e6, None, issue * 1e6, 0.0, waits * 1e6, "latency" if waits > issue else "issue",
        registers_of(launch.symbol), blocks, launch.blocks, 1.0, None, 0.0,
    )  # fmt: skip


# ---- clusters
def _clusters(launch: Launched, counted: int, machine: Machine) -> Prediction:
    """Rounds of clusters: each moves its maps at a copy's speed, and waits for sums and gate in between.

    All clusters of a round are in the same phase, so memory is idle during sums and gate, but for a prefetch of the
    residual.
    """
    latency = {**LATENCY, "global": machine.l2, "map": machine.memory}
    code, constants = code_of(launch.symbol), constants_of(launch)
    blocks, warps = resident(launch, machine), launch.threads // 32
    middle = launch.blocks // launch.cluster // 2 * launch.cluster
    traces = [
        run(code, constants, Place(middle + rank, 32 * warp, rank), latency=latency)
        for rank in dict.fromkeys((0, launch.cluster - 1))
        for warp in dict.fromkeys((0, warps // 2))
    ]
    at_once = max(machine.multiprocessors * blocks // launch.cluster, 1)
    rounds = launch.blocks / launch.cluster / at_once
    # From the arrival of x to the last wait for other blocks, but for one with which a block only stays alive.
    pushes = any(name.startswith("STAS") for t in traces for name in t.names)
    last = -1 if pushes else -2
    exposed = max(t.marks[last] - t.marks[0] if len(t.marks) > 2 else t.cycles for t in traces) / machine.clock
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
        max(times, key=times.__getitem__), registers_of(launch.symbol), blocks, launch.blocks, rounds,
        instructions * 32 / (counted / 16) if wide else None,
        sum(t.conflicts for t in traces) / max(sum(t.wavefronts for t in traces), 1),
    )  # fmt: skip


# ---- calls
def predict(
    launch: Launched, mode: str, shape: Sequence[int], dtype: torch.dtype, machine: Machine = MACHINE
) -> Prediction:
    """The predicted time of a launch.

    Args:
        launch: from :func:`.launches.recorded`.
        mode: one of :data:`.work.times.MODES`; decides whether a mask is written.
        shape, dtype: of the map.
        machine: the GPU.
    """
    counted = counted_bytes_of(launch.name, mode, torch.empty(tuple(shape), dtype=dtype, device="meta"))
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


def _launches(backend: str, mode: str, given: dict[str, Any]) -> list[Launched]:
    if backend == "triton":
        return triton_launches.recorded(call(mode, backend, given))
    return recorded(lambda _: call(mode, backend, given)())


def predictions(
    backend: str = "cuda", batch: int = 128, dtype: torch.dtype = torch.bfloat16,
    stages: Sequence[tuple[int, ...]] = STAGES, kernels: Sequence[str] = (), machine: Machine = MACHINE,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each launch of the block in inference, training and as a squeeze, in all stages and layouts.

    l2_grouped, whose passes wait for each other within one launch, has no prediction.

    Args:
        backend: "cuda" or "triton".
        batch, dtype, stages: of the maps; stages are (C, H, W).
        kernels: names of the launches; empty for all.
        machine: the GPU.
        progress: called with each workload.
    """
    rows = []
    for sizes, layout, mode in itertools.product(stages, LAYOUTS, MODES):
        shape = (batch, *sizes)
        progress(f"{backend} {mode} {shape} {layout}")
        for launch in _launches(backend, mode, inputs(shape, layout, dtype)):
            if launch.name == "l2_grouped" or (kernels and launch.name not in kernels):
                continue
            found = predict(launch, mode, shape, dtype, machine)
            about = {"backend": backend, "shape": list(shape), "layout": layout, "mode": mode}
            rows.append(about | asdict(found))
    return rows
