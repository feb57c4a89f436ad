"""Attributes of the compiled kernels: registers, spills, shared memory, resident blocks per multiprocessor.

They are read through ``se_fused._introspect`` (csrc/introspect.cpp), which is built if pybind11 is installed, and works
with one Python version. Nothing outside this file needs it.
"""

from collections.abc import Iterable
from types import ModuleType
from typing import Any, cast

import torch

from .._build import find_module
from ..backends import BACKENDS
from ..backends.cpu import CpuBackend
from ..backends.cuda import CudaBackend

__all__ = ["cpu_instructions", "cuda_kernels", "summary"]

Kernels = list[dict[str, Any]]


def _module() -> ModuleType | str:
    """The module, or the reason why it is not available."""
    try:
        return find_module("_introspect")
    except ImportError as error:
        return f"se_fused._introspect is not available ({error}): install pybind11 and build se_fused again"


def cpu_instructions() -> str | None:
    """The instruction set that the CPU kernels use, or None if they are not loaded."""
    backend = cast(CpuBackend, BACKENDS["cpu"])
    if backend.load_error is not None:
        return None
    module = _module()
    try:
        return backend.capability() if isinstance(module, str) else str(module.cpu_capability(str(backend.library)))
    except RuntimeError:  # a library of an earlier build
        return backend.capability()


def cuda_kernels() -> Kernels | str:
    """Attributes of each CUDA kernel instance on the current device, or one line with the reason why there are none.

    An entry has ``name``, ``threads`` (per block), ``shared_bytes`` (per block; None if it depends on the map's shape)
    and either ``error`` or ``max_threads``, ``registers`` (per thread), ``local_bytes`` (spills, per thread),
    ``constant_bytes`` and ``blocks_per_multiprocessor``.
    """
    module, backend = _module(), cast(CudaBackend, BACKENDS["cuda"])
    if isinstance(module, str):
        return module
    if reason := backend.load():
        return reason
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    try:
        return cast(Kernels, module.cuda_kernels(str(backend.library)))
    except RuntimeError as error:
        return str(error)


def _span(values: Iterable[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    return "by shape" if not known else str(known[0]) if len(known) == 1 else f"{known[0]}–{known[-1]}"


def summary(kernels: Kernels) -> list[tuple[str, ...]]:
    """A table with a row of headings and a row per kernel: minimum and maximum over its instances, and those that
    spill."""
    rows: list[tuple[str, ...]] = [
        ("kernel", "instances", "threads", "registers", "shared bytes", "blocks per SM", "spilled bytes", "where")
    ]
    for name in dict.fromkeys(kernel["name"].partition(" ")[0] for kernel in kernels):
        instances = [kernel for kernel in kernels if kernel["name"].partition(" ")[0] == name]
        able = [kernel for kernel in instances if "error" not in kernel]
        spilling = [kernel["name"].partition(" ")[2] for kernel in able if kernel["local_bytes"]]
        errors = dict.fromkeys(kernel["error"] for kernel in instances if "error" in kernel)
        rows.append(
            (
                name,
                str(len(instances)),
                _span(kernel["threads"] for kernel in instances),
                *(
                    _span(kernel[what] for kernel in able) if able else ""
                    for what in ("registers", "shared_bytes", "blocks_per_multiprocessor", "local_bytes")
                ),
                "; ".join([*errors, *spilling]),
            )
        )
    return rows
