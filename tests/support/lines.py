"""The backends under the op contract (contract.py), one line each: a new backend gets the whole contract by one."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from se_fused import backends
from support import shim_library
from support.contract import AXES
from support.definitions import Definitions
from support.instructions import SUPPORTED

GPU = torch.cuda.is_available()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Run calls on the backend of this name alone."""
    with backends.use_backend(name):
        yield


@contextmanager
def _instead_of_cpu(backend: backends.Backend) -> Iterator[None]:
    """Run calls on a backend that the package does not have."""
    before = backends.BACKENDS["cpu"]
    backends.BACKENDS["cpu"] = backend
    try:
        with backends.use_backend("cpu"):
            yield
    finally:
        backends.BACKENDS["cpu"] = before


@contextmanager
def _cpu(instructions: str) -> Iterator[None]:
    cpu = backends.BACKENDS["cpu"]
    before = cpu.capability()
    assert cpu.capability(instructions) == instructions
    try:
        with backends.use_backend("cpu"):
            yield
    finally:
        cpu.capability(before)


@cache
def _shim() -> Any:
    from support import cuda_backend

    given = os.environ.get("SE_FUSED_SHIM")  # built with sanitizers; set by cuda/test_contract.py
    return cuda_backend.on_cpu(Path(given or shim_library.library()))


@contextmanager
def _cuda_on_cpu(order: str, like: str) -> Iterator[None]:
    """The CUDA backend's kernels on the CPU.

    Args:
        order: in which the shim runs threads and blocks; a missing barrier shows in one of the two.
        like: the GPU whose properties the launch rules see. The H200 has clusters of blocks.
    """
    from support import cuda_backend

    shim, before = _shim(), backends.BACKENDS["cuda"]
    assert shim.load() is None
    backends.BACKENDS["cuda"] = shim
    try:
        with backends.use_backend("cuda"):
            cuda_backend.stand_in({"H200": cuda_backend.H200, "A100": cuda_backend.A100}[like])
            torch.ops.se_fused_cuda_shim.reverse(order == "backwards")
            yield
    finally:
        torch.ops.se_fused_cuda_shim.reverse(False)
        cuda_backend.stand_in()
        backends.BACKENDS["cuda"] = before


def _why_no_triton() -> str | None:
    return backends.BACKENDS["triton"].can_use("cuda" if GPU else "cpu", torch.float32)


def _why_no_cuda() -> str | None:
    return backends.BACKENDS["cuda"].can_use("cuda", torch.float32) if GPU else shim_library.why_not()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the contract a tier can afford: the time of a call limits the size of its maps and their number."""

    elements: int
    """The most elements of a map."""
    strengths: Mapping[str, int]
    """Tier -> how many axes' combinations the calls cover."""
    random_elements: int
    """The most elements of a random call's map, which fuzz.py draws."""
    random_calls: Mapping[str, int]
    """Tier -> the number of random calls."""


KERNELS = Budget(
    elements=70_000, strengths={"quick": 2, "test": 2, "nightly": 3},
    random_elements=20_000, random_calls={"test": 100, "nightly": 2000},
)  # fmt: skip
# On the shim every thread is a fiber; in Triton's interpreter a program takes milliseconds.
FIBERS = Budget(
    elements=4_000, strengths={"quick": 2, "test": 2, "nightly": 3},
    random_elements=1_000, random_calls={"test": 30, "nightly": 600},
)  # fmt: skip
INTERPRETED = Budget(
    elements=4_000, strengths={"quick": 1, "test": 2, "nightly": 3},
    random_elements=1_000, random_calls={"test": 10, "nightly": 300},
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A backend under the contract."""

    name: str
    device: str
    budget: Budget
    active: Callable[..., AbstractContextManager[None]]
    """Makes calls run on the backend. Its arguments are one value of each of ``axes``."""
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Axes of the backend's own: name -> values."""
    narrowed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Axes of the contract of which the backend has these values alone."""
    why_not: Callable[[], str | None] = lambda: None
    """The reason why the backend cannot be tested here."""

    @property
    def all_axes(self) -> dict[str, Sequence[Any]]:
        """The axes of a call but the shape, and the backend's own."""
        return {**AXES, **self.narrowed, **self.axes}

    def using(self, values: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The backend with the values of its own axes; ``values`` may have those of a call as well."""
        return self.active(**{name: values[name] for name in self.axes})


ON_SHIM = {"order": ("forwards", "backwards"), "like": ("H200", "A100")}

LINES = {
    line.name: line
    for line in (
        # PyTorch's batch norm is wrong for some strides; see se_fused/testing/verify.py.
        Line("reference", "cpu", KERNELS, partial(_named, "reference"), narrowed={"x_view": ("dense", "offset")}),
        # The composed operator does not use the permission to write over x. The definitions add up in float32 around 0,
        # not around a shift as the kernels do, and lose digits if the mean is 100 deviations.
        Line("definitions", "cpu", KERNELS, partial(_instead_of_cpu, Definitions()),
             narrowed={"inplace": (False,), "mean": (0.0, 1.0)}),
        Line("cpu", "cpu", KERNELS, _cpu, {"instructions": SUPPORTED}),
        Line("triton", *(("cuda", KERNELS) if GPU else ("cpu", INTERPRETED)), partial(_named, "triton"),
             why_not=_why_no_triton),
        Line("cuda", "cuda", KERNELS, partial(_named, "cuda"), why_not=_why_no_cuda) if GPU
        else Line("cuda", "cpu", FIBERS, _cuda_on_cpu, ON_SHIM, why_not=_why_no_cuda),
    )
}  # fmt: skip
