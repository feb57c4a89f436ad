"""optimize_for_inference: merge batch norm, SE, addition and activation into the convolutions before them."""

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ..._checks import check_bool
from ..convert import convert
from ..convert.report import NOTED
from . import captures
from .captures import check_example
from .casts import CastInput, CastOutput, Fixed
from .checking import check
from .copies import plain_copy, unwrapped
from .cuda_graph import Graphed
from .layers import ConvAct, ConvSqueezeExcite, NormAct, Rescale, compute_dtype
from .matching import CONVS
from .rewriting import rewrite
from .tracing import Arguments, add_layer, arguments_of_call, first_line, trace

__all__ = ["optimize_for_inference"]

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
_SPATIAL = {nn.Conv1d: (1024,), nn.Conv2d: (224, 224), nn.Conv3d: (64, 64, 64)}


def _example(model: nn.Module) -> Tensor:
    conv = next((m for m in model.modules() if isinstance(m, CONVS)), None)
    if conv is None:
        raise ValueError("model has no convolution from which the input shape could be derived: give example_input")
    shape = (2, conv.in_channels, *_SPATIAL[next(t for t in CONVS if isinstance(conv, t))])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(conv.weight.device)


def _called(model: nn.Module, arguments: Arguments) -> Any:
    """The result of the original model, called first, so that invalid arguments get an error message of their own."""
    try:
        return arguments.call(model)
    except Exception as error:  # whatever the model's own forward raises
        shapes = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else repr(v) for v in arguments.values)
        raise ValueError(
            f"model fails on an example of {shapes[:200]} ({first_line(error)}): give example_input with the arguments "
            "of a valid call: a tensor, a tuple of arguments or a dictionary of arguments by name"
        ) from error


@overload
def optimize_for_inference(
    model: nn.Module, example_input: Example | None = None, *, dtype: torch.dtype | None = None
) -> fx.GraphModule: ...


@overload
def optimize_for_inference(
    model: nn.Module, example_input: Example, *, dtype: torch.dtype | None = None, cuda_graph: Literal[True]
) -> Graphed: ...


def optimize_for_inference(
    model: nn.Module,
    example_input: Example | None = None,
    *,
    dtype: torch.dtype | None = None,
    cuda_graph: bool = False,
) -> fx.GraphModule | Graphed:
    """Return a new model that computes what ``model.eval()`` computes, with fewer passes over memory.

    Batch norm is folded into convolutions and linear layers. Activation, residual addition and the rescaling of SE
    become part of the convolution before them. If SE follows a 1x1 convolution with at most a batch norm in between,
    its squeeze is computed from the input of the convolution. Weights are channels_last, and on the CPU in oneDNN's
    layout. Before the function returns, it compares the results of both models on ``example_input``, also with one
    pixel set to NaN or infinity; both propagate as in PyTorch.

    The result is a ``torch.fx.GraphModule`` with its own copy of the weights. ``model``, its training mode and its
    hooks are unchanged. Hooks are neither run nor copied, except those that compute a weight (weight norm, spectral
    norm, pruning): these and parametrizations are replaced by the computed weight. The result accepts any batch size,
    and any image size that ``model`` accepts. To change its dtype, optimise the original model again. Use
    ``torch.compile`` instead of this function or before it, not on its result, whose layers are single calls already.
    :func:`se_fused.conversion_report` lists the convolutions that keep their batch norm.

    Args:
        model: a model that torch.fx can trace, from se_fused, timm, torchvision, MONAI or your own code; also inside
            DataParallel, DistributedDataParallel or torch.compile.
        example_input: arguments for tracing and checking: a tensor (N, C, *spatial), a tuple of arguments, or a
            dictionary of arguments by name. The result takes the same arguments; all other arguments have their
            default values. An argument without a tensor (such as a flag) is fixed to the given value. None: two random
            images of 224 x 224 (or two volumes of 64 x 64 x 64, or two signals of 1024) with the channels of the first
            convolution.
        dtype: dtype of weights and results, float32, bfloat16 or float16; None for the dtype of the model's
            parameters. On a CPU whose 16-bit convolutions are slower than its float32 ones
            (:func:`.layers.compute_dtype`), all layers compute in float32, and only the results are cast to ``dtype``;
            the ``cast_input`` layer shows this dtype when the result is printed.
        cuda_graph: capture the result for calls like ``example_input``, as :func:`se_fused.graphed` does; the model and
            the example must be on a GPU.

    Returns:
        The optimised model, in eval mode. It accepts inputs of any floating-point dtype and returns results in
        ``dtype``. With ``cuda_graph``, a :class:`se_fused.nn.Graphed` of this model, which is its ``module``.

    Raises:
        TypeError: ``model`` is not an ``nn.Module`` or is scripted, or ``dtype`` or ``example_input`` is not one of the
            above.
        ValueError: torch.fx cannot trace the model; the model cannot be copied or called with ``example_input``; or
            ``example_input`` is None and the model has no convolution.
            With ``cuda_graph``, also those of :func:`se_fused.graphed`, and if ``example_input`` is None.
        RuntimeError: the result is more than twice as far from the float64 result as the model's own result; or it
            cannot be captured.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a torch.nn.Module that is not scripted, got {type(model).__name__}")
    model = unwrapped(model)
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy parameters without a shape yet: call the model once first")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise ValueError("model has no parameters: there is nothing to optimise")
    if check_bool(cuda_graph, "cuda_graph"):
        _check_capture(parameter.device, example_input)
    wanted = parameter.dtype if dtype is None else dtype
    if wanted not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {wanted}")
    inside = compute_dtype(wanted, parameter.device)
    # In-place writes are detected by version counters. Tensors created in inference mode have none, and their data
    # could not be cast in place either.
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
                f"model writes in place ({', '.join(rewritten.shared)}) to a tensor that it also reads through a view; "
                "in an optimised model, whose maps are channels_last, the view may be a copy: remove the inplace=True "
                "or the underscore of the method, or use se_fused.convert(model)"
            ) from error
    if not cuda_graph:
        return gm
    result = Graphed(gm)
    result.add(example, "example_input")
    return result


def _check_capture(device: torch.device, example: Example | None) -> None:
    """Raise an error, before the work, if a model on ``device`` cannot be captured for this example."""
    if device.type != captures.DEVICE:
        raise ValueError(
            f"cuda_graph needs a model on a GPU, this one is on {device}: model.cuda(), or leave cuda_graph out"
        )
    if example is None:
        raise ValueError("cuda_graph captures calls of example_input's shape: give example_input")
    check_example("example_input", tree_leaves(example))


def _cast(gm: fx.GraphModule, dtype: torch.dtype) -> None:
    """Cast the layers that were not replaced to the dtype of the maps between the layers.

    The layers of :mod:`.layers` were created in that dtype, and some of their tensors must stay float32.
    """
    for module in gm.modules():
        if not isinstance(module, ConvAct | ConvSqueezeExcite | NormAct | Rescale):
            for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if t.is_floating_point():
                    t.data = t.data.to(dtype)


def _add_casts(gm: fx.GraphModule, inside: torch.dtype, wanted: torch.dtype, constants: dict[str, Any]) -> None:
    """Add the layers that convert the inputs, check the constant arguments, and cast the results."""
    cast_input = add_layer(gm, "cast_input", CastInput(inside))
    cast_output = add_layer(gm, "cast_output", CastOutput(wanted))
    fixed = add_layer(gm, "fixed", Fixed(constants))
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and node.target in constants:
            node.args = (constants[node.target],)  # the default value of the placeholder
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
