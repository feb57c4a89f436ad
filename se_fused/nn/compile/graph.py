"""What the nodes of Dynamo's graph return, alias, overwrite and depend on.

Dynamo runs each node on fake tensors and keeps the result in ``meta["example_value"]``. A view of a fake tensor shares
its storage, so equal storages are aliases. :func:`describe` derives from them the notes of
:mod:`se_fused.nn.inference.tracing` (``kind``, ``storages`` and ``writes``), which that package records in a run of the
graph.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_leaves

from ..inference.tracing import Kind, kind, storages, writes

__all__ = [
    "BATCH_NORM", "arguments", "can_join", "describe", "is_transformed", "requires_grad", "same_sizes", "starts_with",
]  # fmt: skip

BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""The parameters of ``F.batch_norm``, in their order."""

_NAMES = "add sub mul truediv floordiv pow mod and or xor lshift rshift matmul concat"
_IN_PLACE = {operator.setitem, operator.delitem, *(getattr(operator, f"i{name}") for name in _NAMES.split())}
_KNOWN = ("torch", "torch.nn.functional", "torch._C._nn", "_operator", "math", "builtins")
"""Modules whose functions write only where their names and arguments say it."""


def arguments(node: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    """The given arguments of a call by name. ``names``: the function's parameters, in their order."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def same_sizes(first: Iterable[int | SymInt], second: Iterable[int | SymInt]) -> bool:
    """Whether two shapes are equal for all values of their symbols. The question adds no guard to the graph."""
    one, two = tuple(first), tuple(second)
    return len(one) == len(two) and all(statically_known_true(a == b) for a, b in zip(one, two, strict=True))


def starts_with(node: Any, sizes: Sequence[int | SymInt]) -> bool:
    """Whether a node returns a tensor of these sizes, followed by sizes of 1 alone."""
    found = kind(node)
    if found is None or len(found.shape) < len(sizes):
        return False
    return same_sizes(found.shape, (*sizes, *(1,) * (len(found.shape) - len(sizes))))


def requires_grad(node: fx.Node) -> bool:
    """Whether autograd records a gradient for the node's tensor."""
    return bool(node.meta["example_value"].requires_grad)


# ---- notes on each node
def _may_write(node: fx.Node) -> Iterator[Any]:
    """The arguments that a node may write to. An unknown function may write to all of them."""
    target = node.target
    if node.op in ("placeholder", "get_attr", "output"):
        return
    if node.op == "call_method":
        name = str(target)
        if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
            yield node.args[0]
        return
    known = node.op == "call_function" and getattr(target, "__module__", None) in _KNOWN
    if not known or "out" in node.kwargs or getattr(target, "__name__", "").endswith("_"):
        yield from node.all_input_nodes
    elif target is F.batch_norm:
        given = arguments(node, BATCH_NORM)
        yield from (given.get("running_mean"), given.get("running_var"))
    elif target in _IN_PLACE or any(value is True for value in (*node.args, *node.kwargs.values())):
        yield from node.all_input_nodes[:1]  # inplace=True, by position or by name, or another flag


def describe(gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Set ``kind``, ``storages`` and ``writes`` in the ``meta`` of each node, and ``place``, its number.

    Args:
        gm: Dynamo's graph.
        inputs: the arguments of the graph.
    """
    placeholders = iter(inputs)
    for place, node in enumerate(gm.graph.nodes):
        node.meta["place"] = place
        if node.op == "placeholder":  # a part of a graph, as DDP compiles it, may lack the notes
            node.meta.setdefault("example_value", next(placeholders, None))
        value = node.meta.get("example_value")
        tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.layout == torch.strided]
        node.meta["storages"] = frozenset(t.untyped_storage()._cdata for t in tensors)
        node.meta["writes"] = frozenset().union(*(storages(written) for written in _may_write(node)))
        if isinstance(value, Tensor) and tensors:
            node.meta["kind"] = Kind(value.shape, value.dtype, value.stride(), value.storage_offset())  # type: ignore[arg-type]


def is_transformed(graph: fx.Graph) -> bool:
    """Whether the graph contains a transform of torch.func, which the kernels do not support."""
    names = (getattr(node.target, "__name__", "") for node in graph.nodes if node.op == "call_function")
    return any(name.endswith(("_increment_nesting", "_enter_dual_level")) for name in names)


def can_join(nodes: Sequence[fx.Node]) -> bool:
    """Whether one call at the place of the last node can replace the nodes, which are in the graph's order.

    The call reads all inputs later than the nodes do, and writes running statistics later. So no other node in between
    may write to an input, or touch the statistics. The nodes' other writes must stay among themselves. A node without
    a result in between may switch autocast, gradients or a hook on or off.
    """
    inside = set(nodes)
    reads: set[int] = set()
    read_later: dict[fx.Node, frozenset[int]] = {}
    updated: set[int] = set()
    for node in nodes:
        outside = frozenset().union(*(storages(given) for given in node.all_input_nodes if given not in inside))
        read_later[node] = outside
        reads |= outside
        if node.target is F.batch_norm:
            updated |= writes(node)
        elif writes(node) & reads:
            return False
    reads = set()
    node = nodes[0]
    while node is not nodes[-1]:
        if node in inside:
            reads |= read_later[node]
        elif node.op != "placeholder" and node.meta.get("example_value") is None:
            return False
        elif writes(node) & reads or any(storages(given) & updated for given in node.all_input_nodes):
            return False
        node = node.next
    return True
