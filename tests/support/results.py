"""A made-up run of the benchmark suite, with plausible but meaningless times, in the fields of the suite's JSON."""

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from se_fused._formats import LAYOUTS
from se_fused.bench.report.load import parse
from se_fused.bench.report.records import Run, Spread
from se_fused.bench.workloads.block import STAGES

SIZES = {"float32": 4, "bfloat16": 2}
# Time divided by our time.
BLOCK = {"se_fused": 1.0, "eager": 2.1, "timm": 2.2, "torchvision": 2.4, "monai": 2.6, "compile": 1.35}
WAYS = {
    "infer": {**BLOCK, "compile max-autotune": 1.3},
    "train": BLOCK,
}
NETWORK = {
    ("se_fused", "channels_last"): 1.0, ("se_fused", "contiguous"): 1.25, ("se_fused optimized", "channels_last"): 0.8,
    ("eager", "channels_last"): 1.3, ("eager", "contiguous"): 1.5, ("compile", "channels_last"): 1.1,
    ("compile freezing", "channels_last"): 0.9, ("openvino", "contiguous"): 0.85,
}  # fmt: skip
SE_COST = {"se_fused": 0.05, "eager": 0.22, "compile": 0.18, "openvino": 0.12}
TITLES = {"infer": "SE+add+ReLU inference", "train": "BN+SE+add+ReLU forward+backward"}
FILES = {"pass": "passes"}
PASSES = {"infer": 3, "train": 10}


def spread(median: float, width: float = 0.02, n: int = 15) -> dict[str, float]:
    return {"median": median, "q1": median * (1 - width / 2), "q3": median * (1 + width / 2), "n": n}


class _Group(NamedTuple):
    """What the candidates of a benchmark have in common."""

    kind: str
    title: str
    mode: str
    shape: tuple[int, ...]
    dtype: str


class _Writer:
    def __init__(self, seed: int, noise: float) -> None:
        self.random, self.noise, self.entries = random.Random(seed), noise, []

    def add(
        self,
        group: _Group,
        candidate: str,
        seconds: float,
        layout: str,
        ratio: float | None = None,
        to: str = "se_fused",
        **more: Any,
    ) -> None:
        kind, title, mode, shape, dtype = group
        seconds *= math.exp(self.random.gauss(0, self.noise))
        marks = [title.replace(" ", "_"), "x".join(map(str, shape)), dtype, layout, candidate.replace(" ", "_"), mode]
        marks += ["plain"] if more.get("plain") else []
        marks += [f"{more['study']['axis']}{more['study']['value']}"] if "study" in more else []
        name = f"test_{kind}[{'-'.join(marks)}]"
        info = {"kind": kind, "title": title, "mode": mode, "shape": list(shape), "dtype": dtype, "layout": layout,
                "device": "cpu", "candidate": candidate, "seconds": spread(seconds), **more}  # fmt: skip
        if ratio is not None:
            ratio *= math.exp(self.random.gauss(0, self.noise))
            info["ratio"] = {"to": to, **spread(ratio, 0.03)}
        if kind in ("block", "pass", "conv1x1"):
            info["cold"] = spread(seconds * 1.4)
            if ratio is not None:
                info["cold_ratio"] = {"to": to, **spread(1 + 0.7 * (ratio - 1), 0.03)}
        if "counted_bytes" in info:
            info["gb_per_second"] = info["counted_bytes"] / seconds / 1e9
            info["share_of_copy"] = {"warm": info["counted_bytes"] / seconds / 26e9, "cold": 0.9}
        if candidate == "convolution":  # the group has the title of ours, this entry has not
            info["title"] = "convolution"
        elements = "" if kind in ("network", "convert") else layout
        self.entries.append(
            {"group": " ".join(filter(None, [title, *map(str, shape), dtype, elements])), "name": name,
             "fullname": f"benchmarks/test_{FILES.get(kind, kind)}.py::{name}", "params": None,
             "stats": {"median": seconds}, "extra_info": info}
        )  # fmt: skip


