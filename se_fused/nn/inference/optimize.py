"""optimize_for_inference: a model's graph with everything behind each convolution put into it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from ..convert import convert
from ..convert.report import NOTED
from .casts import CastInput, CastOutput, Fixed
from .checking import check
from .copies import plain_copy, unwrapped
from .layers import ConvAct, ConvSqueezeExcite, NormAct, Rescale, compute_dtype
from .matching import CONVS
from .rewriting import rewrite
from .tracing import Arguments, add_layer, arguments_of_call, first_line, trace

__all__ = ["optimize_for_inference"]

_SPATIAL = {nn.Conv1d: (1024,), nn.Conv2d: (224, 224), nn.Conv3d: (64, 64, 64)}


def _example(model: nn.Module) -> Tensor:
    conv = next((m for m in model.modules() if isinstance(m, CONVS)), None)
    if conv is None:
        raise ValueError("model has no convolution to tell its input from: give example_input")
    shape = (2, conv.in_channels, *_SPATIAL[next(t for t in CONVS if isinstance(conv, t))])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(conv.weight.device)


def _called(model: nn.Module, arguments: Arguments) -> Any:
    """The model's result, before all else, so that what it does not take is told from what cannot be optimised."""
    try:
        return arguments.call(model)
    except Exception as error:  # whatever the model's own forward raises
        shapes = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else repr(v) for v in arguments.values)
        raise ValueError(
            f"model fails on an example of {shapes[:200]} ({first_line(error)}): give example_input as the model is "
            "called: a tensor, a tuple of arguments or a dictionary by name"
        ) from error


def optimize_for_inference(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> fx.GraphModule:
    """A model for inference that computes what ``model.eval()`` computes, with fewer passes over memory.

    Batch norm is folded into convolutions and linear layers; activation, residual and the rescaling of SE become part
    of the convolution before them; where that is a 1x1 convolution behind which only batch norm stands, the squeeze is
    taken from its input. Weights are channels_last, on the CPU in oneDNN's order. Before it is returned, the result is
    compared with the model's on ``example_input``, also with a pixel that is NaN and one that is infinite: NaN and
    infinity go through as in PyTorch.

    The result is a new ``torch.fx.GraphModule`` with weights of its own: ``model``, its mode and its hooks are left as
    they are. Hooks are neither run nor carried over, but for those that compute a weight (weight norm, spectral norm,
    pruning), whose result is taken; so are parametrizations. It takes any batch size, and any image size that the model
    takes. To change its dtype, optimise again. Put ``torch.compile`` before or instead, not behind: the layers are
    single calls already. :func:`se_fused.conversion_report` names the convolutions that keep their batch norm.

    Args:
        model: of se_fused, timm, torchvision, MONAI or your own, that torch.fx can trace; also inside DataParallel,
            DistributedDataParallel or torch.compile.
        example_input: what the model is traced and checked with: a tensor (N, C, *spatial), a tuple of arguments, or a
            dictionary of arguments by name. The result takes as many arguments; all others keep their defaults, and an
            argument without a tensor (a switch) the value that it has here. None: two random images of 224 x 224
            (volumes of 64 x 64 x 64) with the channels of the first convolution.
        dtype: float32, bfloat16 or float16, of weights and results; None: that of the model's parameters. On a CPU
            whose convolutions are slower in 16 bits than in float32 (:func:`.layers.compute_dtype`), the layers
            between the first and the last compute in float32; the result's ``cast_input`` says so where it is printed.

    Returns:
        The optimised model, in eval mode. Inputs of any floating-point dtype are taken; results have ``dtype``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, ``dtype`` another one, or ``example_input`` of another type.
        ValueError: torch.fx cannot trace the model, the model cannot be copied or called with ``example_input``, or
            there is no convolution and no ``example_input``.
        RuntimeError: the result is farther from the float64 truth than twice the error of the model itself.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}")
    model = unwrapped(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy parameters without a shape yet: call the model once before")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise ValueError("model has no parameters: there is nothing to optimise")
    wanted = parameter.dtype if dtype is None else dtype
    if wanted not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {wanted}")
    inside = compute_dtype(wanted, parameter.device)
    # Version counters tell what writes in place: tensors of inference mode have none, and could not be cast either.
    with torch.inference_mode(False):
        plain = plain_copy(model)
        example = _example(plain) if example_input is None else example_input
        arguments = arguments_of_call(plain, example).to(parameter.dtype)
        gm = trace(convert(plain_copy(plain)), arguments, _called(plain, arguments))
        rewritten = rewrite(gm, inside)
        gm.meta[NOTED] = rewritten.left
        _cast(gm, inside)
        _add_casts(gm, inside, wanted, arguments.constants)
        gm.eval()
        try:
            check(plain, gm, arguments, wanted, inside)
        except RuntimeError as error:
            if not rewritten.shared:
                raise
            raise ValueError(
                f"model writes in place ({', '.join(rewritten.shared)}) to a tensor that it also reads through a view, "
                "which is a copy in an optimised model, whose maps are channels_last: leave out the inplace=True or "
                "the underscore, or use se_fused.convert(model)"
            ) from error
    return gm


def _cast(gm: fx.GraphModule, dtype: torch.dtype) -> None:
    """Layers that were left as they are, in the dtype of the maps between them; ours have it, and float32 besides."""
    for module in gm.modules():
        if not isinstance(module, ConvAct | ConvSqueezeExcite | NormAct | Rescale):
            for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if t.is_floating_point():
                    t.data = t.data.to(dtype)


def _add_casts(gm: fx.GraphModule, inside: torch.dtype, wanted: torch.dtype, constants: dict[str, Any]) -> None:
    """What casts and orders the inputs, holds the constants, and casts the results."""
    cast_input = add_layer(gm, "cast_input", CastInput(inside))
    cast_output = add_layer(gm, "cast_output", CastOutput(wanted))
    fixed = add_layer(gm, "fixed", Fixed(constants))
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and node.target in constants:
            node.args = (constants[node.target],)  # its default
            with gm.graph.inserting_after([n for n in gm.graph.nodes if n.op == "placeholder"][-1]):
                gm.graph.call_module(fixed, (node.target, node))
        elif node.op == "placeholder" and node.users:
            with gm.graph.inserting_after(node):
                cast = gm.graph.call_module(cast_input, (node,))
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
        elif node.op == "output" and inside != wanted:
            with gm.graph.inserting_before(node):
                cast = gm.graph.call_module(cast_output, (node.args[0],))
            node.args = (cast,)
    gm.delete_all_unused_submodules()
    gm.recompile()
