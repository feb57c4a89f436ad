"""Compiles the kernels and graphs of the timed steps in advance, in many processes at the same time.

    python3 -m benchmarks.gpu.work.ahead where|claims [--processes N]

Triton and torch.compile cache compiled code on the disk, where the following processes find it.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from ..runner import AT, ROW
from ..target import target
from . import at, emit

__all__ = ["main"]


def _programs(command: str, processes: int) -> list[list[str]]:
    """Arguments of the programs to run, the longest first."""
    there = target()
    if command == "where":
        return [["times", "triton", "--share", f"{i}/{processes}"] for i in range(processes)]
    modes = (("train", there.training), ("infer", there.inference))
    found = [["networks", mode, str(batch), "--ahead"] for mode, batches in modes for batch in batches]
    return [*found, *(["blocks", "--share", f"{i}/4"] for i in range(1 if there.rehearsal else 4))]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ahead")
    parser.add_argument("command", choices=("where", "claims"))
    parser.add_argument("--processes", type=int, default=max((os.cpu_count() or 2) - 2, 2))
    options = parser.parse_args(arguments)
    programs, failed, start = _programs(options.command, options.processes), 0, time.monotonic()
    # each process compiles; more threads per process would only wait for each other
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
    at(f"{len(programs)} processes")

    def run(program: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"benchmarks.gpu.work.{program[0]}", *program[1:]]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, env=environment, text=True, check=False, **streams)  # type: ignore[call-overload]

    with ThreadPoolExecutor(options.processes) as pool:
        for program, said in zip(programs, pool.map(run, programs), strict=True):
            print(*(line for line in said.stdout.splitlines() if not line.startswith((ROW, AT))), sep="\n")
            if said.returncode:
                failed += 1
                print(f"{' '.join(program)}: exit status {said.returncode}")
    took = time.monotonic() - start
    # Failures are not an error here: a later step compiles again, and fails with its own name.
    emit("ahead", figure=f"{len(programs) - failed} of {len(programs)} processes compiled, {took:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
