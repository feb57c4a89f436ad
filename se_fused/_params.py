"""The arguments of a block's call as records, from the public functions to the kernels.

A public function puts its arguments into these records and checks them (functional/_arguments.py). Everything below it
takes the records and checks nothing again. csrc/params.h has the same records for C++.

The arguments are dataclasses, which are made and read in half of a NamedTuple's instructions (frozen ones are not);
nothing changes a record after it is made. The results, which operators return as tuples, are NamedTuples.

Symbols: N batch, C channels, R squeezed channels. A tensor that is None is absent.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = [
    "NO_BATCH_NORM",
    "NO_EXCITATION",
    "RESIDUALS",
    "BatchNormParams",
    "BlockOptions",
    "BlockSettings",
    "Conv1x1Params",
    "ConvParams",
    "ExcitationParams",
    "Gradients",
    "LayerSettings",
    "ResidualBlockParams",
    "Results",
    "SavedTensors",
]


@dataclass(slots=True, eq=False)
class BatchNormParams:
    """Batch norm. There is none if ``present`` is False."""

    running_mean: Tensor | None  # (C,)
    running_var: Tensor | None  # (C,)
    weight: Tensor | None  # gamma (C,); None for 1
    bias: Tensor | None  # beta (C,); None for 0
    batch_stats: bool
    """Whether to normalise by the batch and update the running statistics, or to normalise by the running ones."""
    momentum: float = 0.0
    eps: float = 0.0

    @property
    def present(self) -> bool:
        return self.batch_stats or self.running_mean is not None

    @property
    def updates(self) -> bool:
        """Whether there are running statistics to update."""
        return self.batch_stats and self.running_mean is not None

    def with_statistics(self, stats: Tensor) -> "BatchNormParams":
        """The same with the saved statistics (2, C) to normalise by."""
        return BatchNormParams(stats[0], stats[1], self.weight, self.bias, False, self.momentum, self.eps)

    def without_running(self) -> "BatchNormParams":
        """The same without running statistics, which are then not updated."""
        return BatchNormParams(None, None, self.weight, self.bias, self.batch_stats, self.momentum, self.eps)


@dataclass(slots=True, eq=False)
class ExcitationParams:
    """The excitation FC-activation-FC-gate. There is none without ``fc1_weight``."""

    fc1_weight: Tensor | None  # (R, C)
    fc1_bias: Tensor | None  # (R,)
    fc2_weight: Tensor | None  # (C, R)
    fc2_bias: Tensor | None  # (C,)
    act: str = "relu"
    gate: str = "sigmoid"

    @property
    def squeezed(self) -> int:
        """R; 0 without excitation."""
        return 0 if self.fc1_weight is None else self.fc1_weight.shape[0]


@dataclass(slots=True, eq=False)
class BlockOptions:
    """What follows at the end of a block: out_act(drop_path_scale * u + residual)."""

    residual: Tensor | None = None  # of x's shape, dtype and memory order
    drop_path_scale: Tensor | None = None  # (N,)
    out_act: str = "none"


@dataclass(slots=True, eq=False)
class Conv1x1Params:
    """A 1x1 convolution before the block, in inference."""

    weight: Tensor  # (C, K) or (C, K, 1, ...)
    bias: Tensor | None  # (C,)
    packed: Tensor | None = None  # the weight in panels: se_fused.functional.pack_conv1x1


@dataclass(slots=True, eq=False)
class ConvParams:
    """A convolution, as :func:`torch.convolution` takes it; one number per spatial dimension."""

    weight: Tensor  # (D, C / groups, *kernel)
    bias: Tensor | None  # (D,)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def is_product(self) -> bool:
        """Whether each position of the result depends on the same position of the input alone: a product of the
        weight (D, C) with the vectors of channels."""
        ones = all(k == s == 1 for k, s in zip(self.weight.shape[2:], self.stride, strict=True))
        return ones and self.groups == 1 and not any(self.padding)


@dataclass(slots=True, frozen=True)
class LayerSettings:
    """Settings of a convolution and of the batch norm and activation after it, out_act(bn(conv(x)))."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    out_act: str
    batch_stats: bool
    momentum: float
    eps: float


