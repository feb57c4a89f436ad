"""Operators that update batch norm's running statistics themselves, for graphs of a training step.

Such an operator is a functional operator of :mod:`.operators` with ``momentum`` as its last argument, and it writes to
``running_mean`` and ``running_var``. A graph then has no kernels for the statistics, where the functional operator
leaves two per batch norm. Exported programs contain the functional operators only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch
from torch._library.autograd import Info, make_autograd_impl
from torch.utils._pytree import tree_map

from .input_gradient import install
from .layout import in_kernel_order
from .operators import schema

__all__ = ["define_updating", "in_training_graph", "with_momentum"]

_library = torch.library.Library("se_fused", "FRAGMENT")  # the operators live as long as this object


def _exporting() -> bool:
    install()  # a graph with our operators is traced, so this runs before Inductor sees it
    return torch.compiler.is_exporting()


# torch.compile calls it and takes the result as a constant (see backends/base.py). PyTorch 2.11, where it traces the
# function, takes every graph for an exported one.
_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_training_graph() -> bool:
    """Whether a graph is traced that may contain operators with side effects: torch.compile's, not an exported one."""
    return torch.compiler.is_compiling() and not _exporting()


def with_momentum(arguments: type) -> Any:
    """The record of an updating operator's arguments: the functional operator's, and the momentum."""
    fields = [*get_type_hints(arguments).items(), ("momentum", float)]
    return NamedTuple(arguments.__name__ + "WithMomentum", fields)


def define_updating(
    name: str,
    arguments: Any,
    results: type,
    run: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
) -> None:
    """Define the operator ``torch.ops.se_fused.<name>``.

    Args:
        name: the operator's name.
        arguments: the record of :func:`with_momentum`.
        results: a NamedTuple class, that of the functional operator.
        run: computes the results from the record of the arguments, and updates the statistics.
        fake: the functional operator's, for tensors without memory.
        setup_context, backward: the functional operator's autograd formula.
    """

    def run_unless_empty(*given: Any) -> Any:
        # As in the functional operator. A map without elements has no statistics either.
        a = in_kernel_order(arguments(*given))
        if a.x.numel():
            return run(a)
        return tree_map(torch.zero_, fake(a))

    written = schema(name, arguments, results)
    for letter, field in (("a", "running_mean"), ("b", "running_var")):
        written = written.replace(f"Tensor? {field}", f"Tensor({letter}!) {field}")
    _library.define(written, tags=(torch.Tag.flexible_layout,))  # as any_order in .operators
    _library.impl(name, run_unless_empty, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"se_fused::{name}", lambda *given: fake(in_kernel_order(arguments(*given))), lib=_library
    )

    # torch.library.register_autograd accepts functional operators alone. This is what it registers for them. No tensor
    # that the backward pass needs is written to.
    formula = Info(
        lambda ctx, *gradients: (*backward(ctx, *gradients), None),
        lambda ctx, inputs, output: setup_context(ctx, inputs[:-1], output),
    )
    operator = getattr(torch.ops.se_fused, name).default
    _library.impl(name, make_autograd_impl(operator, formula), "Autograd", with_keyset=True)
