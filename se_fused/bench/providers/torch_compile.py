"""``torch.compile`` as a provider: independent graphs, its modes, CUDA graphs and frozen weights."""

import logging
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from .registry import compiles

__all__ = ["between_graphs", "compile_mode", "compiled", "fresh_compiler", "frozen", "kept_results"]


def compiled(what: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch.compile of a function or module for fixed shapes, independent of everything compiled before.

    Dynamo caches graphs by code object and compiles at most eight graphs of each. All networks of a class share the
    code object of ``forward``, so each call of this function compiles a new code object that inlines it.

    Args:
        what: a function or module.
        **options: options of ``torch.compile``.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides the warning "no CUDA runtime"

    def call(*args: Any, **kwargs: Any) -> Any:
        return what(*args, **kwargs)

    code: CodeType = call.__code__.replace()  # without arguments, this copies the code object
    own = FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)
    graph: Callable[..., Any] = torch.compile(own, dynamic=False, **options)
    return graph


def fresh_compiler() -> None:
    """Delete all graphs that were compiled in this process, and the memory of their CUDA graphs.

    Delete candidates first: a compiled candidate would compile again in its next call, and "compile freezing" without
    freezing. Candidates are independent of each other also without this function.
    """
    torch._dynamo.reset()


_GRAPHED = ("max-autotune", "reduce-overhead")
"""Modes of torch.compile that use CUDA graphs."""


def compile_mode(name: str) -> str | None:
    """The ``mode`` of torch.compile in a candidate's name, such as "se_fused compile reduce-overhead"; else None."""
    mode = name.rpartition(" ")[2]
    return mode if compiles(name) and mode in _GRAPHED else None


def between_graphs(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` for a candidate; with CUDA graphs, it first marks the results of the previous call as unneeded."""
    if compile_mode(name) is None:
        return run

    def marked() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return run()

    return marked


def kept_results(name: str, results: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """``results`` for a candidate; with CUDA graphs, the results are copied, because the next call overwrites them."""
    if compile_mode(name) is None:
        return results
    return lambda: {k: t.clone() for k, t in between_graphs(name, results)().items()}


def frozen(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch.compile with freezing: the weights are constants, which the compiler folds and packs.

    The first call compiles and must run without gradients. The ``freezing`` setting of the compiler is restored.
    """
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
