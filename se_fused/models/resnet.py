"""ResNet and ResNeXt, baselines of the paper: :class:`SEResNet` without SE.

The models have the state_dict keys, shapes and outputs of torchvision's and timm's models of the same name, with batch
norm, addition and ReLU fused. The initial values are timm's; ``zero_init_last=False`` gives torchvision's.
"""

from typing import Unpack

from ._registry import register
from .se_resnet import STAGES, ResNetOptions, SEResNet

__all__ = ["ResNeXt50_32x4d", "ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"]


@register
def ResNet18(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnet18``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[18], num_classes, in_chans, se=False, **options)


@register
def ResNet34(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnet34``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[34], num_classes, in_chans, se=False, **options)


@register
def ResNet50(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnet50``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[50], num_classes, in_chans, se=False, **options)


@register
def ResNet101(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnet101``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[101], num_classes, in_chans, se=False, **options)


@register
def ResNet152(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnet152``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[152], num_classes, in_chans, se=False, **options)


@register
def ResNeXt50_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[ResNetOptions]) -> SEResNet:
    """torchvision's ``resnext50_32x4d``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[50], num_classes, in_chans, se=False, cardinality=32, base_width=4, **options)
