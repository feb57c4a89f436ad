"""Preparation of a graph for rewriting: calls of F.conv2d become modules, views become reshapes, padding is merged."""

from collections import Counter
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..known import is_plain
from .matching import CONVS
from .tracing import add_layer, contiguous_argument, storages, writes

__all__ = ["merge_padding", "name_convolutions", "views_to_reshapes"]

_CONVS = dict(zip((torch.conv1d, torch.conv2d, torch.conv3d), CONVS, strict=True))
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PADS = (
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip


def views_to_reshapes(graph: fx.Graph) -> None:
    """Make views independent of the memory format, because maps of an optimised model are channels_last.

    ``view`` becomes ``reshape``: PyTorch raises an error for ``x.view(n, -1)`` of a channels_last map. ``as_strided``
    depends on the strides, so its input is made contiguous.
    """
    names = {"view": "reshape", "view_as": "reshape_as"}
    for node in graph.nodes:
        if node.op == "call_method" and node.target in names:
            shape = node.kwargs.get("size", node.kwargs.get("dtype", node.args[1] if len(node.args) > 1 else None))
            if not isinstance(shape, torch.dtype):
                node.target = names[node.target]
                node.kwargs = {"shape" if k == "size" else k: v for k, v in node.kwargs.items()}
        elif node.target in ("as_strided", torch.as_strided) and isinstance(node.args[0], fx.Node):
            contiguous_argument(graph, node, node.args[0])


def _attribute(gm: fx.GraphModule, node: Any) -> Tensor | None:
    """The floating-point parameter or buffer that a ``get_attr`` node reads; None for other nodes.

    None also if a node writes to the tensor.
    """
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    if any(writes(other) & storages(node) for other in gm.graph.nodes):
        return None
    value = attrgetter(str(node.target))(gm)
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def name_convolutions(gm: fx.GraphModule) -> list[fx.Node]:
    """Replace every ``F.conv2d`` (also 1-D, 3-D) whose weight and bias are parameters or buffers by a module.

    Such calls come mostly from subclasses of ``nn.Conv2d`` that pad in their own forward.

    Returns:
        The calls whose weight or bias is computed in forward.
    """
    others = []
    for node in list(gm.graph.nodes):
        cls = _CONVS.get(node.target) if node.op == "call_function" else None
        if cls is None:
            continue
        given = dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | node.kwargs
        weight, bias = _attribute(gm, given.get("weight")), _attribute(gm, given.get("bias"))
        if weight is None or (bias is None) != (given.get("bias") is None):
            others.append(node)
            continue
        geometry = {name: given[name] for name in _CONV_ARGUMENTS[3:] if name in given}
        found: list[fx.Node] = []
        fx.node.map_arg(tuple(geometry.values()), found.append)
        if found or not isinstance(given.get("input"), fx.Node):
            continue
        groups = geometry.get("groups", 1)
        size: Any = tuple(weight.shape[2:])
        conv = cls(weight.shape[1] * groups, weight.shape[0], size, **geometry, bias=False, device="meta")
        conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        conv.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        name = add_layer(gm, str(given["weight"].target).rpartition(".")[0] or "conv", conv.eval())
        with gm.graph.inserting_before(node):
            called = gm.graph.call_module(name, (given["input"],))
        called.meta.update(node.meta)
        node.replace_all_uses_with(called)
        gm.graph.erase_node(node)
    return others


def _zeros_around(gm: fx.GraphModule, node: Any, dims: int) -> list[int] | None:
    """Numbers of zeros that a node adds on each side of the last ``dims`` dimensions.

    None if the node is not a zero padding, if both sides differ, or if other nodes use its result.
    """
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    border: Any
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        if not is_plain(module, *_PADS) or getattr(module, "value", 0) != 0 or node.kwargs:
            return None
        border = module.padding
    elif node.target is nn.functional.pad:
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
        if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
            return None
        border = given["pad"]
    else:
        return None
    if not isinstance(border, list | tuple) or not all(isinstance(n, int) and n >= 0 for n in border):
        return None
    before, behind = list(border[::2]), list(border[1::2])
    if before != behind or len(before) > dims:
        return None
    return [0] * (dims - len(before)) + before[::-1]  # F.pad starts with the last dimension


def merge_padding(gm: fx.GraphModule) -> None:
    """Merge zero padding into the convolution after it, which pads without a separate pass over memory."""
    calls = Counter(n.target for n in gm.graph.nodes if n.op == "call_module")
    for node in list(gm.graph.nodes):
        conv = gm.get_submodule(node.target) if node.op == "call_module" else None
        if conv is None or not is_plain(conv, *CONVS) or calls[node.target] > 1 or len(node.args) != 1:
            continue
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or any(conv.padding):
            continue
        zeros = _zeros_around(gm, node.args[0], conv.weight.dim() - 2)
        if zeros is None:
            continue
        pad = node.args[0]
        conv.padding = tuple(zeros)
        node.args = (pad.args[0],)
        gm.graph.erase_node(pad)
