"""The launches of a call on another GPU, with their parameters, from the CUDA backend's host code compiled for the CPU.

The tests' build of the CUDA kernels for the CPU (tests/support/cuda_shim) records launches instead of running them. The
maps of the call have addresses, but no memory is touched.
"""

import functools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from se_fused import backends
from se_fused.backends.cuda import CudaBackend

from .target import use_tests

__all__ = ["H100", "Launched", "recorded"]

H100 = (90, 132, 50 << 20, 232448)
"""Compute capability, multiprocessors, bytes of L2 and shared memory of a block."""


@dataclass(frozen=True)
class Launched:
    """One launch: the kernel's symbol, its sizes, and the bytes of its parameter."""

    name: str
    symbol: str
    blocks: int
    threads: int
    shared: int
    cluster: int
    parameter: bytes


@functools.cache
def _library() -> tuple[CudaBackend, dict[int, str]]:
    """The build for the CPU, and the kernels' symbols in it, as nvcc names them, by offset."""
    use_tests()
    from support import shim_library

    path = Path(shim_library.library())
    found = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
    symbols = {}
    for line in found.splitlines():
        offset, _, name = line.split(maxsplit=2) if len(line.split()) == 3 else ("", "", "")
        if name.startswith("_ZN8se_fused4cudaL"):  # L: internal to its file, as kernels are on the CPU
            symbols[int(offset, 16)] = name.replace("_ZN8se_fused4cudaL", "_ZN8se_fused4cuda", 1)
    backend = CudaBackend(path, "cpu", None, "se_fused_cuda_shim")
    if (reason := backend.load()) is not None:
        raise RuntimeError(reason)
    return backend, symbols


@contextmanager
def _recording(device: tuple[int, ...]) -> Iterator[CudaBackend]:
    backend, _ = _library()
    operators = torch.ops.se_fused_cuda_shim
    before = backends.BACKENDS["cuda"]
    operators.stand_in(*device)
    operators.recorded()
    operators.record(True)
    backends.BACKENDS["cuda"] = backend
    try:
        with backends.use_backend("cuda"):
            yield backend
    finally:
        operators.record(False)
        backends.BACKENDS["cuda"] = before


def recorded(call: Callable[[CudaBackend], Any], device: tuple[int, ...] = H100) -> list[Launched]:
    """The launches of a call.

    Args:
        call: runs se_fused's CUDA backend, which it is given, on CPU tensors; their values are not used.
        device: the GPU that the launch rules see.
    """
    _, symbols = _library()
    with _recording(device) as backend:
        call(backend)
        text = str(torch.ops.se_fused_cuda_shim.recorded())
    found = []
    for line in text.splitlines():
        name, offset, blocks, threads, shared, cluster, parameter = line.split()
        sizes = (int(n) for n in (blocks, threads, shared, cluster))
        found.append(Launched(name, symbols[int(offset)], *sizes, bytes.fromhex(parameter)))
    return found
