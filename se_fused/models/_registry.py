"""Models by name: the name of the function that builds them, in lower case, which is timm's name of the model."""

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["create_model", "list_models", "register"]

Build = TypeVar("Build", bound=Callable[..., nn.Module])

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(build: Build) -> Build:
    """Decorator: ``create_model(build.__name__.lower())`` is ``build()``."""
    _MODELS[build.__name__.lower()] = build
    return build


def list_models() -> list[str]:
    """The names that :func:`create_model` knows, sorted."""
    return sorted(_MODELS)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """The model of that name, e.g. ``create_model("seresnet50", num_classes=5)``; upper and lower case are the same.

    Args:
        name: one of :func:`list_models`.
        **kwargs: of the function of that name, e.g. :func:`se_fused.models.SEResNet50`.

    Raises:
        TypeError: ``name`` is no string, or a keyword is unknown.
        ValueError: there is no such model, or pretrained weights were asked for: none are ever downloaded.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'seresnet50', got {name!r} ({type(name).__name__})")
    if name.lower() not in _MODELS:
        close = difflib.get_close_matches(name.lower(), _MODELS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(list_models())}"
        raise ValueError(f"name must be one of se_fused.models.list_models(), got {name!r}{hint}")
    if kwargs.pop("pretrained", False):
        raise ValueError(
            "pretrained must be False: se_fused downloads nothing; load a checkpoint of timm's model of the same name "
            "with model.load_state_dict(torch.load(path))"
        )
    return _MODELS[name.lower()](**kwargs)
