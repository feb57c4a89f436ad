"""Squeeze-and-Excitation as a module, in place of timm's ``SEModule``: its signature, initial values and state_dict."""

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

__all__ = ["SqueezeExcite", "activation_name", "close_block", "excitation_arguments", "gate_name"]

Layer = str | nn.Module | type[nn.Module] | functools.partial[nn.Module]
"""How a layer may be named: by its name, as a class, as an instance, or as a partial of a class."""


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
    """The name in :data:`se_fused.reference.ACTIVATIONS` of an activation given by name, class or instance.

    Raises:
        ValueError: the library has no such activation; the message names ``argument``.
    """
    return _layer_name(argument, layer, ACTIVATIONS)


def gate_name(layer: Layer, argument: str = "gate_layer") -> str:
    """The name in :data:`se_fused.reference.GATES` of a gate given by name, class or instance.

    Raises:
        ValueError: the library has no such gate; the message names ``argument``.
    """
    return _layer_name(argument, layer, GATES)


def excitation_arguments(fc1: nn.Module, fc2: nn.Module, act: str, gate: str) -> dict[str, Any]:
    """What :func:`se_fused.functional.squeeze_excite` takes of two linear layers or 1x1 convolutions, by name."""
    return {
        "fc1_weight": fc1.weight,
        "fc1_bias": fc1.bias,
        "fc2_weight": fc2.weight,
        "fc2_bias": fc2.bias,
        "act": act,
        "gate": gate,
    }


def close_block(u: Tensor, residual: Tensor | None, out_act: str | None, drop_path_scale: Tensor | None) -> Tensor:
    """``out_act(u · drop_path_scale + residual)`` in plain PyTorch, for the paths that no kernel takes.

    Shapes: u and residual (N, C, *spatial), drop_path_scale (N,). Returns u's shape. u may be a proxy of torch.fx: it
    has no number of dimensions to compute with.
    """
    if drop_path_scale is not None:
        u = (u.movedim(0, -1) * drop_path_scale.to(u.dtype)).movedim(-1, 0)
    if residual is not None:
        u = u + residual
    return OUT_ACTIVATIONS[out_act or "none"](u)


def _reduced(channels: int, rd_ratio: float, rd_divisor: int) -> int:
    """The squeezed width as timm rounds it: ``make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.)``."""
    return max(rd_divisor, int(channels * rd_ratio + rd_divisor / 2) // rd_divisor * rd_divisor)


class SqueezeExcite(nn.Module):
    """``y = gate(fc2(act(fc1(mean(x))))) · x``, and in the same kernel ``out_act(y · drop_path_scale + residual)``.

    The arguments stand in the order of timm's ``SEModule``; the parameters are fc1.weight (R, C, 1, 1), fc1.bias (R,),
    fc2.weight (C, R, 1, 1), fc2.bias (C,), with the same initial values for the same seed. Checkpoints that hold the
    two weights as matrices, (R, C) and (C, R), load too.

    Args:
        channels: C.
        rd_ratio: R / C, before R is rounded to a multiple of ``rd_divisor`` (and to at least that).
        rd_channels: R itself; 0 or None: from ``rd_ratio``.
        rd_divisor: what R is a multiple of.
        add_maxpool: timm's experiment with a second pooling; only False.
        bias: whether fc1 and fc2 have one.
        act_layer: between fc1 and fc2: a name in ``se_fused.reference.ACTIVATIONS``, or the class or an instance of it.
        norm_layer: timm's normalisation between fc1 and fc2; only None.
        gate_layer: "sigmoid" or "hard_sigmoid", or the class.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, or a variant without a kernel; the message names it.
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
        # 1x1 convolutions, though they are matrices: timm's initial values and state_dict are theirs.
        self.fc1 = nn.Conv2d(channels, reduced, kernel_size=1, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(reduced, channels, kernel_size=1, bias=bias, device=device, dtype=dtype)

    def is_fusable(self) -> bool:
        """Whether fc1 and fc2 are read by the kernel; if they carry hooks or were replaced, they are called instead."""
        return is_plain(self.fc1, nn.Conv2d, nn.Linear) and is_plain(self.fc2, nn.Conv2d, nn.Linear)

    def arguments(self) -> dict[str, Any]:
        """What :func:`se_fused.functional.squeeze_excite` takes from the layer, by name."""
        return excitation_arguments(self.fc1, self.fc2, self.act, self.gate)

    def excitation(self, mean: Tensor) -> Tensor:
        """The gate from the means, both (N, C, 1, 1), by fc1 and fc2 as modules, so that their hooks see it."""
        return GATES[self.gate](self.fc2(ACTIVATIONS[self.act](self.fc1(mean))))

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        out_act: str | None = None,
        drop_path_scale: Tensor | None = None,
    ) -> Tensor:
        """The rescaled map, and what closes a residual block behind it.

        Args:
            x: (N, C, *spatial), one to three spatial dimensions.
            residual: added to the rescaled map; x's shape and dtype.
            out_act: None, "relu", "silu" or "hard_swish", after the addition.
            drop_path_scale: (N,), a factor per sample, before the addition.

        Returns:
            (N, C, *spatial), x's dtype and memory format.
        """
        if isinstance(x, Tensor) and self.is_fusable():  # a proxy of torch.fx traces the layers
            return F_se.squeeze_excite(
                x, residual=residual, **self.arguments(), out_act=out_act, drop_path_scale=drop_path_scale
            )
        squeezed = x.flatten(2).mean(2)[:, :, None, None]  # (N, C, 1, 1), what fc1 takes as a convolution
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
