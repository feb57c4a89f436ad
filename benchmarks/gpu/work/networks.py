"""Speed of networks against timm's, eager and compiled, and the cost of SE.

    python3 -m benchmarks.gpu.work.networks MODE BATCH [--ahead]

SE-ResNet50 and ResNet-50 in channels_last, {se_fused, timm} x {eager, torch.compile, reduce-overhead}, and the models
of se_fused optimised for inference, in small batches also as a CUDA graph. Each is checked first. Wall-clock times,
measured in turn with se_fused, include the time of the host; the device's time excludes it. ``--ahead`` only runs the
compiled candidates once, to fill the caches of the compilers.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from se_fused.bench.accuracy import AccuracyCheck, Result
from se_fused.bench.measure.memory import peak_memory
from se_fused.bench.measure.timing import first_line, ratio, rounds_for, sampler, synchronizer, wall_clock
from se_fused.bench.providers.registry import compiles, why_not
from se_fused.bench.providers.torch_compile import fresh_compiler
from se_fused.bench.workloads import network
from se_fused.bench.workloads.base import Candidate
from se_fused.bench.workloads.network import ImageBatch, ModelWorkload

from ..target import Target, target
from . import at, emit

__all__ = ["main"]

CANDIDATES = (
    "se_fused", "eager", "se_fused compile", "compile", "se_fused compile reduce-overhead", "compile reduce-overhead",
    "se_fused optimized", "se_fused graphed",
)  # fmt: skip
LAYOUT = "channels_last"
SECONDS = 1.0  # seconds of wall-clock measurements for each candidate
MOST_GRAPHED = 8  # largest batch for "se_fused graphed", which only saves time of the host
MOST_DOUBLE = 64  # largest batch whose training step fits into the GPU's memory in float64


class _Workload(ModelWorkload):
    """Workload that compares large training batches with float32, because float64 would need 90 GB.

    The rounding error of float32 is 2^-16 of that of bfloat16.
    """

    def truth(self) -> dict[str, Tensor]:
        if self.mode == "infer" or self.images <= MOST_DOUBLE:
            return super().truth()
        dtype, self.dtype = self.dtype, torch.float32
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                candidate = self.candidate("eager", LAYOUT)
                return {k: t.double() for k, t in candidate.results().items()}
        finally:
            self.dtype = dtype


@contextmanager
def _compiler(there: Target) -> Iterator[None]:
    """In a rehearsal, let torch.compile trace without generating code, which would take minutes without a benefit."""
    before = network.compiled
    if there.rehearsal:

        def traced(what: Callable[..., Any], **options: Any) -> Any:
            return before(what, backend="eager")

        network.compiled = traced  # type: ignore[assignment]
    try:
        yield
    finally:
        network.compiled = before


def _in_turn(mine: Callable[[], float], ours: Callable[[], float], rehearsal: bool) -> tuple[list[float], list[float]]:
    """Measurements of both functions in turn, for about a second each."""
    once = mine() + ours()  # the next line measures again, with warm caches
    rounds = 2 if rehearsal else rounds_for(SECONDS, min(once, mine() + ours()), least=5, most=50)
    pairs = [(mine(), ours()) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _measure(candidate: Candidate, ours: Candidate | None, images: int, there: Target) -> dict[str, Any]:
    """Times and memory of a candidate, and its time over ours; ``ours`` is None if se_fused failed its check."""
    wait = synchronizer(there.device)
    other = candidate if ours is None else ours
    walls = _in_turn(wall_clock(candidate.run, wait), wall_clock(other.run, wait), there.rehearsal)
    median = statistics.median(walls[0])
    row: dict[str, Any] = {
        "wall_ms": round(median * 1e3, 3),
        "images_per_second": round(images / median, 1),
    }
    if ours is not None:
        row["over_ours"] = ratio(*walls).as_dict()
    candidate.reset()
    row["peak_bytes"] = peak_memory(candidate.run, there.device)
    candidate.reset()
    sample = sampler(candidate.run, there.device)
    replay = statistics.median(sample() for _ in range(2 if there.rehearsal else 5))
    return row | {"device_ms": round(replay * 1e3, 3), "timed_by": sample.how, "why_not_graph": sample.why}


def _network(name: str, mode: str, batch: int, there: Target, ahead: bool) -> dict[str, float]:
    """Check and measure the candidates of one network; return images per second by candidate."""
    speeds: dict[str, float] = {}
    about = {"network": name, "mode": mode, "batch": batch, "image": there.image,
             "dtype": str(there.dtype).removeprefix("torch.")}  # fmt: skip
    workload = _Workload(
        name, mode, there.dtype, there.device, layouts=(LAYOUT,),
        data=ImageBatch(batch, there.image, num_classes=10 if there.rehearsal else 1000),
    )  # fmt: skip
    judge = None if ahead else AccuracyCheck(workload)
    ours: Candidate | None = None
    for candidate_name in CANDIDATES:
        at(f"{name} {mode} {batch} {candidate_name}")
        if ahead and not compiles(candidate_name):
            continue
        if candidate_name == "se_fused graphed" and batch > MOST_GRAPHED:
            continue
        if reason := why_not(candidate_name, there.device, there.dtype, mode):
            emit(candidate_name, **about, skipped=reason)
            continue
        try:
            candidate, result = workload.candidate(candidate_name, LAYOUT), Result(candidate_name, LAYOUT)
            if judge is None:
                candidate.run()
                continue
            judge.check(candidate, result)
            if result.status != "ok":
                emit(candidate_name, **about, ok=False, note=result.note)
                continue
            if candidate_name == "se_fused":  # the first candidate
                ours = candidate
            row = _measure(candidate, ours, workload.images, there)
        except RuntimeError as error:  # no memory, or an error of the compiler: continue with the next candidate
            emit(candidate_name, **about, ok=False, note=first_line(error))
            continue
        finally:
            candidate = None  # type: ignore[assignment]
            gc.collect()
            if there.device == "cuda":
                torch.cuda.empty_cache()
        compiling = result.compile_seconds
        emit(candidate_name, **about, ok=True, errors=result.errors, compile_seconds=compiling, **row)
        speeds[candidate_name] = row["images_per_second"]
    fresh_compiler()
    return speeds


def _figure(found: dict[str, dict[str, float]]) -> str:
    """Summary: the fastest candidates of se_fused and timm in images per second (wall clock), and the cost of SE."""
    told, best = [], {}
    for name, speeds in found.items():
        ours = max((s for c, s in speeds.items() if c.startswith("se_fused")), default=None)
        timm = max((s for c, s in speeds.items() if not c.startswith("se_fused")), default=None)
        best[name] = ours, timm
        if ours and timm:
            told.append(f"{name}: ours {ours:.0f} images/s, timm {timm:.0f}, {ours / timm:.2f} times")
    pairs = zip(*(best[name] for name in found), strict=True) if len(found) == 2 else ()
    costs = [f"{plain / with_se - 1:.0%}" for with_se, plain in pairs if with_se and plain]
    return "; ".join([*told, *([f"SE costs ours {costs[0]}, timm {costs[1]}"] if len(costs) == 2 else [])])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="networks")
    parser.add_argument("mode", choices=("infer", "train"))
    parser.add_argument("batch", type=int)
    parser.add_argument("--ahead", action="store_true")
    options = parser.parse_args(arguments)
    there = target()
    torch.manual_seed(0)
    with _compiler(there):
        found = {name: _network(name, options.mode, options.batch, there, options.ahead) for name in there.network}
    if not options.ahead:
        emit("networks", figure=_figure(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
