"""Ours against eager PyTorch and torch.compile: first whether the results agree, then time, memory and ratios.

``se-fused compare``, the benchmarks and the demo all measure through :func:`measure`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models import list_models
from ..testing.error_bounds import GRADIENT_FLOOR, relative_error
from .measure.memory import (
    Timing,
    copier,
    copy_bandwidth,
    keep_freed_memory,
    peak_memory,
    saved_bytes,
    synchronizer,
    timed_together,
)
from .providers.registry import compiles
from .workloads.block import DTYPES, LAYOUTS, MODES, STAGES, Candidate, TailWorkload, Workload
from .workloads.network import ModelWorkload, NetworkWorkload

__all__ = ["Judge", "Result", "Row", "agreement", "measure", "plan"]

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of the row that is done."""

# Ours may err twice as much as the eager peer, by which all are judged; the others are only checked for computing the
# same thing.
_FACTORS: dict[str, float | None] = {"se_fused": 2.0, "converted": 2.0, "eager": None}
_OTHERS = 10.0
_ROUNDS = (5, 200)


@dataclass
class Result:
    """One candidate of a row. Errors are relative to float64, by result."""

    name: str
    layout: str
    status: str = "ok"  # "ok"; "differs": not timed; "failed": it raised
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    timing: Timing | None = None
    images_per_second: float | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    compile_seconds: float | None = None

    @property
    def milliseconds(self) -> float:
        """Median; NaN if it was not timed."""
        return math.nan if self.timing is None else self.timing.median * 1e3


@dataclass
class Row:
    """One workload: its candidates, and what the counted bytes say."""

    workload: dict[str, Any]
    results: list[Result]
    draws: int = 1  # inputs that were drawn until all agreed
    counted_bytes: int | None = None
    copy: dict[str, float] = field(default_factory=dict)
    """Seconds that the counted bytes take at the speed of copy_, measured in turn with the candidates on a working set
    as large as the op's ("same_size"), and on one far larger than the caches ("memory")."""

    def best(self, name: str) -> Result | None:
        """The candidate of that name in the layout where it is fastest, if it was timed."""
        timed = [r for r in self.results if r.name == name and r.timing is not None]
        return min(timed, key=lambda r: r.milliseconds, default=None)

    @property
    def speedups(self) -> dict[str, float]:
        """How many times faster ours is than each peer, each in its best layout."""
        ours = self.best("se_fused")
        peers = {name: self.best(name) for name in ("eager", "compile")}
        return {k: p.milliseconds / ours.milliseconds for k, p in peers.items() if ours is not None and p is not None}

    @property
    def over_copy(self) -> dict[str, float]:
        """Our time over that of the counted bytes, by yardstick."""
        ours = self.best("se_fused")
        return {} if ours is None else {k: ours.milliseconds / (s * 1e3) for k, s in self.copy.items()}

    @property
    def ok(self) -> bool:
        """Whether ours ran and agreed wherever it was tried."""
        mine = [r for r in self.results if r.name == "se_fused"]
        return bool(mine) and all(r.status == "ok" for r in mine)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "speedups": self.speedups, "over_copy": self.over_copy, "ok": self.ok}


