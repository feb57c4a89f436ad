"""Rewriting of Dynamo's graph: groups of nodes become calls of :mod:`se_fused.functional`.

These functions check their arguments and choose the kernels, as in eager mode. Their arguments are the graph's nodes.
"""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ... import functional as F_se
from ...backends import find
from ...functional.dispatch import left_to_the_compiler
from ..inference.tracing import kind, writes
from .graph import can_join, describe, is_transformed
from .matching import (
    BatchNorm,
    End,
    Excitation,
    activated,
    batch_norm,
    block_end,
    excitation,
    projection,
    questions,
    users,
)

__all__ = ["rewrite"]


def _batch_norm_act_means(
    x: Tensor, *tensors: Tensor | None, dtype: torch.dtype, dim: int, **settings: Any
) -> tuple[Tensor, Tensor]:
    """:func:`se_fused.functional.batch_norm_act_squeeze` with the means in ``dtype``, as (N, C, 1, ...) with ``dim``
    dimensions."""
    y, squeezed = F_se.batch_norm_act_squeeze(x, *tensors, **settings)
    return y, squeezed.to(dtype).reshape(*squeezed.shape, *(1,) * (dim - 2))


def _has_kernels(x: fx.Node) -> bool:
    """Whether a backend has kernels for the map. Plain PyTorch is left to the compiler, which knows it best."""
    value: Tensor = x.meta["example_value"]
    # float64 has no kernels, and a backend that is requested by name raises an error for it.
    return value.dtype != torch.float64 and find(value.device.type, value.dtype)[0] is not None


class _Rewriter:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.counts: Counter[str] = Counter()
        self.gone: set[fx.Node] = set()

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        for node in nodes:
            layer = None if node in self.gone else excitation(node)
            if layer is not None and _has_kernels(layer.x):
                self._excite(layer)
        for node in nodes:
            norm = None if node in self.gone else batch_norm(node)
            if norm is None or not _has_kernels(norm.x) or left_to_the_compiler(norm.training):
                continue
            end = block_end(node)
            if end.nodes:
                self._replace(F_se.batch_norm_act, norm.x, [node, *end.nodes], norm, None, end)

    def _excite(self, layer: Excitation) -> None:
        """Replace a squeeze-excite layer, with the operations before and after it where that is possible."""
        end, norm = block_end(layer.product), batch_norm(layer.x)
        nodes = [*layer.nodes, *end.nodes]
        if norm is not None:
            joined = [norm.node, *nodes]
            if self._replace(F_se.batch_norm_squeeze_excite, norm.x, joined, norm, layer, end):
                return
        if end.nodes or not self._gate_projection(layer):
            self._replace(F_se.squeeze_excite, layer.x, nodes, None, layer, end)

    def _gate_projection(self, layer: Excitation) -> bool:
        """Fuse batch norm, activation and means before a squeeze-excite layer, and the scaling with the 1x1 convolution
        after it. The layers between them stay in the graph.

        Returns:
            Whether the graph was changed.
        """
        y, (*_, squeeze), (*_, product) = layer.x, layer.pooling, layer.scaling
        (bn, act), means, after = activated(y), kind(squeeze), users(product)
        norm = batch_norm(bn)
        if norm is None or means is None or len(after) != 1 or not torch.is_grad_enabled():
            return False
        given = projection(after[0], product)
        if given is None or users(norm.node) != [y] or not {*users(y)} <= {*layer.pooling, *layer.scaling}:
            return False
        scaled = [*layer.scaling, after[0]]
        if not (can_join([norm.node, y, *layer.pooling]) and can_join(scaled)):
            return False
        settings = norm.settings | {"out_act": act, "dtype": means.dtype, "dim": len(means.shape)}
        both = self._call(y, _batch_norm_act_means, (norm.x, *norm.tensors), settings, writes(norm.node))
        map_, mean = (self._call(of, operator.getitem, (both, i), {}) for i, of in enumerate((y, squeeze)))
        self._erase([*layer.pooling], mean)
        self._erase([norm.node, y], map_)
        self._erase(scaled, self._call(scaled[-1], F_se.gated_conv1x1, (map_, layer.gate, *given), {}))
        self.counts["batch_norm_act_squeeze"] += 1
        self.counts["gated_conv1x1"] += 1
        return True

    def _replace(
        self,
        function: Callable[..., Tensor],
        x: fx.Node,
        nodes: Sequence[fx.Node],
        norm: BatchNorm | None,
        layer: Excitation | None,
        end: End,
    ) -> bool:
        """Replace nodes, in the graph's order, by a call of ``function`` on x, unless another node reads one of their
        intermediate results, or one is the residual.

        Returns:
            Whether the graph was changed.
        """
        inside = set(nodes)
        if any(user not in inside for node in nodes[:-1] for user in users(node)):
            return False
        if end.residual in inside or end.scale in inside or not can_join(nodes):
            return False
        last = nodes[-1]
        options: dict[str, Any] = {"residual": end.residual, "out_act": end.out_act}
        if end.scale is not None:
            options["drop_path_scale"] = self._call(last, torch.flatten, (end.scale,), {})
        if norm is not None:
            options |= norm.settings
        if layer is not None:
            options |= layer.arguments
        tensors = () if norm is None else norm.tensors
        for node in nodes[:-1]:
            for question in questions(node):
                question.replace_input_with(node, x)
        updated = frozenset() if norm is None else writes(norm.node)
        self._erase(nodes, self._call(last, function, (x, *tensors), options, updated))
        self.counts[function.__name__] += 1
        return True

    def _call(
        self,
        place: fx.Node,
        function: Callable[..., Any],
        given: tuple[Any, ...],
        options: dict[str, Any],
        written: frozenset[int] = frozenset(),
    ) -> fx.Node:
        """A call before the node ``place``, whose notes it takes over."""
        with self.graph.inserting_before(place):
            node = self.graph.call_function(function, given, options)
        node.meta.update(place.meta, writes=written)
        return node

    def _erase(self, nodes: Sequence[fx.Node], instead: fx.Node) -> None:
        """Remove nodes, of which the last is replaced by ``instead``."""
        nodes[-1].replace_all_uses_with(instead)
        for node in reversed(nodes):
            self.graph.erase_node(node)
        self.gone.update(nodes)


def rewrite(gm: fx.GraphModule, inputs: Sequence[Any]) -> Counter[str]:
    """Replace what the kernels can compute in Dynamo's graph, in place.

    Args:
        gm: the graph before AOTAutograd, with the results of the nodes in ``meta["example_value"]``.
        inputs: the arguments of the graph.

    Returns:
        The number of calls of each function that were inserted.
    """
    if is_transformed(gm.graph):
        return Counter()
    describe(gm, inputs)
    rewriter = _Rewriter(gm.graph)
    rewriter.run()
    gm.graph.lint()
    gm.recompile()
    return rewriter.counts
