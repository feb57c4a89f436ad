"""Recognition of squeeze-excite layers and of the ends of blocks among the nodes of Dynamo's graph.

The nodes are calls of functions and tensor methods, as the models' ``forward`` spells them. A group of nodes matches if
its intermediate results have no other users. Questions about a tensor's size (``x.shape``, ``x.new_empty``) do not
count as users, because all maps of a block have the same shape, dtype and device.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ...activations import ACTIVATIONS, FUNCTIONS, GATES, OUT_ACTIVATIONS
from ..inference.rewriting import is_add
from ..inference.tracing import kind
from .graph import BATCH_NORM, arguments, requires_grad, same_sizes, starts_with

__all__ = [
    "BatchNorm", "End", "Excitation", "activated", "batch_norm", "block_end", "excitation",
    "projection", "questions", "users",
]  # fmt: skip

_CONVS = (F.conv1d, F.conv2d, F.conv3d)
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MULS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
_IN_PLACE = (operator.imul, "mul_", operator.iadd, "add_")
_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_RESHAPES = (
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", torch.reshape, torch.flatten, torch.squeeze,
    torch.unsqueeze, operator.getitem,
)  # fmt: skip
_EXPANDS = ("expand", "expand_as")
_QUESTIONS = ("size", "dim", "new_empty")


def _is_question(user: fx.Node, node: fx.Node) -> bool:
    return user.op == "call_method" and user.target in _QUESTIONS and user.args[0] is node


def questions(node: fx.Node) -> list[fx.Node]:
    """The users of a map that need only its shape, dtype and device."""
    return [user for user in node.users if _is_question(user, node)]


def users(node: fx.Node) -> list[fx.Node]:
    """The other users of a node."""
    return [user for user in node.users if not _is_question(user, node)]


def _is_call(node: Any, *targets: Any) -> bool:
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in targets


def _is_product(node: fx.Node) -> bool:
    return _is_call(node, *_MULS) and len(node.args) == 2 and not node.kwargs


def _like(node: Any, x: Any) -> bool:
    """Whether two nodes return maps of the same shape and dtype."""
    first, second = kind(node), kind(x)
    if first is None or second is None or first.dtype != second.dtype:
        return False
    return same_sizes(first.shape, second.shape)


def _function(node: Any) -> str | None:
    """The name of the activation or gate that a node computes of its first argument; None for any other node."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    flags = all(isinstance(value, bool) for value in node.args[1:])  # inplace by position
    options = all(name == "inplace" or (name, value) == ("approximate", "none") for name, value in node.kwargs.items())
    return FUNCTIONS.get(node.target) if node.args and flags and options else None


def activated(node: fx.Node) -> tuple[Any, str]:
    """The input of an activation that can close a block, and its name. For any other node: the node and "none"."""
    name = _function(node)
    return (node.args[0], str(name)) if name in OUT_ACTIVATIONS else (node, "none")


# ---- batch norm
@dataclass(frozen=True)
class BatchNorm:
    """A call of ``F.batch_norm`` on a map: its node, its input, and the other arguments of this library's functions."""

    node: fx.Node
    x: fx.Node
    tensors: tuple[Any, Any, Any, Any]
    settings: dict[str, Any]

    @property
    def training(self) -> bool:
        return bool(self.settings["training"])


def batch_norm(node: Any) -> BatchNorm | None:
    """The batch norm that a node computes of a map (N, C, *spatial), or None."""
    if not _is_call(node, F.batch_norm):
        return None
    given = {"training": False, "momentum": 0.1, "eps": 1e-5} | arguments(node, BATCH_NORM)
    x, settings = given["input"], {name: given[name] for name in ("training", "momentum", "eps")}
    numbers = type(settings["training"]) is bool and all(type(settings[n]) in (int, float) for n in ("momentum", "eps"))
    if not numbers or not _is_map(x) or not _like(node, x):
        return None
    mean, var, weight, bias = (given.get(name) for name in BATCH_NORM[1:5])
    return BatchNorm(node, x, (mean, var, weight, bias), settings)


# ---- the excitation
@dataclass(frozen=True)
class Excitation:
    """A squeeze-excite layer. The nodes are in the graph's order."""

    x: fx.Node
    """The map."""
    pooling: tuple[fx.Node, ...]
    """The nodes up to the channel means, which the last returns."""
    layers: tuple[fx.Node, ...]
    """The nodes from the means to the factor (N, C, 1, ...), which the last returns."""
    scaling: tuple[fx.Node, ...]
    """The nodes that multiply the map by the factor."""
    arguments: dict[str, Any]
    """Those of :func:`se_fused.functional.squeeze_excite`, without the map."""

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (*self.pooling, *self.layers, *self.scaling)

    @property
    def product(self) -> fx.Node:
        return self.scaling[-1]

    @property
    def gate(self) -> fx.Node:
        return self.layers[-1]