def _errors(results: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    missing = truth.keys() ^ results.keys()
    if missing:
        return {name: math.inf for name in missing}
    return {name: relative_error(results[name], t) for name, t in truth.items()}


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def least_error(truth: Tensor, dtype: torch.dtype) -> float:
    """What a result may err by where eager's error happens to be smaller: one number has no average to go by."""
    return GRADIENT_FLOOR + (torch.finfo(dtype).eps if truth.numel() == 1 else 0.0)


class Judge:
    """Checks candidates of one workload against float64; the truth and eager's errors are computed once per draw.

    Ours may err twice as much as eager PyTorch (in either layout, where the workload has both), plus a few eps. A
    network's gradients jump where a ReLU's argument crosses zero, and one crossing outweighs all other errors; so a
    network that seems to disagree is tried on up to ``workload.draws`` inputs: what is wrong is wrong on all of them.

    Args:
        workload: whose inputs are drawn anew where that is needed.
        peers: eager candidates that are there already.
        progress: told what is being done.
    """

    def __init__(
        self, workload: Workload, peers: Sequence[Candidate] = (), progress: Progress = lambda *_: None
    ) -> None:
        self.workload, self._progress = workload, progress
        # A network's eager peer is tried in both layouts, even where one is measured: two samples of rounding.
        layouts = tuple(LAYOUTS) if isinstance(workload, NetworkWorkload) else workload.layouts
        self._peers = {peer.layout: peer for peer in peers}
        for layout in layouts:
            if layout not in self._peers:
                self._peers[layout] = workload.candidate(workload.truth_of, layout)
        self._standards: dict[int, _Standard] = {}
        self._drawn = 0

    def _standard(self, draw: int) -> "_Standard":
        if draw != self._drawn:
            self.workload.draw(draw)
            self._drawn = draw
        if draw not in self._standards:
            self._progress("float64", 0.0)
            truth, bound = self.workload.truth(), self.workload.bound("y")
            eager: dict[str, float] = {}
            for peer in self._peers.values():
                for name, error in _errors(peer.results(), truth).items():
                    eager[name] = max(eager.get(name, 0.0), error)
            self._standards[draw] = _Standard(truth, bound, eager)
        return self._standards[draw]

    def check(self, candidate: Candidate, result: Result, allowance: float | None = None) -> int:
        """Fill in errors, what is allowed, and whether it agrees; returns how many inputs were drawn.

        Args:
            candidate: what to check.
            result: what is filled in.
            allowance: the relative error of an engine with rounding of its own (:func:`.registry.allowance`).
        """
        for draw in range(self.workload.draws):
            standard = self._standard(draw)
            self._progress(f"checking {candidate.name}", 0.1)
            start = time.perf_counter()
            try:
                results = candidate.results()
            except Exception as error:  # an operator that a dtype lacks, a compiler that is not there, no memory left
                result.status, result.note = "failed", first_line(error)
                return draw + 1
            if compiles(candidate.name) and result.compile_seconds is None:
                result.compile_seconds = time.perf_counter() - start
            self._compare(candidate, result, results, standard, allowance or 0.0)
            if result.status == "ok":
                break
        return draw + 1

    def _compare(
        self, candidate: Candidate, result: Result, results: dict[str, Tensor], standard: "_Standard", allowance: float
    ) -> None:
        truth, dtype = standard.truth, self.workload.dtype
        result.errors = _errors(results, truth)
        # Eager is the measure of the others; of it only finite results are asked.
        factor = _FACTORS.get(candidate.name.partition(" ")[0], _OTHERS)  # "se_fused compile" is ours too
        least = {k: max(least_error(t, dtype), allowance) for k, t in truth.items()}
        result.allowed = {k: 1.0 if factor is None else factor * e + least[k] for k, e in standard.eager.items()}
        if candidate.name == "se_fused" and standard.bound is not None:
            share = ((results["y"].double() - truth["y"]).abs() / standard.bound).max().item()
            result.errors["y, of its bound"] = share if share == share else math.inf
            result.allowed["y, of its bound"] = 1.0
        wrong = [k for k, e in result.errors.items() if not e <= result.allowed.get(k, 0.0)]
        result.status = "differs" if wrong else "ok"
        told = (f"{k}: error {result.errors[k]:.1e}, allowed {result.allowed.get(k, 0.0):.1e}" for k in wrong)
        result.note = "differs from float64 in " + "; ".join(told) if wrong else ""


@dataclass(frozen=True)
class _Standard:
    """What one draw of the inputs is judged by."""

    truth: dict[str, Tensor]
    bound: Tensor | None
    eager: dict[str, float]


def agreement(
    workload: Workload, pairs: Sequence[tuple[Candidate, Result]], progress: Progress = lambda *_: None
) -> int:
    """Check each candidate by one :class:`Judge`, filling in its result; returns how many inputs were drawn at most."""
    judge = Judge(workload, [candidate for candidate, _ in pairs if candidate.name == "eager"], progress)
    return max((judge.check(candidate, result) for candidate, result in pairs), default=0)


def _rounds(seconds: float, once: float) -> int:
    """How many rounds of ``once`` seconds: about ``seconds`` of them; a median of three where one takes longer."""
    least, most = _ROUNDS
    if once > seconds:
        least = min(least, 3)
    return int(min(max(seconds / max(once, 1e-9), least), most))


def measure(
    workload: Workload,
    *,
    compiled: bool = True,
    repeats: int | None = None,
    memory_copy: float | None = None,
    progress: Progress = lambda *_: None,
) -> Row:
    """Check a workload's candidates and time those that agree.

    Args:
        workload: what to compute.
        compiled: whether torch.compile of the peer takes part.
        repeats: rounds; None: as many as fit into about ``workload.seconds``, from 5 (3 of very long ones) to 200.
        memory_copy: bytes per second of ``copy_`` on a working set far larger than the caches, for the floor.
        progress: told what is being done.
    """
    keep_freed_memory()
    wanted = [(name, layout) for name in ("se_fused", "eager") for layout in workload.layouts]
    if compiled:
        wanted.append(("compile", workload.compiled_layout))
    row = Row(workload.describe(), [Result(*one) for one in wanted])
    try:
        pairs = [(workload.candidate(r.name, r.layout), r) for r in row.results]
        row.draws = agreement(workload, pairs, progress)
    except Exception as error:  # the peer itself cannot run: nothing to compare with
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

    times = timed_together(calls, rounds, 0, wait, tick)  # they are warm
    if counted is not None:
        row.copy["same_size"] = counted[0] / (counted[1] / times.pop("copy").median)
        if memory_copy is not None:
            row.copy["memory"] = counted[0] / memory_copy
    for key, timing in times.items():
        candidate, result = timed[key]
        progress("memory", 0.95)
        result.timing = timing
        result.images_per_second = workload.images / timing.median
        candidate.reset()  # gradients of earlier runs would be freed within this one
        result.peak_bytes = peak_memory(candidate.run, workload.device)
        candidate.reset()
        if workload.mode == "train":
            result.saved_bytes = saved_bytes(candidate.forward, candidate.kept)
    return row


# ---- what `se-fused compare TARGET` means
Build = Callable[[], Workload]


def parse_target(target: str) -> str | tuple[int, int, int, int]:
    """A model's name, "stages", or (N, C, H, W).

    Raises:
        ValueError: it is none of them; the message lists the choices.
    """
    name = target.strip().lower()
    if name == "stages" or name in list_models():
        return name
    if "," in name:
        try:
            n, c, h, w = (int(part) for part in name.split(","))
        except ValueError:
            raise ValueError(f"a block is four integers N,C,H,W such as 8,256,56,56; got {target!r}") from None
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
    """The workloads of a target, each built when it is called.

    Args:
        target: from :func:`parse_target`.
        device, layouts, modes: as named.
        dtypes: names; None: float32 and bfloat16 for tails, float32 for a network.
        batch: N; None: 8, or the block's.
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
                        target, mode, DTYPES[dtype], device, layouts=layouts, batch=batch or 8, size=size or 224
                    )
                )
        return builds
    for mode in modes:
        for dtype in dtypes or ("float32", "bfloat16"):
            for n, c, h, w in shapes:
                for layout in layouts:
                    shape = (batch or n, c, h, w)
                    builds.append(
                        lambda shape=shape, dtype=dtype, layout=layout, mode=mode: TailWorkload(  # type: ignore[misc]
                            shape, DTYPES[dtype], layout, mode, device
                        )
                    )
    return builds


def run(
    builds: Sequence[Build], *, compiled: bool = True, repeats: int | None = None, progress: Progress = lambda *_: None
) -> tuple[list[Row], dict[str, float]]:
    """Measure workloads one after another: the rows, and bytes per second of copy_ in memory by device.

    ``progress`` is told of the share of the whole.
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
