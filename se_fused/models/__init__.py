"""Whole networks with fused block tails, and their registry."""

from ._registry import create_model, list_models
from .se_resnet import (
    SENet154,
    SEResNet,
    SEResNet18,
    SEResNet34,
    SEResNet50,
    SEResNet101,
    SEResNet152,
    SEResNeXt50_32x4d,
    SEResNeXt101_32x4d,
)

__all__ = [
    "SENet154",
    "SEResNeXt50_32x4d",
    "SEResNeXt101_32x4d",
    "SEResNet",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "create_model",
    "list_models",
]
