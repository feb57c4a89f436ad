"""Rewriting of a graph: merge the operations after each layer into the layer, and find memory to overwrite.

A layer writes its result over an input that no later node reads.
"""

import operator
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ...activations import FUNCTIONS
from ...reference import OUT_ACTIVATIONS
from ..known import activation, is_plain
from ..norms import brought_activation
from ..squeeze_excite import SqueezeExcite
from .folding import fold_linear, is_product
from .functional import merge_padding, name_convolutions, views_to_reshapes
from .layers import ConvAct, ConvSqueezeExcite, GatedConvAct, NormAct, Rescale
from .matching import CONVS, is_norm, squeeze_excite_arguments, why_no_conv
from .tracing import add_layer, kind, storages, writes

__all__ = ["Rewritten", "is_add", "rewrite"]

_ADDS = (operator.add, operator.iadd, torch.add)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # identities in inference
_OWNERS = (ConvAct, ConvSqueezeExcite, GatedConvAct, Rescale, NormAct, nn.MaxPool2d, nn.MaxPool1d, nn.MaxPool3d)
"""Modules that return a new tensor and no view of their input."""


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two different maps of the same shape and dtype."""
    called = node.op == "call_function" and node.target in _ADDS
    if not (called or (node.op == "call_method" and node.target in ("add", "add_"))) or node.kwargs:
        return False
    if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args) or node.args[0] is node.args[1]:
        return False
    first, second = (kind(a) for a in node.args)
    return first is not None and second is not None and first.shape == second.shape and first.dtype == second.dtype


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _seen_elsewhere(node: fx.Node, besides: list[fx.Node]) -> list[fx.Node]:
    """Nodes before ``node``, except ``besides``, whose tensor ``node`` overwrites and a later node still reads."""
    changed = writes(node)
    behind: set[fx.Node] = set()
    later = node.next
    while later.op != "root":
        behind.add(later)
        later = later.next
    found, before = [], node.prev
    while before.op != "root":
        if before not in besides and storages(before) & changed and behind & set(before.users):
            found.append(before)
        before = before.prev
    return found


class _Chain:
    """Consecutive nodes that become one call of a layer, at the position of the last node.

    The layer reads its inputs later than the first node did, and does not write to them in place as a node may have
    done. A node is therefore added only if no node in between writes to the inputs, and if a tensor that it writes in
    place is read only through its result.
    """

    def __init__(self, first: fx.Node, reads: Any) -> None:
        self.nodes = [first]
        self._reads = storages(reads)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    def next(self) -> fx.Node | None:
        """The node that can be added, which is the only user of the last node; None if there is none."""
        user = _only_user(self.last)
        if user is None or not self._stays_the_same(user):
            return None
        return None if writes(user) and _seen_elsewhere(user, self.nodes) else user

    def take(self, node: fx.Node, reads: Any = None) -> None:
        """Add ``node`` to the chain; ``reads`` is an additional map that it reads."""
        self.nodes.append(node)
        self._reads |= storages(reads)

    def _stays_the_same(self, end: fx.Node) -> bool:
        node = self.last.next
        while node is not end:
            if writes(node) & self._reads:
                return False
            node = node.next
        return True


class _Rewriter:
    def __init__(self, gm: fx.GraphModule, dtype: torch.dtype) -> None:
        self.gm, self.dtype = gm, dtype
        self.left: dict[str, tuple[str, str, str]] = {}
        self.shared: list[str] = []
        self.gone: set[fx.Node] = set()

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls, or None."""
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self.modules.get(str(node.target)) if called else None

    def _act(self, node: fx.Node) -> str | None:
        """Name of the activation that the node applies, if a layer can include it; else None."""
        module = self.module(node)
        if module is not None:
            name = activation(module)
        else:
            name = FUNCTIONS.get(node.target) if len(node.args) == 1 else None
        return name if name in OUT_ACTIVATIONS else None

    def _replace(self, chain: _Chain, name: str, layer: nn.Module, *args: Any) -> None:
        """Replace the nodes of a chain by a call of ``layer``."""
        graph, end = self.gm.graph, chain.last
        name = add_layer(self.gm, name, layer)
        self.modules[name] = layer
        with graph.inserting_before(end):
            new = graph.call_module(name, args)
        new.meta.update(end.meta, writes=frozenset())
        end.replace_all_uses_with(new)
        for node in reversed(chain.nodes):
            graph.erase_node(node)
        self.gone.update(chain.nodes)

    def run(self) -> None:
        graph = self.gm.graph
        views_to_reshapes(graph)
        computed = name_convolutions(self.gm)
        merge_padding(self.gm)
        self._read_what_was_written()
        self.modules = dict(self.gm.named_modules())
        self.calls = Counter(n.target for n in graph.nodes if n.op == "call_module")
        for node in computed:
            if any(is_norm(self.module(user)) for user in node.users):
                self.left[node.name] = (node.name, "F.conv", "its weight is computed in forward")
        for step in (self._drop_nothing, self._linear, self._conv, self._rest):
            for node in list(graph.nodes):
                if node.op == "call_module" and node not in self.gone:
                    step(node)
            # fx's default would also remove a call that writes in place, if its result is not read
            graph.eliminate_dead_code(lambda n: bool(writes(n)) or n.is_impure())
        self._give_away()
        graph.lint()
        self.gm.delete_all_unused_submodules()
        self.gm.recompile()

    def _read_what_was_written(self) -> None:
        """Let nodes after an in-place write read its result instead of the overwritten node: ``relu_(x); f(x)``."""
        order = {node: i for i, node in enumerate(self.gm.graph.nodes)}
        for node in order:
            if kind(node) is None or not writes(node) & storages(node):
                continue
            for other in order:
                if order[other] < order[node] and kind(other) == kind(node) and storages(other) == storages(node):
                    other.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])

            if _seen_elsewhere(node, []):
                self.shared.append(node.name)

    def _drop_nothing(self, node: fx.Node) -> None:
        if type(self.module(node)) in _NOTHING and len(node.args) == 1:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.gm.graph.erase_node(node)

    def _norm_behind(self, chain: _Chain) -> nn.Module | None:
        """Add the next node to the chain if it is a batch norm, and return the batch norm; else None."""
        node = chain.next()
        module = self.module(node)
        if node is None or not is_norm(module) or node.args != (chain.last,) or node.kwargs:
            return None
        chain.take(node)
        return module

    def _linear(self, node: fx.Node) -> None:
        linear, given = self.module(node), kind(node)
        if not is_plain(linear, nn.Linear) or self.calls[node.target] > 1:  # type: ignore[arg-type]
            return
        if given is None or len(given.shape) != 2 or node.kwargs:  # for (N, L, C), the norm's channels are L, not C
            return
        chain = _Chain(node, node.args[0])
        norm = self._norm_behind(chain)
        if norm is None:
            return
        self._replace(chain, str(node.target), fold_linear(linear, norm), node.args[0])

    def _conv(self, node: fx.Node) -> None:
        conv = self.module(node)
        if not isinstance(conv, CONVS):
            return
        why = why_no_conv(conv) or ("it is called more than once" if self.calls[node.target] > 1 else None)
        given = kind(node.args[0]) if len(node.args) == 1 and not node.kwargs else None
        if why is None and (given is None or len(given.shape) != conv.weight.dim()):
            why = "its input has no batch"
        if why is not None:
            if any(is_norm(self.module(user)) for user in node.users):
                self.left[str(node.target)] = (str(node.target), type(conv).__name__, why)
            return
        chain = _Chain(node, node.args[0])
        bn = self._norm_behind(chain)
        brought = "none" if bn is None else brought_activation(bn) or "none"
        layer: nn.Module | None = None
        residual, act = None, brought
        if brought == "none":
            se = chain.next()
            excitation = None if se is None else self._excitation(se, chain.last)
            if se is None or excitation is None:
                residual, act = self._closing(chain)
            elif is_product(conv):
                chain.take(se)
                residual, act = self._closing(chain)
                layer = ConvSqueezeExcite(conv, bn, excitation, self.dtype, act)
        layer = layer or ConvAct(conv, bn, self.dtype, act)
        rest = [] if residual is None else [residual]
        self._replace(chain, str(node.target), layer, node.args[0], *rest)

    def _rest(self, node: fx.Node) -> None:
        """Replace SE layers and batch norms that were not merged into a convolution."""
        module, name, given = self.module(node), str(node.target), kind(node)
        if not node.args:
            return
        chain = _Chain(node, node.args[0])
        if is_norm(module):
            if given is None or len(given.shape) < 3 or node.kwargs:  # for (N, C), PyTorch's batch norm is as fast
                return
            act = brought_activation(module) or "none"  # type: ignore[arg-type]
            if act == "none":
                act = self._activated(chain)
            self._replace(chain, name, NormAct(module, act), node.args[0])
            return
        excitation = self._excitation(node, node.args[0])
        if excitation is None:
            return
        residual, act = self._closing(chain)
        rescale, user = Rescale(excitation, self.dtype, act), chain.next()
        conv = None if user is None or residual is not None or act != "none" else self.module(user)
        if user is not None and isinstance(conv, ConvAct) and is_product(conv) and chain.last not in user.args[1:]:
            chain.take(user)
            self._replace(chain, name, GatedConvAct(rescale, conv), node.args[0], *user.args[1:])
        else:
            self._replace(chain, name, rescale, node.args[0], *([] if residual is None else [residual]))

    def _excitation(self, node: fx.Node, x: Any) -> dict[str, Any] | None:
        """Keyword arguments of ``squeeze_excite`` if the node calls an SE layer on x, else None."""
        module = self.module(node)
        if module is None or not node.args or node.args[0] is not x:
            return None
        given = node.kwargs.get("drop_path_scale", node.args[3] if len(node.args) > 3 else None)
        return None if given is not None else squeeze_excite_arguments(module)

    def _closing(self, chain: _Chain) -> tuple[Any, str]:
        """Add the end of a block to the chain; return the residual or None, and the activation after the addition."""
        node = chain.last
        if isinstance(self.module(node), SqueezeExcite):  # this library's SE layer has arguments for both
            given = dict(zip(("x", "residual", "out_act"), node.args, strict=False)) | node.kwargs
            residual, act = given.get("residual"), given.get("out_act")
            if residual is not None or act is not None:
                return residual, str(act or "none")
        residual, add = None, chain.next()
        if add is not None and is_add(add):
            residual = add.args[1] if add.args[0] is node else add.args[0]
            chain.take(add, residual)
        return residual, self._activated(chain)

    def _activated(self, chain: _Chain) -> str:
        """Add the activation after the chain to it and return its name; "none" if there is none."""
        user = chain.next()
        act = None if user is None else self._act(user)
        if user is None or act is None:
            return "none"
        chain.take(user)
        return act

    # ---- memory
    def _give_away(self) -> None:
        """Set for every layer whether the tensor that it could overwrite is read later."""
        order = {node: i for i, node in enumerate(self.gm.graph.nodes)}
        for node in self.gm.graph.nodes:
            layer = self.module(node)
            if isinstance(layer, ConvAct | ConvSqueezeExcite) and len(node.args) == 2:
                layer.keeps_residual = not self._is_last_use(node.args[1], node, order)
            elif isinstance(layer, GatedConvAct):
                layer.rescale.keeps_input = not self._is_last_use(node.args[0], node, order)
                layer.conv.keeps_residual = len(node.args) < 2 or not self._is_last_use(node.args[1], node, order)
            elif isinstance(layer, Rescale | NormAct):
                layer.keeps_input = not self._is_last_use(node.args[0], node, order)

    def _is_last_use(self, value: Any, node: fx.Node, order: dict[fx.Node, int]) -> bool:
        if not isinstance(self.module(value), _OWNERS) or node.args.count(value) > 1:
            return False
        return all(u is node or (order[u] < order[node] and isinstance(self.module(u), _OWNERS)) for u in value.users)


class Rewritten(NamedTuple):
    """Notes on a rewritten graph.

    ``left``: (name, class, reason) of each convolution that keeps the batch norm after it. ``shared``: names of nodes
    that write in place to a tensor that is also read through a view; in channels_last, the view may be a copy.
    """

    left: tuple[tuple[str, str, str], ...]
    shared: tuple[str, ...]


def rewrite(gm: fx.GraphModule, dtype: torch.dtype) -> Rewritten:
    """Rewrite a traced graph in place; ``dtype`` is the dtype of the maps between the layers."""
    rewriter = _Rewriter(gm, dtype)
    rewriter.run()
    return Rewritten(tuple(rewriter.left.values()), tuple(rewriter.shared))
