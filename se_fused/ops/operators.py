"""Definition of the operators of ``torch.ops.se_fused``. An operator's arguments stand in one place, a NamedTuple: its
schema has the fields' names and types, and its implementations receive the record."""

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .layout import in_kernel_order

__all__ = [
    "define",
    "no_second_derivative",
    "refuse_second_derivatives",
    "register_autograd",
    "schema",
    "through_dispatcher",
]

_library = torch.library.Library("se_fused", "DEF")  # the operators live as long as this object

_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", float: "float", str: "str"}


def schema(name: str, arguments: type, results: type) -> str:
    """The schema of an operator from the records of its arguments and its results; ``Tensor`` is a single result."""
    given = ", ".join(f"{_TYPES[kind]} {field}" for field, kind in get_type_hints(arguments).items())
    if results is Tensor:
        return f"{name}({given}) -> Tensor"
    return f"{name}({given}) -> ({', '.join(f'Tensor {field}' for field in get_type_hints(results))})"


def define(
    name: str,
    arguments: type,
    results: type,
    run: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    any_order: bool = False,
) -> None:
    """Define the operator ``torch.ops.se_fused.<name>``.

    Args:
        name: the operator's name.
        arguments, results: NamedTuple classes; ``results`` may be ``Tensor``. The first argument is a map.
        run: computes the results from the record of the arguments, on any device.
        fake: the same for tensors without memory: shapes, strides and dtypes.
        any_order: for an operator with a map ``x``: ``run`` and ``fake`` get the arguments in the memory orders that
            kernels take, whatever their strides. A compiler then need not restore those that it traced.
    """

    def run_unless_empty(*given: Any) -> Any:
        # Kernels do not run on a map without elements. Sums over it, such as the parameters' gradients, are zero.
        a = record(*given)
        if next(iter(a)).numel():
            return run(a)
        return tree_map(torch.zero_, fake(a))

    def record(*given: Any) -> Any:
        return in_kernel_order(arguments(*given)) if any_order else arguments(*given)

    _library.define(schema(name, arguments, results), tags=(torch.Tag.flexible_layout,) if any_order else ())
    _library.impl(name, run_unless_empty, "CompositeExplicitAutograd")
    torch.library.register_fake(f"se_fused::{name}", lambda *given: fake(record(*given)), lib=_library)


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """Register the autograd formula of an operator, as ``torch.library.register_autograd``."""
    torch.library.register_autograd(f"se_fused::{name}", backward, setup_context=setup_context, lib=_library)


_NO_SECOND_DERIVATIVE = (
    "se_fused does not compute second derivatives: use se_fused.use_backend('reference') around the forward pass"
)


def no_second_derivative(ctx: Any, *_: Any) -> None:
    """The autograd formula of every backward operator, which always raises.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(_NO_SECOND_DERIVATIVE)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(g if g is None else g.view_as(g) for g in gradients)

    backward = staticmethod(no_second_derivative)


def refuse_second_derivatives(*gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients that were computed without a graph, so that their derivatives raise an error rather than be missing.
    For ``create_graph=True``."""
    some = next(g for g in gradients if g is not None)
    refused: tuple[Tensor | None, ...] = _Refusal.apply(some.new_empty(0).requires_grad_(), *gradients)
    return refused


def through_dispatcher() -> bool:
    """Whether a call must go through PyTorch's dispatcher, rather than directly to a backend's kernels: a graph is
    traced, or a ``TorchDispatchMode`` is active.

    Dispatch modes such as FLOP counters, fake tensors and memory trackers do not see kernels that Python launches
    directly. Nothing else needs the dispatcher, and this check costs 0.1 us.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