@dataclass(slots=True, eq=False)
class BlockSettings:
    """Settings of a residual block, which stay the same from call to call."""

    layers: tuple[LayerSettings, ...]
    residual: str
    """What is added at the end, of RESIDUALS: nothing, x, the result of the last layer for x, or a given tensor."""
    act: str = "relu"
    gate: str = "sigmoid"
    plans: dict[Any, int] = field(default_factory=dict)
    """Numbers of these settings in C++ libraries, by library."""

    @property
    def has_shortcut(self) -> bool:
        """Whether the last layer is the shortcut's."""
        return self.residual == "shortcut"

    @property
    def last(self) -> int:
        """Number of the branch's last layer, which ends the block."""
        return len(self.layers) - self.has_shortcut - 1


@dataclass(slots=True, eq=False)
class ResidualBlockParams:
    """A whole residual block: out_act(drop_path_scale * SE(branch(x)) + residual), or a part of one.

    Layers are numbered along the branch; the shortcut's, if there is one, is the last. The activation of the branch's
    last layer is the block's, after the addition.
    """

    settings: BlockSettings
    tensors: list[Any]
    """Six of each layer: the convolution's weight and bias, running mean, running variance, weight and bias of batch
    norm; then the excitation's four, all None without SE."""
    residual: Tensor | None = None  # the tensor to add, if the settings say that it is given
    drop_path_scale: Tensor | None = None  # (N,)

    def conv(self, i: int) -> ConvParams:
        """The convolution of layer i."""
        layer = self.settings.layers[i]
        weight, bias = self.tensors[6 * i : 6 * i + 2]
        return ConvParams(weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def bn(self, i: int) -> BatchNormParams:
        """The batch norm of layer i."""
        layer = self.settings.layers[i]
        mean, var, weight, bias = self.tensors[6 * i + 2 : 6 * i + 6]
        return BatchNormParams(mean, var, weight, bias, layer.batch_stats, layer.momentum, layer.eps)

    @property
    def fc(self) -> ExcitationParams:
        """The excitation."""
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = self.tensors[-4:]
        return ExcitationParams(fc1_weight, fc1_bias, fc2_weight, fc2_bias, self.settings.act, self.settings.gate)

    def running(self) -> list[Tensor]:
        """The running statistics that a call updates."""
        places = [6 * i + 2 for i, layer in enumerate(self.settings.layers) if layer.batch_stats]
        return [t for i in places for t in self.tensors[i : i + 2]]

    def without_running(self) -> "ResidualBlockParams":
        """The same without the running statistics that a call updates, and in the backward pass without any."""
        tensors = list(self.tensors)
        for i in range(2, len(tensors) - 4, 6):
            tensors[i] = tensors[i + 1] = None
        return ResidualBlockParams(self.settings, tensors, self.residual, self.drop_path_scale)


class Results(NamedTuple):
    """Results of the forward pass. An empty tensor stands for an absent one."""

    y: Tensor
    mask: Tensor  # uint8, one bit per element
    mean: Tensor  # (N, C) of x
    factor: Tensor  # (N, C) the gate's value
    hidden: Tensor  # (N, R) before the activation
    stats: Tensor  # (2, C) the mean and biased variance that normalised


class SavedTensors(NamedTuple):
    """What the backward pass receives from the forward pass: x and its results other than y."""

    x: Tensor
    mask: Tensor
    mean: Tensor
    factor: Tensor
    hidden: Tensor
    stats: Tensor


class Gradients(NamedTuple):
    """Results of the backward pass. An empty tensor stands for an absent one."""

    dx: Tensor
    dr: Tensor  # dy * out_act', the residual's gradient; empty if it equals dy, or is neither wanted nor needed for dx
    dbn_weight: Tensor
    dbn_bias: Tensor
    dfc1_weight: Tensor
    dfc1_bias: Tensor
    dfc2_weight: Tensor
    dfc2_bias: Tensor


RESIDUALS = ("none", "x", "shortcut", "given")
"""What a block adds at its end; the position is the number in C++."""
NO_BATCH_NORM = BatchNormParams(None, None, None, None, False)
NO_EXCITATION = ExcitationParams(None, None, None, None)
