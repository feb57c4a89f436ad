"""A device without kernels: PyTorch's and se_fused's host code runs on it as on CUDA, and launches are counted.

:func:`load` adds the device type "standin" to PyTorch. Its tensors have shapes, strides and addresses, but no memory:
nothing is computed, and each access to a value is an error. The operators that SE networks need are in C++ beside this
file; any other operator raises NotImplementedError. se_fused runs its CUDA backend's host code (csrc/cuda/*.cpp) with
the plan of an H100.

What the host does on CUDA beyond this is not in its counts: the driver's part of a launch, cuDNN's and cuBLAS's choice
of a kernel, and the copy of a launch's arguments.
"""

import ctypes
import functools
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from se_fused import backends
from se_fused.backends.cuda import CudaBackend

__all__ = ["DEVICE", "allocations", "backend", "launched", "library", "load", "name_frames", "why_not"]

DEVICE = "standin"
ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# -Bsymbolic: csrc/cuda must find the library's own function for the current stream, not that of torch's CUDA build.
LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic", "-ltorch", "-ltorch_cpu", "-lc10")
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden")
# The host code of the CUDA backend, with setup.py's flags.
OURS = ("-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000")
OURS += ("-DSE_LIBRARY=se_fused_cuda_standin", "-DSE_DEVICE_KEY=PrivateUse1")


def _compiled() -> ModuleType:
    """The tests' compiler with its cache."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from support import compiled

    return compiled


def why_not() -> str | None:
    """The reason why the stand-in cannot be built here, or None."""
    return None if _compiled().COMPILER else "needs a C++ compiler"


def sources() -> list[Path]:
    """The host code of the CUDA backend. csrc/register.cpp and introspect.cpp belong to other libraries."""
    csrc = ROOT / "csrc"
    others = {"register.cpp", "introspect.cpp"}
    return sorted([*(csrc / "cuda").glob("*.cpp"), *(f for f in csrc.glob("*.cpp") if f.name not in others)])


@functools.cache
def library() -> Path:
    """Build the stand-in with se_fused's host code, or take it from the cache."""
    compiled, home = _compiled(), Path(torch.__file__).parent
    headers = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
    headers += [f"-I{home}/utils/benchmark/utils/valgrind_wrapper"]  # callgrind.h
    objects = compiled.objects(sorted(HERE.glob("*.cpp")), [*FLAGS, *headers])
    objects += compiled.objects(sources(), [*FLAGS, *OURS, *headers])
    built: Path = compiled.link(objects, [*LINK_FLAGS, f"-L{home}/lib"])
    return built


def name_frames(parts: Iterable[Sequence[str]]) -> None:
    """Run each Python frame below a function ``se_part_<i>``, where i is the first part with a piece of the name of the
    frame's file. Frames of other files are in part 0."""
    flags = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-optimize-sibling-calls"]
    flags += [f"-I{sysconfig.get_path('include')}"]
    compiled = _compiled()
    built = compiled.build(sorted((HERE / "frames").glob("*.cpp")), flags, ["-shared"])
    rules = "".join(f"{piece} {part}\n" for part, pieces in enumerate(parts) for piece in pieces)
    ctypes.PyDLL(str(built)).se_name_frames(rules.encode())


class StandInBackend(CudaBackend):
    """The CUDA backend on the stand-in. It asks for the current device in each call, as on CUDA."""

    def why_not(self, device: str, dtype: torch.dtype) -> str | None:
        reason = super().why_not(device, dtype)
        if reason is None:
            reason = _problem(torch.standin.current_device()) or None  # type: ignore[attr-defined]
        return reason


@functools.lru_cache(maxsize=64)
def _problem(index: int) -> str:
    return str(torch.ops.se_fused_cuda_standin.problem(index))


class _Module(ModuleType):
    """What PyTorch expects of the module of a device type."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return int(torch.ops.standin.current_device())

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@functools.cache
def load() -> None:
    """Add the device to this process, once."""
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(DEVICE)
    torch._register_device_module(DEVICE, _Module(f"torch.{DEVICE}"))
    torch.utils.generate_methods_for_privateuse1_backend()


@contextmanager
def backend() -> Iterator[None]:
    """Make ``auto`` choose the CUDA backend on the stand-in, until the end of the block."""
    load()
    ours = StandInBackend(library(), DEVICE, None, "se_fused_cuda_standin")
    cuda, auto = backends.BACKENDS["cuda"], backends._AUTO
    backends.BACKENDS["cuda"], auto[DEVICE] = ours, (ours,)
    try:
        yield
    finally:
        backends.BACKENDS["cuda"] = cuda
        del auto[DEVICE]


def launched() -> dict[str, int]:
    """Launches by kernel since the last call."""
    lines = (line.rpartition(" ") for line in torch.ops.standin.launched().splitlines())
    return {name: int(count) for name, _, count in lines}


def allocations() -> int:
    """Allocations on the device since the last call."""
    return int(torch.ops.standin.allocations())
