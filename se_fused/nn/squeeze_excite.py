"""Squeeze-and-Excitation module with the signature, initial values and state_dict of timm's ``SEModule``."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as F_se
from .._checks import check_bool, check_int, check_positive
from ..activations import ALIASES, name_of_module
from ..reference import ACTIVATIONS, GATES, OUT_ACTIVATIONS
from .known import is_plain, refuse_torchscript

__all__ = [
    "SqueezeExcite",
    "activation_name",
    "close_block",
    "excitation_arguments",
    "fusable_arguments",
    "gate_name",
]

Layer = str | nn.Module | type[nn.Module] | functools.partial[nn.Module]
"""An activation or gate as an argument: a name, a class, an instance, or a partial of a class."""


def _layer_name(argument: str, layer: object, supported: Mapping[str, object]) -> str:
    given = layer
    if isinstance(layer, functools.partial):
        layer = layer()
    name = ALIASES.get(layer.lower(), layer.lower()) if isinstance(layer, str) else name_of_module(layer)
    if name is None or name not in supported:
        raise ValueError(
            f"{argument} must be one of {', '.join(supported)} or the nn.Module class of one of them (defaults only), "
            f"got {given!r}; for any other, keep the SE module of the library that has it"
        )
    return name


def activation_name(layer: Layer, argument: str = "act_layer") -> str:
    """Name in :data:`se_fused.reference.ACTIVATIONS` of an activation given as a name, class, instance or partial.

    Args:
        layer: the activation, with default arguments.
        argument: name of the caller's argument, for the error message.

    Raises:
        ValueError: the activation is not supported.
    """
    return _layer_name(argument, layer, ACTIVATIONS)


def gate_name(layer: Layer, argument: str = "gate_layer") -> str:
    """Name in :data:`se_fused.reference.GATES` of a gate given as a name, class, instance or partial.

    Args:
        layer: the gate, with default arguments.
        argument: name of the caller's argument, for the error message.

    Raises:
        ValueError: the gate is not supported.
    """
    return _layer_name(argument, layer, GATES)


def excitation_arguments(fc1: nn.Module, fc2: nn.Module, act: str, gate: str) -> dict[str, Any]:
    """Keyword arguments of :func:`se_fused.functional.squeeze_excite` from two linear layers or 1x1 convolutions."""
    return {
        "fc1_weight": fc1.weight,
        "fc1_bias": fc1.bias,
        "fc2_weight": fc2.weight,
        "fc2_bias": fc2.bias,
        "act": act,
        "gate": gate,
    }


def close_block(u: Tensor, residual: Tensor | None, out_act: str | None, drop_path_scale: Tensor | None) -> Tensor:
    """``out_act(u · drop_path_scale + residual)`` in plain PyTorch, for cases without a kernel.

    Shapes: u and residual (N, C, *spatial), drop_path_scale (N,). Returns u's shape. u may be a torch.fx proxy, whose
    number of dimensions is unknown, so the code must not use it.
    """
    if drop_path_scale is not None:
        u = (u.movedim(0, -1) * drop_path_scale.to(u.dtype)).movedim(-1, 0)
    if residual is not None:
        u = u + residual
    return OUT_ACTIVATIONS[out_act or "none"](u)


def _reduced(channels: int, rd_ratio: float, rd_divisor: int) -> int:
    """Squeezed width rounded as in timm: ``make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.)``."""
    return max(rd_divisor, int(channels * rd_ratio + rd_divisor / 2) // rd_divisor * rd_divisor)


class SqueezeExcite(nn.Module):
    """``y = gate(fc2(act(fc1(mean(x))))) · x``, and in the same kernel ``out_act(y · drop_path_scale + residual)``.

    The arguments have the order of timm's ``SEModule``. The parameters are fc1.weight (R, C, 1, 1), fc1.bias (R,),
    fc2.weight (C, R, 1, 1) and fc2.bias (C,), with timm's initial values for the same seed. Checkpoints that store the
    two weights as matrices, (R, C) and (C, R), load too.

    Args:
        channels: number of channels C of the input.
        rd_ratio: R / C, before R is rounded to a multiple of ``rd_divisor`` and raised to at least ``rd_divisor``.
        rd_channels: the squeezed width R; 0 or None computes it from ``rd_ratio``.
        rd_divisor: a divisor of the R that is computed from ``rd_ratio``.
        add_maxpool: timm's option to add a maximum pooling to the squeeze; must be False.
        bias: whether fc1 and fc2 have a bias.
        act_layer: activation between fc1 and fc2: a name in ``se_fused.reference.ACTIVATIONS``, or the ``nn.Module``
            class, an instance or a partial of it.
        norm_layer: timm's option of a normalisation between fc1 and the activation; must be None.
        gate_layer: "sigmoid" or "hard_sigmoid", or the ``nn.Module`` class, an instance or a partial of it.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range or requests a variant without a kernel. The message names the argument.
    """

    act: str
    gate: str
    fc1: nn.Conv2d
    fc2: nn.Conv2d
    __prepare_scriptable__ = refuse_torchscript

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: Layer = nn.ReLU,
        norm_layer: type[nn.Module] | None = None,
        gate_layer: Layer = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = check_int(channels, "channels", 1)
        rd_divisor = check_int(rd_divisor, "rd_divisor", 1)
        rd_ratio = check_positive(rd_ratio, "rd_ratio")
        bias = check_bool(bias, "bias")
        if check_bool(add_maxpool, "add_maxpool"):
            raise ValueError(
                f"add_maxpool must be False, got {add_maxpool!r}: the squeeze of the fused kernels is the mean; "
                "keep timm's SEModule for this layer"
            )
        if norm_layer is not None:
            raise ValueError(
                f"norm_layer must be None, got {norm_layer!r}: the fused kernels have nothing between fc1 and act; "
                "keep timm's SEModule for this layer"
            )
        reduced = check_int(rd_channels or 0, "rd_channels", 0) or _reduced(channels, rd_ratio, rd_divisor)
        self.act = activation_name(act_layer)
        self.gate = gate_name(gate_layer)
        # 1x1 convolutions rather than linear layers, for timm's initial values and state_dict
        self.fc1 = nn.Conv2d(channels, reduced, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(reduced, channels, kernel_size=1, bias=bias, device=device, dtype=dtype)

    def is_fusable(self) -> bool:
        """Whether the kernel may read the parameters of fc1 and fc2 instead of calling the modules.

        False if one of them has hooks or was replaced by a module other than nn.Conv2d or nn.Linear.
        """
        return is_plain(self.fc1, nn.Conv2d, nn.Linear) and is_plain(self.fc2, nn.Conv2d, nn.Linear)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`se_fused.functional.squeeze_excite` from this layer."""
        return excitation_arguments(self.fc1, self.fc2, self.act, self.gate)

    def excitation(self, mean: Tensor) -> Tensor:
        """Gate from the means, both (N, C, 1, 1); calls fc1 and fc2 as modules, so that their hooks run."""
        return GATES[self.gate](self.fc2(ACTIVATIONS[self.act](self.fc1(mean))))

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        out_act: str | None = None,
        drop_path_scale: Tensor | None = None,
    ) -> Tensor:
        """Rescale the channels, and optionally apply the rest of a residual block.

        Args:
            x: (N, C, *spatial), one to three spatial dimensions.
            residual: map added to the rescaled one, with x's shape and dtype, or None.
            out_act: activation after the addition: None, "relu", "silu" or "hard_swish".
            drop_path_scale: (N,), factor per sample of the rescaled map before the addition, or None.

        Returns:
            (N, C, *spatial), x's dtype and memory format.
        """
        if isinstance(x, Tensor) and self.is_fusable():  # a torch.fx proxy traces the layers
            return F_se.squeeze_excite(
                x, residual=residual, **self.arguments(), out_act=out_act, drop_path_scale=drop_path_scale
            )
        squeezed = x.flatten(2).mean(2)[:, :, None, None]  # (N, C, 1, 1), the input of fc1 as a convolution
        factor = self.excitation(squeezed).flatten(1)  # (N, C)
        rescaled = (x.movedim((0, 1), (-2, -1)) * factor).movedim((-2, -1), (0, 1))
        return close_block(rescaled, residual, out_act, drop_path_scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, fc in (("fc1", self.fc1), ("fc2", self.fc2)):
            weight = state_dict.get(f"{prefix}{name}.weight")
            if isinstance(weight, Tensor) and weight.dim() == 2 and fc.weight.dim() == 4:
                state_dict[f"{prefix}{name}.weight"] = weight[:, :, None, None]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"act={self.act}, gate={self.gate}"


def fusable_arguments(se: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments of :func:`se_fused.functional.squeeze_excite` from a layer; None if it must be called: it has
    hooks or is not a :class:`SqueezeExcite`, or its layers were replaced."""
    return se.arguments() if is_plain(se, SqueezeExcite) and se.is_fusable() else None
