"""SE-ResNet, SE-ResNeXt and SENet: timm's ``seresnet*``, ``seresnext*_32x4d`` and ``senet154``, with fused block tails.

Same state_dict keys and shapes, same outputs, same initial values for the same seed. This is the order of timm and
mmpretrain: the stride stands in the 3x3 convolution, the stem's max-pooling pads by 1. The legacy order (Cadene, MONAI,
timm's ``legacy_*``: stride in the 1x1 convolution, ceil-mode pooling) has parameters of the same shapes and is another
function; its checkpoints are refused, even with ``strict=False``.
"""

from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..nn import conv_bn_act
from ..nn._checks import check_int, check_rate
from ._blocks import BasicBlock, Bottleneck, DeepStem, Downsample, GlobalPool
from ._registry import register

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "SENet154",
    "SEResNeXt50_32x4d",
    "SEResNeXt101_32x4d",
    "SEResNet",
    "SEResNet18",
    "SEResNet34",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
]

_PLANES = (64, 128, 256, 512)
_LEGACY = (".layer0.", ".last_linear.", ".se_module.", ".se_layer.")
_WRAPPERS = ("module.", "_orig_mod.")


class Options(TypedDict, total=False):
    """What every model of this file takes by keyword, with the meaning it has in :class:`SEResNet`."""

    global_pool: str
    drop_rate: float
    drop_path_rate: float
    zero_init_last: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class SEResNet(nn.Module):
    """Residual network whose blocks end in SE. (N, in_chans, H, W) -> (N, num_classes).

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each of the four stages.
        num_classes: outputs; 0: no classifier, the model returns pooled features.
        in_chans: channels of the image.
        global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (both, twice as many features), or "": none, the
            model returns the map (N, num_features, H/32, W/32); needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        zero_init_last: start with the last batch norm of every block at zero, so that blocks start as identities.
        cardinality: groups of the 3x3 convolutions (:class:`Bottleneck` only).
        base_width: width of a group in the first stage (:class:`Bottleneck` only).
        reduce_first: divides the width of each block's first convolution (:class:`Bottleneck` only).
        deep_stem: three 3x3 convolutions in place of the 7x7, and a wider stem.
        down_kernel_size: of the strided shortcuts.
        se: False: no SE, which makes it torchvision's and timm's ResNet.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        num_features: channels of the last map.
        head_hidden_size: features that the classifier sees: num_features, or twice that for "catavgmax".
        grad_checkpointing: whether blocks recompute their activations in the backward pass.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range; the message names it.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        *,
        cardinality: int = 1,
        base_width: int = 64,
        reduce_first: int = 1,
        deep_stem: bool = False,
        down_kernel_size: int = 1,
        se: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_int("in_chans", in_chans, 1)
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate)
        if len(layers) != len(_PLANES):
            raise ValueError(f"layers must hold the blocks of {len(_PLANES)} stages, got {layers!r}")
        self.in_chans = in_chans
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self.grad_checkpointing = False

        channels = 128 if deep_stem else 64
        self.conv1: nn.Module
        if deep_stem:
            self.conv1 = DeepStem(in_chans, channels // 2, device=device, dtype=dtype)
        else:
            self.conv1 = nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        # The projection is built before its block, as in timm: the same seed then gives the same initial values.
        index, count = 0, sum(layers)
        for stage, (planes, depth) in enumerate(zip(_PLANES, layers, strict=True), 1):
            blocks = []
            for i in range(check_int(f"layers[{stage - 1}]", depth, 1)):
                stride, out = (2 if stage > 1 and i == 0 else 1), planes * block.expansion
                down = None
                if stride != 1 or channels != out:
                    down = Downsample(channels, out, down_kernel_size, stride, device=device, dtype=dtype)
                rate = drop_path_rate * index / (count - 1)
                blocks.append(
                    block(
                        channels, planes, stride, down, se=se, drop_path=rate, cardinality=cardinality,
                        base_width=base_width, reduce_first=reduce_first, device=device, dtype=dtype,
                    )
                )  # fmt: skip
                channels, index = out, index + 1
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

        self.num_features = channels
        self._make_head(num_classes, global_pool, device, dtype)
        self.init_weights(zero_init_last)

    def _make_head(
        self, num_classes: int, global_pool: str, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        num_classes = check_int("num_classes", num_classes, 0)
        pool = GlobalPool(global_pool)
        if num_classes and not global_pool:
            raise ValueError(
                f"global_pool must pool for a classifier of num_classes={num_classes}, got ''; give global_pool='avg', "
                "or num_classes=0 for the map itself"
            )
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool = pool
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype)

    @torch.no_grad()
    def init_weights(self, zero_init_last: bool = True) -> None:
        """timm's initial values of the convolutions, and zero for the last batch norm of each block if wanted."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm().weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass of training recomputes each block's activations instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last layer: an ``nn.Linear``, or an ``nn.Identity`` with ``num_classes=0``."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with fresh weights; ``global_pool=None`` keeps the pooling.

        Raises:
            TypeError, ValueError: as from the constructor.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        parameter = next(self.parameters())
        self._make_head(num_classes, pool, parameter.device, parameter.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H/32, W/32)."""
        x = self.maxpool(conv_bn_act(self.conv1, self.bn1, x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if self.grad_checkpointing and torch.is_grad_enabled():
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, h, w) -> (N, num_classes), or with ``pre_logits`` what the classifier sees."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        if not pre_logits:
            x = self.fc(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Here, and not in load_state_dict, because a model inside another module is to be guarded too; and before the
        # first parameter is overwritten.
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        for key in keys:
            if any(mark in f".{key}" for mark in _LEGACY):
                raise RuntimeError(
                    f"state_dict key {prefix + key!r} is of a legacy SE-ResNet (Cadene, MONAI, timm legacy_*): stride "
                    "in conv1 and ceil-mode pooling; its weights fit here by shape and would compute something else; "
                    "load it into timm's legacy_* model of the same depth"
                )
        wrapper = next((w for w in _WRAPPERS if keys and all(key.startswith(w) for key in keys)), None)
        if wrapper is not None:
            raise RuntimeError(
                f"every key of the state_dict starts with {prefix + wrapper!r}: it was saved from a wrapped model; "
                f"strip that, for example with {{k.removeprefix({wrapper!r}): v for k, v in state_dict.items()}}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@register
def SEResNet18(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnet18``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_chans, **options)


@register
def SEResNet34(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnet34``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_chans, **options)


@register
def SEResNet50(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnet50``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_chans, **options)


@register
def SEResNet101(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnet101``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_chans, **options)


@register
def SEResNet152(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnet152``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_chans, **options)


@register
def SEResNeXt50_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnext50_32x4d``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_chans, cardinality=32, base_width=4, **options)


@register
def SEResNeXt101_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``seresnext101_32x4d``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_chans, cardinality=32, base_width=4, **options)


@register
def SENet154(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[Options]) -> SEResNet:
    """timm's ``senet154``; the arguments are :class:`SEResNet`'s."""
    return SEResNet(
        Bottleneck, (3, 8, 36, 3), num_classes, in_chans,
        cardinality=64, base_width=4, reduce_first=2, deep_stem=True, down_kernel_size=3, **options,
    )  # fmt: skip
