"""Which modules a kernel may stand in for, asked at each call: a hook may be new.

By exact class and without hooks (:func:`is_plain`); other libraries' classes by name, because the libraries may not be
installed. Every other module is called.
"""

from typing import TypeGuard, TypeVar

from torch import nn

from ..activations import name_of_module
from ..reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS

__all__ = [
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


def is_of(module: object, library: str, name: str) -> bool:
    """Whether the module is exactly the class ``name`` of the file ``library``."""
    cls = type(module)
    return cls.__name__ == name and cls.__module__ == library


def untouched(module: nn.Module) -> bool:
    """Whether calling the module does no more than its class does: no hooks, no forward of its own."""
    return is_plain(module, type(module))


def is_nothing(module: nn.Module | None) -> bool:
    """Whether leaving the module out changes nothing."""
    return module is None or is_plain(module, nn.Identity)


def _name(module: nn.Module) -> str | None:
    return name_of_module(module) if untouched(module) else None


def activation(module: nn.Module) -> str | None:
    """Its name in :data:`se_fused.reference.ACTIVATIONS`, or None."""
    name = _name(module)
    return name if name in ACTIVATIONS else None


def gate(module: nn.Module) -> str | None:
    """Its name in :data:`se_fused.reference.GATES`, or None."""
    name = _name(module)
    return name if name in GATES else None


def out_activation(module: nn.Module | None) -> str | None:
    """Its name in :data:`se_fused.reference.OUT_ACTIVATIONS`, "none" for no activation, or None if it is unknown."""
    if module is None:
        return "none"
    name = _name(module)
    if name == "identity":
        return "none"
    return name if name in OUT_ACTIVATIONS else None
