"""What a residual block's modules are, read once.

Reading the attributes of modules and checking their hooks takes as long on the host as launching their kernels. So a
block is read once into a plan, and each call compares what was read: classes, children, hooks, settings.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .._params import BlockSettings, LayerSettings
from .known import HOOKS, is_nothing, is_plain, out_activation
from .norms import PLAIN, brought_activation, is_batch_norm_act
from .squeeze_excite import fusable_arguments

__all__ = ["BlockModules", "ConvNormAct", "ModulesOf", "Plan", "plan_of"]


class ConvNormAct(NamedTuple):
    """A convolution, its batch norm and the activation after it, if any."""

    conv: nn.Module
    bn: nn.Module
    act: nn.Module | None = None


class BlockModules(NamedTuple):
    """The modules of a residual block, or of a part of one: act(drop(se(branch(x))) + residual).

    The last activation of ``branch`` is that of the block, after the addition. The residual is shortcut(x) with a
    ``shortcut``, else what ``residual`` says.
    """

    branch: tuple[ConvNormAct, ...]
    shortcut: ConvNormAct | nn.Module | None = None  # or a Sequential of a convolution and a batch norm
    se: nn.Module | None = None
    drop: nn.Module | None = None
    arguments: Callable[[Any], dict[str, Any] | None] = fusable_arguments
    """The keyword arguments of :func:`se_fused.functional.squeeze_excite` from ``se``; None if it must be called."""
    absent: tuple[nn.Module | None, ...] = ()
    """Modules that must do nothing."""
    containers: tuple[nn.Module, ...] = ()
    """Modules around those above, which must not have hooks."""
    residual: str = "x"
    """Without a shortcut: "x", "none", or "given" for a tensor that the call has."""


_CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")
_SIMPLE = (bool, int, float, str)  # types of settings of activations and of layers such as SE

Place = tuple[dict[str, Any], str]  # a module's dictionary of tensors or attributes, and a name in it
_ABSENT: Place = ({"": None}, "")


class _Unsuitable(Exception):
    """The block's modules must be called."""


def _require(condition: object) -> None:
    if not condition:
        raise _Unsuitable


@dataclass(slots=True, eq=False)
class Plan:
    """What was read from a block's modules."""

    block: weakref.ref[nn.Module]
    suitable: bool = False
    """Whether the block can be one call. If not, it is read again when what was read of it changes."""
    dim: int = 4
    settings: BlockSettings = field(default_factory=lambda: BlockSettings((), "none"))
    drop: nn.Module | None = None
    # Compared in every call.
    modules: tuple[nn.Module, ...] = ()
    types: tuple[type, ...] = ()
    children: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...] = ()
    hooks: tuple[dict[Any, Any], ...] = ()
    hook_counts: tuple[int, ...] = ()
    attributes: tuple[dict[str, Any], ...] = ()
    overrides: list[bool] = field(default_factory=list)
    compared: tuple[Place, ...] = ()
    values: list[Any] = field(default_factory=list)
    # Read in every call: six tensors of each layer, and four of the excitation.
    tensors: tuple[Place, ...] = ()
    counters: tuple[Place, ...] = ()
    # The calls that were checked: whether kernels have them.
    checked: dict[tuple[Any, ...], bool] = field(default_factory=dict)

    def holds(self) -> bool:
        """Whether the modules are still what was read."""
        if tuple(map(type, self.modules)) != self.types or tuple(map(len, self.hooks)) != self.hook_counts:
            return False
        for children, known in self.children:
            if tuple(children.values()) != known:
                return False
        if ["forward" in attributes for attributes in self.attributes] != self.overrides:
            return False
        return [values[name] for values, name in self.compared] == self.values


