"""Checks whether a kernel may compute a module's result instead of calling the module.

A module qualifies by its exact class and by having no hooks (:func:`is_plain`). Classes of other libraries are compared
by name, because the libraries may not be installed. All other modules are called. The checks run in every call, because
hooks can be added at any time.
"""

from typing import TypeGuard, TypeVar

from torch import nn

from ..activations import name_of_module
from ..reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS

__all__ = [
    "HOOKS",
    "activation",
    "gate",
    "is_nothing",
    "is_of",
    "is_plain",
    "out_activation",
    "refuse_torchscript",
    "untouched",
]

M = TypeVar("M", bound=nn.Module)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""A module's dictionaries of hooks that a call runs; :func:`is_plain` reads them by name, which is faster."""


def refuse_torchscript(self: nn.Module) -> nn.Module:
    """A ``__prepare_scriptable__`` method that raises: torch.jit.script calls it first, also inside another model."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(self).__name__}, whose kernels are called from Python: use "
        "torch.export.export(model, ...), or trace plain PyTorch, with se_fused.use_backend('reference'): "
        "torch.jit.trace(model, ...)"
    )


def is_plain(module: nn.Module, *types: type[M]) -> TypeGuard[M]:
    """Whether the module's class is exactly one of ``types`` and calling it runs only the forward of that class.

    A subclass (parametrized, quantized, FSDP), a hook (pruning, feature extraction) or a replaced ``forward``
    (accelerate) means that the module must be called. Global hooks (``register_module_forward_hook``) are ignored:
    profilers set them, and a profiler must measure the same calls that run without it.
    """
    return type(module) in types and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_of(module: object, library: str, name: str) -> bool:
    """Whether the module's class is exactly ``name``, defined in the Python module ``library``."""
    cls = type(module)
    return cls.__name__ == name and cls.__module__ == library


def untouched(module: nn.Module) -> bool:
    """Whether the module has no hooks and no ``forward`` replaced on the instance."""
    return is_plain(module, type(module))


def is_nothing(module: nn.Module | None) -> bool:
    """Whether the module can be left out: None or a plain identity."""
    return module is None or is_plain(module, nn.Identity)


def _name(module: nn.Module) -> str | None:
    return name_of_module(module) if untouched(module) else None


def activation(module: nn.Module) -> str | None:
    """The module's name in :data:`se_fused.reference.ACTIVATIONS`, or None."""
    name = _name(module)
    return name if name in ACTIVATIONS else None


def gate(module: nn.Module) -> str | None:
    """The module's name in :data:`se_fused.reference.GATES`, or None."""
    name = _name(module)
    return name if name in GATES else None


def out_activation(module: nn.Module | None) -> str | None:
    """The module's name in :data:`se_fused.reference.OUT_ACTIVATIONS`; "none" for no activation, else None."""
    if module is None:
        return "none"
    name = _name(module)
    if name == "identity":
        return "none"
    return name if name in OUT_ACTIVATIONS else None
