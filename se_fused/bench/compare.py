"""Comparison of se_fused with eager PyTorch and torch.compile: results first, then time, memory and ratios.

``se-fused compare``, the benchmarks and the demo measure with :func:`measure`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .._formats import DTYPES, LAYOUTS
from ..models import list_models
from .accuracy import Progress, Result, agreement
from .measure.device_limits import copier, copy_bandwidth
from .measure.memory import keep_freed_memory, peak_memory, saved_bytes
from .measure.timing import first_line, rounds_for, synchronizer, timed_together
from .providers.registry import BASELINES, OURS
from .workloads.base import MODES, Workload
from .workloads.block import STAGES, BlockWorkload
from .workloads.network import ImageBatch, ModelWorkload

__all__ = ["Row", "measure", "parse_target", "plan", "run"]

_ROUNDS = (5, 200)


@dataclass
class Row:
    """Results of one workload: its candidates, and the times of a copy of the counted bytes."""

    workload: dict[str, Any]
    results: list[Result]
    draws: int = 1  # number of inputs drawn until all candidates agreed
    counted_bytes: int | None = None
    copy: dict[str, float] = field(default_factory=dict)
    """Seconds for the counted bytes at the speed of copy_. "same_size": measured in turn with the candidates, on a
    working set as large as the op's. "memory": measured on a working set far larger than the caches."""

    def best(self, name: str) -> Result | None:
        """Result of the candidate ``name`` in its fastest layout; None if it was not timed."""
        timed = [r for r in self.results if r.name == name and r.timing is not None]
        return min(timed, key=lambda r: r.milliseconds, default=None)

    @property
    def speedups(self) -> dict[str, float]:
        """Time of each baseline over the time of se_fused, each in its fastest layout."""
        ours = self.best(OURS)
        found = {name: self.best(name) for name in BASELINES}
        return {k: b.milliseconds / ours.milliseconds for k, b in found.items() if ours is not None and b is not None}

    @property
    def over_copy(self) -> dict[str, float]:
        """Time of se_fused over the time of a copy of the counted bytes, by the key of ``copy``."""
        ours = self.best(OURS)
        return {} if ours is None else {k: ours.milliseconds / (s * 1e3) for k, s in self.copy.items()}

    @property
    def ok(self) -> bool:
        """Whether se_fused ran and agreed with float64 in every layout."""
        mine = [r for r in self.results if r.name == OURS]
        return bool(mine) and all(r.status == "ok" for r in mine)

    def as_dict(self) -> dict[str, Any]:
        """All values as a dict for JSON."""
        return {**asdict(self), "speedups": self.speedups, "over_copy": self.over_copy, "ok": self.ok}


def _rounds(seconds: float, once: float) -> int:
    """Number of rounds of ``once`` seconds that take about ``seconds``; at least five, or three of longer ones."""
    least, most = _ROUNDS
    return rounds_for(seconds, once, min(least, 3) if once > seconds else least, most)


def measure(
    workload: Workload,
    *,
    compiled: bool = True,
    repeats: int | None = None,
    memory_copy: float | None = None,
    progress: Progress = lambda *_: None,
) -> Row:
    """Check the candidates of a workload and time those whose results agree with float64.

    Args:
        workload: the workload.
        compiled: whether to include the baseline under torch.compile.
        repeats: number of rounds; None: as many as fit into about ``workload.seconds``, at least 5 (3 if one round
            takes longer than that) and at most 200.
        memory_copy: bytes per second of ``copy_`` on a working set far larger than the caches.
        progress: called with the current step.
    """
    keep_freed_memory()
    wanted = [(name, layout) for name in (OURS, "eager") for layout in workload.layouts]
    if compiled:
        wanted.append(("compile", workload.compiled_layout))
    row = Row(workload.describe(), [Result(*one) for one in wanted])
    try:
        pairs = [(workload.candidate(r.name, r.layout), r) for r in row.results]
        row.draws = agreement(workload, pairs, progress)
    except Exception as error:  # the baseline itself cannot run, so there is nothing to compare with
        for result in row.results:
            result.status, result.note = "failed", first_line(error)
        return row
    timed = {f"{c.name} {c.layout}": (c, r) for c, r in pairs if r.status == "ok"}
    if not row.ok or not timed:
        return row

    wait = synchronizer(workload.device)
    calls: dict[str, Callable[[], Any]] = {key: c.run for key, (c, _) in timed.items()}
    counted = workload.counted()
    if counted is not None:
        row.counted_bytes, working_set = counted
        calls["copy"] = copier(workload.device, working_set)
    progress("warming up", 0.3)
    first = timed_together(calls, repeats=1, warmup=1, synchronize=wait)
    once = sum(t.median for t in first.values())
    rounds = _rounds(workload.seconds, once) if repeats is None else repeats
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress("timing", 0.4 + 0.5 * done / rounds)

    times = timed_together(calls, rounds, 0, wait, tick)  # no further warm-up: all have run already
    if counted is not None:
        row.copy["same_size"] = counted[0] / (counted[1] / times.pop("copy").median)
        if memory_copy is not None:
            row.copy["memory"] = counted[0] / memory_copy
    for key, timing in times.items():
        candidate, result = timed[key]
        progress("memory", 0.95)
        result.timing = timing
        result.images_per_second = workload.images / timing.median
        candidate.reset()  # otherwise gradients of earlier runs would be freed during the measurement
        result.peak_bytes = peak_memory(candidate.run, workload.device)
        candidate.reset()
        if workload.mode == "train":
            result.saved_bytes = saved_bytes(candidate.forward, candidate.kept)
    return row


