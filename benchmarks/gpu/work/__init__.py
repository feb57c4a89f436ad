"""The programs of the steps, each a process: ``python3 -m benchmarks.gpu.work.NAME``. They print results as they find
them, a line each, so that what a crash or the end of the time cuts off is what had not been found."""

import json
from typing import Any

from ..runner import AT, ROW

__all__ = ["at", "emit"]


def emit(what: str, **row: Any) -> None:
    """Print one result.

    Args:
        what: what it is a result of.
        **row: JSON. "ok" False is a wrong result, with its "note"; "figure" is a line about the step as a whole.
    """
    print(ROW + json.dumps({"what": what, **row}), flush=True)


def at(what: str) -> None:
    """Print what is about to be done: all that is known of it where it hangs."""
    print(AT + what, flush=True)
