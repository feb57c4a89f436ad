"""``torch.compile`` as a provider: graphs independent of each other, its modes, CUDA graphs, frozen weights."""

import logging
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from .registry import compiles

__all__ = ["between_graphs", "compile_mode", "compiled", "fresh_compiler", "frozen", "kept_results"]


def compiled(what: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile of a function or module for one fixed shape, independent of everything compiled before.

    Dynamo keeps what it compiled per code object, and stops compiling after eight graphs of one. All networks of a
    class have one ``forward``; so each call here compiles a code object of its own, into which that is inlined.

    Args:
        what: a function or module.
        **options: of ``torch.compile``.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime": it is known

    def call(*args: Any, **kwargs: Any) -> Any:
        return what(*args, **kwargs)

    code: CodeType = call.__code__.replace()  # a new object, though nothing is replaced
    own = FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)
    graph: Callable[..., Any] = torch.compile(own, dynamic=False, **options)
    return graph


def fresh_compiler() -> None:
    """Drop everything that was compiled in this process, and the memory of its CUDA graphs.

    Compiled candidates that are still in use compile once more when they are called next, "compile freezing" without
    freezing: drop candidates before. None needs this to be independent of others.
    """
    torch._dynamo.reset()


_GRAPHED = ("max-autotune", "reduce-overhead")
"""torch.compile's modes that run in CUDA graphs."""


def compile_mode(name: str) -> str | None:
    """torch.compile's ``mode`` of a candidate's name: "se_fused compile reduce-overhead"."""
    mode = name.rpartition(" ")[2]
    return mode if compiles(name) and mode in _GRAPHED else None


def between_graphs(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """What a candidate is to run: those in CUDA graphs are told that the last call's results are no longer needed."""
    if compile_mode(name) is None:
        return run

    def marked() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return run()

    return marked


def kept_results(name: str, results: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """A candidate's results: those in CUDA graphs are copied, for the next call overwrites them."""
    if compile_mode(name) is None:
        return results
    return lambda: {k: t.clone() for k, t in between_graphs(name, results)().items()}


def frozen(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch.compile with the weights as constants, folded and packed; the first call, which compiles, must be without
    gradients. The compiler's setting is as it was before and after it."""
    import torch._inductor.config as inductor

    graph, ready = compiled(model), False

    def call(x: Tensor) -> Tensor:
        nonlocal ready
        if ready:
            return graph(x)
        with inductor.patch(freezing=True):
            y = graph(x)
        ready = True
        return y

    return call
