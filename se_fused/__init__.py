"""Fused Squeeze-and-Excitation for PyTorch: y = act(SE(BN(x)) + residual) in few passes over memory.

>>> import torch
>>> from se_fused import SEResNet50
>>> SEResNet50(num_classes=5)(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 5])
"""

from . import functional, reference
from ._version import __version__
from .backends import BackendUnavailable, use_backend
from .info import info
from .models import (
    SEResNet18,
    SEResNet34,
    SEResNet50,
    SEResNet101,
    SEResNet152,
    SEResNeXt50_32x4d,
    SEResNeXt101_32x4d,
    create_model,
    list_models,
)
from .nn import SqueezeExcite, conversion_report, convert, revert

__all__ = [
    "BackendUnavailable",
    "SEResNeXt50_32x4d",
    "SEResNeXt101_32x4d",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "SqueezeExcite",
    "__version__",
    "conversion_report",
    "convert",
    "create_model",
    "functional",
    "info",
    "list_models",
    "reference",
    "revert",
    "use_backend",
]