# ---- targets of `se-fused compare TARGET`
Build = Callable[[], Workload]


def parse_target(target: str) -> str | tuple[int, int, int, int]:
    """Parse a target: a model's name, "stages", or "N,C,H,W", which gives a tuple of integers.

    Raises:
        ValueError: ``target`` is none of them. The message lists the choices.
    """
    name = target.strip().lower()
    if name == "stages" or name in list_models():
        return name
    if "," in name:
        try:
            n, c, h, w = (int(part) for part in name.split(","))
        except ValueError:
            raise ValueError(f"a block must be four integers N,C,H,W such as 8,256,56,56; got {target!r}") from None
        if min(n, c, h, w) < 1:
            raise ValueError(f"a block's sizes must be at least 1; got {target!r}")
        return n, c, h, w
    raise ValueError(f"must be stages, a block N,C,H,W, or a model: {', '.join(list_models())}; got {target!r}")


def plan(
    target: str | tuple[int, int, int, int],
    *,
    device: str | torch.device = "cpu",
    dtypes: Sequence[str] | None = None,
    layouts: Sequence[str] = tuple(LAYOUTS),
    modes: Sequence[str] = MODES,
    batch: int | None = None,
    size: int | None = None,
) -> list[Build]:
    """Functions that build the workloads of a target, so that only one needs to be in memory.

    Args:
        target: result of :func:`parse_target`.
        device: device of the workloads.
        dtypes: names of dtypes; None: float32 and bfloat16 for blocks, float32 for a network.
        layouts: memory formats; a block has one workload for each, a network one for all.
        modes: "infer", "train" or both.
        batch: batch size N; None: 8, or the N of the block.
        size: height and width of a network's images; None: 224.
    """
    builds: list[Build] = []
    shapes: tuple[tuple[int, int, int, int], ...] = STAGES
    if not isinstance(target, str):
        shapes = (target,)
    elif target != "stages":
        for dtype in dtypes or ("float32",):
            for mode in modes:
                builds.append(
                    lambda dtype=dtype, mode=mode: ModelWorkload(  # type: ignore[misc]
                        target,
                        mode,
                        DTYPES[dtype],
                        device,
                        layouts=layouts,
                        data=ImageBatch(batch=batch or 8, size=size or 224),
                    )
                )
        return builds
    for mode in modes:
        for dtype in dtypes or ("float32", "bfloat16"):
            for n, c, h, w in shapes:
                for layout in layouts:
                    shape = (batch or n, c, h, w)
                    builds.append(
                        lambda shape=shape, dtype=dtype, layout=layout, mode=mode: BlockWorkload(  # type: ignore[misc]
                            shape, DTYPES[dtype], layout, mode, device
                        )
                    )
    return builds


def run(
    builds: Sequence[Build], *, compiled: bool = True, repeats: int | None = None, progress: Progress = lambda *_: None
) -> tuple[list[Row], dict[str, float]]:
    """Measure workloads one after another; return the rows, and bytes per second of copy_ in memory by device.

    ``progress`` is called with the finished share of all workloads.
    """
    keep_freed_memory()
    rows: list[Row] = []
    memory: dict[str, float] = {}
    for i, build in enumerate(builds):
        workload = build()
        where = str(workload.device)
        if where not in memory and workload.counted() is not None:
            progress("copy", i / len(builds))
            memory[where] = copy_bandwidth(where)
        label = f"{workload.title} {'×'.join(map(str, workload.shape))}"

        def tell(what: str, share: float, i: int = i, label: str = label) -> None:
            progress(f"{label}: {what}", (i + share) / len(builds))

        rows.append(measure(workload, compiled=compiled, repeats=repeats, memory_copy=memory.get(where), progress=tell))
    return rows, memory
