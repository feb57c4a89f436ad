"""SE-ResNet, SE-ResNeXt and SENet with fused blocks, in two variants.

``variant="timm"``, the default, is timm's ``seresnet*``, ``seresnext*_32x4d`` and ``senet154``: same state_dict keys,
shapes and outputs, and the same initial values for the same seed. ``variant="caffe"`` is the legacy variant of Cadene,
MONAI and timm's ``legacy_*``: same outputs and initial values as these. Its keys are those of the default;
:func:`se_fused.load_pretrained` translates the keys of checkpoints. From depth 50 up, the parameters of both variants
have the same shapes, but the models compute different functions. The state_dict of the legacy variant therefore has an
additional key, ``caffe_order``, and each variant raises an error for checkpoints of the other.

Options for the SE-ResNets of other libraries:

================================  ====================================================================================
timm, mmpretrain (style pytorch)  the default
timm ``legacy_*``, Cadene, MONAI  ``variant="caffe"``
NVIDIA DeepLearningExamples       ``SEResNeXt101_32x4d(rd_channels=16)``: 16 squeezed channels in every stage
moskomule/senet.pytorch           ``rd_divisor=1, se_bias=False``
================================  ====================================================================================
"""

import functools
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._checks import check_choice, check_int, check_rate
from ..nn import SqueezeExcite, conv_bn_act
from ._blocks import BasicBlock, Bottleneck, DeepStem, Downsample
from ._classifier import ImageClassifier, Options
from ._registry import register

