"""Squeeze-excite layers of timm and torchvision: the attribute names of their parts, and the kernel arguments.

The classes are recognised by name, because the libraries may not be installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .known import activation, gate, is_nothing, is_plain, untouched
from .squeeze_excite import SqueezeExcite, excitation_arguments

__all__ = ["SE_LAYERS", "SELayer", "called", "excitation", "means_only", "se_layer"]


def means_only(module: Any) -> str | None:
    """Reason why a layer's squeeze is not the mean, or None if it is the mean."""
    return "add_maxpool is set: its squeeze is not the mean alone" if getattr(module, "add_maxpool", False) else None


def _linear(module: Any) -> bool:
    """Whether the module multiplies the channels by a matrix: nn.Linear or a 1x1 convolution."""
    if type(module) is nn.Linear:
        return True
    if type(module) is not nn.Conv2d:
        return False
    return (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1)


@dataclass(frozen=True)
class SELayer:
    """Attribute names of the parts of an SE class, in the order of the calls.

    ``between`` is a layer between fc1 and act, mostly an identity. ``pool`` is the pooling module of classes with one.
    """

    fc1: str
    act: str
    fc2: str
    gate: str
    between: str | None = None
    pool: str | None = None

    def refusal(self, module: Any) -> str | None:
        """Reason why a layer of this class is not converted, or None."""
        if reason := means_only(module):
            return reason
        for name in (self.fc1, self.fc2):
            if not _linear(getattr(module, name)):
                return f"{name} is no 1x1 convolution"
        if self.pool is not None and not _to_one_value(getattr(module, self.pool)):
            return f"{self.pool} does not pool to one value"
        return None

    def arguments(self, module: Any) -> dict[str, Any] | None:
        """Keyword arguments of :func:`se_fused.functional.squeeze_excite`; None if layers inside must be called."""
        parts = module._modules
        fc1, act, fc2, last = (parts[name] for name in (self.fc1, self.act, self.fc2, self.gate))
        if fc1 is None or act is None or fc2 is None or last is None or not self._takes_the_mean(module):
            return None
        if not (is_plain(fc1, nn.Conv2d, nn.Linear) and is_plain(fc2, nn.Conv2d, nn.Linear)):
            return None
        if self.between is not None and not is_nothing(parts[self.between]):
            return None
        act_name, gate_name = activation(act), gate(last)
        if act_name is None or gate_name is None:
            return None
        return excitation_arguments(fc1, fc2, act_name, gate_name)

    def layers(self, module: Any) -> list[nn.Module] | None:
        """The layers from the means to the gate, both (N, C, 1, 1); None if the module must be called."""
        if not self._takes_the_mean(module):
            return None
        names = (self.fc1, self.between, self.act, self.fc2, self.gate)
        return [getattr(module, name) for name in names if name is not None]

    def _takes_the_mean(self, module: Any) -> bool:
        pool = None if self.pool is None else module._modules[self.pool]
        plain = pool is None or (is_plain(pool, nn.AdaptiveAvgPool2d) and _to_one_value(pool))
        return plain and means_only(module) is None


def _to_one_value(pool: Any) -> bool:
    return pool.output_size in (1, (1, 1))


SE_LAYERS: dict[str, SELayer] = {
    "timm.layers.squeeze_excite.SEModule": SELayer("fc1", "act", "fc2", "gate", between="bn"),
    "timm.models.senet.SEModule": SELayer("fc1", "relu", "fc2", "sigmoid"),
    "timm.models._efficientnet_blocks.SqueezeExcite": SELayer("conv_reduce", "act1", "conv_expand", "gate"),
    "torchvision.ops.misc.SqueezeExcitation": SELayer("fc1", "activation", "fc2", "scale_activation", pool="avgpool"),
}
"""Supported SE layers by qualified class name "module.Class"."""


def called(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Call the layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


def se_layer(module: nn.Module) -> SELayer | None:
    """The entry of :data:`SE_LAYERS` for the class that the module had before conversion; None if there is none."""
    cls = getattr(type(module), "original", type(module))
    return SE_LAYERS.get(f"{cls.__module__}.{cls.__qualname__}")


def excitation(se: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Function from the means to the gate, both (N, C, 1, 1); None if ``se`` itself must be called.

    The function calls the layers of ``se`` as modules, so that their hooks run.
    """
    if is_plain(se, SqueezeExcite):
        return se.excitation
    known = se_layer(se)
    layers = known.layers(se) if known is not None and untouched(se) else None
    return None if layers is None else partial(called, layers)
