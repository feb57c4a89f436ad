"""Layers that rescale channels by a function of their means: squeeze-excite of every library, effective SE, ECA.

Two ways: :func:`se_fused.functional.squeeze_excite` where the kernels know both activations and nothing watches the
layers inside; else :func:`se_fused.functional.channel_gate`, with those layers called on the means, as they were.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ... import functional as F_se
from .._checks import is_plain
from .class_swap import Fused, Handler, register
from .modules import activation, gate, is_nothing, untouched

__all__ = ["arguments_of", "factor_of"]

_POOLS: dict[type[nn.Module], int] = {nn.AdaptiveAvgPool1d: 3, nn.AdaptiveAvgPool2d: 4, nn.AdaptiveAvgPool3d: 5}


def _means_only(module: Any) -> str | None:
    return "add_maxpool is set: its squeeze is not the mean alone" if getattr(module, "add_maxpool", False) else None


def _linear(module: Any) -> bool:
    """Whether it is a matrix on (N, C), with or without ones behind."""
    if type(module) is nn.Linear:
        return True
    if type(module) is not nn.Conv2d:
        return False
    return (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1)


@dataclass(frozen=True)
class SELayer:
    """Names of what an SE class has inside, in the order of the calls: fc1, act, fc2, gate, and others.

    ``between`` stands between fc1 and act and is mostly an identity; ``pool`` is the pooling module where there is one.
    """

    fc1: str
    act: str
    fc2: str
    gate: str
    between: str | None = None
    pool: str | None = None

    def refusal(self, module: Any) -> str | None:
        if reason := _means_only(module):
            return reason
        for name in (self.fc1, self.fc2):
            if not _linear(getattr(module, name)):
                return f"{name} is no 1x1 convolution"
        if self.pool is not None and getattr(module, self.pool).output_size not in (1, (1, 1)):
            return f"{self.pool} does not pool to one value"
        return None

    def arguments(self, module: Any) -> dict[str, Any] | None:
        parts = module._modules
        fc1, act, fc2, factor = (parts[name] for name in (self.fc1, self.act, self.fc2, self.gate))
        if fc1 is None or act is None or fc2 is None or factor is None or getattr(module, "add_maxpool", False):
            return None
        if not (is_plain(fc1, nn.Conv2d, nn.Linear) and is_plain(fc2, nn.Conv2d, nn.Linear)):
            return None
        if (self.between is not None and not is_nothing(parts[self.between])) or not self._pools(module):
            return None
        act_name, gate_name = activation(act), gate(factor)
        if act_name is None or gate_name is None:
            return None
        return dict(fc1_weight=fc1.weight, fc1_bias=fc1.bias, fc2_weight=fc2.weight, fc2_bias=fc2.bias,
                    act=act_name, gate=gate_name)  # fmt: skip

    def _pools(self, module: Any) -> bool:
        pool = None if self.pool is None else module._modules[self.pool]
        return pool is None or is_plain(pool, nn.AdaptiveAvgPool2d)

    def factor(self, module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        if getattr(module, "add_maxpool", False) or x.dim() != 4 or not self._pools(module):
            return None
        names = (self.fc1, self.between, self.act, self.fc2, self.gate)
        return _called([getattr(module, name) for name in names if name is not None], x)


def _called(layers: Sequence[nn.Module], x: Tensor) -> Callable[[Tensor], Tensor]:
    def factor(mean: Tensor) -> Tensor:
        s = mean.to(x.dtype)[:, :, None, None]
        for layer in layers:
            s = layer(s)
        return s.flatten(1)

    return factor


def arguments_of(se: nn.Module) -> dict[str, Any] | None:
    """What a block needs to take a converted SE layer into its kernel, by name; None where it cannot."""
    if not (isinstance(se, Fused) and untouched(se)) or se.handler.arguments is None:
        return None
    return se.handler.arguments(se)


def factor_of(se: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The gate of a converted layer as a function of the means of a map like x; None where the layer must be called."""
    if not (isinstance(se, Fused) and untouched(se)) or se.handler.factor is None:
        return None
    return se.handler.factor(se, x)


def _rescaled(self: Any, x: Tensor) -> Tensor:
    handler = self.handler
    if isinstance(x, Tensor):  # a proxy of torch.fx traces what was there
        # the layers themselves take other shapes, or refuse them, in their own way
        if x.dim() == 4 and handler.arguments is not None and (arguments := handler.arguments(self)) is not None:
            return F_se.squeeze_excite(x, **arguments)
        if handler.factor is not None and (factor := handler.factor(self, x)) is not None:
            return F_se.channel_gate(x, factor)
    y: Tensor = self.original.forward(self, x)
    return y


