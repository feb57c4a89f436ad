"""Measured choices and their cache: launch shapes (opt-in), and how a convolution with squeeze-excite runs.

By default a rule gives the launch shapes (launch_configs.py). With ``SE_FUSED_AUTOTUNE=1`` alternatives are timed at
the first call of each shape instead. Results are saved in ``$SE_FUSED_CACHE`` (default ``~/.cache/se_fused``), one JSON
file per device and version of Triton. Nothing is timed at import, in the interpreter, or while a CUDA graph is
captured.
"""

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["Cache", "autotunes", "can_measure", "fastest", "folder"]


def autotunes() -> bool:
    """Whether launch shapes are chosen by measurement (``SE_FUSED_AUTOTUNE=1``)."""
    return os.environ.get("SE_FUSED_AUTOTUNE", "0") == "1"


def folder() -> Path:
    """The folder in which measured choices are saved."""
    return Path(os.environ.get("SE_FUSED_CACHE") or Path.home() / ".cache" / "se_fused")


def can_measure(device: torch.device) -> bool:
    """Whether a kernel can be timed now: on a GPU, and while no CUDA graph is captured."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


class Cache:
    """Choices by key, in memory and in a file that several processes may write. A file that cannot be read or written
    causes a warning and a new measurement, never an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._choices = self._read()

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text())
            if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
                raise ValueError("it must hold one object of strings")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            warnings.warn(f"{self.path} is not readable and will be overwritten: {error}", stacklevel=2)
            return {}
        return found

    def get(self, key: str) -> str | None:
        """The measured choice for a key, or None."""
        return self._choices.get(key)

    def put(self, key: str, choice: str) -> None:
        """Save a choice, together with those that other processes have saved. The file is written under a temporary
        name and then renamed."""
        self._choices = self._read() | self._choices | {key: choice}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._choices, file, indent=1, sort_keys=True)
            os.replace(name, self.path)
        except OSError as error:
            warnings.warn(f"a measured choice was not saved in {self.path}: {error}", stacklevel=2)


@lru_cache(maxsize=8)
def _cache(index: int) -> Cache:
    import triton

    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(index)).lower()
    return Cache(folder() / f"{name}-triton-{triton.__version__}.json")


def _milliseconds(run: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=20, return_mode="median"))


def fastest(
    key: str,
    candidates: Mapping[str, Callable[[], Any]],
    device: torch.device,
    cache: Cache | None = None,
    measure: Callable[[Callable[[], Any]], float] | None = None,
) -> str:
    """The name of the fastest candidate: from the cache, else measured now, else (if nothing can be measured) the
    first.

    Args:
        key: identifies the choice; it must contain everything that the result depends on.
        candidates: calls by name, all with the same result. A candidate that fails is skipped with a warning.
        device: the device that they run on.
        cache: the cache of choices; None for the device's file.
        measure: returns the milliseconds of a call; None for Triton's benchmark, if the device can be timed.
    """
    cache = cache or (_cache(device.index or 0) if device.type == "cuda" else None)
    known = cache.get(key) if cache is not None else None
    if known in candidates:
        return str(known)
    if measure is None and can_measure(device):
        measure = _milliseconds
    if cache is None or measure is None:
        return next(iter(candidates))
    times: dict[str, float] = {}
    for name, run in candidates.items():
        try:
            times[name] = measure(run)
        except Exception as error:  # out of shared memory, a shape that the compiler refuses
            warnings.warn(f"{key}: candidate {name} does not run here ({error})", stacklevel=2)
    if not times:
        return next(iter(candidates))
    choice = min(times, key=lambda name: times[name])
    cache.put(key, choice)
    return choice
