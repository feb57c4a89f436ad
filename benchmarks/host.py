"""The host's share of a call: instructions per call of each public function, counted by callgrind on the CPU backend.

    python -m benchmarks.host [--layout channels_last] [function ...]

The map has 1 x 16 x 2 x 2 elements (2 samples in training), so that nearly all instructions are those of Python, of
PyTorch's dispatcher and of allocations. With --network, whole networks on a device without kernels instead
(host_network.py). Counts repeat to about 1 %, where seconds on a shared machine do not. The
forward pass is counted; with --backward, forward and backward. It needs valgrind and takes two minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import callgrind
from se_fused import functional
from se_fused.testing.verify import to_layout

CALLS = 20  # counted calls of each function, after as many that are not counted
N, C, R = 2, 16, 4


def functions(layout: str, training: bool) -> dict[str, Callable[[], Tensor]]:
    """A call of each public function, by name; in inference on one sample."""
    torch.manual_seed(0)
    x = to_layout(torch.randn(N if training else 1, C, 2, 2), layout).requires_grad_(training)
    residual = torch.randn_like(x)
    norm = torch.zeros(C), torch.ones(C), torch.randn(C), torch.randn(C)
    fc = torch.randn(R, C), torch.randn(R), torch.randn(C, R), torch.randn(C)
    for parameter in (*norm[2:], *fc):
        parameter.requires_grad_(training)
    conv, gate = torch.randn(C, C), torch.rand(len(x), C)
    calls: dict[str, Callable[[], Tensor]] = {
        "batch_norm_squeeze_excite": lambda: functional.batch_norm_squeeze_excite(
            x, *norm, *fc, residual, training=training, out_act="relu"
        ),
        "squeeze_excite": lambda: functional.squeeze_excite(x, *fc, residual, out_act="relu"),
        "batch_norm_act": lambda: functional.batch_norm_act(x, *norm, residual, training=training),
        "channel_gate": lambda: functional.channel_gate(x, torch.sigmoid, residual, out_act="relu"),
        "batch_norm_act_squeeze": lambda: functional.batch_norm_act_squeeze(
            x, *norm, training=training, out_act="silu"
        )[0],
    }
    if training:
        return calls
    folded, packed = functional.fold_squeeze(conv, None, *fc[:2]), functional.pack_conv1x1(conv)
    return calls | {
        "gated_conv1x1": lambda: functional.gated_conv1x1(x, gate, conv),
        "conv1x1_squeeze_excite": lambda: functional.conv1x1_squeeze_excite(
            x, conv, None, *fc, residual, out_act="relu", folded=folded, packed=packed
        ),
        "fold_squeeze": lambda: functional.fold_squeeze(conv, None, *fc[:2])[0],
        "pack_conv1x1": lambda: functional.pack_conv1x1(conv),
    }


def run(layout: str, training: bool, backward: bool) -> None:
    """Makes the calls, with counting switched on around them: the part that runs under valgrind. Writes the names."""
    import gc

    torch.set_num_threads(1)
    torch.set_grad_enabled(training)
    calls = functions(layout, training)
    ones = torch.ones(N, C, 2, 2)
    for call in calls.values():
        for counted in (False, True):
            gc.collect()
            gc.disable()
            if counted:
                torch._C._valgrind_toggle()
            for _ in range(CALLS):
                y = call()
                if backward:
                    y.backward(ones)
            if counted:
                torch._C._valgrind_toggle_and_dump_stats()
            gc.enable()
    print(json.dumps(list(calls)))


def count(layout: str, training: bool, backward: bool) -> dict[str, int]:
    """Instructions per call, by function.

    Raises:
        RuntimeError: valgrind is not installed, or the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        arguments = ["--count", layout, *["--training"] * training, *["--backward"] * backward]
        printed = callgrind.run(out, "benchmarks.host", ["--collect-atstart=no"], arguments)
        counts = {}
        for number, name in enumerate(json.loads(printed), start=1):
            counts[name] = callgrind.total(Path(f"{out}.{number}")) // CALLS
        return counts


def main() -> None:
    if "--network" in sys.argv[1:]:
        from benchmarks import host_network

        host_network.main([argument for argument in sys.argv[1:] if argument != "--network"])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="functions to show; all by default")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--backward", action="store_true", help="count training with its backward pass too")
    parser.add_argument("--network", action="store_true", help="whole networks; --network --help lists its options")
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", metavar="LAYOUT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count is not None:
        run(given.count, given.training, given.backward)
        return
    console = Console()
    with console.status("counting under valgrind, about two minutes"):
        inference = count(given.layout, False, False)
        training = count(given.layout, True, given.backward)
    table = Table("function", title=f"Instructions per call, {given.layout}", title_justify="left")
    table.add_column("inference", justify="right")
    table.add_column("training, with backward" if given.backward else "training", justify="right")
    for name, instructions in inference.items():
        if not given.names or name in given.names:
            table.add_row(name, f"{instructions:,}", f"{training[name]:,}" if name in training else "")
    console.print(table)


if __name__ == "__main__":
    main()
