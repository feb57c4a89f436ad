"""The backend "se_fused" of torch.compile with a record of the graphs that it rewrites."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import fx

from se_fused.nn import compile as se_fused_compile

__all__ = ["counts", "keeping"]


def keeping(then: Callable[..., Any] | None = None) -> tuple[list[fx.GraphModule], Callable[..., Any]]:
    """(the rewritten graphs, the backend), which runs the graphs in eager mode, or compiles them by ``then``."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward if then is None else then(gm, inputs)

    return graphs, partial(se_fused_compile.backend, options={"then": keep})


def counts(graphs: Sequence[fx.GraphModule]) -> Counter[str]:
    """The number of calls of each function of se_fused in the graphs."""
    nodes = [node for gm in graphs for node in gm.graph.nodes if node.op == "call_function"]
    ours = [node.target for node in nodes if getattr(node.target, "__module__", "").startswith("se_fused.functional")]
    fused = [node for node in nodes if getattr(node.target, "__name__", "") == "_batch_norm_act_means"]
    return Counter(function.__name__ for function in ours) + Counter(batch_norm_act_squeeze=len(fused))