def _is_1x1(given: dict[str, Any]) -> bool:
    """Whether a convolution with these arguments is a product in each position: 1x1, no stride, padding or groups."""
    weight, of = kind(given.get("weight")), kind(given.get("input"))
    if weight is None or of is None or len(weight.shape) != len(of.shape) or given.get("groups", 1) != 1:
        return False
    return (
        starts_with(given["weight"], weight.shape[:2])
        and _all(given.get("stride", 1), 1)
        and (given.get("padding", 0) in ("same", "valid") or _all(given.get("padding", 0), 0))
    )


def _all(sizes: Any, value: int) -> bool:
    return all(size == value for size in (sizes if isinstance(sizes, tuple | list) else (sizes,)))


class _Walk:
    """A walk from a factor to the nodes before it that have no users outside the walk.

    Attributes:
        at: the node that the walk has reached. It is not in ``nodes`` yet.
        nodes: the nodes behind it, from the last to the first.
    """

    def __init__(self, at: Any, batch: Any) -> None:
        self.at, self.batch = at, batch
        self.nodes: list[fx.Node] = []

    def is_free(self) -> bool:
        return isinstance(self.at, fx.Node) and len(self.at.users) == 1

    def step(self, to: Any) -> None:
        self.nodes.append(self.at)
        self.at = to

    def taken(self) -> tuple[fx.Node, ...]:
        """The nodes since the last call of this function, in the graph's order."""
        nodes, self.nodes = self.nodes, []
        return tuple(reversed(nodes))

    def reshapes(self, channels: Any) -> None:
        """Pass nodes that only add or remove sizes of 1 after (N, channels)."""
        while self.is_free() and _is_call(self.at, *_RESHAPES) and self.at.args:
            before = self.at.args[0]
            if not (starts_with(self.at, (self.batch, channels)) and starts_with(before, (self.batch, channels))):
                return
            if self.at.target is operator.getitem and not _takes_all(self.at.args[1]):
                return
            self.step(before)

    def function(self, names: Any) -> str | None:
        """Pass an activation or gate of these names, and return its name."""
        name = _function(self.at) if self.is_free() else None
        if name not in names:
            return None
        self.step(self.at.args[0])
        return name

    def layer(self, channels: Any) -> tuple[Any, Any, Any] | None:
        """Pass a linear layer or 1x1 convolution with so many outputs; return weight, bias and number of inputs."""
        if not self.is_free() or not starts_with(self.at, (self.batch, channels)):
            return None
        if _is_call(self.at, F.linear):
            given = arguments(self.at, _CONV[:3])
        elif _is_call(self.at, *_CONVS):
            given = arguments(self.at, _CONV)
            if not _is_1x1(given):
                return None
        else:
            return None
        weight = kind(given.get("weight"))
        if weight is None:
            return None
        size = weight.shape[1]
        if not (starts_with(given["weight"], (channels, size)) and starts_with(given["input"], (self.batch, size))):
            return None
        self.step(given["input"])
        return given["weight"], given.get("bias"), size

    def pooling(self, x: fx.Node) -> bool:
        """Pass the mean of x over its positions; return whether that is what the walk has reached."""
        node = self.at
        shape = kind(x).shape  # type: ignore[union-attr]
        if not self.is_free() or not starts_with(node, shape[:2]) or not node.args:
            return False
        of = kind(node.args[0])
        if of is None or not _averages(node, len(of.shape)):
            return False
        self.step(node.args[0])
        if self.at is not x and len(of.shape) == 3 and _is_call(self.at, *_RESHAPES) and self.is_free():
            if same_sizes(of.shape[:2], shape[:2]):  # all positions in one dimension: x.flatten(2).mean(2)
                self.step(self.at.args[0])
        return self.at is x


