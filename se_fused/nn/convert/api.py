"""convert and revert: other libraries' models made faster in place, and given back.

``class_swap`` exchanges a module's class and keeps the table of known classes; ``decide`` says what of a model is
converted, ``report`` lists it. ``attention_layers`` knows squeeze-excite layers; ``timm``, ``torchvision`` and
``monai`` know a library's residual blocks, whose ends ``block_end`` computes from ``modules``; ``inverted_residual``
knows those that rescale before their projection. A file for another family registers its handlers and is imported here.
"""

from typing import TypeVar

import torch
from torch import nn

from . import attention_layers, inverted_residual, monai, timm, torchvision  # noqa: F401 (they register what they know)
from .class_swap import Fused, fused_class, is_fused
from .decide import is_ours, refusal
from .report import Report, conversion_report

__all__ = ["Fused", "Report", "conversion_report", "convert", "revert"]

M = TypeVar("M", bound=nn.Module)


def _check_model(model: object, function: str) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model is compiled by TorchScript: call {function} before torch.jit.script or torch.jit.trace")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return model


def convert(model: M, *, verbose: bool = False) -> M:
    """Make the squeeze-excite layers and residual blocks of timm, torchvision and MONAI run in this library's kernels.

    In place, by exchanging classes: state_dict keys and values, parameters in an optimiser, hooks, dtype, device and
    mode stay what they are, the answer up to rounding. ``torch.save``, ``copy.deepcopy``, DDP and ``torch.compile``
    work as before; a block or layer that has hooks inside, or one of whose parts was replaced, calls that part as a
    module. Calling it twice is harmless. What is not known stays as it is.

    torch.fx (``symbolic_trace``, torchvision's ``create_feature_extractor``) records the plain layers of a converted
    model, under the node names that they have in a plain one: a traced model is right, and no faster than before.
    Blocks in the graph keep the kernels as leaf modules, ``tracer_kwargs={"leaf_modules": [se_fused.nn.Fused]}``; what
    lies inside them has no nodes then. Forward hooks and timm's ``features_only=True`` trace nothing.

    Args:
        model: a model or a layer; wrapped in DDP, FSDP or ``torch.compile`` too, whose insides are converted.
        verbose: print what was converted, and what was left with the reason (:func:`conversion_report`).

    Returns:
        ``model`` itself.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or one that TorchScript has compiled.
    """
    _check_model(model, "convert")
    for module in model.modules():
        if not isinstance(module, Fused) and not is_ours(module) and refusal(module) is None:
            cls = fused_class(type(module))
            assert cls is not None, "refusal has a reason for a class that is not known"
            module.__class__ = cls
    if verbose:
        print(conversion_report(model))
    return model


def revert(model: M) -> M:
    """Undo :func:`convert`: every module has its own class again. In place; what was not converted is not touched.

    Args:
        model: as for :func:`convert`.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or one that TorchScript has compiled.
        RuntimeError: a converted module's class was changed since (a parametrization, FSDP's ``fully_shard``); nothing
            is reverted.
    """
    _check_model(model, "revert")
    for name, module in model.named_modules():
        if isinstance(module, Fused) and not is_fused(module):
            raise RuntimeError(
                f"{name or 'the model'} is {type(module).__name__} now, its class was changed after convert: "
                "undo that first, or revert before it"
            )
    for module in model.modules():
        if is_fused(module):
            module.__class__ = type(module).original  # type: ignore[assignment]
    return model
