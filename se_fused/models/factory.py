"""``create_model``: a model by its name, with the weights of a file where one is given."""

import os
from typing import Any

from torch import nn

from ._registry import builder
from .checkpoints import load_pretrained

__all__ = ["create_model"]


def create_model(name: str, *, checkpoint_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> nn.Module:
    """The model of that name, e.g. ``create_model("seresnet50", num_classes=5)``; upper and lower case are the same.

    Args:
        name: one of :func:`se_fused.list_models`.
        checkpoint_path: a file for :func:`se_fused.load_pretrained`, which has the arguments for what does not fit.
        **kwargs: of the function of that name, e.g. :func:`se_fused.models.SEResNet50`. All take num_classes,
            in_chans, global_pool, drop_rate, device and dtype.

    Raises:
        TypeError: ``name`` is no string, or a keyword is unknown.
        ValueError: there is no such model, or pretrained weights were asked for: none are ever downloaded.
        FileNotFoundError, ImportError, ValueError: from :func:`se_fused.load_pretrained`.
    """
    build = builder(name)
    if kwargs.pop("pretrained", False):
        raise ValueError(
            "pretrained must be False: se_fused downloads nothing; load a checkpoint of timm, torchvision, MONAI, "
            "NVIDIA, mmpretrain or moskomule with checkpoint_path=path or se_fused.load_pretrained(model, path)"
        )
    model = build(**kwargs)
    if checkpoint_path is not None:
        load_pretrained(model, checkpoint_path)
    return model