class _Reader:
    """Reads a block's modules into a plan."""

    def __init__(self, reference: weakref.ref[nn.Module], block: nn.Module) -> None:
        self.plan = Plan(reference)
        self.modules: list[nn.Module] = []
        self.owners: list[nn.Module] = [block]
        self.compared: list[Place] = []
        self.layers: list[LayerSettings] = []
        self.tensors: list[Place] = []
        self.counters: list[Place] = []
        self.names = "relu", "sigmoid"
        self.residual = "none"

    def module(self, module: nn.Module | None) -> None:
        """A module whose class and hooks are compared, with all modules in it."""
        if module is not None:
            for part in module.modules():
                self.modules.append(part)
                if part._modules:
                    self.owners.append(part)
                if not isinstance(part, _BatchNorm | _ConvNd):  # settings of these are read by name
                    values = part.__dict__
                    self.compared += [(values, name) for name, value in values.items() if type(value) in _SIMPLE]

    def setting(self, module: nn.Module, *names: str) -> Iterator[Any]:
        """Attributes of a module that are compared."""
        for name in names:
            _require(name in module.__dict__)
            self.compared.append((module.__dict__, name))
            yield module.__dict__[name]

    def tensor(self, module: nn.Module, name: str) -> None:
        """A parameter or buffer, or None."""
        for tensors in (module._parameters, module._buffers):
            if name in tensors:
                self.tensors.append((tensors, name))
                return
        raise _Unsuitable

    def layer(self, layer: ConvNormAct) -> None:
        """A convolution with its batch norm and activation."""
        conv, bn, act = layer
        for module in layer:
            self.module(module)
        _require(is_plain(conv, *_CONVOLUTIONS))
        self.plan.dim = _CONVOLUTIONS[type(conv)]  # type: ignore[index]
        stride, padding, dilation, groups, mode = self.setting(conv, *_SETTINGS)
        _require(mode == "zeros" and isinstance(padding, tuple))
        name = out_activation(act)
        if is_batch_norm_act(bn):  # timm's batch norm with an activation inside
            _require(name == "none")
            name = brought_activation(bn)
        _require(name is not None)
        assert name is not None
        self.layers.append(LayerSettings(stride, padding, dilation, groups, name, *self.norm(bn)))
        for owner, tensor in (
            (conv, "weight"), (conv, "bias"),
            (bn, "running_mean"), (bn, "running_var"), (bn, "weight"), (bn, "bias"),
        ):  # fmt: skip
            self.tensor(owner, tensor)

    def norm(self, bn: nn.Module) -> tuple[bool, float, float]:
        """Settings of a batch norm that normalises by the batch or by its running statistics."""
        # A frozen batch norm promotes x to the dtype of its buffers; a SyncBatchNorm may have to synchronise.
        _require(type(bn) in PLAIN or (is_batch_norm_act(bn) and isinstance(bn, _BatchNorm)))
        assert isinstance(bn, _BatchNorm)
        training, momentum, eps, tracks = self.setting(bn, "training", "momentum", "eps", "track_running_stats")
        _require(tracks and bn.running_mean is not None and bn.running_var is not None and momentum is not None)
        if training and bn.num_batches_tracked is not None:
            self.counters.append((bn._buffers, "num_batches_tracked"))
        return bool(training), float(momentum), float(eps)

    def excitation(self, given: BlockModules) -> None:
        """The SE layer's parameters, wherever in its modules they are."""
        se = given.se
        if se is None:
            self.tensors += [_ABSENT] * 4
            return
        self.module(se)
        if (arguments := given.arguments(se)) is None:
            raise _Unsuitable
        self.names = arguments["act"], arguments["gate"]
        places = {id(t): (m._parameters, name) for m in se.modules() for name, t in m._parameters.items()}
        for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
            tensor = arguments[name]
            _require(tensor is None or id(tensor) in places)
            self.tensors.append(_ABSENT if tensor is None else places[id(tensor)])

    def shortcut(self, shortcut: ConvNormAct | nn.Module | None) -> None:
        if shortcut is None:
            return
        if isinstance(shortcut, nn.Module):
            self.module(shortcut)
            children = list(shortcut._modules.values())
            _require(isinstance(shortcut, nn.Sequential) and len(children) == 2)
            shortcut = ConvNormAct(*children)  # type: ignore[arg-type]
        self.layer(shortcut)

    def block_of(self, given: BlockModules) -> None:
        """All modules of the block."""
        for module in (*given.absent, *given.containers):
            self.module(module)
        _require(all(map(is_nothing, given.absent)))
        for layer in given.branch:
            self.layer(layer)
        self.shortcut(given.shortcut)
        self.excitation(given)
        self.module(given.drop)
        self.plan.drop = given.drop
        self.residual = given.residual if given.shortcut is None else "shortcut"

    def finish(self, suitable: bool) -> Plan:
        """The plan of what was read so far."""
        plan = self.plan
        plan.modules = tuple(dict.fromkeys(self.modules))
        plan.types = tuple(map(type, plan.modules))
        plan.children = tuple((m._modules, tuple(m._modules.values())) for m in dict.fromkeys(self.owners))
        plan.hooks = tuple(getattr(m, name) for m in plan.modules for name in HOOKS)
        plan.hook_counts = tuple(map(len, plan.hooks))
        plan.attributes = tuple(m.__dict__ for m in plan.modules)
        plan.overrides = ["forward" in values for values in plan.attributes]
        plan.compared = tuple(self.compared)
        plan.values = [values[name] for values, name in self.compared]
        plan.tensors, plan.counters = tuple(self.tensors), tuple(self.counters)
        plan.settings = BlockSettings(tuple(self.layers), self.residual, *self.names)
        plan.suitable = suitable and not any(plan.hooks) and not any(plan.overrides)
        return plan


ModulesOf = Callable[[Any], BlockModules | None]

_plans: dict[tuple[int, bool, ModulesOf], Plan] = {}
"""Plans by the block's id, its training flag, so that evaluation between steps reads nothing again, and the function
that gives its modules, because a block may have several parts. A plan is removed together with its block."""


def plan_of(block: nn.Module, modules: ModulesOf) -> Plan:
    """The plan of a block, read if it was not read before or has changed since."""
    key = id(block), block.training, modules
    plan = _plans.get(key)
    if plan is not None and plan.block() is block and plan.holds():
        return plan
    reader = _Reader(weakref.ref(block, lambda _: _plans.pop(key, None)), block)
    try:
        if (given := modules(block)) is None:
            raise _Unsuitable
        reader.block_of(given)
    except _Unsuitable:
        plan = reader.finish(False)
    else:
        plan = reader.finish(True)
    _plans[key] = plan
    return plan
