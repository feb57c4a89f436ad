"""Speed of the block against eager PyTorch, timm's module and torch.compile.

    python3 -m benchmarks.gpu.work.blocks [--share I/N]

The blocks of ResNet-50's four stages are measured in channels_last, in inference and in a training step. Each candidate
is checked against float64. Then all are timed in turn, without the time of the host, with inputs that rotate through
more memory than L2 has. ``--share`` runs a part of the compiled calls once and times nothing, to fill the caches of the
compilers.
"""

import argparse
import sys
from typing import Any, cast

import torch

from se_fused.bench.accuracy import AccuracyCheck, Result
from se_fused.bench.measure.device_limits import copier, rotation
from se_fused.bench.measure.memory import peak_memory, saved_bytes
from se_fused.bench.measure.timing import Timing, in_turn, ratio, sampler
from se_fused.bench.providers.registry import compiles, why_not
from se_fused.bench.providers.torch_compile import fresh_compiler
from se_fused.bench.workloads.base import Candidate
from se_fused.bench.workloads.block import BlockWorkload

from ..target import Shape, Target, target
from . import at, emit

__all__ = ["main"]

CANDIDATES = ("se_fused", "eager", "timm", "compile")
LAYOUT = "channels_last"
ROUNDS = 7


def _measure(shape: Shape, mode: str, there: Target) -> dict[str, float]:
    """Check and measure the candidates of one workload; return the time of each over the time of se_fused."""
    workload = BlockWorkload(cast(Any, shape), there.dtype, LAYOUT, mode, there.device)
    about = {"shape": list(shape), "mode": mode, "layout": LAYOUT, "dtype": str(there.dtype).removeprefix("torch.")}
    judge, able, results = AccuracyCheck(workload), {}, {}
    for name in CANDIDATES:
        at(f"{mode} {shape} {name}")
        if (reason := why_not(name, there.device, there.dtype, mode)) or (there.rehearsal and compiles(name)):
            emit(name, **about, skipped=reason or "not compiled in the rehearsal")
            continue
        candidate, result = workload.candidate(name, LAYOUT), Result(name, LAYOUT)
        judge.check(candidate, result)
        if result.status != "ok":
            emit(name, **about, ok=False, note=result.note)
            continue
        able[name], results[name] = candidate, result
    counted, working_set = workload.counted()
    sets = 1 if there.rehearsal else rotation(working_set, there.device)
    at(f"{mode} {shape} timing")

    def rotated(candidate: Candidate) -> list[Any]:
        return [candidate.run] if candidate.rotate is None else candidate.rotate(sets)

    samplers = {name: sampler(rotated(candidate), there.device) for name, candidate in able.items()}
    samplers["copy"] = sampler([copier(there.device, working_set) for _ in range(sets)], there.device)
    seconds = in_turn(samplers, ROUNDS)
    for name, candidate in able.items():
        candidate.reset()
        row: dict[str, Any] = {
            "us": round(Timing.of(seconds[name]).median * 1e6, 2),
            "timed_by": samplers[name].how,
            "why_not_graph": samplers[name].why,
            "peak_bytes": peak_memory(candidate.run, there.device),
        }
        if "se_fused" in able:
            row["over_ours"] = ratio(seconds[name], seconds["se_fused"]).as_dict()
        row["share_of_copy"] = round(counted / working_set / ratio(seconds[name], seconds["copy"]).median, 3)
        if mode != "infer":
            row["saved_bytes"] = saved_bytes(candidate.forward, candidate.kept)
        emit(name, **about, ok=True, errors=results[name].errors, counted_bytes=counted, **row)
    if "se_fused" not in able:
        return {}
    return {name: ratio(seconds[name], seconds["se_fused"]).median for name in able if name != "se_fused"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="blocks")
    parser.add_argument("--share", default="")
    options = parser.parse_args(arguments)
    there = target()
    torch.manual_seed(0)
    work = [(stage, mode) for stage in there.stages for mode in ("infer", "train")]
    if options.share:
        part, parts = (int(number) for number in options.share.split("/"))
        for stage, mode in work[part::parts]:
            workload = BlockWorkload(cast(Any, stage), there.dtype, LAYOUT, mode, there.device)
            workload.candidate("se_fused", LAYOUT).run()
            if not there.rehearsal:
                workload.candidate("compile", LAYOUT).run()
        return 0
    told: dict[tuple[str, str], list[str]] = {}
    for stage, mode in work:
        for name, over in _measure(stage, mode, there).items():
            told.setdefault((mode, name), []).append(f"{over:.2f}")
        fresh_compiler()
    emit("blocks", figure="; ".join(f"{mode}: {name} {'/'.join(over)}x ours" for (mode, name), over in told.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
