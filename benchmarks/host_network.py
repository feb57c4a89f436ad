"""The host's share of a network: instructions of whole passes of SE-ResNet50 on a device without kernels.

    python -m benchmarks.host_network [--autocast] [--parts] [--time] [--markdown] [--only se_fused timm]

Ours, timm's model converted by se_fused, and timm's run on the stand-in device (benchmarks/standin), where PyTorch's
and se_fused's host code runs as on CUDA and launches are counted. Callgrind counts the instructions of all threads;
counts repeat to about 1 %. --parts splits them among checks, layers, autograd, allocation and so on (host_parts.py says
how), and --time measures seconds instead, ours and timm's in turns. The optimizer is not part of a step. Counting needs
valgrind and takes five minutes on a free machine, with --parts ten.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import callgrind, host_parts, standin

NETWORKS = ("timm", "se_fused", "converted")
PASSES = ("inference", "forward", "backward", "step")
UNCOUNTED, COUNTED = 2, 2  # runs of every pass; the first ones fill caches

Region = Callable[[str], AbstractContextManager[object]]


def network(name: str, device: str = standin.DEVICE, model: str = "seresnet50") -> nn.Module:
    """SE-ResNet50, or another network that both libraries have, in channels_last, without initial values."""
    import timm

    from se_fused import convert
    from se_fused.models import create_model

    with torch.device("meta"):
        made: nn.Module = create_model(model) if name == "se_fused" else timm.create_model(model)
        if name == "converted":
            made = convert(made)
    return made.to_empty(device=device).to(memory_format=torch.channels_last)


def batch_of(samples: int, device: str = standin.DEVICE, side: int = 224) -> Tensor:
    return torch.empty(samples, 3, side, side, device=device).to(memory_format=torch.channels_last)


def run_passes(model: nn.Module, x: Tensor, region: Region, autocast: bool = False) -> None:
    """Run every pass once, each within ``region`` of its name. A step is forward, loss and backward."""
    kind = x.device.type

    def low() -> AbstractContextManager[object]:
        return torch.autocast(kind, torch.bfloat16) if autocast else nullcontext()

    model.eval()
    with torch.no_grad(), region("inference"), low():
        model(x)
    model.train()
    with region("forward"), low():
        y = model(x)
    dy = torch.empty_like(y)
    with region("backward"):
        y.backward(dy)
    del y
    with region("step"):
        run_once(model, x, "step", autocast)
    model.zero_grad(set_to_none=True)


@dataclass
class Count:
    """What one pass takes."""

    instructions: float
    launches: dict[str, int]
    allocations: int
    parts: dict[str, int] = field(default_factory=dict)


class Counting:
    """Counts instructions, launches and allocations of a region; callgrind writes a file for each."""

    def __init__(self) -> None:
        self.found: list[tuple[str, dict[str, int], int]] = []
        self.name = ""

    def __call__(self, name: str) -> "Counting":
        self.name = name
        return self

    def __enter__(self) -> None:
        standin.launched()
        standin.allocations()
        torch.ops.standin.start_counting()

    def __exit__(self, *error: object) -> None:
        torch.ops.standin.stop_counting(self.name)
        self.found.append((self.name, standin.launched(), standin.allocations()))


def run(name: str, batch: int, autocast: bool, parts: bool) -> None:
    """The part that runs under valgrind. Writes what it counted."""
    torch.set_num_threads(1)
    counting = Counting()
    with standin.backend():
        model, x = network(name), batch_of(batch)
        if parts:
            standin.name_frames(host_parts.FRAMES.values())
        gc.disable()
        for region in (*(lambda _: nullcontext(),) * UNCOUNTED, *(counting,) * COUNTED):
            gc.collect()
            run_passes(model, x, region, autocast)
    print(json.dumps(counting.found), flush=True)
    os._exit(0)  # an orderly end would be instrumented too, and take a minute


def count(name: str, batch: int, autocast: bool, parts: bool) -> dict[str, Count]:
    """What each pass of a network takes.

    Raises:
        RuntimeError: valgrind is not installed, or the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        options = ["--instr-atstart=no", *["--separate-callers1=_PyEval_EvalFrameDefault"] * parts]
        arguments = ["--count", name, "--batch", str(batch), *["--autocast"] * autocast, *["--parts"] * parts]
        printed = callgrind.run(out, "benchmarks.host_network", options, arguments)
        found: dict[str, Count] = {}
        for number, (kind, launches, allocations) in enumerate(json.loads(printed), start=1):
            file = Path(f"{out}.{number}")
            row = found.setdefault(kind, Count(0, launches, allocations))
            row.instructions += callgrind.total(file) / COUNTED
            if parts:
                for part, instructions in host_parts.parts(file).items():
                    row.parts[part] = row.parts.get(part, 0) + instructions // COUNTED
        return found


class Clock:
    """Seconds of each region."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.name, self.start = "", 0.0

    def __call__(self, name: str) -> "Clock":
        self.name = name
        return self

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start


def time_in_turns(names: Sequence[str], batch: int, autocast: bool, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Seconds by pass and network in each round; the networks run in turns, each round in the other order."""
    gc.collect()
    gc.disable()
    found: list[dict[str, dict[str, float]]] = []
    try:
        with standin.backend():
            x, models = batch_of(batch), {name: network(name) for name in names}
            for number in range(UNCOUNTED + rounds):
                turn: dict[str, dict[str, float]] = {kind: {} for kind in PASSES}
                for name in names if number % 2 else reversed(names):
                    clock = Clock()
                    run_passes(models[name], x, clock, autocast)
                    for kind, seconds in clock.seconds.items():
                        turn[kind][name] = seconds
                found.append(turn)
                gc.collect()
    finally:
        gc.enable()
    return found[UNCOUNTED:]


