"""The launches of the Triton backend on an H100, with their parameters and machine code, without a GPU.

A driver and a compiler stand in for Triton's. The compiler is the real one for sm_90, but the compiled kernel hands its
launches to a function here, as :mod:`.launches` does for CUDA. Everything between the backend's functions and the
compiled kernel is Triton's own. The process must not interpret kernels (``TRITON_INTERPRET``).
"""

import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from se_fused import backends

from . import machine_code
from .launches import Launched
from .target import use_tests

__all__ = ["recorded", "taken_over", "why_not"]

_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8}


_handlers: list[Callable[[Launched], None]] = []
"""Of the innermost :func:`taken_over` at the end; compiled kernels outlive it, because Triton keeps them."""


def why_not() -> str | None:
    """The reason why the launches cannot be recorded in this process, or None."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "Triton is not installed"
    return "TRITON_INTERPRET is set" if os.environ.get("TRITON_INTERPRET") == "1" else None


def _flat(types: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """(type, value) of each argument and of each field of a group of arguments."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        else:
            yield kind, value


def _parameters(types: Sequence[Any], values: Sequence[Any]) -> bytes:
    """A kernel's arguments as they lie in constant bank 0; constants of the compilation are left out.

    Raises:
        ValueError: an argument's type is not known.
    """
    data = b""
    for kind, value in _flat(types, values):
        if kind == "constexpr":
            continue
        if kind.startswith("*"):
            address = value.data_ptr() if isinstance(value, torch.Tensor) else int(value or 0)
            one = address.to_bytes(8, "little")
        elif kind == "fp32":
            one = struct.pack("<f", value)
        elif kind in _BYTES:
            one = (int(value) & (2 ** (8 * _BYTES[kind]) - 1)).to_bytes(_BYTES[kind], "little")
        else:
            raise ValueError(f"an argument of type {kind}")
        data += b"\0" * (-len(data) % len(one)) + one
    return data + b"\0" * (-len(data) % 8 + 16)  # Triton's own scratch memory: two null pointers


class _Kernel:
    """A compiled kernel whose launches go to a handler."""

    packed_metadata = None

    def __init__(self, compiled: Any, source: Any) -> None:
        from se_fused.backends.triton import compiled_code

        self._types = tuple(source.signature.values())
        self._threads, self._shared = 32 * compiled.metadata.num_warps, compiled.metadata.shared
        self._name = compiled.metadata.name
        self.function = f"{self._name} {compiled.hash}"
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            found = [
                subprocess.run(
                    [compiled_code._tool("cuobjdump"), option, cubin], check=True, capture_output=True, text=True
                ).stdout
                for option in ("-sass", "-res-usage")
            ]
            registers = int(found[1].partition("REG:")[2].split()[0])
            machine_code.add(self.function, found[0], registers, cubin, self._name)

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, grid: int, _y: int, _z: int, *more: Any) -> None:
        # stream, function, packed metadata, launch metadata, two hooks, and the kernel's arguments
        parameter = _parameters(self._types, more[6:])
        name = self._name.removesuffix("_kernel").removesuffix("_unaligned")
        _handlers[-1](Launched(name, self.function, grid, self._threads, self._shared, 1, parameter))


@contextmanager
def taken_over(handler: Callable[[Launched], None]) -> Iterator[None]:
    """Hands each launch of the Triton backend on CPU tensors to ``handler`` until the end of the block."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    if (reason := why_not()) is not None:
        raise RuntimeError(reason)
    use_tests()
    target = GPUTarget("cuda", machine_code.ARCHITECTURE, 32)
    compile_really = triton.compiler.compile
    backend: Any = backends.BACKENDS["triton"]

    def compile_for_handler(source: Any, target: Any = target, options: Any = None, **_: Any) -> _Kernel:
        return _Kernel(compile_really(source, target=target, options=options), source)

    active = driver.active if driver._active is not None else None
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
        )
    )
    triton.compiler.compile = compile_for_handler
    backend.can_use = lambda device, dtype: None
    _handlers.append(handler)
    try:
        with backends.use_backend("triton"):
            yield
    finally:
        _handlers.pop()
        triton.compiler.compile = compile_really
        del backend.can_use
        driver._active = active


def recorded(call: Callable[[], Any]) -> list[Launched]:
    """The launches of a call on CPU tensors, without running them: the call's results have no values."""
    found: list[Launched] = []
    with taken_over(found.append):
        call()
    return found
