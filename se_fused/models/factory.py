"""``create_model``: build a model by name, optionally with the weights of a file."""

import os
from typing import Any

from torch import nn

from ._registry import builder
from .checkpoints import load_pretrained

__all__ = ["create_model"]


def create_model(name: str, *, checkpoint_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> nn.Module:
    """Build a model by name, for example ``create_model("seresnet50", num_classes=5)``.

    Args:
        name: one of :func:`se_fused.list_models`; case is ignored.
        checkpoint_path: a checkpoint file to load with :func:`se_fused.load_pretrained` and its default options. To
            use other options, call that function instead.
        **kwargs: arguments of the function that builds the model, such as :func:`se_fused.models.SEResNet50`. All
            accept num_classes, in_chans, global_pool, drop_rate, device and dtype.

    Returns:
        The model, in training mode.

    Raises:
        TypeError: ``name`` is not a string, or a keyword argument is unknown.
        ValueError: there is no such model, or ``pretrained=True`` was given: se_fused never downloads weights.
        FileNotFoundError, ImportError, ValueError: as from :func:`se_fused.load_pretrained`.
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
