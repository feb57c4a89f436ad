"""Argument checks that the modules and the models share: each names the argument, what was given and what is wanted."""

import numbers
from collections.abc import Sequence
from typing import TypeGuard, TypeVar

from torch import nn

__all__ = ["check_bool", "check_choice", "check_int", "check_positive", "check_rate", "is_plain", "refuse_torchscript"]

M = TypeVar("M", bound=nn.Module)


def check_int(name: str, value: object, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``.

    Raises:
        TypeError: ``value`` is no integer (a bool is none either).
        ValueError: ``value`` is below ``minimum``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int of at least {minimum}, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")
    return int(value)


def check_rate(name: str, value: object, *, one: bool = False) -> float:
    """``value`` as a probability: in [0, 1), or in [0, 1] if ``one``.

    Raises:
        TypeError: ``value`` is no real number.
        ValueError: ``value`` is outside the interval.
    """
    wanted = "a number in [0, 1]" if one else "a number in [0, 1)"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {wanted}, got {value!r} ({type(value).__name__})")
    rate = float(value)
    if not (0.0 <= rate < 1.0 or (one and rate == 1.0)):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return rate


def check_positive(name: str, value: object) -> float:
    """``value`` as a float above 0.

    Raises:
        TypeError: ``value`` is no real number.
        ValueError: ``value`` is 0, below, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number above 0, got {value!r} ({type(value).__name__})")
    if not 0.0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be a number above 0, got {value!r}")
    return float(value)


def check_bool(name: str, value: object) -> bool:
    """``value`` if it is a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def refuse_torchscript(self: nn.Module) -> nn.Module:
    """As a class's ``__prepare_scriptable__``: what torch.jit.script calls first, also inside another model."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(self).__name__}, whose kernels are called from Python: use "
        "torch.export.export(model, ...), or trace plain PyTorch, with se_fused.use_backend('reference'): "
        "torch.jit.trace(model, ...)"
    )


def is_plain(module: nn.Module, *types: type[M]) -> TypeGuard[M]:
    """Whether a kernel may stand in for ``module(...)``: exactly one of ``types``, and calling it does nothing more.

    A subclass (parametrized, quantized, FSDP), a hook (pruning, feature extraction) or a replaced ``forward``
    (accelerate) says that the module is to be called. Hooks on all modules at once (``register_module_forward_hook``)
    are not looked at: profilers set them, and a profiler must see what runs without it.
    """
    return type(module) in types and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
