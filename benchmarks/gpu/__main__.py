"""Command line of the package; see its docstring and ``python3 -m benchmarks.gpu --help``."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from se_fused._atomic_write import write_text

from . import keep, machine_code, pack, triton_launches
from .environment import environment
from .predicted import table
from .runner import Done, run
from .steps import BUDGETS, COMMANDS, jobs, steps
from .store import Store
from .target import ROOT

__all__ = ["main"]


def _fail(message: str) -> NoReturn:
    sys.exit(f"benchmarks.gpu: {message}")


def _budget(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; got {text!r}")
    return seconds


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu", description="Checks and measurements in a short session on a GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = {
        "right": "check each kernel against float64",
        "where": "measure the time of each kernel",
        "claims": "compare the speed with the baselines",
        "all": "run the three commands one after the other",
    }
    for name, text in about.items():
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--budget", type=_budget, default=None, metavar="SECONDS",
                         help="time for all steps; steps that do not fit are listed as left out (default: "
                              f"{BUDGETS.get(name, sum(BUDGETS.values())):.0f})")  # fmt: skip
        one.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", metavar="DIR",
                         help="folder for the two result files of each command (default: build/gpu)")  # fmt: skip
        one.add_argument("--only", metavar="TEXT", default="", help="run only steps whose name contains TEXT")
        one.add_argument("--rehearse", action="store_true", help="run on the CPU with tiny sizes and failing steps")
        one.add_argument("--list", action="store_true", help="list the steps without running them")
    build = commands.add_parser("pack", help="build the libraries for a machine with a GPU; needs nvcc but no GPU")
    build.add_argument("--arch", default=pack.ARCHITECTURE, help="the GPU's compute capability (default: 9.0, an H100)")
    build.add_argument("--variant", default="", help="add another build of the CUDA library to the pack by this name")
    build.add_argument("--from", dest="revision", default="", metavar="COMMIT", help="build the variant from a commit")
    about_model = "predict the time of each kernel on an H100 from its machine code; needs no GPU, for CUDA nvcc"
    model = commands.add_parser("model", help=about_model, description=about_model)
    model.add_argument("--backend", choices=("cuda", "triton"), default="cuda", help="default: cuda")
    model.add_argument("--batch", type=int, default=128, help="samples (default: 128)")
    model.add_argument("--kernel", action="append", default=[], help="predict only this kernel; can be repeated")
    model.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a file")
    kept = commands.add_parser("keep", help="store returned results under benchmarks/results and draw them")
    kept.add_argument("tars", nargs="+", type=Path, metavar="TAR", help="COMMAND.tar.gz, or a folder with such files")
    kept.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _machine(rehearse: bool) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """The pack's manifest or None, and the builds of the CUDA library to measure: (name, SE_FUSED_LIBRARIES)."""
    if rehearse:
        return None, [("", ""), ("before", "")]
    if not torch.cuda.is_available():
        _fail("torch finds no GPU here; --rehearse runs everything on the CPU with tiny sizes")
    if not (pack.FOLDER / "manifest.json").exists() and (ROOT / "se_fused" / "_C_cuda.abi3.so").exists():
        print("no pack in build/gpu-pack: using the libraries of this checkout")
        return None, [("", "")]
    try:
        manifest, note = pack.check(capability=torch.cuda.get_device_capability(0))
        if note:
            print(note)
        return manifest, pack.libraries()
    except pack.PackError as error:
        _fail(str(error))


def _run(command: str, options: argparse.Namespace, budget: float, machine: Any) -> bool:
    """Run one command; return whether all its steps succeeded or were left out."""
    manifest, variants = machine
    chosen = [s for s in steps(command, rehearse=options.rehearse, variants=variants) if options.only in s.name]
    if not chosen:
        _fail(f"--only {options.only!r} matches no step of {command}; --list prints the steps")
    if options.list:
        print(
            "\n".join(f"{command}: {s.name}  ({s.seconds:.0f} s, at most {s.limit:.0f}): {s.settles}" for s in chosen)
        )
        return True
    typed = f"python3 -m benchmarks.gpu {command} --budget {budget:.0f}" + (" --rehearse" if options.rehearse else "")
    shared = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if variants[0][1]:  # also set it in this process, which records the build
        os.environ["SE_FUSED_LIBRARIES"] = variants[0][1]
    if options.rehearse:  # replace ncu and compute-sanitizer by scripts
        tools = ROOT / "tests" / "support" / "gpu_tools"
        shared["OMP_NUM_THREADS"] = "1"  # on a busy machine, several threads would wait for each other
        shared["PATH"] = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    logs = Path(tempfile.mkdtemp(prefix="se-fused-gpu-"))
    try:
        store = Store(options.output, command, environment(typed, manifest, options.rehearse), logs)

        def done(step: Done) -> None:
            store.done(step)
            print(f"== {step.step}: {step.verdict}, {step.seconds:.1f} s: {step.figure}"[:200], flush=True)

        try:
            found = run(
                chosen, budget=budget, jobs=jobs(), root=ROOT, logs=logs, environment=shared,
                on_row=store.row, on_done=done,
            )  # fmt: skip
        finally:
            try:
                store.save()
                store.close()
            finally:  # print the table also if the disk is full
                print(store.table, flush=True)
        return all(step.good for step in found)
    except OSError as error:
        where = options.output
        _fail(f"cannot write to {where}: {error.strerror or error}; give another --output or free some space there")
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _model(options: argparse.Namespace) -> int:
    why_not = triton_launches.why_not if options.backend == "triton" else machine_code.why_not
    if (reason := why_not()) is not None:
        _fail(f"the machine code cannot be made or read here: {reason}")
    from .model import predictions

    if options.batch < 1:
        _fail(f"--batch must be at least 1; got {options.batch}")

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:60}", end="", file=sys.stderr, flush=True)

    rows = predictions(options.backend, options.batch, kernels=options.kernel, progress=progress)
    progress("\r")
    if not rows:
        _fail(f"no launch of {', '.join(options.kernel)}: see csrc/cuda for the kernels' names")
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    print("Predicted for an H100 in bfloat16, not measured. Share of a copy's speed on counted bytes; what limits the")
    print("launch; blocks per multiprocessor; rounds of blocks; instructions per 16 bytes of maps; share of the")
    print("load/store unit's cycles that bank conflicts take.")
    print("\n".join(table(rows)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = _arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the exception ends the steps, and the table is printed
    if options.command == "pack":
        try:
            print("\n".join(pack.build(options.variant, options.arch, revision=options.revision)))
        except pack.PackError as error:
            _fail(str(error))
        return 0
    if options.command == "keep":
        try:
            print("\n".join(keep.keep(options.tars, options.results)))
        except (OSError, ValueError) as error:
            _fail(str(error))
        return 0
    if options.command == "model":
        return _model(options)
    machine = (None, [("", "")]) if options.list else _machine(options.rehearse)
    commands = COMMANDS if options.command == "all" else (options.command,)
    total = options.budget or sum(BUDGETS[command] for command in commands)
    good, end = [], time.monotonic() + total
    for i, command in enumerate(commands):  # time that one command does not use is shared by the following ones
        share = BUDGETS[command] / sum(BUDGETS[c] for c in commands[i:])
        good.append(_run(command, options, max((end - time.monotonic()) * share, 1.0), machine))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
