"""Report of versions, machine, build and chosen backends: :func:`se_fused.info` and ``python -m se_fused info``.

It needs only torch. Missing packages and load errors are part of the report and never make it fail.
"""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import backends
from .._build import recorded
from .._formats import DTYPES
from .._version import __version__
from . import kernels

__all__ = ["commit", "info", "versions"]

_OPS = ("squeeze_excite", "batch_norm_squeeze_excite", "batch_norm_act")
_DTYPES = (*DTYPES.values(), torch.float64)
_PACKAGES = ("torch", "triton", "numpy", "torchvision", "timm")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python, of the packages that se_fused uses, and of torch's CUDA; None for what is not installed."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    return found | {"torch": torch.__version__, "cuda": torch.version.cuda}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The git commit of the source tree that this package runs from; None for an installed wheel and in a worktree."""
    head = Path(__file__).parents[2] / ".git" / "HEAD"
    try:
        text = head.read_text().strip()
        if not text.startswith("ref: "):
            return text
        reference = text.removeprefix("ref: ")
        loose = head.parent / reference
        if loose.exists():
            return loose.read_text().strip()
        for line in (head.parent / "packed-refs").read_text().splitlines():
            if line.endswith(" " + reference):
                return line.split()[0]
    except OSError:  # also where .git is a file, in a worktree
        pass
    return None


def _build() -> dict[str, Any]:
    """The build record of setup.py, and how the running torch relates to the one of the build."""
    built = recorded()
    wanted = built.get("torch")
    if wanted is not None:
        running = torch.__version__
        if wanted == running:
            built["against"] = f"built with torch {wanted}, running with the same"
        else:
            abi = built.get("target_abi")
            built["against"] = f"built with torch {wanted} for the stable ABI of {abi}, running with {running}"
    return built


def _cpu() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": _cpu_model(),
        "instructions": kernels.cpu_instructions(),
        "cap": os.environ.get("ATEN_CPU_CAPABILITY") or None,
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def _choices() -> list[dict[str, Any]]:
    """For each op, device and dtype: the backend that ``auto`` chooses, and the reason against each other one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    choices = []
    for op in _OPS:
        for device in devices:
            for dtype in _DTYPES:
                reasons = {name: backends.why_not(b, device, dtype) for name, b in backends.BACKENDS.items()}
                able = [name for name, reason in reasons.items() if reason is None]
                auto = able[0] if able else "reference"
                why_not = {name: reason or f"auto chooses {auto} first" for name, reason in reasons.items()}
                why_not.pop(auto, None)
                choices.append(
                    {"op": op, "device": device, "dtype": str(dtype).removeprefix("torch."), "auto": auto,
                     "why_not": why_not}
                )  # fmt: skip
    return choices


def info() -> dict[str, Any]:
    """Reports versions, the machine, the build, and for each op the backend that it uses here and why not the others.

    Returns:
        A dictionary whose values can all be written as JSON. ``backends`` contains load errors unchanged.
    """
    choices = _choices()  # loads backends, which can then tell more
    return {
        "se_fused": __version__,
        "path": str(Path(__file__).parents[1]),
        "commit": commit(),
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "build": _build(),
        "kernels": kernels.cuda_kernels(),
        "backends": {name: backend.describe() for name, backend in backends.BACKENDS.items()},
        "asked_for": backends.forced(),
        "choices": choices,
    }
