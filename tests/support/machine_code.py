"""sm_90's machine code of the CUDA kernels as a backend on the CPU: nvcc compiles it, benchmarks/gpu/sass runs it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gpu import launches, machine_code
from support import cuda_backend
from support.lines import ON_SHIM, Budget, Line

__all__ = ["LINE", "executed"]


@contextmanager
def executed(order: str = "forwards", like: str = "H200") -> Iterator[None]:
    """Runs the CUDA backend on CPU tensors by sm_90's machine code until the end of the block.

    Args:
        order: in which blocks and warps run.
        like: the GPU whose properties the launch rules see; on an A100, other kernels are launched.
    """
    device = {"H200": cuda_backend.H200, "A100": cuda_backend.A100}[like]
    with launches.taken_over(functools.partial(machine_code.run, reverse=order == "backwards"), device):
        yield


# An instruction of a warp takes about 15 microseconds.
LINE = Line(
    "cuda", "cpu", Budget(elements=600, strengths={"quick": 1, "test": 1, "nightly": 2}, random_elements=300,
                          random_calls={"test": 0, "nightly": 0}),
    executed, ON_SHIM, why_not=machine_code.why_not,
)  # fmt: skip