def run_once(model: nn.Module, x: Tensor, kind: str, autocast: bool) -> None:
    """One pass of inference, or one step, in the mode that the model has."""
    with torch.autocast(x.device.type, torch.bfloat16) if autocast else nullcontext():
        if kind == "inference":
            with torch.no_grad():
                model(x)
            return
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), torch.empty(len(x), dtype=torch.long, device=x.device))
    loss.backward()


def serve() -> None:
    """Answer each line "network pass dtype" with the seconds of that pass (host_process.py). The first answer is empty,
    or says why nothing can run here."""
    reason = standin.why_not() or ("" if find_spec("timm") else "timm is not installed")
    print(reason, flush=True)
    if reason:
        return
    torch.set_num_threads(1)
    models: dict[str, nn.Module] = {}
    with standin.backend():
        x = batch_of(8)
        for line in sys.stdin:
            name, kind, dtype = line.split()
            if name not in models:
                models[name] = network(name)
            if models[name].training != (kind == "step"):  # setting it takes a tenth of a step
                models[name].train(kind == "step")
            start = time.perf_counter()
            run_once(models[name], x, kind, dtype == "bfloat16")
            print(time.perf_counter() - start, flush=True)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    first, median, third = quantiles(values, n=4)
    return first, median, third


def time_rows(names: Sequence[str], turns: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """A row for each network and pass: milliseconds, and the ratio to timm of the same round with its quartiles."""
    rows = []
    for name in names:
        for kind in PASSES:
            _, median, _ = spread([turn[kind][name] for turn in turns])
            low, ratio, high = spread([turn[kind][name] / turn[kind]["timm"] for turn in turns])
            rows.append([name, kind, f"{1e3 * median:.2f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})"])
    return rows


def count_rows(counts: dict[str, dict[str, Count]]) -> list[list[str]]:
    """A row for each network and pass: instructions, the ratio to timm, launches, allocations."""
    rows = []
    for name, passes in counts.items():
        for kind, row in passes.items():
            ratio = f"{row.instructions / counts['timm'][kind].instructions:.2f}" if "timm" in counts else ""
            launches = sum(row.launches.values())
            rows.append([name, kind, f"{row.instructions / 1e6:.2f}", ratio, str(launches), str(row.allocations)])
    return rows


def part_rows(counts: dict[str, dict[str, Count]]) -> list[list[str]]:
    """A row for each part: its million instructions in each network and pass."""
    shown = [row.parts for passes in counts.values() for kind, row in passes.items() if kind != "step"]
    rows = [[part, *(f"{parts[part] / 1e6:.2f}" for parts in shown)] for part in host_parts.PARTS]
    return [row for row in rows if any(float(cell) for cell in row[1:])]


def show(title: str, heads: Sequence[str], rows: list[list[str]], left: int, markdown: bool) -> None:
    """Print a table whose first ``left`` columns are text."""
    if markdown:
        lines = [heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows]
        print(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        return
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_network", description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast instead of float32")
    parser.add_argument("--parts", action="store_true", help="split the instructions among the parts of the work")
    parser.add_argument("--time", action="store_true", help="seconds in turns with timm instead of instructions")
    parser.add_argument("--rounds", type=int, default=40, help="of --time")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, help="networks to count")
    parser.add_argument("--markdown", action="store_true", help="print tables for NOTES.md")
    parser.add_argument("--count", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve()
        return
    if given.count:
        run(given.count, given.batch, given.autocast, given.parts)
        return
    if (reason := standin.why_not()) is not None:
        sys.exit(f"the stand-in device {reason}")
    standin.library()
    dtype = "bfloat16 autocast" if given.autocast else "float32"
    about = f"SE-ResNet50, batch {given.batch}, 224 x 224, channels_last, {dtype}"
    if given.time:
        names = [name for name in NETWORKS if name in given.only or name == "timm"]
        torch.set_num_threads(1)
        turns = time_in_turns(names, given.batch, given.autocast, given.rounds)
        heads = ["network", "pass", "ms", "ratio to timm (quartiles)"]
        show(f"Time of the host: {about}, {given.rounds} rounds", heads, time_rows(names, turns), 2, given.markdown)
        return
    counts = {}
    for name in given.only:
        print(f"counting {name} under valgrind, one to three minutes", file=sys.stderr)
        counts[name] = count(name, given.batch, given.autocast, given.parts)
    heads = ["network", "pass", "million instructions", "ratio to timm", "launches", "allocations"]
    show(f"Instructions of the host: {about}", heads, count_rows(counts), 2, given.markdown)
    if given.parts:
        heads = ["part", *(f"{name} {kind}" for name in counts for kind in PASSES if kind != "step")]
        show(f"Million instructions by part: {about}", heads, part_rows(counts), 1, given.markdown)


if __name__ == "__main__":
    main()
