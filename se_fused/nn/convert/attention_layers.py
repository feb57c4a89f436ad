"""Handlers for layers that rescale channels by a function of their means: squeeze-excite, effective SE and ECA.

A converted layer runs in one of two ways. If the kernels support both activations and the layers inside have no hooks,
it calls :func:`se_fused.functional.squeeze_excite`. Otherwise it calls :func:`se_fused.functional.channel_gate`, which
calls the layers inside as modules on the channel means.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ... import functional as F_se
from ..known import activation, gate, is_plain, untouched
from ..se_layers import SE_LAYERS, SELayer, called, means_only
from ..squeeze_excite import excitation_arguments
from .class_swap import Fused, Handler, register

__all__ = ["arguments_of", "excitation_of"]

_POOLS: dict[type[nn.Module], int] = {nn.AdaptiveAvgPool1d: 3, nn.AdaptiveAvgPool2d: 4, nn.AdaptiveAvgPool3d: 5}


def _on_map(layers: Sequence[nn.Module], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Function from the means (N, C) of a map like x to the gate (N, C), for layers that take (N, C, 1, 1)."""
    return lambda mean: called(layers, mean.to(x.dtype)[:, :, None, None]).flatten(1)


def arguments_of(se: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments with which a block's kernel computes a converted SE layer; None if it cannot compute it."""
    if not (isinstance(se, Fused) and untouched(se)) or se.handler.arguments is None:
        return None
    return se.handler.arguments(se)


def excitation_of(se: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Function from the means (N, C) of a map like x to the gate (N, C) of a converted layer.

    None if the layer must be called as a module.
    """
    if not (isinstance(se, Fused) and untouched(se)) or se.handler.excitation is None:
        return None
    return se.handler.excitation(se, x)


def _rescaled(self: Any, x: Tensor) -> Tensor:
    handler = self.handler
    if isinstance(x, Tensor):  # a torch.fx proxy traces the original forward
        # the original forward handles other numbers of dimensions, or raises its own error for them
        if x.dim() == 4 and handler.arguments is not None and (arguments := handler.arguments(self)) is not None:
            return F_se.squeeze_excite(x, **arguments)
        if handler.excitation is not None and (excitation := handler.excitation(self, x)) is not None:
            return F_se.channel_gate(x, excitation)
    y: Tensor = self.original.forward(self, x)
    return y


def _forward(self: Any, x: Tensor) -> Tensor:
    return _rescaled(self, x)


def _forward_input(self: Any, input: Tensor) -> Tensor:  # torchvision names the argument "input"
    return _rescaled(self, input)


def _describe(module: Any) -> str:
    handler = module.handler if isinstance(module, Fused) else None
    fused = handler is not None and handler.arguments is not None and handler.arguments(module) is not None
    return "squeeze-excite" if fused else "channel gate"


def _se_excitation(layer: SELayer, module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    layers = layer.layers(module) if x.dim() == 4 else None
    return None if layers is None else _on_map(layers, x)


# ---- squeeze-excite
for _name, _layer in SE_LAYERS.items():
    _torchvision = _name.startswith("torchvision.")
    register(
        Handler(
            _forward_input if _torchvision else _forward,
            _layer.refusal,
            _describe,
            ("forward", "_scale") if _torchvision else ("forward",),
            _layer.arguments,
            partial(_se_excitation, _layer),
        ),
        _name,
    )


# ---- timm: effective SE and ECA
def _effective_excitation(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    if module.add_maxpool or x.dim() != 4:
        return None
    return _on_map([module.fc, module.gate], x)


register(
    Handler(_forward, means_only, _describe, excitation=_effective_excitation),
    "timm.layers.squeeze_excite.EffectiveSEModule",
)


def _eca_excitation(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    def excitation(mean: Tensor) -> Tensor:
        s = module.conv(mean.to(x.dtype)[:, None])  # (N, 1, C): a 1-D convolution along the channels
        if module.conv2 is not None:
            s = module.conv2(module.act(s))
        return module.gate(s).flatten(1)

    return excitation if x.dim() == 4 else None


def _circular_eca_excitation(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    def excitation(mean: Tensor) -> Tensor:
        s = F.pad(mean.to(x.dtype)[:, None], (module.padding, module.padding), mode="circular")
        return module.gate(module.conv(s)).flatten(1)

    return excitation if x.dim() == 4 else None


for _name, _eca in (("EcaModule", _eca_excitation), ("CecaModule", _circular_eca_excitation)):
    register(Handler(_forward, lambda _: None, _describe, excitation=_eca), f"timm.layers.eca.{_name}")


# ---- MONAI: ChannelSELayer of 1 to 3 dimensions, and ResidualSELayer, which adds x: x * s + x = x * (1 + s)
def _monai_fc(module: Any, x: Tensor | None) -> nn.Sequential | None:
    """The layers between the pooling and the scaling; None if the pooling layer must be called as a module."""
    pool, fc = module._modules["avg_pool"], module._modules["fc"]
    assert pool is not None and isinstance(fc, nn.Sequential)
    if not is_plain(pool, *_POOLS) or (x is not None and x.dim() != _POOLS[type(pool)]):
        return None
    return fc


def _monai_arguments(module: Any) -> dict[str, Any] | None:
    fc = _monai_fc(module, None)
    if fc is None or module.add_residual or not is_plain(fc, nn.Sequential) or len(fc) != 4:
        return None
    first, act, second, last = fc._modules.values()
    assert first is not None and act is not None and second is not None and last is not None
    act_name, gate_name = activation(act), gate(last)
    if act_name is None or gate_name is None or not (is_plain(first, nn.Linear) and is_plain(second, nn.Linear)):
        return None
    return excitation_arguments(first, second, act_name, gate_name)


def _monai_excitation(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    fc = _monai_fc(module, x)
    if fc is None:
        return None
    if module.add_residual:
        return lambda mean: 1 + fc(mean.to(x.dtype)).to(mean.dtype)
    return lambda mean: fc(mean.to(x.dtype))


def _monai_forward(self: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and (excitation := _monai_excitation(self, x)) is not None:
        arguments = _monai_arguments(self)
        return F_se.channel_gate(x, excitation) if arguments is None else F_se.squeeze_excite(x, **arguments)
    y: Tensor = self.original.forward(self, x)
    return y


def _monai_refusal(module: Any) -> str | None:
    pool, fc = module.avg_pool, module.fc
    if type(pool) not in _POOLS or pool.output_size != 1:
        return f"avg_pool is {pool!r}, not the mean over all positions"
    return None if isinstance(fc, nn.Sequential) else f"fc is {type(fc).__name__}, not a Sequential"


register(
    Handler(_monai_forward, _monai_refusal, _describe, arguments=_monai_arguments, excitation=_monai_excitation),
    "monai.networks.blocks.squeeze_and_excitation.ChannelSELayer",
)
