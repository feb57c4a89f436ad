"""A model's copy that is the caller's alone: in eval mode, without hooks, its weights what they are computed to be."""

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

__all__ = ["plain_copy", "unwrapped"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Hooks that belong to a module: they compute its weight. All of them can be removed, which leaves the weight.
_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside (Distributed)DataParallel and torch.compile; a model that is not wrapped itself."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod") and isinstance(model._orig_mod, nn.Module):
            model = model._orig_mod
        else:
            return model


def _bake(module: nn.Module) -> None:
    """Give a parametrized module its weights for good. Not by ``remove_parametrizations``, which takes the property off
    the class that the copy and the original share."""
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode. It has none of the model's hooks, which would run while the copy is traced; weight norms,
    spectral norms, pruning and parametrizations have been replaced by the weight that they compute.

    Raises:
        ValueError: a part of the model cannot be copied.
    """
    given: dict[int, Any] = {}  # what copy.deepcopy takes in place of a copy of its own, by id
    for module in model.modules():
        for name in _HOOKS:
            hooks = module.__dict__.get(name)
            if hooks:
                given[id(hooks)] = OrderedDict((k, h) for k, h in hooks.items() if isinstance(h, _WEIGHTS))
        for value in module.__dict__.values():
            # the result of a computation that a module keeps (a weight norm's weight, a recorded map): deepcopy raises
            if isinstance(value, Tensor) and not value.is_leaf:
                given[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(model, given)
    except Exception as error:
        raise ValueError(
            f"model cannot be copied ({first_line(error)}): "
            "copy.deepcopy(model) must work, take out what it cannot copy"
        ) from error
    copied.eval()
    for module in list(copied.modules()):
        for key, hook in list(module._forward_pre_hooks.items()):
            assert isinstance(hook, _WEIGHTS), "the others were left behind"
            hook.remove(module)
            del module._forward_pre_hooks[key]
        if parametrize.is_parametrized(module):
            _bake(module)
    return copied
