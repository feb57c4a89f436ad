"""What other libraries' modules are, for a kernel to stand in for them, asked at each call: a hook may be new.

By exact class and without hooks, as :func:`se_fused.nn._checks.is_plain` does; and by name, because the libraries may
not be installed. Whatever else there is, is called as a module.
"""

from torch import nn

from ..reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from ._checks import is_plain
from .squeeze_excite import _TIMM, _TORCH

__all__ = ["activation", "gate", "is_nothing", "is_of", "out_activation", "untouched"]


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
    cls = type(module)
    name = _TORCH.get(cls)
    if name is None and cls.__module__.startswith("timm."):
        name = _TIMM.get(cls.__name__)
    if name is None or not untouched(module):
        return None
    if isinstance(module, nn.LeakyReLU) and module.negative_slope != 0.01:
        return None
    return "gelu_tanh" if isinstance(module, nn.GELU) and module.approximate == "tanh" else name


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