def _elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _block(
    to: _Writer,
    shape: tuple[int, ...],
    mode: str,
    dtype: str,
    layout: str,
    names: Any = None,
    gain: float = 1.0,
    **more: Any,
) -> None:
    """Add the entries of a block. ``gain``: how many times as fast ours is; below 1 it is slower."""
    counted = PASSES[mode] * _elements(shape) * SIZES[dtype]
    for name, factor in WAYS[mode].items():
        if names is not None and name not in names:
            continue
        factor = factor if name == "se_fused" else factor * gain
        to.add(_Group("block", TITLES[mode], mode, shape, dtype), name, (4e-6 + counted / 20e9) * factor, layout,
               None if name == "se_fused" else factor, counted_bytes=counted, flops=counted,
               working_set_bytes=counted, peak_bytes=int(_elements(shape) * SIZES[dtype] * (1 + factor)),
               **({"saved_bytes": int(_elements(shape) * SIZES[dtype] * factor)} if mode == "train" else {}),
               **more)  # fmt: skip


def _network(to: _Writer, batch: int, size: int, dtype: str, mode: str, plain: bool = True, **more: Any) -> None:
    base = (0.02 + 0.012 * batch) * (size / 224) ** 2 * (3 if mode == "train" else 1)
    title = f"seresnet50 {'inference' if mode == 'infer' else 'forward+backward'}"
    work = batch * (size / 224) ** 2 * (3 if mode == "train" else 1)
    shape, flops = (batch, 3, size, size), int(5e8 * work)
    group = _Group("network", title, mode, shape, dtype)
    for (name, layout), factor in NETWORK.items():
        ratio = None if (name, layout) == ("se_fused", "channels_last") else factor
        fields = {"network": "seresnet50", "baseline": "timm 1.0.31", "flops": flops, "counted_bytes": int(6e7 * work),
                  "peak_bytes": int(50e6 * batch * factor), **more}  # fmt: skip
        if mode == "train":
            if name in ("openvino", "compile freezing", "se_fused optimized"):
                continue
            fields["saved_bytes"] = int(90e6 * batch * factor)
        to.add(group, name, base * factor, layout, ratio, **fields)
        cost = SE_COST.get(name)
        if plain and cost is not None:
            to.add(group, name, base * factor / (1 + cost), layout, 1 / (1 + cost), name, **fields, plain=True)


