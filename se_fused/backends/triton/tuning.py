"""Measured choices, remembered: launch shapes where that is asked for, and how a convolution with squeeze-excite runs.

Launch shapes come from a rule (launch_configs.py). ``SE_FUSED_AUTOTUNE=1`` measures alternatives at the first call of
each shape instead. Results are kept in ``$SE_FUSED_CACHE`` (default ``~/.cache/se_fused``), one JSON file per device
and version of Triton. Nothing is measured at import, in the interpreter, or while a CUDA graph is captured.
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
    """Whether launch shapes are to be measured."""
    return os.environ.get("SE_FUSED_AUTOTUNE", "0") == "1"


def folder() -> Path:
    """Where measured choices are kept."""
    return Path(os.environ.get("SE_FUSED_CACHE") or Path.home() / ".cache" / "se_fused")


def can_measure(device: torch.device) -> bool:
    """Whether a kernel may be timed here and now."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


class Cache:
    """Choices by key, in memory and in a file that several processes may write. What cannot be read or written costs a
    warning and a measurement, never a call."""

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
            warnings.warn(f"{self.path} is not readable and will be written anew: {error}", stacklevel=2)
            return {}
        return found

    def get(self, key: str) -> str | None:
        """The choice for that key, if one was measured."""
        return self._choices.get(key)

    def put(self, key: str, choice: str) -> None:
        """Remember a choice: in a temporary file that then takes the other's name, with what others have written."""
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
    """The name of the fastest candidate: remembered, else measured now, else (nothing can be measured) the first.

    Args:
        key: what was chosen between, with everything that the answer depends on.
        candidates: calls by name, all with the same result. One that fails is left out.
        device: where they run.
        cache: where answers are kept; None: the device's file.
        measure: milliseconds of a call; None: Triton's benchmark, where the device can be asked.
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
