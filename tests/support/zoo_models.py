"""SE-ResNets of libraries that the tests do not install, rebuilt in the order that their sources document.

Plain PyTorch with the libraries' parameter names, for the checkpoint loader's tests. The sources are listed in
``se_fused/models/_zoos.py``.
"""

from collections import OrderedDict

import torchvision
from torch import Tensor, nn

__all__ = ["MMPretrain", "Nvidia", "moskomule"]


def conv(c: int, d: int, k: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c, d, k, stride, k // 2, groups=groups, bias=False)


def projection(c: int, d: int, stride: int) -> nn.Sequential | None:
    return nn.Sequential(conv(c, d, 1, stride), nn.BatchNorm2d(d)) if stride > 1 or c != d else None


class Block(nn.Module):
    """Bottleneck of these networks: ReLU after the first two batch norms, ``rescale`` after the third, sum, ReLU."""

    def __init__(self, c: int, width: int, d: int, stride: int, groups: int = 1, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.conv1 = conv(c, width, 1, stride if stride_in_1x1 else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1 if stride_in_1x1 else stride, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, d, 1)
        self.bn3 = nn.BatchNorm2d(d)
        self.downsample = projection(c, d, stride)

    def rescale(self, u: Tensor) -> Tensor:
        return u

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn1(self.conv1(x)).relu()
        u = self.bn2(self.conv2(u)).relu()
        u = self.rescale(self.bn3(self.conv3(u)))
        return (u + (x if self.downsample is None else self.downsample(x))).relu()


def pooled(u: Tensor) -> Tensor:
    return u.mean((2, 3), keepdim=True)


class NvidiaSqueeze(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)


class NvidiaBlock(Block):
    def __init__(self, c: int, width: int, stride: int, groups: int, expansion: int, squeeze: int | None) -> None:
        super().__init__(c, width, width * expansion, stride, groups)
        if squeeze:
            self.squeeze = NvidiaSqueeze(width * expansion, squeeze)

    def rescale(self, u: Tensor) -> Tensor:
        if not hasattr(self, "squeeze"):
            return u
        return u * self.squeeze.expand(self.squeeze.squeeze(pooled(u)).relu()).sigmoid()


class Nvidia(nn.Module):
    """``se-resnext101-32x4d`` with ``groups=32, squeeze=16``, ``resnet50`` without them; stages ``layers.0`` to 3."""

    def __init__(self, depths: tuple[int, ...], classes: int, groups: int = 1, squeeze: int | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1)
        c, expansion, stages = 64, 2 if groups > 1 else 4, []
        for i, depth in enumerate(depths):
            width = 2**i * (128 if groups > 1 else 64)
            blocks = []
            for j in range(depth):
                blocks.append(NvidiaBlock(c, width, 2 if i and not j else 1, groups, expansion, squeeze))
                c = width * expansion
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.layers(self.maxpool(self.bn1(self.conv1(x)).relu()))).flatten(1))


class MMSELayer(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, width, 1), activate=nn.ReLU()))
        self.conv2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, channels, 1), activate=nn.Sigmoid()))


class MMBlock(Block):
    def __init__(self, c: int, planes: int, stride: int, groups: int, style: str, se: bool) -> None:
        width = planes * 4 * groups // 64 if groups > 1 else planes
        super().__init__(c, width, planes * 4, stride, groups, style == "caffe")
        if se:
            self.se_layer = MMSELayer(planes * 4, planes * 4 // 16)

    def rescale(self, u: Tensor) -> Tensor:
        return u * self.se_layer.conv2(self.se_layer.conv1(pooled(u))) if hasattr(self, "se_layer") else u


class MMPretrain(nn.Module):
    """An ``ImageClassifier`` of mmpretrain: ``backbone`` (SEResNet, SEResNeXt with groups, or ResNet), ``head.fc``."""

    def __init__(
        self, depths: tuple[int, ...], classes: int, groups: int = 1, style: str = "pytorch", se: bool = True
    ) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1, self.backbone.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        c = 64
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(MMBlock(c, 64 * 2**i, 2 if i and not j else 1, groups, style, se))
                c = 256 * 2**i
            self.backbone.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.head = nn.Module()
        self.head.fc = nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        net = self.backbone
        x = nn.functional.max_pool2d(net.bn1(net.conv1(x)).relu(), 3, 2, 1)
        return self.head.fc(pooled(net.layer4(net.layer3(net.layer2(net.layer1(x))))).flatten(1))


class MoskomuleSE(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 16
        self.fc = nn.Sequential(
            nn.Linear(channels, width, bias=False), nn.ReLU(), nn.Linear(width, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, u: Tensor) -> Tensor:
        return u * self.fc(u.mean((2, 3)))[:, :, None, None]


class MoskomuleBottleneck(torchvision.models.resnet.Bottleneck):
    """torchvision's bottleneck, strided in the 3x3 convolution, with SE after the last batch norm."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = MoskomuleSE(planes * 4)

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn1(self.conv1(x)).relu()
        u = self.bn2(self.conv2(u)).relu()
        u = self.se(self.bn3(self.conv3(u)))
        return (u + (x if self.downsample is None else self.downsample(x))).relu()


class MoskomuleBasicBlock(torchvision.models.resnet.BasicBlock):
    """torchvision's basic block, with SE after the last batch norm."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.se = MoskomuleSE(planes)

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn1(self.conv1(x)).relu()
        u = self.se(self.bn2(self.conv2(u)))
        return (u + (x if self.downsample is None else self.downsample(x))).relu()


def moskomule(depths: tuple[int, ...], classes: int, bottleneck: bool = True) -> nn.Module:
    """torchvision's ResNet with moskomule's blocks, as ``se_resnet18`` and ``se_resnet50``."""
    block = MoskomuleBottleneck if bottleneck else MoskomuleBasicBlock
    return torchvision.models.ResNet(block, list(depths), num_classes=classes)
