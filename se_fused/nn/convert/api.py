"""The public functions ``convert`` and ``revert``: switch models of other libraries to the fused kernels, and back.

``class_swap`` replaces a module's class and holds the table of supported classes. ``decide`` determines which modules
of a model are converted, and ``report`` lists them. ``attention_layers`` supports squeeze-excite layers. ``timm``,
``torchvision`` and ``monai`` support the residual blocks of these libraries; ``block_end`` computes the end of such a
block from the submodules that ``modules`` recognises. ``inverted_residual`` supports blocks that rescale the channels
before the projection. A file for another family of models registers its handlers and is imported here.
"""

from typing import TypeVar

import torch
from torch import nn

from . import attention_layers, inverted_residual, monai, timm, torchvision  # noqa: F401 (they register their handlers)
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

    The model is changed in place: the class of each supported module is replaced by a subclass with a fused
    ``forward``. The keys and values of the state_dict, the parameters in an optimiser, hooks, dtype, device and
    training mode do not change, and results change only by rounding. ``torch.save``, ``copy.deepcopy``, DDP and
    ``torch.compile`` work as before. A converted module calls a submodule that has hooks, or that was replaced by a
    module without a kernel, as a module. Unsupported modules are left unchanged. Converting a model twice has no
    further effect.

    torch.fx (``symbolic_trace``, torchvision's ``create_feature_extractor``) records the plain PyTorch layers of a
    converted model under the same node names as for the original model. Such a traced model is correct, but no faster
    than the original. With ``tracer_kwargs={"leaf_modules": [se_fused.nn.Fused]}`` the converted modules are leaf
    modules of the graph and run the kernels; the layers inside them then have no nodes. Forward hooks and timm's
    ``features_only=True`` do not trace and need no such setting.

    Args:
        model: a model or a layer, also one wrapped in DDP, FSDP or ``torch.compile``; the modules inside are converted.
        verbose: print the :func:`conversion_report`: the converted modules, and the others with the reason.

    Returns:
        The same object as ``model``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or it was compiled by TorchScript.
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
    """Undo :func:`convert`: restore the original class of every converted module, in place.

    Modules that were not converted are left unchanged.

    Args:
        model: as for :func:`convert`.

    Returns:
        The same object as ``model``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or it was compiled by TorchScript.
        RuntimeError: the class of a converted module was changed again after the conversion (by a parametrization or
            FSDP's ``fully_shard``). No module is reverted.
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
