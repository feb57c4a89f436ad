"""The error of all operators for second derivatives."""

from typing import Any

__all__ = ["no_second_derivative"]


def no_second_derivative(ctx: Any, *_: Any) -> None:
    """The autograd formula of every backward operator, which always raises.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "se_fused does not compute second derivatives: use se_fused.use_backend('reference') around the forward pass"
    )
