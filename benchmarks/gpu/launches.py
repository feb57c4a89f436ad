"""The launches of a call on another GPU, with their parameters, from the CUDA backend's host code on the CPU.

The tests' build of the CUDA kernels for the CPU (tests/support/cuda_shim) hands each launch to a function here instead
of running it. The pointers in a launch's parameter are those of the call's tensors, in this process's memory.
"""

import ctypes
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

__all__ = ["H100", "Launched", "recorded", "taken_over"]

H100 = (90, 132, 50 << 20, 232448)
"""Compute capability, multiprocessors, bytes of L2 and shared memory of a block."""
_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p, ctypes.c_size_t
)
_INTERNAL, _NVCC = "_ZN8se_fused4cudaL", "_ZN8se_fused4cuda"  # kernels are internal to their file on the CPU


@dataclass(frozen=True)
class Launched:
    """One launch: its name, the kernel's symbol as nvcc names it, its sizes, and the bytes of its parameter."""

    name: str
    symbol: str
    blocks: int
    threads: int
    shared: int
    cluster: int
    parameter: bytes


class _Found(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p),
                ("address", ctypes.c_void_p))  # fmt: skip


@functools.cache
def _library() -> tuple[CudaBackend, dict[int, str]]:
    """The build for the CPU, and the kernels' symbols in it by offset."""
    use_tests()
    from support import shim_library

    path = Path(shim_library.library())
    symbols = {}
    for line in subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout.splitlines():
        offset, _, name = line.rpartition(" ")[0].partition(" ")[0], None, line.rpartition(" ")[2]
        if name.startswith(_INTERNAL):
            symbols[int(offset, 16)] = name.replace(_INTERNAL, _NVCC, 1)
    backend = CudaBackend(path, "cpu", None, "se_fused_cuda_shim")
    if (reason := backend.load()) is not None:
        raise RuntimeError(reason)
    return backend, symbols


def _offset(address: int) -> int:
    """Offset of a function in its library."""
    found = _Found()
    look_up = ctypes.CDLL(None).dladdr
    look_up.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Found))
    if not look_up(address, ctypes.byref(found)):
        raise RuntimeError("the launched kernel is in no library")
    return int(address - found.base)


@contextmanager
def taken_over(handler: Callable[[Launched], None], device: tuple[int, ...] = H100) -> Iterator[CudaBackend]:
    """Hands each launch of the CUDA backend to ``handler``, with the backend as "cuda", until the end of the block.

    Args:
        handler: called with each launch; the first error that it raises is raised again at the end of the block.
        device: the GPU that the launch rules see.
    """
    backend, symbols = _library()
    errors: list[BaseException] = []

    def call(name: bytes, kernel: int, sizes: Any, args: int, count: int) -> None:
        try:
            one = Launched(name.decode(), symbols[_offset(kernel)], *sizes[0:4], ctypes.string_at(args, count))
            if not errors:
                handler(one)
        except BaseException as error:  # cannot pass through C++
            errors.append(error)

    callback = _CALLBACK(call)
    operators = torch.ops.se_fused_cuda_shim
    before = backends.BACKENDS["cuda"]
    operators.stand_in(*device)
    operators.take_over(ctypes.cast(callback, ctypes.c_void_p).value)
    backends.BACKENDS["cuda"] = backend
    try:
        with backends.use_backend("cuda"):
            yield backend
    finally:
        operators.take_over(0)
        backends.BACKENDS["cuda"] = before
        if errors:
            raise errors[0]


def recorded(call: Callable[[CudaBackend], Any], device: tuple[int, ...] = H100) -> list[Launched]:
    """The launches of a call, without running them: the call's results have no values.

    Args:
        call: runs se_fused's CUDA backend, which it is given, on CPU tensors.
        device: the GPU that the launch rules see.
    """
    found: list[Launched] = []
    with taken_over(found.append, device) as backend:
        call(backend)
    return found
