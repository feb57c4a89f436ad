"""The Dynamo backend: rewrite the graph, report it, and compile the result by another backend."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from .rewriting import rewrite

__all__ = ["backend"]


def _compiler(then: str | Callable[..., Any], mode: str | None, options: dict[str, Any]) -> Callable[..., Any]:
    """The compiler of the rewritten graph, with mode and options as torch.compile would give them to it."""
    if then == "inductor":
        from torch import _inductor  # takes a second to import

        given = (_inductor.list_mode_options(mode) if mode else {}) | options
        return lambda gm, inputs: _inductor.compile(gm, inputs, options=given)
    from torch._dynamo import lookup_backend

    compiler: Callable[..., Any] = lookup_backend(then)
    given = {name: value for name, value in (("mode", mode), ("options", options)) if value}
    return lambda gm, inputs: compiler(gm, inputs, **given)


def backend(
    gm: fx.GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """``torch.compile(model, backend="se_fused")``: run the squeeze-excite layers and batch norms of any model in this
    library's kernels, and all else in Inductor's.

    The model is not converted. In the graph that Dynamo records, batch norm, squeeze-excite, stochastic depth, the
    residual and the activation become one call; what has another form stays as it is, and so do batch norms without
    squeeze-excite in inference, which Inductor fuses itself. The setting of :func:`se_fused.use_backend` counts when
    the graph is compiled; with ``"reference"`` nothing is replaced.

    Args:
        gm, inputs: the graph and its arguments, from Dynamo.
        mode: as for ``torch.compile``.
        options: Inductor's options, and two more: ``verbose=True`` prints a line for each graph, with what was
            replaced. ``then`` is the backend that compiles the result, by name or as a function, "inductor" by default.

    Returns:
        The compiled graph.
    """
    others = dict(options or {})
    then, verbose = others.pop("then", "inductor"), others.pop("verbose", False)
    compiler = _compiler(then, mode, others)
    counts = rewrite(gm, inputs)
    if verbose:
        said = ", ".join(f"{count} x {name}" for name, count in counts.items())
        print(f"se_fused: {said or 'nothing replaced'} in a graph of {len(gm.graph.nodes)} nodes")
    return compiler(gm, inputs)