def _forward(self: Any, x: Tensor) -> Tensor:
    return _rescaled(self, x)


def _forward_input(self: Any, input: Tensor) -> Tensor:  # torchvision's name for it
    return _rescaled(self, input)


def _describe(module: Any) -> str:
    handler = module.handler if isinstance(module, Fused) else None
    fused = handler is not None and handler.arguments is not None and handler.arguments(module) is not None
    return "squeeze-excite" if fused else "channel gate"


def _register_se(
    layer: SELayer, *names: str, forward: Callable[..., Tensor] = _forward, methods: Sequence[str] = ()
) -> None:
    register(
        Handler(forward, layer.refusal, _describe, ("forward", *methods), layer.arguments, layer.factor),
        *names,
    )


_register_se(SELayer("fc1", "act", "fc2", "gate", between="bn"), "timm.layers.squeeze_excite.SEModule")
_register_se(SELayer("fc1", "relu", "fc2", "sigmoid"), "timm.models.senet.SEModule")
_register_se(SELayer("conv_reduce", "act1", "conv_expand", "gate"), "timm.models._efficientnet_blocks.SqueezeExcite")
_register_se(
    SELayer("fc1", "activation", "fc2", "scale_activation", pool="avgpool"),
    "torchvision.ops.misc.SqueezeExcitation",
    forward=_forward_input,
    methods=["_scale"],
)


# ---- timm's other gates
def _effective_factor(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    if module.add_maxpool or x.dim() != 4:
        return None
    return _called([module.fc, module.gate], x)


register(
    Handler(_forward, _means_only, _describe, factor=_effective_factor),
    "timm.layers.squeeze_excite.EffectiveSEModule",
)


def _eca_factor(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    def factor(mean: Tensor) -> Tensor:
        s = module.conv(mean.to(x.dtype)[:, None])  # (N, 1, C): the channels are the signal
        if module.conv2 is not None:
            s = module.conv2(module.act(s))
        return module.gate(s).flatten(1)

    return factor if x.dim() == 4 else None


def _circular_eca_factor(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    def factor(mean: Tensor) -> Tensor:
        s = F.pad(mean.to(x.dtype)[:, None], (module.padding, module.padding), mode="circular")
        return module.gate(module.conv(s)).flatten(1)

    return factor if x.dim() == 4 else None


register(Handler(_forward, lambda _: None, _describe, factor=_eca_factor), "timm.layers.eca.EcaModule")
register(Handler(_forward, lambda _: None, _describe, factor=_circular_eca_factor), "timm.layers.eca.CecaModule")


# ---- MONAI's ChannelSELayer, of 1 to 3 dimensions, and ResidualSELayer, which adds x: x * s + x = x * (1 + s)
def _monai_fc(module: Any, x: Tensor | None) -> nn.Sequential | None:
    """The layers between pooling and scaling; None where pooling has to be called."""
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
    names = activation(act), gate(last)
    if None in names or not (is_plain(first, nn.Linear) and is_plain(second, nn.Linear)):
        return None
    return dict(fc1_weight=first.weight, fc1_bias=first.bias, fc2_weight=second.weight, fc2_bias=second.bias,
                act=names[0], gate=names[1])  # fmt: skip


def _monai_factor(module: Any, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    fc = _monai_fc(module, x)
    if fc is None:
        return None
    if module.add_residual:
        return lambda mean: 1 + fc(mean.to(x.dtype)).to(mean.dtype)
    return lambda mean: fc(mean.to(x.dtype))


def _monai_forward(self: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and (factor := _monai_factor(self, x)) is not None:
        arguments = _monai_arguments(self)
        return F_se.channel_gate(x, factor) if arguments is None else F_se.squeeze_excite(x, **arguments)
    y: Tensor = self.original.forward(self, x)
    return y


def _monai_refusal(module: Any) -> str | None:
    pool, fc = module.avg_pool, module.fc
    if type(pool) not in _POOLS or pool.output_size != 1:
        return f"avg_pool is {pool!r}, not the mean over all positions"
    return None if isinstance(fc, nn.Sequential) else f"fc is {type(fc).__name__}, not a Sequential"


register(
    Handler(_monai_forward, _monai_refusal, _describe, arguments=_monai_arguments, factor=_monai_factor),
    "monai.networks.blocks.squeeze_and_excitation.ChannelSELayer",
)