def document(
    seed: int = 0,
    noise: float = 0.0,
    small: bool = False,
    commit: str = "0123456789abcdef",
    gpu: str = "",
    cpu: str = "Imaginary CPU 9000",
) -> dict[str, Any]:
    """The whole JSON document.

    Args:
        seed, noise: seed, and standard deviation of the logarithm of each time.
        small: one stage, one dtype, batch 1, no studies.
        commit, cpu, gpu: the recorded commit and hardware.
    """
    to = _Writer(seed, noise)
    stages, dtypes = (STAGES[:1], ("float32",)) if small else (STAGES, tuple(SIZES))
    for mode in PASSES:
        for shape in stages:
            for dtype in dtypes:
                for layout in LAYOUTS:
                    _block(to, shape, mode, dtype, layout)
    for shape in stages:
        for dtype in dtypes:
            for name, passes in (("moments (cpu)", 1), ("scale_shift_act (cpu)", 3)):
                counted = passes * _elements(shape) * SIZES[dtype]
                to.add(_Group("pass", name, "forward", shape, dtype), "se_fused", counted / 22e9, "contiguous",
                       counted_bytes=counted, flops=2 * _elements(shape), working_set_bytes=counted)  # fmt: skip
    ways = {"se_fused": 1.0, "product": 1.1, "separate": 1.5, "eager": 1.6, "convolution": 0.92}
    for name, factor in ways.items():
        group = _Group("conv1x1", "gated convolution", "infer", (8, 256, 56, 56), "float32")
        ratio = None if name == "se_fused" else factor
        to.add(group, name, 2e-3 * factor, "channels_last", ratio, counted_bytes=4 * 10**7)
    for batch in (1,) if small else (1, 8):
        for dtype in dtypes:
            for mode in ("infer", "train"):
                _network(to, batch, 224, dtype, mode)
    for name, factor in (("converted", 1.0), ("original", 1.31)):
        group = _Group("convert", "timm seresnet50 inference", "infer", (8, 3, 224, 224), "float32")
        ratio = None if name == "converted" else factor
        to.add(
            group, name, 0.12 * factor, "channels_last", ratio, "converted", network="seresnet50",
            peak_bytes=int(4e8 * factor),
        )  # fmt: skip
    if not small:
        few = ("se_fused", "eager", "compile")
        for mode in PASSES:
            for axis, shapes in {
                "channels": [(c, (8, c, 28, 28)) for c in (64, 256, 1024)],
                "positions": [(s * s, (8, 256, s, s)) for s in (1, 4, 14, 56)],
            }.items():
                for value, shape in shapes:
                    gain = 0.4 if value == 1 else 0.74 if value == 16 else 1.0
                    _block(to, shape, mode, "float32", "contiguous", few, gain, study={"axis": axis, "value": value})
        for batch in (1, 2, 4, 8, 16):
            _network(to, batch, 224, "float32", "infer", plain=False, study={"axis": "batch", "value": batch})
        for size in (64, 128, 224):
            _network(to, 4, size, "float32", "infer", plain=False, study={"axis": "image", "value": size})
    sizes = [2**k for k in range(16, 30, 2)]
    missing = [f"test_network[seresnet50-{k}-tensorrt]" for k in range(8)]
    return {
        "machine_info": {"node": "nowhere"},
        "commit_info": {"id": commit, "branch": "main", "dirty": True},
        "datetime": "2026-01-02T03:04:05+00:00",
        "version": "5.3.1",
        "benchmarks": to.entries,
        "se_fused": {
            "command": "pytest benchmarks --benchmark-only --benchmark-json=results.json",
            "preset": "default",
            "info": {
                "se_fused": "0.1.0", "commit": commit, "platform": "Linux-6.1",
                "versions": {"python": "3.11.7", "torch": "2.14.1", "triton": "3.8.0", "timm": "1.0.31", "cuda": None},
                "cpu": {"model": cpu, "cores": 2, "threads": 2, "instructions": "avx512"},
                "gpus": [{"name": gpu, "capability": "9.0", "memory_bytes": 150_000_000_000}] if gpu else [],
            },
            "freed_memory_kept": True,
            "limits": {"cpu": {
                "cache_bytes": 2**25,
                "copy": [{"working_set_bytes": s, "warm": 60e9 if s < 2**25 else 14e9, "cold": 13e9} for s in sizes],
                "theoretical_bytes_per_second": 40e9,
                "matmul_flops_per_second": {"float32": 150e9, "bfloat16": 400e9},
            }},
            "skipped": [
                *({"name": n, "reason": "tensorrt is not installed: pip install torch-tensorrt"} for n in missing),
                {"name": "test_block[gpu]", "reason": "torch sees no GPU"},
            ],
        },
    }  # fmt: skip


def made_up(**how: Any) -> Run:
    return parse(document(**how), "made_up.json")


def written(path: Path, **how: Any) -> Path:
    path.write_text(json.dumps(document(**how)))
    return path


def shaken(
    run: Run, seed: int, factor: Callable[[Any], float] = lambda m: 1.0, noise: float = 0.03, drift: float = 0.2
) -> Run:
    """A copy of the run with changed times: each group faster or slower as a whole, and each benchmark by a little.

    Args:
        factor: the true change of a measurement's time.
        noise, drift: standard deviations of the logarithm, per benchmark and per group.
    """
    draw = random.Random(seed)
    groups: dict[str, float] = {}
    changed = []
    for m in run.measurements:
        group = groups.setdefault(m.group, draw.gauss(0.1, drift))
        by = math.exp(group + draw.gauss(0, noise)) * factor(m)
        old = m.seconds
        changed.append(dataclasses.replace(m, seconds=Spread(old.median * by, old.q1 * by, old.q3 * by, old.n)))
    return dataclasses.replace(run, measurements=tuple(changed), files=("after.json",))
