"""Description of one call of an operator, and its arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from .._formats import LAYOUTS
from .generators import generator_on

__all__ = ["ALL_OPS", "GRADIENTS", "OPS", "VIEWS", "Case", "to_layout", "to_usual", "to_view"]

OPS = ("squeeze_excite", "batch_norm_squeeze_excite", "batch_norm_act")
ALL_OPS = (*OPS, "batch_norm_act_squeeze", "channel_gate")
GRADIENTS = ("all", "x", "residual", "parameters", "not residual", "not x", "none")
"""Which tensors of a call require a gradient; "parameters" are all but x and the residual."""
VIEWS = ("dense", "offset", "sliced", "permuted", "other", "expanded")
"""Strides of a map. "offset": dense at an address that is no multiple of 16 bytes. "sliced": every second column of a
map. "permuted": with the spatial sizes in reverse order. "other": in the other of the two layouts. "expanded": one
number at all places, as in the gradient of a sum."""


def to_layout(x: Tensor, layout: str) -> Tensor:
    """x (N, C, *spatial) in memory order ``layout``."""
    return x.contiguous() if layout == "contiguous" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def to_usual(x: Tensor, layout: str) -> Tensor:
    """A copy of x (N, C, *spatial) with the strides that a new tensor of memory order ``layout`` has."""
    if layout == "contiguous":
        return x.clone(memory_format=torch.contiguous_format)
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def to_view(x: Tensor, layout: str, view: str) -> Tensor:
    """x (N, C, *spatial) with the strides of ``view``, one of ``VIEWS``, in a map of memory order ``layout``."""
    if view == "expanded":
        return x.flatten()[0].expand(x.shape)
    if view == "other":
        return to_layout(x, next(name for name in LAYOUTS if name != layout))
    if view == "permuted":
        order = (0, 1, *reversed(range(2, x.dim())))  # is its own inverse
        return to_layout(x.permute(order), layout).permute(order)
    x = to_layout(x, layout)
    if view == "offset":
        return x.new_empty(x.numel() + 1).as_strided(x.shape, x.stride(), 1).copy_(x)
    if view == "sliced":
        return to_layout(x.repeat_interleave(2, -1), layout)[..., ::2]
    return x


@dataclass(frozen=True)
class Case:
    """Description of one call of an operator: name, shape, dtype, layout, device and options, without tensors."""

    op: str
    shape: tuple[int, ...] = (4, 24, 7, 5)  # an odd number of positions, more channels than one vector step
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    device: str = "cpu"
    training: bool = True
    hidden: int = 6
    act: str = "relu"
    gate: str = "sigmoid"
    out_act: str | None = "relu"
    residual: bool = True
    drop_path: bool = True
    absent: tuple[str, ...] = ()  # parameters that are None
    parameter_dtype: torch.dtype | None = None  # None: float32 for batch norm, x's for the layers
    mean: float = 1.0  # of x, in standard deviations; a large mean causes cancellation
    gradients: str = "all"  # who requires a gradient: one of GRADIENTS
    x_view: str = "dense"  # the strides of x, the residual, and the gradient of the result: one of VIEWS each
    residual_view: str = "dense"
    dy_view: str = "dense"
    inplace: bool = False  # whether y may be written over x

    @property
    def has_batch_norm(self) -> bool:
        return self.op.startswith("batch_norm")

    @property
    def has_excitation(self) -> bool:
        return self.op.endswith("squeeze_excite") or self.op == "channel_gate"

    def wants_gradient(self, name: str) -> bool:
        """Whether the argument of this name requires a gradient."""
        if name.startswith("running") or self.gradients == "none":
            return False
        kind = name if name in ("x", "residual") else "parameters"
        return self.gradients in ("all", kind) or self.gradients not in ("x", "residual", "parameters", f"not {kind}")

    @property
    def overwrites_x(self) -> bool:
        """Whether the call may write y over x: in inference, if it is permitted to."""
        return self.inplace and self.gradients == "none" and not (self.training and self.has_batch_norm)

    def draw(self, seed: int) -> dict[str, Any]:
        """The call's arguments by name, with numbers drawn from ``seed``. Differentiable tensors require a gradient."""
        generator = generator_on(self.device, seed)
        n, c = self.shape[:2]

        def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
            numbers = torch.randn(*shape, generator=generator, device=generator.device)
            return (numbers * scale).to(self.device, dtype)

        layer_dtype = self.parameter_dtype or self.dtype
        norm_dtype = self.parameter_dtype or torch.float32
        x = (normal(*self.shape) + self.mean).to(self.dtype)
        given: dict[str, Any] = {"x": to_view(x, self.layout, self.x_view)}
        if self.has_batch_norm:
            given["running_mean"] = normal(c, dtype=norm_dtype)
            given["running_var"] = (normal(c).abs() + 0.5).to(norm_dtype)
            given["bn_weight"] = (normal(c, scale=0.3) + 1).to(norm_dtype)
            given["bn_bias"] = normal(c, scale=0.3, dtype=norm_dtype)
        if self.has_excitation:
            given["fc1_weight"] = normal(self.hidden, c, scale=c**-0.5, dtype=layer_dtype)
            given["fc1_bias"] = normal(self.hidden, scale=0.3, dtype=layer_dtype)
            given["fc2_weight"] = normal(c, self.hidden, scale=self.hidden**-0.5, dtype=layer_dtype)
            given["fc2_bias"] = normal(c, scale=0.3, dtype=layer_dtype)
        if self.op != "batch_norm_act_squeeze":
            given["residual"] = None
            if self.residual:
                residual = normal(*self.shape, dtype=self.dtype)
                given["residual"] = to_view(residual, self.layout, self.residual_view)
        for name, value in given.items():
            if name in self.absent:
                given[name] = None
            elif value is not None:
                value.requires_grad_(self.wants_gradient(name))
        if self.op != "batch_norm_act_squeeze":
            keep = torch.rand(n, generator=generator, device=generator.device) > 0.3
            given["drop_path_scale"] = (keep / 0.7).to(self.device) if self.drop_path else None
        given["out_act"] = self.out_act
        if self.has_batch_norm:
            given.update(training=self.training, eps=1e-5, momentum=0.3)
        if self.has_excitation:
            given.update(act=self.act, gate=self.gate)
        if self.inplace:
            given["inplace"] = True
        return given

    def call(self, module: ModuleType, given: dict[str, Any]) -> Any:
        """Run the op of ``module`` (functional or reference)."""
        function: Callable[..., Any] = getattr(module, self.op)
        if self.op == "channel_gate":
            fc = {name: given[name] for name in (*_LAYERS, "act", "gate")}
            others = {name: value for name, value in given.items() if name not in fc}
            return function(**others, gate=lambda mean: _factor(mean, **fc))
        return function(**given)


_LAYERS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def _factor(
    mean: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None, act: str,
    gate: str,
) -> Tensor:  # fmt: skip
    """The excitation of squeeze_excite as the callable of ``channel_gate``, in the dtype of the weights."""
    hidden = reference.ACTIVATIONS[act](F.linear(mean.to(fc1_weight.dtype), fc1_weight, fc1_bias))
    return reference.GATES[gate](F.linear(hidden, fc2_weight, fc2_bias))
