"""Checks of arguments: every message names the argument, what it was given and what is wanted."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["autocasts", "check_choice", "check_number", "check_parameter", "check_tensor", "check_x"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def autocasts(t: Tensor) -> bool:
    """Whether autocast is enabled on t's device; the meta device has none, and PyTorch raises where it is asked.

    ``torch.amp.is_autocast_available`` would say so too, and breaks the graph of torch.compile in torch 2.11.
    """
    return t.device.type != "meta" and torch.is_autocast_enabled(t.device.type)


def check_tensor(t: Any, name: str) -> None:
    """TypeError unless t is a tensor of a real floating-point dtype."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float32, bfloat16, float16 or float64, got {_dtype(t)}: cast it, {name}.float()"
        )


def check_x(x: Any, name: str = "x") -> None:
    """TypeError or ValueError unless x, called ``name``, is a floating-point tensor (N, C, *spatial) with one to three
    spatial sizes."""
    check_tensor(x, name)
    if not 3 <= x.dim() <= 5:
        raise ValueError(
            f"{name} must be (N, C, *spatial) with 3, 4 or 5 dimensions, got shape {tuple(x.shape)}"
            + (f": a single image needs a batch dimension, {name}.unsqueeze(0)" if x.dim() == 2 else "")
        )


def check_parameter(t: Any, name: str, shape: tuple[int, ...], meaning: str, x: Tensor, of: str = "x") -> None:
    """Check a parameter that may be None: its device is that of x, which is called ``of``, its shape ``shape`` or that
    with trailing ones."""
    if t is None:
        return
    check_tensor(t, name)
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device}, {of} on {x.device}: move one, for example {name}.to(x.device)")
    dims = len(shape)
    if t.shape != shape and (t.shape[:dims] != shape or any(size != 1 for size in t.shape[dims:])):
        raise ValueError(f"{name} must be {meaning} = {shape}, got {tuple(t.shape)} for {of} of shape {tuple(x.shape)}")


def check_choice(value: Any, name: str, choices: Iterable[str]) -> None:
    """ValueError unless value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_number(value: Any, name: str, low: float, high: float) -> None:
    """TypeError or ValueError unless low <= value <= high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
