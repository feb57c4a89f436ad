"""The CUDA kernels' machine code for sm_90, compiled on this machine, and the constants of a launch."""

import functools
from dataclasses import dataclass
from pathlib import Path

from .launches import Launched
from .sass.parse import Instruction, parse
from .sass.warp import Constants
from .target import use_tests

__all__ = ["ARCHITECTURE", "code_of", "constants_of", "registers_of", "why_not"]

ARCHITECTURE = 90
PARAMETERS = 0x210
"""Offset of a kernel's parameter in constant bank 0 on sm_90."""


@dataclass(frozen=True)
class _Compiled:
    text: str
    registers: int
    cubin: Path


def why_not() -> str | None:
    """The reason why the machine code cannot be made or read here, or None."""
    from importlib.util import find_spec

    use_tests()
    from support import cuda_code, shim_library

    if cuda_code.NVCC is None:
        return "nvcc is not installed"
    if find_spec("triton") is None:
        return "Triton, which has cuobjdump, is missing"
    return shim_library.why_not()


@functools.cache
def _kernels() -> dict[str, _Compiled]:
    """Every kernel by its symbol."""
    use_tests()
    from support import cuda_code

    found = {}
    for source in cuda_code.SOURCES.values():
        code = cuda_code.compiled(source, ARCHITECTURE)
        text = cuda_code.machine_code(code)
        found.update(
            {k.mangled: _Compiled(text[k.mangled], k.registers, code.cubin) for k in code.kernels if k.is_entry}
        )
    return found


def registers_of(symbol: str) -> int:
    """Registers of a thread."""
    return _kernels()[symbol].registers


@functools.cache
def code_of(symbol: str) -> dict[int, Instruction]:
    """Instructions of a kernel by address."""
    return parse(_kernels()[symbol].text)


@functools.cache
def _tables(symbol: str) -> bytes:
    """The kernel's constants in bank 2: the targets of its switches."""
    use_tests()
    from support import cuda_code

    return cuda_code.section(_kernels()[symbol].cubin, f".nv.constant2.{symbol}")


def constants_of(launch: Launched) -> Constants:
    """The constant banks of a launch."""
    words = {0x0: launch.threads, 0x4: 1, 0x8: 1, 0xC: launch.blocks, 0x10: 1, 0x14: 1}
    head = bytearray(PARAMETERS)
    for at, word in words.items():
        head[at : at + 4] = word.to_bytes(4, "little")
    return Constants({0: bytes(head) + launch.parameter, 2: _tables(launch.symbol)})
