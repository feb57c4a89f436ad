"""Copy of a model in eval mode, without hooks, and with computed weights (weight norm, pruning) as plain tensors."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .tracing import first_line

__all__ = ["computes_weight", "plain_copy", "unwrapped"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Hooks that compute a module's weight. Each has remove(), which leaves the computed weight in the module.
_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)


def computes_weight(hook: object) -> bool:
    """Whether a forward pre-hook computes a weight of its module: weight norm, spectral norm or pruning."""
    return isinstance(hook, _WEIGHTS)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel or torch.compile; an unwrapped model unchanged."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod") and isinstance(model._orig_mod, nn.Module):
            model = model._orig_mod
        else:
            return model


def _bake(module: nn.Module) -> None:
    """Replace the parametrized weights of a module by their current values.

    ``remove_parametrizations`` cannot be used: it deletes the property from the class, which the copy shares with the
    original.
    """
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def plain_copy(model: nn.Module) -> nn.Module:
    """Deep copy of a model in eval mode, without its hooks, which would run while the copy is traced.

    Weight norms, spectral norms, pruning and parametrizations are replaced by the weights that they compute.

    Raises:
        ValueError: ``copy.deepcopy`` cannot copy the model.
    """
    given: dict[int, Any] = {}  # deepcopy's memo: replacements by the id of the original object
    for module in model.modules():
        for name in _HOOKS:
            hooks = module.__dict__.get(name)
            if hooks:
                given[id(hooks)] = OrderedDict((k, h) for k, h in hooks.items() if isinstance(h, _WEIGHTS))
        for value in module.__dict__.values():
            # deepcopy cannot copy a stored result of a computation (the weight of a weight norm, a recorded map)
            if isinstance(value, Tensor) and not value.is_leaf:
                given[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(model, given)
    except Exception as error:
        raise ValueError(
            f"model cannot be copied ({first_line(error)}): "
            "copy.deepcopy(model) must work, remove the attribute that it cannot copy"
        ) from error
    copied.eval()
    for module in list(copied.modules()):
        for key, hook in list(module._forward_pre_hooks.items()):
            assert isinstance(hook, _WEIGHTS), "other hooks are not copied"
            hook.remove(module)
            del module._forward_pre_hooks[key]
        if parametrize.is_parametrized(module):
            _bake(module)
    return copied
