"""sm_90's machine code of the CUDA kernels as a backend on the CPU: compiled by nvcc, executed by benchmarks/gpu/sass."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gpu import launches, model
from benchmarks.gpu.sass.grid import Grid, run_grid
from benchmarks.gpu.sass.memory import Process
from support import cuda_backend, cuda_code
from support.lines import _ON_SHIM, Budget, Line

__all__ = ["LINE", "executed", "why_not"]


def why_not() -> str | None:
    """The reason why the machine code cannot be made or read here, or None."""
    from importlib.util import find_spec

    if cuda_code.NVCC is None:
        return "nvcc is not installed"
    if find_spec("triton") is None:
        return "Triton, which has cuobjdump, is missing"
    return cuda_backend.shim_library.why_not()


def run(launch: launches.Launched, reverse: bool) -> None:
    """Run a launch's machine code on the memory that its pointers name."""
    grid = Grid(launch.blocks, launch.threads, launch.shared, launch.cluster)
    run_grid(model.code_of(launch.symbol), model.constants_of(launch), grid, Process(), reverse)


@contextmanager
def executed(order: str = "forwards", like: str = "H200") -> Iterator[None]:
    """Runs the CUDA backend on CPU tensors by sm_90's machine code until the end of the block.

    Args:
        order: in which blocks and warps run.
        like: the GPU whose properties the launch rules see; on an A100, other kernels are launched.
    """
    device = {"H200": cuda_backend.H200, "A100": cuda_backend.A100}[like]
    with launches.taken_over(functools.partial(run, reverse=order == "backwards"), device):
        yield


# An instruction of a warp takes about 15 microseconds.
LINE = Line(
    "cuda", "cpu", Budget(elements=600, strengths={"quick": 1, "test": 1, "nightly": 2}, random_elements=300,
                          random_calls={"test": 0, "nightly": 0}),
    executed, _ON_SHIM, why_not=why_not,
)  # fmt: skip
