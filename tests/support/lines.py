"""The backends under the op contract (contract.py), one line each. A new backend gets the whole contract by its line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from se_fused import backends
from support import shim_library
from support.instructions import SUPPORTED

GPU = torch.cuda.is_available()


@contextmanager
def _named(name: str, **settings: Any) -> Iterator[None]:
    """Run calls on the backend of this name alone."""
    with backends.use_backend(name):
        yield


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

    return cuda_backend.on_cpu(shim_library.library())


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


def _why_no_cuda() -> str | None:
    return backends.BACKENDS["cuda"].can_use("cuda", torch.float32) if GPU else shim_library.why_not()


@dataclass(frozen=True)
class Line:
    """A backend under the contract."""

    name: str
    device: str
    elements: int
    """The most elements of a map. It limits the time of a call: interpreted kernels take milliseconds per program."""
    strengths: Mapping[str, int]
    """Tier -> how many axes' combinations the tier's calls cover."""
    active: Callable[..., AbstractContextManager[None]]
    """Makes calls run on the backend. Its arguments are one value of each of ``axes``."""
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Axes of the backend's own: name -> values."""
    why_not: Callable[[], str | None] = lambda: None
    """The reason why the backend cannot be tested here."""

    def using(self, values: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The backend with the values of its own axes; ``values`` may have those of a call as well."""
        return self.active(**{name: values[name] for name in self.axes})


_DEVICE = "cuda" if GPU else "cpu"
FAST = {"quick": 2, "test": 2, "nightly": 3}
SLOW = {"quick": 1, "test": 2, "nightly": 3}

LINES = {
    line.name: line
    for line in (
        Line("reference", "cpu", 20_000, SLOW, lambda: _named("reference")),
        Line("cpu", "cpu", 70_000, FAST, _cpu, {"instructions": SUPPORTED}),
        Line(
            "triton", _DEVICE, 4_000, SLOW, lambda: _named("triton"),
            why_not=lambda: backends.BACKENDS["triton"].can_use(_DEVICE, torch.float32),
        ),
        Line("cuda", "cuda", 70_000, FAST, lambda: _named("cuda"), why_not=_why_no_cuda)
        if GPU
        else Line(
            "cuda", "cpu", 4_000, SLOW, _cuda_on_cpu,
            {"order": ("forwards", "backwards"), "like": ("H200", "A100")}, _why_no_cuda,
        ),
    )
}  # fmt: skip
