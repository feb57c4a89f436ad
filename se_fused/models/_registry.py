"""The models by name: the name of the function that builds one, in lower case, which is timm's name of the model."""

import difflib
from collections.abc import Callable
from typing import TypeVar

from torch import nn

__all__ = ["builder", "list_models", "register"]

Build = TypeVar("Build", bound=Callable[..., nn.Module])

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(build: Build, name: str | None = None) -> Build:
    """Decorator: ``create_model(name)`` is ``build()``; the name is ``build.__name__.lower()`` if there is no other."""
    _MODELS[name or build.__name__.lower()] = build
    return build


def list_models() -> list[str]:
    """The names that :func:`se_fused.create_model` knows, sorted."""
    return sorted(_MODELS)


def builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds the model of that name; upper and lower case are the same.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: there is no such model; the message names close ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'seresnet50', got {name!r} ({type(name).__name__})")
    if name.lower() not in _MODELS:
        close = difflib.get_close_matches(name.lower(), _MODELS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(list_models())}"
        raise ValueError(f"name must be one of se_fused.models.list_models(), got {name!r}{hint}")
    return _MODELS[name.lower()]