__all__ = [
    "MARK",
    "STAGES",
    "BasicBlock",
    "Bottleneck",
    "ResNetOptions",
    "SENet154",
    "SEOptions",
    "SEResNeXt26_32x4d",
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
MARK = "caffe_order"
"""Key that only the legacy variant of this library has in its state_dict."""

STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    26: (Bottleneck, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Block class and number of blocks in each stage, by depth of the network."""

_LEGACY = (".layer0.", ".last_linear.", ".se_module.", ".se_layer.fc.")


class ResNetOptions(Options, total=False):
    """Keyword arguments of all residual networks, described in :class:`SEResNet`."""

    drop_path_rate: float
    zero_init_last: bool | None
    variant: str
    channels: tuple[int, int, int, int]
    stem_channels: int


class SEOptions(ResNetOptions, total=False):
    """Keyword arguments of the networks with SE, described in :class:`SEResNet`."""

    rd_ratio: float
    rd_channels: int | None
    rd_divisor: int | None
    se_bias: bool


class SEResNet(ImageClassifier):
    """Residual network with an SE layer in each block. (N, in_chans, H, W) -> (N, num_classes).

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: number of outputs; with 0, the model has no classifier and returns pooled features.
        in_chans: channels of the images.
        global_pool: "avg", "max", "avgmax" (the mean of both), "catavgmax" (both, twice as many features), or "": no
            pooling, the model returns the map (N, num_features, H/32, W/32), which needs ``num_classes=0``.
        drop_rate: dropout probability before the classifier.
        drop_path_rate: probability of stochastic depth in the last block; it increases linearly from 0 in the first.
        zero_init_last: initialise the weight of the last batch norm in each block with zero, so that the blocks start
            as identities. None, as in timm: True for variant "timm", False for "caffe".
        cardinality: groups of the 3x3 convolutions (:class:`Bottleneck` only).
        base_width: channels of each group in the first stage (:class:`Bottleneck` only).
        reduce_first: divisor of the width of each block's first convolution (:class:`Bottleneck` only).
        channels: width of each of the four stages before the block's expansion; timm's keyword.
        stem_channels: output channels of the 7x7 convolution.
        deep_stem: use three 3x3 convolutions with 128 output channels instead of the 7x7 convolution.
        down_kernel_size: kernel size of the shortcut's projection where it has a stride; without a stride it is 1.
        se: whether the blocks have SE; without it, the model is torchvision's and timm's ResNet.
        variant: "timm" or "caffe", the legacy variant. In the latter, the max-pooling of the stem has no padding and
            rounds its output size up; :class:`Bottleneck` without groups has its stride in the first convolution;
            :class:`BasicBlock` has a ReLU before SE; and the squeezed width is not rounded.
        rd_ratio: squeezed width of SE divided by the channels of the block.
        rd_channels: squeezed width of SE in all blocks; None computes it from ``rd_ratio``.
        rd_divisor: widths from ``rd_ratio`` are rounded to a multiple of it; None: 8 for variant "timm", 1 for "caffe".
        se_bias: whether the two layers of SE have a bias.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Attributes:
        num_features: channels of the last feature map.
        head_hidden_size: input features of the classifier: num_features, or twice as many for "catavgmax".
        variant: "timm" or "caffe".
        grad_checkpointing: whether the backward pass recomputes the activations inside the blocks.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range. The message names the argument.
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
        zero_init_last: bool | None = None,
        *,
        cardinality: int = 1,
        base_width: int = 64,
        reduce_first: int = 1,
        deep_stem: bool = False,
        down_kernel_size: int = 1,
        se: bool = True,
        variant: str = "timm",
        channels: tuple[int, int, int, int] = _PLANES,
        stem_channels: int = 64,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int | None = None,
        se_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        drop_path_rate = check_rate(drop_path_rate, "drop_path_rate")
        for argument, stages in (("layers", layers), ("channels", channels)):
            if len(stages) != len(_PLANES):
                raise ValueError(f"{argument} must hold one number for each of {len(_PLANES)} stages, got {stages!r}")
        self.variant = check_choice(variant, "variant", ("timm", "caffe"))
        self.grad_checkpointing = False
        caffe = variant == "caffe"
        divisor = rd_divisor if rd_divisor is not None else (1 if caffe else 8)
        se_layer = functools.partial(
            SqueezeExcite, rd_ratio=rd_ratio, rd_channels=rd_channels, rd_divisor=divisor, bias=se_bias,
            device=device, dtype=dtype,
        )  # fmt: skip

        width = 128 if deep_stem else check_int(stem_channels, "stem_channels", 1)
        self.conv1: nn.Module
        if deep_stem:
            self.conv1 = DeepStem(in_chans, width // 2, device=device, dtype=dtype)
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(width, device=device, dtype=dtype)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if caffe else nn.MaxPool2d(3, 2, 1)

        # The projection is built before its block, as in timm: the same seed then gives the same initial values.
        index, count = 0, sum(layers)
        for stage, (planes, depth) in enumerate(zip(channels, layers, strict=True), 1):
            blocks = []
            for i in range(check_int(depth, f"layers[{stage - 1}]", 1)):
                stride, out = (
                    (2 if stage > 1 and i == 0 else 1),
                    check_int(planes, f"channels[{stage - 1}]", 1) * block.expansion,
                )
                down = None
                if stride != 1 or width != out:
                    down = Downsample(width, out, down_kernel_size, stride, device=device, dtype=dtype)
                rate = drop_path_rate * index / (count - 1)
                blocks.append(
                    block(
                        width, planes, stride, down, se_layer=se_layer if se else None, drop_path=rate, caffe=caffe,
                        cardinality=cardinality, base_width=base_width, reduce_first=reduce_first, device=device,
                        dtype=dtype,
                    )
                )  # fmt: skip
                width, index = out, index + 1
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

        self.num_features = width
        self._make_head(num_classes, global_pool, device, dtype)
        if caffe:
            # The value is not used: the key distinguishes checkpoints of this variant from those of the other.
            self.register_buffer(MARK, torch.ones((), dtype=torch.long, device=device))
        self.init_weights(not caffe if zero_init_last is None else zero_init_last)

    @torch.no_grad()
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Set timm's initial values of the convolutions; ``zero_init_last`` as in the constructor."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm().weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass recompute the activations inside each block instead of storing them in the forward."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map: (N, in_chans, H, W) -> (N, num_features, H/32, W/32)."""
        x = self.maxpool(conv_bn_act(self.conv1, self.bn1, x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if self.grad_checkpointing and torch.is_grad_enabled():
                for block in stage:
                    x = checkpoint(block, x, use_reentrant=False)
            else:
                x = stage(x)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Check before the first parameter is overwritten, and also with strict=False.
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        for key in keys:
            if any(mark in f".{key}" for mark in _LEGACY):
                raise RuntimeError(
                    f"state_dict key {prefix + key!r} is of a legacy SE-ResNet (Cadene, MONAI, timm legacy_*): stride "
                    "in conv1 and ceil-mode pooling; its weights fit this model by shape but may compute something "
                    "else; build the model with variant='caffe' and use se_fused.load_pretrained(model, path)"
                )
        marked = MARK in keys
        if self.variant == "timm" and marked:
            raise RuntimeError(
                f"state_dict key {prefix + MARK!r} shows that it was saved from a model with variant='caffe'; this "
                "model has variant='timm', where the same weights compute something else; build it with variant='caffe'"
            )
        if self.variant == "caffe" and not marked and any(key.startswith("layer") for key in keys):
            raise RuntimeError(
                f"state_dict has no key {prefix + MARK!r}, so it has variant='timm'; this model has variant='caffe', "
                "where the same weights compute something else; build it with variant='timm', or, for a legacy "
                "checkpoint whose keys were renamed, use se_fused.load_pretrained(model, path, source='legacy')"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@register
def SEResNet18(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnet18`` (``legacy_seresnet18`` for ``variant="caffe"``). Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[18], num_classes, in_chans, **options)


@register
def SEResNet34(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnet34``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[34], num_classes, in_chans, **options)


@register
def SEResNet50(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnet50``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[50], num_classes, in_chans, **options)


@register
def SEResNet101(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnet101``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[101], num_classes, in_chans, **options)


@register
def SEResNet152(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnet152``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[152], num_classes, in_chans, **options)


@register
def SEResNeXt26_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``legacy_seresnext26_32x4d`` for ``variant="caffe"``; timm has no model of this depth in its own variant.

    Arguments as for :class:`SEResNet`.
    """
    return SEResNet(*STAGES[26], num_classes, in_chans, cardinality=32, base_width=4, **options)


@register
def SEResNeXt50_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnext50_32x4d``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[50], num_classes, in_chans, cardinality=32, base_width=4, **options)


@register
def SEResNeXt101_32x4d(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``seresnext101_32x4d``. Arguments as for :class:`SEResNet`."""
    return SEResNet(*STAGES[101], num_classes, in_chans, cardinality=32, base_width=4, **options)


@register
def SENet154(num_classes: int = 1000, in_chans: int = 3, **options: Unpack[SEOptions]) -> SEResNet:
    """timm's ``senet154``, or Cadene's and MONAI's for ``variant="caffe"``, whose default ``drop_rate`` is 0.2.

    Arguments as for :class:`SEResNet`.
    """
    if options.get("variant") == "caffe":
        options.setdefault("drop_rate", 0.2)
    return SEResNet(
        *STAGES[152], num_classes, in_chans,
        cardinality=64, base_width=4, reduce_first=2, deep_stem=True, down_kernel_size=3, **options,
    )  # fmt: skip


for _build in (
    SEResNet18, SEResNet34, SEResNet50, SEResNet101, SEResNet152,
    SEResNeXt26_32x4d, SEResNeXt50_32x4d, SEResNeXt101_32x4d, SENet154,
):  # fmt: skip
    register(functools.partial(_build, variant="caffe"), f"legacy_{_build.__name__.lower()}")
