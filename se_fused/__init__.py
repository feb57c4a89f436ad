"""Fused Squeeze-and-Excitation for PyTorch: y = act(SE(BN(x)) + residual) in few passes over memory.

>>> import torch
>>> from se_fused import SEResNet50
>>> SEResNet50(num_classes=5)(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 5])
"""

from . import functional, reference
from ._version import __version__
from .backends import BackendUnavailable, use_backend
from .info.environment import info
from .models import (
    DenseNet121,
    ResNet50,
    SENet154,
    SEResNet18,
    SEResNet34,
    SEResNet50,
    SEResNet101,
    SEResNet152,
    SEResNeXt50_32x4d,
    SEResNeXt101_32x4d,
    UNet,
    create_model,
    list_models,
    load_pretrained,
)
from .nn import SqueezeExcite, conversion_report, convert, graphed, optimize_for_inference, revert
from .ops import flops as _flops

_flops.register()

__all__ = [
    "BackendUnavailable",
    "DenseNet121",
    "ResNet50",
    "SENet154",
    "SEResNeXt50_32x4d",
    "SEResNeXt101_32x4d",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "SqueezeExcite",
    "UNet",
    "__version__",
    "conversion_report",
    "convert",
    "create_model",
    "functional",
    "graphed",
    "info",
    "list_models",
    "load_pretrained",
    "optimize_for_inference",
    "reference",
    "revert",
    "use_backend",
]
