"""Models by name: the name of the function that builds them, in lower case, which is timm's name of the model."""

import difflib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["create_model", "list_models", "register"]

Build = TypeVar("Build", bound=Callable[..., nn.Module])

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(build: Build, name: str | None = None) -> Build:
    """Decorator: ``create_model(name)`` is ``build()``; the name is ``build.__name__.lower()`` if there is no other."""
    _MODELS[name or build.__name__.lower()] = build
    return build


def list_models() -> list[str]:
    """The names that :func:`create_model` knows, sorted."""
    return sorted(_MODELS)


def create_model(name: str, *, checkpoint_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> nn.Module:
    """The model of that name, e.g. ``create_model("seresnet50", num_classes=5)``; upper and lower case are the same.

    Args:
        name: one of :func:`list_models`.
        checkpoint_path: a file for :func:`se_fused.load_pretrained`, which has the arguments for what does not fit.
        **kwargs: of the function of that name, e.g. :func:`se_fused.models.SEResNet50`. All take num_classes,
            in_chans, global_pool, drop_rate, device and dtype.

    Raises:
        TypeError: ``name`` is no string, or a keyword is unknown.
        ValueError: there is no such model, or pretrained weights were asked for: none are ever downloaded.
        FileNotFoundError, ImportError, ValueError: from :func:`se_fused.load_pretrained`.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string such as 'seresnet50', got {name!r} ({type(name).__name__})")
    if name.lower() not in _MODELS:
        close = difflib.get_close_matches(name.lower(), _MODELS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(list_models())}"
        raise ValueError(f"name must be one of se_fused.models.list_models(), got {name!r}{hint}")
    if kwargs.pop("pretrained", False):
        raise ValueError(
            "pretrained must be False: se_fused downloads nothing; load a checkpoint of timm, torchvision, MONAI, "
            "NVIDIA, mmpretrain or moskomule with checkpoint_path=path or se_fused.load_pretrained(model, path)"
        )
    model = _MODELS[name.lower()](**kwargs)
    if checkpoint_path is not None:
        from .checkpoints import load_pretrained  # it knows the models, which are registered here

        load_pretrained(model, checkpoint_path)
    return model