def _takes_all(index: Any) -> bool:
    """Whether an index keeps all elements: ``[:, :, None, None]``."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or part == slice(None) for part in parts)


def _averages(node: Any, rank: int) -> bool:
    """Whether a node averages a tensor of ``rank`` dimensions over all but the first two. For an adaptive pooling, that
    its result has one position is known already."""
    if _is_call(node, *_POOLS):
        return rank == _POOLS.index(node.target) + 3
    if not _is_call(node, "mean", torch.mean):
        return False
    given = arguments(node, ("input", "dim", "keepdim"))
    dims = given.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if given.keys() - {"input", "dim", "keepdim"} or not isinstance(dims, tuple | list):
        return False
    return sorted(d % rank for d in dims) == list(range(2, rank)) and rank > 2


def _is_map(node: Any) -> bool:
    """Whether a node returns a tensor (N, C, *spatial)."""
    found = kind(node)
    return found is not None and 3 <= len(found.shape) <= 5


def _excites(product: fx.Node, x: Any, factor: Any) -> Excitation | None:
    """The squeeze-excite layer that multiplies the map ``x`` by ``factor``, or None."""
    if not _is_map(x) or not _like(product, x):
        return None
    shape = kind(x).shape  # type: ignore[union-attr]
    n, c = shape[:2]
    walk = _Walk(factor, n)
    if walk.is_free() and _is_call(factor, *_EXPANDS):
        walk.step(factor.args[0])
    scaling = (*walk.taken(), product)
    found = kind(walk.at)
    if found is None or len(found.shape) != len(shape) or not starts_with(walk.at, (n, c)):
        return None
    walk.reshapes(c)
    gate = walk.function(GATES)
    if gate is None:
        return None
    walk.reshapes(c)
    second = walk.layer(c)
    if second is None:
        return None
    hidden = second[2]
    walk.reshapes(hidden)
    act = walk.function(ACTIVATIONS) or "identity"
    walk.reshapes(hidden)
    first = walk.layer(hidden)
    if first is None or not same_sizes((first[2],), (c,)):
        return None
    walk.reshapes(c)
    layers = walk.taken()
    if not walk.pooling(x):
        return None
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "act", "gate")
    values = (*first[:2], *second[:2], act, gate)
    return Excitation(x, walk.taken(), layers, scaling, dict(zip(names, values, strict=True)))


def excitation(node: fx.Node) -> Excitation | None:
    """The squeeze-excite layer whose last node, the product, this is; None for any other node."""
    if not _is_product(node):
        return None
    first, second = node.args
    found = _excites(node, first, second)
    return found if found is not None or _in_place(node) else _excites(node, second, first)


# ---- the end of a block
@dataclass
class End:
    """What follows a map u with the same shape and dtype: out_act(u * drop_path_scale + residual)."""

    nodes: list[fx.Node]
    scale: fx.Node | None = None  # (N, 1, ...)
    residual: fx.Node | None = None
    out_act: str = "none"


def _next(node: fx.Node) -> fx.Node | None:
    """The only user of a node, if it returns a map of the same shape and dtype."""
    user = users(node)[0] if len(users(node)) == 1 else None
    return user if user is not None and _like(user, node) else None


def _in_place(node: fx.Node) -> bool:
    """Whether a product or sum is written over its first argument."""
    return node.target in _IN_PLACE


def _is_scale(node: Any, u: fx.Node) -> bool:
    """Whether a node returns factors (N, 1, ...) of the samples of u, in u's dtype and without a gradient."""
    found, mine = kind(node), kind(u)
    if found is None or mine is None or found.dtype != mine.dtype or len(found.shape) != len(mine.shape):
        return False
    return starts_with(node, mine.shape[:1]) and not requires_grad(node)


def block_end(u: fx.Node) -> End:
    """What follows u and can be computed together with it."""
    end = End([])
    user = _next(u)
    if user is not None and _is_product(user) and (user.args[0] is u or not _in_place(user)):
        scale = user.args[1] if user.args[0] is u else user.args[0]
        if _is_scale(scale, u):
            end.scale = scale  # type: ignore[assignment]
            end.nodes.append(user)
            u, user = user, _next(user)
    if user is not None and is_add(user) and (user.args[0] is u or not _in_place(user)):
        end.residual = user.args[1] if user.args[0] is u else user.args[0]  # type: ignore[assignment]
        end.nodes.append(user)
        u, user = user, _next(user)
    act = _function(user)
    if user is not None and user.args[0] is u and act in OUT_ACTIVATIONS:
        end.out_act = str(act)
        end.nodes.append(user)
    return end


def projection(node: fx.Node, y: fx.Node) -> tuple[Any, Any] | None:
    """(weight, bias) of the 1x1 convolution without stride, padding and groups that a node computes of y, or None."""
    given = arguments(node, _CONV) if _is_call(node, *_CONVS) else {}
    return (given["weight"], given.get("bias")) if given.get("input") is y and _is_1x1(given) else None
