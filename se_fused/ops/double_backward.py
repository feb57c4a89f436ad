"""What every operator's gradient says when it is to be differentiated itself."""

from typing import Any

__all__ = ["no_second_derivative"]


def no_second_derivative(ctx: Any, *_: Any) -> None:
    """The autograd formula of a backward operator.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "se_fused does not compute second derivatives: use se_fused.use_backend('reference') around the forward pass"
    )
