"""Registry of models by name: the lower-case name of the function that builds the model, which is timm's name."""

import difflib
from collections.abc import Callable
from typing import TypeVar

from torch import nn

__all__ = ["builder", "list_models", "register"]

Build = TypeVar("Build", bound=Callable[..., nn.Module])

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(build: Build, name: str | None = None) -> Build:
    """Decorator that registers a model for ``create_model``, as ``name`` or by default ``build.__name__.lower()``."""
    _MODELS[name or build.__name__.lower()] = build
    return build


def list_models() -> list[str]:
    """Sorted names of the models that :func:`se_fused.create_model` can build."""
    return sorted(_MODELS)


def builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds the model ``name``; case is ignored.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: there is no such model. The message lists similar names.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'seresnet50', got {name!r} ({type(name).__name__})")
    if name.lower() not in _MODELS:
        close = difflib.get_close_matches(name.lower(), _MODELS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(list_models())}"
        raise ValueError(f"name must be one of se_fused.models.list_models(), got {name!r}{hint}")
    return _MODELS[name.lower()]
