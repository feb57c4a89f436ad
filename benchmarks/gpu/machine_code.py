"""The CUDA kernels' machine code for sm_90, compiled on this machine, and the constants of a launch."""

import functools
from dataclasses import dataclass
from pathlib import Path

from .launches import Launched
from .sass.grid import Grid, run_grid
from .sass.memory import Process
from .sass.parse import Instruction, parse
from .sass.warp import Constants
from .target import use_tests

__all__ = ["ARCHITECTURE", "add", "code_of", "constants_of", "registers_of", "run", "why_not"]

ARCHITECTURE = 90
PARAMETERS = 0x210
"""Offset of a kernel's parameter in constant bank 0 on sm_90."""


CLUSTERS = 0x140
"""Offset of the flag that a launch has clusters; without it, code skips the barriers of the cluster."""


@dataclass(frozen=True)
class _Compiled:
    """A kernel: its disassembly, registers of a thread, and constants in other banks than 0 (targets of switches)."""

    text: str
    registers: int
    banks: dict[int, bytes]


_ADDED: dict[str, _Compiled] = {}


def _banks(cubin: Path, symbol: str) -> dict[int, bytes]:
    use_tests()
    from support import cuda_code

    return {bank: cuda_code.section(cubin, f".nv.constant{bank}.{symbol}") for bank in (2, 3, 4)}


def add(symbol: str, text: str, registers: int, cubin: Path, name: str) -> None:
    """Add a kernel that another compiler made.

    Args:
        symbol: by which launches name it.
        text: its disassembly.
        registers: of a thread.
        cubin: its binary, which is read.
        name: its symbol in the binary.
    """
    _ADDED[symbol] = _Compiled(text, registers, _banks(cubin, name))


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
def _cuda() -> dict[str, _Compiled]:
    """The CUDA kernels by symbol."""
    use_tests()
    from support import cuda_code

    found = {}
    for source in cuda_code.SOURCES.values():
        code = cuda_code.compiled(source, ARCHITECTURE)
        text = cuda_code.machine_code(code)
        for kernel in code.kernels:
            if kernel.is_entry:
                banks = _banks(code.cubin, kernel.mangled)
                found[kernel.mangled] = _Compiled(text[kernel.mangled], kernel.registers, banks)
    return found


def _kernel(symbol: str) -> _Compiled:
    return _ADDED[symbol] if symbol in _ADDED else _cuda()[symbol]


def registers_of(symbol: str) -> int:
    """Registers of a thread."""
    return _kernel(symbol).registers


@functools.cache
def code_of(symbol: str) -> dict[int, Instruction]:
    """Instructions of a kernel by address."""
    return parse(_kernel(symbol).text)


def constants_of(launch: Launched) -> Constants:
    """The constant banks of a launch."""
    words = {0x0: launch.threads, 0x4: 1, 0x8: 1, 0xC: launch.blocks, 0x10: 1, 0x14: 1, CLUSTERS: launch.cluster > 1}
    head = bytearray(PARAMETERS)
    for at, word in words.items():
        head[at : at + 4] = int(word).to_bytes(4, "little")
    return Constants({0: bytes(head) + launch.parameter, **_kernel(launch.symbol).banks})


def run(launch: Launched, reverse: bool = False) -> None:
    """Run a launch's machine code on the memory of this process that its pointers name.

    Args:
        launch: as the host code made it.
        reverse: run blocks and warps from the last to the first.
    """
    grid = Grid(launch.blocks, launch.threads, launch.shared, launch.cluster)
    run_grid(code_of(launch.symbol), constants_of(launch), grid, Process(), reverse)
