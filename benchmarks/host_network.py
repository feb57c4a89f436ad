"""The host's share of a network: instructions of a whole pass of SE-ResNet50 on a device without kernels.

    python -m benchmarks.host_network [--batch 8] [--markdown]

Ours, timm's model converted by se_fused, and timm's run on the stand-in device (benchmarks/standin), where PyTorch's
and se_fused's host code runs as on CUDA and launches are counted. Callgrind counts the instructions of all threads.
Counts repeat to about 1 %. It needs valgrind and a C++ compiler, and takes about three minutes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import standin

CALLS = 2  # counted passes of each kind, after as many that are not counted
NETWORKS = ("se_fused", "converted", "timm")
PASSES = ("inference", "forward", "backward", "step")


def network(name: str) -> nn.Module:
    """SE-ResNet50 on the stand-in, in channels_last."""
    import timm

    from se_fused import convert
    from se_fused.models import create_model

    with torch.device("meta"):
        model = create_model("seresnet50") if name == "se_fused" else timm.create_model("seresnet50")
        if name == "converted":
            model = convert(model)
    return model.to_empty(device=standin.DEVICE).to(memory_format=torch.channels_last)


def batch_of(size: int) -> Tensor:
    return torch.empty(size, 3, 224, 224, device=standin.DEVICE).to(memory_format=torch.channels_last)


def passes(model: nn.Module, x: Tensor, region: Callable[[str], Any], autocast: bool = False) -> None:
    """Run every pass once, each within ``region(its name)``."""
    dtype = torch.autocast(standin.DEVICE, torch.bfloat16) if autocast else nullcontext()
    model.eval()
    with torch.no_grad(), dtype, region("inference"):
        model(x)
    model.train()
    with dtype, region("forward"):
        y = model(x)
    dy = torch.empty_like(y)
    with region("backward"):
        y.backward(dy)
    target = torch.empty(len(x), dtype=torch.long, device=standin.DEVICE)
    with region("step"):
        model.zero_grad(set_to_none=True)
        with dtype:
            loss = F.cross_entropy(model(x), target)
        loss.backward()
    model.zero_grad(set_to_none=True)


class counted:
    """Counts instructions within the block, and launches."""

    found: ClassVar[list[tuple[str, dict[str, int], int]]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        standin.launched()
        standin.allocations()
        torch.ops.standin.start_counting()

    def __exit__(self, *error: object) -> None:
        torch.ops.standin.stop_counting(self.name)
        self.found.append((self.name, standin.launched(), standin.allocations()))


def run(name: str, batch: int, autocast: bool) -> None:
    """The part that runs under valgrind."""
    import gc

    torch.set_num_threads(1)
    with standin.backend():
        model, x = network(name), batch_of(batch)
        gc.disable()
        for region in (*(lambda _: nullcontext(),) * CALLS, *(counted,) * CALLS):
            gc.collect()
            passes(model, x, region, autocast)
    print(json.dumps(counted.found), flush=True)
    os._exit(0)  # an orderly end would be instrumented too, and take a minute


def count(name: str, batch: int, autocast: bool, out: Path) -> dict[str, dict[str, Any]]:
    """Instructions, launches and allocations of each pass."""
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
    command += [sys.executable, "-m", "benchmarks.host_network", "--count", name, "--batch", str(batch)]
    command += ["--autocast"] * autocast
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, dict[str, Any]] = {}
    for number, (kind, launches, allocations) in enumerate(json.loads(done.stdout), start=1):
        text = Path(f"{out}.{number}").read_text()
        found = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        assert found is not None
        row = result.setdefault(kind, {"instructions": [], "launches": launches, "allocations": allocations})
        row["instructions"].append(int(found.group(1)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--count", choices=NETWORKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        run(given.count, given.batch, given.autocast)
        return
    standin.library()
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            found = count(name, given.batch, given.autocast, Path(given.keep or folder) / name)
            for kind, row in found.items():
                print(name, kind, row["instructions"], sum(row["launches"].values()), row["allocations"], flush=True)


if __name__ == "__main__":
    main()
