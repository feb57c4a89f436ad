"""Parts of residual networks: blocks with a fused end, the projection of the shortcut, the stem and global pooling."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_choice
from ..nn import DropPath, SqueezeExcite, conv_bn_act, fused_block_end, is_own
from ..nn.block_plan import BlockModules, ConvNormAct
from ..nn.known import refuse_torchscript
from ..nn.whole_block import whole_block

__all__ = ["POOLINGS", "BasicBlock", "Bottleneck", "DeepStem", "Downsample", "GlobalPool"]

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "")

_RELU = nn.ReLU()  # the activation of all blocks, which have no module for it

SELayer = Callable[[int], SqueezeExcite]
"""Function that builds the SE layer of a block from the block's number of channels."""


class Placement(TypedDict):
    """Device and dtype of a layer's parameters."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class Width(NamedTuple):
    """Width parameters of a bottleneck's branch; see :class:`Bottleneck`."""

    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1


class Downsample(nn.Sequential):
    """Projection of the shortcut, (N, C, H, W) -> (N, D, H/s, W/s): convolution (key "0") and batch norm (key "1")."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel_size = 1 if stride == 1 else kernel_size
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False, device=device, dtype=dtype
        )
        super().__init__(conv, nn.BatchNorm2d(out_channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn_act(self[0], self[1], x, None)


class DeepStem(nn.Sequential):
    """Stem of three 3x3 convolutions instead of one 7x7. (N, C, H, W) -> (N, 2w, H/2, W/2) for the width w.

    The batch norm of the last convolution is not included.
    """

    def __init__(
        self, in_chans: int, width: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        def conv(c: int, k: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(c, k, 3, stride, 1, bias=False, device=device, dtype=dtype)

        def norm() -> nn.BatchNorm2d:
            return nn.BatchNorm2d(width, device=device, dtype=dtype)

        # forward applies the ReLUs together with the batch norms; the modules only keep timm's numbering of the keys
        super().__init__(
            conv(in_chans, width, 2), norm(), nn.ReLU(),
            conv(width, width, 1), norm(), nn.ReLU(),
            conv(width, 2 * width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = conv_bn_act(self[0], self[1], x)
        x = conv_bn_act(self[3], self[4], x)
        y: Tensor = self[6](x)
        return y


class _Block(nn.Module):
    """Base of the residual blocks: a branch of convolutions, then SE, stochastic depth, addition and ReLU.

    Subclasses build the branch in :meth:`_make_branch` and define ``last_norm`` and ``forward``.
    """

    expansion: int
    se: SqueezeExcite | None
    downsample: nn.Module | None
    drop_path: DropPath | None
    __prepare_scriptable__ = refuse_torchscript

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        *,
        se_layer: SELayer | None = None,
        drop_path: float = 0.0,
        caffe: bool = False,
        cardinality: int = 1,
        base_width: int = 64,
        reduce_first: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.caffe = caffe
        width = Width(cardinality, base_width, reduce_first)
        self._make_branch(in_channels, planes, stride, width, Placement(device=device, dtype=dtype))
        self.se = None if se_layer is None else se_layer(planes * self.expansion)
        self.downsample = downsample
        self.drop_path = DropPath(drop_path) if drop_path else None

    def _make_branch(self, in_channels: int, planes: int, stride: int, width: Width, placed: Placement) -> None:
        """Register convolutions and batch norms in the order in which forward calls them."""
        raise NotImplementedError

    def modules_of_block(self) -> BlockModules | None:
        """The block's modules, for one call; None if no call has its order of operations."""
        raise NotImplementedError

    def _as_one(self, branch: tuple[ConvNormAct, ...]) -> BlockModules:
        return BlockModules(branch, self.downsample, self.se, self.drop_path)

    def last_norm(self) -> nn.BatchNorm2d:
        """The last batch norm, before SE and the addition; ``zero_init_last`` sets its weight to zero."""
        raise NotImplementedError


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with a stride; used in SEResNet18 and 34. (N, C, H, W) -> (N, P, H/s, W/s).

    Args:
        in_channels: C, channels of the input.
        planes: P, channels of the output.
        stride: s, stride of the first convolution.
        downsample: module that projects the shortcut to (N, P, H/s, W/s); None uses the input itself.
        se_layer: function that builds the SE layer from its number of channels; None for a block without SE.
        drop_path: probability that stochastic depth drops the branch of a sample.
        caffe: also apply ReLU between the second batch norm and SE, as timm's ``legacy_seresnet18`` and ``34`` do.
        cardinality, base_width, reduce_first: arguments of :class:`Bottleneck`; must be 1, 64 and 1 here.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: ``cardinality``, ``base_width`` or ``reduce_first`` has another value.
    """

    expansion = 1

    def _make_branch(self, in_channels: int, planes: int, stride: int, width: Width, placed: Placement) -> None:
        for name, value, wanted in zip(Width._fields, width, Width(), strict=True):
            if value != wanted:
                raise ValueError(f"{name} must be {wanted} with BasicBlock, got {value!r}; Bottleneck takes others")
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False, **placed)
        self.bn1 = nn.BatchNorm2d(planes, **placed)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False, **placed)
        self.bn2 = nn.BatchNorm2d(planes, **placed)

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def modules_of_block(self) -> BlockModules | None:
        if self.caffe and self.se is not None:  # a ReLU stands between the batch norm and SE
            return None
        return self._as_one((ConvNormAct(self.conv1, self.bn1, _RELU), ConvNormAct(self.conv2, self.bn2, _RELU)))

    def forward(self, x: Tensor) -> Tensor:
        if (y := whole_block(self, x, type(self).modules_of_block)) is not None:
            return y
        shortcut = x if self.downsample is None else self.downsample(x)
        u = conv_bn_act(self.conv1, self.bn1, x)
        if self.caffe and self.se is not None:
            u = conv_bn_act(self.conv2, self.bn2, u)
            return fused_block_end(None, self.se, u, shortcut, "relu", self.drop_path)
        return fused_block_end(self.bn2, self.se, self.conv2(u), shortcut, "relu", self.drop_path, is_own(self.conv2))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolution; used from SEResNet50 up. (N, C, H, W) -> (N, 4P, H/s, W/s).

    Args:
        in_channels: C, channels of the input.
        planes: P, a quarter of the output's channels.
        stride: s, stride of the 3x3 convolution.
        downsample: module that projects the shortcut to (N, 4P, H/s, W/s); None uses the input itself.
        se_layer, drop_path, device, dtype: as for :class:`BasicBlock`.
        caffe: put the stride into the first convolution instead of the 3x3 one. No effect with ``cardinality`` above 1:
            the legacy SE-ResNeXt and SENet154 have the stride in the 3x3 convolution like all others.
        cardinality: groups of the 3x3 convolution.
        base_width: channels of each group at P = 64.
        reduce_first: divisor of the first convolution's width.
    """

    expansion = 4

    def _make_branch(self, in_channels: int, planes: int, stride: int, width: Width, placed: Placement) -> None:
        groups = width.cardinality
        middle, out = planes * width.base_width // 64 * groups, planes * self.expansion
        first = middle // width.reduce_first
        stride1, stride2 = (stride, 1) if self.caffe and groups == 1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, first, 1, stride1, bias=False, **placed)
        self.bn1 = nn.BatchNorm2d(first, **placed)
        self.conv2 = nn.Conv2d(first, middle, 3, stride2, 1, groups=groups, bias=False, **placed)
        self.bn2 = nn.BatchNorm2d(middle, **placed)
        self.conv3 = nn.Conv2d(middle, out, 1, bias=False, **placed)
        self.bn3 = nn.BatchNorm2d(out, **placed)

    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def modules_of_block(self) -> BlockModules | None:
        convs, norms = (self.conv1, self.conv2, self.conv3), (self.bn1, self.bn2, self.bn3)
        return self._as_one(tuple(ConvNormAct(conv, bn, _RELU) for conv, bn in zip(convs, norms, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        if (y := whole_block(self, x, type(self).modules_of_block)) is not None:
            return y
        shortcut = x if self.downsample is None else self.downsample(x)
        u = conv_bn_act(self.conv1, self.bn1, x)
        u = conv_bn_act(self.conv2, self.bn2, u)
        return fused_block_end(self.bn3, self.se, self.conv3(u), shortcut, "relu", self.drop_path, is_own(self.conv3))


class GlobalPool(nn.Module):
    """Global pooling, (N, C, H, W) -> (N, C).

    Args:
        pool_type: "avg", "max", "avgmax" (the mean of both), "catavgmax" (both, with a result (N, 2C)), or "" (the
            input is returned unchanged).

    Raises:
        ValueError: ``pool_type`` has another value.
    """

    def __init__(self, pool_type: str = "avg") -> None:
        super().__init__()
        self.pool_type = check_choice(pool_type, "global_pool", POOLINGS)

    def feat_mult(self) -> int:
        """Number of pooled features per channel."""
        return 2 if self.pool_type == "catavgmax" else 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.pool_type:
            return x
        if self.pool_type == "avg":
            return F.adaptive_avg_pool2d(x, 1).flatten(1)
        largest = F.adaptive_max_pool2d(x, 1).flatten(1)
        if self.pool_type == "max":
            return largest
        mean = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return 0.5 * (mean + largest) if self.pool_type == "avgmax" else torch.cat((mean, largest), 1)

    def extra_repr(self) -> str:
        return f"pool_type={self.pool_type!r}"
