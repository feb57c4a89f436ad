"""The kernels' arguments in groups. A launch examines each argument on the host, and a group takes less time than its
fields one by one; the compiled code is the same.

A field that is None is absent and known so to the compiler. A kernel tests a field and never a whole group: Triton 3.6
compiles neither ``group is None`` nor a return of a group with an absent field. Numbers that must not be specialised
(tiles.py) are not fields, because ``do_not_specialize`` applies to whole arguments only.

Symbols: N batch, C channels, R squeezed channels. Sums and intermediate results are float32.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = [
    "NO_NORM",
    "NO_RUNNING",
    "BatchGradients",
    "BatchStatistics",
    "Coefficients",
    "DxCoefficients",
    "Epilogue",
    "ExcitationResults",
    "Layers",
    "MomentsBackward",
    "Norm",
    "ParameterGradients",
    "Parts",
    "Running",
    "Saved",
    "Scratch",
    "Sums",
]


class Norm(NamedTuple):
    """Batch norm by given statistics; none without ``mean``. Where a launch computes or saved the statistics, the host
    leaves them out and the kernel fills them in."""

    mean: Tensor | None  # (C,)
    var: Tensor | None  # (C,)
    weight: Tensor | None  # gamma (C,); None for 1
    bias: Tensor | None  # beta (C,); None for 0
    eps: float


class Running(NamedTuple):
    """Running statistics to update; none without ``mean``."""

    mean: Tensor | None  # (C,)
    var: Tensor | None  # (C,)
    momentum: float
    unbias: float  # factor of the biased variance


class Layers(NamedTuple):
    """The excitation's two layers; none without ``fc1_weight``."""

    fc1_weight: Tensor | None  # (R, C)
    fc1_bias: Tensor | None  # (R,)
    fc2_weight: Tensor | None  # (C, R)
    fc2_bias: Tensor | None  # (C,)


class Coefficients(NamedTuple):
    """scale and shift of a map, or, without them, what they are computed from together with batch norm."""

    scale: Tensor | None = None  # (N, C)
    shift: Tensor | None = None  # (N, C)
    factor: Tensor | None = None  # (N, C) the gate's value
    drop: Tensor | None = None  # (N,) stochastic depth


class Parts(NamedTuple):
    """Sums of pass 1 forward, one per split."""

    mean: Tensor  # (splits, N, C)
    m2: Tensor | None  # (splits, N, C) for batch statistics


class ExcitationResults(NamedTuple):
    """Results of pass 1 and excitation."""

    scale: Tensor  # (N, C)
    shift: Tensor  # (N, C)
    mean: Tensor  # (N, C) of x; shares the memory of the parts if there is one split
    stats: Tensor | None  # (2, C) the mean and biased variance that normalised
    factor: Tensor | None  # (N, C) the gate's value
    hidden: Tensor | None  # (N, R) before the activation


class BatchStatistics(NamedTuple):
    """What pass 1's last programs compute in a norm without squeeze-excite; nothing without ``stats``."""

    stats: Tensor | None = None  # (2, C) the mean and biased variance that normalise
    mean: Tensor | None = None  # (N, C) of x; shares the memory of the parts if there is one split
    groups: Tensor | None = None  # (2, groups of samples, C) of each group


class Epilogue(NamedTuple):
    """What the convolution's product does to its sums: multiply by scale, add shift or bias, add the residual."""

    bias: Tensor | None = None  # (C,)
    residual: Tensor | None = None  # of y's shape
    scale: Tensor | None = None  # (N, C)
    shift: Tensor | None = None  # (N, C)


# ---- the backward pass
class MomentsBackward(NamedTuple):
    """Maps and means that pass 1 backward reads."""

    dy: Tensor
    x: Tensor
    residual: Tensor | None
    mask: Tensor | None  # uint8, one bit per element
    mean: Tensor  # (N, C) of x


class Sums(NamedTuple):
    """Sums of pass 1 backward, one per split or merged: p = sum dr and q = sum dr * (x - mean)."""

    p: Tensor  # (splits, N, C) or (N, C)
    q: Tensor  # (splits, N, C) or (N, C)


class Saved(NamedTuple):
    """What the forward pass saved for excitation's backward pass."""

    mean: Tensor  # (N, C) of x
    factor: Tensor | None  # (N, C) the gate's value
    hidden: Tensor | None  # (N, R) before the activation
    stats: Tensor | None  # (2, C) the mean and biased variance that normalised


class Scratch(NamedTuple):
    """Gradients that one phase of excitation's backward pass leaves for the next."""

    dq: Tensor | None  # (N, C) of the second layer's result
    dhidden: Tensor | None  # (N, R) of the first layer's result


class DxCoefficients(NamedTuple):
    """dx = k1 * dr + k2 * (x - mean) + k3."""

    k1: Tensor  # (N, C)
    k2: Tensor | None  # (N, C) for batch statistics
    k3: Tensor  # (N, C)


class BatchGradients(NamedTuple):
    """What pass 1 backward's last programs compute in a norm without squeeze-excite; nothing without ``groups``."""

    groups: Tensor | None = None  # (2, groups of samples, C) of each group
    dbn_weight: Tensor | None = None  # (C,)
    dbn_bias: Tensor | None = None  # (C,)
    k1: Tensor | None = None  # (C,), of dx = k1 d dr + k2 (x - mu) + k3
    k2: Tensor | None = None  # (C,) for batch statistics
    k3: Tensor | None = None  # (C,)


class ParameterGradients(NamedTuple):
    """Gradients of the parameters, in the parameters' dtypes. Empty where there is no parameter."""

    dbn_weight: Tensor  # (C,)
    dbn_bias: Tensor  # (C,)
    dfc1_weight: Tensor  # (R, C)
    dfc1_bias: Tensor  # (R,)
    dfc2_weight: Tensor  # (C, R)
    dfc2_bias: Tensor  # (C,)


NO_RUNNING = Running(None, None, 0.0, 0.0)
NO_NORM = Norm(None, None, None, None, 0.0)
