"""Small blocks that rescale before their projection: EfficientNet, MobileNetV3 and RegNetY of two libraries."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from timm.layers import BlurPool2d  # noqa: E402
from timm.models import _efficientnet_blocks as timm_blocks  # noqa: E402
from timm.models.regnet import Bottleneck  # noqa: E402
from torchvision.models.efficientnet import MBConv, MBConvConfig  # noqa: E402
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig  # noqa: E402
from torchvision.models.regnet import ResBottleneckBlock  # noqa: E402

SE = timm_blocks.SqueezeExcite
BLOCKS: dict[str, Any] = {
    "timm-mbconv": lambda: timm_blocks.InvertedResidual(8, 8, exp_ratio=2.0, act_layer=nn.SiLU, se_layer=SE),
    "timm-mbconv-stride": lambda: timm_blocks.InvertedResidual(8, 12, stride=2, exp_ratio=2.0, act_layer=nn.SiLU,
                                                               se_layer=SE, drop_path_rate=0.5),
    "timm-no-se": lambda: timm_blocks.InvertedResidual(8, 8, exp_ratio=2.0, act_layer=nn.ReLU6),
    "timm-blur": lambda: timm_blocks.InvertedResidual(8, 8, stride=2, exp_ratio=2.0, se_layer=SE, aa_layer=BlurPool2d),
    "timm-s2d": lambda: timm_blocks.DepthwiseSeparableConv(4, 16, s2d=1, act_layer=nn.SiLU, se_layer=SE),
    "timm-separable": lambda: timm_blocks.DepthwiseSeparableConv(8, 8, act_layer="hard_swish", se_layer=SE,
                                                                 pw_act=True),
    "timm-regnet": lambda: Bottleneck(8, 8, group_size=4),
    "timm-regnet-down": lambda: Bottleneck(8, 12, stride=2, group_size=4, linear_out=True),
    "timm-regnetx": lambda: Bottleneck(8, 8, group_size=4, se_ratio=0),
    "torchvision-mbconv": lambda: MBConv(MBConvConfig(4, 3, 1, 8, 8, 1), 0.0, nn.BatchNorm2d),
    "torchvision-mbconv-1": lambda: MBConv(MBConvConfig(1, 5, 2, 8, 12, 1), 0.0, nn.BatchNorm2d),
    "torchvision-v3": lambda: InvertedResidual(InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1),
                                               nn.BatchNorm2d),
    "torchvision-v3-no-se": lambda: InvertedResidual(InvertedResidualConfig(8, 3, 16, 12, False, "RE", 2, 1, 1),
                                                     nn.BatchNorm2d),
    "torchvision-regnety": lambda: ResBottleneckBlock(8, 8, 1, nn.BatchNorm2d, nn.ReLU, 4, 1.0, 0.25),
    "torchvision-regnetx": lambda: ResBottleneckBlock(8, 12, 2, nn.BatchNorm2d, nn.ReLU, 4, 1.0, None),
}  # fmt: skip
WITHOUT_SE = ("timm-no-se", "timm-regnetx", "torchvision-v3-no-se", "torchvision-regnetx")


def draw(name: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4 if name == "timm-s2d" else 8, 10, 8, generator=generator) * 2 + 0.5
