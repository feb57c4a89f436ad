"""Networks with fused blocks, baseline networks, their registry, and loading of other libraries' checkpoints."""

from ._registry import list_models
from .checkpoints import LoadReport, load_pretrained
from .densenet import DenseNet, DenseNet121
from .factory import create_model
from .resnet import ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, ResNeXt50_32x4d
from .se_resnet import (
    SENet154,
    SEResNet,
    SEResNet18,
    SEResNet34,
    SEResNet50,
    SEResNet101,
    SEResNet152,
    SEResNeXt26_32x4d,
    SEResNeXt50_32x4d,
    SEResNeXt101_32x4d,
)
from .unet import UNet, UNetClassifier

__all__ = [
    "DenseNet",
    "DenseNet121",
    "LoadReport",
    "ResNeXt50_32x4d",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "SENet154",
    "SEResNeXt26_32x4d",
    "SEResNeXt50_32x4d",
    "SEResNeXt101_32x4d",
    "SEResNet",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "UNet",
    "UNetClassifier",
    "create_model",
    "list_models",
    "load_pretrained",
]
