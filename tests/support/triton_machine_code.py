"""Run calls of the op contract on sm_90's machine code of the Triton kernels, and print what failed as JSON.

A process of its own, because the tests' process interprets Triton kernels. Arguments: the strength of the covering
array, the most elements of a map, and optionally I/N for a part of the calls.
"""

import functools
import itertools
import json
import sys

from benchmarks.gpu import machine_code, triton_launches
from benchmarks.gpu.launches import Launched
from benchmarks.gpu.sass.grid import Grid, run_grid
from benchmarks.gpu.sass.memory import Process
from support import contract


def run(launch: Launched, reverse: bool) -> None:
    """Run a launch's machine code on the memory that its pointers name."""
    grid = Grid(launch.blocks, launch.threads, launch.shared)
    code, constants = machine_code.code_of(launch.symbol), machine_code.constants_of(launch)
    run_grid(code, constants, grid, Process(), reverse)


def main(strength: int, elements: int, part: str = "0/1") -> int:
    first, parts = (int(number) for number in part.split("/"))
    failed, launched = {}, 0
    calls = contract.calls(elements, strength, contract.AXES)
    for number, (name, values) in enumerate(itertools.islice(calls, first, None, parts)):
        try:
            with triton_launches.taken_over(functools.partial(run, reverse=bool(number % 2))):
                contract.meets(contract.case_of(values), "triton", "cpu")
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
        launched = number + 1
        print(name, failed.get(name, "ok"), file=sys.stderr, flush=True)
    print(json.dumps({"calls": launched, "failed": failed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
