"""Argument checks. Every message names the argument, what is wanted and what was given."""

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "Parameter",
    "autocasts",
    "check_bool",
    "check_choice",
    "check_int",
    "check_number",
    "check_parameters",
    "check_positive",
    "check_rate",
    "check_tensor",
    "check_x",
]

_WIDE = torch.float64
FLOATS = (torch.float32, torch.bfloat16, torch.float16, _WIDE)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def autocasts(t: Tensor) -> bool:
    """Whether autocast is enabled for t's device type. The meta device has no autocast, and PyTorch would raise for it.

    ``torch.amp.is_autocast_available`` is not used, because it causes a graph break in torch.compile of torch 2.11.
    """
    device = "cpu" if t.is_cpu else t.device.type  # is_cpu takes a tenth of the instructions
    return device != "meta" and torch.is_autocast_enabled(device)


def check_tensor(t: Any, name: str) -> None:
    """TypeError unless t is a tensor of a real floating-point dtype."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{name} must be float32, bfloat16, float16 or float64, got {_dtype(t)}: cast it, {name}.float()"
        )


def check_x(x: Any, name: str = "x") -> None:
    """TypeError or ValueError unless x, called ``name``, is a floating-point tensor (N, C, *spatial) with one to three
    spatial sizes."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        check_tensor(x, name)
    if not 3 <= x.dim() <= 5:
        raise ValueError(
            f"{name} must be (N, C, *spatial) with 3, 4 or 5 dimensions, got shape {tuple(x.shape)}"
            + (f": a single image needs a batch dimension, {name}.unsqueeze(0)" if x.dim() == 2 else "")
        )


Parameter = tuple[str, Any, tuple[int, ...], str]
"""Name, value, shape and the shape in symbols of a parameter."""


def check_parameters(parameters: Iterable[Parameter], x: Tensor, of: str = "x") -> bool:
    """Check parameters that may be None. Each must be on the device of x, called ``of`` in messages, and have its
    shape, optionally followed by sizes of 1.

    Returns:
        Whether one of them is float64.
    """
    any_wide, on_cpu = False, x.is_cpu  # is_cpu takes half the instructions of comparing devices
    for name, t, shape, meaning in parameters:
        if t is None:
            continue
        if not isinstance(t, Tensor) or (dtype := t.dtype) not in FLOATS:
            check_tensor(t, name)
        if not (t.is_cpu if on_cpu else t.device == x.device):
            raise ValueError(f"{name} is on {t.device}, {of} on {x.device}: move one, for example {name}.to(x.device)")
        given = t.shape
        if given != shape and (given[: len(shape)] != shape or any(size != 1 for size in given[len(shape) :])):
            raise ValueError(
                f"{name} must be {meaning} = {shape}, got {tuple(given)} for {of} of shape {tuple(x.shape)}"
            )
        if dtype is _WIDE:
            any_wide = True
    return any_wide


def check_choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """``value`` if it is one of the choices.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(value: Any, name: str) -> bool:
    """``value`` if it is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_int(value: Any, name: str, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``.

    Raises:
        TypeError: ``value`` is not an integer, or is a bool.
        ValueError: ``value`` is below ``minimum``.
    """
    wanted = f"an int of at least {minimum}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return int(value)


def check_number(value: Any, name: str, low: float, high: float) -> None:
    """TypeError or ValueError unless low <= value <= high."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def check_rate(value: Any, name: str, *, one: bool = False) -> float:
    """``value`` as a probability: in [0, 1), or in [0, 1] if ``one``.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is outside the interval.
    """
    wanted = "a number in [0, 1]" if one else "a number in [0, 1)"
    rate = _real(value, name, wanted)
    if not (0.0 <= rate < 1.0 or (one and rate == 1.0)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return rate


def check_positive(value: Any, name: str) -> float:
    """``value`` as a float above 0.

    Raises:
        TypeError: ``value`` is not a real number.
        ValueError: ``value`` is 0, negative, infinite or NaN.
    """
    number = _real(value, name, "a number above 0")
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
    return number


def _real(value: Any, name: str, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    return float(value)
